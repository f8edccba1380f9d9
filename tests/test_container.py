"""The container files: what they name exists, and Grafana asks only for figures that a run's page has."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fastgen.cli import app as cli
from fastgen.telemetry.figures import Limit, Rates, Sample, ServerSample
from fastgen.telemetry.instruments import Histogram, Instruments
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.prometheus import metrics_page

ROOT = Path(__file__).parent.parent
CONTAINER = ROOT / "container"
PROVISIONING = CONTAINER / "grafana" / "provisioning"
DASHBOARD = CONTAINER / "grafana" / "dashboards" / "fastgen.json"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


COMPOSE = read_yaml(ROOT / "compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]


def exported() -> dict[str, set[str]]:
    """The labels of every figure on the page of a run that has all of them."""
    latency = Histogram()
    latency.observe(0.1)
    hub = MetricsHub()
    hub.rates = Rates(eta_s=60.0)
    hub.reading = Sample(
        rejected={"similar": 1},
        faults={"http_500": 1},
        servers=(ServerSample("http://a/v1", limit=9, running=1, waiting=1, kv_cache_usage=0.5),),
        kept=1,
        counters=Instruments(latencies={"instance": latency}),
    )
    hub.publish(Sample(limit=Limit.SERVER))
    with (
        metrics_page(hub, "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        page = answer.read().decode()
    return {one.name: {*one.labels} for family in text_string_to_metric_families(page) for one in family.samples}


def queries() -> list[tuple[str, str, str]]:
    """Panel, query and legend of everything that the dashboard asks."""
    panels = orjson.loads(DASHBOARD.read_bytes())["panels"]
    return [(p["title"], target["expr"], target["legendFormat"]) for p in panels for target in p["targets"]]


def test_every_figure_of_the_dashboard_is_exported_with_its_labels() -> None:
    known, asked = exported(), queries()
    assert len(asked) > 20
    for panel, query, legend in asked:
        names = set(re.findall(r"\bfastgen_\w+", query))
        assert names, panel
        assert names <= set(known), panel
        labels = set().union(*(known[name] for name in names))
        grouped = {label.strip() for group in re.findall(r"\bby \((.*?)\)", query) for label in group.split(",")}
        assert grouped <= labels, panel
        assert set(re.findall(r"{{(\w+)}}", legend)) <= (grouped or labels), panel
        assert ("_total" in query or "_bucket" in query) or "rate(" not in query, panel


def test_panels_do_not_overlap_and_use_the_datasource_that_is_provided() -> None:
    board = orjson.loads(DASHBOARD.read_bytes())
    [source] = read_yaml(PROVISIONING / "datasources" / "prometheus.yaml")["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert {one["datasource"]["uid"] for one in (panel, *panel["targets"])} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES


def test_what_compose_mounts_and_builds_is_there() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), f"{name}: {volume}"
        for needed in service.get("depends_on", []):
            assert needed in SERVICES
        assert "build" not in service or service["build"]["target"] in stages
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    [provider] = read_yaml(PROVISIONING / "dashboards" / "fastgen.yaml")["providers"]
    assert mounted["./container/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


def test_only_grafana_listens_outside_and_on_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(ports) == ["grafana"]
    assert all(port.startswith("127.0.0.1:") for port in ports["grafana"])


def test_prometheus_asks_the_run_and_the_server_where_they_listen() -> None:
    jobs = read_yaml(CONTAINER / "prometheus.yaml")["scrape_configs"]
    targets = {target for job in jobs for static in job["static_configs"] for target in static["targets"]}
    command = SERVICES["fastgen"]["command"]
    [port] = [word.partition("=")[2] for word in command if word.startswith("--metrics-port=")]
    assert targets == {f"fastgen:{port}", "vllm:8000"}
    assert "--base-url=http://vllm:8000/v1" in command


def test_the_command_of_the_run_is_one_that_fastgen_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in SERVICES["fastgen"]["command"]]
    assert not [word for word in command if "$" in word]
    swapped = {"--base-url": "http://127.0.0.1:9/v1", "--metrics-port": "0", "--metrics-host": "127.0.0.1"}
    command = [f"{name}={swapped[name]}" if (name := word.split("=")[0]) in swapped else word for word in command]
    assert cli.run([*command, "--server-timeout=0.01"]) == 3  # all flags are right, but no server answers
    assert "metrics for Prometheus" in capsys.readouterr().err


def dockerfile() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage: name and arguments."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stages: dict[str, list[tuple[str, str]]] = {}
    stage = "before the first"
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            assert name.isupper(), line
            if name == "FROM":
                stage = rest.split(" AS ")[1]
            stages.setdefault(stage, []).append((name, rest))
    return stages


def test_the_images_run_as_a_user_without_rights_and_keep_runs_in_volumes() -> None:
    stages = dockerfile()
    assert list(stages)[-1] == "cpu"  # what 'docker build .' makes
    for stage in ("cpu", "gpu"):
        said = dict(stages[stage])
        assert said["USER"] == "1000:1000"
        assert orjson.loads(said["VOLUME"]) == ["/work/runs", "/cache"]
        assert said["WORKDIR"] == "/work"
        assert orjson.loads(said["ENTRYPOINT"]) == ["fastgen"]
        assert said["STOPSIGNAL"] == "SIGINT"
        names = [name for name, _ in stages[stage]]
        assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")
        for mounted in SERVICES["fastgen"]["volumes"]:
            assert mounted.split(":")[1] in orjson.loads(said["VOLUME"])


def test_the_build_gets_everything_that_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*"
    copied = {
        word.rstrip("/").removeprefix("./")
        for name, rest in dockerfile()["wheel"]
        if name == "COPY"
        for word in rest.split()[:-1]
    }
    assert copied == sent
    assert not [name for name in copied if not (ROOT / name).exists()]
