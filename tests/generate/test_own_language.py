"""The commands of docs/languages.md, against a server that goes on in the language of its prompt."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.run_folder import RunFolder
from tests.command_help import fastgen

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "languages.md").read_text(encoding="utf-8")
WORDS = {
    "de": (
        "Leuchtturm",
        "Bahnhof",
        "Garten",
        "Fahrrad",
        "Gewitter",
        "Brücke",
        "Bäckerei",
        "Winter",
        "Orchester",
        "Wald",
    ),
    "zh": ("灯塔", "车站", "花园", "自行车", "雷雨", "大桥", "面包店", "冬天", "乐团", "森林"),
}


def draw(language: str, key: str, count: int) -> list[str]:
    """Words that follow from the key."""
    digest = hashlib.sha256(key.encode()).digest()
    return [WORDS[language][byte % len(WORDS[language])] for byte in digest[:count]]


def german(prompt: str, choice: int) -> str:
    """What a model writes after a German prompt."""
    if re.search(r"\d+\.$", prompt):
        said = [" ".join(draw("de", f"{prompt}{choice}{n}", 6)) for n in range(4)]
        return "".join(f"{'' if n == 0 else f'{9 + n}.'} Beschreibe {text}.\n" for n, text in enumerate(said))
    if prompt.endswith("Klassifikation?"):
        return " Ja" if prompt.count("Garten") % 2 else " Nein"
    if "Kategorie:" in prompt:
        return "Kategorie: Ja\nEs regnet.\n\nKategorie: Nein\nEs ist trocken.\n"
    return "Beispiel 1\nEingabe: Ein Satz.\nAusgabe: Eine Antwort.\n\nAufgabe: Noch eine.\nBeispiel 1\nAusgabe: Nichts."


def chinese(prompt: str, choice: int) -> str:
    """What a model writes after a Chinese prompt."""
    if re.search(r"\d+\.$", prompt):
        said = ["、".join(draw("zh", f"{prompt}{choice}{n}", 6)) for n in range(4)]
        return "".join(f"{'' if n == 0 else f'{9 + n}.'} 描写{text}。\n" for n, text in enumerate(said))
    if prompt.endswith("分类任务吗？"):
        return "是" if prompt.count("花园") % 2 else "否"
    if "类别：" in prompt:
        return "类别：是\n下雨了。\n\n类别：否\n天晴了。\n"
    return "示例 1\n输入：一句话。\n输出：一个回答。\n\n任务：另一个。\n示例 1\n输出：没有。"


def commands(heading: str) -> list[list[str]]:
    """The commands of a section of the page, as arguments."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize(
    ("heading", "language", "write", "outputs"),
    [
        ("Step by step, in German", "de", german, {"Eine Antwort.", "Ja", "Nein"}),
        ("In Chinese", "zh", chinese, {"一个回答。", "是", "否"}),
    ],
)
def test_the_commands_of_the_page_make_data_in_that_language(
    heading: str,
    language: str,
    write: object,
    outputs: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with in_a_thread(FaultServer(write=write)) as server:  # type: ignore[arg-type]
        for arguments in commands(heading):
            own = {"http://127.0.0.1:8000/v1": server.base_url, "NAME": "test-model-base", "1000": "6"}
            said = fastgen(*(own.get(argument, argument) for argument in arguments), *_fewer_checks(arguments))
            assert said.code == 0, said.err
            assert "warning" not in said.out + said.err
    rows = [json.loads(line) for line in Path(f"{language}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["output"] for row in rows} <= outputs
    assert len({row["instruction"] for row in rows}) == 6
    kept = RunFolder(tmp_path / "runs" / language).prompts_path
    assert (kept / "base.toml").read_bytes() == Path(f"prompts-{language}", "base.toml").read_bytes()


def _fewer_checks(arguments: list[str]) -> list[str]:
    return ["--probe", "off", "--concurrency", "2", "--api", "completions"] if arguments[0] == "generate" else []


def test_the_other_command_of_the_page_writes_files_to_translate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = commands("In another language")
    assert fastgen(*command).code == 0
    assert "docs/languages.md lists" in Path("prompts-mine", "chat.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["de", "zh"])
def test_the_example_seeds_are_sound(language: str) -> None:
    rows = (ROOT / "examples" / f"seeds_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    codes = [
        instance["output"]
        for row in map(json.loads, rows)
        for instance in row["instances"]
        if "def " in instance["output"]
    ]
    assert len(rows) == 12
    for code in codes:
        said: list[object] = []
        exec(code, {"print": said.append})  # noqa: S102 - our own seeds
        assert code.endswith(f"# {said[0]}")
