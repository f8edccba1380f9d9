"""``judge``: the whole story of one session. Open the run, bring up the judge, ask what is unanswered, sum up.

Takes up where an earlier session stopped, however it stopped; what a grown run has more is asked too. The run's own
folder is only read, apart from its ``judgements/``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastgen.asking import AnswerLog, Asking, Reply, read_replies
from fastgen.backends.endpoint import Endpoint
from fastgen.backends.openai import OpenAIBackend
from fastgen.backends.router import Router
from fastgen.beside import beside
from fastgen.errors import DiskError, InputError
from fastgen.exporting.options import ChoiceOptions
from fastgen.judging.options import JudgeOptions, JudgeSpeed, WhatOptions, serving_options
from fastgen.judging.places import default_name, judgements_folder, settle_meaning
from fastgen.judging.progress import JudgeMeter
from fastgen.judging.prompts import wording
from fastgen.judging.questions import Examination, is_unreadable, unread_numbers
from fastgen.judging.summary import write_summary
from fastgen.judging.verdicts import SCHEMA
from fastgen.options import SpeedOptions
from fastgen.pace import governor_of, limits_of, rates_of
from fastgen.pipeline import Stopper
from fastgen.progress import Reporter
from fastgen.records import Sampling
from fastgen.runs import OpenRun, open_run
from fastgen.serving import Keys, Serving, serve
from fastgen.store import RunFolder

_SHOW_EVERY_S = 1.0
_CONSTRAINTS: Final[dict[str, dict[str, Any]]] = {
    "vllm": {"structured_outputs": {"json": SCHEMA}},
    "json-schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "judgement", "schema": SCHEMA, "strict": True},
        }
    },
    "none": {},
}


@dataclass(frozen=True, slots=True)
class Judging:
    """A session that was asked for."""

    run_dir: Path
    cache_dir: Path
    key: str | None
    what: WhatOptions
    judge: JudgeOptions
    speed: JudgeSpeed


async def judge(asked: Judging, reporter: Reporter, stopper: Stopper) -> str:
    """Ask until every vote on every instance is logged, or the user stops; the name of the judgements.

    :raises InputError: bad flags, no run there, nothing to judge, or judgements that were made otherwise.
    :raises StoppedError: no server answers, or the disk is full; the same command goes on.
    """
    asked.judge.check_votes(asked.what.votes)
    run = open_run(asked.run_dir)
    if not run.folder.ledger().instances:
        raise InputError(f"--run-dir {asked.run_dir}: has no instance to judge yet; 'fastgen generate' goes on with it")
    place = RunFolder(_make(judgements_folder(asked.run_dir)))
    body = await _extra_body(asked, reporter)
    options, keys = serving_options(asked.judge, asked.speed, body), Keys(asked.key)
    known = {} if asked.judge.model is None else {"model": asked.judge.model}
    async with serve(options, place, asked.cache_dir, keys, known, reporter.say) as serving:
        name = asked.what.name or default_name(serving.models["model"])
        await _ask(asked, run, place.path / name, serving, reporter, stopper)
    write_summary(asked.run_dir, name)
    return name


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made ({error.strerror}); mend that and run it again") from None
    return folder


async def _extra_body(asked: Judging, reporter: Reporter) -> str:
    """``--extra-body`` with what holds the judge to its form; the user's own word is the last."""
    import orjson

    own = asked.judge.server(asked.judge.extra_body).extra_fields()
    kind: str = asked.judge.output_constraint
    if kind == "auto":
        kind = "vllm" if not asked.judge.base_url or await _are_vllm(asked, reporter) else "none"
    return orjson.dumps(_CONSTRAINTS[kind] | own).decode()


async def _are_vllm(asked: Judging, reporter: Reporter) -> bool:
    """Whether every server that answers is a vLLM, by its metrics page. Others ignore its field, or refuse it."""
    judge = asked.judge
    router = Router([OpenAIBackend(Endpoint(url, "", judge.api, asked.key)) for url in judge.base_url])
    try:
        await router.wait_until_answering(judge.server_timeout, reporter.say)
        seen = zip(router.statistics().endpoints, await router.metrics(), strict=True)
        return all(page is not None for endpoint, page in seen if endpoint.healthy)
    finally:
        await router.close()


async def _ask(
    asked: Judging, run: OpenRun, folder: Path, serving: Serving, reporter: Reporter, stopper: Stopper
) -> None:
    judge, what, speed = asked.judge, asked.what, asked.speed.speed()
    meaning = settle_meaning(folder, _meaning(judge, run, serving.models["model"]))
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_tokens)
    examination = Examination(judge.api, sampling, what.votes, meaning["salt"])
    choice = ChoiceOptions(max_instructions=what.max_instructions, seed=what.seed)
    with AnswerLog(folder, meaning) as log:
        unread = unread_numbers(read_replies(folder), examination.salt)
        meter = JudgeMeter(len(log.answered), _expected(run, what))
        if log.answered:
            reporter.say(f"{folder.name}: going on with {len(log.answered)} answers")
        asking = Asking(
            *(examination.ask(run, choice, log.answered, unread), log, serving.backend, limits_of(speed, serving)),
            observe=lambda replies: _observe(replies, examination, meter),
            again=examination.again,
            rates=rates_of(speed),
        )
        stopper.scheduler = asking.scheduler
        await _run_beside(asking, serving, speed, lambda: reporter.show(meter.look(asking.scheduler.statistics())))
        reporter.show(meter.look(asking.scheduler.statistics()))


def _meaning(judge: JudgeOptions, run: OpenRun, model: str) -> dict[str, Any]:
    """What makes judgements comparable; others go under another name."""
    return {
        "run": run.folder.header().run_id,
        "model": model,
        "api": judge.api,
        "prompt": wording().fingerprint,
        "temperature": judge.temperature,
        "top_p": judge.top_p,
        "max_tokens": judge.max_tokens,
        "extra_body": judge.extra_body,
    }


def _expected(run: OpenRun, what: WhatOptions) -> int:
    """About how many answers there will be: a run's instances, or the sample's share of them."""
    ledger = run.folder.ledger()
    share = 1.0 if what.max_instructions is None else min(1.0, what.max_instructions / max(1, ledger.complete))
    return round(ledger.instances * share) * what.votes


def _observe(replies: Sequence[Reply], examination: Examination, meter: JudgeMeter) -> None:
    unreadable = sum(reply.failure is None and is_unreadable(reply, examination.salt) for reply in replies)
    meter.count(replies, unreadable)


async def _run_beside(asking: Asking, serving: Serving, speed: SpeedOptions, show: Callable[[], None]) -> None:
    """Ask, with the servers watched and steered and the progress shown; the first that fails ends all."""
    governor = governor_of(speed, serving, asking.scheduler)
    steering = [governor.run()] if governor is not None else []
    async with beside(asking.run(), serving.watch(), _show(show), *steering) as running:
        await running


async def _show(show: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_SHOW_EVERY_S)
        show()
