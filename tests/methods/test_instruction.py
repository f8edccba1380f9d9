"""Stage 1: the prompt, and reading lists as models really write them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.methods.self_instruct.instruction import UNCLOSED_THINKING, UNFINISHED, build_prompt, item_text, parse
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, Rules
from fastgen.types import Completion

DEFAULT, PAPER = PRESETS["default"], PRESETS["paper"]
HAIKU, RIVERS, SYNONYM = "Write a haiku about rain.", "Name three rivers in Peru.", "Give a synonym of the word big."


def texts(completion: str, rules: Rules = DEFAULT, finish_reason: str | None = "stop") -> list[str]:
    return [item.text for item in parse(Completion(completion, finish_reason), rules, first_number=9) if not item.rule]


TWO_ITEMS = {
    "after the prompt's number": f" {HAIKU}\n10. {RIVERS}\n",
    "without the blank, which some servers strip": f"{HAIKU}\n10. {RIVERS}",
    "the prompt's number again": f"9. {HAIKU}\n10. {RIVERS}",
    "a chatty first line": f"Sure! Here are eight more tasks:\n\n9. {HAIKU}\n10. {RIVERS}",
    "chatter without a blank line": f"Here are some tasks:\n9. {HAIKU}\n10. {RIVERS}",
    "a heading": f"## Tasks\n\n9. {HAIKU}\n10. {RIVERS}",
    "a plain first line before its own numbering": f"More of the same kind\n\n1. {HAIKU}\n2. {RIVERS}",
    "headings between": f"**Poetry**\n9. {HAIKU}\n\n**Geography**\n10. {RIVERS}",
    "a closing line": f"9. {HAIKU}\n10. {RIVERS}\n\nLet me know if you need more!",
    "a closing rule and note": f"9. {HAIKU}\n10. {RIVERS}\n---\nThese tasks are varied.",
    "closing brackets": f"9) {HAIKU}\n10) {RIVERS}",
    "round brackets": f"(9) {HAIKU}\n(10) {RIVERS}",
    "square brackets": f"[9] {HAIKU}\n[10] {RIVERS}",
    "a blank before the point": f"9 . {HAIKU}\n10 . {RIVERS}",
    "no blank after the point": f"9.{HAIKU}\n10.{RIVERS}",
    "an escaped point": f"9\\. {HAIKU}\n10\\. {RIVERS}",
    "colons": f"9: {HAIKU}\n10: {RIVERS}",
    "bold numbers": f"**9.** {HAIKU}\n**10.** {RIVERS}",
    "bold numbers, point outside": f"**9**. {HAIKU}\n**10**. {RIVERS}",
    "bold items": f"9. **{HAIKU}**\n10. **{RIVERS}**",
    "wholly bold items": f"**9. {HAIKU}**\n**10. {RIVERS}**",
    "bold titles": f"9. **Haiku**: {HAIKU}\n10. **Rivers:** {RIVERS}",
    "bold titles with dashes": f"9. **Haiku** - {HAIKU}\n10. **Rivers** \u2013 {RIVERS}",
    "titles bold with their numbers": f"**9. Haiku**: {HAIKU}\n**10. Rivers:** {RIVERS}",
    "titles on their own lines": f"9. **Haiku**\n   {HAIKU}\n\n10. **Rivers**\n\n   {RIVERS}\n",
    "titles with a bullet below": f"9. **Haiku**\n   - {HAIKU}\n10. **Rivers**\n   - {RIVERS}",
    "headed tasks": f"### Task 9\n{HAIKU}\n\n### Task 10\n{RIVERS}",
    "headed tasks with titles": f"### Task 9: Haiku\n\n{HAIKU}\n\n### Task 10: Rivers\n\n{RIVERS}",
    "headed numbers with titles": f"### 9. Haiku\n{HAIKU}\n\n### 10. Rivers\n{RIVERS}",
    "named tasks": f"Task 9: {HAIKU}\nTask 10: {RIVERS}",
    "named tasks with dashes": f"Task 9 - {HAIKU}\nTask 10 \u2014 {RIVERS}",
    "bold named tasks": f"**Task 9:** {HAIKU}\n\n**Task 10:** {RIVERS}",
    "numbered instructions": f"Instruction #9: {HAIKU}\nInstruction #10: {RIVERS}",
    "hash signs": f"#9 {HAIKU}\n#10 {RIVERS}",
    "circled numbers": f"① {HAIKU}\n② {RIVERS}",
    "quotation marks": f'9. "{HAIKU}"\n10. “{RIVERS}”',
    "block quotes": f"> 9. {HAIKU}\n> 10. {RIVERS}",
    "bulleted numbers": f"* 9. {HAIKU}\n* 10. {RIVERS}",
    "bullets": f"- {HAIKU}\n- {RIVERS}",
    "bullets after chatter": f"Certainly, here you go:\n\n* {HAIKU}\n* {RIVERS}",
    "round bullets": f"• {HAIKU}\n• {RIVERS}",
    "labels without numbers": f"Task: {HAIKU}\nTask: {RIVERS}",
    "labels under titles": f"9. Haiku\n   Instruction: {HAIKU}\n10. Rivers\n   Instruction: {RIVERS}",
    "labelled parts": f"9. **Instruction:** {HAIKU}\n   **Input:** no\n   **Output:** a\n10. **Instruction:** {RIVERS}",
    "instances inside": f" {HAIKU}\nInput: spring\nOutput: Soft rain on the roof\n10. {RIVERS}\nExample: Ucayali",
    "an instance on the same line": f" {HAIKU} Output: Soft rain on the roof.\n10. {RIVERS} **Input:** none",
    "items over two lines": " Write a haiku\nabout rain.\n10. Name three\n    rivers in Peru.",
    "Windows line ends": f"9. {HAIKU}\r\n\r\n10. {RIVERS}\r\n",
    "a code fence": f"```\n9. {HAIKU}\n10. {RIVERS}\n```",
    "thinking": f"<think>\n1. vary the verbs\n2. no files\n</think>\n\n9. {HAIKU}\n10. {RIVERS}",
    "thinking opened by the template": f"Vary the verbs:\n1. write\n</think>\n\n9. {HAIKU}\n10. {RIVERS}",
    "two blocks of thinking": f"<think>a</think>\n<thinking>b</thinking>9. {HAIKU}\n10. {RIVERS}",
    "an end token": f" {HAIKU}\n10. {RIVERS}<|im_end|>\n11. {SYNONYM}",
    "the beginning of the next number": f" {HAIKU}\n10. {RIVERS}\n11",
    "an empty next item": f" {HAIKU}\n10. {RIVERS}\n11. ",
}


@pytest.mark.parametrize("completion", TWO_ITEMS.values(), ids=TWO_ITEMS.keys())
def test_a_list_is_read_however_it_is_written(completion: str) -> None:
    assert texts(completion) == [HAIKU, RIVERS]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("9、写一首关于春天的诗。\n10、把这句话翻译成英文。", ["写一首关于春天的诗。", "把这句话翻译成英文。"]),
        ("以下是新的任务：\n\n9. 写一首关于春天的诗。", ["写一首关于春天的诗。"]),
        ("九、写一首关于春天的诗。\n十、把这句话翻译成英文。", ["写一首关于春天的诗。", "把这句话翻译成英文。"]),
        ("（九）写一首关于春天的诗。\n（十）翻译这句话。", ["写一首关于春天的诗。", "翻译这句话。"]),
        (
            "９．俳句を書いてください。\n１０．英語に訳してください。",
            ["俳句を書いてください。", "英語に訳してください。"],
        ),
        ("٩. اكتب قصيدة عن الربيع.\n١٠. ترجم الجملة.", ["اكتب قصيدة عن الربيع.", "ترجم الجملة."]),
        ("९. वसंत पर कविता लिखो।\n१०. वाक्य का अनुवाद करो।", ["वसंत पर कविता लिखो।", "वाक्य का अनुवाद करो।"]),
        (f" {HAIKU}\n1. {RIVERS}\n2. {SYNONYM}", [HAIKU, RIVERS, SYNONYM]),
        (f"1. {HAIKU}\n2. {RIVERS}\n1. {SYNONYM}", [HAIKU, RIVERS, SYNONYM]),
        (f"9. {HAIKU}\n12. {RIVERS}\n11. {SYNONYM}", [HAIKU, RIVERS, SYNONYM]),
        (
            f" The following is a list of fish. Sort it.\n10. {RIVERS}",
            ["The following is a list of fish. Sort it.", RIVERS],
        ),
        (
            "9. Sort the words:\n   1. pear\n   2. apple\n10. Name a river.",
            ["Sort the words: 1. pear 2. apple", "Name a river."],
        ),
        (" Use these:\n- pear\n- apple\n10. Name a river.", ["Use these: - pear - apple", "Name a river."]),
        ("9. Who won in\n2016. Name the city.", ["Who won in 2016. Name the city."]),
        ("9. It is\n9:30 am. How long until noon?", ["It is 9:30 am. How long until noon?"]),
        ("9. Round the number\n3.5 to an integer.", ["Round the number 3.5 to an integer."]),
        ("9. Explain the word **rain** to me.", ["Explain the word **rain** to me."]),
        ("9. Explain NASA's DNA lab.", ["Explain NASA's DNA lab."]),
        ("9. **A title is all that there is**", ["A title is all that there is"]),
        ("", []),
        (" \n\n", []),
        ("I'm sorry, but I can't help with that.", []),
        ("To continue the list, I will first look at its verbs.", []),
        ("Here are eight more tasks:", []),
    ],
)
def test_other_scripts_odd_numbering_and_no_list_at_all(completion: str, expected: list[str]) -> None:
    assert texts(completion) == expected


def rules_of(completion: str, rules: Rules = DEFAULT, finish_reason: str | None = "length") -> list[str | None]:
    return [item.rule for item in parse(Completion(completion, finish_reason), rules, first_number=9)]


def test_a_cut_completion_loses_its_last_item_only() -> None:
    assert rules_of(f" {HAIKU}\n10. {RIVERS}\n11. Give a syn") == [None, None, UNFINISHED]


@pytest.mark.parametrize(
    "rest", ["\n11", "\n11. ", "\n", "\n\nNote that th", "\nInput: som", "<|im_end|> x", " Output: so"]
)
def test_an_item_that_something_follows_is_finished_even_in_a_cut_completion(rest: str) -> None:
    assert rules_of(f" {HAIKU}\n10. {RIVERS}{rest}") == [None, None]


def test_the_paper_preset_loses_the_whole_cut_completion() -> None:
    assert rules_of(f" {HAIKU}\n10. {RIVERS}\n11. Give a syn", PAPER) == [UNFINISHED] * 3
    assert rules_of(f" {HAIKU}\n10. {RIVERS}\n", replace(DEFAULT, unfinished="drop_completion")) == [UNFINISHED] * 2


@pytest.mark.parametrize(("finish_reason", "rule"), [("content_filter", UNFINISHED), ("stop", None), (None, None)])
def test_no_finish_reason_means_finished(finish_reason: str | None, rule: str | None) -> None:
    assert rules_of(f" {HAIKU}", finish_reason=finish_reason) == [rule]
    assert rules_of(f" {HAIKU}", PAPER, finish_reason) == [None]


def test_thinking_that_never_ends_is_one_rejected_item() -> None:
    assert rules_of("<think>\n1. Vary the verbs and", finish_reason="length") == [UNCLOSED_THINKING]


def test_the_paper_preset_splits_at_numbers_and_nothing_else() -> None:
    completion = f"Sure! Here you are:\n9. {HAIKU}\n10) {RIVERS}\n11 . x"
    assert texts(completion, PAPER) == ["Sure! here you are:", f"{HAIKU} 10) {RIVERS}".capitalize(), "X"]


LIST_PIECES = st.sampled_from(
    [
        *(
            "\n",
            "\n\n",
            "\r\n",
            " ",
            "\t",
            "9. ",
            "\n10. ",
            "\n11",
            "10)",
            "**",
            "__",
            "#",
            "### ",
            "- ",
            "• ",
            "> ",
            "```",
            "---",
        ),
        *(
            "Task",
            "Task 3:",
            "Instruction:",
            "Input:",
            " Output:",
            "Sure! ",
            "Here are",
            "<think>",
            "</think>",
            "<|im_end|>",
        ),
        *(
            '"',
            "“",
            "”",
            "Write a poem",
            "a. b",
            "九、",
            "（三）",
            "１２．",
            "①",
            ":",
            "：",
            "Title",
            "\u2003",
            "\x1c",
            "\\.",
        ),
        *("Question: ", "a) ", "IX. ", "| ", "|---|", "| # | Task |", "[", '["', '", "', "]", '{"task": "', '"}', "\\"),
        *("\u200b", "\ufeff", "1\ufe0f\u20e3", " 10. ", ". 2. ", "9 - ", "*Title:* ", "Let me know if", "(Note: "),
    ]
)


@settings(deadline=None)  # the time depends on what else the machine does
@given(
    st.one_of(st.lists(LIST_PIECES, max_size=25).map("".join), st.text(max_size=60)),
    st.sampled_from(["stop", "length", None, "weird"]),
    st.sampled_from([DEFAULT, PAPER, replace(DEFAULT, capitalise=True)]),
    st.integers(1, 40),
)
def test_any_text_parses_into_ascending_spans_that_reproduce_the_items(
    text: str, finish_reason: str | None, rules: Rules, first_number: int
) -> None:
    items = parse(Completion(text, finish_reason), rules, first_number=first_number)
    end = 0
    for item in items:
        start, stop = item.span
        assert end <= start < stop <= len(text)
        assert item.text == item_text(text, item.span, rules) != ""
        assert text[start:stop] == text[start:stop].strip()
        assert item.rule in {None, UNFINISHED, UNCLOSED_THINKING}
        end = stop


@settings(deadline=None)  # the time depends on what else the machine does
@given(
    st.lists(
        st.sampled_from([HAIKU, RIVERS, SYNONYM, "写一首关于春天的诗。", "How tall is it?"]), min_size=1, max_size=9
    )
)
def test_a_well_formed_list_reads_back_in_both_presets(items: list[str]) -> None:
    listed = "".join(f"{'' if n == 9 else n}{'.' if n > 9 else ''} {item}\n" for n, item in enumerate(items, 9))
    assert texts(listed) == items
    assert texts(listed, PAPER) == [item.capitalize() for item in items]


@pytest.mark.parametrize(
    "piece", [" ", "\n", "*", "#", "9. ", "**a", "- ", "9", "\n9", "<think>", '"', "_", "```\n", "Input:", "> > "]
)
def test_reading_stays_fast_on_long_degenerate_completions(piece: str) -> None:
    text = piece * (40_000 // len(piece))
    start = time.process_time()
    parse(Completion(text, "length"), DEFAULT, first_number=9)
    assert time.process_time() - start < 2


def test_the_prompt_numbers_the_demonstrations_and_ends_in_the_next_number() -> None:
    demos = ["Write a\n  haiku:", "Name {three}\trivers: ::", RIVERS]
    prompt = build_prompt(demos, load_prompts("completions"), classification_only=False)
    assert isinstance(prompt, str)
    assert prompt.endswith(f"\n1. Write a haiku\n2. Name {{three}} rivers: \n3. {RIVERS}\n4.")


def test_the_classification_header_differs_and_the_chat_prompt_carries_the_same_list() -> None:
    completions, chat = load_prompts("completions"), load_prompts("chat")
    plain, only = (build_prompt([RIVERS], completions, classification_only=only) for only in (False, True))
    assert plain != only
    assert isinstance(only, str)
    assert "classification" in only
    messages = build_prompt([HAIKU, RIVERS], chat, classification_only=True)
    assert not isinstance(messages, str)
    system, user = messages
    assert (system.role, user.role) == ("system", "user")
    assert f"1. {HAIKU}\n2. {RIVERS}" in user.content
    assert "3" in user.content


QUESTIONS = "Question 1: What is a star?\nQuestion 2: What are stars?"
COMPARED = "Do they mean the same? Question 1: What is a star? Question 2: What are stars?"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f" Do they mean the same?\n{QUESTIONS}\n10. {HAIKU}\n11. {RIVERS}", [COMPARED, HAIKU, RIVERS]),
        (
            f"9. Do they mean the same?\n{QUESTIONS}\nQuestion 3: Is it?\n10. {HAIKU}",
            [f"{COMPARED} Question 3: Is it?", HAIKU],
        ),
        (f" Do they mean the same?\n{QUESTIONS}", [COMPARED]),
        (QUESTIONS, ["What is a star?", "What are stars?"]),
        (f"Sure, here you are:\n\n{QUESTIONS}", ["What is a star?", "What are stars?"]),
        (f"9. {HAIKU}\n10. {RIVERS}\nTask 11: {SYNONYM}", [HAIKU, RIVERS, SYNONYM]),
        (f"Task 9: {HAIKU}\n1. one line\n2. another\nTask 10: {RIVERS}", [f"{HAIKU} 1. one line 2. another", RIVERS]),
    ],
)
def test_numbered_questions_inside_an_item_are_part_of_it(completion: str, expected: list[str]) -> None:
    assert texts(completion) == expected
