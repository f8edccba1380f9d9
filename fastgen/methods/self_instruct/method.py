"""Self-Instruct as a declaration: its three steps and what they do with the rules, prompts and seeds of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from fastgen.methods.base import (
    Answered,
    Ask,
    Context,
    Creation,
    Draw,
    Drawn,
    Item,
    Method,
    Pool,
    Prompt,
    Step,
    StepOutcome,
    Subject,
)
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.structured import Form
from fastgen.types import Sampling

if TYPE_CHECKING:
    from fastgen.methods.demonstrations import Policy
    from fastgen.methods.self_instruct.prompts import PromptSet
    from fastgen.methods.self_instruct.rules import Rules
    from fastgen.types import Completion, Request, SeedTask

_NO_INPUT: Final = 'An example of a task that needs no input has an empty "input".'
_TASKS: Final = Form("tasks", ("task",), most=8)
_INPUT_FIRST_FORM: Final = Form("examples", ("input", "output"), most=5, note=_NO_INPUT)
_OUTPUT_FIRST_FORM: Final = Form("examples", ("class_label", "input"), most=5, note=_NO_INPUT)
INPUT_FIRST: Final = "instance_input_first"
OUTPUT_FIRST: Final = "instance_output_first"
"""What `self_instruct` calls the two ways of asking for instances."""
_UNUSED = Sampling(0.0, 1.0, 1)  # where nothing is asked, as in a refilter


def self_instruct(
    rules: Rules,
    seeds: Sequence[SeedTask],
    prompts: PromptSet,
    sampling: Mapping[str, Sampling],
    *,
    seed: int = 0,
    num_prompt_instructions: int = 8,
    num_machine_instructions: int = 2,
    demonstrations: Policy = "uniform",
    samples: int = 1,
    classification_only: bool = False,
    context: Context | None = None,
) -> Method:
    """Self-Instruct (Wang et al., ACL 2023) with these rules, seeds and prompts.

    ``sampling`` is by step, for instances by kind of task (`SamplingOptions.by_step`). It may be empty where nothing is
    asked. A prompt shows ``num_prompt_instructions``, of which ``num_machine_instructions`` are machine-generated once
    there are any. ``classification_only`` asks for classification tasks only, with classification seeds.
    """
    given = context or Context()
    sampling = {step: prompts.with_own_stops(figures) for step, figures in sampling.items()}
    has_forms = prompts.api == "chat" and rules.list_style != "paper"

    def prompt_of(pool: Pool, shown: Sequence[int], drawn: Drawn) -> Prompt:
        texts = [pool.text(index) for index in shown]
        return instruction.build_prompt(texts, prompts, classification_only=classification_only, drawn=drawn)

    def ask_for_instructions(draw: Draw) -> Ask:
        shown = draw.demonstrations(num_prompt_instructions, num_machine_instructions)
        drawn = given.draw(draw)
        return Ask(prompt_of(draw.pool, shown, drawn), shown, drawn)

    def ask_to_classify(subject: Subject) -> Ask:
        return Ask(classification.build_prompt(subject.text, prompts))

    def ask_for_instances(subject: Subject) -> Ask:
        is_classification = subject.label is True
        prompt = instance.build_prompt(subject.text, is_classification, prompts)
        return Ask(prompt, sampling=sampling[OUTPUT_FIRST if is_classification else INPUT_FIRST])

    def form_of_instances(subject: Subject) -> Form:
        return _OUTPUT_FIRST_FORM if subject.label is True else _INPUT_FIRST_FORM

    def read_instructions(completion: Completion, request: Request) -> Sequence[Item]:
        return instruction.parse(completion, rules, first_number=request.first_number)

    def read_class(completion: Completion, _: Subject) -> StepOutcome:
        return classification.parse(completion, rules)

    def read_instances(completion: Completion, subject: Subject) -> StepOutcome:
        parsed = instance.parse(completion, subject.label is True, rules, subject.text)
        return Answered(tuple((one.input, one.output) for one in parsed.instances), parsed.rules)

    return Method(
        name="self-instruct",
        creation=Creation(
            sampling=sampling.get("instruction", _UNUSED),
            ask=ask_for_instructions,
            read=read_instructions,
            shrink=prompt_of,
            samples=samples,
            shows_pool=num_machine_instructions > 0,
            expected=6.0,
            tokens_flag="--instruction.max-tokens",
            form=_TASKS if has_forms else None,
        ),
        steps=(
            Step(
                name="classification",
                sampling=sampling.get("classification", _UNUSED),
                ask=ask_to_classify,
                read=read_class,
                is_batched=prompts.api == "completions",
                tokens_flag="--classification.max-tokens",
            ),
            Step(
                name="instance",
                sampling=sampling.get(INPUT_FIRST, _UNUSED),
                ask=ask_for_instances,
                read=read_instances,
                is_answer=True,
                tokens_flag="--instance-input-first.max-tokens and --instance-output-first.max-tokens",
                form=form_of_instances if has_forms else None,
            ),
        ),
        seeds=seeds,
        check=partial(check_instruction, rules=rules),
        item_text=partial(instruction.item_text, rules=rules),
        seed=seed,
        demonstrations=demonstrations,
        shown_seeds=[i for i, s in enumerate(seeds) if s.is_classification or not classification_only],
    )
