"""Progress: right rates, and a form for every kind of reader."""

from __future__ import annotations

import io
import logging

import orjson
import pytest

from fastgen.ledger import Ledger
from fastgen.progress import (
    JsonReporter,
    LiveReporter,
    PlainReporter,
    Progress,
    ProgressMeter,
    QuietReporter,
    ReporterHandler,
    choose_reporter,
)


def ledger(complete: int, tokens: int) -> Ledger:
    made = Ledger(kept=complete + 3, complete=complete, empty=1)
    made.completion_tokens["instance"] = tokens
    made.rejected["similar"] = complete + 3
    return made


def look(meter: ProgressMeter, now_s: float) -> Progress:
    return meter.look(now_s, in_flight=7, waiting_retries=0)


def test_rates_are_over_the_time_that_was_looked_at() -> None:
    counts = ledger(10, 1000)
    meter = ProgressMeter(counts, 100, 0.0)
    counts.complete, counts.completion_tokens["instance"] = 25, 4000
    seen = look(meter, 30.0)
    assert seen.complete_per_min == pytest.approx(30)
    assert seen.generated_tokens_per_s == pytest.approx(100)
    assert seen.eta_s == pytest.approx(150)
    assert seen.eta == "2:30"
    assert (seen.complete, seen.target, seen.in_flight) == (25, 100, 7)


def test_rates_forget_what_is_older_than_a_minute() -> None:
    counts = ledger(0, 0)
    meter = ProgressMeter(counts, 1000, 0.0)
    for second in range(1, 200):
        counts.complete += 10 if second <= 100 else 1
        seen = look(meter, float(second))
    assert seen.complete_per_min == pytest.approx(60, rel=0.05)


def test_nothing_is_said_of_the_end_while_nothing_comes() -> None:
    meter = ProgressMeter(ledger(0, 0), 10, 0.0)
    seen = look(meter, 5.0)
    assert seen.eta_s is None
    assert seen.eta == "-"
    assert "ETA -" in seen.line()


def test_plain_lines_come_now_and_then_and_the_last_one_always() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    meter = ProgressMeter(ledger(5, 10), 10, 0.0)
    for second in range(1, 20):
        reporter.show(look(meter, float(second)))
    reporter.say("an event")
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert [line.startswith("5/10 complete") for line in lines] == [True, False, True]


def test_json_lines_are_objects_with_every_figure() -> None:
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    reporter.say("hello\nworld")
    reporter.show(look(ProgressMeter(ledger(5, 10), 10, 0.0), 1.0))
    message, progress = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    assert (message["event"], message["text"]) == ("message", "hello\nworld")
    assert progress["event"] == "progress"
    assert {"complete", "target", "in_flight", "yield_per_1000_tokens", "eta_s"} <= set(progress)


def test_the_live_display_draws_and_lets_go_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LiveReporter()
    reporter.say("[not markup]")
    reporter.show(look(ProgressMeter(ledger(5, 10), 10, 0.0), 1.0))
    reporter.close()
    said = capsys.readouterr().err
    assert "[not markup]" in said
    assert "5/10 complete" in said


def test_log_records_become_lines_of_the_reporter() -> None:
    stream = io.StringIO()
    handler = ReporterHandler(PlainReporter(stream))
    handler.handle(logging.LogRecord("x", logging.WARNING, "f", 1, "fault: %s\nmore", ("reset",), None))
    assert stream.getvalue() == "fault: reset more\n"


def test_the_reporter_fits_the_flags() -> None:
    assert isinstance(choose_reporter(quiet=True, log_json=False), QuietReporter)
    assert isinstance(choose_reporter(quiet=True, log_json=True), JsonReporter)
    assert isinstance(choose_reporter(quiet=False, log_json=False), PlainReporter)
