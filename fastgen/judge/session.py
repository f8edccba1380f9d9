"""``judge``: the whole story of one session. Open the run, bring up the judge, ask what is unanswered, sum up.

Takes up where an earlier session stopped, however it stopped; what a grown run has more is asked too. The run's own
folder is only read, apart from its ``judgements/``. Where nothing is left to ask, no server is needed or started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastgen.engine.health import Step
from fastgen.errors import DiskError, FastgenError, InputError, StoppedError
from fastgen.export.options import ChoiceOptions
from fastgen.generate.batch import (
    Job,
    Question,
    ask,
    is_answered,
    read_meaning,
    read_replies,
    require_readable,
    run_until_stopped,
)
from fastgen.generate.options import AskSpeed
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import Keys, serve
from fastgen.judge.judgements import default_name, judgements_folder, settle_meaning
from fastgen.judge.options import JudgeOptions, WhatOptions
from fastgen.judge.prompts import SCHEMA, Examination, is_unreadable, unread_numbers, wording
from fastgen.judge.summary import write_summary
from fastgen.servers.choose import default_model
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.openai import OpenAIBackend
from fastgen.servers.router import Router
from fastgen.store.reader import OpenRun, open_run
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import Reporter
from fastgen.types import Sampling

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
    speed: AskSpeed


def judge(asked: Judging, reporter: Reporter) -> str | None:
    """Ask until every vote on every instance is logged; the name of the judgements, ``None`` where the user stopped it.

    :raises InputError: bad flags, no run there, nothing to judge, or judgements that were made otherwise.
    :raises StoppedError: no server answers, the disk is full, or no answer can be read; the same command asks the rest.
    """
    asked.judge.check_votes(asked.what.votes)
    run = open_run(asked.run_dir)
    if not run.folder.ledger().instances:
        raise InputError(f"--run-dir {asked.run_dir}: has no instance to judge yet; 'fastgen generate' goes on with it")
    model = _known_model(asked)
    if model is not None and is_answered(job := _job(asked, run, model)):
        require_readable(job)
        reporter.say(f"{job.folder.name}: everything is judged already; nothing is left to ask")
        return job.folder.name
    return run_until_stopped(lambda stopper: _session(asked, run, model, reporter, stopper), reporter)


def _known_model(asked: Judging) -> str | None:
    """The judge's model where it is known before any server is asked: as told, as before, or what is served here."""
    judge = asked.judge
    if "--served-model-name" in judge.server_args:
        return None
    if judge.base_url or judge.model is not None:
        return judge.model
    saved = None if asked.what.name is None else read_meaning(judgements_folder(asked.run_dir) / asked.what.name)
    return default_model() if saved is None else saved.get("model")


async def _session(asked: Judging, run: OpenRun, model: str | None, reporter: Reporter, stopper: Stopper) -> str | None:
    place = RunFolder(_make(judgements_folder(asked.run_dir)))
    options = asked.judge.told_to_serve(model).options(asked.speed, await _extra_body(asked, reporter))
    known = {} if asked.judge.model is None else {"model": asked.judge.model}
    async with serve(options, place, asked.cache_dir, Keys(asked.key), known, reporter.say) as serving:
        job = _job(asked, run, serving.models["model"])
        try:
            await ask(job, serving, options.speed, reporter, stopper)
        except StoppedError:
            with suppress(FastgenError):  # nothing was judged, or the disk is full
                write_summary(asked.run_dir, job.folder.name)
            raise
    write_summary(asked.run_dir, job.folder.name)
    if not stopper.stopped:
        require_readable(job)
    return None if stopper.stopped else job.folder.name


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made ({error.strerror}); mend that and run it again") from None
    return folder


async def _extra_body(asked: Judging, reporter: Reporter) -> str:
    """``--extra-body`` with what holds the judge to its form; the user's own word is the last."""
    import orjson

    own = asked.judge.options(asked.speed).server.extra_fields()
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


def _job(asked: Judging, run: OpenRun, model: str) -> Job:
    """What this model is asked.

    :raises InputError: there are judgements of that name which were made otherwise.
    """
    judge, what = asked.judge, asked.what
    folder = judgements_folder(asked.run_dir) / (what.name or default_name(model))
    meaning = settle_meaning(folder, _meaning(judge, run, model))
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_tokens)
    examination = Examination(judge.api, sampling, what.votes, meaning["salt"])
    choice = ChoiceOptions(max_instructions=what.max_instructions, seed=what.seed)

    def questions(answered: set[int]) -> Iterator[Question]:
        unread = unread_numbers(read_replies(folder), examination.salt)
        return examination.ask(run, choice, answered, unread)

    return Job(
        folder=folder,
        meaning=meaning,
        questions=questions,
        expected=_expected(run, what),
        is_unreadable=lambda reply: is_unreadable(reply, examination.salt),
        step=Step("judge", api=judge.api, others="another judge (--model)", anew=" (under another --name)"),
        again=examination.again,
    )


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
