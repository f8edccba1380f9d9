"""Evol-Instruct (Xu et al., WizardLM, ICLR 2024, arXiv 2304.12244): instructions rewritten harder, round after round.

1. The creation draws a parent from the pool (a seed, or a kept instruction that is fewer than ``rounds`` rewritings
   away from one) and one of six operations. Five make the task harder (in-depth evolving), one writes another task of
   the same field (in-breadth evolving). As in the paper, all six are equally likely, and a rewriting adds 10 to 20
   words.
2. ``compare`` asks whether the new task demands the same as its parent. If so, it is rejected.
3. ``answer`` asks the new task.

The paper's elimination of failed rewritings is `Item.rule` and the outcomes of the last two steps. The prompts are
written for this project. They begin with all their fixed text, so that a server's prefix cache has one entry for each
operation, and end with the parent.

The texts of models have chatter, labels, quotation marks, code fences and answers around what was asked for. Everything
that is read here is a span of the completion, never raises, and takes time linear in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from fastgen.errors import InputError
from fastgen.methods.base import (
    Answered,
    Ask,
    Creation,
    Draw,
    Item,
    Labelled,
    Method,
    Prompt,
    Rejected,
    Setup,
    Step,
    StepOutcome,
    Subject,
)
from fastgen.methods.self_instruct.filters import count_words
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.text import (
    CLOSE,
    COLON,
    NOWHERE,
    OPEN,
    answer_span,
    is_chatter,
    is_closing,
    is_cut,
    lines,
    trim,
    whole_answer,
    without_template_marks,
)
from fastgen.types import Completion, Message, Request, Sampling, SeedTask, Span

ROUNDS: Final = 4
"""The paper's M: how many rewritings lie between a seed and the last instructions made from it."""
MOST_ROUNDS: Final = 16
PARENT_DRAWS: Final = 64
"""Draws of a parent before a seed is taken: most of a large pool has as many rewritings as ``rounds`` allows."""
THRESHOLD: Final = 0.9
"""The default of ``--threshold``. A rewriting shares most of its words with its parent: a task of 20 words that gets 15
more has 0.73 in common with the one it was made from."""
REFUSAL_WORDS: Final = 80
"""Words from which on an answer with an apology is none the less an answer (the paper's figure)."""


class Operation(NamedTuple):
    """A way to rewrite a task: what the chat prompt asks for, and the examples that a completion prompt begins with.

    A base model needs the examples, an instruct model does not.
    """

    instruction: str
    examples: str


_DEEPER: Final = """\
You write tasks for people who test AI assistants. At the end you find one task. Write a harder version of it.

What to do: {instruction}

- Keep its subject, and keep whatever it holds to work on: texts, data, tables, formulas, code.
- Lengthen it by 10 to 20 words, no more.{exception}
- A knowledgeable person must understand it without seeing any other text, and be able to answer it in writing. Ask \
for no pictures, files or web pages.
- Stay in the language of the task.
- Do not solve it, do not comment on it, and do not mention that there was another version.

Reply with the text of the harder version and nothing else."""
_BROADER: Final = """\
You write tasks for people who test AI assistants. At the end you find one task. Let it inspire you to a different one.

What to do: {instruction}

- Make it about as long and about as difficult.
- A knowledgeable person must understand it without seeing any other text, and be able to answer it in writing. Ask \
for no pictures, files or web pages.
- Stay in the language of the task.
- Do not solve either of them, and do not comment on them.

Reply with the text of the different task and nothing else."""

OPERATIONS: Final[Mapping[str, Operation]] = {
    "add_constraints": Operation(
        "Add one more condition that a good answer has to meet, such as a limit, a form, a viewpoint or something to "
        "avoid.",
        """\
Each task is followed by a new task that demands one thing more.

Task: Suggest a name for a bakery.
New task: Suggest a name for a bakery that has at most two words, no wordplay, and hints that all its bread is \
baked at night.

Task: Write a function that reverses a list.
New task: Write a function that reverses a list in place, without slicing or library functions, and leaves lists of \
one element untouched.

""",
    ),
    "deepen": Operation(
        "Make the question go deeper or wider: ask for causes, consequences, exceptions or a closer look at one part.",
        """\
Each task is followed by a new task that goes deeper into the same matter.

Task: Why do leaves change colour in autumn?
New task: Why do leaves change colour in autumn, and why do some species turn red instead of yellow although making \
the red pigment costs them energy?

Task: Explain how vaccines work.
New task: Explain how vaccines work, and why protection against some diseases lasts for life while others need a \
booster every few years.

""",
    ),
    "concretise": Operation(
        "Replace general terms by particular ones: a definite person, place, time, amount, material or case.",
        """\
Each task is followed by a new task that is about one particular case of it.

Task: Give tips for saving money.
New task: Give tips for saving money to a nurse on night shifts who rents a room, has no kitchen, and wants to put 150 \
euros aside every month.

Task: Plan a school trip.
New task: Plan a one-day trip to a salt mine for 28 ten-year-olds, two of whom use wheelchairs, leaving by train at \
eight.

""",
    ),
    "add_reasoning": Operation(
        "If a thought or two are enough to solve it, change it so that several steps of reasoning follow one from the "
        "other.",
        """\
Each task is followed by a new task that takes more steps of reasoning.

Task: How many minutes are there in three hours?
New task: A film of two and three quarter hours is shown with two breaks of equal length and ends 195 minutes after it \
began. How long is each break?

Task: Who is older, Ann or Ben, if Ann is 31 and Ben is 28?
New task: Ann is 31 and three years older than Ben. In four years Ben will be twice as old as Cy is now. How old is Cy?

""",
    ),
    "complicate_input": Operation(
        "Give it data to work on, or richer data than it has: a table, JSON, XML, code, a log, a formula or a "
        "paragraph of text. Write the data out.",
        """\
Each task is followed by a new task that has more data to work on.

Task: Find the most expensive item.
New task: Find the item with the highest total cost (price times quantity) in this table.

item | price | quantity
lamp | 18.50 | 4
chair | 42.00 | 2
shelf | 79.90 | 1

Task: Correct the spelling mistake.
New task: Correct every value of this record that cannot be right, and return the record as JSON.

{"name": "Lena Fox", "born": "1990-02-31", "city": "Lisbno", "height_cm": 17}

""",
    ),
    "broaden": Operation(
        "Write an entirely new task of the same field, about something in it that few people ask for.",
        """\
Each task is followed by a new task of the same field about something that is asked for less often.

Task: Write a limerick about a cat.
New task: Write a riddle in rhyme whose answer is a tuning fork.

Task: Explain what inflation is.
New task: Explain how a central bank sets the price of the foreign currency that it lends overnight.

""",
    ),
}
"""The operations by the names that the log has. They are drawn with equal probability."""

_SAME: Final = """\
You compare two tasks. They are equal if they ask for the same thing, under the same conditions, in the same depth and \
breadth, so that one answer would do for both, however differently they are worded. If one demands more than the \
other, or something else, they are not equal.

Reply with one of these and nothing else: Equal, Not equal."""
_SAME_EXAMPLES: Final = """\
Each pair of tasks is equal if they ask for the same thing, under the same conditions and in the same depth. Otherwise \
it is not equal.

First task: Name three rivers in Italy.
Second task: List three Italian rivers.
Verdict: Equal

First task: Write a poem about rain.
Second task: Write a poem about rain in a desert, in four lines that do not rhyme.
Verdict: Not equal

First task: How does a refrigerator keep food cold?
Second task: Explain what makes it cold inside a refrigerator.
Verdict: Equal

First task: Translate "good night" into Dutch.
Second task: Translate "good night" into Dutch, Czech and Welsh, and say which greeting is the most formal.
Verdict: Not equal

"""
_ANSWERED: Final = """\
Each task is followed by a complete and correct response.

Task:
Which element has the symbol Hg, and where does the symbol come from?

Response:
Mercury. The symbol is short for hydrargyrum, its Latin name, which is made of the Greek words for water and silver.

Task:
"""

SAMPLING: Final[Mapping[str, Sampling]] = {
    "evolve": Sampling(temperature=1.0, top_p=0.9, max_tokens=1024),
    "compare": Sampling(temperature=0.0, top_p=1.0, max_tokens=16),
    "answer": Sampling(temperature=1.0, top_p=0.9, max_tokens=2048),
}
"""The paper's temperature, top_p and most tokens of an answer. Completion prompts also have `STOP`."""
STOP: Final[Mapping[str, tuple[str, ...]]] = {
    "evolve": ("\nTask:", "\nNew task:"),
    "compare": ("\nFirst task:",),
    "answer": ("\nTask:",),
}


def build(setup: Setup) -> Method:
    """Return the method. Options: ``rounds``, 1 to 16.

    :raises InputError: ``rounds`` is out of range, or there is no seed task.
    """
    rounds = setup.number("rounds", ROUNDS, least=1, most=MOST_ROUNDS)
    if not setup.seeds:
        raise InputError("evol rewrites tasks and was given none: name some with --seed-tasks FILE or --from DATASET")
    chat = setup.api == "chat"
    sampling = SAMPLING if chat else {name: replace(one, stop=STOP[name]) for name, one in SAMPLING.items()}

    def ask_to_evolve(draw: Draw) -> Ask:
        parent = _draw_parent(draw, rounds)
        operation = draw.random("operation").choice(tuple(OPERATIONS))
        context = setup.context.draw(draw)
        text = _source_text(setup.seeds, parent, draw.pool.text(parent))
        prompt = evolve_prompt(operation, text, context, chat=chat)
        made = {"operation": operation, "round": str(draw.pool.depth(parent) + 1)}
        return Ask(prompt, (parent,), made | context)

    def ask_to_compare(subject: Subject) -> Ask:
        source = _source_text(setup.seeds, subject.sources[0], subject.source_text) if subject.sources else ""
        return Ask(compare_prompt(source or subject.source_text, subject.task, chat=chat))

    def ask_to_answer(subject: Subject) -> Ask:
        return Ask((Message("user", subject.task),) if chat else f"{_ANSWERED}{subject.task}\n\nResponse:\n")

    def read_evolved(completion: Completion, _request: Request) -> Sequence[Item]:
        item = read_task(completion, chat=chat)
        return () if item is None else (item,)

    return Method(
        name="evol",
        creation=Creation(
            sampling=sampling["evolve"],
            ask=ask_to_evolve,
            read=read_evolved,
            samples=setup.samples,
            shows_pool=rounds > 1,
            has_sources=True,
            expected=0.7,
        ),
        steps=(
            Step(
                name="compare",
                sampling=sampling["compare"],
                ask=ask_to_compare,
                read=lambda completion, _subject: read_comparison(completion),
                is_batched=not chat,
            ),
            Step(name="answer", sampling=sampling["answer"], ask=ask_to_answer, read=read_answer, is_answer=True),
        ),
        seeds=setup.seeds,
        check=setup.check,
        seed=setup.seed,
    )


def _draw_parent(draw: Draw, rounds: int) -> int:
    """Return the pool index of a parent: uniform over those that may be rewritten, as far as the draws suffice.

    Which seed it is follows the run's policy for demonstrations.
    """
    pool, rng = draw.pool, draw.random("parent")
    for _ in range(PARENT_DRAWS):
        index = rng.randrange(pool.seeds + pool.kept)
        if index < pool.seeds:
            break
        if pool.depth(index) < rounds:
            return index
    drawn = draw.demonstrations(1, 0)
    return drawn[0] if drawn else rng.randrange(pool.seeds)


def _source_text(seeds: Sequence[SeedTask], index: int, text: str) -> str:
    """Return the text at a pool index. A seed task's first input belongs to it."""
    given = seeds[index].instances[0].input if index < len(seeds) and seeds[index].instances else ""
    return f"{text or seeds[index].instruction}\n\n{given}" if given else text


# -- prompts -----------------------------------------------------------------------------------------------------------


def evolve_prompt(operation: str, task: str, context: Mapping[str, str], *, chat: bool) -> Prompt:
    """Return what asks for a rewriting of ``task``, with the ``topic`` and ``persona`` of ``context``."""
    how = OPERATIONS[operation]
    topic, persona = (" ".join(context.get(name, "").split()) for name in ("topic", "persona"))
    task = without_template_marks(task.strip())
    if not chat:
        drawn = "".join(f"{name}: {text}\n" for name, text in (("Field", topic), ("Asked by", persona)) if text)
        return f"{how.examples}{drawn}Task: {task}\nNew task:"
    exception = " The data does not count." if operation == "complicate_input" else ""
    fixed = _BROADER if operation == "broaden" else _DEEPER
    drawn = f"Place it in this field, as far as the subject allows: {topic}\n\n" if topic else ""
    drawn += f"Word it as this person would: {persona}\n\n" if persona else ""
    fixed = fixed.format(instruction=how.instruction, exception=exception)
    return (Message("user", f"{fixed}\n\n{drawn}Task:\n\n{task}"),)


def compare_prompt(parent: str, task: str, *, chat: bool) -> Prompt:
    """Return what asks whether ``task`` demands the same as ``parent``."""
    parent, task = (without_template_marks(text.strip()) for text in (parent, task))
    if chat:
        return (Message("user", f"{_SAME}\n\nFirst task:\n\n{parent}\n\nSecond task:\n\n{task}"),)
    return f"{_SAME_EXAMPLES}First task: {parent}\nSecond task: {task}\nVerdict:"


# -- the new task in a completion --------------------------------------------------------------------------------------

_CHANGED: Final = (
    r"(?:re-?written|re-?worded|re-?phrased|revised|new|evolved|updated|created|modified|improved|enhanced|adapted"
    r"|harder|tougher|complicated|different|more[ ](?:complex|difficult|challenging|demanding|specific|detailed))"
)
_TASK: Final = r"(?:prompt|task|instruction|question|version|problem|request)"
_OTHER_LABELS: Final = (
    r"(?:neue|überarbeitete|umgeschriebene|schwierigere)r?s?[ ](?:aufgabe|anweisung|frage|version|prompt)"
    r"|nouvel(?:le)?[ ](?:tâche|consigne|question|instruction|énoncé)|(?:tâche|consigne)[ ](?:réécrite|révisée)"
    r"|nueva[ ](?:tarea|instrucción|pregunta|versión)|tarea[ ](?:reescrita|revisada)"
    r"|nova[ ](?:tarefa|instrução|pergunta|versão)|tarefa[ ](?:reescrita|revisada)"
    r"|нов(?:ое[ ]задание|ая[ ]задача|ый[ ]запрос)|переписанн(?:ое[ ]задание|ая[ ]задача)"
    r"|(?:改写|重写|修改)后的?(?:任务|提示|指令|问题|题目)|新的?(?:任务|提示|指令|问题|题目)"
    r"|新しい(?:タスク|課題|指示|質問|プロンプト)|書き(?:換え|直し)た(?:後の)?(?:タスク|課題|指示|質問|プロンプト)"
)
_ARTICLE: Final = r"(?:(?:the|a|an|your|my|finally?|here[ ]is|here['\u2019]s)[ ]){0,3}"
_MARKS: Final = r"[ \t#\]]*+"
_LABEL_COLON: Final = rf"{COLON}[#\]]*+(?(mark)(?:(?P=mark))?)"
_LABEL_END: Final = rf"{_MARKS}{CLOSE}(?:{_LABEL_COLON}|[ \t\r]*+(?=\n))"
# At the start of the answer anything may be a label that says "new" of a task. Further down it takes a clear one.
_NEW_LABEL: Final = re.compile(
    rf"{OPEN}[#\[ \t]*+(?:{_ARTICLE}{_CHANGED}(?:,?[ ](?:and[ ])?{_CHANGED}){{0,2}}(?:[ ]{_TASK}"
    rf"(?:[ ]of[ ](?:the|your|this)[ ]{_TASK})?(?:[ ](?:is|reads))?)?|{_OTHER_LABELS}){_LABEL_END}",
    re.IGNORECASE,
)
_LATER_LABEL: Final = re.compile(
    rf"{OPEN}[#\[ \t]*+(?:{_ARTICLE}(?:re-?written|revised|new|evolved|harder|created|different)[ ]"
    rf"(?:prompt|task|instruction)|harder[ ]version|{_OTHER_LABELS}){_LABEL_END}",
    re.IGNORECASE,
)
_OLD_LABEL: Final = re.compile(
    rf"{OPEN}[#\[ \t]*+(?:(?:(?:the|given|original|old|initial|first|input)[ ]){{0,3}}"
    rf"(?:prompt|task|instruction|question)|(?:原始?|给定)?的?(?:任务|提示|指令)|元の?タスク|タスク|aufgabe|tâche|tarea|tarefa|задание|задача)"
    rf"{_LABEL_END}",
    re.IGNORECASE,
)
_PREAMBLE: Final = re.compile(  # what a line before the task says, up to its colon or its end, besides being chatter
    rf"\b{_CHANGED}(?:[ ][\w-]++){{0,3}}?[ ](?:{_TASK}|one)"
    r"(?=\W*+(?:\Z|(?:of|for|that|which|based|inspired|with|in|by|i)\b))"
    rf"|\b(?:re-?writ\w+|re-?wrote|re-?word\w+|made|make|making)[ ](?:it|this|that|(?:the|your)[ ]{_TASK})\b"
    r"|\bhere[ ](?:you[ ]go|it[ ]is)\b"
    r"|改写|重写|新的?任务|書き換え|書き直|新しい|réécri|nouvelle|reescri|nueva|umgeschrieben|neue[ ]aufgabe"
    r"|переписан|новое",
    re.IGNORECASE,
)
_YES_SIR: Final = re.compile(r"(?:sure(?:[ ]thing)?|certainly|of[ ]course|absolutely)[!.,][ \t]*+", re.IGNORECASE)
_SHORT: Final = 30  # characters of a line that is nothing but polite: "Sure, I can help with that!"
_LONGEST_PREAMBLE: Final = 240  # characters up to its colon
_COLON: Final = re.compile(rf"{COLON}(?:\*\*|__|[*_#])?")
_RULE: Final = re.compile(r"[ \t]*+(?:-{3,}+|\*{3,}+|_{3,}+|={3,}+|#{1,6}+)[ \t\r]*+")
_ANSWER_LABEL: Final = re.compile(
    rf"{OPEN}(?:(?:sample|example|model|possible|expected|suggested|my|the|an?|here[ ]is|here['\u2019]s)[ ]){{0,3}}"
    r"(?:answer|response|solution|réponse|antwort|lösung|respuesta|solución|resposta|solução|ответ|решение|答案|回答|解答"
    r"|回答例|解答例|explanation|explication|erklärung|explicación|解释|説明|rationale|justification|(?:key[ ])?changes"
    rf"(?:[ ]made)?|word[ ]count|what[ ]changed|added[ ]constraints?)[ \t]*+{CLOSE}(?:{COLON}|[ \t\r]*+(?=\n))",
    re.IGNORECASE,
)
_COMMENT: Final = re.compile(
    rf"""[\s*_\[>]*+(?:\(?(?:this|the|in[ ]this|in[ ]the)[ ]{_CHANGED}[ ]{_TASK}\b
    |\(?this[ ](?:version|revision|re-?writ\w+|adds|increases|makes[ ](?:it|the[ ]task))\b
    |\((?:added|changes?|word[ ]count|\+?\d++[ ](?:words?[ ]added|(?:more|new|extra|additional)[ ]words?)
      |note\b[^\n]{{0,200}}\b(?:words?|constraints?|version|prompt|added|complexity))\b
    |\(?i(?:['\u2019]ve|[ ]have)?[ ](?:re-?wrote|re-?written|re-?worded)\b
    |\(?i(?:['\u2019]ve|[ ]have)?[ ](?:added|made|replaced|changed|increased|introduced|included)\b[^\n.]{{0,80}}
     \b(?:task|prompt|constraints?|requirements?|conditions?|complex\w*|difficult\w*|version)\b
    |(?:i(?:['\u2019]m[ ]going[ ]to|['\u2019]ll|[ ]will)|let[ ]me|let['\u2019]s)[ ](?:now[ ])?
     (?:explain|give|show|work[ ]out|find|calculate)[ ](?:you[ ])?the[ ](?:answer|solution)\b
    |(?:let['\u2019]s|let[ ]me|i(?:['\u2019]ll|[ ]will)|to)[ ](?:now[ ])?(?:solve|answer)[ ]this\b
    |the[ ](?:correct[ ])?(?:answer|solution)[ ]is\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_QUOTES: Final = ('""', "''", "“”", "„“", "„”", "«»", "»«", "‘’", "「」", "『』")
_TAG: Final = re.compile(
    r"<((?:new_|rewritten_|harder_)?(?:task|prompt|instruction|version|question|answer|output|response))>",
    re.IGNORECASE,
)
_MARKER: Final = re.compile(r"(?:>|[-*•]|1[.)])[ \t]++")
_WORDS_ADDED: Final = re.compile(
    r"[(\[]\+?\d{1,3}[ ](?:words?[ ]added|(?:more|new|extra|additional)[ ]words?)[)\]]\.?", re.IGNORECASE
)
_MOST_LAYERS: Final = 6
_COPIED: Final = re.compile(
    r"""\#\s?(?:the[ ])?(?:given|new|rewritten|created|evolved)[ ](?:prompt|task)\s?\#
    | \b(?:given|re-?written|created|evolved)[ ]prompts?\b | \bre-?written[ ](?:task|instruction)s?\b
    | \bthe[ ]original[ ](?:task|prompt)\b | \bharder[ ]version[ ]of[ ](?:it|the[ ]task|this[ ]task)\b
    | ^new[ ]task\s?:? | \btask[ ]to[ ]rewrite\b | 改写后的(?:任务|提示|指令) | 给定的?提示""",
    re.IGNORECASE | re.VERBOSE,
)


def read_task(completion: Completion, *, chat: bool) -> Item | None:
    """Return the new task of a completion, ``None`` if it has no text at all.

    The rules, in order: ``unclosed_thinking``, ``unfinished`` (the token limit cut it), ``copies_prompt`` (it speaks of
    a "given prompt" or a "rewritten task"), ``only_stop_words``.
    """
    text = completion.text
    answer = answer_span(text)
    if answer is None:
        return _item(text, trim(text, 0, len(text)), "unclosed_thinking")
    start, end = _task_span(text, *answer, chat=chat)
    is_open = end == len(text)
    span = _unwrap(text, *_without_rules(text, start, end))
    if span == NOWHERE:
        return None
    found = text[slice(*span)]
    if is_open and is_cut(completion):
        return _item(text, span, "unfinished")
    if _COPIED.search(found):
        return _item(text, span, "copies_prompt")
    return _item(text, span, "only_stop_words" if has_only_stop_words(found) else None)


def _item(text: str, span: Span, rule: str | None) -> Item:
    return Item(span, text[slice(*span)], rule)


def _task_span(text: str, start: int, end: int, *, chat: bool) -> Span:
    """Return where the task is: after chatter and labels, before an answer or a comment. Ends are not trimmed."""
    start, is_labelled = _after_preambles(text, start, end)
    if chat:  # a completion prompt ends in the label, so that further ones begin further tasks
        starts = (line for line, _ in lines(text, start, end))
        labels = (_LATER_LABEL.match(text, line, end) for line in starts if not is_labelled)
        later = next(filter(None, labels), None)
        if later is not None and trim(text, later.end(), end) != NOWHERE:
            start, _ = _after_preambles(text, later.end(), end)
        echoed = _OLD_LABEL.match(text, trim(text, start, end)[0], end)
        if echoed is not None and trim(text, echoed.end(), end) != NOWHERE:
            start = echoed.end()
    return start, _end_of_task(text, start, end, chat=chat)


def _after_preambles(text: str, start: int, end: int) -> tuple[int, bool]:
    """Return where the text begins after lines that speak to the reader and labels, and whether there was a label."""
    is_labelled = False
    for _ in range(_MOST_LAYERS):
        begin, stop = trim(text, start, end)
        found = _preamble(text, begin, stop)
        if found is None or trim(text, found[0], stop) == NOWHERE:
            break
        start, is_labelled = found[0], is_labelled or found[1]
    return start, is_labelled


def _preamble(text: str, start: int, end: int) -> tuple[int, bool] | None:
    """Return the end of the label, rule or chatter at ``start``, if there is one, and whether it is a label."""
    if label := _NEW_LABEL.match(text, start, end):
        return label.end(), True
    stop = text.find("\n", start, end)
    has_more, stop = stop >= 0, stop if stop >= 0 else end
    if _RULE.fullmatch(text, start, stop):
        return stop, False
    near = min(stop, start + _LONGEST_PREAMBLE)
    if not is_chatter(text, start, near):
        return None
    colon = _COLON.search(text, start, near)
    if colon is not None and _PREAMBLE.search(text, start, colon.start()):
        return colon.end(), True
    greeting = _YES_SIR.match(text, start, stop)
    if has_more and ((stop == near and _PREAMBLE.search(text, start, stop)) or (greeting and stop - start <= _SHORT)):
        return stop, False
    return (greeting.end(), False) if greeting else None


def _end_of_task(text: str, start: int, end: int, *, chat: bool) -> int:
    """Return where an answer, a comment or another task begins."""
    has_begun = after_blank = False
    for line, stop in lines(text, start, end):
        if trim(text, line, stop) == NOWHERE or _RULE.fullmatch(text, line, stop):
            after_blank = True
            continue
        if has_begun:
            if _LATER_LABEL.match(text, line, end) or (not chat and _OLD_LABEL.match(text, line, end)):
                return line
            if after_blank and _begins_comment(text, line, stop, end):
                return line
        has_begun, after_blank = True, False
    return end


def _begins_comment(text: str, line: int, stop: int, end: int) -> bool:
    label = _ANSWER_LABEL.match(text, line, end)
    if label is not None:  # a label with nothing after it is where the task wants its answer
        return trim(text, label.end(), end) != NOWHERE
    return _COMMENT.match(text, line, stop) is not None or is_closing(text, line, stop)


def _without_rules(text: str, start: int, end: int) -> Span:
    """Return the span without blank lines and horizontal rules at its end."""
    for _ in range(_MOST_LAYERS):
        start, end = trim(text, start, end)
        last = max(text.rfind("\n", start, end) + 1, start)
        if last == start or not _RULE.fullmatch(text, last, end):
            break
        end = last
    return trim(text, start, end)


def _unwrap(text: str, start: int, end: int) -> Span:
    """Return the span without what is around all of it: code fences, tags, quotation marks, bold marks."""
    for _ in range(_MOST_LAYERS):
        start, end = trim(text, start, end)
        inner = _inside(text, start, end)
        if inner is None or trim(text, *inner) == NOWHERE:
            break
        start, end = inner
    return start, end


def _inside(text: str, start: int, end: int) -> Span | None:
    """Return what is inside the outermost of these, ``None`` if there is none."""
    if text.startswith("```", start):
        fenced = answer_span(text[start:end])
        return (start + fenced[0], start + fenced[1]) if fenced and fenced[0] else None
    if (tag := _TAG.match(text, start, end)) and text[start:end].lower().endswith(f"</{tag[1].lower()}>"):
        return tag.end(), end - len(tag[1]) - 3
    for mark in ('"""', "**", "__", "`", "*"):
        size = len(mark)
        if text.startswith(mark, start, end) and text.find(mark, start + size, end) == end - size:
            return start + size, end - size
    return _inside_quotes(text, start, end) or _inside_line(text, start, end)


def _inside_quotes(text: str, start: int, end: int) -> Span | None:
    for opener, closer in _QUOTES:
        stop = end - text.endswith(f"{closer}.", start, end)
        if stop - start > 1 and text[start] == opener and text[stop - 1] == closer:
            return (start + 1, stop - 1) if _is_one_quotation(text[start + 1 : stop - 1], opener, closer) else None
    return None


def _inside_line(text: str, start: int, end: int) -> Span | None:
    """Return a single line without a list or quotation mark before it or a count of the words that were added."""
    if text.find("\n", start, end) >= 0:
        return None
    if marker := _MARKER.match(text, start, end):
        return marker.end(), end
    bracket = max(text.rfind("(", start, end), text.rfind("[", start, end))
    return (start, bracket) if bracket > start and _WORDS_ADDED.fullmatch(text, bracket, end) else None


def _is_one_quotation(inner: str, opener: str, closer: str) -> bool:
    """Whether marks around ``inner`` belong together: its first mark opens another quotation, if there is any.

    Marks between letters are apostrophes.
    """
    mark = re.search(rf"(?<!\w)[{opener}{closer}]|[{opener}{closer}](?!\w)", inner)
    if mark is None:
        return True
    return mark[0] == opener and not (mark.start() and inner[mark.start() - 1].isalnum()) and mark.start() > 0


# -- elimination -------------------------------------------------------------------------------------------------------

_STOP_WORDS: Final = frozenset(
    """
    a about am an and are as at be because been being but by can could did do does doing for from had has have having
    he her here hers him his how i if in into is it its itself just me my of on or our ours she should so some such than
    that the their theirs them then there these they this those to too us very was we were what when where which while
    who whom why will with would you your yours
    der die das ein eine und ist zu mit von für auf le la les un une et est de du des pour avec el los las y es en con
    para por o os as e do da em и в на с по это же
    """.split()  # noqa: SIM905 - a list of strings would take a page
)
_WORD: Final = re.compile(r"[^\W_]+")
_APOLOGY: Final = re.compile(
    r"\b(?:sorry|apologi[sz]e|apologies|lo[ ]siento|désolée?s?|es[ ]tut[ ]mir[ ]leid|entschuldigung|desculpe|lamento"
    r"|sinto[ ]muito|mi[ ]dispiace|извините|простите|к[ ]сожалению)\b"
    r"|抱歉|对不起|申し訳|すみません|ごめんなさい|죄송|미안|آسف|أعتذر|क्षमा|माफ़|ขออภัย|ขอโทษ",
    re.IGNORECASE,
)
_UNABLE: Final = re.compile(
    r"""\W*(?:unfortunately,?[ ])?(?:
        (?:as|i(?:['\u2019]m|[ ]am)(?:[ ](?:just|only))?)[ ]an?[ ](?:ai\b|(?:large[ ])?language[ ]model)
        | i(?:['\u2019]m|[ ]am)[ ](?:unable|not[ ]able)[ ]to\b
        | i[ ](?:can(?:not|['\u2019]t)|won['\u2019]t)[ ](?:help|assist|provide|fulfil|comply|complete|answer)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_RULES: Final = PRESETS["default"]  # for how words are counted in scripts without spaces
_EQUAL: Final = r"(?:equal|equivalent|identical|the[ ]same|gleich|égales?|iguales|iguais|相等|相同|равны|等しい|同じ)"
_UNEQUAL: Final = (
    rf"(?:(?:not|no|non|nicht|pas|não|не)[ ]?(?:quite[ ]|exactly[ ]|really[ ])?{_EQUAL}|not|unequal|different|ungleich"
    r"|verschieden|différentes?|diferentes?|distintas?|不相等|不相同|不同|不等|разные|異なる|等しくない)"
)
_VERDICT: Final = rf"(?:(?P<unequal>{_UNEQUAL}|no\b|nein\b|non\b|否)|(?P<equal>{_EQUAL}|yes\b|ja\b|oui\b|sí\b|是))"
_ENDS: Final = r"[*_\"'`”’)\]]*+(?=\s*+(?:$|[.,;!\n。，；！(]|because\b|since\b|as\b|-|\u2013|\u2014))"
_VERDICTS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\A[\W_]*+{_VERDICT}{_ENDS}",
        rf"\b(?:verdict|answer|result|conclusion|判断|结论)(?:[ ]is)?[*_ ]*+{COLON}[\W_]*+{_VERDICT}{_ENDS}",
        rf"(?:^|\n)[^\w\n]*+{_VERDICT}[^\w\n]*+(?=\n|\Z)",
        rf"\b(?:tasks|they|two|both)[ ]are[ ](?:therefore[ ]|thus[ ]|clearly[ ])?[*_\"'“]*+{_VERDICT}{_ENDS}",
    )
)
"""How a verdict is given, the plainest way first: at once, after a label, alone on a line, in a sentence."""


def read_comparison(completion: Completion) -> StepOutcome:
    """Return ``different``, or the rejection ``no_information_gain``.

    An answer that is no verdict counts as different: a comparison that failed is no reason to lose a task.
    """
    span = answer_span(completion.text)
    if span is None:
        return Labelled("different", "unclosed_thinking")
    answer = completion.text[slice(*span)]
    found = next(filter(None, (pattern.search(answer) for pattern in _VERDICTS)), None)
    if found is None:
        return Labelled("different", "no_answer" if answer.strip() else "empty")
    return Labelled("different") if found["unequal"] else Rejected("no_information_gain", "equal")


def read_answer(completion: Completion, subject: Subject) -> StepOutcome:
    """Return the answer as the subject's only instance.

    The rules, in order: ``unclosed_thinking``, ``empty_output``, ``unfinished``, ``only_stop_words``, ``refusal``.
    """
    span, rule = whole_answer(completion)
    answer = completion.text[slice(*span)]
    if rule is None and has_only_stop_words(answer):
        rule = "only_stop_words"
    if rule is None and is_refusal(answer, subject.task):
        rule = "refusal"
    return Answered(((NOWHERE, span),)) if rule is None else Answered((), (rule,))


def has_only_stop_words(text: str) -> bool:
    """Whether the text has nothing but punctuation and words such as "the" and "of". Symbols (∞, 🙂) are content.

    The words are fewer than usual lists have: "no", "before" and "all" may be the whole answer to a question.
    """
    if any(word[0].lower() not in _STOP_WORDS for word in _WORD.finditer(text)):
        return False
    return not any(not sign.isascii() and unicodedata.category(sign) in {"So", "Sm"} for sign in text)


def is_refusal(answer: str, task: str) -> bool:
    """Whether an answer of under 80 words apologises or says that it cannot help.

    A task that itself speaks of an apology may have one for an answer.
    """
    if not (_APOLOGY.search(answer) or _UNABLE.match(answer)) or _APOLOGY.search(task) or "apolog" in task.lower():
        return False
    return count_words(answer, _RULES) < REFUSAL_WORDS
