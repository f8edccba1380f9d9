"""Instruction backtranslation: documents in order, the instruction that each answers, and the score of the pair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.methods.backtranslate import (
    beginning,
    build,
    copies,
    find_score,
    mentions_document,
    read_instruction,
    usable,
)
from fastgen.methods.base import Draw, Labelled, Rejected, Setup, Subject
from fastgen.types import Completion, Instance, Message, Request, SeedTask

DOCUMENTS = ("The sea is wide and deep, and many old ships sail on it every day.", "Bees dance.", "Tea is hot.")
SEA = "How wide is the sea?"


class EmptyPool:
    seeds = kept = 0

    def text(self, index: int) -> str:
        raise IndexError(index)

    def depth(self, index: int) -> int:
        raise IndexError(index)


def draw(source: int, number: int = 7) -> Draw:
    return Draw(number, 42, EmptyPool(), lambda _count, _machine: (), lambda: source)


def rules(text: str, document: str = DOCUMENTS[0], finish_reason: str | None = "stop") -> list[str | None]:
    return [item.rule for item in read_instruction(Completion(text, finish_reason), document)]


# -- documents and prompts ---------------------------------------------------------------------------------------------


def test_each_document_is_asked_about_once_whatever_the_requests_number() -> None:
    creation = build(Setup(api="chat", documents=DOCUMENTS)).creation
    asked = [creation.ask(draw(source, number)) for source, number in ((0, 9), (2, 4), (3, 5))]
    assert [ask and ask.demonstrations for ask in asked] == [(0,), (2,), None]


def test_further_passes_are_numbered_on_and_find_their_document() -> None:
    method = build(Setup(api="chat", documents=DOCUMENTS, options={"passes": "2"}))
    first, again = method.creation.ask(draw(1)), method.creation.ask(draw(4))
    assert first is not None
    assert again is not None
    assert (first.prompt, again.demonstrations, again.prompt) == (again.prompt, (4,), first.prompt)
    assert list(method.documents) == [*DOCUMENTS, *DOCUMENTS]
    assert method.creation.ask(draw(6)) is None


def test_a_run_without_documents_has_nothing_to_ask() -> None:
    assert build(Setup()).creation.ask(draw(0)) is None


def test_the_chat_prompts_begin_with_all_that_is_fixed() -> None:
    method = build(Setup(api="chat", documents=DOCUMENTS))
    asked = method.creation.ask(draw(1))
    assert asked is not None
    system = asked.prompt[0]
    assert asked.prompt[-1] == Message("user", "<text>\nBees dance.\n</text>\n\nWrite the instruction.")
    other = method.creation.ask(draw(2))
    assert other is not None
    assert other.prompt[:-1] == asked.prompt[:-1]
    assert isinstance(system, Message)
    assert system.role == "system"
    assert "instruction only" in system.content
    scored = method.steps[0].ask(Subject(0, "Tell me about bees.", sources=(1,)))
    *_, pair = (one for one in scored.prompt if isinstance(one, Message))
    assert pair.content.startswith("Instruction:\nTell me about bees.\n\nAnswer:\nBees dance.\n\n")
    assert '"Score: N"' in pair.content.splitlines()[-1]


def test_an_instruct_model_is_shown_examples_that_pass_the_rules() -> None:
    asked = build(Setup(api="chat", documents=DOCUMENTS)).creation.ask(draw(1))
    assert asked is not None
    messages = [message for message in asked.prompt if isinstance(message, Message)]
    assert [message.role for message in messages] == ["system", *("user", "assistant") * 3, "user"]
    for text, instruction in zip(messages[1:-1:2], messages[2:-1:2], strict=True):
        (item,) = read_instruction(Completion(instruction.content, "stop"), text.content)
        assert (item.text, item.rule) == (instruction.content, None)


def test_a_base_model_is_shown_seed_tasks_the_other_way_round() -> None:
    output = "Blot at once. " * 10
    seeds = [
        SeedTask("a", "a", "Remove a stain.", (Instance("", output),), False),
        SeedTask("b", "b", "Sort it.", (Instance("3 1", output),), False),
        SeedTask("c", "c", "Say yes.", (Instance("", "yes"),), False),
    ]
    method = build(Setup(api="completions", seeds=seeds, documents=DOCUMENTS))
    asked = method.creation.ask(draw(1))
    assert asked is not None
    assert asked.prompt == (
        "Texts, each with the instruction that it answers.\n\n"
        f"Text:\n{output.strip()}\nInstruction: Remove a stain.\n\n"
        "Text:\nBees dance.\nInstruction:"
    )
    scored = method.steps[0].ask(Subject(0, SEA, sources=(1,))).prompt
    assert isinstance(scored, str)
    assert scored.endswith("Instruction:\nHow wide is the sea?\n\nAnswer:\nBees dance.\n\nScore (1 to 5):")


def test_marks_of_templates_in_a_document_are_text() -> None:
    method = build(Setup(api="chat", documents=["Hi<|im_end|>\n</text>"]))
    asked = method.creation.ask(draw(0))
    assert asked is not None
    user = asked.prompt[-1]
    assert isinstance(user, Message)
    assert user.content.startswith("<text>\nHi< |im_end| >\n</ text>\n</text>\n\n")


def test_a_long_document_is_shown_up_to_the_end_of_a_paragraph() -> None:
    mark = "\n\n[The text goes on. Only its beginning is shown here.]"
    assert beginning(" short ", 10) == "short"
    assert beginning("aaaa\n\nbbbb\n\ncccc\n\ndddd", 18) == f"aaaa\n\nbbbb\n\ncccc{mark}"
    assert beginning("aaaa\n\nbbbb bbbb\nbbbb bbbb", 18) == f"aaaa\n\nbbbb bbbb{mark}"
    assert beginning("One two. Three four five", 12) == f"One two.{mark}"
    assert beginning("a" * 30, 10) == "a" * 10 + mark
    method = build(Setup(api="chat", documents=["word " * 100], options={"max_document": 64}))
    asked = method.creation.ask(draw(0))
    assert asked is not None
    assert isinstance(asked.prompt[-1], Message)
    assert len(asked.prompt[-1].content) < 64 * 4 + 150
    assert method.documents == ["word " * 100]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("word " * 50, None),
        ("海很大。" * 60, None),
        ("हिन्दी में एक पाठ। " * 20, None),
        ("too short", "9 characters; at least 200 are needed"),
        (" " * 500, "0 characters; at least 200 are needed"),
        ("=-|+ " * 60, "mostly signs, not letters"),
        ("word\0" * 60, "holds U+0000, which is no text"),
        ("word\ud800" * 60, "holds U+D800, which is no text"),
    ],
)
def test_a_document_that_cannot_be_an_output_has_a_reason(document: str, reason: str | None) -> None:
    assert usable(document) == reason
    assert usable("tiny", shortest=3) is None


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"min_score": 6}, "--min-score"),
        ({"max_document": "long"}, "--method-option max_document"),
        ({"passes": 0}, "--passes"),
        ({"min_score": True}, "--method-option min_score"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=f"^{flag}: "):
        build(Setup(options=options))


# -- the instruction ---------------------------------------------------------------------------------------------------

INSTRUCTIONS = {
    "plain": (SEA, SEA),
    "blanks": (f"\n {SEA} \n", SEA),
    "chatter": (f"Sure! Here is the instruction:\n\n{SEA}", SEA),
    "two lines of chatter": (f"Sure!\n\nHere is an instruction that fits:\n{SEA}", SEA),
    "chatter and label on one line": (f"Sure, here is the instruction: {SEA}", SEA),
    "a label": (f"Instruction: {SEA}", SEA),
    "a bold label": (f"**Instruction:** {SEA}", SEA),
    "a label as a heading": (f"## Instruction\n\n{SEA}", SEA),
    "a bold label on its own line": (f"**Instruction**\n{SEA}", SEA),
    "a German label": (f"Anweisung: {SEA}", SEA),
    "a Chinese label": ("指令：大海有多宽？", "大海有多宽？"),
    "quotation marks": (f'"{SEA}"', SEA),
    "curly quotation marks": (f"“{SEA}”", SEA),
    "bold": (f"**{SEA}**", SEA),
    "a fence": (f"```\n{SEA}\n```", SEA),
    "JSON": (f'{{"instruction": "{SEA}"}}', SEA),
    "a JSON list": (f'["{SEA}"]', SEA),
    "several proposals": (f"1. {SEA}\n2. Describe the sea.", SEA),
    "a sentence that ends in a colon": (f'The text answers the question: "{SEA}"', SEA),
    "a sentence about the instruction": (f"The instruction that fits would be: {SEA}", SEA),
    "a task that is a sentence": ("Your task is to describe the sea.", "Your task is to describe the sea."),
    "thinking": (f"<think>Instruction: no</think>\n\n{SEA}", SEA),
    "an end token": (f"{SEA}<|eot_id|>assistant", SEA),
    "an explanation": (f"{SEA}\n\nThis instruction asks for what it says.", SEA),
    "a note": (f"{SEA}\n\n(Note: it is short.)", SEA),
    "a rule and more": (f"{SEA}\n\n---\nMore?", SEA),
    "the answer": (f"{SEA}\nAnswer: very wide", SEA),
    "leave": (f"{SEA}\n\nLet me know if you want another.", SEA),
    "a list in it": ("Write a guide:\n1. sails\n2. ropes", "Write a guide:\n1. sails\n2. ropes"),
    "two paragraphs": ("I am new at sea.\n\nWhat do I need?", "I am new at sea.\n\nWhat do I need?"),
    "somebody who speaks of himself": ("I have a boat. Where do I sail?", "I have a boat. Where do I sail?"),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_one_instruction_is_read(name: str) -> None:
    text, expected = INSTRUCTIONS[name]
    items = read_instruction(Completion(text, "stop"), DOCUMENTS[0])
    assert [(item.text, text[slice(*item.span)], item.rule) for item in items] == [(expected, expected, None)]


@pytest.mark.parametrize("text", ["", " \n", "<think>hm</think>", '{"answer": "a\\nb"}'])
def test_an_answer_without_an_instruction_has_none(text: str) -> None:
    assert read_instruction(Completion(text, "stop"), DOCUMENTS[0]) == []


def test_a_cut_answer_is_unfinished_unless_more_followed() -> None:
    assert rules("How wide is", finish_reason="length") == ["unfinished"]
    assert rules(f"{SEA}\n\nNote: this", finish_reason="length") == [None]
    assert rules(f"{SEA}</s>", finish_reason="length") == [None]
    assert rules("<think>hm", finish_reason="length") == ["unclosed_thinking"]


@pytest.mark.parametrize(
    "text",
    [
        "Summarise the passage above.",
        "Answer the question from the following text.",
        "What does the author say about ships?",
        "According to the document, how wide is the sea?",
        "List the ships mentioned in the article.",
        "What is the main idea of the passage?",
        "Explain this text.",
        "Based on the text, describe bees.",
        "Fasse den obigen Text zusammen.",
        "Was sagt dieser Artikel über das Meer?",
        "Résume le texte suivant.",
        "Selon l'article, quelle est la taille de la mer ?",
        "Resume el siguiente: ¿qué dice este texto sobre el mar?",
        "О чём говорится в этом тексте: что сказано в статье?",
        "Перескажи этот текст.",
        "О чём эта статья?",
        "根据上述文章，大海有多宽？",
        "この文章を要約してください。",
        "لخص هذا النص",
    ],
)
def test_an_instruction_that_speaks_of_its_text_is_rejected(text: str) -> None:
    assert mentions_document(text)
    assert rules(text) == ["mentions_document"]


@pytest.mark.parametrize(
    "text",
    [
        "Write an article about ships. In the article, mention sails.",
        "Write a short text on bees and explain in the text how they dance.",
        "How do I change the colour of the text in CSS?",
        "Who is the author of Hamlet, and what did the author of Macbeth earn?",
        "Explain how to write a cover letter.",
        "Tell a story about the sea above the clouds.",
        "What is the moral of the story of the fox and the grapes?",
        "Schreibe einen Artikel über das Meer.",
        "写一篇关于大海的文章。",
    ],
)
def test_an_instruction_that_stands_alone_is_kept(text: str) -> None:
    assert not mentions_document(text)
    assert rules(text) == [None]


@pytest.mark.parametrize(
    "text",
    [
        "The instruction is about calculating how far light travels in a year.",
        "This prompt asks for a description of the sea.",
        "This instruction provides a clear explanation of how wide the sea is.",
        "The question asks how wide the sea is.",
        "The text answers the question of how wide the sea is.",
        "The answer describes ships.",
    ],
)
def test_a_sentence_about_the_instruction_is_none(text: str) -> None:
    assert rules(text) == ["describes_instruction"]


@pytest.mark.parametrize(
    "text",
    [
        "The question of free will is old. Outline three positions.",
        "The text field of my form loses its focus. Why?",
        "The article I am writing needs a title. Suggest five about the sea.",
        "My question is about tides: what causes them?",
    ],
)
def test_an_instruction_that_begins_with_such_a_word_is_kept(text: str) -> None:
    assert rules(text) == [None]


def test_an_instruction_that_copies_its_document_is_rejected() -> None:
    copied = "Explain why the sea is wide and deep, and many old ships sail on it"
    assert rules(copied) == ["copies_document"]
    assert copies("海很大也很深，很多旧船每天都在上面航行", "大家知道，海很大也很深，很多旧船每天都在上面航行。")


def test_a_shared_phrase_is_no_copy() -> None:
    assert rules(
        "Describe why so many old ships sail on it every day, although there are faster ones to be had now"
    ) == [None]
    assert not copies("Short one.", "Short one.")
    assert not copies("", "")


# -- the score ---------------------------------------------------------------------------------------------------------

SCORES = {
    "Score: 4": 4,
    "**Score:** 5/5": 5,
    "It is good, so\n\nScore: 3": 3,
    "Score (1-5): 4": 4,
    "4. It is right and complete.": 4,
    "1. Prophase: the spindle forms.\n2. Metaphase: the chromosomes line up.": None,  # repeats the answer
    "Score = 2": 2,
    "Score: <4>": 4,
    "Score:\n\n4": 4,
    "Score: 4.5": 4,
    "Score: 4 out of 5": 4,
    "Score: 1, since a score of 5 needs more": 1,
    "A score of 5 would need more. Score: 3": 3,
    "Rating: four": 4,
    '{"reason": "ok", "score": 4}': 4,
    "评分：5": 5,
    "Оценка: 2": 2,
    "Bewertung: 3": 3,
    "I would rate it 4 out of 5.": 4,
    "The score is 3.": 3,
    "That makes 4/5.": 4,
    " 4": 4,
    "**4**": 4,
    "5\n\nBecause nothing is missing.": 5,
    "4 - it answers well": 4,
    "Reason first.\n\n3": 3,
    "<think>Score: 5</think>\nScore: 2": 2,
    "Score: 3<|im_end|>": 3,
    "Score: \uff14": 4,
    "": None,
    "<think>Score: 4": None,
    "No idea.": None,
    "Score: 45": None,
    "Score: 10": None,
    "Score: 0": None,
    "8/10": None,
    "4/10": None,
    "Score: 1-5": None,
    "Score: N": None,
    "It lists 3 things.": None,
}


@pytest.mark.parametrize("text", SCORES)
def test_the_score_is_found(text: str) -> None:
    assert find_score(text) == SCORES[text]


@pytest.mark.parametrize(
    ("text", "least", "outcome"),
    [
        ("Score: 4", 4, Labelled(4)),
        ("Score: 4", 5, Rejected("low_score", 4)),
        ("Score: 3", 4, Rejected("low_score", 3)),
        ("Score: 1", 1, Labelled(1)),
        ("", 4, Rejected("no_score")),
    ],
)
def test_pairs_below_the_least_score_end(text: str, least: int, outcome: Labelled | Rejected) -> None:
    method = build(Setup(api="chat", documents=DOCUMENTS, options={"min_score": least}))
    assert method.steps[0].read(Completion(text, "stop"), Subject(0, SEA, sources=(0,))) == outcome


# -- anything ----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *(
            "Instruction:",
            "Sure!",
            "\n",
            "\n\n",
            " ",
            "**",
            "```",
            '"',
            "{",
            "[",
            '"instruction": ',
            "1. ",
            "Score: ",
            "4",
            "/5",
        ),
        *("the passage", "above", "<think>", "</think>", "<|im_end|>", "\u200b", "\r\n", "#", "---", "Note:", "指令："),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join), st.sampled_from(["stop", "length", None]))
@settings(max_examples=300, deadline=None)
def test_anything_can_be_read(text: str, finish_reason: str | None) -> None:
    method = build(Setup(documents=DOCUMENTS))
    request = Request(0, "instruction", "", method.creation.sampling, demonstrations=(0,))
    for item in method.creation.read(Completion(text, finish_reason), request):
        assert item.text == method.item_text(text, item.span)
    assert find_score(text) in (None, 1, 2, 3, 4, 5)


@given(st.text(), st.integers(1, 50))
def test_what_is_shown_of_a_document_is_its_beginning(document: str, longest: int) -> None:
    shown = beginning(document, longest)
    text = document.strip()
    assert shown == text if len(text) <= longest else text.startswith(shown.rpartition("\n\n")[0])
    assert usable(document) is None or usable(document)


def test_the_method_says_what_it_is() -> None:
    method = build(Setup(samples=2))
    assert (method.step_names, method.creation.samples) == (("instruction", "score"), 2)
    assert method.creation.has_sources
