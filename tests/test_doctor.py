"""`fastgen doctor`: the machine as it is made to look, and servers of every kind."""

from __future__ import annotations

import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fastgen import doctor
from fastgen.doctor import EXTRAS, OLDEST_VLLM, PACKAGES, Finding, as_data, examine, installation, render, summary
from fastgen.errors import how_to_install
from fastgen.servers.endpoint import Endpoint
from fastgen.simulator import TEMPLATES, Fault, FaultPlan, FaultServer, ServedModel, in_a_thread
from tests.command_help import Said, fastgen

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
QUICK_S = 0.05


@pytest.fixture(autouse=True)
def no_gpu_and_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("FASTGEN_CACHE_DIR", str(tmp_path / "cache"))


def looked_at(tmp_path: Path, nvidia_smi: str = "no-such-program", **server: Any) -> dict[str, Finding]:
    """The findings by name, for a server if one is described."""
    endpoint = Endpoint(**{"model": "", **server}) if server else None
    findings = list(examine(tmp_path / "run", tmp_path / "cache", endpoint, probe_s=QUICK_S, nvidia_smi=nvidia_smi))
    found = {finding.name: finding for finding in findings}
    assert len(found) == len(findings)
    return found


def asked(server: FaultServer, *arguments: str, probe_s: float = QUICK_S) -> tuple[Said, dict[str, dict[str, Any]]]:
    """`fastgen doctor --json` about a server: how it ended, and the checks by name."""
    said = fastgen("doctor", "--base-url", server.base_url, "--probe-seconds", str(probe_s), "--json", *arguments)
    return said, {check["name"]: check for check in json.loads(said.out)["checks"]}


# -- the machine -------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_in_order(tmp_path: Path) -> None:
    found = looked_at(tmp_path)
    assert {finding.state for name, finding in found.items() if name != "open files"} == {"ok"}
    assert "embedded CPU server" in found["gpu"].fact
    assert "the first 'fastgen generate' does that" in found["embedded server"].fact
    assert not (tmp_path / "cache").exists()  # looking changes nothing
    assert not (tmp_path / "run").exists()


def smi(tmp_path: Path, said: str, code: int = 0) -> str:
    """A program in the place of nvidia-smi. ``said`` are its lines: name, MiB, driver."""
    path = tmp_path / "nvidia-smi"
    devices = "\n".join(
        f"{i}, GPU-{i}, {line.split(', ')[1]}" for i, line in enumerate(said.splitlines()) if ", " in line
    )
    path.write_text(
        f"#!/bin/sh\ncase $1 in *index,uuid*) cat <<'EOS'\n{devices}\nEOS\n;; *) cat <<'EOS'\n{said}\nEOS\n;; esac\n"
        f"exit {code}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_gpus_without_vllm_are_a_problem_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "vllm" else "1.0")
    found = looked_at(tmp_path, smi(tmp_path, "NVIDIA H200, 143771, 570.1\nNVIDIA H200, 143771, 570.1"))
    assert found["gpu"].fact == "2 x NVIDIA H200 (151 GB), driver 570.1"
    assert found["vllm"].state == "problem"
    assert how_to_install("vllm") in found["vllm"].remedy
    assert "not needed" in found["embedded server"].fact


@pytest.mark.parametrize(
    ("version", "state"), [("0.9.2", "warning"), ("0.10.0", "ok"), ("1.0rc1", "ok"), ("dev", "warning")]
)
def test_an_old_vllm_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    info = tmp_path / "site" / "vllm-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(info.parent)
    found = looked_at(tmp_path)["vllm"]
    assert (found.state, found.figures) == (state, {"version": version})
    assert installation()[2] == f"vLLM {version}"
    assert PROJECT["optional-dependencies"]["vllm"] == [f"vllm>={'.'.join(map(str, OLDEST_VLLM))}"]


def test_gpus_are_not_needed_where_a_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "vllm" else "1.0")
    with in_a_thread(FaultServer()) as server:
        found = looked_at(tmp_path, smi(tmp_path, "NVIDIA L4, 23034, 570.1"), base_url=server.base_url)
    assert found["vllm"].state == "ok"


def test_hidden_gpus_are_a_warning(tmp_path: Path) -> None:
    found = looked_at(tmp_path, smi(tmp_path, "NVIDIA L4, 23034, 570.1"))
    assert found["gpu"].state == "warning"
    assert "hidden by CUDA_VISIBLE_DEVICES" in found["gpu"].fact


@pytest.mark.parametrize(
    ("said", "code"), [("NVIDIA-SMI has failed: \x1b[31mno driver", 9), ("No devices were found", 0), ("", 3)]
)
def test_a_broken_driver_is_a_warning_with_what_it_says(tmp_path: Path, said: str, code: int) -> None:
    found = looked_at(tmp_path, smi(tmp_path, said, code))["gpu"]
    assert found.state == "warning"
    assert (said or "it ended with 3") in found.fact
    assert "\x1b" not in render(found)


def test_too_few_open_files_are_a_warning_with_the_limit_to_ask_for() -> None:
    limited = "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
    command = "from fastgen.cli import run\nsys.exit(run(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", limited + command], capture_output=True, text=True, check=True, cwd=ROOT
    )
    check = next(check for check in json.loads(done.stdout)["checks"] if check["name"] == "open files")
    assert check["state"] == "warning"
    assert check["fact"].startswith("300 allowed, which fastgen raises to 400: up to ")
    assert check["figures"]["most_in_flight"] < 300
    assert "ulimit -Hn 8192" in check["remedy"]


def test_the_limit_of_open_files_is_the_process_own(tmp_path: Path) -> None:
    figures = looked_at(tmp_path)["open files"].figures
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert figures["soft"] == (sys.maxsize if soft == resource.RLIM_INFINITY else soft)
    assert figures["hard"] == (sys.maxsize if hard == resource.RLIM_INFINITY else hard)


def test_a_place_that_cannot_hold_a_run_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = fastgen("doctor", "--run-dir", tmp_path / "file" / "run")
    assert said.code == 2
    assert re.search(r"^problem +run folder +", said.out, re.MULTILINE)
    assert "is no folder" in " ".join(said.out.split())
    assert "-> name another one with --run-dir" in said.out
    assert said.out.splitlines()[-1].startswith("1 problem")


@pytest.mark.parametrize(("free_gb", "state"), [(0.1, "problem"), (3.0, "warning"), (50.0, "ok")])
def test_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gb: float, state: str
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, int(free_gb * 1e9)))
    found = looked_at(tmp_path)
    assert found["run folder"].state == found["cache"].state == state
    assert bool(found["run folder"].remedy) == (state != "ok")
    assert found["embedded server"].state == ("problem" if free_gb < 3 else "ok")


def test_packages_and_extras_are_those_of_the_project() -> None:
    names = {re.split(r"[><=;\[ ]", needed)[0] for needed in PROJECT["dependencies"]}
    assert names == {*PACKAGES}
    extras = PROJECT["optional-dependencies"]
    for extra, distributions in EXTRAS.items():
        assert {re.split(r"[><=;\[ ]", needed)[0] for needed in extras[extra]} == {*distributions}
    assert {*extras} - {*EXTRAS} == {"all", "bench", "docs", "test"}


def test_a_missing_package_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-distribution"))
    found = looked_at(tmp_path)["packages"]
    assert (found.state, found.fact) == ("problem", "not installed: no-such-distribution")


def test_the_commit_is_that_of_a_checkout_and_of_nothing_else(tmp_path: Path) -> None:
    assert doctor._commit(tmp_path) == ""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "pyproject.toml").write_text("one")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    assert re.fullmatch(r"[0-9a-f]{12}", clean := doctor._commit(tmp_path))
    (tmp_path / "pyproject.toml").write_text("two")
    assert doctor._commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "site-packages").mkdir()  # of an environment inside a repository of the user's
    assert doctor._commit(tmp_path / "site-packages") == ""


# -- servers -----------------------------------------------------------------------------------------------------------


def test_a_good_server_is_described_and_measured() -> None:
    with in_a_thread(FaultServer(model="Qwen3-8B")) as server:
        said, checks = asked(server)
        assert said.code == 0
        assert {check["state"] for name, check in checks.items() if name != "open files"} == {"ok"}
        assert checks["server"]["figures"] == {"models": ["Qwen3-8B"]}
        assert checks["model"]["figures"]["model"] == "Qwen3-8B"
        assert checks["api"]["figures"] == {"api": "chat"}
        assert checks["metrics"]["figures"]["has_metrics"]
        speed = checks["throughput"]["figures"]
        assert speed["completions"] + 1 == server.counters.answered
        assert speed["tokens_per_s"] > speed["completions_per_s"] > 0


def test_a_base_model_is_asked_through_completions() -> None:
    with in_a_thread(FaultServer(kind=ServedModel(template=None))) as server:
        said, checks = asked(server)
        paths = {request.path for request in server.received}
    assert said.code == 0
    assert checks["api"]["figures"] == {"api": "completions"}
    assert checks["chat template"]["state"] == "ok"
    assert "/v1/completions" in paths


def test_lines_for_people_say_the_same_as_the_json() -> None:
    with in_a_thread(FaultServer()) as server:
        _, checks = asked(server, probe_s=0)
        said = fastgen("doctor", "--base-url", server.base_url, "--probe-seconds", "0")
    assert said.code == 0
    for check in checks.values():
        assert re.search(rf"^{check['state']} +{check['name']} ", said.out, re.MULTILINE)
    assert "throughput" not in checks
    assert said.out.splitlines()[-1] in ("everything is in order", "1 warning")


def test_a_dead_server_is_one_problem_and_ends_the_checks_of_it() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = listener.getsockname()[1]
        said = fastgen("doctor", "--base-url", f"http://127.0.0.1:{port}")
    assert said.code == 2
    assert re.search(rf"^problem +server +http://127.0.0.1:{port}/v1: ", said.out, re.MULTILINE)
    assert "-> start the server" in said.out
    assert "throughput" not in said.out
    assert said.err == ""


def test_a_server_that_still_loads_is_a_problem() -> None:
    with in_a_thread(FaultServer()) as server:
        server.loading = True
        said, checks = asked(server)
    assert said.code == 2
    assert "Loading model" in checks["server"]["fact"]


def test_a_server_without_a_metrics_page_is_a_warning() -> None:
    server = FaultServer()
    del server._routes["GET", "/metrics"]
    with in_a_thread(server):
        said, checks = asked(server)
    assert said.code == 0
    assert checks["metrics"]["state"] == "warning"
    assert checks["metrics"]["remedy"]
    assert checks["throughput"]["state"] == "ok"


def test_a_server_that_does_not_tell_its_template_is_a_warning_for_one_method() -> None:
    with in_a_thread(FaultServer(model="some-chat", kind=ServedModel(tokenizes=False))) as server:
        said, checks = asked(server)
    assert said.code == 0
    assert checks["chat template"]["state"] == "warning"
    assert "--pre-query" in checks["chat template"]["remedy"]
    assert checks["api"]["figures"] == {"api": "chat"}


def test_a_short_context_is_a_warning() -> None:
    with in_a_thread(FaultServer(max_model_len=1024)) as server:
        _, checks = asked(server)
    assert checks["model"]["state"] == "warning"
    assert "--max-model-len" in checks["model"]["remedy"]


def test_a_template_without_a_system_message_is_said() -> None:
    with in_a_thread(FaultServer(model="gemma-2", kind=ServedModel(template=TEMPLATES["gemma2"]))) as server:
        assert asked(server)[1]["chat template"]["fact"] == "known, without a system message"


def test_a_model_that_the_server_does_not_have_is_a_problem() -> None:
    with in_a_thread(FaultServer(model="this-one")) as server:
        said, checks = asked(server, "--model", "that-one")
    assert said.code == 2
    assert checks["model"]["fact"] == "the server does not have that-one"
    assert "this-one" in checks["model"]["remedy"]
    assert "throughput" not in checks


def test_a_refused_key_is_a_problem_that_does_not_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-wrong-and-secret")
    with in_a_thread(FaultServer(api_key="right")) as server:
        said, checks = asked(server, "--api-key-env", "SOME_KEY")
        assert checks["server"]["state"] == "problem"
        assert "sk-wrong" not in said.out + said.err
        monkeypatch.setenv("SOME_KEY", "right")
        assert asked(server, "--api-key-env", "SOME_KEY")[0].code == 0


def test_requests_that_fail_are_a_warning_and_a_server_that_answers_none_a_problem() -> None:
    with in_a_thread(FaultServer(script=[None, Fault.SERVER_ERROR])) as server:
        said, checks = asked(server)
        assert said.code == 0
        assert checks["throughput"]["state"] == "warning"
        assert checks["throughput"]["figures"]["failed"] == 1
    with in_a_thread(FaultServer(script=[Fault.SERVER_ERROR])) as server:
        said, checks = asked(server)
        assert said.code == 2
        assert checks["throughput"]["state"] == "problem"
        assert "no completion: " in checks["throughput"]["fact"]
    with in_a_thread(FaultServer(script=[None, *[Fault.SERVER_ERROR] * 16])) as server:
        assert asked(server)[1]["throughput"]["state"] == "problem"


def test_a_server_without_token_counts_is_measured_by_completions() -> None:
    with in_a_thread(FaultServer(faults=FaultPlan(rate=1.0, kinds=(Fault.NO_USAGE,)))) as server:
        said, checks = asked(server)
    assert said.code == 0
    assert "token counts are not told" in checks["throughput"]["fact"]
    assert checks["throughput"]["figures"]["tokens_per_s"] is None
    assert checks["throughput"]["figures"]["completions_per_s"] > 0


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x1b[31mred", "a\nok       server         all is well", "\u202eevil", "x" * 5000]
)
def test_a_hostile_model_name_is_data(name: str) -> None:
    with in_a_thread(FaultServer(model=name)) as server:
        said = fastgen("doctor", "--base-url", server.base_url, "--probe-seconds", "0")
        _, checks = asked(server, probe_s=0)
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    assert not re.search(r"^ok +server +all is well", said.out, re.MULTILINE)
    assert len(said.out) < 6000
    assert checks["model"]["figures"]["model"] == name  # JSON escapes it


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--model", "m"], "--model"),
        (["--api-key-env", "SOME_KEY"], "--api-key-env"),
        (["--base-url", "ftp://x"], "--base-url"),
        (["--probe-seconds", "-1"], "--probe-seconds"),
        (["--probe-seconds", "nan"], "--probe-seconds"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], flag: str) -> None:
    said = fastgen("doctor", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith(f"fastgen: {flag}")
    assert len(said.err.splitlines()) == 1


def test_findings_are_counted_and_laid_out() -> None:
    findings = [
        Finding("a", "ok", "fine"),
        Finding("b", "warning", "w" * 90 + " end", "do this"),
        Finding("c", "problem", "bad"),
    ]
    assert summary(findings) == "1 problem, 1 warning"
    assert summary(findings[:1]) == "everything is in order"
    assert {name: as_data(findings)[name] for name in ("problems", "warnings")} == {"problems": 1, "warnings": 1}
    lines = render(findings[1], 60).splitlines()
    assert lines[0].startswith("warning  b ")
    assert lines[-1] == " " * 26 + "-> do this"
