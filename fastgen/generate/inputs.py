"""What a run is made from, and how it begins or resumes: seeds, prompts, forbidden texts, and the plan made of them.

Every input is read once. What is parsed and what is kept in the run folder are the same bytes, so it does not matter if
a file changes meanwhile or is a pipe that can be read only once.

Forbidden texts (``--decontaminate``) are texts that no kept instruction may resemble, such as the tasks of a benchmark.
They are compared by the rule of the similarity filter (exact ROUGE-L) and are not part of the pool.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import orjson

from fastgen import __version__
from fastgen.errors import InputError
from fastgen.generate.checkpoint import CheckpointEnd, load_checkpoint
from fastgen.generate.options import (
    MethodOptions,
    Options,
    check_method_options,
    check_same_configuration,
    method_name,
    model_names,
    role_models,
    run_configuration,
    saved_values,
    settled_values,
    with_api,
    with_sampling,
    with_structured,
)
from fastgen.methods.backtranslate import usable
from fastgen.methods.base import Context, Method, Setup
from fastgen.methods.catalogue import SELF_INSTRUCT, Entry, find_method
from fastgen.methods.chat_template import ChatTemplate
from fastgen.methods.foreign import rehearse
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.languages import language_warning
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import PromptFiles, PromptSet, parse_prompts, read_prompt_files
from fastgen.methods.self_instruct.seeds import default_seed_path, parse_seed_tasks, read_seed_file, seed_fingerprint
from fastgen.servers.describe import choose_api, describe
from fastgen.servers.embedded import EMBEDDED_MODEL
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.run_folder import TEXTS, RunFolder, Store
from fastgen.store.tables import is_parquet, open_table, read_texts
from fastgen.types import SeedTask

if TYPE_CHECKING:
    from fastgen.servers.openai import OpenAIBackend
    from fastgen.similarity.bands import Bands
    from fastgen.similarity.novelty import NoveltyFilter


log = logging.getLogger(__name__)

FIELD = "instruction"


def load_forbidden(paths: Iterable[Path]) -> tuple[str, ...]:
    """The ``instruction`` of each row of JSON-lines or Parquet files, the definition of each SuperNI task (.json).

    :raises InputError: a file cannot be read or used, with file and line.
    """
    return tuple(text for path in paths for _, batch in read_texts(path, FIELD) for text in batch)


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of the texts, in hexadecimal. Empty for none."""
    if not texts:
        return ""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def filter_of_forbidden(texts: Sequence[str], similarity: SimilarityOptions) -> NoveltyFilter | None:
    """An exact filter over the texts, by the run's own rule, or ``None`` for no texts."""
    if not texts:
        return None
    from fastgen.similarity.novelty import NoveltyFilter

    forbidden = NoveltyFilter(
        threshold=similarity.threshold, reject_at=similarity.reject_at, tokenizer=similarity.tokenizer, index="exact"
    )
    forbidden.add(texts)
    return forbidden


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is given besides its options: the method, seeds, prompts and lists of texts.

    The seed file and the prompt files (by name) are bytes, as the run folder keeps them. ``texts`` are the lists of
    `fastgen.store.run_folder.TEXTS`.
    """

    entry: Entry
    seeds: tuple[SeedTask, ...]
    prompts: PromptSet
    seed_file: bytes
    prompt_files: PromptFiles
    texts: Mapping[str, Sequence[str]]
    template: ChatTemplate | None = None

    def fingerprints(self) -> dict[str, str]:
        """Of all contents, by option name, for the run's configuration."""
        lists = {name: fingerprint(texts) for name, texts in self.texts.items()}
        own = {"seed_tasks": seed_fingerprint(self.seeds), "prompts": self.prompts.fingerprint}
        return lists | own | {"method_file": self.entry.fingerprint}


def load_inputs(folder: RunFolder, options: Options) -> Inputs:
    """Load the files that the options name, else the run folder's, else those shipped with fastgen.

    :raises InputError: a file is missing or invalid, with line and field, or no run is possible with it.
    """
    begun, asked = folder.exists(), options.method
    if begun:
        _check_same_method(folder, asked.method)
    entry = find_method(asked.method)
    check_method_options(options, entry)
    if not begun and entry.name != SELF_INSTRUCT and options.sampling.sampling_given:
        flag = f"--{options.sampling.sampling_given[0].replace('_', '-')}"
        raise InputError(f"{flag}: belongs to --method {SELF_INSTRUCT}; with {entry.name} use --step-sampling")
    seeds_path = asked.seed_tasks or (folder.seeds_path if begun else default_seed_path())
    seed_file = b""
    if asked.from_dataset is not None:
        seed_file = _seeds_of_dataset(asked.from_dataset)
    elif entry.uses_seeds:
        seed_file = read_seed_file(seeds_path)
    stored = folder.prompts_path if begun else None
    prompt_files = read_prompt_files(asked.prompts, stored=stored, preset=asked.preset)
    has_seeds = entry.uses_seeds or asked.from_dataset is not None
    seeds = parse_seed_tasks(asked.from_dataset or seeds_path, seed_file) if has_seeds else ()
    if asked.classification_only and not any(seed.is_classification for seed in seeds):
        raise InputError(
            f"--classification-only: none of the {len(seeds)} seed tasks in {seeds_path} is a classification task; "
            'mark some with "is_classification": true, name other --seed-tasks, or leave the flag out'
        )
    given = {
        "decontaminate": asked.decontaminate and load_forbidden(asked.decontaminate),
        "documents": asked.documents and load_documents(asked.documents, usable if entry.is_own else lambda _: None),
        "topics": asked.topics and load_lines("--topics", asked.topics),
        "personas": asked.personas and load_lines("--personas", asked.personas),
    }
    texts = {name: given[name] or (folder.texts(name) if begun else ()) for name in TEXTS}
    if entry.needs_documents and not texts["documents"]:
        raise InputError(f"--method {entry.name}: needs documents; name a file of them with --documents")
    inputs = Inputs(
        entry=entry,
        seeds=seeds,
        prompts=_prompts(options.server.api, prompt_files),
        seed_file=seed_file,
        prompt_files=prompt_files,
        texts=texts,
        template=_known_template(folder, asked) if begun or asked.pre_query else None,
    )
    _warn_of_languages(inputs, is_new=not begun)
    method = method_of(options, replace(inputs, template=_ANY_TEMPLATE) if entry.needs_template else inputs)
    if not entry.is_own:
        rehearse(method)
    _check_roles(options, method)
    return inputs


def _check_roles(options: Options, method: Method) -> None:
    """:raises InputError: servers are named for a role that the method does not have."""
    for name, own in options.server.roles().items():
        if name not in method.roles:
            raise InputError(f"{own.flag('model')}: {method.name} has the roles {', '.join(method.roles)}")


def _warn_of_languages(inputs: Inputs, *, is_new: bool) -> None:
    """Warn of a new run if demonstrations are in another language than the seeds. Only self-instruct shows any."""
    if is_new and inputs.entry.name == SELF_INSTRUCT and (mixed := language_warning(inputs.seeds, inputs.prompts)):
        log.warning("%s", mixed)


def _check_same_method(folder: RunFolder, given: str) -> None:
    """Before anything is read for another method than the run's.

    :raises InputError: the run is of another method.
    """
    saved = folder.header().configuration.get("method", SELF_INSTRUCT)
    if (name := method_name(given)) != saved:
        raise InputError(
            f"--run-dir {folder.path}: was made with --method {saved} (not {name}); leave that as it was, or name a "
            "new run folder"
        )


def _prompts(api: str, files: PromptFiles) -> PromptSet:
    """The prompts of an API; of completions where it is not known yet, after a look at both."""
    if api == "auto":
        parse_prompts("chat", files)
    return parse_prompts("chat" if api == "chat" else "completions", files)


def _known_template(folder: RunFolder, asked: MethodOptions) -> ChatTemplate | None:
    """The chat template that a run was begun with, or that ``--pre-query`` gives."""
    if folder.exists():
        stored = folder.header().configuration.get("chat_template")
        return None if stored is None else ChatTemplate.from_json(stored)
    try:
        return ChatTemplate.from_pre_query(asked.pre_query)
    except ValueError as error:
        raise InputError(f"--pre-query: {error}") from None


def needs_server(options: Options, inputs: Inputs) -> bool:
    """Whether the plan of a new run needs to know something that only a server can tell."""
    server = options.server
    has_presets = server.api == "chat" and server.model_preset != "none" and options.method.preset != "paper"
    return server.api == "auto" or has_presets or (inputs.entry.needs_template and inputs.template is None)


async def ask_server(
    options: Options, inputs: Inputs, backend: OpenAIBackend, say: Callable[[str], None]
) -> tuple[Options, Inputs]:
    """What was missing to begin a new run, from the server of its first step: the API and the chat template.

    :raises InputError: the method needs the chat template, and the server does not tell it.
    """
    if options.server.api != "auto" and (inputs.template is not None or not inputs.entry.needs_template):
        return options, inputs
    facts = await describe(backend, ChatTemplate.from_renderings)
    if options.server.api == "auto":
        api, sentence = await choose_api(facts, backend)
        if inputs.entry.prefers_chat and facts.is_chat:
            api, sentence = "chat", f"--method {inputs.entry.name} is for chats: --api chat"
        elif api == "chat" and inputs.entry.name == SELF_INSTRUCT and (why := _why_completions(options, facts.model)):
            api, sentence = "completions", f"{why}: --api completions"
        say(sentence)
        options = with_api(options, api)
        inputs = replace(inputs, prompts=parse_prompts(api, inputs.prompt_files))
        if api == "completions" and inputs.entry.prefers_chat:
            say(f"warning: --method {inputs.entry.name} is made for instruct models; name one with --model")
    if inputs.entry.needs_template and inputs.template is None:
        if facts.template is None:
            raise InputError(f"--method {inputs.entry.name}: {facts.reason}")
        inputs = replace(inputs, template=facts.template)
    return options, inputs


def _why_completions(options: Options, model: str) -> str:
    """Why Self-Instruct asks an instruct model through completions all the same. Empty where it does not.

    A model of 135M parameters continues a list of tasks, but hardly writes one when it is asked for it
    (``benchmarks/README.md``, "The methods").
    """
    if options.method.preset == "paper":
        return "--preset paper asks as the original did"
    return f"{EMBEDDED_MODEL} is too small for self-instruct through chat" if model == EMBEDDED_MODEL else ""


_ANY_TEMPLATE: Final = ChatTemplate("<user>", "<assistant>", "<user>", "<system>", "<user>")
_MOST_LINE: Final = 4000  # characters of a topic or persona


def load_lines(flag: str, path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, such as one topic each.

    :raises InputError: the file cannot be read, holds no line, or one that is too long for a prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{flag} {path}: is not UTF-8 text; save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if len(line) > _MOST_LINE:
            raise InputError(
                f"{flag} {path}:{number}: has more than {_MOST_LINE} characters; write one a line, in short"
            )
    found = tuple(" ".join(line.split()) for line in lines if line.strip())
    if not found:
        raise InputError(f"{flag} {path}: holds no line; write one a line")
    return found


def load_documents(paths: Iterable[Path], reject: Callable[[str], str | None]) -> tuple[str, ...]:
    """The field ``text`` of each row of JSON-lines or Parquet files, without repeated ones and those of no use.

    ``reject`` says why a text cannot be used, ``None`` if it can.

    :raises InputError: a file cannot be read or used, with file and line, or none of its texts can.
    """
    found: dict[str, None] = {}
    for path in paths:
        texts = [text for _, batch in read_texts(path, "text") for text in batch]
        reasons = [reject(text) for text in texts]
        good = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
        reason = next(filter(None, reasons), "")
        if not good:
            why = f"none of its {len(texts)} texts can be an output (the first: {reason})" if texts else "is empty"
            raise InputError(f"--documents {path}: {why}; name a file with longer texts")
        if reason:
            log.warning(
                "--documents %s: %d of %d texts are left out (%s)", path, len(texts) - len(good), len(texts), reason
            )
        found |= dict.fromkeys(good)
    return tuple(found)


def _seeds_of_dataset(path: Path) -> bytes:
    """A seed file of the instructions in a dataset, each once, with their fields ``input`` and ``output`` if any.

    :raises InputError: the file cannot be read or used, with file and line.
    """
    tasks: dict[str, dict[str, Any]] = {}
    is_table = is_parquet(path)
    for rows in open_table(path, FIELD).batches():
        data = rows.data.to_pylist() if is_table else map(orjson.loads, rows.data)
        for text, row in zip(rows.texts, data, strict=True):
            given, wanted = (value if isinstance(value := row.get(name), str) else "" for name in ("input", "output"))
            instance = {"input": given, "output": wanted.strip() or "-"}
            tasks.setdefault(text, {"id": f"row_{len(tasks)}", FIELD: text, "instances": [instance]})
    return b"".join(orjson.dumps(task | {"is_classification": False}) + b"\n" for task in tasks.values())


COMPILES_AFTER_S = 3.0  # loading compiled kernels takes half a second


@asynccontextmanager
async def planned(
    known: Awaitable[tuple[Options, Inputs]], options: Options, say: Callable[[str], None]
) -> AsyncIterator[asyncio.Future[Plan]]:
    """Make the plan of a run in the background, and load the filter's kernels, while the block runs.

    ``known`` gives the final options and inputs, at once or when a server has told what was missing. The similarity
    options are final already. The first error of the work ends the block, so that a run that cannot start does not wait
    for servers. Unfinished work is abandoned at the end of the block.

    :raises InputError: the similarity options do not fit together.
    """
    made: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()

    async def make() -> None:
        novelty = await asyncio.to_thread(_make_filter, options)
        made.set_result(await asyncio.to_thread(_make_plan, novelty, *(await known)))
        await _prepare(novelty, say)

    try:
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(make())
            yield made
            work.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _make_filter(options: Options) -> NoveltyFilter:
    from fastgen.similarity.novelty import NoveltyFilter

    novelty = NoveltyFilter(**asdict(options.similarity))
    if novelty.bands is not None:
        log.info("%s", _shown(novelty.bands))
    return novelty


def _make_plan(novelty: NoveltyFilter, options: Options, inputs: Inputs) -> Plan:
    """The plan. Too slow for the event loop."""
    return Plan(
        method_of(options, inputs),
        novelty,
        target=options.job.num_instructions,
        clock=time.time,
        forbidden=filter_of_forbidden(inputs.texts["decontaminate"], options.similarity),
        batch=options.speed.classification_batch,
    )


def method_of(options: Options, inputs: Inputs) -> Method:
    """The run's method from its options and inputs."""
    asked, texts = options.method, inputs.texts
    context = Context(texts["topics"], texts["personas"])
    structured = "off" if options.server.api == "auto" else asked.structured  # forms need an API that is known
    if inputs.entry.name == SELF_INSTRUCT:
        made = self_instruct(
            *(options.rules, inputs.seeds, inputs.prompts, options.sampling.by_step()),
            seed=asked.seed,
            num_prompt_instructions=asked.num_prompt_instructions,
            num_machine_instructions=asked.num_machine_instructions,
            demonstrations=asked.demonstrations,
            samples=asked.samples_per_prompt,
            classification_only=asked.classification_only,
            context=context,
        )
        return with_structured(made, structured)
    setup = Setup(
        api="completions" if options.server.api == "auto" else options.server.api,
        seed=asked.seed,
        seeds=inputs.seeds,
        check=lambda text: check_instruction(" ".join(text.split()), options.rules),
        options=inputs.entry.own(asked.own_options()),
        context=context,
        documents=texts["documents"],
        template=inputs.template,
        samples=asked.samples_per_prompt,
    )
    method = replace(inputs.entry.build(setup), demonstrations=asked.demonstrations)
    return with_structured(with_sampling(method, asked.step_sampling), structured)


def _shown(bands: Bands) -> str:
    return (
        f"similarity index: {bands.bands} MinHash bands of {bands.rows} rows, expected to find "
        f"{bands.recall:.4%} of all true neighbours ({bands.at_bound:.2%} at the lowest possible overlap)"
    )


async def _prepare(novelty: NoveltyFilter, say: Callable[[str], None]) -> None:
    """Load the filter's kernels while the first requests are sent. The first commits wait for them.

    The thread is a daemon, so a run that is stopped does not wait for a compiler.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def load() -> None:
        error = None
        try:
            novelty.prepare()
        except BaseException as failure:  # noqa: BLE001 - raised by the owner below
            error = failure
        with suppress(RuntimeError):  # the loop is closed: the owner has stopped waiting
            loop.call_soon_threadsafe(end, error)

    thread = Thread(target=load, name="kernels", daemon=True)
    slow = loop.call_later(
        COMPILES_AFTER_S,
        say,
        "compiling the similarity filter (once on a machine, up to a minute); the first requests are sent meanwhile",
    )
    try:
        thread.start()
        if (error := await ended) is not None:
            raise error
    finally:
        slow.cancel()


def models_of_begun(folder: RunFolder, options: Options, inputs: Inputs) -> dict[str, str] | None:
    """The models of a run that has begun, as known without a server, or ``None`` for a new run.

    :raises InputError: something else would change the configuration.
    """
    if not folder.exists():
        return None
    saved = folder.header().configuration
    models = model_names(options, saved)
    check_same_configuration(saved, _configuration(options, inputs, models), folder.path)
    return models


def check_models(folder: RunFolder, options: Options, inputs: Inputs, models: Mapping[str, str]) -> None:
    """:raises InputError: a resume with the models that the servers named would change the configuration."""
    check_same_configuration(folder.header().configuration, _configuration(options, inputs, models), folder.path)


async def resume(store: Store, plan: Plan, options: Options, say: Callable[[str], None]) -> CheckpointEnd | None:
    """Replay the log into a new plan, report where the run is, and return the end of the checkpoint that was used.

    :raises DamagedLogError: the log is damaged, apart from an unfinished last line.
    :raises DiskError: it cannot be written.
    """
    folder, header = store.folder, store.folder.header()
    checkpoint = await asyncio.to_thread(load_checkpoint, store, plan)
    folder.write_header(replace(header, options=saved_values(options)))
    if (torn := store.torn) is not None:
        say(f"{torn.path}: dropped {torn.size} bytes of an unfinished line that a crash left behind")
    if store.lost_commits:
        say(folder.loss_line(store.lost_commits))
    state = plan.state
    say(f"resuming with {state.complete} of {state.target} instructions complete, {len(state.pool)} kept")
    return checkpoint


def begin(
    store: Store, plan: Plan, options: Options, inputs: Inputs, models: Mapping[str, str], *, asked: Options
) -> None:
    """Begin a new run with the models that the servers named: write its inputs and header.

    ``asked`` are the options as the user gave them. The same command must be able to resume what they became.

    :raises DiskError: the folder cannot be written.
    """
    prompts = {name: file.content for name, file in inputs.prompt_files.items()}
    store.folder.save_inputs(inputs.seed_file, prompts, inputs.texts)
    settled = settled_values(asked, options)
    store.begin(_configuration(options, inputs, models) | settled, saved_values(options), __version__)
    plan.resume(store.replay())


def _configuration(options: Options, inputs: Inputs, models: Mapping[str, str]) -> dict[str, Any]:
    values = run_configuration(
        options, model=models["model"], contents=inputs.fingerprints(), own_models=role_models(models)
    )
    return values if inputs.template is None else values | {"chat_template": inputs.template.to_json()}
