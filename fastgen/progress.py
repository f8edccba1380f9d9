"""Shows a run to its user: a live line on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

`ProgressMeter` turns ledger snapshots into rates over the last minute; the reporters only print. Everything goes to
standard error: standard output belongs to data.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from dataclasses import Field, asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TextIO

import orjson

from fastgen.ledger import Ledger

if TYPE_CHECKING:
    from rich.live import Live

    from fastgen.metrics import Sample

log = logging.getLogger(__name__)
_WINDOW_S = 60.0
_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a run; rates are over the last minute, ``eta_s`` is ``None`` while nothing can be said.

    ``yield_per_1000_tokens`` counts complete instructions since the start of the run, ``kept_per_1000_tokens`` kept
    ones over the yield window. ``limit`` and ``limit_reason`` are empty until they are measured (`fastgen.metrics`).
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
    limit: str = ""
    limit_reason: str = ""

    @property
    def eta(self) -> str:
        """Time to the target, as hours:minutes:seconds, or a dash."""
        return "-" if self.eta_s is None else duration(self.eta_s)

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


class _Past(NamedTuple):
    now_s: float
    server_s: float
    complete: int
    kept: int
    tokens: int


class ProgressMeter:
    """Rates from what the ledger said at different times. ``now_s`` is any steady clock."""

    def __init__(self, ledger: Ledger, target: int, now_s: float) -> None:
        self._ledger = ledger
        self._target = target
        self._past: deque[_Past] = deque([self._count(now_s, 0.0)])

    def look(self, now_s: float, *, in_flight: int, waiting_retries: int, sample: Sample | None = None) -> Progress:
        """The figures now; call it regularly. ``sample`` is the newest of the run's measured figures."""
        ledger = self._ledger
        servers = sum(server.healthy for server in sample.servers) if sample is not None else 1
        now = self._count(now_s, self._past[-1].server_s + servers * (now_s - self._past[-1].now_s))
        self._past.append(now)
        while len(self._past) > 2 and self._past[0].now_s < now_s - _WINDOW_S:  # noqa: PLR2004 - a rate needs two
            self._past.popleft()
        then = self._past[0]
        elapsed_s = max(now_s - then.now_s, 1e-9)
        per_s = (ledger.complete - then.complete) / elapsed_s
        server_s = now.server_s - then.server_s
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
            kept_per_server_s=(ledger.kept - then.kept) / server_s if server_s else 0.0,
            complete_per_min=60 * per_s,
            generated_tokens_per_s=(ledger.generated_tokens - then.tokens) / elapsed_s,
            eta_s=(self._target - ledger.complete) / per_s if per_s > 0 else None,
            limit=sample.limit if sample is not None else "",
            limit_reason=sample.limit_reason if sample is not None else "",
        )

    def _count(self, now_s: float, server_s: float) -> _Past:
        ledger = self._ledger
        return _Past(now_s, server_s, ledger.complete, ledger.kept, ledger.generated_tokens)


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

    def close(self) -> None:
        """Leave the terminal as it was."""


class QuietReporter:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, progress: Shown) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainReporter:
    """Plain lines for logs and pipes: every event, and the figures every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown_s = 0.0
        self._pending: Shown | None = None

    def say(self, text: str) -> None:
        """Print the line."""
        print(text, file=self._stream, flush=True)

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


class JsonReporter:
    """One JSON object a line: ``{"event": "message" | "progress", "t": Unix time, ...}``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, event: str, values: dict[str, object]) -> None:
        line = orjson.dumps({"event": event, "t": round(time.time(), 3), **values})
        print(line.decode(), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A message event."""
        self._write("message", {"text": text})

    def show(self, progress: Shown) -> None:
        """A progress event."""
        self._write("progress", asdict(progress))

    def close(self) -> None:
        """Nothing to do."""


class LiveReporter:
    """A bar and a line that stay at the bottom of the terminal, events scrolling above."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """Print above the live line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, progress: Shown) -> None:
        """Redraw."""
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=max(progress.target, 1), completed=progress.complete)
        head.add_row(f"{progress.complete}/{progress.target} complete", bar, f"ETA {progress.eta}")
        shown = Table.grid(expand=True)
        shown.add_row(head)
        shown.add_row(progress.details())
        if self._live is None:
            self._live = Live(shown, console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(shown, refresh=True)

    def close(self) -> None:
        """Stop redrawing; the last figures stay on screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None


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
    """The reporter that fits the flags and where standard error goes."""
    if log_json:
        return JsonReporter(sys.stderr)
    if quiet:
        return QuietReporter()
    return LiveReporter() if sys.stderr.isatty() else PlainReporter(sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as minutes:seconds or hours:minutes:seconds."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
