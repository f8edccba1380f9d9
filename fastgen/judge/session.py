"""One session of ``fastgen judge``: open the run, bring up the judge, ask what is unanswered, sum up.

A session resumes where the last one stopped, for any reason, and asks about instances that a run has gained since then.
The run folder is only read, apart from its ``judgements/``. Where nothing is left to ask, no server is needed or
started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
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
    read_configuration,
    read_replies,
    require_readable,
    run_until_stopped,
)
from fastgen.generate.options import AskSpeed
from fastgen.generate.runtime import Stopper
from fastgen.generate.serving import Keys, serve
from fastgen.judge.judgements import default_name, judgements_folder, judging_configuration
from fastgen.judge.options import JudgeOptions, ScopeOptions
from fastgen.judge.prompts import SCHEMA, Questionnaire, template
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


def judge_run(
    run_dir: Path,
    scope: ScopeOptions,
    judge: JudgeOptions,
    speed: AskSpeed,
    reporter: Reporter,
    *,
    cache_dir: Path,
    api_key: str | None,
) -> str | None:
    """Ask until every vote on every instance is logged.

    Returns the name of the judgements, or ``None`` if the user stopped the session.

    :raises InputError: bad flags, no run there, nothing to judge, or judgements that were made differently.
    :raises StoppedError: no server answers, the disk is full, or no answer can be read; the same command asks the rest.
    """
    if scope.votes > 1 and judge.temperature == 0:
        raise InputError(
            f"--votes {scope.votes}: at --temperature 0 all votes are the same; give a higher one or 1 vote"
        )
    run = open_run(run_dir)
    if not run.instances(run.folder.ledger()):
        raise InputError(f"--run-dir {run_dir}: has no instance to judge yet; run 'fastgen generate' first")
    model = _known_model(run_dir, scope.name, judge)
    if model is not None and is_answered(job := _job(run, scope, judge, model)):
        require_readable(job)
        reporter.say(f"{job.folder.name}: everything is judged already; nothing is left to ask")
        return job.folder.name

    async def session(stopper: Stopper) -> str | None:
        folder = _make(judgements_folder(run_dir))
        extra_body = await _extra_body(judge, speed, api_key, reporter)
        told = judge if judge.base_url or judge.model is not None or model is None else replace(judge, model=model)
        options = told.options(speed, extra_body)
        names = {} if judge.model is None else {"model": judge.model}
        async with serve(options, RunFolder(folder), cache_dir, Keys(api_key), names, reporter.say) as serving:
            job = _job(run, scope, judge, serving.models["model"])
            try:
                await ask(job, serving, options.speed, reporter, stopper)
            except StoppedError:
                with suppress(FastgenError):  # nothing was judged, or the disk is full
                    write_summary(run_dir, job.folder.name)
                raise
        write_summary(run_dir, job.folder.name)
        if stopper.stopped:
            return None
        require_readable(job)
        return job.folder.name

    return run_until_stopped(session, reporter)


def _known_model(run_dir: Path, name: str | None, judge: JudgeOptions) -> str | None:
    """The judge's model if it is known before any server is asked: the user's, an earlier session's or the default."""
    if "--served-model-name" in judge.server_args:
        return None
    if judge.base_url or judge.model is not None:
        return judge.model
    saved = None if name is None else read_configuration(judgements_folder(run_dir) / name)
    return default_model() if saved is None else saved.get("model")


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: cannot be made ({error.strerror}); fix that and run it again") from None
    return folder


async def _extra_body(judge: JudgeOptions, speed: AskSpeed, api_key: str | None, reporter: Reporter) -> str:
    """``--extra-body`` with what enforces the form of the answers. The user's own fields take precedence."""
    import orjson

    own = judge.options(speed).server.extra_fields()
    kind: str = judge.output_constraint
    if kind == "auto":
        kind = "vllm" if not judge.base_url or await _are_vllm(judge, api_key, reporter) else "none"
    return orjson.dumps(_CONSTRAINTS[kind] | own).decode()


async def _are_vllm(judge: JudgeOptions, api_key: str | None, reporter: Reporter) -> bool:
    """Whether every server that answers is vLLM, by its metrics page. Others ignore vLLM's field, or refuse it."""
    router = Router([OpenAIBackend(Endpoint(url, "", judge.api, api_key)) for url in judge.base_url])
    try:
        await router.wait_until_answering(judge.server_timeout, reporter.say)
        seen = zip(router.statistics().endpoints, await router.metrics(), strict=True)
        return all(page is not None for endpoint, page in seen if endpoint.healthy)
    finally:
        await router.close()


def _job(run: OpenRun, scope: ScopeOptions, judge: JudgeOptions, model: str) -> Job:
    """What this model is asked.

    :raises InputError: there are judgements of that name which were made differently.
    """
    folder = judgements_folder(run.folder.path) / (scope.name or default_name(model))
    meaning = judging_configuration(
        folder,
        {
            "run": run.folder.header().run_id,
            "model": model,
            "api": judge.api,
            "prompt": template().fingerprint,
            "temperature": judge.temperature,
            "top_p": judge.top_p,
            "max_tokens": judge.max_tokens,
            "extra_body": judge.extra_body,
            **({} if judge.thinking == "auto" else {"thinking": judge.thinking}),
        },
    )
    sampling = Sampling(judge.temperature, judge.top_p, judge.max_tokens)
    questionnaire = Questionnaire(judge.api, sampling, scope.votes, meaning["salt"])
    choice = ChoiceOptions(max_instructions=scope.max_instructions, seed=scope.seed)

    def questions(answered: set[int]) -> Iterator[Question]:
        unreadable = questionnaire.unreadable(read_replies(folder))
        return questionnaire.open_questions(run, choice, answered, unreadable)

    ledger = run.folder.ledger()
    share = 1.0 if scope.max_instructions is None else min(1.0, scope.max_instructions / max(1, ledger.complete))
    return Job(
        folder=folder,
        configuration=meaning,
        questions=questions,
        expected=round(ledger.instances * share) * scope.votes,
        is_unreadable=questionnaire.is_unreadable,
        step=Step(
            "judge",
            api=judge.api,
            is_thinking_off=judge.thinking == "off",
            others="another judge (--model)",
            anew=" (under another --name)",
        ),
        again=questionnaire.second_attempt,
    )
