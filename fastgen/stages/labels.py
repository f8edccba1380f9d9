"""Find the labels of fields ("Input:", "Output:", "Example 2", "Class label:") at the beginnings of lines.

Knows them in any case, with Markdown around them, with numbers and remarks, and in the languages that models answer in
most. What looks like a label inside a code fence that belongs to a field is part of that field. Guarantees: never
raises; linear in the text. Knows nothing of how fields make up an instance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from fastgen.stages.answer import CLOSE, COLON, NOWHERE, OPEN, lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastgen.records import Span

_START: Final = rf"[ \t]*+(?:\d{{1,2}}[.)][ \t]++)?{OPEN}"  # some models number their fields


def _first_letters(words: str) -> str:
    """Return the letters with which the pattern may begin, or a few more: most lines fail on the first one, at once."""
    in_sets = "".join(re.findall(r"\[([^\]]*)\]", words))
    return "".join(sorted({*re.findall(r"(?:^|[|:?])(\w)", words), *filter(str.isalpha, in_sets)}))


def _label(words: str) -> re.Pattern[str]:
    """Return a pattern for a field name at the start of a line: ``words``, maybe a number or a remark, a colon.

    A bold name alone on its line needs no colon.
    """
    name = rf"(?=[{_first_letters(words)}])(?:{words})[ \t]*+\d*+"
    remark = r"(?:\([^()\n]{0,40}\)[ \t]*+)?"
    bold = rf"[ \t]*+(?:\#++[ \t]++)?\*\*{name}\*\*[ \t\r]*+$"
    return re.compile(rf"{_START}{name}[ \t]*+{remark}{CLOSE}[ \t]*+{COLON}{CLOSE}|{bold}", re.IGNORECASE)


# One line a language: English, German, French and Italian, Spanish and Portuguese, Russian, Arabic, Chinese, Japanese,
# others. A model answers in the language of its task, with its own words for the labels that it was shown.
_KIND_OF_TEXT: Final = "(?:[ ](?:text|sentence|data|list))?"
_EXAMPLES: Final = (
    "example|instance|test[ ]case|beispiel|exempl[eo]|esempio|ejemplo|пример|(?:ال)?مثال"
    "|示例|样例|例子|例题|範例|サンプル|例|उदाहरण|ตัวอย่าง(?:ที่)?|예시|예제"
)
_INPUTS: Final = (
    rf"(?:(?:example|sample|test)[ ])?inputs?{_KIND_OF_TEXT}"
    "|(?:(?:beispiel|muster|test)-?)?eingabe(?:text|satz|daten|wert)?"
    "|(?:(?:exemple|données|texte|phrase)[ ]d['\u2019])?entrées?(?:[ ]d['\u2019]exemple)?|ingresso"
    "|(?:(?:ejemplo|exemplo|datos|dados|texto)[ ]de[ ])?entradas?(?:[ ]de[ ](?:ejemplo|exemplo))?"
    "|(?:пример[ ])?(?:ввода?|вход(?:ные[ ]данные|ной[ ]текст)?)"
    "|(?:مثال[ ](?:على[ ])?)?(?:ال)?(?:مدخل(?:ات)?|[إا]دخال)"
    "|(?:示例|样例|测试|範例)?[输輸]入(?:文本|内容|示例|句子|数据)?"
    "|(?:サンプル|例|テスト)?(?:の)?(?:入力|インプット)(?:文|例|テキスト|データ)?"
    "|इनपुट|อินพุต|(?:예시[ ]?)?입력"
)
_OUTPUTS: Final = (
    rf"(?:(?:example|sample|expected|correct|desired|possible)[ ])?outputs?{_KIND_OF_TEXT}"
    "|(?:(?:erwartete|gewünschte|korrekte)[ ])?(?:(?:beispiel|muster)-?)?ausgabe(?:text|satz|daten|wert)?"
    "|(?:(?:exemple|données|texte)[ ]de[ ])?sorties?(?:[ ](?:attendue|d['\u2019]exemple))?|uscita"
    "|(?:(?:ejemplo|exemplo|datos|dados|texto)[ ]de[ ])?sa(?:li|lí|í)das?(?:[ ](?:esperada|de[ ](?:ejemplo|exemplo)))?"
    "|(?:пример[ ])?(?:вывода?|выход(?:ные[ ]данные|ной[ ]текст)?)"
    "|(?:مثال[ ](?:على[ ])?)?(?:ال)?(?:مخرج(?:ات)?|[إا]خراج|ناتج)"
    "|(?:示例|样例|预期|期望|範例)?[输輸]出(?:文本|内容|示例|结果|句子|数据)?"
    "|(?:サンプル|例|期待される)?(?:の)?(?:出力|アウトプット)(?:文|例|テキスト|結果|データ)?"
    "|आउटपुट|เอาต์พุต|(?:예시[ ]?)?출력"
)
_ANSWERS: Final = (
    "answer|response|result|solution|completion|antwort|ergebnis|resultat|lösung|réponse|résultat|risposta|risultato"
    "|respuesta|resultado|soluci[oó]n|resposta|ответ|результат|решение|(?:ال)?(?:[إا]جابة|جواب|نتيجة|حل)"
    "|回答|答案|答复|回复|解答|结果|結果|答え|답변|정답|결과|उत्तर|คำตอบ"
)
_CLASS_LABELS: Final = (
    "(?:class|classification)[ _-]?labels?|klassen-?(?:label|bezeichnung|name)"
    "|(?:étiquette|label)[ ]de[ ](?:la[ ])?classe"
    "|(?:etiqueta|rótulo)[ ]d[ae][ ](?:la[ ])?clas[es]e?|метка[ ]класса"
    "|(?:ال)?(?:تسمية|تصنيف|علامة)[ ](?:ال)?(?:فئة|صنف)"
    "|(?:类别|分类|類別|分類)[标標][签籤]|(?:クラス|分類)ラベル|클래스[ ]?레이블"
)
_CLASSES: Final = (
    "label|class|category|classification|klasse|kategorie|klassifi(?:kation|zierung)|classe|catégorie|étiquette"
    "|clase|categor[ií]a|etiqueta|rótulo|clasificaci[oó]n|классификация|класс|категория|метка"
    "|(?:ال)?(?:تصنيف|فئة|تسمية|صنف)|类别|類別|分类|分類|标签|標籤|カテゴリー?|クラス|ラベル|वर्ग|분류|범주"
)
_TASKS: Final = (
    "task|instruction|aufgabe|anweisung|tâche|consigne|tarea|tarefa|instrucci[oó]n|задание|задача|инструкция"
    "|(?:ال)?مهمة|任务|任務|指令|タスク|課題|指示"
)

EXAMPLE: Final = re.compile(
    rf"""{_START}(?:{_EXAMPLES})
    (?:[ \t]*+[\#\u2116]?(?P<number>\d++|[一二三四五六七八九十]++){CLOSE}
      [ \t]*+[.:)\uff1a-]?{CLOSE}|{CLOSE}[ \t]*+{COLON}?{CLOSE}[ \t]*+$)""",
    re.IGNORECASE | re.VERBOSE,
)
INPUT: Final = _label(_INPUTS)
OUTPUT: Final = _label(_OUTPUTS)
OUTPUT_ALIAS: Final = _label(_ANSWERS)
CLASS_LABEL: Final = _label(_CLASS_LABELS)
CLASS_LABEL_ALIAS: Final = _label(_CLASSES)
TASK: Final = _label(_TASKS)
NEXT_TASK: Final = _label("task")
INLINE_INPUT: Final = re.compile(rf"(?<=\s)Input[ \t]*+\d*+[ \t]*+{COLON}")
INLINE_OUTPUT: Final = re.compile(rf"(?:(?<=\s)(?:[|→⇒]|[-=]>)[ \t]++)?(?<=\s)Output[ \t]*+\d*+[ \t]*+{COLON}")
_BEGUN: Final = re.compile(r"\n[ \t*#]*+(?:example|input|output|class(?:[ ]label)?)[ \t*]*+$", re.IGNORECASE)
FENCE: Final = re.compile(r"[ \t]*+```[^`\n]*+$")
# A line that may begin with a label: a word of one, with a colon or mark soon after it, or a heading, or a fence. Where
# there is no colon, the words need not be tried, which would take most of the time of a long text.
_ALL: Final = f"{_EXAMPLES}|{_INPUTS}|{_OUTPUTS}|{_ANSWERS}|{_CLASS_LABELS}|{_CLASSES}|{_TASKS}"
_CANDIDATE: Final = re.compile(
    rf"^(?!\n)(?:{_START}(?=\w)(?:(?=[^\n:\uff1a*_]{{0,120}}+[:\uff1a*_])(?:{_ALL})|(?:{_EXAMPLES}))|[ \t]*+```)",
    re.IGNORECASE | re.MULTILINE,
)
_MOST_LINES: Final = 20_000  # of a completion with more labels, the rest belongs to the last


@dataclass(frozen=True, slots=True)
class Field:
    """A label found: its kind, where it starts, and where its content does."""

    kind: re.Pattern[str]
    start: int
    end: int


def without_begun_label(text: str, region: Span) -> Span:
    """Leave out a label at the very end that was cut before its colon or number; what is before it is complete."""
    start, end = region
    last = text.rfind("\n", start, end)
    return (start, last) if last >= 0 and _BEGUN.match(text, last, end) else region


def candidates(text: str, region: Span) -> list[Span]:
    """Return the lines in ``region`` that may begin with a label of any kind, and the fences; at most 20,000."""
    first = next(lines(text, *region))
    matches = islice(_CANDIDATE.finditer(text, first[1], region[1]), _MOST_LINES)
    return [first, *((match.start(), _line_end(text, match.start(), region[1])) for match in matches)]


def _line_end(text: str, start: int, end: int) -> int:
    stop = text.find("\n", start, end)
    return stop if stop >= 0 else end


def find_fields(text: str, region: Span, rows: Sequence[Span], kinds: Sequence[re.Pattern[str]]) -> list[Field]:
    """Return the labels of ``kinds`` in ``region``, of which ``rows`` are the candidates, in order.

    A code fence around labels is a field of the kind ``FENCE`` where it opens and where it closes.
    """
    fences = [number for number, row in enumerate(rows) if FENCE.match(text, *row)]
    closed_by = dict(zip(fences[::2], fences[1::2], strict=False))
    found: list[Field] = []
    opened, closing, is_in_field, number = (0, NOWHERE), -1, False, -1
    while (number := number + 1) < len(rows):
        if number == closing:
            if any(field.kind is not EXAMPLE for field in found[opened[0] :]):
                found.insert(opened[0], Field(FENCE, *opened[1]))
                found.append(Field(FENCE, *rows[number]))
            is_in_field = False
        elif number in closed_by and is_in_field:
            number = closed_by[number]
        elif number in closed_by:
            opened, closing = (len(found), rows[number]), closed_by[number]
        else:
            new = list(_in_line(text, rows[number], region[1], kinds))
            is_in_field = new[-1].kind not in (EXAMPLE, TASK) if new else is_in_field
            found += new
    return found


def _in_line(text: str, line: Span, end: int, kinds: Sequence[re.Pattern[str]]) -> Iterator[Field]:
    """Yield the label that begins the line, and after a heading also the one that follows it."""
    at, stop = line
    while match := next(filter(None, (kind.match(text, at, stop) for kind in kinds)), None):
        if match.re is EXAMPLE and not match["number"] and not _label_follows(text, stop, end, kinds):
            return
        yield Field(match.re, at, match.end())
        if match.re is not EXAMPLE:
            return
        at = match.end()


def _label_follows(text: str, start: int, end: int, kinds: Sequence[re.Pattern[str]]) -> bool:
    """Whether the next text is a label, without which a lone "Example:" is a line of somebody's output."""
    line = next((line for line in lines(text, start, end) if text[slice(*line)].strip()), None)
    return line is not None and any(kind.match(text, *line) for kind in kinds if kind is not EXAMPLE)


def find_inline_outputs(text: str, region: Span) -> list[Field]:
    """Return the "Output:" in the middle of lines, for an answer that has none at the beginning of any."""
    return [Field(INLINE_OUTPUT, *match.span()) for match in islice(INLINE_OUTPUT.finditer(text, *region), _MOST_LINES)]
