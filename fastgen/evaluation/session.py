"""One session of asking as its user sees it: servers, signals, progress, and what to say when it stops.

Brings `fastgen.serving` and `fastgen.asking` together; knows nothing of what the questions are about.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen.asking import AnswerLog, Asking, Question, Reply, Shorten, read_meaning, read_replies
from fastgen.beside import beside
from fastgen.config import model_names
from fastgen.errors import InputError
from fastgen.options import Options
from fastgen.pace import limits_of
from fastgen.pipeline import Stopper
from fastgen.progress import Reporter, ReporterHandler, duration
from fastgen.serving import Keys, Serving, serve
from fastgen.store import RunFolder

_SHOW_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask of whom: ``folder`` gets the answers, ``meaning`` says what they answer (the model is added)."""

    folder: Path
    questions: Sequence[Question]
    meaning: Mapping[str, Any]
    options: Options
    cache_dir: Path
    api_key: str | None
    shorten: Shorten = lambda _: None


@dataclass(frozen=True, slots=True)
class AskProgress:
    """One look at a session; ``failed`` counts questions of this session that got no answer."""

    complete: int
    target: int
    failed: int
    per_s: float
    tokens_per_s: float

    @property
    def eta(self) -> str:
        """Time to the last answer, or a dash."""
        return duration((self.target - self.complete) / self.per_s) if self.per_s > 0 else "-"

    def details(self) -> str:
        """Rates since the session began."""
        failed = f" · {self.failed} failed" if self.failed else ""
        return f"{60 * self.per_s:,.1f} answers/min · {self.tokens_per_s:,.0f} tokens/s{failed}"

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.complete}/{self.target} answered · {self.details()} · ETA {self.eta}"


class _Meter:
    def __init__(self, answered: int, target: int) -> None:
        self._began_s = time.monotonic()
        self._before, self._answered, self._target = answered, answered, target
        self._failed = self._tokens = 0

    def count(self, replies: Sequence[Reply]) -> None:
        failed = sum(reply.failure is not None for reply in replies)
        self._failed += failed
        self._answered += len(replies) - failed
        self._tokens += sum(reply.completion_tokens for reply in replies)

    def look(self) -> AskProgress:
        elapsed_s = max(time.monotonic() - self._began_s, 1e-9)
        per_s = (self._answered - self._before) / elapsed_s
        return AskProgress(self._answered, self._target, self._failed, per_s, self._tokens / elapsed_s)


def ask_all(ask: Ask, reporter: Reporter) -> bool:
    """Ask what is not answered yet; true when every question was asked, false when the user stopped it before.

    Where everything is answered already, no server is needed or started.

    :raises InputError: the folder has answers to other questions or of another model, or the server refuses.
    :raises StoppedError: nothing answers; the same call goes on later.
    """
    if _is_answered(ask):
        return True
    logging.basicConfig(level=logging.DEBUG, handlers=[ReporterHandler(reporter)], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    import uvloop

    return uvloop.run(_session(ask, reporter))


def replies_by_number(folder: Path) -> dict[int, Reply]:
    """The last reply to each question; an answer is never replaced by a failure.

    :raises InputError: there are none, or the log is damaged.
    """
    found: dict[int, Reply] = {}
    for reply in read_replies(folder):
        if reply.failure is None or reply.number not in found:
            found[reply.number] = reply
    return found


def _is_answered(ask: Ask) -> bool:
    saved = read_meaning(ask.folder)
    if saved is None:
        return False
    model = ask.options.server.model
    if model is not None and saved.get("model") != model:
        raise InputError(
            f"{ask.folder}: holds answers of the model {saved.get('model')!r}, not of {model!r}; name another folder"
        )
    with AnswerLog(ask.folder, {**ask.meaning, "model": saved.get("model")}) as log:
        return len(log.answered) >= len(ask.questions)


async def _session(ask: Ask, reporter: Reporter) -> bool:
    stopper = Stopper(reporter)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper)
    try:
        return await _serve_and_ask(ask, reporter, stopper)
    except asyncio.CancelledError:
        if not stopper.stopped:
            raise
        return False


async def _serve_and_ask(ask: Ask, reporter: Reporter, stopper: Stopper) -> bool:
    options, keys = ask.options, Keys(ask.api_key)
    models = model_names(options, {})
    async with serve(options, RunFolder(ask.folder), ask.cache_dir, keys, models, reporter.say) as serving:
        with AnswerLog(ask.folder, {**ask.meaning, "model": serving.models["model"]}) as log:
            if log.answered:
                reporter.say(f"going on with {len(log.answered)} of {len(ask.questions)} answered")
            meter = _Meter(len(log.answered), len(ask.questions))
            asking = Asking(
                *(ask.questions, log, serving.backend, limits_of(options.speed, serving)),
                observe=meter.count,
                shorten=ask.shorten,
            )
            stopper.scheduler = asking.scheduler
            await _run_beside(asking, serving, meter, reporter)
            reporter.show(meter.look())
    return not stopper.stopped


async def _run_beside(asking: Asking, serving: Serving, meter: _Meter, reporter: Reporter) -> None:
    """Ask, with the servers watched and the progress shown; ends with the first that ends or fails."""
    async with beside(asking.run(), serving.watch(), _show(meter, reporter)) as running:
        await running


async def _show(meter: _Meter, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(_SHOW_EVERY_S)
        reporter.show(meter.look())
