"""The plan: what is asked, what answers mean, and that a resumed plan is the live one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from fastgen.methods.base import Answered, Commit, Created
from fastgen.methods.plan import FIRST_CREATIONS, Plan
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import PromptSet, load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.state import EMPTY, MAX_SUBJECT_FAILURES
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.simulator.answers import Writer
from fastgen.text import CHARACTERS_PER_TOKEN
from fastgen.types import Answer, Completion, Failure, Instance, Request, SeedTask

WORDS = [
    "river",
    "stone",
    "copper",
    "lantern",
    "meadow",
    "orchard",
    "harbor",
    "violin",
    "glacier",
    "walnut",
    "saddle",
    "comet",
    "ribbon",
    "thunder",
    "basil",
]
VERBS = [
    "Describe",
    "Compare",
    "Explain",
    "Summarise",
    "Translate",
    "Rewrite",
    "List",
    "Invent",
    "Classify",
    "Rank",
    "Predict",
    "Justify",
]


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts("completions")


def seeds(count: int = 20, classification: int = 5) -> list[SeedTask]:
    rng = random.Random(1)
    texts = [f"{rng.choice(VERBS)} the {' '.join(rng.sample(WORDS, 6))} for case {n}." for n in range(count)]
    return [
        SeedTask(f"seed_{n}", f"s{n}", text, (Instance("", "x"),), n < classification) for n, text in enumerate(texts)
    ]


def make(prompts: PromptSet, *, target: int = 50, **method: Any) -> Plan:
    settings = self_instruct(PRESETS["default"], seeds(), prompts, SAMPLING_PRESETS["default"], **method)
    return Plan(settings, NoveltyFilter(index="exhaustive"), target=target, clock=lambda: 1.0)


def written(request: Request) -> Completion:
    """What the shipped server would answer."""
    assert isinstance(request.prompt, str)
    return Completion(Writer(0, 0.1).answer(request.prompt, 0), "stop", 10, 20)


def answer(plan: Plan, requests: Sequence[Request]) -> list[Commit]:
    commits = plan.judge([Answer(request, 0, written(request)) for request in requests])
    for commit in commits:
        plan.apply(commit)
    return commits


def take(plan: Plan, count: int) -> list[Request]:
    return [request for _ in range(count) if (request := plan.next()) is not None]


def run_to_the_end(plan: Plan, at_once: int = 4) -> list[Commit]:
    log = []
    while not plan.done:
        requests = take(plan, at_once)
        assert requests, "nothing in flight, nothing to ask, and not done"
        log += answer(plan, requests)
    return log


def test_the_first_prompts_are_all_seeds_and_later_ones_have_two_machine_instructions(prompts: PromptSet) -> None:
    plan = make(prompts)
    first = plan.next()
    assert first is not None
    assert len(first.demonstrations) == len(set(first.demonstrations)) == 8
    assert max(first.demonstrations) < 20
    answer(plan, [first])
    while (request := plan.next()) is not None:
        if request.step == "instruction":
            machine = [index for index in request.demonstrations if index >= 20]
            assert len(request.demonstrations) == 8
            assert len(machine) == min(2, len(plan.state.pool))


def test_machine_demonstrations_do_not_always_come_first_or_last(prompts: PromptSet) -> None:
    plan = make(prompts, target=500)
    run = [c for c in run_to_the_end(plan) if c.step == "instruction"]
    places = {place for c in run for place, index in enumerate(c.demonstrations) if index >= 20}
    assert places == set(range(8))


def test_a_request_is_the_same_whatever_was_in_flight_when_it_was_asked(prompts: PromptSet) -> None:
    one, many = make(prompts, target=5000), make(prompts, target=5000)
    alone = [one.next() for _ in range(FIRST_CREATIONS)]
    assert take(many, FIRST_CREATIONS) == alone
    other_seed = make(prompts, target=5000, seed=1)
    assert take(other_seed, FIRST_CREATIONS) != alone


def test_a_few_instruction_requests_are_in_flight_until_something_is_kept(prompts: PromptSet) -> None:
    plan = make(prompts, target=5000)
    first = take(plan, 1000)
    assert len(first) == FIRST_CREATIONS
    nothing = Completion("", "stop")
    for commit in plan.judge([Answer(request, 0, nothing) for request in first]):
        plan.apply(commit)
    assert len(take(plan, 1000)) == FIRST_CREATIONS


def test_instruction_requests_in_flight_grow_with_the_pool(prompts: PromptSet) -> None:
    plan, counts = make(prompts, target=5000), []
    requests = take(plan, 1000)
    for _ in range(2):
        answer(plan, requests)
        assert plan.state.pool
        requests = []
        while (request := plan.next()) is not None:
            if request.step == "instruction":
                requests.append(request)
        counts.append(len(requests))
        assert len(requests) == max(FIRST_CREATIONS, len(plan.state.pool))
        assert all(any(index >= 20 for index in request.demonstrations) for request in requests)
    assert counts[1] > 3 * counts[0] > 3 * FIRST_CREATIONS


def test_a_method_without_machine_demonstrations_has_nothing_to_wait_for(prompts: PromptSet) -> None:
    assert len(take(make(prompts, target=5000, num_machine_instructions=0), 100)) == 100


def test_classification_only_draws_and_asks_for_classification_tasks(prompts: PromptSet) -> None:
    request = make(prompts, classification_only=True).next()
    assert request is not None
    assert set(request.demonstrations) == {0, 1, 2, 3, 4}
    assert isinstance(request.prompt, str)
    usual = make(prompts).next()
    assert usual is not None
    assert isinstance(usual.prompt, str)
    assert request.prompt[:40] != usual.prompt[:40] or "classif" in request.prompt.lower()


def test_downstream_work_goes_first_instances_before_classification(prompts: PromptSet) -> None:
    plan = make(prompts)
    answer(plan, take(plan, 1))
    second = plan.next()
    assert second is not None
    assert second.step == "classification"
    answer(plan, [second])
    third = plan.next()
    assert third is not None
    assert third.step == "instance"
    assert third.subjects == second.subjects


def test_it_asks_only_for_what_the_target_needs(prompts: PromptSet) -> None:
    plan = make(prompts, target=30)
    asked = take(plan, 1000)
    assert 3 <= len(asked) <= 30
    assert plan.next() is None
    answer(plan, asked)
    run_to_the_end(plan)
    assert plan.next() is None
    assert len(plan.state.pool) <= 60


def test_given_back_work_is_asked_again(prompts: PromptSet) -> None:
    plan = make(prompts, target=5)
    asked = take(plan, 100)
    assert plan.next() is None
    plan.give_back(asked[-1])
    assert plan.next() is not None
    answer(plan, asked[:1])
    classify = plan.next()
    assert classify is not None
    assert classify.step == "classification"
    plan.give_back(classify)
    again = plan.next()
    assert again is not None
    assert (again.step, again.subjects) == (classify.step, classify.subjects)


def test_the_batch_ends_with_the_commit_that_reaches_the_target(prompts: PromptSet) -> None:
    plan = make(prompts, target=1)
    answer(plan, take(plan, 1))
    requests = []
    for _ in range(4):
        classify = plan.next()
        assert classify is not None
        answer(plan, [classify])
        request = plan.next()
        assert request is not None
        requests.append(request)
    assert {request.step for request in requests} == {"instance"}
    commits = answer(plan, requests)
    assert len(commits) == 1
    assert plan.done
    assert plan.state.complete == 1


def test_within_a_batch_an_earlier_instruction_rejects_its_duplicate(prompts: PromptSet) -> None:
    plan = make(prompts)
    request = plan.next()
    assert request is not None
    text = " Measure the height of a walnut tree by its shadow.\n10. Name the moons of Saturn in order of size."
    twice = [Answer(request, choice, Completion(text, "stop")) for choice in range(2)]
    first, second = plan.judge(twice)
    assert isinstance(first.outcome, Created)
    assert isinstance(second.outcome, Created)
    assert [k.number for k in first.outcome.kept] == [0, 1]
    assert second.outcome.kept == ()
    assert [(r.rule, r.neighbour) for r in second.outcome.rejected] == [("similar", (20, 1.0)), ("similar", (21, 1.0))]


def test_judging_changes_nothing(prompts: PromptSet) -> None:
    plan = make(prompts)
    request = plan.next()
    assert request is not None
    answers = [Answer(request, 0, written(request))]
    assert plan.judge(answers) == plan.judge(answers)
    assert len(plan.state.pool) == 0


@pytest.mark.parametrize("cut", [0, 1, 17, 60, 10_000])
def test_a_resumed_plan_asks_and_judges_like_the_live_one(prompts: PromptSet, cut: int) -> None:
    live = make(prompts, target=40)
    log: list[Commit] = []
    while not live.done and len(log) < cut:
        log += answer(live, take(live, 1))
    resumed = make(prompts, target=40)
    resumed.resume(log)
    assert (resumed.state.complete, resumed.state.settled, len(resumed.state.pool)) == (
        live.state.complete,
        live.state.settled,
        len(live.state.pool),
    )
    assert [resumed.state.pool.state(n) for n in range(len(resumed.state.pool))] == [
        live.state.pool.state(n) for n in range(len(live.state.pool))
    ]
    assert [resumed.state.pool.text(n) for n in range(len(resumed.state.pool))] == [
        live.state.pool.text(n) for n in range(len(live.state.pool))
    ]
    asked = take(resumed, 1)
    assert asked == take(live, 1)
    answer(resumed, asked)
    run_to_the_end(resumed)
    assert resumed.state.complete == 40


def test_an_instruction_without_instances_stays_in_the_pool_but_does_not_count(prompts: PromptSet) -> None:
    plan = make(prompts)
    answer(plan, take(plan, 1))
    classify = plan.next()
    assert classify is not None
    answer(plan, [classify])
    request = plan.next()
    assert request is not None
    (subject,) = request.subjects
    (commit,) = plan.judge([Answer(request, 0, Completion("nothing of use", "stop"))])
    assert isinstance(commit.outcome, Answered)
    assert commit.outcome.instances == ()
    plan.apply(commit)
    assert plan.state.pool.state(subject) == EMPTY
    assert (plan.state.settled, plan.state.complete) == (1, 0)


def test_a_subject_is_given_up_after_some_failed_requests_and_the_run_continues(prompts: PromptSet) -> None:
    plan = make(prompts)
    answer(plan, take(plan, 1))
    subject = None
    for attempt in range(1, MAX_SUBJECT_FAILURES + 1):
        plan._ready["classification"].rotate(1 if attempt > 1 else 0)
        request = plan.next()
        assert request is not None
        assert request.step == "classification"
        assert (subject,) in ((None,), request.subjects)
        (subject,) = request.subjects
        (commit,) = plan.judge([Answer(request, 0, Failure("http_500", "down"))])
        plan.apply(commit)
    assert subject is not None
    assert plan.state.pool.state(subject) == EMPTY
    assert plan.state.settled == 1


def test_refusals_in_a_row_are_counted(prompts: PromptSet) -> None:
    plan = make(prompts)
    for expected in (1, 2):
        request = plan.next()
        assert request is not None
        for commit in plan.judge([Answer(request, 0, Failure("rejected", "bad temperature"))]):
            plan.apply(commit)
        assert (plan.state.refused, plan.state.last_refusal) == (expected, "bad temperature")
    request = plan.next()
    assert request is not None
    for commit in plan.judge([Answer(request, 0, Completion(" no\n10. no", "stop"))]):
        plan.apply(commit)
    assert plan.state.refused == 0


def test_a_prompt_that_is_too_long_gets_half_the_demonstrations_until_none_are_left(prompts: PromptSet) -> None:
    plan = make(prompts)
    request = plan.next()
    assert request is not None
    sizes = []
    shorter = request
    while (shrunk := plan.shrink(shorter)) is not None:
        shorter = shrunk
        sizes.append(len(shorter.demonstrations))
        assert len(shorter.prompt) < len(request.prompt)
        assert shorter.number == request.number
    assert sizes == [4, 2, 1]


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_the_same_completions_in_the_same_order_give_the_same_run_at_any_concurrency(
    prompts: PromptSet, at_once: int
) -> None:
    log = run_to_the_end(make(prompts, target=60), at_once=at_once)
    replayed = make(prompts, target=60)
    again: list[Commit] = []
    for commit in log:
        sampling = SAMPLING_PRESETS["default"]["instruction"]
        subjects = () if commit.subject is None else (commit.subject,)
        request = Request(commit.request, commit.step, "", sampling, subjects, commit.demonstrations)
        (judged,) = replayed.judge([Answer(request, commit.choice, commit.completion)])
        replayed.apply(judged)
        again.append(judged)
    assert again == log


def test_an_answer_far_longer_than_its_tokens_is_cut_before_it_is_judged_and_logged(prompts: PromptSet) -> None:
    plan = make(prompts)
    (request,) = take(plan, 1)
    text = " Name three rivers in Peru.\n10. " + "Sing of rain and snow. " * 30_000
    (commit,) = plan.judge([Answer(request, 0, Completion(text, "stop", 10, 20))])
    assert len(commit.completion.text) == CHARACTERS_PER_TOKEN * request.sampling.max_tokens
    assert text.startswith(commit.completion.text)
    assert isinstance(commit.outcome, Created)
    assert len(commit.outcome.kept) == 1
    assert [rejected.rule for rejected in commit.outcome.rejected] == ["unfinished"]


def test_an_output_is_judged_by_the_instruction_that_it_answers(prompts: PromptSet) -> None:
    plan = make(prompts)
    (request,) = take(plan, 1)
    (commit,) = plan.judge([Answer(request, 0, Completion(" Name three rivers in Peru.", "stop", 10, 20))])
    plan.apply(commit)
    ask = Request(7, "instance", "", request.sampling, (0,))
    (commit,) = plan.judge([Answer(ask, 0, Completion("Output: Name three rivers in Peru!", "stop", 10, 20))])
    assert isinstance(commit.outcome, Answered)
    assert commit.outcome == Answered((), ("output_repeats_instruction",))
