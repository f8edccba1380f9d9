"""Read instances as models write them: labelled fields at the beginning of lines.

Copes with Markdown around the labels, "Example 1:" headings, pairs without headings, ``Input: N/A`` for no input,
other words and languages for the labels, an input written before its class label, code fences around a text or a whole
example, rules between instances, an echoed task, the next task, explanations of a label, chatter before and after, JSON
and tables.

The answer is read in three steps: `_find_fields` finds the labels at the beginning of lines, `_read_pairs` or
`_read_labelled` makes inputs and outputs of the text between them, and `_cleaned` takes off fences, rules and closing
remarks. Nothing raises, everything takes time linear in the text, and spans lie in the text and are stripped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from fastgen.methods.structured import NUMBER_NAMES, is_left_open, is_written, read_records
from fastgen.text import CLOSE, COLON, NOWHERE, OPEN, is_chatter, lines, trim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastgen.types import Span


@dataclass(frozen=True, slots=True)
class ParsedInstance:
    """Where the input and the output of one instance are. ``(0, 0)`` where there is none.

    ``is_labelled`` is false of an example in which no label was found: all of its text is taken for the output.
    """

    input: Span
    output: Span
    is_labelled: bool = True


def read_generation(text: str, answer: Span) -> tuple[list[ParsedInstance], bool]:
    """Return the instances of an answer that writes an input and then its output.

    The second value says whether the last instance runs up to the end of the text, so that more may be missing. Under
    an "Example k" heading without "Output:", everything is output. Without any heading or "Output:", nothing is.
    """
    if is_written(text, answer):
        return _cleaned(text, _read_structured(text, answer))
    answer = _without_begun_label(text, answer)
    return _read_generation(text, answer, _candidate_lines(text, answer))


def read_classification(text: str, answer: Span) -> tuple[list[ParsedInstance], bool]:
    """Return the instances of an answer that writes a class label and then an input for it.

    An answer that writes labelled inputs first, or outputs instead of class labels, is read as such. The second value
    is that of `read_generation`.
    """
    if is_written(text, answer):
        return _cleaned(text, _read_structured(text, answer))
    answer = _without_begun_label(text, answer)
    rows = _candidate_lines(text, answer)
    found, open_ended = _read_classification(text, answer, rows) or _read_generation(text, answer, rows)
    return [
        ParsedInstance(_before_explanation(text, one.input), _before_explanation(text, one.output), one.is_labelled)
        for one in found
    ], open_ended


# -- instances ---------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """What was found of one instance. ``end`` is the end of the text that belongs to it."""

    input: Span
    output: Span
    end: int
    is_labelled: bool = True


@dataclass(frozen=True, slots=True)
class _Segment:
    """The text of one example or, where there is no "Example k", all of it. ``headed`` when such a heading is there."""

    start: int
    end: int
    headed: bool
    fields: tuple[_Field, ...]


def _read_generation(text: str, answer: Span, rows: Sequence[Span]) -> tuple[list[ParsedInstance], bool]:
    found = _read_pairs(text, answer, rows, (_OUTPUT, _OUTPUT_ALIAS, _INLINE_OUTPUT))
    return _cleaned(text, found or _read_structured(text, answer))


def _read_classification(text: str, answer: Span, rows: Sequence[Span]) -> tuple[list[ParsedInstance], bool] | None:
    """Return the instances of an answer with class labels, or ``None`` for an answer without."""
    for kind in (_CLASS_LABEL, _CLASS_LABEL_ALIAS):
        fields = _find_fields(text, answer, rows, (kind, _EXAMPLE, _INPUT, _TASK))
        kinds = [field.kind for field in fields]
        if kind in kinds:
            if _INPUT in kinds[: kinds.index(kind)] or _is_headed_by_field(text, fields, kind):
                return _cleaned(text, _read_pairs(text, answer, rows, (kind,)))
            return _cleaned(text, _read_labelled(text, answer, kind, fields))
    return None


def _is_headed_by_field(text: str, fields: list[_Field], kind: re.Pattern[str]) -> bool:
    """Whether the first label comes after "Example k" and a field of another name ("Text: ..."), hence an input."""
    at = next(i for i, field in enumerate(fields) if field.kind is kind)
    if at == 0 or fields[at - 1].kind is not _EXAMPLE:
        return False
    before = trim(text, fields[at - 1].end, fields[at].start)
    return before != NOWHERE and _FIELD.match(text, *before) is not None


def _read_pairs(text: str, answer: Span, rows: Sequence[Span], outputs: Sequence[re.Pattern[str]]) -> list[_Piece]:
    """Return every input with its output, which begins with the first of the labels ``outputs`` that occurs."""
    for output in outputs:
        fields = _find_fields(text, answer, rows, (output, _EXAMPLE, _INPUT, _TASK))
        if output is _INLINE_OUTPUT:
            found = islice(_INLINE_OUTPUT.finditer(text, *answer), _MOST_LINES)
            inline = (_Field(_INLINE_OUTPUT, *match.span()) for match in found)
            fields = sorted([*fields, *inline], key=lambda field: field.start)
        if any(field.kind is output for field in fields):
            break
    region, fields = _within_task(text, answer, fields)
    pieces: list[_Piece] = []
    for segment in _segments(region, fields):
        pieces += _read_segment(text, segment)
    return pieces


def _read_labelled(text: str, answer: Span, kind: re.Pattern[str], fields: list[_Field]) -> list[_Piece]:
    """Return every label line and, up to the next label or heading, the input for it."""
    region, fields = _within_task(text, answer, fields)
    marks = [field for field in fields if field.kind in (kind, _EXAMPLE, _FENCE)]
    ends = [*(mark.start for mark in marks[1:]), region[1]]
    pieces = []
    for mark, end in zip(marks, ends, strict=bool(marks)):
        if mark.kind is kind:
            start, stop = trim(text, mark.end, end)
            line_end = next(lines(text, start, stop))[1]
            inline = _INLINE_INPUT.search(text, start, line_end)
            label_end = inline.start() if inline else line_end
            after = trim(text, label_end, stop)
            prefix = _INPUT.match(text, *after)
            pieces.append(_Piece((prefix.end() if prefix else after[0], after[1]), (start, label_end), end))
    return pieces


def _read_structured(text: str, answer: Span) -> list[_Piece]:
    """Return the instances of an answer that is JSON or a table."""
    pieces = []
    records = read_records(text, answer)
    open_one = records[-1] if records and is_written(text, answer) and is_left_open(text) else None
    for record in records:
        wanted = next((record[name] for name in _OUTPUT_NAMES if name in record), None)
        if wanted is not None:
            others = [span for name, span in record.items() if name not in _OUTPUT_NAMES and name not in NUMBER_NAMES]
            end = len(text) if record is open_one else 0
            pieces.append(_Piece(record.get("input", others[0] if len(others) == 1 else NOWHERE), wanted, end))
    return pieces


def _within_task(text: str, region: Span, fields: list[_Field]) -> tuple[Span, list[_Field]]:
    """Leave out a task or instruction repeated before the instances, and the next task after them."""
    start, end = region
    others = [field for field in fields if field.kind is not _TASK]
    first = others[0].start if others else end
    for field in fields:
        if field.kind is _TASK and field.start < first:
            line_end = text.find("\n", field.end, end)
            start = line_end + 1 if line_end >= 0 else end
        elif field.kind is _TASK and _NEXT_TASK.match(text, field.start):
            end = field.start
            break
    return (start, end), [field for field in others if start <= field.start < end]


def _segments(region: Span, fields: Sequence[_Field]) -> list[_Segment]:
    headings = [field for field in fields if field.kind is _EXAMPLE]
    starts = [region[0], *(heading.end for heading in headings)]
    ends = [*(heading.start for heading in headings), region[1]]
    within: list[list[_Field]] = [[]]
    for field in fields:
        if field.kind is _EXAMPLE:
            within.append([])
        else:
            within[-1].append(field)
    return [
        _Segment(start, end, i > 0, tuple(inside))
        for i, (start, end, inside) in enumerate(zip(starts, ends, within, strict=True))
    ]


def _read_segment(text: str, segment: _Segment) -> list[_Piece]:
    """Return every pair in a segment. An input without an output is a pair too."""
    labels = [field for field in segment.fields if field.kind is not _FENCE]
    if not labels:
        whole = trim(text, segment.start, segment.end)
        is_output = segment.headed and whole != NOWHERE
        return [_Piece(NOWHERE, whole, segment.end, is_labelled=False)] if is_output else []
    pieces = []
    given: Span | None = _before_fields(text, segment)
    ends = [*(field.start for field in segment.fields[1:]), segment.end]
    for field, end in zip(segment.fields, ends, strict=True):
        if field.kind is _FENCE:
            continue
        if field.kind is not _INPUT:
            if given is not None:
                pieces.append(_Piece(given, (field.end, end), end))
            given = None  # a second output in a row belongs to no input
        elif given is None or given == NOWHERE:
            given = (field.end, end)
        else:
            given = (given[0], end)  # a further field of the same input
    if given is not None and labels[-1].kind is _INPUT:
        pieces.append(_Piece(given, NOWHERE, segment.end))
    return pieces


def _before_fields(text: str, segment: _Segment) -> Span:
    """Return the input before the first label: fields of other names, or text right before an output."""
    first = segment.fields[0]
    span = trim(text, segment.start, first.start)
    if span == NOWHERE or first.kind is _FENCE or is_chatter(text, *span) or _is_introduction(text, span):
        return NOWHERE
    return span if first.kind is not _INPUT or _FIELD.match(text, *span) else NOWHERE


def _is_introduction(text: str, span: Span) -> bool:
    """Whether the last line is more than the name of a field, and ends in a colon."""
    line = max(text.rfind("\n", *span) + 1, span[0])
    return text[span[1] - 1] in ":\uff1a" and text.find(" ", line, span[1] - 1) >= 0


# -- cleaning ----------------------------------------------------------------------------------------------------------

_FIELD: Final = re.compile(rf"\w[\w \t/'-]{{0,40}}{COLON}")
_NO_INPUT: Final = re.compile(
    r"""[\[(<*_]*+(?:
        n\s?/\s?a(?:[ ][(\u2013\u2014-][^\n]{0,80})? | none | not[ ](?:applicable|needed|required) | empty | nil | null
        | (?:there[ ]is[ ])?no[ ]?(?:additional[ ]|further[ ]|specific[ ])?input
          (?:[ ](?:is[ ])?(?:needed|required|necessary|given|provided))?(?:[ ]for[ ]this[ ]task)?
        | [-\u2013\u2014] | 无 | 無 | 没有 | [无無][输輸]入 | (?:入力)?(?:なし|無し)
        | keine?(?:[ ]eingabe)? | aucune?(?:[ ]entrée)? | ninguna? | (?:sin|sem)[ ]entrada | нет(?:[ ]ввода)?
        | لا[ ]يوجد
    )[\])>*_.。]*+$""",
    re.IGNORECASE | re.VERBOSE,
)
_RULE: Final = re.compile(r"[ \t]*+(?:-{3,}|\*{3,}|_{3,}|={3,}|#{1,6}|\*\*|__)[ \t\r]*+$")
_OUTPUT_NAMES: Final = ("class label", "output", "label", "class", "answer", "response", "completion")
_FENCED: Final = re.compile(r"```[^\n`]*\n(?P<body>(?:(?!```).)*?)\n[ \t]*```", re.DOTALL)
_EXPLANATIONS: Final = (
    "explanation|reasoning|rationale|justification|erklärung|begründung|explication|explicaci[oó]n|explicação"
    "|объяснение|пояснение|(?:ال)?(?:شرح|تفسير)|解释|解釋|解釈|説明|理由"
)
_EXPLANATION: Final = re.compile(rf"\n{OPEN}(?:{_EXPLANATIONS}){CLOSE}[ \t]*+{COLON}", re.IGNORECASE)
_CLOSING: Final = re.compile(
    r"""\n[ \t]*+\n[ \t*_]*+(?:
        let\ me\ know\ if\ you(?:['\u2019]d\ like|\ need|\ want|\ would\ like)\b
            (?>[^\n]*?\b(?:more|another|else|examples?|changes?))
        | (?:i\ )?hope\ (?:this|these|that)\b | (?:these|the\ above)\ (?:examples?|instances?)\b
        | note(?:\ that|:)\ (?:these|the\ above|all)\ (?:\w+\ )?(?:examples|instances|inputs|outputs)\b
        | would\ you\ like\ (?:me|more|another)\b | feel\ free\ to\ (?:ask|modify|adjust|use)\b
    )[^\n]*+$""",
    re.IGNORECASE | re.VERBOSE,
)


def _cleaned(text: str, pieces: Sequence[_Piece]) -> tuple[list[ParsedInstance], bool]:
    found = [
        ParsedInstance(clean_input(text, piece.input), _unwrap(text, piece.output), piece.is_labelled)
        for piece in pieces
    ]
    return found, bool(pieces) and pieces[-1].end == len(text)


def clean_input(text: str, span: Span) -> Span:
    """Return an input without what surrounds it: blanks, a code fence, a closing remark. `NOWHERE` for "None"."""
    span = _unwrap(text, span)
    return NOWHERE if _NO_INPUT.match(text, *span) else span


def _unwrap(text: str, span: Span) -> Span:
    """Return the span without a closing remark, blanks, rules at its end, or a code fence around all of it."""
    start, end = trim(text, *span)
    if closing := _CLOSING.search(text, start, end):
        start, end = trim(text, start, closing.start())
    while (line := text.rfind("\n", start, end)) >= 0 and (
        _RULE.match(text, line + 1, end) or text[line:end].isspace()
    ):
        end = line
    if text.endswith("**", start, end) and text.count("**", start, end) % 2:
        end -= 2  # of "**Output: 4, 5**", where the label took the other mark
    span = trim(text, start, end)
    fenced = _FENCED.fullmatch(text, *span)
    return trim(text, *fenced.span("body")) if fenced else span


def _before_explanation(text: str, span: Span) -> Span:
    """Leave out what is said about a label: it belongs neither to the label nor to its input."""
    explained = _EXPLANATION.search(text, *span)
    return trim(text, span[0], explained.start()) if explained else span


_NAMED: Final = re.compile(
    rf"{OPEN}(?P<name>[^\W\d_][^\n\d:\uff1a.,;!?()\[\]{{}}<>=\"'`*_\\/|]{{0,39}}){CLOSE}[ \t]*+"
    r"(?::(?=[\s*_]|$)|\uff1a)"
)
_MOST_LABELS: Final = 2
_LABEL_WORDS: Final = 4
_NAMES_IN_TEXTS: Final = frozenset(  # first words of lines that belong to a text
    """title subject note notes dear hint tip warning caution remember ps quote fact headline slogan chorus verse
    titel betreff hinweis anmerkung titre objet remarque título asunto assunto nota заголовок тема примечание
    العنوان الموضوع ملاحظة 标题 主题 注 注意 提示 備考 件名 タイトル 題名 the a an this here my your""".split()  # noqa: SIM905
)


def begins_with_label(text: str, span: Span) -> bool:
    """Whether an example without a known label begins with another label ("Ulaz: 3 kg").

    That is a name of up to four words, of which the first does not begin with a small letter, and a colon. Titles,
    notes and the like are no labels. Three such lines or one name twice are a dialogue, a form, a list or a file.
    """
    named = []
    for line in lines(text, *span):
        if match := _NAMED.match(text, *line):
            named.append(match["name"].casefold())
        if len(named) > _MOST_LABELS:
            return False
    first = _NAMED.match(text, *next(lines(text, *span)))
    if first is None or first["name"][0].islower() or len(set(named)) < len(named):
        return False
    words = named[0].split()
    return len(words) <= _LABEL_WORDS and words[0] not in _NAMES_IN_TEXTS


# -- labels ------------------------------------------------------------------------------------------------------------

_START: Final = rf"[ \t]*+(?:\d{{1,2}}[.)][ \t]++)?{OPEN}"  # some models number their fields


def _first_letters(words: str) -> str:
    """Return the letters with which the pattern may begin, and perhaps a few more: most lines fail on the first one."""
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


# One line per language: English, German, French and Italian, Spanish and Portuguese, Russian, Arabic, Chinese,
# Japanese, others. A model answers in the language of its task and translates the labels that it was shown.
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

_EXAMPLE: Final = re.compile(
    rf"""{_START}(?:{_EXAMPLES})
    (?:[ \t]*+[\#\u2116]?(?P<number>\d++|[一二三四五六七八九十]++){CLOSE}
      [ \t]*+[.:)\uff1a-]?{CLOSE}|{CLOSE}[ \t]*+{COLON}?{CLOSE}[ \t]*+$)""",
    re.IGNORECASE | re.VERBOSE,
)
_INPUT: Final = _label(_INPUTS)
_OUTPUT: Final = _label(_OUTPUTS)
_OUTPUT_ALIAS: Final = _label(_ANSWERS)
_CLASS_LABEL: Final = _label(_CLASS_LABELS)
_CLASS_LABEL_ALIAS: Final = _label(_CLASSES)
_TASK: Final = _label(_TASKS)
_NEXT_TASK: Final = _label("task|aufgabe|tâche|tarea|任务|任務")  # in the languages of the shipped prompts
_INLINE_INPUT: Final = re.compile(rf"(?<=\s)Input[ \t]*+\d*+[ \t]*+{COLON}")
_INLINE_OUTPUT: Final = re.compile(rf"(?:(?<=\s)(?:[|→⇒]|[-=]>)[ \t]++)?(?<=\s)Output[ \t]*+\d*+[ \t]*+{COLON}")
_BEGUN: Final = re.compile(
    r"\n[ \t*#]*+(?:example|input|output|class(?:[ ]label)?|beispiel|eingabe|ausgabe|kategorie|exemple|entrée|sortie"
    r"|étiquette(?:[ ]de[ ]classe)?|ejemplo|entrada|salida|etiqueta(?:[ ]de[ ]clase)?|示例|输入|输出|类别)[ \t*]*+$",
    re.IGNORECASE,
)
_FENCE: Final = re.compile(r"[ \t]*+```[^`\n]*+$")
# A line that may begin with a label: a word of one, with a colon or mark soon after it, or a heading, or a fence.
# Without a colon the words are not tried, which would take most of the time of a long text.
_ALL: Final = f"{_EXAMPLES}|{_INPUTS}|{_OUTPUTS}|{_ANSWERS}|{_CLASS_LABELS}|{_CLASSES}|{_TASKS}"
_CANDIDATE: Final = re.compile(
    rf"^(?!\n)(?:{_START}(?=\w)(?:(?=[^\n:\uff1a*_]{{0,120}}+[:\uff1a*_])(?:{_ALL})|(?:{_EXAMPLES}))|[ \t]*+```)",
    re.IGNORECASE | re.MULTILINE,
)
_MOST_LINES: Final = 20_000  # of a completion with more labels, the rest belongs to the last


@dataclass(frozen=True, slots=True)
class _Field:
    """A label: its kind, where it starts, and where its content does."""

    kind: re.Pattern[str]
    start: int
    end: int


def _without_begun_label(text: str, region: Span) -> Span:
    """Leave out a label at the very end that was cut before its colon or number. What is before it is complete."""
    start, end = region
    last = text.rfind("\n", start, end)
    return (start, last) if last >= 0 and _BEGUN.match(text, last, end) else region


def _candidate_lines(text: str, region: Span) -> list[Span]:
    """Return the lines in ``region`` that may begin with a label of any kind, and the fences. At most 20,000."""
    first = next(lines(text, *region))
    found = [first]
    for match in islice(_CANDIDATE.finditer(text, first[1], region[1]), _MOST_LINES):
        stop = text.find("\n", match.start(), region[1])
        found.append((match.start(), stop if stop >= 0 else region[1]))
    return found


def _find_fields(text: str, region: Span, rows: Sequence[Span], kinds: Sequence[re.Pattern[str]]) -> list[_Field]:
    """Return the labels of ``kinds`` in ``region``, of which ``rows`` are the candidates, in order.

    A code fence around labels is a field of the kind ``_FENCE`` where it opens and where it closes.
    """
    fences = [number for number, row in enumerate(rows) if _FENCE.match(text, *row)]
    closed_by = dict(zip(fences[::2], fences[1::2], strict=False))
    found: list[_Field] = []
    opened, closing, is_in_field, number = (0, NOWHERE), -1, False, -1
    while (number := number + 1) < len(rows):
        if number == closing:
            if any(field.kind is not _EXAMPLE for field in found[opened[0] :]):
                found.insert(opened[0], _Field(_FENCE, *opened[1]))
                found.append(_Field(_FENCE, *rows[number]))
            is_in_field = False
        elif number in closed_by and is_in_field:
            number = closed_by[number]
        elif number in closed_by:
            opened, closing = (len(found), rows[number]), closed_by[number]
        else:
            new = list(_in_line(text, rows[number], region[1], kinds))
            is_in_field = new[-1].kind not in (_EXAMPLE, _TASK) if new else is_in_field
            found += new
    return found


def _in_line(text: str, line: Span, end: int, kinds: Sequence[re.Pattern[str]]) -> Iterator[_Field]:
    """Yield the label that begins the line, and after a heading also the one that follows it."""
    at, stop = line
    while match := _label_at(text, at, stop, kinds):
        if match.re is _EXAMPLE and not match["number"] and not _label_follows(text, stop, end, kinds):
            return
        yield _Field(match.re, at, match.end())
        if match.re is not _EXAMPLE:
            return
        at = match.end()


def input_begins(text: str, line: Span) -> int | None:
    """Return where the input begins in a line that labels it ("**Input:** ..."). ``None`` for another line."""
    match = _INPUT.match(text, *line)
    return match.end() if match else None


def output_begins(text: str, line: Span) -> bool:
    """Whether a line begins with the label of an output or answer."""
    return _label_at(text, *line, (_OUTPUT, _OUTPUT_ALIAS)) is not None


def _label_at(text: str, at: int, stop: int, kinds: Sequence[re.Pattern[str]]) -> re.Match[str] | None:
    for kind in kinds:
        if match := kind.match(text, at, stop):
            return match
    return None


def _label_follows(text: str, start: int, end: int, kinds: Sequence[re.Pattern[str]]) -> bool:
    """Whether the next text is a label. If not, a lone "Example:" is a line of an output."""
    line = next((line for line in lines(text, start, end) if text[slice(*line)].strip()), None)
    return line is not None and any(kind.match(text, *line) for kind in kinds if kind is not _EXAMPLE)
