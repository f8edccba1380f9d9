"""One evaluation's questions, asked: of the server that was named, or of one that fastgen starts.

Brings `fastgen.serving` and `fastgen.asking.session` together for questions that are known beforehand. Where all of
them are answered, no server is needed or started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastgen.asking.asker import Question, Reply, Shorten, read_meaning, read_replies
from fastgen.asking.session import Job, ask, is_answered, require_readable, run_until_stopped
from fastgen.config import model_names
from fastgen.errors import InputError
from fastgen.health import Step
from fastgen.options import Options
from fastgen.progress import Reporter
from fastgen.serving import Keys, serve
from fastgen.stopping import Stopper
from fastgen.storage.store import RunFolder


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask of whom: ``folder`` gets the answers, ``meaning`` says what they answer (the model is added).

    ``is_unreadable`` marks answers that count for nothing, ``step`` says what helps where all of them do.
    """

    folder: Path
    questions: Sequence[Question]
    meaning: Mapping[str, Any]
    options: Options
    cache_dir: Path
    api_key: str | None
    is_unreadable: Callable[[Reply], bool]
    step: Step
    shorten: Shorten = lambda _: None

    def job(self, model: str) -> Job:
        """The same for a model that is known by now."""
        return Job(
            folder=self.folder,
            meaning={**self.meaning, "model": model},
            questions=self._unanswered,
            expected=len(self.questions),
            is_unreadable=self.is_unreadable,
            step=self.step,
            shorten=self.shorten,
        )

    def _unanswered(self, answered: set[int]) -> Iterator[Question]:
        return (question for question in self.questions if question.number not in answered)


def ask_all(asked: Ask, reporter: Reporter) -> bool:
    """Ask what is not answered yet; true when every question was asked, false when the user stopped it before.

    :raises InputError: the folder has answers to other questions or of another model, or the server refuses.
    :raises StoppedError: nothing answers, or no answer can be read.
    """
    model = _known_model(asked)
    if model is not None and is_answered(job := asked.job(model)):
        require_readable(job)
        reporter.say(
            f"{asked.folder}: all {len(asked.questions)} questions are answered already; nothing is left to ask"
        )
        return True
    return run_until_stopped(lambda stopper: _session(asked, model, reporter, stopper), reporter) or False


def replies_by_number(folder: Path) -> dict[int, Reply]:
    """The last reply to each question; an answer is never replaced by a failure.

    :raises InputError: there are none, or the log is damaged.
    """
    found: dict[int, Reply] = {}
    for reply in read_replies(folder):
        if reply.failure is None or reply.number not in found:
            found[reply.number] = reply
    return found


def _known_model(asked: Ask) -> str | None:
    """Whose answers the folder holds; ``None`` where it holds none.

    :raises InputError: those of another model than the one that was named.
    """
    saved, model = read_meaning(asked.folder), asked.options.server.model
    if saved is None:
        return None
    if model is not None and saved.get("model") != model:
        raise InputError(
            f"{asked.folder}: holds answers of the model {saved.get('model')!r}, not of {model!r}; name another folder"
        )
    return saved.get("model")


async def _session(asked: Ask, model: str | None, reporter: Reporter, stopper: Stopper) -> bool:
    options = asked.options
    if model is not None and not options.server.base_url:  # a server of our own: go on with the same model
        options = replace(options, server=replace(options.server, model=model))
    where = RunFolder(asked.folder), asked.cache_dir
    async with serve(options, *where, Keys(asked.api_key), model_names(options, {}), reporter.say) as serving:
        job = asked.job(serving.models["model"])
        await ask(job, serving, options.speed, reporter, stopper)
    if stopper.stopped:
        return False
    require_readable(job)
    return True
