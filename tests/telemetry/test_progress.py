"""Progress: right rates, and a form for every kind of reader."""

from __future__ import annotations

import io
import logging
import math
import os
import pty
import re
import sys
from dataclasses import replace

import orjson
import pyte
import pytest

from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display
from fastgen.telemetry.figures import Limit, Rates
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.progress import (
    LIMIT_IN_WORDS,
    GuardedReporter,
    JsonReporter,
    LiveReporter,
    PlainReporter,
    Progress,
    QuietReporter,
    ReporterHandler,
    choose_reporter,
    progress_of,
)


def ledger(complete: int, tokens: int) -> Ledger:
    made = Ledger(kept=complete + 3, complete=complete, empty=1)
    made.completion_tokens["instance"] = tokens
    made.rejected["similar"] = complete + 3
    return made


def progress(counts: Ledger, target: int, rates: Rates | None = None) -> Progress:
    hub = MetricsHub()
    hub.rates = rates or Rates()
    return progress_of(counts, hub, target=target, in_flight=7)


def test_counts_are_the_ledgers_and_rates_the_hubs() -> None:
    seen = progress(ledger(25, 4000), 100, Rates(30.0, 30.0, 100.0, 2.5, 150.0, 149.0, 151.0))
    assert (seen.complete, seen.target, seen.in_flight) == (25, 100, 7)
    assert (seen.complete_per_min, seen.generated_tokens_per_s, seen.kept_per_server_s) == (30, 100, 2.5)
    assert seen.eta == "2:30"


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ((None, None, None), "-"),
        ((150.0, 100.0, 300.0), "1:40 to 5:00"),
        ((150.0, 100.0, None), "at least 1:40"),
        ((2.2, 1.9, 2.4), "0:02"),
        ((0.0, 0.0, 0.0), "0:00"),
        ((math.inf, math.inf, None), "at least -"),
    ],
)
def test_the_remaining_time_is_a_range_while_it_is_uncertain(
    times: tuple[float | None, float | None, float | None], shown: str
) -> None:
    seen = progress(ledger(5, 10), 10, Rates(eta_s=times[0], eta_low_s=times[1], eta_high_s=times[2]))
    assert seen.eta == shown
    assert f"ETA {shown}" in seen.line()


def test_plain_lines_come_at_intervals_and_the_last_one_always() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(Display(stream))
    for _ in range(1, 20):
        reporter.show(progress(ledger(5, 10), 10))
    reporter.say("an event")
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert [line.startswith("5/10 complete") for line in lines] == [True, False, True]


def test_json_lines_are_objects_with_every_figure() -> None:
    stream = io.StringIO()
    reporter = JsonReporter(Display(stream))
    reporter.say("hello\nworld")
    reporter.show(progress(ledger(5, 10), 10))
    reporter.close()
    message, figures = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    assert (message["event"], message["text"]) == ("message", "hello\nworld")
    assert figures["event"] == "progress"
    assert {"complete", "target", "in_flight", "yield_per_1000_tokens", "eta_s"} <= set(figures)


def on_a_terminal(written: str, columns: int = 80) -> list[str]:
    """What a terminal shows after this was written to it."""
    screen = pyte.Screen(columns, 24)
    screen.set_mode(pyte.modes.LNM)  # a line feed also returns, as the terminal's driver has it
    pyte.Stream(screen).feed(written)
    return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


HOSTILE = "[bold]no markup[/bold] \x1b[2J"


def test_the_live_display_draws_and_releases_the_terminal() -> None:
    stream = io.StringIO()
    reporter = LiveReporter(Display(stream))
    reporter.say("[not markup]")
    rates = Rates(30.0, 30.0, 100.0, 2.5, 150.0, 100.0, 300.0)
    reporter.show(replace(progress(ledger(25, 4000), 100, rates), elapsed_s=3661, limit="server", limit_reason=HOSTILE))
    reporter.close()
    assert stream.getvalue().endswith("\n")
    assert on_a_terminal(stream.getvalue()) == [
        "[not markup]",
        "25 of 100 complete ━━━━━━━━━──────────────────────────── 25% · ETA 1:40 to 5:00",
        "speed  30.0 a minute · 100 tokens/s · 1:01:01 elapsed",
        "yield  6.25 complete, 0.00 kept per 1,000 tokens · 2.5 kept per server-second",
        "kept   50% of what was written · 2 on the way · 7 in flight",
        "limit  the server ([bold]no markup[/bold] \\x1b[2J)",
    ]


def test_frames_and_messages_leave_nothing_of_the_frames_before() -> None:
    stream = io.StringIO()
    reporter = LiveReporter(Display(stream))
    reasons = ["", "short", "of many words " * 20, "x" * 200, ""]
    for number, reason in enumerate(reasons):
        reporter.say(f"message {number} {'word ' * 30}".rstrip())
        reporter.show(replace(progress(ledger(number, 10), 10), limit="yield", limit_reason=reason))
    reporter.close()
    seen = on_a_terminal(stream.getvalue())
    assert max(map(len, seen)) < 80  # no line reaches the last column
    assert [line[:10] for line in seen if line.startswith("message")] == [f"message {n} " for n in range(len(reasons))]
    assert [line for line in seen if "complete" in line] == seen[-5:-4] + seen[-3:-2]
    assert seen[-5].startswith("4 of 10 complete ━━")
    assert seen[-1] == "limit  the yield"


def test_a_frame_after_a_pause_begins_on_a_line_of_its_own() -> None:
    for moved in ("", "\r\n"):  # continued from elsewhere; and by a shell that has begun a new line
        stream = io.StringIO()
        reporter = LiveReporter(Display(stream))
        reporter.show(progress(ledger(1, 10), 10))
        reporter._display.write(moved)
        reporter.restart()
        reporter.say("a message")
        reporter.show(progress(ledger(2, 10), 10))
        reporter.close()
        seen = on_a_terminal(stream.getvalue())
        assert [line for line in seen if line.startswith(("1 of", "a mes", "2 of"))] == [seen[0], seen[4], seen[5]]


def test_before_a_rate_is_known_none_is_shown() -> None:
    first = progress(
        ledger(32, 4000), 150, Rates(complete_per_min=900.0)
    )  # one batch, after the server's first answers
    assert first.eta == "-"
    assert "no rate yet" in first.line()
    assert "no rate yet" in first.details()
    assert "900" not in first.line() + first.details()


def test_a_run_that_is_done_has_no_limit_and_no_time_left() -> None:
    stream = io.StringIO()
    reporter = LiveReporter(Display(stream))
    reporter.show(replace(progress(ledger(10, 10), 10, Rates(eta_s=0.0)), limit="yield", limit_reason="nearly reached"))
    reporter.close()
    seen = on_a_terminal(stream.getvalue())
    assert seen[0].endswith("━━ 100% · done")
    assert not [line for line in seen if "limit" in line]


def test_the_head_fits_terminals_of_any_width_and_height(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ((1, 1), (9, 3), (20, 5), (40, 24), (300, 24)):
        monkeypatch.setattr(Display, "size", lambda _, size=size: size)
        stream = io.StringIO()
        reporter = LiveReporter(Display(stream))
        reporter.show(replace(progress(ledger(5, 10), 10**9), limit="server", limit_reason="a 1 b"))
        reporter.close()
        lines = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).rstrip("\n").split("\n")
        assert len(lines) <= max(1, size[1] - 1)
        assert max(map(len, lines)) <= max(1, size[0] - 1)


def test_every_limit_has_words() -> None:
    assert set(LIMIT_IN_WORDS) == {limit.value for limit in Limit}


@pytest.mark.parametrize("name", ["dumb", "xterm"])
def test_a_terminal_that_cannot_replace_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", name)
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        reporter = choose_reporter(quiet=False, log_json=False)
        assert isinstance(reporter, GuardedReporter)
        assert isinstance(reporter.shown, PlainReporter if name == "dumb" else LiveReporter)
        reporter.close()
    os.close(master)


def test_log_records_become_lines_of_the_reporter() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(Display(stream))
    ReporterHandler(reporter).handle(logging.LogRecord("x", logging.WARNING, "f", 1, "fault: %s\nmore", ("a",), None))
    reporter.close()
    assert stream.getvalue() == "fault: a more\n"


def test_the_reporter_fits_the_flags() -> None:
    def chosen(*, quiet: bool, log_json: bool) -> object:
        reporter = choose_reporter(quiet=quiet, log_json=log_json)
        assert isinstance(reporter, GuardedReporter)
        return reporter.shown

    assert isinstance(chosen(quiet=True, log_json=False), QuietReporter)
    assert isinstance(chosen(quiet=True, log_json=True), JsonReporter)
    assert isinstance(chosen(quiet=False, log_json=False), PlainReporter)


def test_a_display_that_fails_ends_nothing_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(QuietReporter):
        def show(self, progress: object) -> None:
            raise RuntimeError("drawn wrongly")

    reporter = GuardedReporter(Broken())
    with caplog.at_level(logging.INFO):
        reporter.show(progress(ledger(5, 10), 10))
        reporter.show(progress(ledger(5, 10), 10))
    reporter.close()
    assert [record.getMessage() for record in caplog.records] == ["the display failed"]
