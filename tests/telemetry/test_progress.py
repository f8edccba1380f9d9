"""Progress: right rates, and a form for every kind of reader."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import replace

import orjson
import pytest

from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display
from fastgen.telemetry.figures import Rates
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.progress import (
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


def test_the_live_display_draws_and_releases_the_terminal() -> None:
    stream = io.StringIO()
    reporter = LiveReporter(Display(stream))
    reporter.say("[not markup]")
    reporter.show(replace(progress(ledger(5, 10), 10), limit="server", limit_reason="[bold]not markup either[/bold]"))
    reporter.close()
    said = stream.getvalue()
    assert "[not markup]" in said
    assert "[bold]not markup either[/bold]" in said
    assert "5/10 complete" in said
    assert said.endswith("\n")


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
