"""Requests with several choices: samples of one prompt, subjects asked about together, and what is missing of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest

from fastgen.methods.base import Answered, Commit, Labelled
from fastgen.methods.plan import MAX_BATCHED_TOKENS, MAX_REFUSED_BATCHES, Plan
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import PromptSet, load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.state import EMPTY, MAX_SUBJECT_FAILURES
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.simulator.answers import Writer
from fastgen.store.records import decode, encode
from fastgen.types import Answer, Completion, Failure, Instance, Request, Sampling, SeedTask

TARGET = 30
LOST = Completion("", "missing")
WRITER = Writer(0, 0.1)


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts("completions")


def seeds() -> list[SeedTask]:
    return [
        SeedTask(f"s{n}", f"s{n}", f"Tell story number {n} of {n * n}.", (Instance("", "x"),), False) for n in range(12)
    ]


def make(prompts: PromptSet, *, target: int = TARGET, batch: int = 8, sampling: Any = None, **method: Any) -> Plan:
    settings = self_instruct(PRESETS["default"], seeds(), prompts, sampling or SAMPLING_PRESETS["default"], **method)
    novelty = NoveltyFilter(index="exhaustive")
    return Plan(settings, novelty, target=target, clock=lambda: 1.0, batch=batch)


def texts(request: Request) -> tuple[str, ...]:
    if isinstance(request.prompt, str):
        return (request.prompt,)
    assert all(isinstance(prompt, str) for prompt in request.prompt)
    return tuple(str(prompt) for prompt in request.prompt)


def written(request: Request) -> list[Answer]:
    """What the shipped server would answer, choice by choice."""
    completions = [
        Completion(WRITER.answer(prompt, sample), "stop", 10, 20)
        for prompt in texts(request)
        for sample in range(request.n)
    ]
    return [Answer(request, choice, completion) for choice, completion in enumerate(completions)]


def commit(plan: Plan, answers: Sequence[Answer]) -> list[Commit]:
    commits = plan.judge(answers)
    for one in commits:
        plan.apply(one)
    return commits


def take(plan: Plan, stage: str) -> Request:
    """The next request, which is of this stage."""
    request = plan.next()
    assert request is not None
    assert request.step == stage
    return request


def ready_to_classify(prompts: PromptSet, log: list[Commit] | None = None, **settings: Any) -> Plan:
    """A plan with more than a dozen instructions that wait for their class."""
    plan = make(prompts, **settings)
    for request in [take(plan, "instruction") for _ in range(3)]:
        commits = commit(plan, written(request))
        if log is not None:
            log += commits
    assert len(plan.state.pool) > 12
    return plan


def run_to_the_end(plan: Plan, draw: random.Random) -> list[Commit]:
    """Drive with several requests in flight; their choices come back in any order, and one in ten is lost."""
    log: list[Commit] = []
    answers: list[Answer] = []
    while not plan.done:
        for request in [r for _ in range(3) if (r := plan.next()) is not None]:
            answers += [lose(a) if request.sequences > 1 and draw.random() < 0.1 else a for a in written(request)]
        draw.shuffle(answers)
        assert answers, "nothing in flight, nothing to ask, and not done"
        some, answers = answers[:4], answers[4:]
        log += commit(plan, some)
    return log


def lose(answer: Answer) -> Answer:
    return Answer(answer.request, answer.choice, LOST)


def keys(log: Sequence[Commit]) -> Counter[tuple[int, int]]:
    return Counter((one.request, one.choice) for one in log)


def classified(log: Sequence[Commit]) -> Counter[int | None]:
    return Counter(one.subject for one in log if isinstance(one.outcome, Labelled))


def settled(log: Sequence[Commit]) -> Counter[int | None]:
    return Counter(one.subject for one in log if isinstance(one.outcome, Answered))


# -- samples of one prompt ---------------------------------------------------------------------------------------------


def test_each_sample_of_a_prompt_is_a_separate_commit(prompts: PromptSet) -> None:
    plan = make(prompts, samples=3)
    request = take(plan, "instruction")
    assert (request.n, request.prompts, request.sequences) == (3, 1, 3)
    commits = commit(plan, written(request))
    assert [(one.request, one.choice, one.subject) for one in commits] == [(0, 0, None), (0, 1, None), (0, 2, None)]
    assert len({one.completion.text for one in commits}) == 3
    assert plan._creations_out == 0


def test_more_samples_do_not_change_the_draws(prompts: PromptSet) -> None:
    one, four = make(prompts, target=5000), make(prompts, target=5000, samples=4)
    assert [take(one, "instruction").prompt for _ in range(2)] == [take(four, "instruction").prompt for _ in range(2)]


def test_fewer_samples_are_asked_for_when_the_target_needs_fewer(prompts: PromptSet) -> None:
    plan = make(prompts, target=20, samples=100)
    assert take(plan, "instruction").n == 4  # of 6 kept each and 0.9 of them complete
    assert plan.next() is None


@pytest.mark.parametrize("lost", [(0,), (1, 3), (0, 1, 2)])
def test_what_is_missing_of_the_samples_is_accounted_for_exactly(prompts: PromptSet, lost: tuple[int, ...]) -> None:
    plan = make(prompts, target=5000, samples=4)
    request, other = take(plan, "instruction"), take(plan, "instruction")
    assert plan._creations_out == 8
    answers = [lose(a) if a.choice in lost else a for a in written(request)]
    commits = commit(plan, answers)
    assert plan._creations_out == 4
    assert [one.choice for one in commits if isinstance(one.outcome, Failure)] == [*lost]
    assert all("--samples-per-prompt 1" in one.outcome.detail for one in commits if isinstance(one.outcome, Failure))
    plan.give_back(other)
    assert plan._creations_out == 0


def test_a_failed_request_fails_for_each_of_its_samples(prompts: PromptSet) -> None:
    plan = make(prompts, target=5000, samples=4)
    request = take(plan, "instruction")
    commits = commit(plan, [Answer(request, 0, Failure("rejected", "no"))])
    assert [(one.request, one.choice) for one in commits] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert plan._creations_out == 0
    assert plan.state.refused == 1, "requests are counted, not samples"


def test_a_prompt_that_is_too_long_keeps_its_samples(prompts: PromptSet) -> None:
    plan = make(prompts, target=5000, samples=4)
    shorter = plan.shrink(take(plan, "instruction"))
    assert shorter is not None
    assert (shorter.n, len(shorter.demonstrations)) == (4, 4)


# -- several subjects in one request -----------------------------------------------------------------------------------


def test_what_is_ready_is_classified_together_and_nothing_waits_for_more(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    ready = len(plan.state.pool)
    sizes = []
    asked: list[int] = []
    while (request := plan.next()) is not None and request.step == "classification":
        assert len(texts(request)) == request.prompts == request.sequences == len(request.subjects)
        assert all(plan.state.pool.text(s) in text for s, text in zip(request.subjects, texts(request), strict=True))
        sizes.append(request.prompts)
        asked += request.subjects
    assert asked == [*range(ready)]
    assert sizes[:-1] == [8] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= 8


@pytest.mark.parametrize("why", ["chat", "long answers", "as told"])
def test_one_subject_per_request_where_several_are_impossible(prompts: PromptSet, why: str) -> None:
    if why == "chat":
        plan = ready_to_classify_by_chat()
    elif why == "long answers":
        long = {"classification": Sampling(0.0, 1.0, MAX_BATCHED_TOKENS + 1)}
        plan = ready_to_classify(prompts, sampling={**SAMPLING_PRESETS["default"], **long})
    else:
        plan = ready_to_classify(prompts, batch=1)
    assert take(plan, "classification").prompts == 1


def ready_to_classify_by_chat() -> Plan:
    plan = make(load_prompts("chat"))
    listed = "9. Name the moons of Saturn.\n10. Measure the height of a walnut tree.\n11. Explain how a lantern works."
    commit(plan, [Answer(take(plan, "instruction"), 0, Completion(listed, "stop"))])
    assert len(plan.state.pool) == 3
    return plan


def test_each_subject_gets_its_own_answer(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    request = take(plan, "classification")
    answers = [
        Answer(request, i, Completion(" Yes" if subject % 3 == 0 else " No", "stop"))
        for i, subject in enumerate(request.subjects)
    ]
    random.Random(0).shuffle(answers)
    commits = commit(plan, answers)
    assert {one.subject for one in commits} == set(request.subjects)
    for subject in request.subjects:
        assert plan.waits_for(subject, "instance")
        assert plan.state.subject(subject).label is (subject % 3 == 0)


def test_only_the_subject_whose_answer_was_lost_is_asked_again_and_by_itself(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    request = take(plan, "classification")
    commits = commit(plan, [lose(a) if a.choice == 5 else a for a in written(request)])
    assert [one.subject for one in commits if isinstance(one.outcome, Failure)] == [5]
    rest = [r for r in iter(plan.next, None) if r.step == "classification"]
    assert [r.subjects for r in rest if 5 in r.subjects] == [(5,)]
    assert not {*request.subjects} & {s for r in rest for s in r.subjects} - {5}


def test_a_refused_batch_is_asked_one_by_one_and_blames_only_the_prompt_at_fault(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    request = take(plan, "classification")
    first = plan.shrink(request)
    assert first is not None
    assert (first.number, first.subjects, isinstance(first.prompt, str)) == (request.number, (0,), True)
    assert plan.shrink(first) is None
    asked = [first, *(take(plan, "classification") for _ in range(7))]
    assert [one.subjects for one in asked] == [(subject,) for subject in range(8)]
    assert take(plan, "classification").prompts > 1, "those that were in no refused batch"
    for one in asked:
        at_fault = one.subjects == (3,)
        commit(plan, [Answer(one, 0, Failure("prompt_too_long", "400"))] if at_fault else written(one))
    assert plan.state.failures == {3: 1}
    assert len({one.number for one in asked}) == 8


def test_a_server_that_takes_one_prompt_only_is_soon_asked_so(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts, batch=2)
    for _ in range(MAX_REFUSED_BATCHES):
        request = next(r for r in iter(plan.next, None) if r.prompts > 1)
        assert plan.shrink(request) is not None
    assert {r.prompts for r in iter(plan.next, None)} == {1}


def test_an_answered_batch_resets_the_count_of_refused_ones(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts, batch=2)
    batches = [r for r in iter(plan.next, None) if r.prompts > 1]
    assert len(batches) > 2 * MAX_REFUSED_BATCHES
    for refused, good in zip(batches[::2], batches[1::2], strict=False):
        assert plan.shrink(refused) is not None
        commit(plan, written(good))
    assert plan._batch == 2


def test_a_failed_batch_counts_once_against_each_subject_which_is_then_asked_by_itself(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    request = take(plan, "classification")
    commits = commit(plan, [Answer(request, 0, Failure("http_500", "after 8 attempts"))])
    assert [(one.choice, one.subject) for one in commits] == [(i, i) for i in range(8)]
    alone = [r for r in iter(plan.next, None) if set(r.subjects) & set(range(8))]
    assert [r.subjects for r in alone] == [(i,) for i in range(8)]
    for _ in range(MAX_SUBJECT_FAILURES - 1):
        assert plan.state.pool.state(0) == 0
        commit(plan, [Answer(alone[0], 0, Failure("http_500", "after 8 attempts"))])
    assert plan.state.pool.state(0) == EMPTY
    assert plan.state.settled == 1


def test_a_batch_that_is_given_back_is_asked_again_in_its_order(prompts: PromptSet) -> None:
    plan = ready_to_classify(prompts)
    request = take(plan, "classification")
    plan.give_back(request)
    again = take(plan, "classification")
    assert (again.subjects, again.prompt) == (request.subjects, request.prompt)


# -- resume ------------------------------------------------------------------------------------------------------------


def whole_run(prompts: PromptSet, policy: str) -> list[Commit]:
    """A run in which choices of different requests are mixed, some lost, as they come back from disk."""
    plan = make(prompts, samples=4, demonstrations=policy)
    log = run_to_the_end(plan, random.Random(1))
    assert max(one.choice for one in log if one.step == "instruction") == 3
    assert max(one.choice for one in log if one.step == "classification") >= 3
    return [decode(orjson.loads(orjson.dumps(encode(one)))) for one in log]


def cuts(log: Sequence[Commit]) -> Iterator[int]:
    return iter(range(len(log) + 1))


@pytest.mark.parametrize("policy", ["uniform", "least-used"])
def test_a_run_cut_off_after_any_line_resumes_without_anything_lost_or_doubled(prompts: PromptSet, policy: str) -> None:
    log = whole_run(prompts, policy)
    torn = 0
    for cut in cuts(log):
        before = log[:cut]
        plan = make(prompts, samples=4, demonstrations=policy)
        plan.resume(before)
        assert plan._creations_out == 0
        torn += bool(before) and any(one.request == before[-1].request for one in log[cut:])
        both = before + run_to_the_end(plan, random.Random(2))
        assert plan.state.complete == TARGET
        assert set(keys(both).values()) == {1}
        assert set(classified(both).values()) == set(settled(both).values()) == {1}
        assert settled(both).keys() <= classified(both).keys() <= set(range(len(plan.state.pool)))
        assert plan.state.settled == len(settled(both))
    assert torn > 10, "many cuts fell between the choices of one request"


def test_a_resumed_plan_has_shown_its_demonstrations_as_often_as_the_live_one(prompts: PromptSet) -> None:
    live = make(prompts, samples=2, demonstrations="least-used")
    log = run_to_the_end(live, random.Random(3))
    resumed = make(prompts, samples=2, demonstrations="least-used", target=TARGET + 50)
    resumed.resume(log)
    live.state.target = TARGET + 50
    everything = range(12 + len(live.state.pool))
    times = [live.state.demonstrations.times_shown(index) for index in everything]
    assert times == [resumed.state.demonstrations.times_shown(index) for index in everything]
    assert sum(times) == sum(len(one.demonstrations) for one in log)
    live._ready["classification"].clear()
    live._ready["instance"].clear()
    resumed._ready["classification"].clear()
    resumed._ready["instance"].clear()
    number = max(live._next_request, resumed._next_request)
    live._next_request = resumed._next_request = number
    assert take(live, "instruction").demonstrations == take(resumed, "instruction").demonstrations


def test_a_subject_that_failed_before_the_cut_is_asked_by_itself_after_it(prompts: PromptSet) -> None:
    log: list[Commit] = []
    plan = ready_to_classify(prompts, log)
    request = take(plan, "classification")
    log += commit(plan, [lose(a) if a.choice == 2 else a for a in written(request)])
    resumed = make(prompts)
    resumed.resume(log)
    assert [r.subjects for r in iter(resumed.next, None) if 2 in r.subjects] == [(2,)]
