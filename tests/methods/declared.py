"""A method as a user writes one, for tests: tasks for documents or from earlier tasks, and a conversation about each.

creation -> ``grade`` (a label, or a rejection) -> ``answer`` -> ``followup`` (may be left out) -> ``reply`` (likewise).
With documents, each creating request has the next unused one as its source. Without, it has two earlier tasks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from fastgen.methods.base import (
    Answered,
    Ask,
    Continued,
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
from fastgen.types import Completion, Message, Request, Sampling

SAMPLING = Sampling(0.7, 0.9, 64)
SHORT = Sampling(0.0, 1.0, 8)
FIRM = Sampling(0.1, 1.0, 32)
TONES = ("dry", "warm", "curt")
_LINE = re.compile(r"^Task: (?P<task>[^|\n]*)(?:\| ?(?P<input>[^\n]*))?$", re.MULTILINE)


def build(setup: Setup) -> Method:
    documents = setup.documents

    def prompt(*said: Message) -> Prompt:
        return said if setup.api == "chat" else "\n".join(f"{one.role}: {one.content}" for one in said)

    def create(draw: Draw) -> Ask | None:
        tone = {"tone": draw.random("tone").choice(TONES)}
        if not documents:
            sources = draw.demonstrations(2, 1)
            shown = " / ".join(draw.pool.text(index) for index in sources)
            return Ask(prompt(_user(f"Write tasks like {shown}, {tone['tone']}.")), sources, tone)
        number = draw.unused()
        if number >= len(documents):
            return None
        return Ask(prompt(_user(f"Write tasks for {documents[number]}, {tone['tone']}.")), (number,), tone)

    def ask_to_grade(subject: Subject) -> Ask:
        return Ask(prompt(_user(f"Grade: {subject.task}\nMade from: {subject.source_text}")))

    def ask_to_answer(subject: Subject) -> Ask:
        return Ask(prompt(_user(subject.task)), sampling=FIRM if subject.label == 5 else None)

    def ask_to_follow(subject: Subject) -> Ask:
        return Ask(prompt(_user(f"What next? {subject.turns[-1].assistant}")))

    def ask_to_reply(subject: Subject) -> Ask:
        turns = ((_user(turn.user), Message("assistant", turn.assistant)) for turn in subject.turns)
        return Ask(prompt(*(one for turn in turns for one in turn), _user(subject.message)))

    def read_tasks(completion: Completion, _: Request) -> list[Item]:
        return [_item(found) for found in _LINE.finditer(completion.text)]

    return Method(
        name="declared",
        creation=Creation(
            sampling=SAMPLING,
            ask=create,
            read=read_tasks,
            samples=setup.samples,
            has_sources=True,
            expected=2.0,
            role="writer",
        ),
        steps=(
            Step(
                name="grade",
                sampling=SHORT,
                ask=ask_to_grade,
                read=read_grade,
                is_batched=setup.api == "completions",
                role="judge",
            ),
            Step(name="answer", sampling=SAMPLING, ask=ask_to_answer, read=read_answer),
            Step(name="followup", sampling=SAMPLING, ask=ask_to_follow, read=read_followup, is_optional=True),
            Step(name="reply", sampling=SAMPLING, ask=ask_to_reply, read=read_answer, is_optional=True, role="answer"),
        ),
        seeds=setup.seeds,
        check=setup.check,
        documents=documents,
        seed=setup.seed,
    )


def _user(text: str) -> Message:
    return Message("user", text)


def _item(found: re.Match[str]) -> Item:
    given = found.span("input") if found["input"] else None
    return Item(found.span("task"), found["task"].strip(), None if found["task"].strip() else "blank", given)


def read_grade(completion: Completion, _: Subject) -> StepOutcome:
    found = re.search("[1-5]", completion.text)
    if found is None:
        return Labelled(3, "no_grade")
    grade = int(found[0])
    return Rejected("low_grade", grade) if grade < 2 else Labelled(grade)


def read_answer(completion: Completion, _: Subject) -> StepOutcome:
    if not completion.text.strip():
        return Answered((), ("empty_output",))
    return Answered((((0, 0), (0, len(completion.text))),))


def read_followup(completion: Completion, _: Subject) -> StepOutcome:
    return Continued((0, len(completion.text))) if completion.text.strip() else Rejected("no_question")


def completion_of(step: str, draw: random.Random) -> str:
    """What a model might say: mostly useful, at times nothing, at times the same as before."""
    words = ("river", "stone", "lantern", "comet", "violin", "basil", "walnut", "glacier", "ribbon", "saddle", "copper")
    task = " ".join(draw.choices(words, k=6))
    if step == "instruction":
        lines: Sequence[str] = [f"Task: {task}", f"Task: {task} again|its {draw.choice(words)}", "Task:  "]
        return "\n".join(draw.sample(lines, draw.randint(0, 3)))
    if step == "grade":
        return draw.choice(("1", "2", "4", "5", "Grade 3", "good"))
    return draw.choice((task, f"{task}?", f"{task}.", ""))
