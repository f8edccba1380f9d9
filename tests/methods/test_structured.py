"""Structured output: what is asked for, JSON as plain text, and the readers of that text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastgen.methods.self_instruct import instance, instruction
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct_chat import read_tasks
from fastgen.methods.structured import Form, as_text, is_left_open, is_written, read_records, with_form
from fastgen.text import answer_span
from fastgen.types import Completion, Message, Request, Sampling

RULES = PRESETS["default"]
PAIRS = Form("examples", ("input", "output"), most=5, note="It may be empty.")
HARD = 'He said "no".\nExample 2\nOutput: {"a": [1]}\n```\n1. \\ 🙂 \u2028 end'


CHAT = (Message("system", "s"), Message("user", "Write."))


def request(prompt: Any = CHAT) -> Request:
    return Request(0, "instance", prompt, Sampling(0.7, 1.0, 100))


def written(value: Any, finish_reason: str = "stop", before: str = "") -> Completion:
    return as_text(Completion(before + (value if isinstance(value, str) else json.dumps(value)), finish_reason))


def values(completion: Completion) -> list[dict[str, str]]:
    text = completion.text
    answer = answer_span(text)
    assert answer is not None
    assert is_written(text, answer)
    return [{name: text[slice(*span)] for name, span in record.items()} for record in read_records(text, answer)]


# -- asking ------------------------------------------------------------------------------------------------------------


def test_the_last_message_says_the_form_and_the_body_has_its_schema() -> None:
    asked = with_form(request(), PAIRS)
    assert isinstance(asked.prompt, tuple)
    assert asked.prompt[0] == Message("system", "s")
    assert asked.prompt[1] == Message(
        "user",
        "Write.\n\nWrite your answer as JSON, in this form and with nothing before or after it: "
        '{"examples": [{"input": "...", "output": "..."}, ...]} It may be empty.',
    )
    assert asked.extra == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "examples",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {
                        "examples": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 5,
                            "items": {
                                "type": "object",
                                "properties": {"input": {"type": "string"}, "output": {"type": "string"}},
                                "required": ["input", "output"],
                                "additionalProperties": False,
                            },
                        }
                    },
                    "required": ["examples"],
                    "additionalProperties": False,
                },
            },
        }
    }


def test_a_form_of_one_field_is_a_list_of_texts() -> None:
    form = Form("tasks", ("task",), most=8)
    assert form.schema["properties"]["tasks"]["items"] == {"type": "string"}
    assert form.sentence.endswith('{"tasks": ["...", ...]}')


def test_completion_prompts_and_steps_without_a_form_are_not_changed() -> None:
    plain = request("9.")
    assert with_form(plain, PAIRS) is plain
    assert with_form(request(), None) == request()


# -- JSON as text ------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
@example([(HARD, HARD), ("", "<|im_end|> x"), ("\x1e\x1f", "\x00")])
def test_every_value_comes_back_whatever_it_holds(pairs: list[tuple[str, str]]) -> None:
    clean = [tuple(value.replace("</think>", "").replace("[/THINK]", "") for value in pair) for pair in pairs]
    found = values(written({"examples": [{"input": given, "output": wanted} for given, wanted in clean]}))
    blank = str.maketrans(dict.fromkeys("\x1c\x1d\x1e\x1f", " "))

    def shown(value: str) -> str:
        return value.translate(blank).strip().strip("\u200b\u200e\u200f\u2060\ufeff").strip()

    assert [(shown(one["input"]), shown(one["output"])) for one in found] == [
        (shown(given), shown(wanted)) for given, wanted in clean
    ]


def test_an_answer_that_is_cut_anywhere_gives_the_records_before_and_leaves_the_last_open() -> None:
    pairs = [{"input": HARD, "output": "one"}, {"input": "", "output": HARD}, {"input": "x", "output": "three"}]
    whole = json.dumps({"examples": pairs})
    ends = [0, *(whole.index(json.dumps(one)) + len(json.dumps(one)) for one in pairs)]
    for cut in range(whole.index("[") + 2, len(whole)):
        made = written(whole[:cut], "length")
        complete = sum(end <= cut for end in ends[1:])
        found = values(made)
        assert [list(one.values()) for one in found[:complete]] == [list(one.values()) for one in pairs[:complete]]
        assert len(found) - complete == is_left_open(made.text)
        if len(found) > complete:
            assert whole[ends[complete] : cut].count('"') > 0
            assert pairs[complete]["input"].startswith(found[complete].get("input", ""))


def test_a_cut_in_the_middle_of_an_escape_loses_only_the_escape() -> None:
    assert values(written('{"tasks": ["Say \\"hi\\" to \\ud83d\\ude0', "length")) == [{"text": 'Say "hi" to'}]


def test_reasoning_before_the_answer_stays_and_a_fence_around_it_goes() -> None:
    made = written('```json\n{"tasks": ["A", "B"]}\n```', before="<think>\nhm [1]\n</think>\n\n")
    assert values(made) == [{"text": "A"}, {"text": "B"}]
    assert made.text.startswith("<think>\nhm [1]\n</think>\n\n\x1e")


@pytest.mark.parametrize(
    "text",
    [
        "9. Write a poem.",
        "[1] Write.\n[2] Sing.",
        '[Say "hi" to',
        '{"tasks": [',
        '["A."] Let me know.',
        "",
        "no",
        "3",
        '"text"',
        "null",
        "<think>{",
        "{" * 9000,
        "[" * 200_001,
        "{'a': 1}",
    ],
)
def test_any_other_answer_stays_as_it_is(text: str) -> None:
    for finish_reason in ("stop", "length"):
        completion = Completion(text, finish_reason)
        made = as_text(completion)
        assert made is completion or (finish_reason == "length" and text.startswith("["))


def test_values_that_are_no_texts_become_texts() -> None:
    odd = {"tasks": [{"a": None, "b": 3, "c": ["x", "y"], "d": {"e": [1]}, "f": True}, 7, None]}
    assert values(written(odd)) == [
        {"a": "", "b": "3", "c": "x\ny", "d": '{"e": [1]}', "f": "true"},
        {"text": "7"},
        {"text": ""},
    ]


def test_a_lone_surrogate_does_not_reach_the_log() -> None:
    written('{"tasks": ["a\\ud800b"]}').text.encode()


def test_places_that_the_prompt_left_open_are_empty() -> None:
    assert values(written({"examples": [{"input": "...", "output": "3..."}]})) == [{"input": "", "output": "3..."}]


def test_an_empty_list_is_an_empty_answer() -> None:
    assert values(written({"tasks": []})) == []


@given(st.text(max_size=200), st.sampled_from(["stop", "length"]))
@example('{"a": [', "length")
@example('[{"":"', "length")
def test_nothing_raises(text: str, finish_reason: str) -> None:
    made = as_text(Completion(text, finish_reason))
    instruction.parse(made, RULES, first_number=9)
    instance.parse(made, True, RULES)
    instance.parse(made, False, RULES)
    read_tasks(made, first_number=9)


# -- the readers -------------------------------------------------------------------------------------------------------


def test_instructions_are_read_whatever_they_look_like() -> None:
    tasks = ["Name three\n9. rivers.", 'Say "no" politely.', "Count to ten.\nInput: none"]
    found = instruction.parse(written({"tasks": [*tasks[:2], f"11. {tasks[2]}"]}), RULES, first_number=9)
    assert [item.text for item in found] == [" ".join(task.split()) for task in tasks]
    assert all(item.rule is None for item in found)


def test_the_last_instruction_of_a_cut_answer_is_unfinished() -> None:
    found = instruction.parse(written('{"tasks": ["Sing.", "Write a po', "length"), RULES, first_number=9)
    assert [(item.text, item.rule) for item in found] == [("Sing.", None), ("Write a po", "unfinished")]


def test_instances_are_read_whatever_they_look_like() -> None:
    pairs = [{"input": HARD, "output": "Output: 3\n\nExample 2\nInput: x"}, {"input": "", "output": "plain"}]
    made = written({"examples": pairs})
    found = instance.parse(made, False, RULES)
    assert [(made.text[slice(*one.input)], made.text[slice(*one.output)]) for one in found.instances] == [
        (one["input"], one["output"]) for one in pairs
    ]


def test_class_labels_come_before_their_inputs() -> None:
    made = written({"examples": [{"class_label": "spam", "input": "Buy now"}, {"class_label": "ham", "input": "Hi"}]})
    found = instance.parse(made, True, RULES)
    assert [(made.text[slice(*one.input)], made.text[slice(*one.output)]) for one in found.instances] == [
        ("Buy now", "spam"),
        ("Hi", "ham"),
    ]


def test_the_last_instance_of_a_cut_answer_is_unfinished() -> None:
    begun = '{"examples": [{"input": "2+2", "output": "4"}, {"input": "3+3", "output": "si'
    found = instance.parse(written(begun, "length"), False, RULES)
    assert (len(found.instances), found.rules) == (1, ("unfinished",))
    begun = '{"examples": [{"input": "2+2", "output": "4"}, {"input": "3+'
    found = instance.parse(written(begun, "length"), False, RULES)
    assert (len(found.instances), found.rules) == (1, ())


def test_tasks_with_inputs_are_read_whatever_they_look_like() -> None:
    tasks = [
        {"instruction": "Fix it.", "input": 'def f():\n    return "a\\n"\n\nTask 10: no'},
        {"instruction": 'Task 10: Why is {"input": "a\\n"} valid?', "input": ""},
    ]
    made = written({"tasks": tasks})
    found = read_tasks(made, first_number=9)
    assert [(item.text, item.rule) for item in found] == [
        (task["instruction"].removeprefix("Task 10: "), None) for task in tasks
    ]
    assert [item.input and made.text[slice(*item.input)] for item in found] == [tasks[0]["input"], None]


def test_the_last_task_of_a_cut_answer_is_unfinished() -> None:
    begun = '{"tasks": [{"instruction": "Sing.", "input": ""}, {"instruction": "Sort it.", "input": "3\\n1'
    assert [item.rule for item in read_tasks(written(begun, "length"), first_number=9)] == [None, "unfinished"]
