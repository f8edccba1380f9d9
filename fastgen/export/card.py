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
from fastgen.export.options import CardOptions, ChoiceOptions, Format
from fastgen.export.rows import Feature, format_spec
from fastgen.generate.options import MethodOptions, option_values, preset_values
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
_FILES: Final = {"seed_tasks", "prompts", "decontaminate"}
_WIDTH: Final = 100


@dataclass(slots=True)
class Figures:
    """Counts of what an export writes. Words are separated by whitespace. ``instructions`` is by split."""

    instructions: Counter[str] = field(default_factory=Counter)
    seed_tasks: int = 0
    classification: int = 0
    instances: int = 0
    empty_inputs: int = 0
    instruction_words: int = 0
    input_words: int = 0
    output_words: int = 0

    def add(self, entry: Entry, split: str) -> None:
        """Count one instruction."""
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


def write_card(facts: CardFacts) -> str:
    """The content of README.md."""
    model, version = _models(facts.run.configuration), markdown(facts.run.folder.header().version)
    method = f"the method of [Self-Instruct]({_PAPER}) (Wang et al., ACL 2023)"
    sections = (
        "\n".join(["---", *_front_matter(facts), "---"]),
        f"# {markdown(_title(facts))}",
        f"Instructions with inputs and outputs, written by {model} with {method}, by fastgen {version}.",
        "## What is in it\n\n" + "\n".join(_contents(facts)),
        "## How it was made\n\n" + "\n".join(_making(facts)),
        "## Figures\n\n" + "\n".join(_figures(facts)),
        "## What to be careful about\n\n" + _CAUTION,
        "## Licence and terms\n\n" + "\n".join(_terms(facts, model)),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> Iterator[str]:
    rows = sum(facts.rows.values())
    yield f"license: {facts.options.license or 'unknown'}"
    yield f"pretty_name: {json.dumps(printable(_title(facts)), ensure_ascii=False)}"
    yield from ("tags:", "- self-instruct", "- synthetic", "- fastgen")
    yield from ("task_categories:", "- text-generation")
    yield from ("size_categories:", f"- {next((n for limit, n in _SIZES.items() if rows < limit), 'n>1T')}")
    yield from ("dataset_info:", "  features:")
    yield from _feature_lines(format_spec(facts.form, with_reasoning=facts.choice.with_reasoning).columns)
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
    return f"Self-Instruct data of {' '.join(str(facts.run.configuration['model']).split())}"


def _contents(facts: CardFacts) -> Iterator[str]:
    yield format_spec(facts.form, with_reasoning=facts.choice.with_reasoning).card_text
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
    choice, seeds = facts.choice, facts.figures.seed_tasks
    yield (
        f"{seeds:,} of the instructions are seed tasks; the others are by the model."
        if seeds
        else "The seed tasks are not in it."
    )
    if choice.max_instructions is not None:
        yield f"At most {choice.max_instructions:,} instructions were taken, drawn with seed {choice.seed}."
    if choice.min_judge_score is not None:
        yield f"Generated instances to which a judge model gave less than {choice.min_judge_score:g} were left out."
    if choice.split is not None:
        yield f"The splits are by instruction (`{choice.split}`, seed {choice.seed}): none is in two of them."
    yield ""


def _making(facts: CardFacts) -> Iterator[str]:
    configuration = facts.run.configuration
    yield from ("```", generate_command(configuration, facts.run.folder.header().options), "```")
    yield ""
    is_paper = configuration["preset"] == "paper"
    named = "the original's rules" if is_paper else "the original's rules without their defects"
    yield f"- Preset `{configuration['preset']}`: {named}; flags above say what differs from it."
    yield f"- {len(facts.run.seeds)} seed tasks, fingerprint `{str(configuration['seed_tasks'])[:16]}`."
    above = "above" if configuration["reject_at"] == "gt" else "at or above"
    yield (
        f"- An instruction is rejected when its ROUGE-L F1 with a seed or an earlier instruction is {above} "
        f"{configuration['threshold']:g} (tokens: `{configuration['tokenizer']}`, index: `{configuration['index']}`)."
    )
    yield (
        f"- {facts.ledger.seed_only_share:.1%} of the instruction prompts showed seed tasks only: those sent before "
        "the first instruction was kept."
    )
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
    stages = [name.removesuffix(".temperature") for name in configuration if name.endswith(".temperature")]
    yield "| stage | temperature | top_p | presence penalty | frequency penalty | most tokens |"
    yield "|---|---|---|---|---|---|"
    for stage in stages:
        values = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
        yield (
            f"| {stage.replace('_', ' ')} | " + " | ".join(f"{configuration[f'{stage}.{v}']:g}" for v in values) + " |"
        )


def _figures(facts: CardFacts) -> Iterator[str]:
    """The figures next to those of the original study."""
    figures, ledger = facts.figures, facts.ledger
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
    yield ""
    yield (
        f"Of the whole run: {ledger.kept + ledger.rejected.total():,} instructions written by the model, "
        f"{ledger.acceptance:.1%} of them kept, {ledger.complete:,} with at least one valid instance; "
        f"{ledger.yield_per_1000_tokens:.2f} of these per 1,000 generated tokens "
        f"({ledger.generated_tokens:,} in all). Rejected, by rule:"
    )
    yield ""
    yield from (f"- {markdown(rule.replace('_', ' '))}: {count:,}" for rule, count in ledger.rejected.most_common())
    if not ledger.rejected:
        yield "- nothing"


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
    own = {
        stage: configuration[f"{stage}_model"]
        for stage in ("classification", "instance")
        if f"{stage}_model" in configuration
    }
    others = "".join(f", with {markdown_code(str(model))} for the {stage} stage" for stage, model in own.items())
    return markdown_code(str(configuration["model"])) + others


def generate_command(configuration: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """``fastgen generate`` with every flag that differs from the preset, in lines that fit a page.

    ``FILE`` replaces names of the user's files. Of ``--extra-body`` only numbers and truth values are shown.
    """
    words = ["fastgen generate", f"--model {_quoted(str(configuration['model']))}"]
    if (count := options.get("num_instructions")) is not None:
        words.append(f"--num-instructions {count}")
    return " \\\n    ".join(_filled([*words, *_flags(configuration)]))


def _flags(configuration: Mapping[str, Any]) -> Iterator[str]:
    usual = _usual(configuration)
    for name, value in configuration.items():
        if name in _FILES or name == "model" or usual.get(name, None) == value:
            continue
        yield from _flag_words(name, _published(value) if name == "extra_body" else value)
    if configuration["seed_tasks"] != seed_fingerprint(load_seed_tasks(default_seed_path())):
        yield "--seed-tasks FILE"
    if configuration["decontaminate"]:
        yield "--decontaminate FILE"


def _usual(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What the run would have meant with its preset and API alone, by flat option name."""
    preset, api = str(configuration["preset"]), str(configuration["api"])
    values = option_values(MethodOptions()) | option_values(SimilarityOptions()) | preset_values(preset, api)
    flat = {"extra_body": "{}", "api": "completions", "thinking": "auto"}
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
