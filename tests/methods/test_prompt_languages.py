"""Prompts in other languages: what `fastgen prompts init` writes, what is read back, and when a mixture is named."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.languages import NAMES, language_of, language_warning
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import FILES, PromptLanguage, load_prompts, starting_files
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks
from fastgen.types import Completion, Instance, Message, SeedTask
from tests.command_help import fastgen, file_size_limit

DEFAULT = PRESETS["default"]
LANGUAGES = pytest.mark.parametrize("language", get_args(PromptLanguage))
APIS = pytest.mark.parametrize("api", ["completions", "chat"])
INPUT = {"en": "Input: ", "de": "Eingabe: ", "zh": "输入：", "fr": "Entrée : ", "es": "Entrada: "}
TASK = {"en": "Task: ", "de": "Aufgabe: ", "zh": "任务：", "fr": "Tâche : ", "es": "Tarea: "}
AFTER = {
    "en": "Here is another task",
    "de": "Hier ist eine weitere Aufgabe",
    "zh": "下面是另一个任务",
    "fr": "Voici une autre tâche",
    "es": "Aquí tienes otra tarea",
}
GERMAN = (
    "Erkläre den Unterschied zwischen „dasselbe“ und „das gleiche“.",
    "Schreibe eine kurze Geschichte über einen Leuchtturmwärter.",
    "Ist die Kundenmeinung positiv oder negativ?",
    "Übersetze den Satz ins Französische.",
    "Nenne drei Gründe für das Aussterben der Dinosaurier.",
    "Wie berechnet man den Flächeninhalt eines Dreiecks?",
    "Fasse den Text mit eigenen Worten zusammen.",
    "Korrigiere die Fehler in der E-Mail.",
)
CHINESE = (
    "用自己的话概括这段文字。",
    "写一个关于灯塔的短故事。",
    "判断这条评论是正面还是负面。",
    "把这句话翻译成英文。",
    "说出恐龙灭绝的三个原因。",
    "怎样计算三角形的面积？",
    "用Python写一个函数quick_sort，把列表从小到大排序。",
    "给外婆写一封感谢信。",
)
FRENCH = (
    "Explique la différence entre une comète et un astéroïde.",
    "Écris une courte histoire sur un gardien de phare.",
    "Traduis la phrase en anglais.",
    "Donne trois raisons de la disparition des dinosaures.",
)


def folder_of(language: Any, folder: Path) -> Path:
    for name, content in starting_files(language).items():
        (folder / name).write_bytes(content)
    return folder


def text_of(prompt: object) -> str:
    parts = prompt if isinstance(prompt, tuple) else (prompt,)
    return "\n".join(part.content if isinstance(part, Message) else str(part) for part in parts)


def rows(language: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in starting_files(language)[name].decode().split("\n") if line]


def seeds_of(texts: Sequence[str]) -> list[SeedTask]:
    return [SeedTask(f"t{n}", f"t{n}", text, (Instance("", "x"),), n == 2) for n, text in enumerate(texts)]


# What is written, and what reads it.


@LANGUAGES
@APIS
def test_every_demonstration_is_read_back_as_it_was_written(language: Any, api: Any, tmp_path: Path) -> None:
    prompts = load_prompts(api, folder_of(language, tmp_path))
    for name, is_classification, output in (("input_first", False, "output"), ("output_first", True, "label")):
        prompt = text_of(instance.build_prompt("X.", is_classification, prompts))
        for row in rows(language, f"{name}.jsonl"):
            task = f"{TASK[language]}{row['instruction']}\n"
            assert prompt.count(task) == 1
            answer = re.split(rf"\n+(?={TASK[language]}|{AFTER[language]})", prompt.partition(task)[2])[0]
            read = instance.parse(Completion(answer, "stop"), is_classification, DEFAULT, row["instruction"])
            pairs = [(answer[slice(*one.input)], answer[slice(*one.output)]) for one in read.instances]
            wanted = [(example["input"].removeprefix(INPUT[language]), example[output]) for example in row["examples"]]
            assert (pairs, read.rejected) == (wanted, ())


@LANGUAGES
def test_a_complete_language_has_as_much_to_show_as_english(language: Any) -> None:
    for name in ("classification.jsonl", "input_first.jsonl", "output_first.jsonl"):
        own, english = rows(language, name), rows("en", name)
        assert len(own) == len(english) == len({row["instruction"] for row in own})
        assert language_of([row["instruction"] for row in own]) == language
        assert [check_instruction(row["instruction"], DEFAULT) for row in own] == [None] * len(own)
    assert sum(row["is_classification"] for row in rows(language, "classification.jsonl")) == 12
    outputs = [example["output"] for row in rows(language, "input_first.jsonl") for example in row["examples"]]
    assert sorted(map(len, outputs))[-4] > (250 if language == "zh" else 500)
    without_input = [row for row in rows(language, "output_first.jsonl") if not row["examples"][0]["input"]]
    assert len(without_input) == 2


@LANGUAGES
def test_the_code_that_a_demonstration_shows_is_right(language: Any) -> None:
    texts = [example["output"] for row in rows(language, "input_first.jsonl") for example in row["examples"]]
    codes = [text.partition("\n\n")[0] for text in texts if text.startswith("def ")]
    scope: dict[str, Any] = {}
    for code in codes:
        exec(code, scope)  # noqa: S102 - our own demonstrations
    assert len(codes) == 2
    check, longest = (scope[re.findall(r"def (\w+)", code)[0]] for code in codes)
    assert longest("Der Leuchtturm steht noch") == "Leuchtturm"
    if language == "de":  # it looks for palindromes, the others for balanced brackets
        assert all(map(check, ["", "a", "Ein Esel lese nie", "Lagerregal"]))
        assert not any(map(check, ["ab", "Regal", "Esel 1"]))
    else:
        assert all(map(check, ["", "a", "f(x[1], {2: (3)})"]))
        assert not any(map(check, ["(", ")", "(]", "([)]"]))


@pytest.mark.parametrize(
    ("language", "yes", "no"),
    [("en", "Yes", "No"), ("de", "Ja", "Nein"), ("zh", "是", "否"), ("fr", "Oui", "Non"), ("es", "Sí", "No")],
)
@APIS
def test_the_answers_that_are_shown_are_the_ones_that_are_read(
    language: Any, yes: str, no: str, api: Any, tmp_path: Path
) -> None:
    prompt = text_of(classification.build_prompt("X.", load_prompts(api, folder_of(language, tmp_path))))
    for row in rows(language, "classification.jsonl"):
        answer = prompt.partition(f"{row['instruction']}\n")[2].partition("\n")[0]
        assert answer.endswith(yes if row["is_classification"] else no)
    assert classification.parse(Completion(yes, "length"), DEFAULT).value
    read_no = classification.parse(Completion(no, "length"), DEFAULT)
    assert (read_no.value, read_no.unread) == (False, None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Ja, denn es gibt nur zwei Kategorien.", True),
        ("Die Antwort lautet: Ja.", True),
        ("Das ist eine Klassifikationsaufgabe.", True),
        ("Nein. Gefragt ist ein Gedicht.", False),
        ("Réponse : oui, il y a deux étiquettes.", True),
        ("C'est une tâche de classification.", True),
        ("Ce n'est pas une tâche de classification.", False),
        ("La respuesta es sí.", True),
        ("Es una tarea de clasificación.", True),
        ("No es una tarea de clasificación.", False),
        ("是的，答案只有两种。", True),
        ("答案：是", True),
        ("这是一个分类任务。", True),
        ("这不是分类任务。", False),
        ("这是分类任务吗？", False),
        ("否。", False),
        ("不是。", False),
    ],
)
def test_a_wordy_answer_is_read_in_german_and_chinese(answer: str, expected: bool) -> None:
    assert classification.parse(Completion(answer, "stop"), DEFAULT).value is expected


ANSWERS = {
    "de": (
        "Beispiel 1\nEingabe: Um 8:05.\nAusgabe: 8:05\nBeispiel 2\nText: Um neun.\nAusgabe:\n9:00\n\nAufgabe: Reime.",
        [("Um 8:05.", "8:05"), ("Text: Um neun.", "9:00")],
    ),
    "zh": (
        "示例 1\n输入：火车8:05到站。\n输出：8:05\n\n示例2\n句子：我九点到。\n输出：\n9:00\n\n任务：写诗。\n输出：春天",
        [("火车8:05到站。", "8:05"), ("句子：我九点到。", "9:00")],
    ),
    "fr": (
        "Exemple 1\nEntrée : À 8 h 05.\nSortie : 8:05\nExemple 2\nTexte : À neuf h.\nSortie :\n9:00\n\nTâche : Rime.",
        [("À 8 h 05.", "8:05"), ("Texte : À neuf h.", "9:00")],
    ),
    "es": (
        "Ejemplo 1\nEntrada: A las 8:05.\nSalida: 8:05\nEjemplo 2\nTexto: A las nueve.\nSalida:\n9:00\n\nTarea: Rima.",
        [("A las 8:05.", "8:05"), ("Texto: A las nueve.", "9:00")],
    ),
}


@pytest.mark.parametrize("language", ANSWERS)
def test_an_answer_and_the_next_task_are_told_apart(language: str) -> None:
    text, wanted = ANSWERS[language]
    read = instance.parse(Completion(text, "stop"), False, DEFAULT)
    assert [(text[slice(*one.input)], text[slice(*one.output)]) for one in read.instances] == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Kategorie: Dringend\nDer Server steht.\n\nKategorie: Kann warten\nBitte ein neues Logo.", 2),
        ("类别：紧急\n服务器停了。\n\n类别：不急\n请换一个标志。", 2),
    ],
)
def test_categories_are_read_in_german_and_chinese(text: str, wanted: int) -> None:
    read = instance.parse(Completion(text, "stop"), True, DEFAULT)
    assert len(read.instances) == wanted
    assert all(text[slice(*one.input)] and text[slice(*one.output)] for one in read.instances)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Nenne drei Städte am Rhein.\n10. Erkläre, was ein Trauma ist.\n11. Welche Zahl fehlt in der Reihe?", 3),
        ("写出三个沿海城市的名字。\n10. 解释什么是通货膨胀。\n11. 把下面的句子改成疑问句。", 3),
        ("九、写出三个沿海城市。\n十、解释什么是通货膨胀。", 2),
    ],
)
def test_lists_of_tasks_are_read_in_german_and_chinese(text: str, wanted: int) -> None:
    items = instruction.parse(Completion(text, "stop"), DEFAULT, first_number=9)
    assert [check_instruction(item.text, DEFAULT) for item in items] == [None] * wanted


@pytest.mark.parametrize(
    ("language", "stop"),
    [
        ("en", ("\nExample 6", "\nTask:")),
        ("de", ("\nBeispiel 6", "\nAufgabe:")),
        ("zh", ("\n示例 6", "\n任务：")),
        ("fr", ("\nExemple 6", "\nTâche :")),
        ("es", ("\nEjemplo 6", "\nTarea:")),
    ],
)
def test_stop_strings_are_in_the_words_of_the_prompts(language: Any, stop: tuple[str, ...], tmp_path: Path) -> None:
    prompts = load_prompts("completions", folder_of(language, tmp_path))
    method = self_instruct(DEFAULT, seeds_of(GERMAN), prompts, SAMPLING_PRESETS["default"])
    assert method.steps[1].sampling.stop == stop
    assert method.creation.sampling == SAMPLING_PRESETS["default"]["instruction"]


def test_labels_of_one_s_own_are_stop_strings_only_if_they_are_labels(tmp_path: Path) -> None:
    template = starting_files("en")["base.toml"].decode()
    for own, stop in (("Q: {instruction}", "\nQ:"), ("- {instruction}", "\nTask:"), ("{instruction}", "\nTask:")):
        changed = template.replace("Task: {instruction}\n{examples}", f"{own}\n{{examples}}")
        (tmp_path / "base.toml").write_text(changed, encoding="utf-8")
        prompts = load_prompts("completions", tmp_path)
        assert prompts.with_own_stops(SAMPLING_PRESETS["default"]["instance_input_first"]).stop[1] == stop


# The command.


@pytest.mark.parametrize("language", get_args(PromptLanguage))
def test_the_command_writes_a_folder_that_a_run_can_use(language: Any, tmp_path: Path) -> None:
    said = fastgen("prompts", "init", tmp_path / "new", "--language", language)
    assert (said.code, said.out) == (0, "")
    assert f"fastgen generate --prompts {tmp_path / 'new'}" in said.err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)
    own, english = (load_prompts("chat", folder) for folder in (tmp_path / "new", None))
    assert (own == english) is (language == "en")
    for name in ("base.toml", "chat.toml"):
        head = (tmp_path / "new" / name).read_text(encoding="utf-8").splitlines()[0]
        assert head.startswith("# To use another language") is (language == "en")


def test_the_command_writes_over_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    said = fastgen("prompts", "init", tmp_path)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"DIR {tmp_path}: is not empty; name a new folder, or replace its files with --overwrite" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert fastgen("prompts", "init", tmp_path, "--overwrite").code == 0
    (tmp_path / "base.toml").write_text("edited")
    assert fastgen("prompts", "init", tmp_path, "--overwrite", "--language", "de").code == 0
    assert "Sprachassistent" in (tmp_path / "base.toml").read_text()
    assert mine.read_text() == "mine"


def test_the_command_refuses_a_file_a_run_and_an_unknown_language(tmp_path: Path) -> None:
    file, run = tmp_path / "file", tmp_path / "run"
    file.touch()
    (run / "log").mkdir(parents=True)
    (run / "run.json").touch()
    for arguments, says in (
        ([file], "is no folder"),
        ([run, "--overwrite"], "is in the folder of a run"),
        ([file / "below"], "cannot be written"),
        ([tmp_path / "x", "--language", "xx"], '"zh"'),
    ):
        said = fastgen("prompts", "init", *arguments)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert says in said.err
    assert not (tmp_path / "x").exists()


def _label_rows() -> list[list[str]]:
    page = (Path(__file__).parents[2] / "docs" / "languages.md").read_text(encoding="utf-8")
    table = page.partition("| class label | yes, no |\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]


@pytest.mark.parametrize("row", _label_rows(), ids=lambda row: row[0])
def test_the_labels_that_the_page_lists_are_read(row: list[str]) -> None:
    _, task, example, given, output, label, answers = row
    text = f"{task} X\n{example}\n{given} A\n{output} B"
    (one,) = instance.parse(Completion(text, "stop"), False, DEFAULT).instances
    assert (text[slice(*one.input)], text[slice(*one.output)]) == ("A", "B")
    text = f"{label} A\nB\n{label} C\nD"
    read = instance.parse(Completion(text, "stop"), True, DEFAULT).instances
    assert [text[slice(*one.output)] for one in read] == ["A", "C"]
    yes, no = answers.split(", ")
    assert classification.parse(Completion(yes, "stop"), DEFAULT).value
    read_no = classification.parse(Completion(no, "stop"), DEFAULT)
    assert (read_no.value, read_no.unread) == (False, None)


def test_a_label_that_was_cut_is_no_part_of_the_output() -> None:
    for text, wanted in (
        ("Beispiel 1\nAusgabe: Ja.\n\nBeispiel", "Ja."),
        ("示例 1\n输出：好。\n\n示例", "好。"),
        ("Exemple 1\nSortie : Oui.\nExemple", "Oui."),
        ("Ejemplo 1\nSalida: Sí.\nEjemplo", "Sí."),
    ):
        (one,) = instance.parse(Completion(text, "length"), False, DEFAULT).instances
        assert text[slice(*one.output)] == wanted


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with file_size_limit(1000):
        said = fastgen("prompts", "init", tmp_path / "new")
    assert (said.code, said.err.count("\n")) == (3, 1)
    assert "cannot be written" in said.err
    assert list(tmp_path.iterdir()) == []


# The language that texts are in.

SAMPLES = {
    "de": GERMAN,
    "zh": CHINESE,
    "fr": FRENCH,
    "es": ("Escribe un poema sobre el mar.", "¿Cuál es la capital de Perú?", "Traduce la frase al inglés."),
    "pt": ("Escreva um poema sobre o mar.", "Qual é a capital do Peru?", "Traduza a frase para o inglês."),
    "it": ("Scrivi una poesia sul mare.", "Qual è la capitale del Perù?", "Spiega la differenza con due esempi."),
    "ru": ("Напиши стихотворение о море.", "Какая столица у Перу?", "Переведи предложение на английский."),
    "ja": ("海についての詩を書いてください。", "ペルーの首都はどこですか。", "次の文を英語に訳してください。"),
    "ko": ("바다에 대한 시를 쓰세요.", "페루의 수도는 어디입니까?", "문장을 영어로 번역하세요."),
    "ar": ("اكتب قصيدة عن البحر.", "ما هي عاصمة بيرو؟", "ترجم الجملة إلى الإنجليزية."),
    "hi": ("समुद्र पर एक कविता लिखो।", "पेरू की राजधानी क्या है?", "वाक्य का अनुवाद करो।"),
    "th": ("เขียนบทกวีเกี่ยวกับทะเล", "เมืองหลวงของเปรูคืออะไร", "แปลประโยคเป็นภาษาอังกฤษ"),
}


@pytest.mark.parametrize("code", SAMPLES)
def test_a_language_is_recognised(code: str) -> None:
    assert code in NAMES
    assert language_of(SAMPLES[code]) == code


def test_the_shipped_seeds_are_english() -> None:
    assert language_of([seed.instruction for seed in load_seed_tasks(default_seed_path())]) == "en"


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["", "123", "***"],
        GERMAN[:2],  # too few to tell
        [*GERMAN[:4], *CHINESE[:4]],
        [*GERMAN[:5], "Write a poem about the sea.", "What is the capital of Peru?"],
        ["SELECT name FROM users;", "for (int i = 0; i < 9; i++) sum += x[i];", "import os; print(os.getcwd())"],
    ],
)
def test_what_is_not_clear_is_not_guessed(texts: Sequence[str]) -> None:
    assert language_of(texts) is None


def test_a_text_that_quotes_another_script_is_in_the_language_of_its_words() -> None:
    quoted = ("写出水果", "翻译句子", "总结文章", "列出城市")
    assert language_of([f"Übersetze {text}" for text in quoted]) == "de"
    assert language_of([f"把“{text}”翻译成德语。" for text in ("Ein Haus am See", "Guten Morgen", "Danke")]) != "de"


def test_a_large_collection_is_sampled() -> None:
    assert language_of([*GERMAN] * 10_000) == "de"


@LANGUAGES
def test_seeds_and_demonstrations_of_one_language_are_fine(language: Any, tmp_path: Path) -> None:
    prompts = load_prompts("completions", folder_of(language, tmp_path))
    texts = SAMPLES | {"en": tuple(s.instruction for s in load_seed_tasks(default_seed_path()))}
    for other, seeds in texts.items():
        assert (language_warning(seeds_of(seeds), prompts) is None) is (other == language)


def test_the_warning_names_languages_files_and_what_to_do(tmp_path: Path) -> None:
    english = load_prompts("completions")
    assert language_warning(seeds_of(GERMAN), english) == (
        "the seed tasks are in German, but the demonstrations in classification.jsonl, input_first.jsonl, "
        "output_first.jsonl are in English, and models imitate them; write German ones with 'fastgen prompts init DIR "
        "--language de', then give --prompts DIR"
    )
    russian = language_warning(seeds_of(SAMPLES["ru"]), english) or ""
    assert "write English ones with 'fastgen prompts init DIR' and translate them" in russian
    (tmp_path / "input_first.jsonl").write_bytes(starting_files("de")["input_first.jsonl"])
    partly = language_warning(seeds_of(GERMAN), load_prompts("completions", tmp_path)) or ""
    assert "in classification.jsonl, output_first.jsonl are in English" in partly
    assert language_warning(seeds_of([*GERMAN[:4], *CHINESE[:4]]), english) is None


def test_seeds_check_looks_at_the_prompts_of_the_run(tmp_path: Path) -> None:
    seeds, prompts = tmp_path / "seeds.jsonl", tmp_path / "prompts"
    lines = [
        {
            "id": s.id,
            "instruction": s.instruction,
            "instances": [{"input": "", "output": "x"}],
            "is_classification": True,
        }
        for s in seeds_of(GERMAN)
    ]
    seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "warning: the seed tasks are in German" in fastgen("seeds", "check", seeds).out
    assert fastgen("prompts", "init", prompts, "--language", "de").code == 0
    assert "warning" not in fastgen("seeds", "check", seeds, "--prompts", prompts).out
    assert fastgen("seeds", "check", seeds, "--prompts", tmp_path / "none").code == 2
