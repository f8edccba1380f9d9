"""Stage 3: the prompts, reading instances as models really write them, and the rules in their order."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.methods.self_instruct.instance import ParsedInstances, build_prompt, parse
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, Rules
from fastgen.types import Completion

DEFAULT, PAPER = PRESETS["default"], PRESETS["paper"]


def read(
    text: str, is_classification: bool = False, rules: Rules = DEFAULT, finish: str | None = "stop"
) -> ParsedInstances:
    return parse(Completion(text, finish), is_classification, rules)


def pairs(
    text: str, is_classification: bool = False, rules: Rules = DEFAULT, finish: str | None = "stop"
) -> list[tuple[str, str]]:
    parsed = read(text, is_classification, rules, finish)
    return [(text[slice(*i.input)], text[slice(*i.output)]) for i in parsed.instances]


def rules_of(
    text: str, is_classification: bool = False, rules: Rules = DEFAULT, finish: str | None = "stop"
) -> list[str]:
    return [rejected.rule for rejected in read(text, is_classification, rules, finish).rejected]


TWO_PAIRS = {
    "as asked for": "Example 1\nInput: 3, 1\nOutput: 1, 3\nExample 2\nInput: 5, 4\nOutput: 4, 5",
    "bold": "**Example 1:**\n**Input:** 3, 1\n**Output:** 1, 3\n\n**Example 2:**\n**Input:** 5, 4\n**Output:** 4, 5",
    "colons outside": "**Input**: 3, 1\n**Output**: 1, 3\n**Example 2**\n**Input**: 5, 4\n**Output**: 4, 5",
    "italic": "*Example 1*\n*Input:* 3, 1\n*Output:* 1, 3\n*Example 2*\n*Input:* 5, 4\n*Output:* 4, 5",
    "bullets": "### Example 1\n- Input: 3, 1\n- Output: 1, 3\n### Example 2\n- Input: 5, 4\n- Output: 4, 5",
    "chatter and rules": (
        "Sure! Here are two examples:\n\nExample 1:\nInput: 3, 1\nOutput: 1, 3\n\n---\n\nExample 2:\nInput: 5, 4\n"
        "Output: 4, 5\n\nLet me know if you'd like more examples!"
    ),
    "no headings": "Input: 3, 1\nOutput: 1, 3\n\nInput: 5, 4\nOutput: 4, 5",
    "numbered labels": "Input 1: 3, 1\nOutput 1: 1, 3\nInput 2: 5, 4\nOutput 2: 4, 5",
    "numbered fields": "1. Input: 3, 1\n   Output: 1, 3\n2. Input: 5, 4\n   Output: 4, 5",
    "one line each": "Example 1: Input: 3, 1 Output: 1, 3\nExample 2: Input: 5, 4 Output: 4, 5",
    "capitals": "EXAMPLE 1\nINPUT: 3, 1\nOUTPUT: 1, 3\nEXAMPLE 2\nINPUT: 5, 4\nOUTPUT: 4, 5",
    "remarks": "Input (a list): 3, 1\nExpected output: 1, 3\nInput (a list): 5, 4\nExpected output: 4, 5",
    "answers": "Example 1\nInput: 3, 1\nAnswer: 1, 3\nExample 2\nInput: 5, 4\nAnswer: 4, 5",
    "full-width colons": "Example 1\nInput\uff1a3, 1\nOutput\uff1a1, 3\nExample 2\nInput\uff1a5, 4\nOutput\uff1a4, 5",
    "Chinese labels": "示例1\n输入：3, 1\n输出：1, 3\n示例2\n输入：5, 4\n输出：4, 5",
    "an echoed task": "Task: Sort it.\nExample 1\nInput: 3, 1\nOutput: 1, 3\nExample 2\nInput: 5, 4\nOutput: 4, 5",
    "the next task": "Input: 3, 1\nOutput: 1, 3\nInput: 5, 4\nOutput: 4, 5\n\nTask: Add up.\nInput: 1\nOutput: 1",
    "fences": "Input:\n```\n3, 1\n```\nOutput:\n```text\n1, 3\n```\nInput: 5, 4\nOutput: 4, 5",
    "one fence around": "```\nInput: 3, 1\nOutput: 1, 3\nInput: 5, 4\nOutput: 4, 5\n```",
    "thinking": "<think>Output: no</think>\nInput: 3, 1\nOutput: 1, 3\nInput: 5, 4\nOutput: 4, 5",
    "an end token": "Input: 3, 1\nOutput: 1, 3\nInput: 5, 4\nOutput: 4, 5<|im_end|>\nInput: 9",
    "Windows line ends": "Example 1\r\nInput: 3, 1\r\nOutput: 1, 3\r\nExample 2\r\nInput: 5, 4\r\nOutput: 4, 5\r\n",
    "repeated outputs": "Input: 3, 1\nOutput: 1, 3\nOutput: 3, 1\nInput: 5, 4\nOutput: 4, 5\nOutput: 5, 4",
    "an empty next example": "Example 1\nInput: 3, 1\nOutput: 1, 3\nExample 2\nInput: 5, 4\nOutput: 4, 5\nExample 3\n",
}


@pytest.mark.parametrize("text", TWO_PAIRS.values(), ids=TWO_PAIRS.keys())
def test_pairs_are_read_however_they_are_written(text: str) -> None:
    assert pairs(text) == [("3, 1", "1, 3"), ("5, 4", "4, 5")]


@pytest.mark.parametrize(
    "no_input",
    ["", "N/A", "n/a", "None", "none.", "(none)", "<noinput>", "[No input]", "**N/A**", "No input needed.", "无"],
)
def test_a_placeholder_for_no_input_is_an_empty_input(no_input: str) -> None:
    assert read(f"Example 1\nInput: {no_input}\nOutput: A poem.").instances[0].input == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Output: A poem.", [("", "A poem.")]),
        ("Example 1\nA poem.", [("", "A poem.")]),
        ("Input: none of these\nOutput: x", [("none of these", "x")]),
        (
            "Example 1\nSentence: It rains.\nTense: past\nOutput: It rained.",
            [("Sentence: It rains.\nTense: past", "It rained.")],
        ),
        ("Sentence: It rains.\nOutput: It rained.", [("Sentence: It rains.", "It rained.")]),
        ("Example 1\nText: a\nInput: b\nOutput: c", [("Text: a\nInput: b", "c")]),
        ("Input 1: a\nInput 2: b\nOutput: c", [("a\nInput 2: b", "c")]),
        (
            "Output: For Example, an Output like this.\nIt has an Input too.",
            [("", "For Example, an Output like this.\nIt has an Input too.")],
        ),
        ("Output: **Dear** Ann", [("", "**Dear** Ann")]),
        (
            "Output: Dear Ann,\n\nLet me know if you need a lift.\n\nBob",
            [("", "Dear Ann,\n\nLet me know if you need a lift.\n\nBob")],
        ),
        ("Output:\n1. a\n2. b", [("", "1. a\n2. b")]),
        ("Output: a\n\n```\nb\n```\n\nc\n\n```\nd\n```", [("", "a\n\n```\nb\n```\n\nc\n\n```\nd\n```")]),
        ("Here you are:\n\nOutput: x", [("", "x")]),
        (
            "Output: A noun names a thing.\nExample:\nThe cat sleeps.",
            [("", "A noun names a thing.\nExample:\nThe cat sleeps.")],
        ),
        ("Example:\n\nInput: a\nOutput: b\nExample\nInput: c\nOutput: d", [("a", "b"), ("c", "d")]),
        ("Output: Dear cook,\nInstruction: stir.", [("", "Dear cook,\nInstruction: stir.")]),
        ("Instruction: Sort it.\nInput: b a\nOutput: a b", [("b a", "a b")]),
    ],
)
def test_odd_pieces_keep_their_text(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text) == expected


TWO_LABELS = {
    "as asked for": "Class label: Yes\nIt rains.\nClass label: No\nIt is dry.",
    "labelled inputs": "Class label: Yes\nInput: It rains.\nClass label: No\nInput: It is dry.",
    "bold": "**Class label:** Yes\n**Input:** It rains.\n\n**Class label:** No\n**Input:** It is dry.",
    "chatter and rules": "Here are the examples:\n\nClass Label: Yes\nIt rains.\n\n---\n\nClass Label: No\nIt is dry.",
    "headings": "Example 1\nClass label: Yes\nIt rains.\n\nExample 2\nClass label: No\nIt is dry.",
    "bullets": "- Class label: Yes\n  Input: It rains.\n- Class label: No\n  Input: It is dry.",
    "numbers": "1. Class label: Yes\n   Input: It rains.\n2. Class label: No\n   Input: It is dry.",
    "numbered labels": "Class label 1: Yes\nIt rains.\nClass label 2: No\nIt is dry.",
    "label on the next line": "Class label:\nYes\nIt rains.\nClass label:\nNo\nIt is dry.",
    "one line each": "Class label: Yes Input: It rains.\nClass label: No Input: It is dry.",
    "another word": "Label: Yes\nIt rains.\nLabel: No\nIt is dry.",
    "input first": "Input: It rains.\nClass label: Yes\n\nInput: It is dry.\nClass label: No",
    "input and headings": "Example 1\nInput: It rains.\nClass label: Yes\nExample\nInput: It is dry.\nClass label: No",
    "outputs instead": "Input: It rains.\nOutput: Yes\n\nInput: It is dry.\nOutput: No",
    "the next task": "Class label: Yes\nIt rains.\nClass label: No\nIt is dry.\n\nTask: Is it?\nClass label: Maybe\nx",
}


@pytest.mark.parametrize("text", TWO_LABELS.values(), ids=TWO_LABELS.keys())
def test_labelled_inputs_are_read_however_they_are_written(text: str) -> None:
    assert pairs(text, is_classification=True) == [("It rains.", "Yes"), ("It is dry.", "No")]


@pytest.mark.parametrize("rules", [DEFAULT, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Example 1\nInput: a\nOutput: a", "input_equals_output"),
        ("Example 1\nInput:\nOutput:\n", "input_equals_output"),
        ("Example 1\nInput: a\nOutput:", "empty_output"),
        ("Example 1\nInput: a:\nOutput: b", "ends_with_colon"),
        ("Example 1\nInput: a\nOutput: b:", "ends_with_colon"),
    ],
)
def test_an_invalid_instance_is_rejected_under_the_name_of_its_rule(text: str, rule: str, rules: Rules) -> None:
    parsed = read(f"{text}\nExample 2\nInput: c\nOutput: d", rules=rules)
    assert [rejected.rule for rejected in parsed.rejected] == [rule]
    assert len(parsed.instances) == 1


@pytest.mark.parametrize("rules", [DEFAULT, PAPER], ids=["default", "paper"])
def test_one_input_with_two_outputs_discards_everything(rules: Rules) -> None:
    parsed = read(
        "Example 1\nInput: a\nOutput: b\nExample 2\nInput: a\nOutput: c\nExample 3\nInput: d\nOutput: e", rules=rules
    )
    assert parsed.instances == ()
    assert parsed.discarded == "conflicting_outputs"
    assert {rejected.rule for rejected in parsed.rejected} == {"conflicting_outputs"}


@pytest.mark.parametrize("rules", [DEFAULT, PAPER], ids=["default", "paper"])
def test_two_outputs_without_any_input_do_not_conflict(rules: Rules) -> None:
    assert pairs("Example 1\nOutput: a\nExample 2\nOutput: b", rules=rules) == [("", "a"), ("", "b")]


@pytest.mark.parametrize("rules", [DEFAULT, PAPER], ids=["default", "paper"])
def test_duplicates_collapse_and_the_first_five_are_kept(rules: Rules) -> None:
    text = "\n".join(f"Example {i}\nInput: {n}\nOutput: {n}!" for i, n in enumerate([1, 1, 2, 3, 4, 5, 6, 2], 1))
    parsed = read(text, rules=rules)
    assert [text[slice(*i.input)] for i in parsed.instances] == ["1", "2", "3", "4", "5"]
    assert [rejected.rule for rejected in parsed.rejected] == ["duplicate", "too_many", "duplicate"]
    assert len(read(text, rules=replace(rules, max_instances=1)).instances) == 1


def test_an_invalid_instance_cannot_conflict_but_the_cut_one_is_dropped_first() -> None:
    text = "Example 1\nInput: a\nOutput: b\nExample 2\nInput: a\nOutput: a\nExample 3\nInput: a\nOutput: c"
    parsed = read(text, finish="length")
    assert [rejected.rule for rejected in parsed.rejected] == ["unfinished", "input_equals_output"]
    assert parsed.discarded is None
    assert len(parsed.instances) == 1


@pytest.mark.parametrize("rest", ["\nExample 3", "\nOutput: an", "\nTask: Th", "<|im_end|>\nx"])
def test_a_pair_that_something_follows_is_finished_even_in_a_cut_completion(rest: str) -> None:
    assert rules_of(f"Example 1\nInput: a\nOutput: b{rest}", finish="length") == []


@pytest.mark.parametrize(
    "rest", ["", "\n", "\nExample 2\nInput: c", "\nExample 2\nInput: c\nOutput:", "\nExample 2\nInp"]
)
def test_a_cut_completion_loses_its_last_instance(rest: str) -> None:
    assert rules_of(f"Example 1\nInput: a\nOutput: b{rest}", finish="length") == ["unfinished"]
    assert rules_of(f"Class label: a\nb{rest}", is_classification=True, rules=PAPER, finish="length") == ["unfinished"]


@pytest.mark.parametrize(
    ("text", "discarded"),
    [("", "no_instance"), ("Just a text.", "no_instance"), ("<think>Output: x", "unclosed_thinking")],
)
@pytest.mark.parametrize("is_classification", [False, True])
def test_a_completion_without_instances_says_why(text: str, discarded: str, is_classification: bool) -> None:
    assert read(text, is_classification) == ParsedInstances((), (), discarded)


def test_the_paper_preset_reads_the_exact_labels_only() -> None:
    assert pairs("**Input:** a\n**Output:** b", rules=PAPER) == [("**Input:** a\n**", "** b")]
    assert pairs("Input: N/A\nOutput: b", rules=PAPER) == [("N/A", "b")]
    assert pairs("Class Label: a\nb", is_classification=True, rules=PAPER) == []
    assert pairs("Class label: a\nInput: b", is_classification=True, rules=PAPER) == [("Input: b", "a")]


PIECES = st.sampled_from(
    [
        *(
            "Example 1",
            "Example",
            "Input:",
            "Input 2 :",
            "Output:",
            "**Output:**",
            "Class label:",
            "Label:",
            "Task:",
            "Answer:",
        ),
        *(
            "\n",
            "\n\n",
            "\r\n",
            " ",
            "\t",
            "```",
            "```py\n",
            "---",
            "**",
            "- ",
            "1. ",
            "#",
            ":",
            "：",
            "N/A",
            "a",
            "b",
            "Sure!",
        ),
        *("<think>", "</think>", "<|im_end|>", "Let me know if you need more", "\u2003", "\x1c", "示例1", "输出："),
        *(
            "| Input | Output |\n",
            "|---|---|\n",
            "| a | b |\n",
            '{"input": "a", ',
            '"output": "b"}',
            "[",
            "]",
            "\u200b",
        ),
        *("**Input**\n", "Explanation: ", "\u2192 ", "Text: a\n", "Note: these examples", "Output", "\nExample"),
    ]
)


@settings(deadline=None)  # the time depends on what else the machine does
@given(
    st.one_of(st.lists(PIECES, max_size=25).map("".join), st.text(max_size=60)),
    st.booleans(),
    st.sampled_from([DEFAULT, PAPER, replace(DEFAULT, max_instances=1)]),
    st.sampled_from(["stop", "length", None]),
)
def test_any_text_parses_into_stripped_spans_and_valid_instances(
    text: str, is_classification: bool, rules: Rules, finish_reason: str | None
) -> None:
    parsed = read(text, is_classification, rules, finish_reason)
    assert len(parsed.instances) <= rules.max_instances
    spans = [(one.input, one.output) for one in parsed.instances] + [(one.input, one.output) for one in parsed.rejected]
    for span in (span for pair in spans for span in pair):
        start, end = span
        assert 0 <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert start < end or span == (0, 0)
    kept = [(text[slice(*i.input)], text[slice(*i.output)]) for i in parsed.instances]
    assert len(set(kept)) == len(kept)
    assert all(
        wanted and given != wanted and not given.endswith(":") and not wanted.endswith(":") for given, wanted in kept
    )
    if parsed.discarded is not None:
        assert parsed.instances == ()


FIELD = st.text("abcé字 ,.!?", min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.dictionaries(FIELD, FIELD, min_size=1, max_size=5), st.sampled_from([DEFAULT, PAPER]))
def test_well_formed_instances_read_back_in_both_presets(wanted: dict[str, str], rules: Rules) -> None:
    valid = [(i, o) for i, o in wanted.items() if i != o]
    listed = "".join(f"Example {n}\nInput: {i}\nOutput: {o}\n" for n, (i, o) in enumerate(wanted.items(), 1))
    assert pairs(listed, rules=rules) == valid
    labelled = "".join(f"Class label: {o}\n{i}\n" for i, o in wanted.items())
    assert pairs(labelled, is_classification=True, rules=rules) == valid


@pytest.mark.parametrize("is_classification", [False, True])
@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\n",
        "*",
        "Output:\n",
        "Input:\n",
        "Example 1\n",
        "Example\n",
        "Class label: a\n",
        "```\n",
        "\n---",
        "1. ",
        "Task:\n",
        "\n\n** ",
    ],
)
def test_reading_stays_fast_on_long_degenerate_completions(piece: str, is_classification: bool) -> None:
    text = piece * (20_000 // len(piece))
    start = time.process_time()
    read(text, is_classification, finish="length")
    assert time.process_time() - start < 2


def test_each_kind_of_task_gets_its_own_prompt_that_ends_in_the_task() -> None:
    prompts = load_prompts("completions")
    generation, labelled = (
        build_prompt(" Sort {x}.\n", is_classification, prompts) for is_classification in (False, True)
    )
    assert isinstance(generation, str)
    assert isinstance(labelled, str)
    assert generation.endswith("\n\nTask: Sort {x}.\n")
    assert labelled.endswith("\n\nTask: Sort {x}.\n")
    assert "Output:" in generation
    assert "Class label:" in labelled


def judged(text: str, instruction: str, *, is_classification: bool = False, rules: Rules = DEFAULT) -> list[str]:
    """What became of each instance: its output where it was kept, then the rules that rejected others."""
    parsed = parse(Completion(text, "stop"), is_classification, rules, instruction)
    return [text[slice(*i.output)] for i in parsed.instances] + [rejected.rule for rejected in parsed.rejected]


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        ("Name three rivers in Peru.", "Output: Name three rivers in Peru."),
        ("Name three rivers in Peru.", "Output: **name three\nrivers** in Peru!"),
        ("Name three rivers in Peru.", "Output: Three rivers in Peru."),
        ("Sort the words.", "Input: pear, apple\nOutput: Sort the words. pear, apple"),
        ("写一首关于春天的诗。", "Output: 写一首关于春天的诗"),
    ],
)
def test_an_output_that_only_repeats_the_instruction_is_rejected(instruction: str, text: str) -> None:
    assert judged(text, instruction) == ["output_repeats_instruction"]
    off = replace(DEFAULT, reject_repeated_instruction=False)
    for rules in (off, PAPER):
        assert judged(text, instruction, rules=rules) != ["output_repeats_instruction"]


@pytest.mark.parametrize(
    ("instruction", "output"),
    [
        ("Is the review positive or negative?", "positive"),
        (
            'Finish your text with "Thank you to everyone who helped me out."',
            "Thank you to everyone who helped me out.",
        ),
        ("What is the capital of Peru?", "What is the capital of Peru? It is Lima."),
        ("Say yes.", "..."),
    ],
)
def test_an_output_that_says_more_or_is_asked_for_is_no_repetition(instruction: str, output: str) -> None:
    assert judged(f"Output: {output}", instruction) == [output]


NO_INPUT = "Example 1\nOutput: {}\nExample 2\nOutput: {}"


@pytest.mark.parametrize(
    ("is_classification", "text", "kept"),
    [
        (True, "Class label: Yes\nClass label: No", []),
        (True, "Class label: Yes\nClass label: No\nClass label: Maybe\nIt may rain.", ["Maybe"]),
        (True, "Class label: Yes", ["Yes"]),
        (True, "Class label: Yes\nClass label: yes.", ["Yes", "yes."]),
        (True, "Class label: Yes\nIt rains.\nClass label: No\nIt is dry.", ["Yes", "No"]),
        (False, NO_INPUT.format("1/6", "3/6"), []),
        (False, NO_INPUT.format("Yes.", "No, never."), []),
        (False, NO_INPUT.format("是", "否"), []),
        (False, NO_INPUT.format("Tom", "Whiskers"), ["Tom", "Whiskers"]),
        (False, NO_INPUT.format("The sea is wide and grey in 1900.", "7"), ["The sea is wide and grey in 1900.", "7"]),
        (False, "Example 1\nInput: a\nOutput: 1\nExample 2\nInput: b\nOutput: 2", ["1", "2"]),
    ],
)
def test_answers_without_an_input_must_not_contradict_each_other(
    text: str, kept: list[str], *, is_classification: bool
) -> None:
    found = judged(text, "Do it.", is_classification=is_classification)
    assert [output for output in found if output != "contradictory_outputs"] == kept
    lost = 2 if "contradictory_outputs" in found else 0
    assert found.count("contradictory_outputs") == lost
    off = replace(DEFAULT, reject_contradictions=False)
    assert len(judged(text, "Do it.", is_classification=is_classification, rules=off)) == len(kept) + lost
