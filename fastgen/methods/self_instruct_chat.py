"""Self-Instruct for an instruct model: tasks together with their inputs in one step, then each answer as a chat turn.

The method is that of Self-Instruct (Wang et al., ACL 2023, arXiv 2212.10560) with two of its steps merged. A
prompt shows tasks of the pool and asks for new ones, each with the material that it works on, as Alpaca's prompt does
(Taori et al., 2023). There is no classification step, and an answer is what the model says when it is simply asked.

**How a list is read.** The model is asked for ``Task 9:``, the task, and where it needs material a line ``Input:`` with
the material below it. `read_tasks` finds where items and inputs begin, so that a numbered list inside an input belongs
to the input. The instruction is what `fastgen.methods.self_instruct.instruction` (style ``lenient``, whatever the run's
``--list-style``) finds in the rest. Further paragraphs of a task without such a label count as its input, since the
assistant is shown both together. Everything takes time linear in the text, and nothing raises.

**The text of an instruction** keeps its line breaks, which may be those of code or of a list. The run's rules see it on
one line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from fastgen.methods.base import (
    Answered,
    Ask,
    Creation,
    Draw,
    Drawn,
    Item,
    Method,
    Pool,
    Prompt,
    Rejected,
    Setup,
    Step,
    StepOutcome,
    Subject,
    trimmed,
)
from fastgen.methods.self_instruct import instruction
from fastgen.methods.self_instruct.fields import clean_input, input_begins, output_begins
from fastgen.methods.self_instruct.instance import repeats_instruction
from fastgen.methods.self_instruct.instruction import UNCLOSED_THINKING, UNFINISHED, is_labelled, item_number
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.structured import Form, is_left_open, is_written, read_records
from fastgen.text import COLON, NOWHERE, answer_span, is_chatter, is_closing, is_cut, lines, strip, trim, whole_answer
from fastgen.types import Completion, Message, Sampling, Span

NEW_TASKS: Final = 8
"""Tasks that one prompt asks for."""
EXPECTED: Final = 5.0
"""Tasks of them that are kept, until a run knows better."""
_RULES: Final = PRESETS["default"]


# -- the method --------------------------------------------------------------------------------------------------------

# An instruct model ends its answer by itself, so only a base model gets stop strings.
_SAMPLING: Final[Mapping[str, Mapping[str, Sampling]]] = {
    "chat": {"instruction": Sampling(1.0, 0.95, 2048), "answer": Sampling(0.7, 0.95, 2048)},
    "completions": {
        "instruction": Sampling(0.7, 0.9, 1536, presence_penalty=0.5),
        "answer": Sampling(0.7, 0.9, 1024, stop=("\nTask:", "\nTask 2", "\nAnswer:")),
    },
}


def build(setup: Setup) -> Method:
    """Return the method of a run.

    Options: ``num_prompt_instructions`` (8) demonstrations of a prompt, of which ``num_machine_instructions`` (2) are
    machine-generated once there are any.

    :raises InputError: an option is no whole number in its range.
    """
    shown = setup.number("num_prompt_instructions", 8, least=1)
    machine = setup.number("num_machine_instructions", 2, most=shown)
    sampling = _SAMPLING[setup.api]
    is_chat = setup.api == "chat"

    def prompt_of(pool: Pool, indexes: Sequence[int], drawn: Drawn) -> Prompt:
        tasks = [(pool.text(i), setup.seeds[i].instances[0].input if i < pool.seeds else "") for i in indexes]
        return build_prompt(tasks, drawn, is_chat=is_chat)

    def ask(draw: Draw) -> Ask:
        indexes, drawn = draw.demonstrations(shown, machine), setup.context.draw(draw)
        return Ask(prompt_of(draw.pool, indexes, drawn), indexes, drawn or None)

    # A base model would continue its list without end.
    stop = () if is_chat else (f"\nTask {shown + NEW_TASKS + 1}",)
    return Method(
        name="self-instruct-chat",
        creation=Creation(
            sampling=replace(sampling["instruction"], stop=stop),
            ask=ask,
            read=lambda completion, request: read_tasks(completion, first_number=request.first_number),
            shrink=prompt_of,
            samples=setup.samples,
            shows_pool=machine > 0,
            expected=EXPECTED,
            form=_FORM if is_chat else None,
        ),
        steps=(
            Step(
                name="answer",
                sampling=sampling["answer"],
                ask=partial(_ask_to_answer, is_chat=is_chat),
                read=read_answer,
                is_answer=True,
            ),
        ),
        seeds=setup.seeds,
        check=setup.check,
        seed=setup.seed,
    )


_FORM: Final = Form(
    "tasks",
    ("instruction", "input"),
    most=NEW_TASKS,
    note='"input" holds the material that the task works on, written out in full, and is empty where it needs none.',
)

# -- prompts -----------------------------------------------------------------------------------------------------------

_SYSTEM: Final = """\
You invent tasks for an assistant that reads and writes text and can do nothing else. Write each task as a person \
would type it, in this form:

Task 1: what the assistant is to do
Input:
the material that it works on, on as many lines as needed

Many tasks need no material. These have no line "Input:". Where a task speaks of a text, of data or of code, write \
that material out in full below "Input:". Make it realistic and specific, and leave no gap for somebody else to fill.

- Vary the kind of task: writing, coding, mathematics, reasoning, extracting, classifying, translating, correcting or \
summarising a given text, explaining, planning, advice, role play.
- Vary the length: one short question, a sentence, a paragraph with several conditions. Some inputs are a line, others \
several paragraphs or a whole function. A task itself has at most 100 words.
- Vary the subject, the verb and the form of the answer. Do not repeat or rephrase a task that you are shown.
- No task may need or ask for a picture, a chart, sound, a video, a file, a link, a web page, or what only today's \
news, prices or weather tell.
- Use the language of the tasks that you are shown, unless the topic or the person that you are given suggests another.
- Write tasks and their material only: no answers, no titles, no remarks."""
_COMPLETION_HEAD: Final = """\
A list of very different tasks for an assistant that reads and writes text. Each is complete: if it is about a text, \
data or code, that follows below the word Input. None needs a picture, a file, a link or the news of today.
"""
_NUMBER_WORDS: Final = {8: "eight"}


def build_prompt(tasks: Sequence[tuple[str, str]], drawn: Mapping[str, str], *, is_chat: bool) -> Prompt:
    """Return the prompt that shows ``tasks`` (instruction, input) and asks for new ones.

    All fixed text comes first. What was ``drawn``, a topic and a persona, is named last, or before the list where a
    base model continues it.
    """
    listed = "\n\n".join(_listed(number, *task) for number, task in enumerate(tasks, 1))
    first = len(tasks) + 1
    about = "".join(
        f"\n{begins}: {' '.join(drawn[name].split())}"
        for name, begins in (("topic", "Topic of all new tasks"), ("persona", "Person who asks them"))
        if name in drawn
    )
    if not is_chat:
        return f"{_COMPLETION_HEAD}{about and about + chr(10)}\n{listed}\n\nTask {first}:"
    asked = f'Write {_NUMBER_WORDS[NEW_TASKS]} new tasks. Begin with "Task {first}:".'
    return (Message("system", _SYSTEM), Message("user", f"Tasks so far:\n\n{listed}\n\n{asked}{about}"))


def _listed(number: int, text: str, given: str) -> str:
    given = given.strip()
    return f"Task {number}: {text}\nInput:\n{given}" if given else f"Task {number}: {text}"


def _ask_to_answer(subject: Subject, *, is_chat: bool) -> Ask:
    """A chat turn of the user, who says nothing but the task."""
    return Ask((Message("user", subject.task),) if is_chat else f"Task: {subject.task}\nAnswer:")


# -- reading tasks -----------------------------------------------------------------------------------------------------

UNREADABLE_INPUT: Final = "unreadable_input"
"""The rule that rejects a task of a JSON answer whose input may have been left out because it holds escapes."""
_INSTRUCTION_NAMES: Final = ("instruction", "task", "prompt", "question")
_INPUT_NAMES: Final = ("input", "inputs", "material", "context")
_ESCAPED_INPUT: Final = re.compile(rf'"(?:{"|".join(_INPUT_NAMES)})"\s*+:\s*+"[^"\\]*+\\', re.IGNORECASE)
_INLINE_INPUT: Final = re.compile(
    rf"(?<=[.?!:*\"”。\uff1f\uff01])[ \t]++(?:\*\*)?(?:Input|Eingabe|Entrada|Entrée|输入|入力)(?:\*\*)?{COLON}(?:\*\*)?"
)
_NO_MATERIAL: Final = re.compile(
    r"(?:[\[(<*_]*+(?:none|nothing|no[ ](?:material|text|data|input)|not)[ ](?:is[ ])?"
    r"(?:needed|required|necessary|given)|```)[^\n\w]*+$",
    re.IGNORECASE,
)
_DIGIT: Final = re.compile(r"\d")
_SIGN: Final = re.compile(r"\S")
_PARAGRAPH: Final = re.compile(r"\n[ \t\r]*+\n")
_REMARK: Final = re.compile(  # of a model on its own task
    rf"""[ \t>*_(\[-]*+(?:examples?|notes?|explanation|hints?|reason(?:ing)?|rationale|(?:task[ ])?(?:type|kind)
    |category|skills?|difficulty|domain|subject|topic|persona|length|language|format|expected|this[ ]task|kategorie
    |hinweis|beispiel|remarque|catégorie|exemple|nota|categoría|ejemplo|类别|类型|说明|注|例)
    (?:\b[^\n:\uff1a]{{0,30}})?{COLON} | [(\[*_]*+this[ ](?:task|one)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADING: Final = re.compile(r"[ \t]*+(?:\#{1,6}[ \t].*|(\*\*|__)[^*_\n]{1,80}\1:?|[-*_=]{3,})[ \t\r]*+$")


def _read_structured(text: str, answer: Span) -> list[Item]:
    """Return the tasks of an answer that is JSON or a table with named columns. Else nothing."""
    is_escaped = not is_written(text, answer) and _ESCAPED_INPUT.search(text, *answer) is not None
    items = []
    for record in read_records(text, answer):
        span = next((record[name] for name in _INSTRUCTION_NAMES if name in record), NOWHERE)
        if span != NOWHERE:
            given = next((record[name] for name in _INPUT_NAMES if name in record), None)
            rule = UNREADABLE_INPUT if given is None and is_escaped else None
            found = clean_input(text, given or NOWHERE)
            span = instruction.without_number(text, span)
            items.append(Item(span, trimmed(text, span), rule, None if found == NOWHERE else found))
    return items


def read_tasks(completion: Completion, *, first_number: int) -> list[Item]:
    """Return the tasks of a completion in order, each with the span of its input, if it has one.

    ``first_number`` is the number of the first new task. The last task of a cut completion is `UNFINISHED`, thinking
    that never ends `UNCLOSED_THINKING`.
    """
    text = completion.text
    answer = answer_span(text)
    if answer is None:
        span = strip(text, 0, len(text))
        return [Item(span, trimmed(text, span), UNCLOSED_THINKING)]
    if is_written(text, answer):
        found = _read_structured(text, answer)
        is_open = is_cut(completion) and is_left_open(text)
        return [*found[:-1], found[-1]._replace(rule=UNFINISHED)] if found and is_open else found
    layout = _find_layout(text, answer, first_number)
    if not layout.starts and (found := _read_structured(text, answer)):
        return found
    # Inputs and numbers inside a task are blank in the copy, and every offset is the same.
    parsed = instruction.parse(Completion(layout.masked, "stop"), _RULES, first_number=first_number)
    spans = [item.span for item in parsed]
    cut = is_cut(completion) and answer[1] == len(text)
    items = []
    for span, following in zip(spans, [*spans[1:], None], strict=bool(spans)):
        at = bisect_right(layout.starts, span[0])
        end = layout.starts[at] if at < len(layout.starts) else answer[1]
        if following is not None:
            end = max(span[1], min(end, text.rfind("\n", span[1], following[0]) + 1))
        rule = UNFINISHED if cut and following is None and at == len(layout.starts) else None
        items.append(Item(span, trimmed(text, span), rule, _input_of(text, span, end, layout)))
    return items


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where items begin (at the start of a line) and where inputs do, as (begin of the label, begin of the text).

    ``masked`` is the text with blanks in place of inputs and without numbers that count something inside an item.
    """

    starts: list[int]
    inputs: list[Span]
    masked: str


def _find_layout(text: str, answer: Span, first_number: int) -> _Layout:
    rows = list(lines(text, *answer))
    begins = [item_number(text, row) for row in rows]
    count = _Count(*_style(text, rows, begins), first_number)
    starts: list[int] = []
    inputs: list[Span] = []
    masked: list[str] = []
    in_input, in_fence, is_wrapped, after_gap = False, False, False, True
    for row, begin in zip(rows, begins, strict=True):
        line = text[slice(*row)]
        is_fence = line.lstrip().startswith("```")
        is_wrapped ^= is_fence and not starts  # the whole list is in a fence
        in_fence = in_input and in_fence != is_fence
        after_gap = after_gap and not in_fence
        starts_item = count.starts_item(text, row, begin, in_input=in_input, after_gap=after_gap)
        if starts_item:
            starts.append(row[0])
            in_input = False
        after_blank = not line.strip()
        after_gap = after_blank or line.strip() == "```"
        if after_blank and count.is_uncounted:
            in_input = False  # a list of bullets or the like: nothing else tells where an input ends
        at = None if in_input else _input_label(text, row, starts_item=starts_item)
        if is_fence and starts and not in_input and not is_wrapped:
            at = (row[0], row[0])  # code without a label
        if begin is not None and not starts_item:
            line = _DIGIT.sub("x", line) if begin[0] is not None else _SIGN.sub("x", line, count=1)
        if at is not None:
            inputs.append(at)
            in_fence = text.count("```", at[1], row[1]) == 1
            is_one_line = text[at[1] : row[1]].strip() and item_number(text, (at[1], row[1])) is None
            after_gap = after_gap or bool(is_one_line)
            line = line[: at[0] - row[0]].ljust(len(line))
        elif in_input:
            line = " " * len(line)
        in_input = in_input or at is not None
        masked.append(line)
    return _Layout(starts, inputs, text[: answer[0]] + "\n".join(masked) + text[answer[1] :])


def _style(text: str, rows: Sequence[Span], begins: Sequence[tuple[int | None, str] | None]) -> tuple[str | None, bool]:
    """Return the noun of the list's numbers (empty without one, ``None`` without numbers), and whether it has labels.

    The first number or label decides. After an input without either before it, numbers with a noun come first.
    """
    for row, begin in zip(rows, begins, strict=True):
        if begin is not None:
            return begin[1], False
        if is_labelled(text, row):
            return None, True
        if input_begins(text, row) is not None:
            break
    nouns = [begin[1] for begin in begins if begin is not None]
    if not any(nouns) and any(is_labelled(text, row) for row in rows):
        return None, True
    return next(filter(None, nouns), nouns[0] if nouns else None), False


class _Count:
    """Tells the lines that begin the next item of a list from those that number something inside an item."""

    def __init__(self, noun: str | None, is_labelled: bool, first_number: int) -> None:
        self._noun = noun
        self._is_labelled = is_labelled
        self._known = first_number
        self._indent: int | None = None  # of the first item

    @property
    def is_uncounted(self) -> bool:
        """Whether the list has neither numbers nor labels."""
        return self._noun is None and not self._is_labelled

    def starts_item(
        self, text: str, row: Span, begin: tuple[int | None, str] | None, *, in_input: bool, after_gap: bool
    ) -> bool:
        """Whether the line begins an item. Inside an input only the next number does.

        A plain number needs a gap before it there: a blank line or the end of a code fence.
        """
        if self._is_labelled:
            return (after_gap or not in_input) and is_labelled(text, row)
        if begin is None or begin[1] != self._noun:
            return False
        number, depth = begin[0], trim(text, *row)[0] - row[0]
        is_next = number is None or number == self._known + 1
        if in_input:
            is_later = bool(self._noun) and number is not None and number > self._known
            starts = (is_next and bool(self._noun)) or (after_gap and (is_next or is_later))
        else:
            starts = self._indent is None or number is None or (number > self._known and depth <= self._indent)
        if starts:
            self._known = self._known + 1 if number is None else number
            self._indent = depth if self._indent is None else self._indent
        return starts


def _input_label(text: str, row: Span, *, starts_item: bool) -> Span | None:
    """Return where the label of an input is in a line, and where the input after it begins."""
    begins = None if starts_item else input_begins(text, row)
    if begins is not None:
        return row[0], begins
    inline = _INLINE_INPUT.search(text, *row)
    return inline.span() if inline else None


def _input_of(text: str, span: Span, end: int, layout: _Layout) -> Span | None:
    """Return the input of the item at ``span``, whose text ends at ``end``: further paragraphs, or what is labelled."""
    at = bisect_right(layout.inputs, (span[0], 0))
    label = layout.inputs[at] if at < len(layout.inputs) and layout.inputs[at][0] < end else None
    stop = label[0] if label else end
    line_end = text.find("\n", span[1], stop)
    material = trim(text, line_end, stop) if line_end >= 0 else NOWHERE
    if material != NOWHERE and _is_material(text, line_end, material):
        found = _without_remarks(text, (material[0], end), is_labelled=False)
    elif label is not None:
        found = _without_remarks(text, (label[1], end), is_labelled=True)
    else:
        return None
    found = clean_input(text, found)
    return None if found == NOWHERE or _NO_MATERIAL.match(text, *found) else found


def _is_material(text: str, line_end: int, material: Span) -> bool:
    """Whether the text after an instruction's first paragraph belongs to the task. If not, a remark or an answer."""
    if text.startswith("```", material[0]):
        return True
    first = next(lines(text, *material))
    return (
        text.count("\n", line_end, material[0]) > 1
        and not _ends_material(text, first)
        and _HEADING.match(text, *first) is None
    )


def _ends_material(text: str, line: Span) -> bool:
    return _is_over(text, line) or is_chatter(text, *line) or _REMARK.match(text, *line) is not None


def _is_over(text: str, line: Span) -> bool:
    return output_begins(text, line) or is_closing(text, *line)


def _without_remarks(text: str, region: Span, *, is_labelled: bool) -> Span:
    """Return the material without an answer, a remark or the next heading after it. Code in a fence stays as it is."""
    ends = _is_over if is_labelled else _ends_material
    start, end = trim(text, *region)
    in_fence = False
    for number, line in enumerate(lines(text, start, end)):
        if text[slice(*line)].lstrip().startswith("```"):
            in_fence = not in_fence
        elif not in_fence and (number or is_labelled) and ends(text, line):
            end = line[0]
            break
    while (last := text.rfind("\n", start, end)) >= 0 and (
        text[last:end].isspace() or _HEADING.match(text, last + 1, end)
    ):
        end = last
    return trim(text, start, end)


# -- reading an answer -------------------------------------------------------------------------------------------------

ASKS_FOR_INPUT: Final = "asks_for_input"
"""The rule that rejects an answer that says that the material of the task is missing."""
_READ_CHARACTERS: Final = 400  # of an answer's beginning, where such a sentence stands
_LONGEST_COMPLAINT: Final = 800
_THING: Final = (
    r"(?:text|passage|article|paragraph|sentences?|code|function|snippet|data(?:set)?|table|list|e-?mail|message|document"
    r"|story|poem|review|conversation|dialogue|transcript|input|content|material|information|details|report|essay"
    r"|problem|question|recipe|minutes|letter)"
)
_GIVEN: Final = r"(?:provided|included|given|attached|shared|pasted|specified|supplied)"
_MISSING: Final = re.compile(
    rf"""
    \byou\ (?:(?:haven['\u2019]t|have\ not)\ (?:yet\ )?(?:actually\ )?{_GIVEN}
      | (?:didn['\u2019]t|did\ not|forgot\ to)\ (?:actually\ )?(?:provide|include|give|attach|share|paste|specify))
      \b[^.\n]{{0,40}}\b{_THING}\b
    | \b(?:(?:there\ is|there['\u2019]s|i\ see)\ no|i\ (?:do\ not|don['\u2019]t|can(?:not|['\u2019]t))\ (?:see|find)
      \ (?:any|the|an?))\ (?:\w+\ ){{0,2}}{_THING}\b[^.\n]{{0,40}}\b(?:{_GIVEN}|in\ your\ (?:message|request|question))
    | \bno\ (?:\w+\ )?{_THING}\ (?:was|were|is|has\ been)\ {_GIVEN}\b
    | \bthe\ (?:\w+\ )?{_THING}\ (?:(?:was|were|is|has|have)(?:\ not|n['\u2019]t)(?:\ been)?\ {_GIVEN}
      |(?:is|seems\ to\ be|appears\ to\ be)\ missing(?=[.,;!\s]+(?:please|from\ your|could|can)\b))
    | \bonce\ you(?:['\u2019]ve|\ have)?\ (?:provided?|shared?|pasted?|sen[dt])\ (?:me\ )?(?:with\ )?(?:the|your|it)\b
    | \b(?:sie|du)\ (?:haben|hast)\ (?:\w+\ ){{0,2}}kein(?:en|e)?\ \w+\ (?:angegeben|beigefügt|bereitgestellt)
    | \b(?:vous\ n['\u2019]avez|tu\ n['\u2019]as)\ pas\ (?:fourni|inclus|joint|donné)
    | \bno\ (?:has|ha|se\ ha)\ (?:proporcionado|incluido|adjuntado|facilitado)
    | \bvocê\ não\ (?:forneceu|incluiu|enviou)
    | \b[Вв]ы\ не\ (?:предоставили|указали|прислали|привели)
    | (?:您|你)(?:还)?(?:没有|未)(?:提供|给出|附上) | (?:文章|文本|内容|输入)(?:未|没有)提供
    | (?:提供|添付|記載)されていません | لم\ (?:تقدم|ترفق|تذكر|يتم\ تقديم)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_POLITE: Final = r"""(?P<polite>(?:(?:sure|certainly|of\ course|absolutely|okay|ok|great|hello|hi|sorry
    |i['\u2019]m\ sorry|i\ apologi[sz]e|i(?:['\u2019]d|\ would)\ be\ (?:happy|glad)\ to|i['\u2019]ll\ help|i\ can\ help
    |natürlich|gerne?|klar|bien\ sûr|claro|por\ supuesto|конечно|好的|当然|抱歉|对不起|申し訳ありません(?:が)?|はい)
    [^.!?,:。\uff0c、\n]{0,80}[.!?,:。\uff0c、]\s*+){0,3})"""
_PLEASE: Final = re.compile(
    rf"""[\s*_"“]*+{_POLITE}(?:
      (?:but\ |to\ (?:[\w,]+\ ){{1,6}}?)?(?:please|kindly|could\ you|can\ you|i(?:['\u2019]ll)?\ (?:will\ )?need)
        \ (?:please\ |you\ to\ )?(?:provide|share|paste|send|give|supply|enter|type|post|attach|see)
        \ (?:me\ )?(?:with\ )?(?:the|your|an?|some|more|any)\ (?:[\w'\u2019-]+\ ){{0,3}}?{_THING}\b
    | bitte\ (?:geben|gib|senden|schicken|schick|fügen|füge|stellen|teilen|teile|nennen|nenne)\ (?:sie\ )?
        (?:mir\ |uns\ )?(?:bitte\ )?(?:den|die|das|ihren|deinen)\ \w+
    | (?:veuillez|merci\ de|pourriez-vous|peux-tu)\ (?:me\ )?(?:fournir|partager|envoyer|donner|coller|indiquer)
    | por\ favor,?\ (?:proporcion|compart|envi|facilit|peg|indi|forneç|compartilh)\w*
    | пожалуйста,?\ (?:предоставьте|пришлите|укажите|отправьте|приведите|вставьте)
    | 请(?:您)?(?:先)?(?:提供|给出|发送|输入|粘贴|分享)(?!者)
    | [^。\n]{{1,30}}を(?:ご?提供|入力|教えて|共有|貼り付けて|送って)(?:して)?(?:ください|いただけ)
    | (?:[^\n.]{{1,20}}\ )?(?:텍스트|내용|글|문장|코드)[을를]\ (?:제공|입력|공유|보내)
    | (?:يرجى|من\ فضلك|الرجاء)\ (?:تقديم|تزويدي|إرسال|مشاركة|إدخال)
    | कृपया\ [^।\n]{{1,40}}(?:प्रदान|साझा|भेज)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# Tasks whose right answer may begin with "Please send ...": that ask for a request, or quote one.
_OF_A_REQUEST: Final = re.compile(
    r"\b(?:ask|request|remind|invit|bitte|frag|erinner|demand|rappel|pid[ea]|pedir|solicit|recuerd|попрос|напомн)"
    r"|询问|请求|要求|提醒|依頼|お願い|[\"“„«「][^\n]{15}",
    re.IGNORECASE,
)


def read_answer(completion: Completion, subject: Subject) -> StepOutcome:
    """Return the whole answer, without thinking before it or a code fence around all of it, or the rule against it.

    The rules, in order: ``unclosed_thinking``, ``empty_output``, ``unfinished`` (the end is missing),
    ``output_repeats_instruction``, ``asks_for_input``.
    """
    span, rule = whole_answer(completion)
    if rule is not None:
        return Rejected(rule)
    written = completion.text[slice(*span)]
    if repeats_instruction(subject.text, subject.input, written):
        return Rejected("output_repeats_instruction")
    if asks_for_input(written, subject):
        return Rejected(ASKS_FOR_INPUT)
    return Answered(((NOWHERE, span),))


def asks_for_input(answer: str, subject: Subject) -> bool:
    """Whether an answer begins by saying that the text to work on is missing, in a dozen languages.

    "Please send the report" alone is no such answer to a task that has an input, asks for a request, or quotes one.
    """
    beginning = answer[:_READ_CHARACTERS]
    paragraph = _PARAGRAPH.split(beginning, maxsplit=1)[0]
    if len(answer) < _LONGEST_COMPLAINT and _MISSING.search(paragraph):
        return True
    asked = _PLEASE.match(beginning)
    may_be_wanted = bool(subject.input) or _OF_A_REQUEST.search(subject.text) is not None
    return asked is not None and bool(asked["polite"] or not may_be_wanted)
