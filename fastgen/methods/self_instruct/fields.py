"""Find the labels of fields ("Input:", "Output:", "Example 2", "Class label:") at the beginnings of lines.

Knows them in any case, with Markdown around them, with numbers and remarks, and in the languages that models answer in
most. What looks like a label inside a code fence that belongs to a field is part of that field. Guarantees: never
raises; linear in the text. Knows nothing of how fields make up an instance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from fastgen.methods.self_instruct.structured import NUMBER_NAMES, read_records
from fastgen.text import CLOSE, COLON, NOWHERE, OPEN, is_chatter, lines, trim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastgen.types import Span


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


Pair = tuple["Span", "Span"]
"""(input, output)."""


class _Piece(NamedTuple):
    """What was found of one instance; ``end`` is the end of what belongs to it."""

    input: Span
    output: Span
    end: int
    is_labelled: bool = True


_FIELD: Final = re.compile(rf"\w[\w \t/'-]{{0,40}}{COLON}")
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


@dataclass(frozen=True, slots=True)
class Reading:
    """The pairs found; ``open_ended`` when the last one runs up to the end of the text, so that more may be missing.

    ``unlabelled`` are those of the pairs whose output is all of an example, for want of a label in it.
    """

    pairs: tuple[Pair, ...]
    open_ended: bool
    unlabelled: frozenset[Pair] = frozenset()


@dataclass(frozen=True, slots=True)
class _Segment:
    """The text of one example or, where there is no "Example k", all of it; ``headed`` when such a heading is there."""

    start: int
    end: int
    headed: bool
    fields: tuple[Field, ...]


def read_generation(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes an input and then its output.

    Under an "Example k" heading without "Output:", everything is output; without any heading or "Output:", nothing is.
    """
    answer = without_begun_label(text, answer)
    return _read_generation(text, answer, candidates(text, answer))


def _read_generation(text: str, answer: Span, rows: Sequence[Span]) -> Reading:
    reading = _read_pairs(text, answer, rows, (OUTPUT, OUTPUT_ALIAS, INLINE_OUTPUT))
    return reading if reading.pairs else _read_structured(text, answer)


def read_classification(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that writes a class label and then an input for it.

    An answer that writes labelled inputs first, or outputs instead of class labels, is read as such.
    """
    answer = without_begun_label(text, answer)
    rows = candidates(text, answer)
    for kind in (CLASS_LABEL, CLASS_LABEL_ALIAS):
        fields = find_fields(text, answer, rows, (kind, EXAMPLE, INPUT, TASK))
        kinds = [field.kind for field in fields]
        if kind in kinds:
            input_comes_first = INPUT in kinds[: kinds.index(kind)] or _is_headed_by_field(text, fields, kind)
            return _without_explanations(
                text,
                _read_pairs(text, answer, rows, (kind,))
                if input_comes_first
                else _read_labelled(text, answer, kind, fields),
            )
    return _without_explanations(text, _read_generation(text, answer, rows))


def _is_headed_by_field(text: str, fields: list[Field], kind: re.Pattern[str]) -> bool:
    """Whether the first label comes after "Example k" and a field of another name ("Text: ..."), hence an input."""
    at = next(i for i, field in enumerate(fields) if field.kind is kind)
    if at == 0 or fields[at - 1].kind is not EXAMPLE:
        return False
    before = trim(text, fields[at - 1].end, fields[at].start)
    return before != NOWHERE and _FIELD.match(text, *before) is not None


def _read_structured(text: str, answer: Span) -> Reading:
    """Return the pairs of an answer that is JSON or a table."""
    pairs = []
    for record in read_records(text, answer):
        wanted = next((record[name] for name in _OUTPUT_NAMES if name in record), None)
        if wanted is not None:
            others = [span for name, span in record.items() if name not in _OUTPUT_NAMES and name not in NUMBER_NAMES]
            pairs.append(_Piece(record.get("input", others[0] if len(others) == 1 else NOWHERE), wanted, 0))
    return _reading(text, pairs)


def _without_explanations(text: str, reading: Reading) -> Reading:
    """Leave out what is said about a label: it belongs neither to the label nor to its input."""

    def shortened(pair: Pair) -> Pair:
        return _before_explanation(text, pair[0]), _before_explanation(text, pair[1])

    pairs, unlabelled = map(shortened, reading.pairs), map(shortened, reading.unlabelled)
    return Reading(tuple(pairs), reading.open_ended, frozenset(unlabelled))


def _before_explanation(text: str, span: Span) -> Span:
    explained = _EXPLANATION.search(text, *span)
    return trim(text, span[0], explained.start()) if explained else span


def _within_task(text: str, region: Span, fields: list[Field]) -> tuple[Span, list[Field]]:
    """Leave out a task or instruction repeated before the instances, and the next task after them."""
    start, end = region
    others = [field for field in fields if field.kind is not TASK]
    first = others[0].start if others else end
    for field in fields:
        if field.kind is TASK and field.start < first:
            line_end = text.find("\n", field.end, end)
            start = line_end + 1 if line_end >= 0 else end
        elif field.kind is TASK and NEXT_TASK.match(text, field.start):
            end = field.start
            break
    return (start, end), [field for field in others if start <= field.start < end]


def _read_pairs(text: str, answer: Span, rows: Sequence[Span], outputs: Sequence[re.Pattern[str]]) -> Reading:
    for output in outputs:
        fields = find_fields(text, answer, rows, (output, EXAMPLE, INPUT, TASK))
        if output is INLINE_OUTPUT:
            fields = sorted([*fields, *find_inline_outputs(text, answer)], key=lambda field: field.start)
        if any(field.kind is output for field in fields):
            break
    region, fields = _within_task(text, answer, fields)
    pieces: list[_Piece] = []
    for segment in _segments(region, fields):
        pieces += _read_segment(text, segment)
    return _reading(text, pieces)


def _reading(text: str, pieces: Sequence[_Piece]) -> Reading:
    """Clean what was found."""
    pairs = tuple((_clean_input(text, piece.input), _clean_output(text, piece.output)) for piece in pieces)
    unlabelled = (pair for pair, piece in zip(pairs, pieces, strict=True) if not piece.is_labelled)
    return Reading(pairs, bool(pieces) and pieces[-1].end == len(text), frozenset(unlabelled))


def _segments(region: Span, fields: Sequence[Field]) -> list[_Segment]:
    headings = [field for field in fields if field.kind is EXAMPLE]
    starts = [region[0], *(heading.end for heading in headings)]
    ends = [*(heading.start for heading in headings), region[1]]
    within: list[list[Field]] = [[]]
    for field in fields:
        if field.kind is EXAMPLE:
            within.append([])
        else:
            within[-1].append(field)
    return [
        _Segment(start, end, i > 0, tuple(inside))
        for i, (start, end, inside) in enumerate(zip(starts, ends, within, strict=True))
    ]


def _read_segment(text: str, segment: _Segment) -> list[_Piece]:
    """Return every pair in a segment; an input without an output is a pair too."""
    labels = [field for field in segment.fields if field.kind is not FENCE]
    if not labels:
        whole = trim(text, segment.start, segment.end)
        is_output = segment.headed and whole != NOWHERE
        return [_Piece(NOWHERE, whole, segment.end, is_labelled=False)] if is_output else []
    pairs = []
    given: Span | None = _before_fields(text, segment)
    ends = [*(field.start for field in segment.fields[1:]), segment.end]
    for field, end in zip(segment.fields, ends, strict=True):
        if field.kind is FENCE:
            continue
        if field.kind is not INPUT:
            if given is not None:
                pairs.append(_Piece(given, (field.end, end), end))
            given = None  # a second output in a row belongs to no input
        elif given is None or given == NOWHERE:
            given = (field.end, end)
        else:
            given = (given[0], end)  # a further field of the same input
    if given is not None and labels[-1].kind is INPUT:
        pairs.append(_Piece(given, NOWHERE, segment.end))
    return pairs


def _before_fields(text: str, segment: _Segment) -> Span:
    """Return the input that stands before the first label: fields of other names, or text right before an output."""
    first = segment.fields[0]
    span = trim(text, segment.start, first.start)
    if span == NOWHERE or first.kind is FENCE or is_chatter(text, *span) or _is_introduction(text, span):
        return NOWHERE
    return span if first.kind is not INPUT or _FIELD.match(text, *span) else NOWHERE


def _is_introduction(text: str, span: Span) -> bool:
    """Whether the last line is more than the name of a field, and ends in a colon."""
    line = max(text.rfind("\n", *span) + 1, span[0])
    return text[span[1] - 1] in ":\uff1a" and text.find(" ", line, span[1] - 1) >= 0


def _read_labelled(text: str, answer: Span, kind: re.Pattern[str], fields: list[Field]) -> Reading:
    """Read a label line and, up to the next label or heading, the input for it."""
    region, fields = _within_task(text, answer, fields)
    marks = [field for field in fields if field.kind in (kind, EXAMPLE, FENCE)]
    ends = [*(mark.start for mark in marks[1:]), region[1]]
    pairs = []
    for mark, end in zip(marks, ends, strict=bool(marks)):
        if mark.kind is kind:
            start, stop = trim(text, mark.end, end)
            line_end = next(lines(text, start, stop))[1]
            inline = INLINE_INPUT.search(text, start, line_end)
            label_end = inline.start() if inline else line_end
            after = trim(text, label_end, stop)
            prefix = INPUT.match(text, *after)
            pairs.append(_Piece((prefix.end() if prefix else after[0], after[1]), (start, label_end), end))
    return _reading(text, pairs)


def begins_with_label(text: str, span: Span) -> bool:
    """Whether an example in which no label is known begins with one all the same ("Ulaz: 3 kg").

    A name of up to four words, of which the first is not written small, and a colon. Not a title, a note or the like,
    nor what has three such lines or one name twice: that is a dialogue, a form, a list or a file.
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


def _clean_input(text: str, span: Span) -> Span:
    span = _unwrap(text, _before_closing(text, span))
    return NOWHERE if _NO_INPUT.match(text, *span) else span


def _clean_output(text: str, span: Span) -> Span:
    return _unwrap(text, _before_closing(text, span))


def _before_closing(text: str, span: Span) -> Span:
    start, end = trim(text, *span)
    closing = _CLOSING.search(text, start, end)
    return trim(text, start, closing.start()) if closing else (start, end)


def _unwrap(text: str, span: Span) -> Span:
    """Return the span without blanks, rules at its end, or a code fence around all of it."""
    start, end = trim(text, *span)
    while (line := text.rfind("\n", start, end)) >= 0 and (
        _RULE.match(text, line + 1, end) or text[line:end].isspace()
    ):
        end = line
    if (
        text.endswith("**", start, end) and text.count("**", start, end) % 2
    ):  # "**Output: 4, 5**": the label has the other
        end -= 2
    span = trim(text, start, end)
    fenced = _FENCED.fullmatch(text, *span)
    return trim(text, *fenced.span("body")) if fenced else span
