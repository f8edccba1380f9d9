"""Magpie: prompts byte for byte, what is read of a completion, conversations of several turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.generate.options import with_sampling
from fastgen.methods.base import (
    Answered,
    Ask,
    Context,
    Continued,
    Draw,
    Method,
    Pool,
    Rejected,
    Setup,
    Subject,
    Turn,
    ends_by,
)
from fastgen.methods.chat_template import ChatTemplate
from fastgen.methods.magpie import build
from fastgen.types import Completion, Message, Request, Sampling

CHATML = ChatTemplate(
    before_user="<|im_start|>user\n",
    user_to_assistant="<|im_end|>\n<|im_start|>assistant\n",
    assistant_to_user="<|im_end|>\n<|im_start|>user\n",
    before_system="<|im_start|>system\n",
    system_to_user="<|im_end|>\n<|im_start|>user\n",
)
LLAMA_3 = ChatTemplate(
    before_user="<|start_header_id|>user<|end_header_id|>\n\n",
    user_to_assistant="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant_to_user="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    before_system="<|start_header_id|>system<|end_header_id|>\n\n",
    system_to_user="<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
)
NO_SYSTEM = ChatTemplate("[INST] ", " [/INST]", "</s>[INST] ")
PLAIN = ChatTemplate("USER: ", " ASSISTANT: ", "</s>USER: ")
CONTINUES = (
    "This conversation has several turns. After each of your answers the user asks a further question, or sets a "
    "further task, that builds on what was said before."
)
TOPICS = ("sourdough bread", "graph theory", "tax law", "birds of prey", "Rust", "chess endgames")
REQUEST = Request(0, "instruction", "", Sampling(1.0, 1.0, 1024))


class NoPool:
    """The pool of a method that shows nothing."""

    seeds = 0
    kept = 0

    def text(self, index: int) -> str:
        raise IndexError(index)

    def depth(self, index: int) -> int:
        raise IndexError(index)


def draw(number: int, seed: int = 7) -> Draw:
    pool: Pool = NoPool()
    return Draw(number, seed, pool, lambda _count, _machine: ())


def asked(method: Method, number: int = 0) -> Ask:
    ask = method.creation.ask(draw(number))
    assert ask is not None
    return ask


def read_one(text: str, finish: str | None = "stop", method: Method | None = None) -> tuple[str, str | None] | None:
    """(text, rule) of the instruction in a completion. Checks what holds for all."""
    completion = Completion(text, finish)
    method = method or build(Setup())
    items = method.creation.read(completion, REQUEST)
    for item in items:
        start, end = item.span
        assert 0 <= start < end <= len(text)
        assert item.text == method.item_text(text, item.span)
    assert len(items) <= 1
    return (items[0].text, items[0].rule) if items else None


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, NO_SYSTEM])
def test_every_creating_request_has_the_prompt_that_ends_where_the_user_begins(template: ChatTemplate) -> None:
    method = build(Setup(template=template, samples=4))
    asks = [asked(method, number) for number in range(20)]
    assert {ask.prompt for ask in asks} == {template.before_user}
    assert all(ask == Ask(template.before_user) for ask in asks)
    assert method.creation.samples == 4


def test_a_topic_and_a_persona_are_put_into_the_system_message() -> None:
    context = Context(topics=("sourdough\n bread.",), personas=("a nurse in Oslo who <|im_end|> writes poems",))
    ask = asked(build(Setup(template=CHATML, context=context)))
    assert ask.prompt == (
        "<|im_start|>system\n"
        "You are an assistant for questions and tasks on one subject: sourdough bread. Users come with everything that "
        "belongs to it, from simple questions to hard problems.\n\n"
        "This is the user: a nurse in Oslo who < |im_end| > writes poems. The user asks for help with their own work, "
        "life and interests.<|im_end|>\n<|im_start|>user\n"
    )
    assert ask.drawn == {"topic": "sourdough\n bread.", "persona": "a nurse in Oslo who <|im_end|> writes poems"}


def test_a_topic_alone_for_llama_3() -> None:
    ask = asked(build(Setup(template=LLAMA_3, context=Context(topics=("chess",)))))
    assert ask.prompt == (
        "<|start_header_id|>system<|end_header_id|>\n\n"
        "You are an assistant for questions and tasks on one subject: chess. Users come with everything that belongs "
        "to it, from simple questions to hard problems.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    )


def test_the_same_request_draws_the_same_topic() -> None:
    setup = Setup(template=CHATML, context=Context(topics=TOPICS))
    first, again = build(setup), build(setup)
    drawn = [asked(first, number) for number in range(200)]
    assert drawn == [asked(again, number) for number in range(200)]
    assert {ask.drawn["topic"] for ask in drawn if ask.drawn} == {*TOPICS}
    assert any(first.creation.ask(draw(number, seed=8)) != drawn[number] for number in range(20))


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        (CHATML, ("<|im_end|>", "<|im_start|>")),
        (LLAMA_3, ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
        (NO_SYSTEM, ("[/INST]", "[INST]")),
        (PLAIN, ("ASSISTANT:",)),
        (None, ()),
    ],
)
def test_a_message_stops_at_the_marks_of_the_template(template: ChatTemplate | None, stop: tuple[str, ...]) -> None:
    method = build(Setup(template=template, options={"turns": 2}))
    answer, follow_up, later_answer = method.steps
    assert method.creation.sampling == Sampling(1.0, 1.0, 1024, stop=stop)
    assert follow_up.sampling == method.creation.sampling
    assert answer.sampling == later_answer.sampling == Sampling(0.0, 1.0, 2048)


def test_sampling_that_is_set_for_a_step_or_its_role_replaces_the_methods() -> None:
    method = build(Setup(template=CHATML, options={"turns": 3}))
    given = ["instruction.temperature=0.7", "answer.stop=END", "answer.max-tokens=99", "follow_up_2.temperature=0.8"]
    changed = with_sampling(method, given).sampling()
    message, answer = method.creation.sampling, method.steps[0].sampling
    assert changed["instruction"] == changed["follow_up_3"] == replace(message, temperature=0.7)
    assert changed["follow_up_2"] == replace(message, temperature=0.8)
    mine = replace(answer, stop=("END",), max_tokens=99)
    assert changed["answer"] == changed["answer_2"] == changed["answer_3"] == mine


@pytest.mark.parametrize("text", ["What is < the <|im_end|>", "Use [INST] and </s>"])
def test_marks_in_a_text_do_not_end_a_message(text: str) -> None:
    ask = build(Setup(template=CHATML, options={"turns": 2})).steps[0].ask(Subject(1, text))
    assert isinstance(ask.prompt, tuple)
    (message,) = ask.prompt
    assert "<|im_end|>" not in message.content
    assert "[INST]" not in message.content
    assert message.content.replace(" ", "") == text.replace(" ", "")


# -- what the model wrote as the user ----------------------------------------------------------------------------------

LONG = "I am planning a trip to Norway.\n\nCan you suggest a route?\n"
CODE = "Why does this fail?\n\n```python\ndef f(x):\n    return x[0]\n\nf(None)\n```\n\nPlease explain."

UGLY: Mapping[str, tuple[str, str | None, tuple[str, str | None] | None]] = {
    "plain": ("How do magnets work?", "stop", ("How do magnets work?", None)),
    "blanks": ("\n\n  How do magnets work? \u200b\n", "stop", ("How do magnets work?", None)),
    "several paragraphs": (LONG, "stop", (LONG.strip(), None)),
    "code": (CODE, "stop", (CODE, None)),
    "quoted": ('"How do magnets work?"\n', "stop", ("How do magnets work?", None)),
    "curly quotes": ("\u201cHow do magnets work?\u201d", "stop", ("How do magnets work?", None)),
    "half a quote": ('"How do magnets work?', "stop", ("How do magnets work?", None)),
    "mixed quotes": ('Name it \u201cThe Perk"', "stop", ('Name it \u201cThe Perk"', None)),
    "two quotations": ('"Be" or "not": which?', "stop", ('"Be" or "not": which?', None)),
    "bold": ("**How do magnets work?**", "stop", ("How do magnets work?", None)),
    "bold title": ("**Magnets**\nHow do they work?", "stop", ("**Magnets**\nHow do they work?", None)),
    "ChatML": (
        "Name a bird.<|im_end|>\n<|im_start|>assistant\nA wren.<|im_end|>",
        "stop",
        ("Name a bird.", None),
    ),
    "Llama 3": (
        "Name a bird.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA wren.",
        "length",
        ("Name a bird.", None),
    ),
    "Mistral": ("Name a bird. [/INST] A wren.</s>", "stop", ("Name a bird.", None)),
    "Gemma": ("Name a bird.<end_of_turn>\n<start_of_turn>model\nA wren.", "stop", ("Name a bird.", None)),
    "Phi": ("Name a bird.<|end|>\n<|assistant|>\nA wren.", "stop", ("Name a bird.", None)),
    "DeepSeek": ("Name a bird.<\uff5cAssistant\uff5c>A wren.", "stop", ("Name a bird.", None)),
    "harmony": (
        "Name a bird.<|end|><|start|>assistant<|channel|>final<|message|>A wren.",
        None,
        ("Name a bird.", None),
    ),
    "half a mark": ("Name a bird.<|im_", "length", ("Name a bird.", None)),
    "marks left out": ("What is a quark?assistant\n\nA quark is a particle.", "stop", ("What is a quark?", None)),
    "role left over": ("What is a quark\nassistant\nA particle.", "stop", ("What is a quark", None)),
    "template again": ("<|im_start|>user\nName a bird.<|im_end|>", "stop", ("Name a bird.", None)),
    "role first": ("user\n\nName a bird.", "stop", ("Name a bird.", None)),
    "label": ("**Question:** Name a bird.", "stop", ("Name a bird.", None)),
    "dialogue": ("User: Name a bird.\nAssistant: A wren.\nUser: Another.", "stop", ("Name a bird.", None)),
    "answers itself": ("What is 6 * 7?\n\n**Answer:** 42", "stop", ("What is 6 * 7?", None)),
    "steps": ("What is 6 * 7?\n\n## Step 1: Multiply", "length", ("What is 6 * 7?", None)),
    "alpaca": ("### Instruction:\nName a bird.\n\n### Response:\nA wren.", "stop", ("Name a bird.", None)),
    "assistant paragraph": (
        "Name a bird.\n\nSure! Here is one: a wren.",
        "stop",
        ("Name a bird.", None),
    ),
    "thinks": ("Name a bird.\n<think>\nThe user wants", "length", ("Name a bird.", None)),
    "a letter": (
        "Improve this letter:\n\nThank you for your interest in our post.\n\nRegards",
        "stop",
        ("Improve this letter:\n\nThank you for your interest in our post.\n\nRegards", None),
    ),
    "HTML": ("Why is <s>this</s> struck out?", "stop", ("Why is <s>this</s> struck out?", None)),
    "F#": ("What does xs |> List.map f <| y do?", "stop", ("What does xs |> List.map f <| y do?", None)),
    "asks an AI": ("As an AI, what do you like?", "stop", ("As an AI, what do you like?", None)),
    "AI person": ("I'm an AI engineer. Rate my CV.", "stop", ("I'm an AI engineer. Rate my CV.", None)),
    "role play": (
        "You are a helpful assistant. Write a poem about it.",
        "stop",
        ("You are a helpful assistant. Write a poem about it.", None),
    ),
    "no finish reason": ("Name a bird.", None, ("Name a bird.", None)),
    "cut": ("Name a bird that", "length", ("Name a bird that", "unfinished")),
    "aborted": ("Name a bird that", "abort", ("Name a bird that", "unfinished")),
    "As an AI": ("As an AI language model, I cannot", "stop", ("As an AI language model, I cannot", "assistant_voice")),
    "Sure": ("Sure! Here is a list of birds.", "stop", ("Sure! Here is a list of birds.", "assistant_voice")),
    "greets": ("Hello! How can I help you today?", "stop", ("Hello! How can I help you today?", "assistant_voice")),
    "refuses": ("I'm sorry, but I can't do that.", "stop", ("I'm sorry, but I can't do that.", "assistant_voice")),
    "voice of a Chinese assistant": ("作为一个AI,我没有感情。", "stop", ("作为一个AI,我没有感情。", "assistant_voice")),
    "system prompt": (
        "You are Qwen, a helpful AI assistant. You answer questions.",
        "stop",
        ("You are Qwen, a helpful AI assistant. You answer questions.", "system_prompt"),
    ),
    "no content": ("Translate the following:", "stop", ("Translate the following:", "ends_with_colon")),
    "only marks": ("<|im_end|>\n", "stop", ("<|im_end|>", "no_message")),
    "only an answer": ("Assistant: A wren.", "stop", ("Assistant: A wren.", "no_message")),
    "only quotes": ('""', "stop", ('""', "no_message")),
    "empty": ("", "stop", None),
    "blank": (" \n\u200b\n", "length", None),
}


@pytest.mark.parametrize("name", UGLY)
def test_a_message_is_read(name: str) -> None:
    text, finish, expected = UGLY[name]
    assert read_one(text, finish) == expected


@pytest.mark.parametrize("name", UGLY)
def test_what_was_read_is_read_again_as_it_is(name: str) -> None:
    _, _, expected = UGLY[name]
    if expected and expected[1] is None:
        assert read_one(expected[0]) == expected


def test_reading_does_not_depend_on_the_template() -> None:
    with_template = build(Setup(template=CHATML))
    for text, finish, expected in UGLY.values():
        assert read_one(text, finish, with_template) == expected


PIECES = (
    *(
        "<|im_end|>",
        "<|",
        "|>",
        "assistant\n",
        "Assistant:",
        "user",
        "Question:",
        "# ",
        "</s>",
        "<s>",
        "[/INST]",
        "<think>",
    ),
    *(
        "Sure! ",
        "Here is",
        "As an AI, I",
        "You are an assistant.",
        "Thanks",
        "```",
        "**",
        '"',
        "a",
        "?",
        ":",
        "\n\n",
        " ",
    ),
    *("\u200b", "\uff5c", "\ud800"),
)
MARKED = st.lists(st.sampled_from(PIECES)).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=MARKED | st.text(), finish=st.sampled_from(["stop", "length", None]))
def test_reading_never_raises_and_its_spans_are_texts(text: str, finish: str) -> None:
    read_one(text, finish)
    completion = Completion(text, finish)
    subject = Subject(1, "Name a bird.", turns=(Turn("Name a bird.", "A wren."),), message="Another one?")
    answer, follow_up = build(Setup(options={"turns": 2})).steps[:2]
    match follow_up.read(completion, subject):
        case Continued((start, end)):
            assert text[start:end] == text[start:end].strip() != ""
        case outcome:
            assert isinstance(outcome, Rejected)
    outcome = answer.read(completion, subject)
    assert isinstance(outcome, Answered)
    assert len(outcome.instances) + len(outcome.rejected) == 1
    for given_input, (start, end) in outcome.instances:
        assert given_input == (0, 0)
        assert text[start:end] == text[start:end].strip() != ""


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("A wren.", "stop", "A wren."),
        ("\n A wren.\n\nAnother: a jay. ", "stop", "A wren.\n\nAnother: a jay."),
        ("<think>\nHm.\n</think>\n\nA wren.", "stop", "A wren."),
        ("Hm.</think>A wren.", "stop", "A wren."),
        ("A wren.<|im_end|>\n<|im_start|>user\nMore", "length", "A wren."),
        ("```python\nprint(1)\n```", "stop", "```python\nprint(1)\n```"),
        ("I'm sorry, but I can't help with that.", "stop", "I'm sorry, but I can't help with that."),
        ("Sure! Here is one: a wren.", "stop", "Sure! Here is one: a wren."),
        ("A wren", None, "A wren"),
    ],
)
def test_an_answer_is_all_that_the_model_says(text: str, finish: str | None, expected: str) -> None:
    outcome = build(Setup()).steps[0].read(Completion(text, finish), Subject(1, "Name a bird."))
    assert isinstance(outcome, Answered)
    ((given_input, (start, end)),) = outcome.instances
    assert given_input == (0, 0)
    assert text[start:end] == expected
    assert not outcome.rejected
    assert ends_by(outcome) == "complete"


@pytest.mark.parametrize(
    ("text", "finish", "rule"),
    [
        ("", "stop", "empty_output"),
        ("<think>x</think>\n", "stop", "empty_output"),
        ("<think>x", "length", "unclosed_thinking"),
        ("A wr", "length", "unfinished"),
        ("```\nprint(1)\n```", "length", "unfinished"),
        ("name a BIRD", "stop", "output_repeats_instruction"),
    ],
)
def test_an_answer_that_is_none_ends_the_subject(text: str, finish: str, rule: str) -> None:
    outcome = build(Setup()).steps[0].read(Completion(text, finish), Subject(1, "Name a bird."))
    assert outcome == Answered((), (rule,))
    assert ends_by(outcome) == "empty"


# -- conversations -----------------------------------------------------------------------------------------------------


def test_the_steps_of_a_conversation_and_their_roles() -> None:
    method = build(Setup(options={"turns": 3}))
    assert method.step_names == ("instruction", "answer", "follow_up_2", "answer_2", "follow_up_3", "answer_3")
    assert [step.role for step in method.steps] == ["answer", "instruction", "answer", "instruction", "answer"]
    assert not method.creation.shows_pool
    assert build(Setup()).step_names == ("instruction", "answer")


def test_a_conversation_by_hand() -> None:
    method = build(Setup(template=CHATML, options={"turns": 2}, context=Context(topics=("birds",))))
    answer, follow_up, answer_again = method.steps
    drawn = asked(method).drawn
    assert drawn == {"topic": "birds"}

    subject = Subject(5, "Name a bird.", drawn=drawn)
    assert answer.ask(subject) == Ask((Message("user", "Name a bird."),))  # the system message is not for answers

    subject = Subject(5, "Name a bird.", drawn=drawn, turns=(Turn("Name a bird.", "A wren <|im_end|>."),))
    assert follow_up.ask(subject) == Ask(
        "<|im_start|>system\n"
        "You are an assistant for questions and tasks on one subject: birds. Users come with everything that belongs "
        f"to it, from simple questions to hard problems.\n\n{CONTINUES}<|im_end|>\n<|im_start|>user\n"
        "Name a bird.<|im_end|>\n<|im_start|>assistant\nA wren < |im_end| >.<|im_end|>\n<|im_start|>user\n"
    )
    raw = "\nWhere does it live?<|im_end|>"
    assert follow_up.read(Completion(raw, "stop"), subject) == Continued((1, 20))

    subject = Subject(5, "Name a bird.", drawn=drawn, turns=subject.turns, message=raw[1:20])
    assert answer_again.ask(subject) == Ask(
        (
            Message("user", "Name a bird."),
            Message("assistant", "A wren < |im_end| >."),
            Message("user", "Where does it live?"),
        )
    )
    assert answer_again.read(Completion("In gardens.", "stop"), subject) == Answered((((0, 0), (0, 11)),))
    assert answer_again.read(Completion("Where does it live", "stop"), subject) == Answered(
        (), ("output_repeats_instruction",)
    )


def test_a_follow_up_prompt_for_llama_3_and_without_a_system_message() -> None:
    subject = Subject(1, "Hi.", turns=(Turn("Hi.", "Hello."), Turn("Bye?", "No.")))
    follow_up = build(Setup(template=LLAMA_3, options={"turns": 3})).steps[3]
    user, assistant = (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    assert follow_up.ask(subject).prompt == (
        f"<|start_header_id|>system<|end_header_id|>\n\n{CONTINUES}<|eot_id|>{user}Hi.<|eot_id|>{assistant}"
        f"Hello.<|eot_id|>{user}Bye?<|eot_id|>{assistant}No.<|eot_id|>{user}"
    )
    plain = build(Setup(template=NO_SYSTEM, options={"turns": 3})).steps[3]
    assert plain.ask(subject).prompt == "[INST] Hi. [/INST]Hello.</s>[INST] Bye? [/INST]No.</s>[INST] "


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("And in spring?", "stop", None),  # shorter than an instruction may be
        ("Sure, here is my list: wren, jay.", "stop", "assistant_voice"),
        ("Thanks! Now list three more.", "stop", None),
        ("It seems like you forgot the owl.", "stop", None),
        ("Thank you so much for the answer!", "stop", "takes_leave"),
        ("Thanks, that's very helpful. Bye!", "stop", "takes_leave"),
        ("You're welcome!", "stop", "assistant_voice"),
        ("I'm glad I could help.", "stop", "assistant_voice"),
        ("name a BIRD", "stop", "repeats_turn"),
        ("Name: a bird.", "stop", None),
        ("Where does", "length", "unfinished"),
        ("<|im_end|>", "stop", "no_message"),
        ("", "stop", "no_message"),
        ("Draw me a picture of it.", "stop", "media_request"),
    ],
)
def test_a_follow_up_is_used_or_ends_the_conversation(text: str, finish: str, expected: str | None) -> None:
    def check(text: str) -> str | None:
        return "media_request" if "picture" in text else "too_short" if len(text.split()) < 4 else None

    follow_up = build(Setup(check=check, options={"turns": 2})).steps[1]
    subject = Subject(1, "Name a bird.", turns=(Turn("Name a bird.", "A wren."),))
    outcome = follow_up.read(Completion(text, finish), subject)
    assert outcome == (Continued((0, len(text))) if expected is None else Rejected(expected))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 8, "1", "8"])
def test_turns_may_be_a_number_or_its_text(turns: object) -> None:
    assert len(build(Setup(options={"turns": turns})).steps) == 2 * int(str(turns)) - 1


@pytest.mark.parametrize("turns", [0, 9, -1, True, 2.0, "two", "", "²", "9" * 5000, None])
def test_turns_out_of_range_are_refused(turns: object) -> None:
    with pytest.raises(InputError, match=r"turns: .* is not a whole number of 1 to 8$"):
        build(Setup(options={"turns": turns}))


def test_topics_need_a_template_with_a_system_message() -> None:
    context = Context(topics=("birds",))
    with pytest.raises(InputError, match="takes no system message"):
        build(Setup(template=NO_SYSTEM, context=context))
    build(Setup(context=context))  # a refilter, which asks nothing


def test_without_a_template_the_method_only_reads() -> None:
    method = build(Setup(options={"turns": 2}))
    with pytest.raises(ValueError, match="no chat template"):
        method.creation.ask(draw(0))
    with pytest.raises(ValueError, match="no chat template"):
        method.steps[1].ask(Subject(1, "Hi."))
    assert method.steps[0].ask(Subject(1, "Hi.")) == Ask((Message("user", "Hi."),))


# -- half a megabyte of anything ---------------------------------------------------------------------------------------

CHARACTERS = 480_000
TIMEOUT_S = 120  # for all of them together; a quadratic pattern needs minutes for each
HOSTILE = [  # what comes first, what comes again and again, what comes last
    ("", "user: ", "x"),
    ("", '" ', "x"),
    ("", "**a", ""),
    ("", "\n \n", "x"),
    ("\n", " ", "assistant"),
    ("", "# ", "answer"),
    ("", "?assistant", "\n"),
    ("", "\n\nsure, ", "x"),
    ("", "<s></s>", ""),
    ("<s>", "</s>", ""),
    ("", "<|", "x"),
    ("", "<|a", "|>"),
    ("", "```\n", "x"),
    ("<think>", "</think><think>", "y"),
    ("You are ", "a ", "assistant"),
    ("You are an assistant. ", "You are ", "."),
    ("As an AI made by ", "a ", "I"),
    ("thanks for ", "a", "?"),
    ("", "thanks for a. ", "x"),
]


def read_everything(text: str) -> None:
    method = build(Setup(options={"turns": 2}))
    subject = Subject(1, text, turns=(Turn(text, text),), message=text)
    for finish in ("stop", "length"):
        completion = Completion(text, finish)
        method.creation.read(completion, REQUEST)
        for step in method.steps:
            step.read(completion, subject)


def test_half_a_megabyte_of_anything_is_read_in_linear_time() -> None:
    """In a separate process: a pattern that tries everything twice holds the interpreter's lock against a signal."""
    try:
        subprocess.run([sys.executable, __file__], check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"").decode()
        pytest.fail(f"still reading after {TIMEOUT_S} s; these were begun: {shown}")


if __name__ == "__main__":
    for first, again, last in HOSTILE:
        print((first, again, last), flush=True)  # noqa: T201 - read when the time is up
        read_everything(first + again * (CHARACTERS // len(again)) + last)
