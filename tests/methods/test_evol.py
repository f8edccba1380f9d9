"""Evol-Instruct: what is asked, which parent is drawn, and what is made of ugly answers."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.methods.base import Answered, Context, Draw, Labelled, Rejected, Setup, Subject
from fastgen.methods.catalogue import METHODS
from fastgen.methods.evol import (
    OPERATIONS,
    THRESHOLD,
    build,
    compare_prompt,
    evolve_prompt,
    has_only_stop_words,
    is_refusal,
    read_answer,
    read_comparison,
    read_task,
)
from fastgen.similarity.rouge import rouge_l_f1, tokenise
from fastgen.types import Completion, Instance, Message, Request, SeedTask

SEEDS = tuple(
    SeedTask(f"seed_{n}", f"seed {n}", f"Explain fact {n}.", (Instance("a text" if n == 1 else "", "out"),), False)
    for n in range(5)
)
TASK = "Write a poem about rain in a desert, in four lines that do not rhyme."


class FakePool:
    """Seeds, then kept instructions whose depths are given."""

    def __init__(self, depths: tuple[int, ...] = ()) -> None:
        self.seeds = len(SEEDS)
        self.kept = len(depths)
        self._depths = (0,) * self.seeds + depths

    def text(self, index: int) -> str:
        return SEEDS[index].instruction if index < self.seeds else f"Kept task {index}."

    def depth(self, index: int) -> int:
        return self._depths[index]


def draw(number: int, pool: FakePool, run_seed: int = 0) -> Draw:
    def demonstrations(count: int, machine: int) -> tuple[int, ...]:
        assert (count, machine) == (1, 0)
        return (random.Random(f"{run_seed}/{number}").randrange(pool.seeds),)

    return Draw(number, run_seed, pool, demonstrations)


def user_text(prompt: str | tuple[Message, ...]) -> str:
    if isinstance(prompt, str):
        return prompt
    (message,) = prompt
    assert message.role == "user"
    return message.content


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_prompt_begins_with_fixed_text_and_ends_with_the_parent(operation: str, chat: bool) -> None:
    one, other = (user_text(evolve_prompt(operation, task, {}, chat=chat)) for task in ("Alpha {x}", "Beta"))
    end = "" if chat else "\nNew task:"
    assert one.endswith(f"Alpha {{x}}{end}")
    assert other.endswith(f"Beta{end}")
    assert one.removesuffix(f"Alpha {{x}}{end}") == other.removesuffix(f"Beta{end}")
    assert "{" not in one.removesuffix(f"Alpha {{x}}{end}") or operation == "complicate_input"


@pytest.mark.parametrize("chat", [True, False])
def test_every_operation_has_a_beginning_of_its_own(chat: bool) -> None:
    prompts = [user_text(evolve_prompt(operation, "x", {}, chat=chat)) for operation in OPERATIONS]
    assert len({*prompts}) == len(OPERATIONS) == 6


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_examples_of_a_completion_prompt_are_good_new_tasks_themselves(operation: str) -> None:
    pieces = OPERATIONS[operation].examples.split("\n\nTask: ")[1:]
    assert len(pieces) == 2
    for piece in pieces:
        old, new = piece.strip().split("\nNew task: ")
        item = read_task(Completion(new, "stop"), chat=False)
        assert item is not None
        assert (item.text, item.rule) == (new, None)
        assert rouge_l_f1(tokenise(old), tokenise(new)) < THRESHOLD


@pytest.mark.parametrize("chat", [True, False])
def test_topic_and_persona_follow_the_fixed_text(chat: bool) -> None:
    with_both = user_text(evolve_prompt("deepen", TASK, {"topic": "bees", "persona": "a\nbeekeeper"}, chat=chat))
    without = user_text(evolve_prompt("deepen", TASK, {}, chat=chat))
    fixed = without[: without.index(TASK)].removesuffix("Task:\n\n").removesuffix("Task: ")
    assert with_both.startswith(fixed)
    assert "bees" in with_both
    assert "a beekeeper" in with_both


def test_marks_of_chat_templates_in_a_parent_are_broken() -> None:
    assert "<|im_end|>" not in user_text(evolve_prompt("deepen", "Say <|im_end|>", {}, chat=True))
    assert "<|im_end|>" not in user_text(compare_prompt("Say <|im_end|>", "b", chat=True))


@pytest.mark.parametrize("chat", [True, False])
def test_a_comparison_shows_the_parent_and_then_the_new_task(chat: bool) -> None:
    first, second = (user_text(compare_prompt(parent, "New {y}", chat=chat)) for parent in ("Old {x}", "Other"))
    assert first.index("Old {x}") < first.index("New {y}")
    assert first[: first.index("Old {x}")] == second[: first.index("Old {x}")]
    assert chat or first.endswith("\nVerdict:")


# -- the declaration ---------------------------------------------------------------------------------------------------


def test_the_method_has_three_steps_and_batches_short_completions_only() -> None:
    chat, completions = (build(Setup(api=api, seeds=SEEDS)) for api in ("chat", "completions"))
    assert chat.step_names == completions.step_names == ("instruction", "compare", "answer")
    assert [step.is_batched for step in chat.steps] == [False, False]
    assert [step.is_batched for step in completions.steps] == [True, False]
    assert chat.creation.shows_pool
    assert not build(Setup(api="chat", seeds=SEEDS, options={"rounds": 1})).creation.shows_pool


def test_sampling_is_the_papers_and_completion_prompts_have_stops() -> None:
    method = build(Setup(seeds=SEEDS))
    assert (method.creation.sampling.temperature, method.creation.sampling.top_p) == (1.0, 0.9)
    assert method.steps[1].sampling.stop == ("\nTask:",)
    assert build(Setup(api="chat", seeds=SEEDS)).steps[1].sampling.stop == ()


@pytest.mark.parametrize("rounds", ["0", 17, "four", -1, 2.5, None, True, "9" * 5000, "٤"])
def test_rounds_outside_its_range_are_refused(rounds: object) -> None:
    with pytest.raises(InputError, match="1 to 16"):
        build(Setup(seeds=SEEDS, options={"rounds": rounds}))


def test_a_run_without_seeds_is_refused() -> None:
    with pytest.raises(InputError, match="--from"):
        build(Setup())


def test_a_request_records_its_parent_operation_round_and_context() -> None:
    context = Context(topics=["bees"], personas=["a baker"])
    method = build(Setup(api="chat", seeds=SEEDS, context=context, options={"rounds": "3"}))
    pool = FakePool((2,) * 50)
    ask = method.creation.ask(draw(1, pool))
    assert ask is not None
    (parent,) = ask.demonstrations
    assert ask.drawn is not None
    assert {*ask.drawn} == {"operation", "round", "topic", "persona"}
    assert ask.drawn["operation"] in OPERATIONS
    assert ask.drawn["round"] == str(pool.depth(parent) + 1)
    assert pool.text(parent) in user_text(ask.prompt)


def test_draws_are_keyed_by_seed_and_number() -> None:
    ask, pool = build(Setup(seeds=SEEDS)).creation.ask, FakePool((1, 2, 3, 4))
    assert [ask(draw(n, pool)) for n in range(50)] == [ask(draw(n, pool)) for n in range(50)]
    assert [ask(draw(n, pool)) for n in range(50)] != [ask(draw(n, pool, run_seed=1)) for n in range(50)]


def drawn(pool: FakePool, rounds: int, count: int) -> tuple[Counter[int], Counter[str]]:
    ask = build(Setup(seeds=SEEDS, options={"rounds": rounds})).creation.ask
    made = [one for one in (ask(draw(n, pool)) for n in range(count)) if one is not None and one.drawn is not None]
    assert len(made) == count
    return Counter(one.demonstrations[0] for one in made), Counter((one.drawn or {})["operation"] for one in made)


def test_parents_and_operations_are_drawn_uniformly_among_those_that_may_be() -> None:
    parents, operations = drawn(FakePool((1, 2, 3, 4, 4, 4, 2)), 4, 3000)
    assert {*parents} == {0, 1, 2, 3, 4, 5, 6, 7, 11}  # not 8, 9, 10: rewritten four times already
    assert max(parents.values()) < 1.4 * min(parents.values())
    assert {*operations} == {*OPERATIONS}
    assert max(operations.values()) < 1.3 * min(operations.values())


def test_seeds_are_drawn_where_nothing_else_may_be() -> None:
    assert {*drawn(FakePool((1,) * 400), 1, 300)[0]} == {*range(len(SEEDS))}
    assert {*drawn(FakePool(), 4, 300)[0]} == {*range(len(SEEDS))}


def test_the_input_of_a_seed_belongs_to_it() -> None:
    method = build(Setup(api="chat", seeds=SEEDS))
    asked = [one for one in (method.creation.ask(draw(n, FakePool())) for n in range(40)) if one is not None]
    shown = {user_text(one.prompt)[-60:] for one in asked if one.demonstrations == (1,)}
    assert {text.endswith("Explain fact 1.\n\na text") for text in shown} == {True}
    compare = method.steps[0].ask(Subject(0, TASK, sources=(1,), source_text="Explain fact 1."))
    assert "First task:\n\nExplain fact 1.\n\na text\n\nSecond task:" in user_text(compare.prompt)


def test_a_comparison_with_a_kept_parent_shows_the_text_of_the_source() -> None:
    ask = build(Setup(seeds=SEEDS)).steps[0].ask(Subject(3, TASK, sources=(7,), source_text="Write about rain."))
    assert user_text(ask.prompt).endswith(f"First task: Write about rain.\nSecond task: {TASK}\nVerdict:")


def test_the_answer_is_asked_as_a_turn_or_below_the_task() -> None:
    chat, completions = (build(Setup(api=api, seeds=SEEDS)).steps[1] for api in ("chat", "completions"))
    assert chat.ask(Subject(0, TASK)).prompt == (Message("user", TASK),)
    assert user_text(completions.ask(Subject(0, TASK)).prompt).endswith(f"Task:\n{TASK}\n\nResponse:\n")


def test_a_completion_has_one_item_or_none() -> None:
    creation = build(Setup(api="chat", seeds=SEEDS)).creation
    request = Request(0, "evolve", "", creation.sampling)
    (item,) = creation.read(Completion("Sort:\n\n3 1 2", "stop"), request)
    assert (item.text, item.rule) == ("Sort:\n\n3 1 2", None)
    assert creation.read(Completion("\n ", "stop"), request) == ()


@pytest.mark.parametrize(("words", "above"), [(18, True), (40, True), (60, True), (80, False)])
def test_the_threshold_lets_rewritings_pass_that_keep_their_parent(words: int, above: bool) -> None:
    """Fifteen words more than the parent: the run's 0.7 rejects that from 18 words on."""
    parent = [f"w{n}" for n in range(words)]
    score = rouge_l_f1(parent, parent + [f"x{n}" for n in range(15)])
    assert score > 0.7
    assert (score <= THRESHOLD) is above
    assert METHODS["evol"].rules["threshold"] == THRESHOLD


# -- reading the new task ----------------------------------------------------------------------------------------------

CODE = "Fix this function:\n\n```python\ndef f(x):\n    return x +\n```"
CHAT = [
    (TASK, "stop", TASK),
    (f"\n\n  {TASK}\n", None, TASK),
    (f"Here is the rewritten prompt:\n\n{TASK}", "stop", TASK),
    (f"Here's a harder version of the task: {TASK}", "stop", TASK),
    (f"Sure! Here is the more complex version:\n{TASK}\n\nLet me know if you need another one.", "stop", TASK),
    (f"Certainly! {TASK}", "stop", TASK),
    (f"Sure, I can help with that!\n\n{TASK}", "stop", TASK),
    (f"#New Prompt#:\n{TASK}", "stop", TASK),
    (f"#Rewritten Prompt#: {TASK}", "stop", TASK),
    (f"**Rewritten:** {TASK}", "stop", TASK),
    (f"**Rewritten task**: **{TASK}**", "stop", TASK),
    (f"### Harder Version\n\n{TASK}", "stop", TASK),
    (f"#Given Prompt#:\nWrite a poem.\n\n#Rewritten Prompt#:\n{TASK}", "stop", TASK),
    (f"Task: {TASK}", "stop", TASK),
    (f"I would add a place and a form.\n\nNew task: {TASK}", "stop", TASK),
    (f'"{TASK}"', "stop", TASK),
    (f"“{TASK}”", "stop", TASK),
    (f'New task: "{TASK}"', "stop", TASK),
    (f"```\n{TASK}\n```", "stop", TASK),
    (f"Here is the rewritten task:\n\n```text\n{TASK}\n```", "stop", TASK),
    (f"<think>\nA harder one ...\n</think>\n\n{TASK}", "stop", TASK),
    (f"{TASK}<|im_end|>\n<|im_start|>user", "length", TASK),
    (f"{TASK}\n\n---\n\n**Answer:**\nSand drinks.", "stop", TASK),
    (f"{TASK}\n\nResponse: Sand drinks.", "length", TASK),
    (f"{TASK}\n\nExplanation: I named a place.", "stop", TASK),
    (f"{TASK}\n\nI'm going to explain the answer.\n\n- The sea is deep.", "stop", TASK),
    (f"{TASK}\n\nTo solve this, count the ships.", "stop", TASK),
    (f"{TASK}\n\nThe answer is 18.", "stop", TASK),
    (f"{TASK}\n\nThe answer has 20 words.", "stop", f"{TASK}\n\nThe answer has 20 words."),
    (f"{TASK}\n\nThis rewritten task asks for more.", "stop", TASK),
    (f"{TASK}\n\n(I added two constraints on the form.)", "stop", TASK),
    (f"{TASK}\n\n***", "stop", TASK),
    (f"<task>\n{TASK}\n</task>", "stop", TASK),
    (f"改写后的任务：{TASK}", "stop", TASK),
    ("新しいタスク：\n雨について四行詩を書いてください。", "stop", "雨について四行詩を書いてください。"),
    (f"Überarbeitete Aufgabe: {TASK}", "stop", TASK),
    (CODE, "stop", CODE),
    ('"Foo" and "bar"', "stop", '"Foo" and "bar"'),
    ("'Explain why it's raining.'", "stop", "Explain why it's raining."),
    ('"Explain "irony" to a child."', "stop", 'Explain "irony" to a child.'),
    ("I have a table: sort it by price.", "stop", "I have a table: sort it by price."),
    ("Solve it.\n\nQ: 1 + 1\n\nAnswer:", "stop", "Solve it.\n\nQ: 1 + 1\n\nAnswer:"),
    (
        "Translate:\n\nInput: Hund\nOutput: dog\nInput: Katze",
        "stop",
        "Translate:\n\nInput: Hund\nOutput: dog\nInput: Katze",
    ),
    ("New laws were passed in 1848. Name two.", "stop", "New laws were passed in 1848. Name two."),
    ("Here is a list: 3, 1, 2. Sort it.", "stop", "Here is a list: 3, 1, 2. Sort it."),
    (f"The harder version of your task is: {TASK}", "stop", TASK),
    (f"Sure thing! Here you go:\n{TASK}", "stop", TASK),
    (f"Sure! Here's the rewritten task:\n\n**Task:** {TASK}", "stop", TASK),
    (f"# Task\n{TASK}", "stop", TASK),
    (f"Here's a harder one:\n\n> {TASK}", "stop", TASK),
    (f"1. {TASK}", "stop", TASK),
    (f'"{TASK[:-1]}".', "stop", TASK[:-1]),
    (f"{TASK} (12 words added)", "stop", TASK),
    (f"{TASK}\n\n*(Note: I kept it within 20 words.)*", "stop", TASK),
    (f"{TASK}\n\nThis version adds a constraint.", "stop", TASK),
    ("Write a story. (300 words)", "stop", "Write a story. (300 words)"),
    ("How far does it fall?\n\n(Note: g = 10.)", "stop", "How far does it fall?\n\n(Note: g = 10.)"),
    ("I have updated my app, and it crashes: why?", "stop", "I have updated my app, and it crashes: why?"),
    ("1. Add 2 and 3.\n2. Double it.", "stop", "1. Add 2 and 3.\n2. Double it."),
    ("", "stop", None),
    (" \n\u200b", "length", None),
    (f"{TASK} And then", "length", "unfinished"),
    (f"Here is the rewritten task:\n{TASK}", "content_filter", "unfinished"),
    ("<think>\nI should make it", "length", "unclosed_thinking"),
    ("Summarise the given prompt in ten words.", "stop", "copies_prompt"),
    ("Do what the original task says, in Latin.", "stop", "copies_prompt"),
    ("New task:", "stop", "copies_prompt"),
    ("It is what it is.", "stop", "only_stop_words"),
    ("... !?", "stop", "only_stop_words"),
]
COMPLETIONS = [
    (f" {TASK}", "stop", TASK),
    (f" {TASK}\n\nTask: Write a song.\nNew task: Write a song about", "length", TASK),
    (f" {TASK}\nNew task: Another.", "stop", TASK),
    (f" {TASK}\n\nSolution:\nSand drinks.", "stop", TASK),
    (f' "{TASK}"\n', "stop", TASK),
    (f" {TASK[:30]}", "length", "unfinished"),
    ("\n\n", "stop", None),
]
RULES = {"unfinished", "unclosed_thinking", "copies_prompt", "only_stop_words"}


def check_reading(text: str, finish: str | None, expected: str | None, *, chat: bool) -> None:
    item = read_task(Completion(text, finish), chat=chat)
    if expected is None:
        assert item is None
    elif expected in RULES:
        assert item is not None
        assert item.rule == expected
    else:
        assert item is not None
        assert (item.text, item.rule) == (expected, None)


@pytest.mark.parametrize(("text", "finish", "expected"), CHAT)
def test_the_new_task_is_found_in_a_chat_answer(text: str, finish: str | None, expected: str | None) -> None:
    check_reading(text, finish, expected, chat=True)


@pytest.mark.parametrize(("text", "finish", "expected"), COMPLETIONS)
def test_the_new_task_is_found_in_a_completion(text: str, finish: str | None, expected: str | None) -> None:
    check_reading(text, finish, expected, chat=False)


PIECES = [
    *("Sure!", "Here is the rewritten task:", "New task:", "Task:", "Answer:", "Write", "sorry", "Equal", "not", "a"),
    *("#", "**", '"', "'", "“", "”", "```", '"""', "---", "\n", " ", "\u200b"),
    *("<think>", "</think>", "<task>", "</task>"),
]
UGLY = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@given(UGLY, st.sampled_from(["stop", "length", "abort", None]), st.booleans())
def test_any_text_gives_at_most_one_item_that_the_raw_text_has_at_its_span(
    text: str, finish: str | None, chat: bool
) -> None:
    method = build(Setup(api="chat" if chat else "completions", seeds=SEEDS))
    items = method.creation.read(Completion(text, finish), Request(0, "evolve", "", method.creation.sampling))
    assert len(items) <= 1
    for item in items:
        assert item.text == method.item_text(text, item.span)
        assert item.text or item.rule


@given(UGLY, st.sampled_from(["stop", "length", None]))
def test_any_text_has_a_verdict_and_an_answer_or_a_rule(text: str, finish: str | None) -> None:
    assert isinstance(read_comparison(Completion(text, finish)), Labelled | Rejected)
    outcome = read_answer(Completion(text, finish), Subject(0, TASK))
    assert isinstance(outcome, Answered)
    assert len(outcome.instances) + len(outcome.rejected) == 1
    assert all(text[slice(*span)].strip() == text[slice(*span)] != "" for _, span in outcome.instances)


# -- elimination -------------------------------------------------------------------------------------------------------

EQUAL = [
    *("Equal", " equal.", "**Equal**", '"Equal"', "EQUAL\n", "Verdict: Equal", "Equal<|im_end|>", "相等", "Gleich."),
    *("The two tasks are equal.", "They are the same.", "Identical", "Equal, since both ask for rivers."),
    "<think>Not equal?</think>Equal",
    "Both want rivers in Italy.\n\n**Equal**",
    "Yes",
]
DIFFERENT = [
    *("Not equal", "Not equal.", "not Equal", "**Not Equal**", "Unequal", "Different", "Verdict: not equal", "不相等"),
    *(
        "The tasks are not equal.",
        "They are different.",
        "No",
        "Not equal<|eot_id|>",
        "Nicht gleich",
        "Not quite equal.",
    ),
    "The second wants more.\n\nNot equal",
]
UNREAD = [
    "",
    "Equal or not equal?",
    "The first asks for rivers",
    "Equal constraints but another depth",
    "<think>Equal",
    "42",
]


@pytest.mark.parametrize("answer", EQUAL)
def test_a_task_that_demands_the_same_as_its_parent_is_rejected(answer: str) -> None:
    assert read_comparison(Completion(answer, "stop")) == Rejected("no_information_gain", "equal")


@pytest.mark.parametrize("answer", DIFFERENT)
def test_a_task_that_demands_something_else_passes(answer: str) -> None:
    assert read_comparison(Completion(answer, "stop")) == Labelled("different")


@pytest.mark.parametrize("answer", UNREAD)
def test_what_is_no_verdict_counts_as_different_and_as_unread(answer: str) -> None:
    outcome = read_comparison(Completion(answer, "length"))
    assert isinstance(outcome, Labelled)
    assert outcome.value == "different"
    assert outcome.unread


ANSWERS = [
    ("Sand drinks the rain.", "stop", "Sand drinks the rain."),
    ("<think>four lines</think>\n\nSand drinks.\n\nAll of it.\n", "stop", "Sand drinks.\n\nAll of it."),
    ("Sand drinks.<|im_end|> and", "length", "Sand drinks."),
    ("42", "stop", "42"),
    ("No.", "stop", "No."),
    ("∞", "stop", "∞"),
    ("", "stop", "empty_output"),
    ("<think>x</think> \n", "stop", "empty_output"),
    ("<think>four lines", "length", "unclosed_thinking"),
    ("Sand drinks the", "length", "unfinished"),
    ("...", "stop", "only_stop_words"),
    ("It is the.", "stop", "only_stop_words"),
    ("I'm sorry, but I need the table first.", "stop", "refusal"),
    ("Es tut mir leid, das geht nicht.", "stop", "refusal"),
    ("很抱歉，我无法回答这个问题。", "stop", "refusal"),
    ("As an AI language model, I do not have feelings.", "stop", "refusal"),
    ("I can't help with that.", "stop", "refusal"),
    ("Sorry for the delay. " + "The river rises in the Alps. " * 20, "stop", None),
    ("很抱歉。" + "河流发源于阿尔卑斯山脉的冰川之中，" * 20, "stop", None),
    ("The sorrow of the sea.", "stop", None),
    ("```python\nprint(1)\n```", "stop", "print(1)"),
    ("Here is code:\n```python\nprint(1)\n```", "stop", None),
    ("Sand drinks", "content_filter", "unfinished"),
    ("Lo siento, no puedo ayudar con eso.", "stop", "refusal"),
    ("I can't say which, but Mars is red.", "stop", None),
]


@pytest.mark.parametrize(("text", "finish", "expected"), ANSWERS)
def test_an_answer_is_taken_whole_or_eliminated(text: str, finish: str, expected: str | None) -> None:
    outcome = read_answer(Completion(text, finish), Subject(0, TASK))
    assert isinstance(outcome, Answered)
    if outcome.rejected:
        assert outcome.rejected == (expected,)
    else:
        (((start, end), span),) = outcome.instances
        assert (start, end) == (0, 0)
        assert text[slice(*span)] == (text.strip() if expected is None else expected)


def test_an_apology_that_the_task_asks_for_is_no_refusal() -> None:
    assert is_refusal("I am so sorry about the noise.", "Write a note to a neighbour.")
    assert not is_refusal("I am so sorry about the noise.", "Write a note to a neighbour that apologises for noise.")


@pytest.mark.parametrize(("text", "expected"), [("the of and", True), ("--", True), ("the cat", False), ("五", False)])
def test_stop_words_and_punctuation_say_nothing(text: str, expected: bool) -> None:
    assert has_only_stop_words(text) is expected
