"""Rebuild a run from its kept raw completions under other rules, without any server.

The completions are judged again in the order in which they were committed, by the code that judges live ones, into a
new run folder. What belongs to an instruction (its classification, its instances) goes with it as long as the new rules
find the same text at the same place. Instructions that only the new rules keep have nothing yet. ``fastgen generate
--run-dir`` on the new folder asks for the rest. Under the same rules the result is the same run.

The new folder becomes a run in one step, when everything is written. What a killed refilter leaves is not a run: other
commands refuse it, and the same refilter starts over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastgen import __version__
from fastgen.errors import InputError, RunFolderError
from fastgen.generate.health import RunHealth, steps_of_run
from fastgen.generate.inputs import Inputs, filter_of_forbidden, method_of
from fastgen.generate.options import NOT_SAVED, MethodOptions, Options, RefilterOptions, ServerOptions
from fastgen.methods.base import CREATION, Commit, Created, Method
from fastgen.methods.catalogue import SELF_INSTRUCT, Entry, find_method
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.prompts import load_prompts, read_prompt_files
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.store.ledger import Ledger
from fastgen.store.output import check_output
from fastgen.store.reader import OpenRun, open_run
from fastgen.store.run_folder import TEXTS, RunFolder, Store
from fastgen.types import Answer, Failure, Request, Sampling

_UNLIMITED = 1 << 62
_UNUSED_SAMPLING = Sampling(0.0, 1.0, _UNLIMITED)  # what the log holds was bounded when it came
_BLOCK = 256  # commits written at once
_MAX_FRUITLESS = 1000  # instruction completions in a row: a quarter of it is worth a warning


def refilter(run_dir: Path, output: Path, options: RefilterOptions, say: Callable[[str], None]) -> Ledger:
    """Write the rebuilt run to the new folder ``output`` and return its counts. ``say`` gets warnings.

    :raises InputError: no run at ``run_dir``, a damaged one, ``output`` already holds something, or nothing is left
        under these rules. ``output`` is then not a run.
    :raises DiskError: ``output`` cannot be written; the same call starts over.
    """
    check_output("--output", output, [run_dir])
    run = open_run(run_dir)
    folder = RunFolder(output, unfinished=True)
    _check_is_free(folder)
    store = Store(folder)
    try:
        _check_is_free(folder)  # another refilter may have finished before this one had the lock
        folder.clear_unfinished()
        header = run.folder.header()
        changes = options.values()
        entry = find_method(str(header.options.get("method", SELF_INSTRUCT)))
        decided = {name: value for name, value in changes.items() if name != "record_top_k"}
        if entry.fingerprint != run.configuration.get("method_file", ""):
            decided["method_file"] = entry.fingerprint
            say(f"--method {entry.path}: was changed since the run was made; it reads the completions as it is now")
        store.begin(run.configuration | decided, header.options | changes, __version__)
        prompts = {name: file.content for name, file in read_prompt_files(run.folder.prompts_path).items()}
        texts = {name: run.folder.texts(name) for name in TEXTS}
        folder.save_inputs(run.folder.seeds_path.read_bytes(), prompts, texts)
        list(store.replay())
        method = _method_of(run, options, entry)
        steps = steps_of_run(method, max_fruitless=_MAX_FRUITLESS, api=run.configuration["api"])
        steps = {stage: replace(step, one_remedy="try other rules") for stage, step in steps.items()}
        _write(store, _judged_again(run, options, method), RunHealth(steps, lambda _: None, say))
        empty = _nothing_left(store.ledger, run.folder.ledger(), method.steps[-1].name)
        if empty is not None:
            store.close()
            folder.clear_unfinished()
            raise InputError(f"--output {output}: nothing was written, because {empty}")
        store.sync()
        store.save_ledger()
        folder.finish()  # under the lock, because another refilter to this folder begins by clearing it
        return store.ledger
    finally:
        store.close()


def _check_is_free(folder: RunFolder) -> None:
    """:raises InputError: the folder holds a run, or anything but what an unfinished refilter left."""
    if (folder.path / "run.json").exists():
        raise InputError(f"--output {folder.path}: holds a run already; name a new folder")
    try:
        folder.exists()
    except RunFolderError as error:
        raise InputError(str(error).replace("--run-dir", "--output", 1)) from None


def _nothing_left(after: Ledger, before: Ledger, last_step: str) -> str | None:
    """Return why the rebuilt run is useless, or ``None`` if it is not."""
    if after.completions[CREATION] and not after.kept:
        return f"these rules keep no instruction (rejected: {_listed(after.rejected)}); loosen those that rejected most"
    if before.complete and after.completions[last_step] and not after.complete:
        rejected = _listed(after.rejected_instances)
        return f"these rules keep no instance (rejected: {rejected}); loosen those that rejected most"
    return None


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in counts.most_common(4)) or "none"


def _write(store: Store, commits: Iterator[Commit], health: RunHealth) -> None:
    block: list[Commit] = []
    for commit in commits:
        block.append(commit)
        store.ledger.apply(commit)
        health.see(commit)
        if len(block) == _BLOCK:
            store.append(block)
            block.clear()
            health.warn()
    store.append(block)
    health.warn(at_the_end=True)


def _method_of(run: OpenRun, options: RefilterOptions, entry: Entry) -> Method:
    """The run's method under the new rules. It asks nothing. A user's file is taken as it is now."""
    configuration, folder = run.configuration, run.folder
    saved: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in fields(MethodOptions)
        if (value := configuration.get(field.name)) is not None and field.name not in NOT_SAVED
    }
    saved["method"] = entry.name if entry.path is None else str(entry.path)
    if options.preset == "paper" and entry.name != SELF_INSTRUCT:
        raise InputError(f"--preset paper: belongs to --method {SELF_INSTRUCT}, and the run is one of {entry.name}")
    server = ServerOptions(api=configuration["api"])  # what the answers mean may depend on how they were asked for
    given = Options(method=MethodOptions(**saved), server=server, rules=options.rules)
    inputs = Inputs(
        entry=entry,
        seeds=run.seeds,
        prompts=load_prompts(configuration["api"], folder.prompts_path),
        seed_file=b"",
        prompt_files={},
        texts={name: folder.texts(name) for name in TEXTS},
    )
    return method_of(given, inputs)


def _judged_again(run: OpenRun, options: RefilterOptions, method: Method) -> Iterator[Commit]:
    now_s = 0.0
    similarity = options.similarity
    plan = Plan(
        method,
        NoveltyFilter(**{field.name: getattr(similarity, field.name) for field in fields(similarity)}),
        target=_UNLIMITED,
        clock=lambda: now_s,
        forbidden=filter_of_forbidden(run.folder.texts("decontaminate"), similarity),
    )
    new_by_old: dict[int, int] = {}  # machine instruction numbers
    for old in run.folder.whole_commits():
        now_s = old.time_s
        if (request := _request(old, len(run.seeds), new_by_old, plan)) is None:
            continue
        result = old.outcome if isinstance(old.outcome, Failure) else old.completion
        (judged,) = plan.judge([Answer(request, 0, result)])  # each choice as a separate request
        new = judged._replace(choice=old.choice)
        plan.apply(new)
        if isinstance(old.outcome, Created) and isinstance(new.outcome, Created):
            places = {kept.span: kept.number for kept in new.outcome.kept}
            new_by_old |= {kept.number: places[kept.span] for kept in old.outcome.kept if kept.span in places}
        yield new


def _request(old: Commit, seeds: int, new_by_old: Mapping[int, int], plan: Plan) -> Request | None:
    """Return the request as the new run would have sent it, or ``None`` if that run would not.

    It does not keep the instruction then, or has ended it. The demonstrations are those that the new run has too.
    ``seeds`` is the number of seed tasks.
    """
    subject = None if old.subject is None else new_by_old.get(old.subject)
    if old.subject is not None and (subject is None or not plan.waits_for(subject, old.step)):
        return None
    demonstrations = []
    for index in old.demonstrations:
        if index < seeds or plan.method.documents:
            demonstrations.append(index)
        elif (number := new_by_old.get(index - seeds)) is not None:
            demonstrations.append(seeds + number)
    shown = old.demonstrations_shown
    return Request(
        old.request,
        old.step,
        "",
        _UNUSED_SAMPLING,
        () if subject is None else (subject,),
        tuple(demonstrations),
        shown=None if shown == len(demonstrations) else shown,
        drawn=old.drawn,
    )
