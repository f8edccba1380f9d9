"""A declared method is carried out as declared: who is asked what, how subjects end, and resume at every line."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.methods.base import (
    CREATION,
    Answered,
    Commit,
    Continued,
    Created,
    Labelled,
    Rejected,
    Setup,
    Subject,
    Turn,
)
from fastgen.methods.base import trimmed as item_text
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.rules import Rules
from fastgen.methods.state import COMPLETE, EMPTY, MAX_SUBJECT_FAILURES, InstructionPool, RunState
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.store.ledger import Ledger
from fastgen.store.reader import FinishedInstruction, OpenRun, finished_instructions
from fastgen.store.records import decode, encode
from fastgen.store.run_folder import RunFolder
from fastgen.types import Answer, Completion, Failure, Instance, Request, SeedTask
from tests.methods.declared import FIRM, SAMPLING, SHORT, TONES, build, completion_of

DOCUMENTS = tuple(f"The text of document {number}, which is about something." for number in range(24))
SEEDS = tuple(
    SeedTask(f"s{n}", f"s{n}", f"Tell the long story number {n} of {n * n}.", (Instance("", "x"),), False)
    for n in range(5)
)
LOST = Completion("", "missing")
NEVER = 1 << 40


def make(documents: Sequence[str] = DOCUMENTS, *, target: int = 12, samples: int = 1, batch: int = 3) -> Plan:
    seeds = () if documents else SEEDS
    method = build(Setup(documents=documents, seeds=seeds, samples=samples, seed=3))
    return Plan(method, NoveltyFilter(index="exhaustive"), target=target, clock=lambda: 1.0, batch=batch)


def commit(plan: Plan, answers: Sequence[Answer]) -> list[Commit]:
    commits = plan.judge(answers)
    for one in commits:
        plan.apply(one)
    return commits


def say(plan: Plan, request: Request | None, *texts: str) -> list[Commit]:
    """Answer a request, one text for each of its choices."""
    assert request is not None
    assert len(texts) == request.sequences
    return commit(plan, [Answer(request, choice, Completion(text, "stop")) for choice, text in enumerate(texts)])


def logged(commits: Sequence[Commit]) -> list[Commit]:
    """As they come back from disk."""
    return [decode(orjson.loads(orjson.dumps(encode(one)))) for one in commits]


def finished(commits: Sequence[Commit], plan: Plan) -> dict[int, FinishedInstruction]:
    method = plan.method
    run = OpenRun(
        RunFolder(Path("unused")), {}, tuple(method.seeds), Rules(), method.item_text, tuple(method.documents)
    )
    return {one.number: one for one in finished_instructions(logged(commits), run)}


# -- one subject after another -----------------------------------------------------------------------------------------


def to_the_answer(plan: Plan, *, grade: str = "5") -> list[Commit]:
    """One subject that has an answer and waits for its ``followup``."""
    log = say(plan, plan.next(), "Task: Name three rivers.|in Peru")
    log += say(plan, plan.next(), grade)
    return log + say(plan, plan.next(), "Ucayali, Rimac and Napo.")


def test_a_subject_passes_the_steps_in_order_and_each_sees_what_came_before() -> None:
    plan = make(target=1)
    create = plan.next()
    assert create is not None
    assert (create.step, create.server_role, create.demonstrations) == (CREATION, "writer", (0,))
    assert create.drawn is not None
    assert create.drawn["tone"] in TONES
    assert create.prompt == f"user: Write tasks for {DOCUMENTS[0]}, {create.drawn['tone']}."
    (made,) = log = say(plan, create, "Task: Name three rivers. | in Peru\nTask: ")
    assert isinstance(made.outcome, Created)
    assert [(one.number, one.input) for one in made.outcome.kept] == [(0, (27, 34))]
    assert [one.rule for one in made.outcome.rejected] == ["blank"]
    assert plan.waits_for(0, "grade")

    grade = plan.next()
    assert grade is not None
    assert (grade.step, grade.server_role, grade.subjects, grade.sampling) == ("grade", "judge", (0,), SHORT)
    assert grade.prompt == f"user: Grade: Name three rivers.\n\nin Peru\nMade from: {DOCUMENTS[0]}"
    log += say(plan, grade, "I say 5")
    answer = plan.next()
    assert answer is not None
    assert (answer.step, answer.server_role) == ("answer", "answer")
    assert answer.prompt == "user: Name three rivers.\n\nin Peru"
    assert answer.sampling == FIRM, "as this request asks"
    log += say(plan, answer, "Ucayali, Rimac and Napo.")
    assert plan.state.subject(0) == Subject(
        *(0, "Name three rivers.", "in Peru", 5),
        turns=(Turn("Name three rivers.\n\nin Peru", "Ucayali, Rimac and Napo."),),
        sources=(0,),
        source_text=DOCUMENTS[0],
        drawn=create.drawn,
    )
    log += say(plan, plan.next(), "Which is the longest?")
    assert plan.state.subject(0).message == "Which is the longest?"
    reply = plan.next()
    assert reply is not None
    assert (reply.step, reply.server_role, reply.sampling) == ("reply", "answer", SAMPLING)
    said = "user: Name three rivers.\n\nin Peru\nassistant: Ucayali, Rimac and Napo.\nuser: Which is the longest?"
    assert reply.prompt == said
    assert not plan.done
    log += say(plan, reply, "Ucayali.")
    assert plan.done
    assert plan.next() is None
    assert plan.state.pool.state(0) == COMPLETE
    assert [one.ended for one in log] == ["", "", "", "", "complete"]
    (row,) = finished(log, plan).values()
    assert (row.instruction, row.demonstrations, row.labels, row.drawn) == (
        *("Name three rivers.", (0,)),
        *({"grade": 5}, create.drawn),
    )
    assert row.instances == (Instance("in Peru", "Ucayali, Rimac and Napo."),)
    assert row.turns == (
        Turn("Name three rivers.\n\nin Peru", "Ucayali, Rimac and Napo."),
        Turn("Which is the longest?", "Ucayali."),
    )


@pytest.mark.parametrize("how", ["rejected", "no reply", "failures"])
def test_an_optional_step_that_brings_nothing_completes_the_subject_with_what_it_has(how: str) -> None:
    plan = make()
    log = to_the_answer(plan)
    if how == "rejected":
        log += say(plan, plan.next(), "  ")
    elif how == "no reply":
        log += say(plan, plan.next(), "Which is the longest?")
        log += say(plan, plan.next(), "")
    else:
        for _ in range(MAX_SUBJECT_FAILURES):
            request = plan.next()
            assert request is not None
            assert request.step == "followup"
            log += commit(plan, [Answer(request, 0, Failure("http_500", "down"))])
    assert [one.ended for one in log] == [""] * (len(log) - 1) + ["complete"]
    assert [one.ended for one in logged(log)] == [one.ended for one in log]
    assert (plan.state.complete, plan.state.settled) == (1, 1)
    row = finished(log, plan)[0]
    assert row.instances == (Instance("in Peru", "Ucayali, Rimac and Napo."),)
    assert row.turns == ()


@pytest.mark.parametrize("how", ["rejected", "no answer", "failures"])
def test_a_needed_step_that_brings_nothing_leaves_the_subject_empty(how: str) -> None:
    plan = make()
    log = say(plan, plan.next(), "Task: Name three rivers.")
    if how == "rejected":
        log += say(plan, plan.next(), "1")
        assert log[-1].outcome == Rejected("low_grade", 1)
    else:
        log += say(plan, plan.next(), "4")
        for _ in range(1 if how == "no answer" else MAX_SUBJECT_FAILURES):
            request = plan.next()
            assert request is not None
            assert request.step == "answer"
            result = Completion(" ", "stop") if how == "no answer" else Failure("http_500", "down")
            log += commit(plan, [Answer(request, 0, result)])
    assert log[-1].ended == "empty"
    assert plan.state.pool.state(0) == EMPTY
    assert (plan.state.complete, plan.state.settled) == (0, 1)
    row = finished(log, plan)[0]
    assert row.labels == {"grade": 1 if how == "rejected" else 4}
    assert (row.instances, row.turns) == ((), ())


def test_a_grade_that_cannot_be_read_is_the_default_and_the_log_says_why() -> None:
    plan = make()
    log = say(plan, plan.next(), "Task: Name three rivers.")
    log += say(plan, plan.next(), "good")
    assert log[-1].outcome == Labelled(3, "no_grade")
    assert plan.state.subject(0).label == 3


def test_work_on_later_steps_goes_first_and_full_roles_are_left_out() -> None:
    plan = make(target=100)
    say(
        plan,
        plan.next(),
        "Task: Name three rivers.\nTask: Describe a comet in winter.\nTask: Sort some old basil seeds.",
    )
    batch = plan.next()
    assert batch is not None
    assert batch.subjects == (0, 1, 2)
    say(plan, batch, "4", "4", "4")
    say(plan, plan.next(), "Three.")

    def asked(*full: str) -> str | None:
        request = plan.next(lambda role: role in full)
        if request is not None:
            plan.give_back(request)
        return None if request is None else request.step

    assert asked() == "followup"
    assert asked("followup") == "answer"
    assert asked("followup", "answer") == CREATION
    assert asked("followup", "answer", "writer") is None


def test_depth_counts_the_creations_from_a_seed_and_sources_are_the_parents() -> None:
    plan = make((), target=100)
    create = plan.next()
    assert create is not None
    assert len(create.demonstrations) == 2
    say(plan, create, "Task: Name three rivers.")
    state = plan.state
    assert state.depth(create.demonstrations[0]) == 0
    assert state.depth(len(SEEDS)) == 1
    assert state.subject(0).source_text == SEEDS[create.demonstrations[0]].instruction
    child = plan.next(lambda role: role != "writer")
    assert child is not None
    assert len(SEEDS) in child.demonstrations
    say(plan, child, "Task: Describe a comet in winter.")
    assert state.depth(len(SEEDS) + 1) == 2
    assert state.subject(1).sources == child.demonstrations


# -- whole runs --------------------------------------------------------------------------------------------------------


@dataclass
class Drive:
    """A run with requests in flight that come back in any order, late, lost, failed or given back."""

    plan: Plan
    draw: random.Random
    log: list[Commit] = field(default_factory=list)
    in_flight: list[Request] = field(default_factory=list)
    after_each: Callable[[list[Commit]], None] = lambda _: None

    def step(self) -> bool:
        """Ask and answer a little. Returns whether there was anything to do."""
        while len(self.in_flight) < 6 and (request := self.plan.next()) is not None:
            self.in_flight.append(request)
        if not self.in_flight:
            return False
        self.draw.shuffle(self.in_flight)
        request = self.in_flight.pop()
        if self.draw.random() < 0.1:
            self.plan.give_back(request)
            return True
        for one in self.plan.judge(self._answers(request)):
            self.plan.apply(one)
            self.log.append(one)
            self.after_each(self.log)
        return True

    def to_the_end(self) -> Drive:
        while not self.plan.done and self.step():
            pass
        return self

    def _answers(self, request: Request) -> list[Answer]:
        if self.draw.random() < 0.05:
            return [Answer(request, 0, Failure("http_500", "down"))]
        texts = [completion_of(request.step, self.draw) for _ in range(request.sequences)]
        completions = [LOST if self.draw.random() < 0.05 else Completion(text, "stop", 3, 4) for text in texts]
        return [Answer(request, choice, one) for choice, one in enumerate(completions)]


RUNS = st.tuples(st.integers(0, 10_000), st.sampled_from([DOCUMENTS, ()]), st.integers(1, 3))


@given(RUNS, st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_run_reaches_its_target_exactly_and_its_counts_agree(
    run: tuple[int, tuple[str, ...], int], target: int
) -> None:
    seed, _, samples = run
    plan = make((), target=target, samples=samples)
    log = Drive(plan, random.Random(seed)).to_the_end().log
    assert plan.state.complete == target
    assert log[-1].ended == "complete"
    ledger, rows = Ledger(seeds=len(SEEDS)), finished(log, plan)
    for one in logged(log):
        ledger.apply(one)
    assert (ledger.complete, ledger.kept) == (target, len(plan.state.pool))
    assert ledger.complete + ledger.empty == plan.state.settled == len(rows)
    assert {number for number, row in rows.items() if row.instances} == {
        number for number in range(len(plan.state.pool)) if plan.state.pool.state(number) == COMPLETE
    }
    ends = Counter(one.subject for one in log if one.ended)
    assert set(ends.values()) == {1}
    assert set(ledger.completions) <= {CREATION, "grade", "answer", "followup", "reply"}


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_every_document_is_used_exactly_once_also_after_a_resume(seed: int, samples: int) -> None:
    draw = random.Random(seed)
    drive = Drive(make(target=NEVER, samples=samples), draw)
    for _ in range(draw.randint(0, 60)):
        drive.step()
    log = logged(drive.log)  # what was in flight is lost with the process
    plan = make(target=NEVER, samples=samples)
    plan.resume(log)
    log += Drive(plan, draw).to_the_end().log
    assert plan.is_exhausted
    assert [*plan.state.pool.unsettled()] == []
    created = [one for one in log if one.step == CREATION]
    assert {one.demonstrations for one in created} == {(number,) for number in range(len(DOCUMENTS))}
    used = {(one.request, one.demonstrations) for one in created if isinstance(one.outcome, Created)}
    assert len(used) == len({document for _, document in used}), "a document is asked about again only if that was lost"
    assert (plan.state.next_source, plan.state.unused_sources) == (len(DOCUMENTS), set())


def seen(plan: Plan) -> tuple[Any, ...]:
    """All that a state is, as a checkpoint has it."""
    state = plan.state
    folded = orjson.loads(orjson.dumps(state.folded()))
    return folded, state.shown_counts(), [bytes(column.data) for column in state.pool.columns()]


def restored(plan: Plan, samples: int, documents: Sequence[str]) -> Plan:
    """A fresh plan with the state as a checkpoint stores it."""
    folded, shown, columns = seen(plan)
    fresh = make(documents, target=plan.state.target, samples=samples)
    fresh.state.restore(folded, InstructionPool.from_columns(*map(bytearray, columns)), shown, None)
    fresh.resume(())
    return fresh


def next_of(plan: Plan, count: int) -> list[Request]:
    return [*islice(iter(plan.next, None), count)]


@given(RUNS)
@settings(max_examples=8, deadline=None)
def test_after_any_line_the_log_and_a_checkpoint_give_the_state_of_the_live_run(
    run: tuple[int, tuple[str, ...], int],
) -> None:
    seed, documents, samples = run
    live = make(documents, samples=samples)

    def compare(log: list[Commit]) -> None:
        resumed = make(documents, samples=samples)
        resumed.resume(logged(log))
        stored = restored(live, samples, documents)
        assert seen(resumed) == seen(live) == seen(stored)
        states = (live.state, resumed.state, stored.state)
        for number, _ in live.state.pool.unsettled():
            one, two, three = (state.subject(number) for state in states)
            assert one == two == three
        assert next_of(resumed, 9) == next_of(stored, 9)

    Drive(live, random.Random(seed), after_each=compare).to_the_end()


def test_a_log_that_is_judged_again_gives_the_same_decisions() -> None:
    """As a refilter does: from the raw completions, the requests as the log has them."""
    drive = Drive(make(target=NEVER, samples=2), random.Random(5)).to_the_end()
    again = make(target=NEVER, samples=2)
    for old in logged(drive.log):
        request = Request(
            *(old.request, old.step, "", replace(SAMPLING, max_tokens=NEVER)),
            () if old.subject is None else (old.subject,),
            old.demonstrations,
            drawn=old.drawn,
        )
        result = old.outcome if isinstance(old.outcome, Failure) else old.completion
        (new,) = again.judge([Answer(request, 0, result)])
        new = new._replace(choice=old.choice)
        again.apply(new)
        assert encode(new) == encode(old)
    assert seen(again) == seen(drive.plan)


def test_outcomes_of_every_kind_occur_in_such_runs() -> None:
    """Else the tests above would show little."""
    log = Drive(make(target=NEVER, samples=2), random.Random(5)).to_the_end().log
    kinds = Counter(type(one.outcome) for one in log)
    assert min(kinds[kind] for kind in (Created, Labelled, Answered, Continued, Rejected, Failure)) > 3
    by_step = {(one.step, one.ended) for one in log if one.ended}
    assert by_step == {
        *(("grade", "empty"), ("answer", "empty"), ("followup", "complete"), ("reply", "complete")),
    }


def test_the_state_of_a_run_that_has_begun_needs_no_notes_of_those_that_ended() -> None:
    drive = Drive(make(target=NEVER), random.Random(2)).to_the_end()
    state: RunState = drive.plan.state
    assert state.folded()["notes"] == []
    assert item_text is drive.plan.method.item_text
