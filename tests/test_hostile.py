"""A server that attacks those who look at its run: what it wrote stays text in every place where it is shown."""

from __future__ import annotations

import io
import re
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from fastgen.generate.audit import Audit, Disagreement
from fastgen.report.live_view import Follower, frame, pieces
from fastgen.simulator.answers import Writer
from fastgen.simulator.faults import Reply
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display, put, tell
from fastgen.telemetry.figures import Sample, ServerSample
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.progress import JsonReporter, LiveReporter, PlainReporter, progress_of
from fastgen.telemetry.prometheus import metrics_page
from fastgen.telemetry.series import last_sample
from tests.command_help import Said, fastgen
from tests.dashboard_help import read_all

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2066\u2028<img src=x onerror=hack()>"
MODEL = f"evil{EVIL}`|[link](http://evil.example)"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)


def hostile_writer() -> Callable[[str, int], str]:
    writer = Writer()
    return lambda prompt, choice: writer.answer(prompt, choice).replace(" the ", f" the {EVIL} ")


def error(status: int) -> Reply:
    return Reply(status, orjson.dumps({"error": {"message": f"broken {EVIL}"}}))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All that is shown of one run, by place."""
    folder = tmp_path_factory.mktemp("hostile")
    run, export = folder / "run", folder / "export"
    server = FaultServer(model=MODEL, write=hostile_writer(), script=[error(500), error(503)])
    with in_a_thread(server):
        flags = ("--run-dir", run, "--base-url", server.base_url, "--num-instructions")
        made = succeeded(fastgen("generate", *flags, "12", "--log-file", folder / "log", "--audit-rate", "1"))
        more = succeeded(fastgen("generate", *flags, "14", "--log-json", "--log-file", folder / "log"))
    follower, sample = read_all(Follower(run)), last_sample(run)
    return {
        "plain lines": made.err,
        "JSON lines": more.err,
        "log file": (folder / "log").read_text(encoding="utf-8"),
        "status": succeeded(fastgen("status", "--run-dir", run)).out,
        "status as JSON": succeeded(fastgen("status", "--run-dir", run, "--json")).out,
        "audit": succeeded(fastgen("audit", "--run-dir", run, "--rate", "1")).out,
        "report": file_of(folder / "report.html", "report", "--run-dir", run),
        "card": file_of(export, "export", "--run-dir", run, "--card") and (export / "README.md").read_text("utf-8"),
        "live page": frame(MODEL) + "".join(pieces(follower, sample, is_running=False).values()),
        "error line": refused(folder / "refused"),
    }


def succeeded(said: Said) -> Said:
    assert said.code == 0, said.err
    return said


def file_of(path: Path, *command: str | Path) -> str:
    succeeded(fastgen(*command, "--output", path))
    return path.read_text(encoding="utf-8") if path.is_file() else "a folder"


def refused(run: Path) -> str:
    """The message where the server refuses every request permanently."""
    with in_a_thread(FaultServer(model=MODEL, script=[error(401)] * 1000)) as server:
        said = fastgen("generate", "--run-dir", run, "--base-url", server.base_url, "--num-instructions", "5")
    assert said.code == 2
    assert len(said.err.splitlines()) == len(said.err.split("\n")) - 1
    return said.err


PLACES = (
    *("plain lines", "JSON lines", "log file", "status", "status as JSON", "audit"),
    *("report", "card", "live page", "error line"),
)


@pytest.mark.parametrize("place", PLACES)
def test_no_server_text_controls_a_terminal_or_a_line(told: dict[str, str], place: str) -> None:
    assert told[place].strip()
    assert not FORBIDDEN.search(told[place])


@pytest.mark.parametrize("place", ["report", "card", "live page"])
def test_no_server_text_is_markup(told: dict[str, str], place: str) -> None:
    assert "evil" in told[place]
    shown = told[place]
    if place == "card":
        shown = re.sub(r"^---.*?^---$|```.*?```|`[^`\n]*`", "", shown, flags=re.DOTALL | re.MULTILINE)
        assert "[link](http" not in shown
    assert not re.search(r"(?<!\\)<img", shown)


def test_every_place_is_looked_at(told: dict[str, str]) -> None:
    assert set(told) == set(PLACES)
    for place in ("plain lines", "log file", "status", "report", "live page", "error line"):
        assert r"\x1b]0;owned\x07" in told[place], place


def test_json_keeps_what_was_said(told: dict[str, str]) -> None:
    assert orjson.loads(told["status as JSON"])["model"] == MODEL


def test_what_an_audit_finds_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = Audit(1, 1, 0, (Disagreement("missed", f"Do this.{EVIL}", 1, 0.9),))
    put(str(found))
    tell(str(found))
    shown = capsys.readouterr()
    for text in shown:
        assert "Do this." in text
        assert not FORBIDDEN.search(text)


@pytest.mark.parametrize("kind", [PlainReporter, JsonReporter, LiveReporter])
def test_every_reporter_shows_text_only(kind: type[PlainReporter | JsonReporter | LiveReporter]) -> None:
    stream = io.StringIO()
    reporter = kind(Display(stream))
    figures = progress_of(Ledger(), MetricsHub(), target=5, in_flight=1)
    reporter.say(f"The server says: {EVIL}")
    reporter.show(replace(figures, limit="server", limit_reason=EVIL))
    reporter.close()
    shown = re.sub(r"\x1b\[[0-9;]*[mAJ]|\r", "", stream.getvalue())  # what the live line itself is drawn with
    assert shown.count("owned") == 2
    assert not FORBIDDEN.search(shown)


def test_labels_of_metrics_are_text() -> None:
    hub = MetricsHub()
    server = ServerSample(f"http://a/{EVIL}\udcff", running=1)
    hub.reading = Sample(servers=(server,), rejected={f"rule{EVIL}": 1})
    hub.publish(Sample())
    with (
        metrics_page(hub, "127.0.0.1", 0) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        page = answer.read().decode()
    assert "fastgen_server_running" in page
    assert not FORBIDDEN.search(page)
