"""A whole run's figures: in its folder, in its status, on its Prometheus page, and as a rule that ends it."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastgen.errors import InputError
from fastgen.report.charts import short
from fastgen.report.live_view import Follower, pieces
from fastgen.report.status import render
from fastgen.report.status import status as read_status
from fastgen.telemetry.figures import Limit, Sample, ServerSample
from fastgen.telemetry.instruments import Histogram, Instruments
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.prometheus import MOST_CONNECTIONS, metrics_page
from fastgen.telemetry.series import METRICS_FILE, read_metrics
from tests.dashboard_help import read_all
from tests.generate.test_generate import fastgen, generate, shipped_server, status


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server("--latency", "0.01") as base_url:
        yield base_url


def test_a_run_leaves_its_figures_in_its_folder_and_status_shows_them(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    url = server.replace("http://", "http://user:very-secret@")
    assert generate(run, url, 60, "--concurrency", "8").returncode == 0
    figures, samples = status(run), list(read_metrics(run))
    last = samples[-1]
    assert last.completions == sum(figures["completions"].values())
    assert (last.complete, last.target) == (60, 60)
    assert set(last.rejected.items()) == set(figures["rejected"].items())
    asked = sum(sample.stages["instance"].requests for sample in samples if "instance" in sample.stages)
    assert asked >= figures["completions"]["instance"]  # answers that came after the last one needed are not committed
    assert [one.url for one in last.servers] == [server]
    assert last.concurrency == 8
    assert last.judge_share > 0
    assert b"very-secret" not in (run / METRICS_FILE).read_bytes()
    assert figures["limit"]["name"] in {limit.value for limit in Limit}
    assert sum(figures["limit"]["shares"].values()) == pytest.approx(1.0, abs=0.01)
    said = render(read_status(run, clock=lambda: last.time_s + 75))
    assert f"limited by         {last.limit}, 1:15 ago ({last.limit_reason}); of all the time:" in said


def test_live_line_status_page_and_prometheus_show_the_same_rates(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = generate(run, server, 60, "--concurrency", "2", "--log-json")
    events = [orjson.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    shown = [event for event in events if event["event"] == "progress"][-1]
    said, last = status(run), list(read_metrics(run))[-1]
    hub = MetricsHub()
    hub.reading, hub.rates = READING, last.recent
    scraped = scrape(hub)
    names = {"complete_per_min": 2, "generated_tokens_per_s": 1, "kept_per_server_s": 4}
    for name, digits in names.items():
        assert shown[name] > 0
        assert said[name] == pytest.approx(shown[name], abs=10**-digits)
        assert scraped[f"fastgen_{name}", frozenset()] == pytest.approx(shown[name], abs=1e-5)
    page = pieces(read_all(Follower(run)), last, is_running=True)["now"]
    assert short(last.recent.complete_per_min) in page
    assert short(last.recent.generated_tokens_per_s) in page


def test_status_of_a_run_that_nothing_was_measured_of_says_so(server: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert generate(run, server, 5).returncode == 0
    (run / METRICS_FILE).unlink()
    assert status(run)["limit"] is None
    assert render(read_status(run)).endswith("limited by         not measured yet")


def test_a_yield_below_the_users_figure_ends_the_run_done_and_a_lower_figure_resumes_it(
    server: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ["--concurrency", "1", "--yield-window", "3", "--stop-when-yield-below", "1000"]
    done = generate(run, server, 400, *flags)
    assert done.returncode == 0, done.stderr
    said = "--stop-when-yield-below 1000: the last 3 instruction completions kept"
    assert [line.startswith(f"ended by {said}") for line in done.stderr.splitlines()[-2:]] == [True, False]
    ended = status(run)
    assert ended["completions"]["instruction"] == 3
    assert 0 < ended["complete"] < 400
    assert ended["pending"] == 0  # what was on its way is finished
    assert list(read_metrics(run))[-1].limit is Limit.DRAIN
    again = fastgen("generate", "--run-dir", run, "--num-instructions", "400")
    assert again.returncode == 0
    assert said in again.stderr
    more = str(status(run)["complete"] + 5)
    on = fastgen("generate", "--run-dir", run, "--num-instructions", more, "--stop-when-yield-below", "0")
    assert on.returncode == 0, on.stderr
    assert "ended by" not in on.stderr
    assert status(run)["complete"] == int(more)


@pytest.mark.parametrize(
    "flags",
    [["--metrics-port", "70000"], ["--yield-window", "0"], ["--stop-when-yield-below", "-1"]],
)
def test_impossible_figures_are_refused_by_flag(tmp_path: Path, flags: list[str]) -> None:
    done = generate(tmp_path / "run", "http://127.0.0.1:9/v1", 5, *flags)
    assert done.returncode == 2
    assert flags[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_metrics_port_in_use_is_one_line_before_anything_else(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = generate(tmp_path / "run", "http://127.0.0.1:9/v1", 5, "--metrics-port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"fastgen: --metrics-port {port}: cannot listen on 127.0.0.1 (Address already in use)"
    )
    assert len(done.stderr.splitlines()) == 1


def test_an_address_that_is_not_ours_is_one_line_too() -> None:
    with (
        pytest.raises(InputError, match=r"--metrics-port 0: cannot listen on 192\.0\.2\.1"),
        metrics_page(MetricsHub(), "192.0.2.1", 0),
    ):
        pass


def test_a_run_with_a_page_prints_its_address(server: str, tmp_path: Path) -> None:
    done = generate(tmp_path / "run", server, 5, "--metrics-port", "0")
    assert done.returncode == 0
    assert "metrics for Prometheus at http://127.0.0.1:" in done.stderr
    assert "metrics_port" not in (tmp_path / "run" / "run.json").read_text()


LATENCY = Histogram()
for seconds in (0.008, 0.008, 0.009, 0.02, 0.025):
    LATENCY.observe(seconds)
READING = Sample(
    target=100,
    kept=40,
    complete=30,
    completions=150,
    rejected={"similar": 7, "too_short": 2},
    faults={"http_500": 3},
    concurrency=64,
    in_flight=60,
    queued_answers=5,
    servers=(
        ServerSample("http://a/v1", in_flight=30, completed=80, running=29, waiting=1, kv_cache_usage=0.5, limit=32),
        ServerSample("http://a/v1", healthy=False),
    ),
    counters=Instruments(latencies={"instance": LATENCY}, judge_s=1.5, server_s=12.0, batches=7, concurrency=999),
)


def scrape(hub: MetricsHub) -> dict[tuple[str, frozenset[str]], float]:
    """All samples of a page, by name and label values."""
    with (
        metrics_page(hub, "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        page = answer.read().decode()
    found = [one for family in text_string_to_metric_families(page) for one in family.samples]
    values = {(one.name, frozenset(one.labels.values())): one.value for one in found}
    assert len(values) == len(found)
    assert all(one.name.startswith("fastgen_") for one in found)
    return values


def test_the_page_is_empty_before_there_is_anything_to_say() -> None:
    assert scrape(MetricsHub()) == {}


def test_the_page_has_counters_histograms_servers_and_the_limit() -> None:
    hub = MetricsHub()
    hub.reading = READING
    hub.publish(Sample(loop_lag_max_ms=12.5, kept_per_1000_tokens=3.5, limit=Limit.FILTER))
    seen = scrape(hub)

    def value(name: str, *labels: str) -> float:
        return seen[name, frozenset(labels)]

    assert value("fastgen_kept_total") == 40
    assert value("fastgen_completions_total") == 150
    assert value("fastgen_rejected_total", "similar") == 7
    assert value("fastgen_faults_total", "http_500") == 3
    assert value("fastgen_in_flight") == 60
    assert value("fastgen_commit_seconds_total", "judge") == 1.5
    assert value("fastgen_request_seconds_bucket", "instance", "0.01") == 3
    assert value("fastgen_request_seconds_bucket", "instance", "+Inf") == 5
    assert value("fastgen_request_seconds_sum", "instance") == pytest.approx(0.07)
    assert [value(f"fastgen_{name}") for name in ("concurrency", "queued", "batches_total")] == [64, 5, 7]
    assert [value(f"fastgen_{name}_seconds_total") for name in ("server", "rate_limited", "process_cpu")] == [12, 0, 0]
    assert value("fastgen_server_healthy", "http://a/v1", "0") == 1
    assert value("fastgen_server_healthy", "http://a/v1", "1") == 0
    assert value("fastgen_server_waiting", "http://a/v1", "0") == 1
    assert ("fastgen_server_waiting", frozenset({"http://a/v1", "1"})) not in seen
    assert value("fastgen_server_requests_total", "http://a/v1", "0", "completed") == 80
    assert value("fastgen_loop_lag_max_ms") == 12.5
    assert {limit: value("fastgen_limited_by", limit) for limit in Limit} == {
        limit: float(limit is Limit.FILTER) for limit in Limit
    }


def test_the_page_follows_the_hub() -> None:
    hub = MetricsHub()
    hub.reading = replace(READING, kept=41)
    assert scrape(hub)["fastgen_kept_total", frozenset()] == 41


def answer_of(port: int, host: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return client.makefile("rb").read()


def test_the_page_answers_only_requests_for_this_machine() -> None:
    hub = MetricsHub()
    with metrics_page(hub, "127.0.0.1", 0) as port:
        assert answer_of(port, f"127.0.0.1:{port}").startswith(b"HTTP/1.0 200")
        assert answer_of(port, "localhost").startswith(b"HTTP/1.0 200")
        assert answer_of(port, "evil.example").startswith(b"HTTP/1.0 403")
        assert answer_of(port, "[").startswith(b"HTTP/1.0 403")
    with metrics_page(hub, "0.0.0.0", 0) as port:
        assert answer_of(port, "node-7.example").startswith(b"HTTP/1.0 200")


def test_connections_beyond_the_most_are_closed_at_once() -> None:
    with metrics_page(MetricsHub(), "127.0.0.1", 0, patience_s=60) as port, ExitStack() as idle:
        clients = [
            idle.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MOST_CONNECTIONS + 1)
        ]
        assert clients[-1].recv(1) == b""
        clients[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            clients[0].recv(1)


def test_an_idle_connection_is_closed() -> None:
    with metrics_page(MetricsHub(), "127.0.0.1", 0, patience_s=0.05) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(1) == b""
        assert answer_of(port, "localhost").startswith(b"HTTP/1.0 200")
