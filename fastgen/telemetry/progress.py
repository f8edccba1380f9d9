"""Shows a run to its user: a live line on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

`ProgressMeter` puts a run's counts and rates together; the reporters only print, through a
`fastgen.telemetry.display.Display`,
so that nothing that happens to standard error ends or holds up a run. What is printed may hold texts of others: all of
it passes `fastgen.text`.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TextIO, cast

from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display, fitting
from fastgen.text import as_json, printable

if TYPE_CHECKING:
    from fastgen.telemetry.monitor import MetricsHub


log = logging.getLogger(__name__)
_PLAIN_EVERY_S = 10.0
_NARROW = 1.1  # a range whose ends differ by less is shown as one time


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run. Rates and the ETA with its range are those of `fastgen.telemetry.figures`.

    ``acceptance`` and ``yield_per_1000_tokens``, which counts complete instructions, are since the start of the run;
    ``kept_per_1000_tokens`` is over the yield window. ``limit`` and ``limit_reason`` are empty until they are measured.
    """

    complete: int
    target: int
    kept: int
    pending: int
    in_flight: int
    waiting_retries: int
    acceptance: float
    yield_per_1000_tokens: float
    kept_per_1000_tokens: float
    kept_per_server_s: float
    complete_per_min: float
    generated_tokens_per_s: float
    eta_s: float | None
    eta_low_s: float | None = None
    eta_high_s: float | None = None
    limit: str = ""
    limit_reason: str = ""

    @property
    def eta(self) -> str:
        """Time to the target, as hours:minutes:seconds; a range while it is uncertain, a dash while it is unknown."""
        if self.eta_s is None:
            return "-"
        low_s = self.eta_s if self.eta_low_s is None else self.eta_low_s
        if self.eta_high_s is None:
            return f"at least {duration(low_s)}"
        low, high = duration(low_s), duration(self.eta_high_s)
        return duration(self.eta_s) if low == high or self.eta_high_s <= _NARROW * low_s else f"{low} to {high}"

    def details(self) -> str:
        """Everything but the count and the ETA, for people: the figures, and what limits the run."""
        return f"{self._figures()}\nlimited by {self._limited()}" if self.limit else self._figures()

    def line(self) -> str:
        """All of it in one line."""
        limited = f" · limited by {self._limited()}" if self.limit else ""
        return f"{self.complete}/{self.target} complete · {self._figures()} · ETA {self.eta}{limited}"

    def _figures(self) -> str:
        retrying = f" · retrying {self.waiting_retries}" if self.waiting_retries else ""
        return (
            f"{self.complete_per_min:,.1f}/min · {self.generated_tokens_per_s:,.0f} tokens/s · "
            f"yield {self.yield_per_1000_tokens:.2f}/1k tokens · kept {self.kept_per_1000_tokens:.2f}/1k tokens, "
            f"{self.kept_per_server_s:.3g}/server-s · acceptance {self.acceptance:.0%} · "
            f"on the way {self.pending} · in flight {self.in_flight}{retrying}"
        )

    def _limited(self) -> str:
        return f"{self.limit}: {self.limit_reason}" if self.limit_reason else self.limit


class ProgressMeter:
    """What there is to show of a run: counts of its ledger, and what the hub has of its rates and its limit."""

    def __init__(self, ledger: Ledger, target: int, hub: MetricsHub) -> None:
        self._ledger = ledger
        self._target = target
        self._hub = hub

    def look(self, *, in_flight: int, waiting_retries: int) -> Progress:
        """The figures now."""
        ledger, rates, sample = self._ledger, self._hub.rates, self._hub.latest
        return Progress(
            complete=ledger.complete,
            target=self._target,
            kept=ledger.kept,
            pending=ledger.pending,
            in_flight=in_flight,
            waiting_retries=waiting_retries,
            acceptance=ledger.acceptance,
            yield_per_1000_tokens=ledger.yield_per_1000_tokens,
            kept_per_1000_tokens=sample.kept_per_1000_tokens if sample is not None else 0.0,
            kept_per_server_s=rates.kept_per_server_s,
            complete_per_min=rates.complete_per_min,
            generated_tokens_per_s=rates.generated_tokens_per_s,
            eta_s=rates.eta_s,
            eta_low_s=rates.eta_low_s,
            eta_high_s=rates.eta_high_s,
            limit=sample.limit if sample is not None else "",
            limit_reason=sample.limit_reason if sample is not None else "",
        )


class Shown(Protocol):
    """What a reporter can show: a frozen dataclass whose fields are the figures, and their forms for people."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def complete(self) -> int:
        """How far it is ..."""

    @property
    def target(self) -> int:
        """... of how much."""

    @property
    def eta(self) -> str:
        """Time to the target, or a dash."""

    def details(self) -> str:
        """Everything but the count and the ETA; may be of several lines."""

    def line(self) -> str:
        """All of it in one line."""


class Reporter(Protocol):
    """Where a run's words go."""

    def say(self, text: str) -> None:
        """One line that the user should read."""

    def show(self, progress: Shown) -> None:
        """The figures now; called about once a second."""

    def begin_anew(self) -> None:
        """Something else was on the terminal meanwhile; what stands there is no more to be replaced."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class QuietReporter:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, progress: Shown) -> None:
        """Nothing."""

    def begin_anew(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainReporter(QuietReporter):
    """Plain lines for logs and pipes: every event, and the figures every ten seconds."""

    def __init__(self, stream: TextIO | Display) -> None:
        self._stream = stream
        self._shown_s = -math.inf
        self._pending: Shown | None = None

    def say(self, text: str) -> None:
        """Print the line."""
        self._stream.write(fitting(printable(text, lines=True), self._stream.encoding) + "\n")

    def show(self, progress: Shown) -> None:
        """Print the figures, not more often than every ten seconds."""
        now_s = time.monotonic()
        self._pending = progress
        if now_s - self._shown_s >= _PLAIN_EVERY_S:
            self._shown_s = now_s
            self._print_pending()

    def _print_pending(self) -> None:
        if self._pending is not None:
            self.say(self._pending.line())
            self._pending = None

    def close(self) -> None:
        """Print the last figures, if they are still to be seen."""
        self._print_pending()
        _close(self._stream)


class JsonReporter(QuietReporter):
    """One JSON object a line: ``{"event": "message" | "progress", "t": Unix time, ...}``."""

    def __init__(self, stream: TextIO | Display) -> None:
        self._stream = stream

    def _write(self, event: str, values: dict[str, object]) -> None:
        self._stream.write(as_json({"event": event, "t": round(time.time(), 3), **values}) + "\n")

    def say(self, text: str) -> None:
        """A message event."""
        self._write("message", {"text": text})

    def show(self, progress: Shown) -> None:
        """A progress event."""
        self._write("progress", asdict(progress))

    def close(self) -> None:
        """Write what waits."""
        _close(self._stream)


class LiveReporter:
    """A bar and the figures that stay at the bottom of the terminal, events scrolling above.

    A frame replaces the one before it, also where that has more rows than before because the terminal became narrower.
    """

    def __init__(self, display: Display) -> None:
        from rich.console import Console

        self._display = display
        self._console = Console(file=cast("TextIO", display), force_terminal=True, highlight=False)
        self._frame = ""
        self._widths: list[int] = []  # of the lines that stand on the terminal, in columns
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print above the live lines."""
        with self._lock:
            self._display.write(f"{self._erase()}{self._fitting(text)}\n{self._frame}")

    def show(self, progress: Shown) -> None:
        """Redraw."""
        from rich.cells import cell_len
        from rich.text import Text

        with self._lock:
            erase, self._frame = self._erase(), self._drawn(progress)
            self._widths = [cell_len(Text.from_ansi(line).plain) for line in self._frame.split("\n")]
            self._display.write(erase + self._frame)

    def begin_anew(self) -> None:
        """Leave the lines where they stand; the next ones come below."""
        with self._lock:
            self._frame, self._widths = "", []

    def close(self) -> None:
        """Leave the last lines on the terminal."""
        with self._lock:
            if self._frame:
                self._display.write("\n")
            self._frame, self._widths = "", []
        self._display.close()

    def _erase(self) -> str:
        """What clears the lines that stand there; terminals wrap lines that have become too long."""
        columns = self._display.columns()
        rows = sum(max(1, math.ceil(width / columns)) for width in self._widths)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        return f"\r{up}\x1b[J" if rows else ""

    def _drawn(self, progress: Shown) -> str:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=max(progress.target, 1), completed=progress.complete)
        head.add_row(f"{progress.complete}/{progress.target} complete", bar, Text(f"ETA {progress.eta}"))
        with self._console.capture() as captured:
            columns = self._display.columns()
            self._console.print(head, Text(self._fitting(progress.details())), sep="\n", width=columns)
        return captured.get().rstrip("\n")

    def _fitting(self, text: str) -> str:
        return fitting(printable(text, lines=True), self._display.encoding)


class GuardedReporter:
    """Another reporter whose errors end no run: they are logged, and figures that cannot be shown are shown no more."""

    def __init__(self, shown: Reporter) -> None:
        self.shown = shown
        self._failed = False

    def say(self, text: str) -> None:
        """Say."""
        self._try(lambda: self.shown.say(text))

    def show(self, progress: Shown) -> None:
        """Show, unless that failed before."""
        if not self._failed:
            self._failed = not self._try(lambda: self.shown.show(progress))

    def begin_anew(self) -> None:
        """Begin anew."""
        self._try(self.shown.begin_anew)

    def close(self) -> None:
        """Close."""
        self._try(self.shown.close)

    @staticmethod
    def _try(act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception:  # whatever a display does wrong
            log.info("the display failed", exc_info=True)  # not a warning: those go to the display
            return False
        return True


class LoggedReporter:
    """Another reporter, with everything it is told also in the log (progress every ten seconds)."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown
        self._logged_s = 0.0

    def say(self, text: str) -> None:
        """Say and log."""
        self._shown.say(text)
        log.info("%s", text)

    def show(self, progress: Shown) -> None:
        """Show, and log now and then."""
        self._shown.show(progress)
        now_s = time.monotonic()
        if now_s - self._logged_s >= _PLAIN_EVERY_S:
            self._logged_s = now_s
            log.info("%s", progress.line())

    def begin_anew(self) -> None:
        """Begin what shows anew."""
        self._shown.begin_anew()

    def close(self) -> None:
        """Close what shows."""
        self._shown.close()


class ReporterHandler(logging.Handler):
    """Hands log records to a reporter, so that they neither garble the live line nor break a stream of JSON."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message, in one line."""
        try:
            self._reporter.say(" ".join(record.getMessage().split()))
        except (OSError, ValueError):  # a terminal that is gone, a stream that is closed: no reason to end a run
            self.handleError(record)


def choose_reporter(*, quiet: bool, log_json: bool) -> Reporter:
    """The reporter that fits the flags and where standard error goes. It never raises and never blocks."""
    return GuardedReporter(_fitting_reporter(quiet=quiet, log_json=log_json))


def _fitting_reporter(*, quiet: bool, log_json: bool) -> Reporter:
    if quiet and not log_json:
        return QuietReporter()
    display = Display(sys.stderr)
    if log_json:
        return JsonReporter(display)
    return LiveReporter(display) if display.isatty() else PlainReporter(display)


def _close(stream: TextIO | Display) -> None:
    """End a display; another stream is its owner's to close."""
    if isinstance(stream, Display):
        stream.close()


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds; a dash for what is no time."""
    if not math.isfinite(seconds):
        return "-"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
