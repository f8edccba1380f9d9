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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TextIO, cast

from fastgen.store.ledger import Ledger
from fastgen.telemetry.display import Display, fitting
from fastgen.text import as_json, printable

if TYPE_CHECKING:
    from rich.text import Text

    from fastgen.telemetry.monitor import MetricsHub


log = logging.getLogger(__name__)
_PLAIN_EVERY_S: Final = 10.0
_NARROW: Final = 1.1  # a range whose ends differ by less is shown as one time
_LABEL: Final = 7  # columns of a row's label
_SHORTEST_BAR: Final = 10  # columns; a terminal that has no room for it gets the figures without a bar
LIMIT_IN_WORDS: Final = {
    "server": "the server",
    "client CPU": "the CPU of this machine",
    "filter": "the similarity filter",
    "disk": "the disk",
    "yield": "the yield",
    "user limit": "your settings",
    "ramp-up": "starting up",
    "drain": "stopping",
    "no server": "no server answers",
}
"""What the live display calls the limits of `fastgen.telemetry.figures.Limit`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is shown of a run. Rates and the ETA with its range are those of `fastgen.telemetry.figures`.

    ``acceptance`` and ``yield_per_1000_tokens``, which counts complete instructions, are since the start of the run;
    ``kept_per_1000_tokens`` is over the yield window. ``elapsed_s`` is since this session's servers answered. ``limit``
    and ``limit_reason`` are empty until they are measured.
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
    elapsed_s: float = 0.0
    limit: str = ""
    limit_reason: str = ""

    @property
    def eta(self) -> str:
        """Time to the target, as hours:minutes:seconds. A range while it is uncertain, a dash while it is unknown."""
        return time_left(self.eta_s, self.eta_low_s, self.eta_high_s)

    def details(self) -> str:
        """Everything but the count and the ETA, for people: rows of a label, a tab and figures."""
        rows = {
            "speed": f"{self._rate(' a minute')} · {self.generated_tokens_per_s:,.0f} tokens/s · {self._elapsed()}",
            "yield": self._yields(),
            "kept": f"{self._accepted()} · {self.pending:,} on the way · {self._requests()}",
        }
        if self.limit and self.complete < self.target:
            reason = f" ({self.limit_reason})" if self.limit_reason else ""
            rows["limit"] = f"{LIMIT_IN_WORDS.get(self.limit, self.limit)}{reason}"
        return "\n".join(f"{label}\t{text}" for label, text in rows.items())

    def line(self) -> str:
        """All of it in one line."""
        limited = f" · limited by {self.limit}" if self.limit else ""
        reason = f": {self.limit_reason}" if self.limit and self.limit_reason else ""
        return (
            f"{self.complete}/{self.target} complete · {self._rate('/min')} · {self._elapsed()} · ETA {self.eta} · "
            f"{self.generated_tokens_per_s:,.0f} tokens/s · yield {self.yield_per_1000_tokens:.2f}/1k tokens · "
            f"kept {self.kept_per_1000_tokens:.2f}/1k tokens, {self.kept_per_server_s:.3g}/server-s · "
            f"acceptance {self.acceptance:.0%} · on the way {self.pending} · in flight {self.in_flight}"
            f"{f' · retrying {self.waiting_retries}' if self.waiting_retries else ''}{limited}{reason}"
        )

    def _rate(self, unit: str) -> str:
        # One batch of instructions is no rate: the time before it would count.
        return "no rate yet" if self.eta_s is None else f"{self.complete_per_min:,.1f}{unit}"

    def _yields(self) -> str:
        if not self.kept:
            return "none yet"
        return (
            f"{self.yield_per_1000_tokens:.2f} complete, {self.kept_per_1000_tokens:.2f} kept per 1,000 tokens · "
            f"{self.kept_per_server_s:.3g} kept per server-second"
        )

    def _elapsed(self) -> str:
        return f"{duration(self.elapsed_s)} elapsed"

    def _accepted(self) -> str:
        return f"{self.acceptance:.0%} of what was written" if self.kept else "none yet"

    def _requests(self) -> str:
        retrying = f", {self.waiting_retries:,} wait to be sent again" if self.waiting_retries else ""
        return f"{self.in_flight:,} in flight{retrying}"


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
        elapsed_s=0.0 if hub.reading is None else hub.reading.session_s,
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
        """Everything except the count and the ETA, in one line or several. A label may stand before a tab."""

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


def json_event(event: str, **values: object) -> str:
    """One line of ``--log-json``: ``{"event": "message" | "progress" | "summary", "t": Unix time, ...}``, in ASCII."""
    return as_json({"event": event, "t": round(time.time(), 3), **values}) + "\n"


class JsonReporter(QuietReporter):
    """Lines of JSON for programs, see `json_event`."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        self._display.write(json_event("message", text=text))

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        self._display.write(json_event("progress", **asdict(progress)))

    def close(self) -> None:
        """See `Reporter.close`."""
        self._display.close()


class LiveReporter:
    """A bar and the figures at the bottom of the terminal, with messages scrolling above.

    A frame replaces the one before it, even if that has more rows now because the terminal became narrower. Lines end
    before the last column and have no spaces at their end, since terminals disagree about what becomes of those.
    """

    def __init__(self, display: Display) -> None:
        from rich.console import Console

        self._display = display
        self._console = Console(file=cast("TextIO", display), force_terminal=True, highlight=False)
        self._frame = ""
        self._widths: list[int] = []  # of the lines of the last frame, in columns
        self._lock = threading.Lock()

    @property
    def is_dumb(self) -> bool:
        """Whether the terminal cannot replace what it shows, as ``TERM`` says."""
        return self._console.is_dumb_terminal

    def say(self, text: str) -> None:
        """See `Reporter.say`."""
        from rich.text import Text

        with self._lock:
            width = max(1, self._display.size()[0] - 1)
            lines = [one for line in self._fitting(text).split("\n") for one in self._wrapped(Text(line), width)]
            self._display.write(f"{self._erase()}{_joined(lines)}\n{self._frame}")

    def show(self, progress: Shown) -> None:
        """See `Reporter.show`."""
        with self._lock:
            erase, lines = self._erase(), self._drawn(progress)
            with self._console.capture() as captured:
                for drawn in lines:
                    self._console.print(drawn, soft_wrap=True)
            self._frame, self._widths = captured.get().rstrip("\n"), [line.cell_len for line in lines]
            self._display.write(erase + self._frame)

    def restart(self) -> None:
        """See `Reporter.restart`."""
        with self._lock:
            if self._frame:
                # To the begin of a line that is empty: spaces wrap only where something stands on the line already.
                self._display.write(" " * (self._display.size()[0] - 1) + "\r\x1b[K")
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
        columns, _ = self._display.size()
        rows = sum(max(1, math.ceil(width / columns)) for width in self._widths)
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        return f"\r{up}\x1b[J" if rows else ""

    def _drawn(self, progress: Shown) -> list[Text]:
        """The lines of a frame, no more than the terminal has."""
        columns, rows = self._display.size()
        width = max(1, columns - 1)
        lines = [*self._head(progress, width)]
        for row in self._fitting(progress.details()).split("\n"):
            lines += self._row(row, width)
        for line in lines:
            line.rstrip()
        return lines[: max(1, rows - 1)]

    def _head(self, progress: Shown, width: int) -> Iterator[Text]:
        """The bar between the count and the time that is left. Without a bar where there is no room for it."""
        from rich.text import Text

        share = min(1.0, progress.complete / max(1, progress.target))
        is_done = progress.complete >= progress.target
        left = f"{progress.complete:,} of {progress.target:,} complete "
        right = self._fitting(f" {math.floor(100 * share)}% · {'done' if is_done else f'ETA {progress.eta}'}")
        if (room := width - len(left) - len(right)) < _SHORTEST_BAR:
            yield from self._wrapped(Text(left + right.lstrip()), width)
            return
        done = math.floor(share * room)
        bar = (self._fitting("━" * done), "green" if is_done else "cyan"), (self._fitting("─" * (room - done)), "dim")
        yield Text.assemble((left, "bold"), *bar, right)

    def _row(self, line: str, width: int) -> list[Text]:
        """A row of figures, whose further lines begin below the first one's text."""
        from rich.text import Text

        label, tab, text = line.partition("\t")
        if not tab:
            return self._wrapped(Text(line), width)
        if width < 2 * _LABEL:
            return self._wrapped(Text(f"{label}: {text}"), width)
        first, *rest = self._wrapped(Text(text), width - _LABEL)
        indent = " " * _LABEL
        return [Text.assemble((f"{label:<{_LABEL}}", "dim"), first), *(Text(indent).append_text(one) for one in rest)]

    def _wrapped(self, text: Text, width: int) -> list[Text]:
        return list(text.wrap(self._console, width)) or [text]

    def _fitting(self, text: str) -> str:
        return fitting(printable(text, lines=True), self._display.encoding)


def _joined(lines: Sequence[Text]) -> str:
    return "\n".join(line.plain.rstrip() for line in lines)


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
    if display.isatty() and not (live := LiveReporter(display)).is_dumb:
        return GuardedReporter(live)
    return GuardedReporter(PlainReporter(display))


def time_left(eta_s: float | None, low_s: float | None, high_s: float | None) -> str:
    """An ETA with its range (`fastgen.telemetry.figures.Rates`) for people: a time, a range, or a dash."""
    if eta_s is None:
        return "-"
    low_s = eta_s if low_s is None else low_s
    if high_s is None:
        return f"at least {duration(low_s)}"
    low, high = duration(low_s), duration(high_s)
    return duration(eta_s) if low == high or high_s <= _NARROW * low_s else f"{low} to {high}"


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds. A dash if they are not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
