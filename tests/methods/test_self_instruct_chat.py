"""Self-Instruct for instruct models: prompts, tasks with their inputs, and answers as chat turns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.methods.base import Answered, Context, Draw, Rejected, Setup, Subject, trimmed
from fastgen.methods.self_instruct_chat import asks_for_input, build, build_prompt, read_answer, read_tasks
from fastgen.types import Completion, Instance, Message, Request, SeedTask

SEEDS = tuple(
    SeedTask(
        f"s{i}", f"s{i}", f"Seed number {i} says what?", (Instance(f"line 1 of {i}\nline 2" * (i % 2), "out"),), False
    )
    for i in range(8)
)
POEM, SORT, CODE = "Write a poem about the sea.", "Sort the list by age.", "Find the bug in the function."


class FakePool:
    """Eight seeds, then the kept instructions."""

    def __init__(self, kept: Sequence[str] = ()) -> None:
        self._texts = [*(task.instruction for task in SEEDS), *kept]

    @property
    def seeds(self) -> int:
        return len(SEEDS)

    @property
    def kept(self) -> int:
        return len(self._texts) - len(SEEDS)

    def text(self, index: int) -> str:
        return self._texts[index]

    def depth(self, index: int) -> int:
        return int(index >= len(SEEDS))


def draw(number: int = 0, indexes: tuple[int, ...] = (1, 8), counts: list[tuple[int, int]] | None = None) -> Draw:
    def demonstrations(count: int, machine: int) -> tuple[int, ...]:
        if counts is not None:
            counts.append((count, machine))
        return indexes

    return Draw(number, 42, FakePool(["Say why the sky is blue."]), demonstrations)


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_the_chat_prompt_shows_tasks_with_their_inputs_and_names_what_was_drawn_last() -> None:
    prompt = build_prompt([(SORT, "3\n1\n"), (POEM, "")], {"topic": "bees", "persona": "a  nurse"}, is_chat=True)
    assert prompt[1:] == (
        Message(
            "user",
            "Tasks so far:\n\n"
            "Task 1: Sort the list by age.\nInput:\n3\n1\n\n"
            "Task 2: Write a poem about the sea.\n\n"
            'Write eight new tasks. Begin with "Task 3:".\n'
            "Topic of all new tasks: bees\n"
            "Person who asks them: a nurse",
        ),
    )


def test_the_fixed_text_of_the_chat_prompt_comes_first_and_says_what_the_rules_reject() -> None:
    one, two = (build_prompt([(text, "")], {}, is_chat=True) for text in (POEM, SORT))
    assert isinstance(one[0], Message)
    assert one[0] == two[0]
    assert one[0].role == "system"
    for word in ("picture", "sound", "file", "link", "news", "role play", "Input:"):
        assert word in one[0].content


def test_a_base_model_gets_a_list_to_go_on_with() -> None:
    prompt = build_prompt([(SORT, "3\n1")], {"topic": "bees"}, is_chat=False)
    assert isinstance(prompt, str)
    assert prompt.endswith("\nTopic of all new tasks: bees\n\nTask 1: Sort the list by age.\nInput:\n3\n1\n\nTask 2:")


def test_the_creation_draws_what_the_options_say_and_records_it() -> None:
    counts: list[tuple[int, int]] = []
    options = {"num_prompt_instructions": "5", "num_machine_instructions": 1}
    context = Context(topics=["bees", "law", "tea"], personas=["a nurse", "a cook"])
    method = build(Setup(api="chat", seeds=SEEDS, options=options, context=context))
    asked = method.creation.ask(draw(counts=counts))
    assert asked is not None
    assert counts == [(5, 1)]
    assert asked.demonstrations == (1, 8)
    assert asked.drawn is not None
    user = asked.prompt[1]
    assert isinstance(user, Message)
    assert (
        f"Task 1: {SEEDS[1].instruction}\nInput:\nline 1 of 1\nline 2\n\nTask 2: Say why the sky is blue."
        in user.content
    )
    assert user.content.endswith(f"{asked.drawn['topic']}\nPerson who asks them: {asked.drawn['persona']}")
    assert method.creation.ask(draw()) == asked
    drawn = [again.drawn for number in range(9) if (again := method.creation.ask(draw(number)))]
    assert len({str(one) for one in drawn}) > 2


def test_a_prompt_that_is_too_long_shows_fewer_tasks() -> None:
    method = build(Setup(api="chat", seeds=SEEDS))
    assert method.creation.shrink is not None
    user = method.creation.shrink(draw().pool, [8], {"topic": "bees"})[1]
    assert isinstance(user, Message)
    assert user.content == (
        "Tasks so far:\n\nTask 1: Say why the sky is blue.\n\n"
        'Write eight new tasks. Begin with "Task 2:".\nTopic of all new tasks: bees'
    )


def test_a_base_model_stops_after_eight_tasks() -> None:
    base, chat = (build(Setup(api=api, seeds=SEEDS)).creation.sampling for api in ("completions", "chat"))
    assert (base.stop, chat.stop) == (("\nTask 17",), ())


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"num_prompt_instructions": "many"}, "--method-option num_prompt_instructions"),
        ({"num_machine_instructions": 9}, "--num-machine-instructions"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=f"^{flag}: .* is not a whole number of "):
        build(Setup(options=options))


def test_the_answer_is_asked_for_as_an_ordinary_turn() -> None:
    subject = Subject(0, SORT, "3\n1")
    chat, base = (build(Setup(api=api)).steps[0] for api in ("chat", "completions"))
    assert chat.ask(subject).prompt == (Message("user", "Sort the list by age.\n\n3\n1"),)
    assert base.ask(subject).prompt == "Task: Sort the list by age.\n\n3\n1\nAnswer:"
    assert base.sampling.stop
    assert not chat.sampling.stop


# -- reading tasks -----------------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[str, list[tuple[str, str | None]]]] = {
    "the form that was asked for": (
        f"Task 9: {SORT}\nInput:\n1. Rome\n2. Ur\n\nTask 10: {POEM}",
        [(SORT, "1. Rome\n2. Ur"), (POEM, None)],
    ),
    "bold labels and chatter": (
        f"Sure! Here:\n\n**Task 9:** {SORT}\n\n**Input:**\nRome\n\nUr\n\n**Task 10:** {POEM}\n\nLet me know if not!",
        [(SORT, "Rome\n\nUr"), (POEM, None)],
    ),
    "headings with titles": (
        f"### Task 9: Age\n\n{SORT}\n\n**Input:**\n3\n\n### Task 10: Sea\n\n{POEM}",
        [(SORT, "3"), (POEM, None)],
    ),
    "plain numbers": (f"9. {SORT}\nInput: 3, 1\n\n10. {POEM}", [(SORT, "3, 1"), (POEM, None)]),
    "plain numbers in the input of plain numbers": (
        f"1. {SORT}\nInput:\n1. Rome\n2. Ur\n3. Bonn\n\n2. {POEM}",
        [(SORT, "1. Rome\n2. Ur\n3. Bonn"), (POEM, None)],
    ),
    "a deeper list": (
        f"9. Plan a trip with:\n   1. a hotel\n   2. trains\n10. {POEM}",
        [("Plan a trip with:\n   1. a hotel\n   2. trains", None), (POEM, None)],
    ),
    "code in a fence": (
        f"9. {CODE}\nInput:\n```python\ndef f(x):\n    return x\n```\n10. {POEM}",
        [(CODE, "def f(x):\n    return x"), (POEM, None)],
    ),
    "code without a label": (
        f"Task 9: {CODE}\n```\ndef f(x):\n\n    return x\n```\n\nTask 10: {POEM}",
        [(CODE, "def f(x):\n\n    return x"), (POEM, None)],
    ),
    "code below what looks like a title": (
        f"**Task 9: Debug this:**\n\n```\nprint(1\n```\n\n**Task 10: {POEM}**",
        [("Debug this", "print(1"), (POEM, None)],
    ),
    "all of it in a fence": (f"Here:\n```\nTask 9: {POEM}\n\nTask 10: {SORT}\n```", [(POEM, None), (SORT, None)]),
    "inputs of one line, without a blank line": (
        f"9. {SORT}\n   - Input: 3, 1\n10. {POEM}\n   - Input: [none needed]",
        [(SORT, "3, 1"), (POEM, None)],
    ),
    "words in an input that look like a task": (
        f"Task 9: Extract all dates.\nInput:\nTask 1 is due in May.\nTask 2 is due in June.\n\nTask 10: {POEM}",
        [("Extract all dates.", "Task 1 is due in May.\nTask 2 is due in June."), (POEM, None)],
    ),
    "an email with a note": (
        f"Task 9: Translate it.\nInput:\nDear Ann,\n\nNote: bring cake.\n\nTom\n\nTask 10: {POEM}",
        [("Translate it.", "Dear Ann,\n\nNote: bring cake.\n\nTom"), (POEM, None)],
    ),
    "material without a label": (
        f"Task 9: Summarise it.\n\nThe sea is wide.\n\nIt is deep.\n\nTask 10: {POEM}",
        [("Summarise it.", "The sea is wide.\n\nIt is deep."), (POEM, None)],
    ),
    "a further paragraph before the input": (
        f"Task 9: Write an email.\n\nBe polite and brief.\n\nInput:\nto Ann\n\nTask 10: {POEM}",
        [("Write an email.", "Be polite and brief.\n\nInput:\nto Ann"), (POEM, None)],
    ),
    "no input in words": (f"Task 9: {SORT}\nInput: None\n\nTask 10: {POEM}\nInput: N/A", [(SORT, None), (POEM, None)]),
    "no input in signs": (
        f"Task 9: {SORT}\nInput: <no input>\n\nTask 10: {POEM}\nInput: -",
        [(SORT, None), (POEM, None)],
    ),
    "no input in German": (f"Task 9: {SORT}\nEingabe: keine\n\nTask 10: {POEM}", [(SORT, None), (POEM, None)]),
    "Chinese": (
        "任务9：写一首关于大海的诗。\n输入：无\n\n任务10：给这些城市排序。\n输入：罗马，乌尔",
        [("写一首关于大海的诗。", None), ("给这些城市排序。", "罗马，乌尔")],
    ),
    "an input on the same line": (f"Task 9: {SORT} Input: 3, 1\nTask 10: {POEM}", [(SORT, "3, 1"), (POEM, None)]),
    "an answer nobody asked for": (
        f"Task 9: {SORT}\nInput: 3, 1\nOutput: 1, 3\n\nTask 10: {POEM}",
        [(SORT, "3, 1"), (POEM, None)],
    ),
    "an output without an input": (f"Task 9: {POEM}\nOutput: O sea!\n\nTask 10: {SORT}", [(POEM, None), (SORT, None)]),
    "a remark on the task": (f"Task 9: {POEM}\n\nCategory: writing\n\nTask 10: {SORT}", [(POEM, None), (SORT, None)]),
    "headings between": (
        f"Task 9: {POEM}\n\n**Lists**\n\nTask 10: {SORT}\nInput: 3\n\n---\n\n## More",
        [(POEM, None), (SORT, "3")],
    ),
    "thinking": (f"<think>Task 9: no</think>\n\nTask 9: {POEM}", [(POEM, None)]),
    "an end token": (f"Task 9: {SORT}\nInput: 3<|im_end|>\nTask 10: x", [(SORT, "3")]),
    "labels without numbers": (
        f"Task: {SORT}\nInput:\n1. Rome\n2. Ur\n\nTask: {POEM}",
        [(SORT, "1. Rome\n2. Ur"), (POEM, None)],
    ),
    "bullets": (f"- {SORT}\nInput: 3, 1\n\n- {POEM}", [(SORT, "3, 1"), (POEM, None)]),
    "a skipped number": (f"Task 9: {SORT}\nInput: 3\n\nTask 11: {POEM}", [(SORT, "3"), (POEM, None)]),
    "JSON": (
        f'[{{"instruction": "{SORT}", "input": "3, 1"}}, {{"instruction": "{POEM}", "input": ""}}]',
        [(SORT, "3, 1"), (POEM, None)],
    ),
    "JSON in a fence": (f'```json\n[{{"task": "{POEM}", "input": "none"}}]\n```', [(POEM, None)]),
    "a table": (f"| task | input |\n|---|---|\n| {SORT} | 3, 1 |\n| {POEM} | N/A |", [(SORT, "3, 1"), (POEM, None)]),
    "the number that ends a base model's prompt": (
        f" {SORT}\nInput:\n3\n1\n\nTask 10: {POEM}",
        [(SORT, "3\n1"), (POEM, None)],
    ),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_read_with_their_inputs(name: str) -> None:
    text, expected = TASKS[name]
    items = read_tasks(Completion(text, "stop"), first_number=9)
    assert [(item.text, None if item.input is None else text[slice(*item.input)]) for item in items] == expected
    assert all(item.rule is None for item in items)


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (f"Task 9: {POEM}\n\nTask 10: {SORT}\nInput:\n3, 1", [None, "unfinished"]),
        (f"Task 9: {POEM}\n\nTask 10: {SORT}\n\nTask 11:", [None, None]),
        (f"Task 9: {POEM}\n\nTask 10: {SORT}<|im_end|>", [None, None]),
        (f"<think>Task 9: {POEM}", ["unclosed_thinking"]),
    ],
)
def test_a_cut_completion_loses_its_last_task(text: str, rules: list[str | None]) -> None:
    assert [item.rule for item in read_tasks(Completion(text, "length"), first_number=9)] == rules


def test_an_input_that_json_escapes_is_not_silently_lost() -> None:
    text = f'[{{"instruction": "{SORT}", "input": "3\\n1"}}, {{"instruction": "{POEM}", "input": ""}}]'
    items = read_tasks(Completion(text, "stop"), first_number=9)
    assert [item.rule for item in items] == ["unreadable_input", None]


def test_the_runs_rules_reject_an_instruction() -> None:
    method = build(Setup(check=lambda text: "too_short" if len(text) < 9 else None))
    assert (method.check("Sing."), method.check(POEM)) == ("too_short", None)


PIECES = st.sampled_from(
    [
        *(
            "Task 9:",
            "Task 10: ",
            "9. ",
            "10. ",
            "- ",
            "\n",
            "\n\n",
            " ",
            "Input:",
            "Output:",
            "**",
            "```",
            "{",
            '"input": ',
        ),
        *(
            "[",
            "|",
            "Sing.",
            "a b c d",
            "None",
            "<think>",
            "</think>",
            "<|im_end|>",
            "输入：",
            "①",
            "\u200b",
            "\r\n",
            "#",
        ),
        "Task: ",
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=40).map("".join), st.sampled_from(["stop", "length", None]))
@settings(max_examples=300, deadline=None)
def test_anything_can_be_read(text: str, finish_reason: str | None) -> None:
    completion = Completion(text, finish_reason)
    for item in read_tasks(completion, first_number=9):
        assert item.text == trimmed(text, item.span)
        if item.input is not None:
            start, end = item.input
            assert item.span[1] <= start < end <= len(text) or text.lstrip().startswith(("{", "[", "|", "`"))
            assert text[start:end].strip()
    outcome = read_answer(completion, Subject(0, POEM))
    assert isinstance(outcome, Rejected) or text[slice(*outcome.instances[0][1])].strip()  # type: ignore[union-attr]


# -- answers -----------------------------------------------------------------------------------------------------------

ANSWERS = {
    "plain": ("The sea is wide.\n\nAnd deep.", "The sea is wide.\n\nAnd deep."),
    "blanks": ("\n  The sea.\n", "The sea."),
    "thinking": ("<think>hm</think>\n\nThe sea.", "The sea."),
    "thinking that the template opened": ("hm</think>The sea.", "The sea."),
    "an end token": ("The sea.<|im_end|>\n<|im_start|>user", "The sea."),
    "all in a fence": ("```\nThe sea.\n```", "The sea."),
    "code between text": ("See:\n```\nx\n```\nDone.", "See:\n```\nx\n```\nDone."),
    "chatter is part of a turn": ("Sure! The sea.", "Sure! The sea."),
    "a heading": ("# Sea\n\nWide.", "# Sea\n\nWide."),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_whole_answer_is_the_output(name: str) -> None:
    text, expected = ANSWERS[name]
    outcome = read_answer(Completion(text, "stop"), Subject(0, POEM))
    assert isinstance(outcome, Answered)
    assert [(given, text[slice(*wanted)]) for given, wanted in outcome.instances] == [((0, 0), expected)]


@pytest.mark.parametrize(
    ("text", "finish_reason", "rule"),
    [
        ("", "stop", "empty_output"),
        ("<think>hm</think>\n ", "stop", "empty_output"),
        ("<think>hm", "length", "unclosed_thinking"),
        ("The sea is", "length", "unfinished"),
        ("The sea is", "content_filter", "unfinished"),
        (POEM, "stop", "output_repeats_instruction"),
        ("**Write a poem about the sea**", "stop", "output_repeats_instruction"),
        ("Please provide the text.", "stop", "asks_for_input"),
    ],
)
def test_an_answer_that_is_none_is_rejected(text: str, finish_reason: str, rule: str) -> None:
    assert read_answer(Completion(text, finish_reason), Subject(0, POEM)) == Rejected(rule)


def test_a_cut_after_an_end_token_cuts_nothing() -> None:
    assert isinstance(read_answer(Completion("The sea.</s>", "length"), Subject(0, POEM)), Answered)


@pytest.mark.parametrize(
    "answer",
    [
        "Please provide the text you would like me to summarise.",
        "Sure! Please share the article.",
        "I'd be happy to help! Could you please provide the article?",
        "It seems you haven\u2019t provided the article. Please paste it.",
        "I don't see any article in your message.",
        "I'm sorry, but there is no article included in your message.",
        "To summarise the article, I need you to provide the text.",
        "Once you provide the article, I will summarise it.",
        "Natürlich! Bitte geben Sie den Text an.",
        "Bien sûr ! Veuillez fournir le texte.",
        "Por favor, proporciona el texto que quieres resumir.",
        "Por favor, forneça o texto.",
        "Пожалуйста, предоставьте текст статьи.",
        "请提供您想要总结的文章。",
        "要約したい記事を提供してください。",
        "يرجى تقديم النص",
        "कृपया लेख प्रदान करें।",
        "요약할 텍스트를 제공해 주세요.",
    ],
)
def test_an_answer_that_asks_for_the_material_is_recognised(answer: str) -> None:
    assert asks_for_input(answer, Subject(0, "Summarise the following article."))


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("Write a reminder that asks Ann for the report.", "Please send me the report by Friday."),
        ("Find the mistake.", "The code is missing a semicolon."),
        ("How do I ask for more money?", "Sure, here is how: please send your boss a letter."),
        ("Summarise the article.", "The article says that the sea rises."),
        ("Write a poem.", "The letter was shared by all,\nthe text was given in the hall."),
        ("Give advice on a first date.", "Ask questions and share a story of your own."),
    ],
)
def test_an_answer_that_gives_what_was_asked_is_kept(task: str, answer: str) -> None:
    assert not asks_for_input(answer, Subject(0, task))


def test_the_method_reads_what_it_asked_for() -> None:
    method = build(Setup(api="chat", seeds=SEEDS, samples=3))
    request = Request(0, "instruction", "", method.creation.sampling, demonstrations=(0, 1))
    assert [item.text for item in method.creation.read(Completion(f"Task 3: {POEM}", "stop"), request)] == [POEM]
    assert (method.step_names, method.creation.samples, method.creation.shows_pool) == (
        ("instruction", "answer"),
        3,
        True,
    )
    assert not build(Setup(options={"num_machine_instructions": 0})).creation.shows_pool
