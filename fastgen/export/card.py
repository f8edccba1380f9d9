"""The data set card: what people and the hub's loader need to know about an export.

It states how the data was made, with which model, seeds, rules and sampling, its content, the rejections, and warnings.
It is meant to be published, so it contains no servers, paths, keys or generated text. It shows the command that is
equivalent to the run.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastgen.errors import flag_name
from fastgen.export.entries import Entry
from fastgen.export.method import MethodFacts, given_options, role_models, used_settings
from fastgen.export.options import CardOptions, ChoiceOptions, Format
from fastgen.export.rows import Feature, format_spec, has_more_turns
from fastgen.generate.options import MethodOptions, option_values, preset_values
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks, seed_fingerprint
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.ledger import Ledger
from fastgen.store.reader import OpenRun
from fastgen.text import markdown, markdown_code, printable

_PAPER: Final = "https://arxiv.org/abs/2212.10560"
_SIZES: Final = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
    1_000_000_000: "100M<n<1B",
}
_CAUTION: Final = """\
- **A model wrote this.** The outputs were not checked by people unless that is said above. In the original study 54 %
  of 200 sampled instances were right in every respect, with a model of 175B parameters; a small model writes more that
  is fluent and wrong.
- **Self-training amplifies.** What the generating model says often it says here more often: its topics, its English,
  its prejudices, its idea of a typical person. Frequent tasks are likelier to be written than rare ones, and the
  instructions grow from a few seed tasks, whose choice of topics is visible in what follows them.
- **The filters look at form and similarity, not at truth or harm.** No personal data was asked for, and no filter
  would have found any.
- **Benchmarks.** What was kept out of the data is said under "How it was made"; anything else may overlap."""
_CAUTION_OF_ALL: Final = """\
- **A model wrote {wrote}.** Nothing was checked by people unless that is said above. A small model writes more that is
  fluent and wrong.
- **Models repeat themselves.** What the generating model says often it says here more often: its topics, its English,
  its prejudices, its idea of a typical person.
- **The filters look at form and similarity, not at truth or harm.** No personal data was asked for, and no filter
  would have found any.
- **Benchmarks.** What was kept out of the data is said under "How it was made"; anything else may overlap."""
_TYPES: Final[Mapping[type, str]] = {bool: "bool", int: "int64", str: "string"}
_FILES: Final = ("decontaminate", "documents", "topics", "personas")
_CONTENTS: Final = {"seed_tasks", "prompts", "method_file", "chat_template", *_FILES}
"""Of these a configuration has fingerprints, or what a server told."""
_WIDTH: Final = 100


@dataclass(slots=True)
class Figures:
    """Counts of what an export writes. Words are separated by whitespace. ``instructions`` is by split.

    ``turns`` are those of all instances, ``conversations`` the instances with more than one, and ``first_turns`` those
    of which only the first is written. ``labels`` and ``drawn`` are the names that the rows have, with their types.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    seed_tasks: int = 0
    classification: int = 0
    instances: int = 0
    empty_inputs: int = 0
    instruction_words: int = 0
    input_words: int = 0
    output_words: int = 0
    turns: int = 0
    conversations: int = 0
    first_turns: int = 0
    labels: dict[str, Feature] = field(default_factory=dict)
    drawn: dict[str, Feature] = field(default_factory=dict)

    def add(self, entry: Entry, split: str, *, has_turns: bool = True) -> None:
        """Count one instruction. ``has_turns``: what is written of a conversation are all turns."""
        self.instructions[split] += 1
        self.seed_tasks += entry.finished is None
        self.classification += entry.is_classification
        self.instances += len(entry.instances)
        self.instruction_words += len(entry.instruction.split())
        for scored in entry.instances:
            words = len(scored.instance.input.split())
            self.empty_inputs += words == 0
            self.input_words += words
            self.output_words += len(scored.instance.output.split())
            is_cut = has_more_turns(entry, scored)
            self.first_turns += is_cut and not has_turns
            self.conversations += is_cut
            self.turns += len(entry.finished.turns) if entry.finished is not None and is_cut else 1
        if (finished := entry.finished) is not None:
            self.labels |= {name: _TYPES[type(value)] for name, value in finished.labels.items()}
            self.drawn |= dict.fromkeys(finished.drawn, "string")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card is about. ``files`` and ``rows`` (after all filters) are by split, in the order of the splits."""

    run: OpenRun
    ledger: Ledger
    form: Format
    files: Mapping[str, str]
    rows: Mapping[str, int]
    figures: Figures
    choice: ChoiceOptions
    options: CardOptions
    method: MethodFacts


def write_card(facts: CardFacts) -> str:
    """The content of README.md."""
    model, version = _models(facts.run.configuration), markdown(facts.run.folder.header().version)
    method = _method(facts)
    sections = (
        "\n".join(["---", *_front_matter(facts), "---"]),
        f"# {markdown(_title(facts))}",
        f"{_kind(facts)}, written by {model} with {method}, by fastgen {version}.",
        "## What is in it\n\n" + "\n".join(_contents(facts)),
        "## How it was made\n\n" + "\n".join(_making(facts)),
        "## Figures\n\n" + "\n".join(_figures(facts)),
        "## What to be careful about\n\n" + (_CAUTION if facts.run.is_self_instruct else _caution(facts)),
        "## Licence and terms\n\n" + "\n".join(_terms(facts, model)),
    )
    return "\n\n".join(sections) + "\n"


def _method(facts: CardFacts) -> str:
    entry = facts.method.entry
    if facts.run.is_self_instruct:
        return f"the method of [Self-Instruct]({_PAPER}) (Wang et al., ACL 2023)"
    name = markdown_code(" ".join(facts.run.method.split()))
    if entry is None:
        fingerprint = str(facts.run.configuration.get("method_file", ""))[:16]
        return f"a method of the user's, {name} (fingerprint `{fingerprint}`)"
    return f"the method {name} ({_linked(entry.source)})"


def _linked(source: str) -> str:
    """A source with its arXiv number as a link."""
    before, mark, number = source.partition("arXiv ")
    return f"{markdown(before)} [arXiv:{number}](https://arxiv.org/abs/{number})" if mark else markdown(source)


def _kind(facts: CardFacts) -> str:
    """What the rows are, at the beginning of a sentence."""
    if facts.run.documents:
        return "Documents with instructions that they answer, the instructions"
    if facts.figures.conversations:
        return "Conversations"
    return "Instructions with inputs and outputs" if facts.run.is_self_instruct else "Instructions with answers"


def _columns(facts: CardFacts) -> dict[str, Feature]:
    """The columns, with those parts of the provenance of `raw` that depend on the method."""
    columns = dict(format_spec(facts.form, facts.run, with_reasoning=facts.choice.with_reasoning).columns)
    provenance = columns.get("provenance")
    if isinstance(provenance, dict) and not facts.run.is_self_instruct:
        roles: dict[str, Feature] = {f"{role}_model": "string" for role in role_models(facts.run.configuration)}
        parts = {"labels": facts.figures.labels, "drawn": facts.figures.drawn}
        columns["provenance"] = {**provenance, **roles, **{name: part for name, part in parts.items() if part}}
    return columns


def _method_lines(facts: CardFacts) -> Iterator[str]:
    """What the method does, with the options that decide it."""
    entry, configuration = facts.method.entry, facts.run.configuration
    if entry is None:
        yield "- The method is the user's own. Its file is not part of this card."
    else:
        yield f"- Method `{entry.name}`: {markdown(entry.summary)}. Source: {_linked(entry.source)}."
        given = given_options(configuration)
        shown = {name: given.get(name, value) for name, value in entry.options.items()}
        if shown:
            listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
            yield f"- Its options: {markdown(listed)}."
    counts = {name: len(facts.run.folder.texts(name)) for name in ("documents", "topics", "personas")}
    if listed := ", ".join(f"{n:,} {name if n > 1 else name[:-1]}" for name, n in counts.items() if n):
        yield f"- Given: {listed}."


def _step_sampling(facts: CardFacts) -> Iterator[str]:
    """The steps of another method than Self-Instruct: how they sampled, and their models."""
    if not facts.method.steps:
        yield "How its steps sampled is known to the file of the method only."
        return
    yield "| step | model | temperature | top_p | most tokens |"
    yield "|---|---|---|---|---|"
    for step in facts.method.steps:
        one = step.sampling
        name = markdown(step.name.replace("_", " "))
        yield f"| {name} | {markdown_code(step.model)} | {one.temperature:g} | {one.top_p:g} | {one.max_tokens} |"


def _caution(facts: CardFacts) -> str:
    """The warnings, without what is known of Self-Instruct only."""
    wrote = "the instructions. The outputs are the documents that it was given" if facts.run.documents else "this"
    return _CAUTION_OF_ALL.format(wrote=wrote)


def _front_matter(facts: CardFacts) -> Iterator[str]:
    rows = sum(facts.rows.values())
    yield f"license: {facts.options.license or 'unknown'}"
    yield f"pretty_name: {json.dumps(printable(_title(facts)), ensure_ascii=False)}"
    tag = facts.run.method if facts.run.is_self_instruct or facts.method.entry is not None else "own-method"
    yield from ("tags:", f"- {tag}", "- synthetic", "- fastgen")
    yield from ("task_categories:", "- text-generation")
    yield from ("size_categories:", f"- {next((n for limit, n in _SIZES.items() if rows < limit), 'n>1T')}")
    yield from ("dataset_info:", "  features:")
    yield from _feature_lines(_columns(facts))
    yield from ("configs:", "- config_name: default", "  data_files:")
    for split, name in facts.files.items():
        yield from (f"  - split: {split}", f"    path: {name}")


def _feature_lines(fields: Mapping[str, Feature], indent: str = "  ") -> Iterator[str]:
    """The columns as YAML."""
    for name, feature in fields.items():
        yield f"{indent}- name: {name}"
        inner = indent + "  "
        match feature:
            case str():
                yield f"{inner}dtype: {feature}"
            case dict():
                yield f"{inner}struct:"
                yield from _feature_lines(feature, inner)
            case [str(kind)]:
                yield f"{inner}list: {kind}"
            case [dict() as parts]:
                yield f"{inner}list:"
                yield from _feature_lines(parts, inner)
            case _:
                raise ValueError(f"no YAML for {feature!r}")


def _title(facts: CardFacts) -> str:
    if facts.options.push_to_hub:
        return facts.options.push_to_hub.rpartition("/")[2]
    name = "Self-Instruct" if facts.run.is_self_instruct else " ".join(facts.run.method.split())
    return f"{name} data of {' '.join(str(facts.run.configuration['model']).split())}"


def _contents(facts: CardFacts) -> Iterator[str]:
    yield format_spec(facts.form, facts.run, with_reasoning=facts.choice.with_reasoning).card_text
    yield ""
    yield "| split | file | rows | instructions |"
    yield "|---|---|---|---|"
    for split, name in facts.files.items():
        yield f"| {split} | {name} | {facts.rows[split]:,} | {facts.figures.instructions[split]:,} |"
    yield ""
    yield from _choices(facts)
    place = facts.options.push_to_hub or "."
    call = markdown_code(f'datasets.load_dataset("{place}")')
    yield f"{call} reads it."


def _choices(facts: CardFacts) -> Iterator[str]:
    choice, figures, seeds = facts.choice, facts.figures, facts.figures.seed_tasks
    yield (
        f"{seeds:,} of the instructions are seed tasks; the others are by the model."
        if seeds
        else "The seed tasks are not in it."
        if facts.run.seeds
        else "All of the instructions are by the model."
    )
    if figures.first_turns:
        yield f"{figures.first_turns:,} rows are the first turn of a conversation that had more."
    if choice.max_instructions is not None:
        yield f"At most {choice.max_instructions:,} instructions were taken, drawn with seed {choice.seed}."
    if choice.min_judge_score is not None:
        yield f"Generated instances to which a judge model gave less than {choice.min_judge_score:g} were left out."
    if choice.split is not None:
        yield f"The splits are by instruction (`{choice.split}`, seed {choice.seed}): none is in two of them."
    yield ""


def _making(facts: CardFacts) -> Iterator[str]:
    configuration = facts.run.configuration
    yield from ("```", generate_command(facts.run), "```")
    yield ""
    is_paper = configuration["preset"] == "paper"
    named = "the original's rules" if is_paper else "the original's rules without their defects"
    if facts.run.is_self_instruct:
        yield f"- Preset `{configuration['preset']}`: {named}; flags above say what differs from it."
    else:
        yield from _method_lines(facts)
    if facts.run.seeds or facts.run.is_self_instruct:
        yield f"- {len(facts.run.seeds)} seed tasks, fingerprint `{str(configuration['seed_tasks'])[:16]}`."
    above = "above" if configuration["reject_at"] == "gt" else "at or above"
    earlier = "a seed or an earlier instruction" if facts.run.seeds else "an earlier instruction"
    yield (
        f"- An instruction is rejected when its ROUGE-L F1 with {earlier} is {above} "
        f"{configuration['threshold']:g} (tokens: `{configuration['tokenizer']}`, index: `{configuration['index']}`)."
    )
    if facts.ledger.seed_only or facts.run.is_self_instruct:
        share = f"{facts.ledger.seed_only_share:.1%}"
        showed = "showed seed tasks only: those sent before the first instruction was kept"
        if facts.method.has_parents:
            showed = "showed a seed task, the others an instruction that was made before"
        yield f"- {share} of the instruction prompts {showed}."
    yield f"- {_decontamination(facts)}"
    yield f"- Run `{facts.run.folder.header().run_id[:12]}`, random seed {configuration['seed']}."
    yield from ("", *_sampling(facts))


def _decontamination(facts: CardFacts) -> str:
    count = len(facts.run.folder.texts("decontaminate"))
    if count:
        return f"Instructions that resemble one of {count:,} texts of evaluation tasks were rejected too."
    return "No evaluation tasks were excluded."


def _sampling(facts: CardFacts) -> Iterator[str]:
    configuration = facts.run.configuration
    if not facts.run.is_self_instruct:
        yield from _step_sampling(facts)
        return
    stages = [name.removesuffix(".temperature") for name in configuration if name.endswith(".temperature")]
    yield "| stage | temperature | top_p | presence penalty | frequency penalty | most tokens |"
    yield "|---|---|---|---|---|---|"
    for stage in stages:
        values = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
        yield (
            f"| {stage.replace('_', ' ')} | " + " | ".join(f"{configuration[f'{stage}.{v}']:g}" for v in values) + " |"
        )


def _figures(facts: CardFacts) -> Iterator[str]:
    """The figures, of Self-Instruct next to those of the original study."""
    figures, ledger = facts.figures, facts.ledger
    if facts.run.is_self_instruct:
        yield from _beside_the_paper(figures)
    else:
        yield from _own_figures(figures, facts.run)
    yield ""
    answered = "with at least one valid instance" if facts.run.is_self_instruct else "complete"
    yield (
        f"Of the whole run: {ledger.kept + ledger.rejected.total():,} instructions written by the model, "
        f"{ledger.acceptance:.1%} of them kept, {ledger.complete:,} {answered}; "
        f"{ledger.yield_per_1000_tokens:.2f} of these per 1,000 generated tokens "
        f"({ledger.generated_tokens:,} in all). Rejected, by rule:"
    )
    yield ""
    yield from (f"- {markdown(rule.replace('_', ' '))}: {count:,}" for rule, count in ledger.rejected.most_common())
    if not ledger.rejected:
        yield "- nothing"
    if not facts.run.is_self_instruct and ledger.rejected_instances:
        yield from ("", "Of the kept instructions, or of their answers, later steps rejected, by rule:", "")
        rejected = ledger.rejected_instances.most_common()
        yield from (f"- {markdown(rule.replace('_', ' '))}: {count:,}" for rule, count in rejected)


def _own_figures(figures: Figures, run: OpenRun) -> Iterator[str]:
    instructions, instances = figures.instructions.total(), figures.instances
    with_input = instances - figures.empty_inputs
    yield "| of this data | |"
    yield "|---|---|"
    yield f"| instructions | {instructions:,} |"
    if instances != instructions:
        yield f"| answers | {instances:,} |"
    if figures.conversations:
        yield f"| conversations of several turns | {figures.conversations:,} |"
        yield f"| mean turns | {_ratio(figures.turns, instances):.2f} |"
    yield f"| mean words of an instruction | {_ratio(figures.instruction_words, instructions):.1f} |"
    if with_input:
        yield f"| instructions with an input | {_ratio(with_input, instances):.1%} |"
        yield f"| mean words of such an input | {_ratio(figures.input_words, with_input):.1f} |"
    what = "a document" if run.documents else "a first answer" if figures.conversations else "an answer"
    yield f"| mean words of {what} | {_ratio(figures.output_words, instances):.1f} |"


def _beside_the_paper(figures: Figures) -> Iterator[str]:
    instructions, instances = figures.instructions.total(), figures.instances
    with_input = instances - figures.empty_inputs
    yield f"| of this data | here | [the original]({_PAPER}) |"
    yield "|---|---|---|"
    yield f"| instructions | {instructions:,} | 52,445 |"
    yield f"| instances | {instances:,} | 82,439 |"
    yield f"| instances an instruction | {_ratio(instances, instructions):.2f} | 1.57 |"
    yield f"| classification tasks | {_ratio(figures.classification, instructions):.1%} | 22.1% |"
    yield f"| instances with an empty input | {_ratio(figures.empty_inputs, instances):.1%} | 43.5% |"
    yield f"| mean words of an instruction | {_ratio(figures.instruction_words, instructions):.1f} | 15.9 |"
    yield f"| mean words of an input that is not empty | {_ratio(figures.input_words, with_input):.1f} | 12.7 |"
    yield f"| mean words of an output | {_ratio(figures.output_words, instances):.1f} | 18.9 |"


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _terms(facts: CardFacts, model: str) -> Iterator[str]:
    licence = facts.options.license
    yield f"Licence: {licence}." if licence else "Licence: unknown; the publisher must state one."
    yield ""
    yield printable(facts.options.model_terms or "", lines=True) or (
        f"The text is the output of {model}. Check the terms of each model named: some restrict what its output may "
        "be used for, such as training other models. This card does not state them."
    )


def _models(configuration: Mapping[str, Any]) -> str:
    """The models by stage. A stage uses the run's model unless the run's configuration names another one."""
    own, noun = role_models(configuration), "stage"
    if configuration.get("method", SELF_INSTRUCT) == SELF_INSTRUCT:
        own = {stage: own[stage] for stage in ("instruction", "classification", "instance") if stage in own}
    else:
        noun = "role"
    others = "".join(f", with {markdown_code(model)} for the {markdown(stage)} {noun}" for stage, model in own.items())
    return markdown_code(str(configuration["model"])) + others


def generate_command(run: OpenRun) -> str:
    """``fastgen generate`` with every flag that differs from the preset, in lines that fit a page.

    ``FILE`` replaces names of the user's files. Of ``--extra-body`` only numbers and truth values are shown.
    """
    configuration, options = run.configuration, run.folder.header().options
    words = ["fastgen generate", f"--model {_quoted(str(configuration['model']))}"]
    if (count := options.get("num_instructions")) is not None:
        words.append(f"--num-instructions {count}")
    return " \\\n    ".join(_filled([*words, *_flags(run)]))


def _flags(run: OpenRun) -> Iterator[str]:
    configuration = run.configuration
    usual = _usual(configuration)
    roles = (
        {} if run.is_self_instruct else {f"{r}_model": f"{r}=URL,{m}" for r, m in role_models(configuration).items()}
    )
    for name, value in used_settings(run).items():
        if name in _CONTENTS or name in roles or name == "model" or usual.get(name, None) == value:
            continue
        if name == "method" and str(run.folder.header().options.get(name, "")).endswith(".py"):
            yield f"--method {_quoted(f'{value}.py')}"  # without the folder that it was in
        else:
            yield from _flag_words(name, _published(value) if name == "extra_body" else value)
    yield from (f"--role {_quoted(role)}" for role in roles.values())
    has_seeds = run.seeds or run.is_self_instruct
    if has_seeds and configuration["seed_tasks"] != seed_fingerprint(load_seed_tasks(default_seed_path())):
        yield "--seed-tasks FILE"
    yield from (f"{flag_name(name)} FILE" for name in _FILES if configuration.get(name))


def _usual(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What the run would have meant with its preset and API alone, by flat option name."""
    preset, api = str(configuration["preset"]), str(configuration["api"])
    method = str(configuration.get("method", SELF_INSTRUCT))
    values = option_values(MethodOptions()) | option_values(SimilarityOptions()) | preset_values(preset, api, method)
    flat = {"extra_body": "{}", "api": "completions", "thinking": "auto", "model_preset": "auto"}
    for name, value in values.items():
        flat |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _flag_words(name: str, value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    stem = ".".join(part.replace("_", "-") for part in name.split("."))
    if isinstance(value, bool):
        yield flag_name(stem) if value else flag_name(f"no-{stem}")
    elif isinstance(value, list):
        yield from (f"{flag_name(stem)} {_quoted(str(item))}" for item in value)
    elif value is not None:
        yield f"{flag_name(stem)} {_quoted(str(value))}"


def _quoted(text: str) -> str:
    """As one word of a shell on one line, so that no value can end the card's block."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    """Within bash's quotes for control characters."""
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _published(extra_body: str) -> str:
    fields = json.loads(extra_body)
    return json.dumps({name: value if isinstance(value, bool | int | float) else "…" for name, value in fields.items()})


def _filled(words: list[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) > _WIDTH:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    yield line
