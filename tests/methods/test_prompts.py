"""The prompt set: what ships, what a folder may replace, and the one line that every defect gets."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.prompts import PromptSet, load_prompts, read_prompt_files
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.types import Completion, Message

SHIPPED = files("fastgen.methods.self_instruct").joinpath("prompt_files")
APIS = pytest.mark.parametrize("api", ["completions", "chat"])
STAGES = ("instruction", "instruction_classification", "classification", "input_first", "output_first")
DEFAULT = PRESETS["default"]
BRACES = 'Explain {instruction} and {x} in {"a": 1} to {} {{me}}.'


def shipped(name: str) -> str:
    return SHIPPED.joinpath(name).read_text(encoding="utf-8")


def rows(name: str, preset: str = "paper") -> list[dict[str, Any]]:
    """The demonstrations of a preset. All of the paper's are the default's too."""
    own = SHIPPED.joinpath(preset, name)
    file = own if own.is_file() else SHIPPED.joinpath(name)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def text_of(prompt: str | tuple[str, ...] | tuple[Message, ...]) -> str:
    parts = (prompt,) if isinstance(prompt, str) else prompt
    return "\n".join(part if isinstance(part, str) else part.content for part in parts)


def task_prompts(prompts: PromptSet, task: str) -> list[str]:
    return [
        text_of(classification.build_prompt(task, prompts)),
        text_of(instance.build_prompt(task, False, prompts)),
        text_of(instance.build_prompt(task, True, prompts)),
    ]


def test_the_paper_preset_has_the_demonstrations_that_the_method_asks_for() -> None:
    answers = [row["is_classification"] for row in rows("classification.jsonl")]
    assert (answers.count(True), answers.count(False)) == (12, 19)
    input_first = [row["examples"] for row in rows("input_first.jsonl")]
    assert len(input_first) == 11
    assert sum(all(example["input"] == "" for example in examples) for examples in input_first) >= 3
    assert {len(examples) for examples in input_first} == {1, 2, 3}
    output_first = [row["examples"] for row in rows("output_first.jsonl")]
    assert len(output_first) == 16
    assert {len(examples) for examples in output_first} == {2, 3, 4}
    assert all(len({example["label"] for example in examples}) == len(examples) for examples in output_first)


@pytest.mark.parametrize(
    ("api", "fingerprint"),
    [
        ("completions", "457a24b79621c5c258c589b171b0e0e896da091e511573324b9ea4590702a63c"),
        ("chat", "fd373f3931d07cae737b6c544e79a040114255af7bb7439f5c366449e606ec27"),
    ],
)
def test_the_prompts_of_the_paper_preset_never_change(api: Any, fingerprint: str) -> None:
    assert load_prompts(api, preset="paper").fingerprint == fingerprint


def test_the_default_adds_long_outputs_and_questions_without_an_input() -> None:
    for name in ("input_first.jsonl", "output_first.jsonl"):
        kept = [row for row in rows(name, "default") if row in rows(name)]
        assert kept == rows(name)
    added = [row for row in rows("input_first.jsonl", "default") if row not in rows("input_first.jsonl")]
    words = [len(example["output"].split()) for row in added for example in row["examples"]]
    assert len(words) == len(added) == 4
    assert all(100 <= count <= 250 for count in words)
    added = [row for row in rows("output_first.jsonl", "default") if row not in rows("output_first.jsonl")]
    assert [[example["input"] for example in row["examples"]] for row in added] == [[""], [""]]


def test_the_code_that_a_demonstration_shows_is_right() -> None:
    (output,) = (
        row["examples"][0]["output"] for row in rows("input_first.jsonl", "default") if "balanced" in row["instruction"]
    )
    scope: dict[str, Any] = {}
    exec(output.partition("\n\n")[0], scope)  # noqa: S102 - our own demonstration
    is_balanced = scope["is_balanced"]
    assert all(map(is_balanced, ["", "a", "()", "f(x[1], {2: (3)})"]))
    assert not any(map(is_balanced, ["(", ")", "(]", "([)]", "())", "{()"]))


@APIS
def test_every_demonstration_is_read_back_as_it_was_written(api: Any) -> None:
    for name, is_classification, output in (("input_first", False, "output"), ("output_first", True, "label")):
        prompt = text_of(instance.build_prompt("The end.", is_classification, load_prompts(api)))
        for row in rows(f"{name}.jsonl", "default"):
            task = f"Task: {row['instruction']}\n"
            assert prompt.count(task) == 1
            answer = re.split(r"\n+(?=Task: |Here is another task)", prompt.partition(task)[2])[0]
            read = instance.parse(Completion(answer, "stop"), is_classification, DEFAULT, row["instruction"])
            pairs = [(answer[slice(*one.input)], answer[slice(*one.output)]) for one in read.instances]
            wanted = [(example["input"].removeprefix("Input: "), example[output]) for example in row["examples"]]
            assert (pairs, read.rejected) == (wanted, ())


def test_the_default_prompts_say_what_the_rules_reject() -> None:
    for api in ("completions", "chat"):
        prompts = load_prompts(api)
        for template in (prompts.instruction, prompts.instruction_classification):
            fixed = f"{template.system or ''}{template.parts[0]}"
            for word in ("picture", "sound", "file", "link", "web page", "news"):
                assert word in fixed, (api, word)
        if api == "completions":  # a list that a base model continues: the header, the tasks, the next number
            assert template.parts[0].endswith("choose from:\n")
            assert template.parts[-1] == "."
    for name in ("classification", "input_first", "output_first"):
        for row in rows(f"{name}.jsonl", "default"):
            assert check_instruction(row["instruction"], DEFAULT) is None


def test_the_demonstrations_are_no_seed_tasks_and_none_is_shown_twice() -> None:
    shown = [
        row["instruction"]
        for name in ("classification", "input_first", "output_first")
        for row in rows(f"{name}.jsonl", "default")
    ]
    for name in ("classification", "input_first", "output_first"):
        tasks = [row["instruction"] for row in rows(f"{name}.jsonl", "default")]
        assert len(set(tasks)) == len(tasks)
    seeds = Path(__file__).parents[2] / "seeds" / "seed_tasks.jsonl"
    if not seeds.is_file():
        pytest.skip("the seed tasks are not in this tree")
    tasks = [json.loads(line)["instruction"] for line in seeds.read_text(encoding="utf-8").split("\n") if line]
    assert not set(tasks) & set(shown)


@pytest.mark.parametrize(("index", "most_tokens"), [(0, 700), (1, 1400), (2, 1400)])
@APIS
def test_a_few_shot_prompt_leaves_room_for_a_long_task_in_a_small_context(
    api: Any, index: int, most_tokens: int
) -> None:
    prompt = task_prompts(load_prompts(api, preset="paper"), "Sort the words.")[index]
    assert tokens(prompt) < most_tokens * 1.1


@pytest.mark.parametrize(("index", "most_tokens"), [(0, 700), (1, 1850), (2, 1400)])
@APIS
def test_the_long_demonstrations_leave_room_in_a_context_of_4096_tokens(api: Any, index: int, most_tokens: int) -> None:
    prompt = task_prompts(load_prompts(api), "Sort the words.")[index]
    assert tokens(prompt) < most_tokens * (1.1 if index != 1 else 1)


def tokens(prompt: str) -> int:
    """Words, numbers and marks one by one.

    5 to 15 % above the counts of the tokenizers of SmolLM2 and GPT-2, and 10 % below where there is code.
    """
    return len(re.findall(r"\w+|[^\w\s]|\n", prompt))


@APIS
def test_only_the_end_of_a_prompt_depends_on_the_task(api: Any) -> None:
    prompts = load_prompts(api)
    for one, other in zip(task_prompts(prompts, "Aaaa."), task_prompts(prompts, "Bbbb?"), strict=True):
        start, _, rest = one.partition("Aaaa.")
        assert other.startswith(start)
        assert len(rest) < 200 < len(start)


@APIS
def test_braces_in_a_task_are_plain_text(api: Any) -> None:
    prompts = load_prompts(api)
    for prompt in task_prompts(prompts, BRACES):
        assert prompt.count(BRACES) == 1
    listed = text_of(instruction.build_prompt([BRACES, "{next_number}"], prompts, classification_only=False))
    assert f"1. {BRACES}\n2. {{next_number}}\n" in listed


@given(st.text(max_size=40))
def test_a_prompt_around_any_task_is_the_fixed_text_and_the_task(task: str) -> None:
    for marked, prompt in zip(task_prompts(COMPLETIONS, "\0"), task_prompts(COMPLETIONS, task), strict=True):
        assert prompt == marked.replace("\0", task.strip())


COMPLETIONS = load_prompts("completions")


def test_a_completion_prompt_has_the_structure_that_the_parsers_read() -> None:
    question, generation, labelled = task_prompts(COMPLETIONS, "Sort it.")
    assert question.endswith("\n\nTask: Sort it.\nIs it classification?")
    assert generation.endswith("\n\nTask: Sort it.\n")
    assert "\nExample 1\nInput: 68 °F\nOutput: 20.0 °C\nExample 2\n" in generation
    assert "\nExample 1\nOutput: " in generation  # a task without input
    assert labelled.endswith("\n\nTask: Sort it.\n")
    assert "\nClass label: Spam\nYou have been chosen!" in labelled


def test_a_chat_prompt_is_a_system_message_and_a_user_message() -> None:
    for stage in STAGES:
        template = getattr(load_prompts("chat"), stage)
        values = dict.fromkeys(template.parts[1::2], "x")
        messages = template.fill(**values)
        assert [message.role for message in messages] == ["system", "user"]
        assert all(message.content.strip() for message in messages)


def test_the_shipped_demonstrations_pass_the_rules_that_their_kind_is_read_with() -> None:
    for row in rows("input_first.jsonl", "default"):
        for example in row["examples"]:
            assert example["output"]
            assert example["input"] != example["output"]
            assert not example["output"].endswith(":")
            assert example["input"] == "" or re.match(r"\w+: ", example["input"])


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


@APIS
def test_a_copy_of_the_shipped_files_is_the_same_set(tmp_path: Path, api: Any) -> None:
    for name in ("base.toml", "chat.toml", "classification.jsonl", "input_first.jsonl", "output_first.jsonl"):
        write(tmp_path, name, shipped(name))
    assert load_prompts(api, tmp_path) == load_prompts(api)
    assert re.fullmatch("[0-9a-f]{64}", load_prompts(api).fingerprint)
    assert load_prompts("chat").fingerprint != load_prompts("completions").fingerprint


def test_a_folder_replaces_only_the_files_that_it_has(tmp_path: Path) -> None:
    write(tmp_path, "classification.jsonl", '{"instruction": "Is it {odd}?", "is_classification": true}\r\n\r\n')
    mine = load_prompts("completions", tmp_path)
    question, generation, _ = task_prompts(mine, "T")
    assert "Task: Is it {odd}?\nIs it classification? Yes\n\nTask: T\nIs it classification?" in question
    assert generation == task_prompts(COMPLETIONS, "T")[1]
    assert mine.fingerprint != COMPLETIONS.fingerprint


def test_a_folder_without_a_file_gets_that_of_the_preset_or_of_the_run_that_has_begun(tmp_path: Path) -> None:
    own, stored = tmp_path / "own", tmp_path / "stored"
    own.mkdir()
    stored.mkdir()
    write(own, "classification.jsonl", '{"instruction": "Mine?", "is_classification": true}')
    for name in ("base.toml", "classification.jsonl", "input_first.jsonl"):
        write(stored, name, f"as stored: {name}")
    read = read_prompt_files(own, preset="paper")
    assert read["base.toml"].content == SHIPPED.joinpath("paper", "base.toml").read_bytes() != BASE.encode()
    read = read_prompt_files(own, stored=stored)
    assert read["classification.jsonl"].text() == '{"instruction": "Mine?", "is_classification": true}'
    assert read["base.toml"].text() == "as stored: base.toml"
    assert read["chat.toml"].text() == shipped("chat.toml")
    assert read_prompt_files(None, stored=stored)["classification.jsonl"].text() == "as stored: classification.jsonl"


def test_prompts_from_before_a_key_was_known_are_the_same_as_then(tmp_path: Path) -> None:
    for name in ("base.toml", "chat.toml", "input_first.jsonl", "output_first.jsonl"):
        write(tmp_path, name, SHIPPED.joinpath("paper", name).read_text(encoding="utf-8"))
    assert load_prompts("completions", tmp_path) == load_prompts("completions", preset="paper")
    write(tmp_path, "output_first.jsonl", '{"instruction": "Is it?", "examples": [{"label": "Yes", "input": ""}]}')
    assert (
        "Task: Is it?\nClass label: Yes\n\n\nTask: T\n" in task_prompts(load_prompts("completions", tmp_path), "T")[2]
    )
    (tmp_path / "base.toml").unlink()
    assert "Task: Is it?\nClass label: Yes\n\nTask: T\n" in task_prompts(load_prompts("completions", tmp_path), "T")[2]


@pytest.mark.parametrize("name", ["base.toml", "classification.jsonl", "input_first.jsonl", "output_first.jsonl"])
def test_any_change_of_a_text_changes_the_fingerprint(tmp_path: Path, name: str) -> None:
    changed = shipped(name).replace("Write ", "Compose ", 1).replace("number", "Number", 1).replace(" is ", " was ", 1)
    changed = changed.replace("different", "diverse", 1)
    folder = write(tmp_path, name, changed)
    assert load_prompts("completions", folder).fingerprint != COMPLETIONS.fingerprint


def test_an_empty_system_message_is_not_sent(tmp_path: Path) -> None:
    text = re.sub(
        r'(\[instruction\]\nsystem = ).*?"""(.*?)"""', r'\1""', shipped("chat.toml"), count=1, flags=re.DOTALL
    )
    prompts = load_prompts("chat", write(tmp_path, "chat.toml", text))
    messages = instruction.build_prompt(["a"], prompts, classification_only=False)
    assert [message.role for message in messages if isinstance(message, Message)] == ["user"]


BASE = shipped("base.toml")


@pytest.mark.parametrize(
    ("name", "text", "place", "says"),
    [
        (
            "base.toml",
            BASE.replace("{next_number}.", "{number}.", 1),
            "instruction",
            "instruction.prompt: unknown placeholder {number}",
        ),
        (
            "base.toml",
            BASE.replace("{instructions}", "", 1),
            "instruction",
            "the placeholder {instructions} is missing",
        ),
        (
            "base.toml",
            BASE.replace("Task: {instruction}\nIs", "Task:\nIs", 1),
            "classification",
            "{instruction} is missing",
        ),
        (
            "base.toml",
            BASE.replace("[classification]", "[clasification]"),
            "clasification",
            "clasification: unknown section",
        ),
        ("base.toml", BASE.replace("example =", "sample =", 1), "sample", "input_first.sample: unknown key"),
        (
            "base.toml",
            BASE.replace('example_without_input = """', 'other = """'),
            "other",
            "input_first.other: unknown key",
        ),
        ("base.toml", "[instruction]\nprompt = 3\n", "prompt", "instruction.prompt: has to be a text"),
        ("base.toml", "\n[instruction]\n", "[instruction]", "instruction.prompt: has to be a text"),
        ("base.toml", "instruction = 1\n", "", "instruction: the section [instruction] is missing"),
        ("base.toml", "\n\n[instruction\n", "[instruction", "not valid TOML"),
        ("base.toml", '[instruction]\nprompt = """a', "", "not valid TOML"),
        ("classification.jsonl", "", "", "no demonstrations"),
        ("classification.jsonl", "\n{]", "{]", "not valid JSON"),
        ("classification.jsonl", "[1]", "", "not a JSON object"),
        ("classification.jsonl", '\n\n{"instruction": " "}', '{"inst', "instruction: has to be a text"),
        (
            "classification.jsonl",
            '{"instruction": "a", "is_classification": "yes"}',
            "",
            "is_classification: has to be true or false",
        ),
        ("input_first.jsonl", '{"instruction": "a"}', "", "examples: has to be a list"),
        ("input_first.jsonl", '{"instruction": "a", "examples": []}', "", "examples: has to be a list"),
        (
            "input_first.jsonl",
            '{"instruction": "a", "examples": [1]}',
            "",
            "examples[0]: has to be an object with output and input",
        ),
        (
            "input_first.jsonl",
            '{"instruction": "a", "examples": [{"input": ""}]}',
            "",
            "examples[0].output: has to be a text",
        ),
        (
            "input_first.jsonl",
            '{"instruction": "a", "examples": [{"input": "", "output": " "}]}',
            "",
            "examples[0].output: is empty",
        ),
        (
            "output_first.jsonl",
            '{"instruction": "a", "examples": [{"label": "x"}]}',
            "",
            "examples[0].input: has to be a text",
        ),
    ],
)
def test_every_defect_is_one_line_with_file_line_field_and_remedy(
    tmp_path: Path, name: str, text: str, place: str, says: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_prompts("completions", write(tmp_path, name, text))
    message = str(caught.value)
    assert "\n" not in message
    assert says in message
    blamed = re.match(rf"{re.escape(str(tmp_path / name))}:(\d+): ", message)
    assert blamed
    assert place in "\n".join(text.split("\n")[: int(blamed[1])])


def test_the_line_of_a_wrong_placeholder_is_that_of_its_key(tmp_path: Path) -> None:
    text = BASE.replace("Class label: {label}", "Class label: {lable}")
    with pytest.raises(InputError, match=r"output_first\.example: unknown placeholder \{lable\}") as caught:
        load_prompts("completions", write(tmp_path, "base.toml", text))
    line = int(str(caught.value).removeprefix(f"{tmp_path / 'base.toml'}:").split(":")[0])
    table = text.split("[output_first]")[0].count("\n")
    assert text.split("\n")[line - 1].startswith("example =")
    assert line > table


def test_a_folder_without_any_of_the_files_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"^--prompts .*: holds none of base\.toml"):
            load_prompts("completions", folder)


def test_a_byte_order_mark_is_no_defect(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_bytes(b"\xef\xbb\xbf" + shipped("base.toml").encode())
    assert load_prompts("completions", tmp_path) == COMPLETIONS


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "classification.jsonl").write_bytes(b'{"instruction": "a", "is_classification": true}\n"\xff"')
    with pytest.raises(InputError, match=r"classification\.jsonl:2: not UTF-8"):
        load_prompts("completions", tmp_path)


def test_the_fingerprint_is_a_sha_256_of_what_is_sent() -> None:
    assert len(COMPLETIONS.fingerprint) == len(hashlib.sha256().hexdigest())
    assert load_prompts("completions").fingerprint == COMPLETIONS.fingerprint


def test_the_template_files_say_what_may_be_changed_and_hold_all_sections() -> None:
    for name in ("base.toml", "chat.toml"):
        assert shipped(name).startswith("# ")
        assert set(tomllib.loads(shipped(name))) == set(STAGES)


UNREADABLE = """
import os, sys
from pathlib import Path
from fastgen.errors import InputError
from fastgen.methods.self_instruct.prompts import read_prompt_files
from fastgen.methods.self_instruct.prompts import load_prompts
if os.geteuid() == 0:
    os.seteuid(65534)
for read in (read_prompt_files, lambda path: load_prompts("completions", path)):
    try:
        read(Path(sys.argv[1]))
    except InputError as error:
        print(error)
"""


def test_a_folder_that_may_not_be_looked_into_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir(mode=0)
    done = subprocess.run([sys.executable, "-c", UNREADABLE, folder], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(f"--prompts {folder}: cannot be read (Permission denied)" in line for line in lines)
