"""Shows a run to its user: a live line on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

`progress_of` puts a run's counts and rates together. Reporters print through a `fastgen.telemetry.display.Display`, so
that nothing that happens to standard error ends or delays a run. What is printed may hold texts of others: all of it
passes `fastgen.text`.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TextIO, cast

from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display, fitting
from fastgen.text import as_json, printable

if TYPE_CHECKING:
    from fastgen.telemetry.monitor import MetricsHub


log = logging.getLogger(__name__)
_PLAIN_EVERY_S: Final = 10.0
_NARROW: Final = 1.1  # a range whose ends differ by less is shown as one time


@dataclass(frozen=True, slots=True)
class Progress:
    """What is shown of a run. Rates and the ETA with its range are those of `fastgen.telemetry.figures`.

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
        """Time to the target, as hours:minutes:seconds. A range while it is uncertain, a dash while it is unknown."""
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


def progress_of(
    ledger: Ledger, hub: MetricsHub, *, target: int, in_flight: int = 0, waiting_retries: int = 0
) -> Progress:
    """What to show of a run now: the counts of its ledger, and the rates and the limit that the hub has."""
    rates, sample = hub.rates, hub.latest
    return Progress(
        complete=ledger.complete,
        target=target,
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
    """What a reporter can show: a frozen dataclass whose fields are the figures, and its forms for people."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def complete(self) -> int:
        """How much is done."""

    @property
    def target(self) -> int:
        """How much there is to do."""

    @property
    def eta(self) -> str:
        """Time to the target, or a dash."""

    def details(self) -> str:
        """Everything except the count and the ETA. May have several lines."""

    def line(self) -> str:
        """All of it in one line."""


class Reporter(Protocol):
    """Where messages and figures of a command go."""

    def say(self, text: str) -> None:
        """Print one line that the user should read."""

    def show(self, progress: Shown) -> None:
        """Show the figures. Called about once a second."""

    def restart(self) -> None:
        """Replace nothing that is on the terminal: something else was printed there meanwhile."""

    def close(self) -> None:
        """Print the queued text and leave the terminal in order."""


class QuietReporter:
    """Prints nothing. The base of reporters that leave something out."""

    def say(self, text: str) -> None:
        """See `Reporter.say`."""

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""

    def restart(self) -> None:
        """See `Reporter.restart`."""

    def close(self) -> None:
        """See `Reporter.close`."""


class PlainReporter(QuietReporter):
    """Plain lines for logs and pipes: every message, and the figures every ten seconds and at the end."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._shown_s = -math.inf
        self._pending: Shown | None = None

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self._display.line(text)

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        self._pending = progress
        if time.monotonic() - self._shown_s >= _PLAIN_EVERY_S:
            self._shown_s = time.monotonic()
            self._print_pending()

    def close(self) -> None:
        """See `Reporter.close`."""
        self._print_pending()
        self._display.close()

    def _print_pending(self) -> None:
        if self._pending is not None:
            self.say(self._pending.line())
            self._pending = None


class JsonReporter(QuietReporter):
    """One JSON object a line: ``{"event": "message" | "progress", "t": Unix time, ...}``."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self._write("message", {"text": text})

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        self._write("progress", asdict(progress))

    def close(self) -> None:
        """See `Reporter.close`."""
        self._display.close()

    def _write(self, event: str, values: dict[str, object]) -> None:
        self._display.write(as_json({"event": event, "t": round(time.time(), 3), **values}) + "\n")


class LiveReporter:
    """A bar and the figures at the bottom of the terminal, with messages scrolling above.

    A frame replaces the one before it, even if that has more rows now because the terminal became narrower.
    """

    def __init__(self, display: Display) -> None:
        from rich.console import Console

        self._display = display
        self._console = Console(file=cast("TextIO", display), force_terminal=True, highlight=False)
        self._frame = ""
        self._widths: list[int] = []  # of the lines of the last frame, in columns
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        with self._lock:
            self._display.write(f"{self._erase()}{self._fitting(text)}\n{self._frame}")

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        from rich.cells import cell_len
        from rich.text import Text

        with self._lock:
            erase, self._frame = self._erase(), self._drawn(progress)
            self._widths = [cell_len(Text.from_ansi(line).plain) for line in self._frame.split("\n")]
            self._display.write(erase + self._frame)

    def restart(self) -> None:
        """See `Reporter.restart`."""
        with self._lock:
            self._frame, self._widths = "", []

    def close(self) -> None:
        """See `Reporter.close`."""
        with self._lock:
            if self._frame:
                self._display.write("\n")
            self._frame, self._widths = "", []
        self._display.close()

    def _erase(self) -> str:
        """What clears the last frame. Terminals wrap lines that have become too long."""
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
    """Another reporter whose errors do not end a run. They are logged. Figures that failed once are not shown again.

    With ``is_logged``, what it is given is also logged (figures every ten seconds).
    """

    def __init__(self, shown: Reporter, *, is_logged: bool = False) -> None:
        self.shown = shown
        self._is_logged = is_logged
        self._has_failed = False
        self._logged_s = 0.0

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self._try(lambda: self.shown.say(text))
        if self._is_logged:
            log.info("%s", text)

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        if not self._has_failed:
            self._has_failed = not self._try(lambda: self.shown.show(progress))
        if self._is_logged and time.monotonic() - self._logged_s >= _PLAIN_EVERY_S:
            self._logged_s = time.monotonic()
            log.info("%s", progress.line())

    def restart(self) -> None:
        """See `Reporter.restart`."""
        self._try(self.shown.restart)

    def close(self) -> None:
        """See `Reporter.close`."""
        self._try(self.shown.close)

    @staticmethod
    def _try(act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception:  # whatever a display does wrong
            log.info("the display failed", exc_info=True)  # not a warning: those go to the display
            return False
        return True


class ReporterHandler(logging.Handler):
    """Gives log records to a reporter, so that they neither garble the live line nor break a stream of JSON."""

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
    if quiet and not log_json:
        return GuardedReporter(QuietReporter())
    display = Display(sys.stderr)
    if log_json:
        return GuardedReporter(JsonReporter(display))
    return GuardedReporter(LiveReporter(display) if display.isatty() else PlainReporter(display))


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds. A dash if they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
