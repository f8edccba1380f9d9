"""Labels in other languages, unknown labels, and texts that only look as if they began with one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgen.methods.self_instruct.instance import parse
from fastgen.methods.self_instruct.rules import PRESETS, Rules
from fastgen.types import Completion

DEFAULT = PRESETS["default"]
Pairs = list[tuple[str, str]]


def read(
    text: str, *, is_classification: bool = False, instruction: str = "Do it.", rules: Rules = DEFAULT
) -> tuple[Pairs, list[str]]:
    """Instances as (input, output), and the rules that rejected others."""
    parsed = parse(Completion(text, "stop"), is_classification, rules, instruction)
    instances = [(text[slice(*i.input)], text[slice(*i.output)]) for i in parsed.instances]
    return instances, [rejected.rule for rejected in parsed.rejected]


FIELDS = {
    "English": [("Input", "Output"), ("Example input", "Expected output"), ("Input", "Answer")],
    "German": [("Eingabe", "Ausgabe"), ("Beispieleingabe", "Beispielausgabe"), ("Eingabetext", "Ergebnis")],
    "French": [("Entrée", "Sortie"), ("Exemple d'entrée", "Exemple de sortie"), ("Entrée", "Réponse")],
    "Spanish": [("Entrada", "Salida"), ("Ejemplo de entrada", "Salida esperada"), ("Entrada", "Respuesta")],
    "Chinese": [("输入", "输出"), ("示例输入", "示例输出"), ("輸入", "輸出"), ("输入文本", "结果")],
    "Japanese": [("入力", "出力"), ("入力例", "出力例"), ("サンプル入力", "サンプル出力"), ("入力文", "回答")],
    "Russian": [("Ввод", "Вывод"), ("Входные данные", "Выходные данные"), ("Пример ввода", "Пример вывода")],
    "Arabic": [("المدخلات", "المخرجات"), ("الإدخال", "الإخراج"), ("مثال على الإدخال", "الناتج")],
}
HEADINGS = {
    "English": "Example",
    "German": "Beispiel",
    "French": "Exemple",
    "Spanish": "Ejemplo",
    "Chinese": "示例",
    "Japanese": "例",
    "Russian": "Пример",
    "Arabic": "مثال",
}
CLASSES = {
    "English": ["Class label", "Label", "Category"],
    "German": ["Klassenlabel", "Kategorie", "Klasse"],
    "French": ["Étiquette de classe", "Catégorie", "Classe"],
    "Spanish": ["Etiqueta de clase", "Categoría", "Clase"],
    "Chinese": ["类别标签", "分类", "类别", "标签"],
    "Japanese": ["クラスラベル", "分類", "カテゴリー", "ラベル"],
    "Russian": ["Метка класса", "Категория", "Класс"],
    "Arabic": ["تسمية الفئة", "التصنيف", "الفئة"],
}
PAIRS = [("A", "B"), ("C", "D")]


def colon(label: str) -> str:
    return "\uff1a" if label[0] >= "\u3040" else ": "


@pytest.mark.parametrize("is_headed", [True, False])
@pytest.mark.parametrize(
    ("language", "given", "wanted"), [(language, *pair) for language, pairs in FIELDS.items() for pair in pairs]
)
def test_an_input_and_an_output_are_read_in_the_language_of_the_task(
    language: str, given: str, wanted: str, *, is_headed: bool
) -> None:
    text = ""
    for number, (a, b) in enumerate(PAIRS, 1):
        text += f"{HEADINGS[language]} {number}\n" if is_headed else ""
        text += f"{given}{colon(given)}{a}\n{wanted}{colon(wanted)}{b}\n"
    assert read(text) == (PAIRS, [])


@pytest.mark.parametrize(
    "name", [f"{field}/{wanted}" for field, wanted in [("Text", "Ergebnis"), ("文本", "结果"), ("Texto", "Resultado")]]
)
def test_a_field_of_another_name_is_the_input_of_a_known_output(name: str) -> None:
    field, wanted = name.split("/")
    text = f"Example 1\n{field}{colon(field)}A\n{wanted}{colon(wanted)}B"
    assert read(text) == ([(f"{field}{colon(field)}A", "B")], [])


@pytest.mark.parametrize(("language", "label"), [(language, one) for language, all_ in CLASSES.items() for one in all_])
def test_a_class_label_is_read_in_the_language_of_the_task(language: str, label: str) -> None:
    text = f"{label}{colon(label)}Yes\nIt rains.\n\n{label}{colon(label)}No\nIt is dry.\n"
    assert read(text, is_classification=True) == ([("It rains.", "Yes"), ("It is dry.", "No")], []), language
    given = FIELDS[language][0][0]
    text = f"{given}{colon(given)}It rains.\n{label}{colon(label)}Yes\n"
    assert read(text, is_classification=True) == ([("It rains.", "Yes")], [])


UNKNOWN = [
    "Ulaz: A\nIzlaz: B",
    "Kérdés: A",
    "Sentence: She walks.\nTense: past",
    "**Girdi:** A\n**Çıktı:** B",
    "問：A\n応：B",
]


@pytest.mark.parametrize("piece", UNKNOWN)
@pytest.mark.parametrize("is_classification", [False, True])
def test_an_example_that_begins_with_an_unknown_label_is_no_instance(piece: str, *, is_classification: bool) -> None:
    text = f"Example 1\n{piece}\nExample 2\n{piece}"
    assert read(text, is_classification=is_classification) == ([], ["unknown_label"] * 2)
    off = replace(DEFAULT, reject_unknown_labels=False)
    assert read(f"Example 1\n{piece}", is_classification=is_classification, rules=off)[0] != []


TEXTS = [
    "Note: do not run.",
    "Alice: hi\nBob: hello\nAlice: bye",
    "name: fastgen\nversion: 1",
    "Dear Ann: it rains.",
    "The answer is: no.",
    "Title: The Sea\n\nThe sea is wide.",
    "Monday: soup\nTuesday: rice\nWednesday: fish",
    "Step 1: Boil water.\nStep 2: Add rice.",
    "for x in y: print(x)",
    "It is 9:30.",
    "Betreff: Urlaub\n\nSehr geehrte Frau Meier, ich bin im Urlaub.",
    "https://example.org",
]


@pytest.mark.parametrize("output", TEXTS)
def test_a_text_with_colons_stays_an_output(output: str) -> None:
    assert read(f"Example 1\n{output}") == ([("", output)], [])
    assert read(f"Example 1\nOutput: {output}") == ([("", output)], [])


@pytest.mark.parametrize("output", [*TEXTS, *(piece for piece in UNKNOWN if "**" not in piece)])
def test_after_a_known_label_any_label_is_text(output: str) -> None:
    assert read(f"Example 1\nInput: x\nOutput:\n{output}") == ([("x", output)], [])


def test_a_dialogue_that_was_asked_for_may_be_short() -> None:
    text = "Example 1\nAlice: hi\nBob: hello"
    assert read(text, instruction="Write a dialogue of two friends.") == ([("", "Alice: hi\nBob: hello")], [])
    assert read(text, instruction="Write a description of the two.") == ([], ["unknown_label"])
    assert read(text, instruction="Say hello.") == ([], ["unknown_label"])
