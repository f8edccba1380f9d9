"""The scheduler, with a scripted source and backend: what it promises, without a single real pause."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fastgen.errors import BackendUnavailable, DiskError, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.types import Answer, Completion, Failure, Request
from tests.scripted import (
    OK,
    QUICK,
    ListSource,
    Rooms,
    ScriptedBackend,
    Sink,
    SinkScheduler,
    answer_ok,
    at,
    make,
    request,
    run,
)


def test_every_request_is_answered_once_and_slots_are_full_but_never_exceeded() -> None:
    source, sink = ListSource([request(n) for n in range(100)]), Sink()
    scheduler, backend = make(answer_ok, source, sink)
    run(scheduler.run)
    assert sorted(a.request.number for a in sink.answers) == [*range(100)]
    assert backend.most_in_flight == QUICK.concurrency
    assert scheduler.statistics().in_flight == 0


def test_every_choice_of_a_completion_becomes_an_answer() -> None:
    async def two(request: Request, _attempt: int) -> tuple[Completion, ...]:
        return OK * request.n

    sink = Sink()
    run(make(two, ListSource([request(0, n=2)]), sink)[0].run)
    assert [(a.request.number, a.choice) for a in sink.answers] == [(0, 0), (0, 1)]


def test_work_that_answers_create_is_asked_before_the_run_ends() -> None:
    source = ListSource([request(0)])

    def more(answers: Sequence[Answer]) -> None:
        source.requests += [request(a.request.number + 1) for a in answers if a.request.number < 30]

    sink = Sink(on_batch=more)
    run(make(answer_ok, source, sink)[0].run)
    assert [a.request.number for a in sink.answers] == [*range(31)]


def test_a_consumer_that_ends_the_run_gives_the_rest_back() -> None:
    async def only_the_first(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number:
            await asyncio.Event().wait()
        return OK

    source, sink = ListSource([request(n) for n in range(9)]), Sink(want=1)
    run(make(only_the_first, source, sink)[0].run)
    assert [a.request.number for a in sink.answers] == [0]
    assert sorted(r.number for r in source.given_back) == [1, 2, 3, 4]


def test_transient_faults_cost_attempts_not_answers() -> None:
    async def third_time(request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt < 3:
            raise TransientError("busy", kind="http_503")
        return OK

    source, sink = ListSource([request(n) for n in range(20)]), Sink()
    scheduler, backend = make(third_time, source, sink)
    run(scheduler.run)
    assert sorted(a.request.number for a in sink.answers) == [*range(20)]
    assert set(backend.attempts.values()) == {3}
    assert scheduler.statistics().faults == {"http_503": 40}


def test_a_request_that_always_fails_on_a_live_server_is_given_up_after_max_attempts() -> None:
    async def poison(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number == 3:
            raise TransientError("boom", kind="http_500")
        return OK

    sink = Sink()
    scheduler, backend = make(poison, ListSource([request(n) for n in range(8)]), sink, replace(QUICK, max_attempts=5))
    run(scheduler.run)
    failed = [a.result for a in sink.answers if isinstance(a.result, Failure)]
    assert [f.kind for f in failed] == ["http_500"]
    assert backend.attempts[3] == 5
    assert len(sink.answers) == 8


def test_a_waiting_retry_holds_no_slot() -> None:
    async def first_waits_long(request: Request, attempt: int) -> tuple[Completion, ...]:
        if request.number == 0 and attempt == 1:
            raise TransientError("later", kind="http_429", retry_after_s=1e6)
        return OK

    source, sink = ListSource([request(n) for n in range(50)]), Sink(want=49)
    limits = replace(QUICK, concurrency=1, retry_after_cap_s=1e6)
    run(make(first_waits_long, source, sink, limits)[0].run)
    assert sorted(a.request.number for a in sink.answers) == [*range(1, 50)]
    assert [r.number for r in source.given_back] == [0]


def test_an_outage_does_not_use_up_attempts() -> None:
    async def down_for_a_while(request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt <= 30:
            raise TransientError("refused", kind="connection", reached_server=False)
        return OK

    sink = Sink()
    run(make(down_for_a_while, ListSource([request(n) for n in range(3)]), sink)[0].run)
    assert [a.result for a in sink.answers] == [OK[0]] * 3


def test_a_request_that_kills_its_connection_on_a_live_server_is_given_up() -> None:
    async def killer(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number == 0:
            await asyncio.sleep(0.001)
            raise TransientError("reset", kind="connection", reached_server=False)
        return OK

    source = ListSource([request(0)])

    def keep_going(_answers: Sequence[Answer]) -> None:
        source.requests.append(request(len(sink.answers) + 1))

    sink = Sink(on_batch=keep_going)
    scheduler, backend = make(killer, source, sink, replace(QUICK, max_attempts=3))

    async def main() -> None:
        source.requests.append(request(1))
        task = asyncio.create_task(scheduler.run())
        while not any(isinstance(a.result, Failure) for a in sink.answers):
            await asyncio.sleep(0)
        scheduler.stop()
        await task

    run(main)
    assert backend.attempts[0] == 3


def test_no_answer_for_the_outage_timeout_stops_the_run_resumable() -> None:
    async def refused(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        raise TransientError("refused", kind="connection", reached_server=False)

    source = ListSource([request(n) for n in range(100)])
    scheduler, _ = make(refused, source, Sink(), replace(QUICK, outage_timeout_s=0.02))
    with pytest.raises(BackendUnavailable, match="run the same command again"):
        run(scheduler.run)
    assert len(source.given_back) + len(source.requests) == 100
    assert len(source.requests) > 80, "an outage must not drain the source"


def test_a_rejected_request_is_recorded_once_and_never_repeated() -> None:
    async def no(request: Request, _attempt: int) -> tuple[Completion, ...]:
        raise RequestRejected("bad sampling value")

    sink = Sink()
    scheduler, backend = make(no, ListSource([request(0)]), sink)
    run(scheduler.run)
    assert [a.result for a in sink.answers] == [Failure("rejected", "bad sampling value")]
    assert backend.attempts == {0: 1}


def test_a_prompt_that_is_too_long_is_shortened_then_recorded() -> None:
    async def long(request: Request, _attempt: int) -> tuple[Completion, ...]:
        raise PromptTooLong("5000 tokens of 4096")

    sink = Sink()
    scheduler, backend = make(long, ListSource([request(0)], shorter=True), sink)
    run(scheduler.run)
    assert [a.result for a in sink.answers] == [Failure("prompt_too_long", "5000 tokens of 4096")]
    assert backend.attempts == {0: 2}


def test_stop_drains_what_is_in_flight_and_asks_nothing_more() -> None:
    release = asyncio.Event()

    async def held(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        await release.wait()
        return OK

    source, sink = ListSource([request(n) for n in range(50)]), Sink()
    scheduler, backend = make(held, source, sink)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while backend.in_flight < QUICK.concurrency:
            await asyncio.sleep(0)
        scheduler.stop()
        release.set()
        await task

    run(main)
    assert len(sink.answers) == QUICK.concurrency
    assert len(source.requests) == 50 - QUICK.concurrency


def test_stop_drops_what_does_not_finish_within_the_drain_timeout() -> None:
    async def never(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        await asyncio.Event().wait()
        return OK

    source = ListSource([request(n) for n in range(4)])
    scheduler, backend = make(never, source, Sink(), replace(QUICK, drain_timeout_s=0.001))

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while backend.in_flight < QUICK.concurrency:
            await asyncio.sleep(0)
        scheduler.stop()
        await task

    run(main)
    assert sorted(r.number for r in source.given_back) == [0, 1, 2, 3]
    assert backend.in_flight == 0


@pytest.mark.parametrize("where", ["backend", "sink"])
def test_an_error_that_the_user_must_fix_ends_the_run(where: str) -> None:
    async def refused_key(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        if where == "backend":
            raise InputError("--api-key-env: the key is refused")
        return OK

    def refuse(_answers: Sequence[Answer]) -> None:
        if where == "sink":
            raise InputError("--api-key-env: the key is refused")

    source = ListSource([request(n) for n in range(10)])
    with pytest.raises(InputError, match="the key is refused"):
        run(make(refused_key, source, Sink(on_batch=refuse))[0].run)


def test_a_slow_sink_bounds_what_is_asked() -> None:
    gate = asyncio.Event()

    class SlowSink(Sink):
        async def __call__(self, answers: Sequence[Answer]) -> bool:
            await gate.wait()
            return await super().__call__(answers)

    source, sink = ListSource([request(n) for n in range(2000)]), SlowSink()
    scheduler, _ = make(answer_ok, source, sink)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        left = -1
        while left != len(source.requests):
            left = len(source.requests)
            for _ in range(50):
                await asyncio.sleep(0)
        assert left >= 2000 - 5 * QUICK.concurrency
        gate.set()
        await task

    run(main)
    assert len(sink.answers) == 2000


def test_answers_reach_the_sink_in_order_of_arrival() -> None:
    async def later_first(request: Request, _attempt: int) -> tuple[Completion, ...]:
        for _ in range(10 - request.number):
            await asyncio.sleep(0)
        return OK

    sink = Sink()
    run(make(later_first, ListSource([request(n) for n in range(4)]), sink)[0].run)
    assert [a.request.number for a in sink.answers] == [3, 2, 1, 0]


def test_one_at_a_time_a_shortened_prompt_is_asked_again_at_once() -> None:
    async def long(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.prompt != "short":
            raise PromptTooLong("5000 tokens of 4096")
        return OK

    sink = Sink()
    source = ListSource([request(0), request(1)], shorter=True)
    run(make(long, source, sink, replace(QUICK, concurrency=1))[0].run)
    assert [(a.request.number, a.result) for a in sink.answers] == [(0, OK[0]), (1, OK[0])]


def test_one_at_a_time_the_next_request_waits_for_the_commit_of_the_last() -> None:
    source = ListSource([request(n) for n in range(5)])
    left: list[int] = []
    sink = Sink(on_batch=lambda _answers: left.append(len(source.requests)))
    run(make(answer_ok, source, sink, replace(QUICK, concurrency=1))[0].run)
    assert left == [4, 3, 2, 1, 0]


def test_errors_of_all_servers_count_against_no_request() -> None:
    """Far more errors than max_attempts on every request, until the server works."""
    storm = 12 * QUICK.max_attempts

    async def storming(_request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt <= storm:
            raise TransientError("engine dead", kind="http_500")
        return OK

    sink = Sink()
    scheduler, _ = make(storming, ListSource([request(n) for n in range(1, 6)]), sink)
    run(scheduler.run)
    assert [a.result for a in sink.answers] == [OK[0]] * 5


def test_errors_count_while_others_get_good_answers_and_no_longer_a_minute_after_the_last() -> None:
    async def poison(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number:
            raise TransientError("boom", kind="http_500")
        return OK

    def failures(alive_s: float, outage_timeout_s: float) -> list[str]:
        sink = Sink()
        limits = replace(QUICK, max_attempts=3, outage_timeout_s=outage_timeout_s, alive_s=alive_s)
        scheduler, _ = make(poison, ListSource([request(0), request(1)]), sink, limits)
        with contextlib.suppress(BackendUnavailable):
            run(scheduler.run)
        return [a.result.kind for a in sink.answers if isinstance(a.result, Failure)]

    assert failures(60.0, 600.0) == ["http_500"]
    assert failures(0.0, 0.02) == []


def test_nothing_but_errors_for_the_outage_timeout_stops_the_run_and_a_wish_for_patience_does_not() -> None:
    async def erring(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        raise TransientError("engine dead", kind="http_500")

    limits = replace(QUICK, outage_timeout_s=0.02)
    scheduler, _ = make(erring, ListSource([request(0)]), Sink(), limits)
    with pytest.raises(BackendUnavailable, match=r"no server has given a good answer .*engine dead"):
        run(scheduler.run)

    loop_times: list[float] = []

    async def busy(_request: Request, attempt: int) -> tuple[Completion, ...]:
        loop_times.append(asyncio.get_running_loop().time())
        if loop_times[-1] - loop_times[0] < 0.1:
            raise TransientError("slow down", kind="http_429", retry_after_s=0.001 if attempt % 2 else None)
        return OK

    sink = Sink()
    run(make(busy, ListSource([request(0)]), sink, limits)[0].run)
    assert [a.result for a in sink.answers] == [OK[0]]


def test_an_outage_bounds_the_requests_that_wait_for_another_attempt() -> None:
    async def refused(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        raise TransientError("refused", kind="connection", reached_server=False)

    source = ListSource([request(n) for n in range(1000)])
    limits = replace(QUICK, backoff_base_s=1e3, reconnect_cap_s=1e3)
    scheduler, _ = make(refused, source, Sink(), limits)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        for _ in range(500):
            await asyncio.sleep(0)
        assert scheduler.statistics().waiting_retries < 3 * QUICK.concurrency
        scheduler.stop()
        await task

    run(main)
    assert scheduler.statistics().waiting_retries == 0
    assert len(source.given_back) + len(source.requests) == 1000


def test_stop_before_the_run_began_ends_it_at_once() -> None:
    source, sink = ListSource([request(n) for n in range(5)]), Sink()
    scheduler, backend = make(answer_ok, source, sink)
    scheduler.stop()
    scheduler.stop()
    run(scheduler.run)
    assert backend.attempts == {}
    assert len(source.requests) == 5


@pytest.mark.parametrize("fault", [PromptTooLong("long"), TransientError("busy", kind="http_503")])
def test_while_draining_nothing_is_asked_again(fault: Exception) -> None:
    release = asyncio.Event()

    async def held(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        await release.wait()
        raise fault

    source = ListSource([request(n) for n in range(4)], shorter=True)
    scheduler, backend = make(held, source, Sink())

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while backend.in_flight < QUICK.concurrency:
            await asyncio.sleep(0)
        scheduler.stop()
        release.set()
        await task  # the drain timeout is longer than this test may take

    run(main)
    assert set(backend.attempts.values()) == {1}
    assert sorted(r.number for r in source.given_back) == [0, 1, 2, 3]


def test_a_consumer_that_is_cancelled_in_a_batch_gives_back_what_is_in_flight() -> None:
    inside = asyncio.Event()

    async def first_only(asked: Request, _attempt: int) -> tuple[Completion, ...]:
        if asked.number:
            await asyncio.Event().wait()
        return OK

    class SlowSink(Sink):
        async def __call__(self, answers: Sequence[Answer]) -> bool:
            inside.set()
            await asyncio.Event().wait()
            return await super().__call__(answers)

    source = ListSource([request(n) for n in range(3)])
    scheduler, backend = make(first_only, source, SlowSink())

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert sorted(r.number for r in source.given_back) == [1, 2]
    assert backend.in_flight == 0


# -- how many at once --------------------------------------------------------------------------------------------------


def test_a_higher_limit_is_filled_at_once_and_a_lower_one_lets_what_is_in_flight_finish() -> None:
    gate = asyncio.Semaphore(0)

    async def held(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        await gate.acquire()
        return OK

    async def settle() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    sink = Sink()
    scheduler, backend = make(
        held, ListSource([request(n) for n in range(60)]), sink, replace(QUICK, max_concurrency=30)
    )

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        await settle()
        assert backend.in_flight == 4
        scheduler.set_concurrency(1000)
        await settle()
        assert backend.in_flight == scheduler.statistics().concurrency == 30, "never above the maximum"
        scheduler.set_concurrency(10)
        await settle()
        assert backend.in_flight == 30
        for left in (25, 12, 10, 10, 10):
            for _ in range(max(backend.in_flight - left, 3)):
                gate.release()
            await settle()
            assert backend.in_flight == left
        scheduler.set_concurrency(0)
        assert scheduler.statistics().concurrency == 1
        for _ in range(100):
            gate.release()
        await task

    run(main)
    assert len(sink.answers) == 60
    assert backend.most_in_flight == 30


def test_a_limit_that_changes_all_the_time_loses_and_doubles_nothing() -> None:
    draw = random.Random(3)
    source, sink = ListSource([request(n) for n in range(400)]), Sink()

    async def now_and_then(_request: Request, attempt: int) -> tuple[Completion, ...]:
        scheduler.set_concurrency(draw.randint(1, 64))
        if attempt == 1 and draw.random() < 0.3:
            raise TransientError("busy", kind="http_503")
        return OK

    scheduler, backend = make(now_and_then, source, sink, replace(QUICK, max_concurrency=64))
    run(scheduler.run)
    assert sorted(a.request.number for a in sink.answers) == list(range(400))
    assert backend.most_in_flight <= 64


def test_a_request_for_several_completions_takes_that_many_slots() -> None:
    async def several(request: Request, _attempt: int) -> tuple[Completion, ...]:
        return OK * request.n

    sink = Sink()
    requests = [request(n, n=3) for n in range(20)]
    scheduler, backend = make(several, ListSource(requests), sink, replace(QUICK, concurrency=7))
    run(scheduler.run)
    assert len(sink.answers) == 60
    assert backend.most_in_flight == 3, "the third begins while 6 of 7 are in flight"


async def let_everything_run() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Held(Sink):
    """Takes nothing before it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()

    async def __call__(self, answers: Sequence[Answer]) -> bool:
        await self.opened.wait()
        return await super().__call__(answers)


@pytest.mark.parametrize("sequences", [2, 4, 8])
def test_all_slots_that_a_request_of_several_leaves_are_filled_at_once(sequences: int) -> None:
    """Also while its answers are still on their way through the sink."""
    go_on, end = asyncio.Event(), asyncio.Event()

    async def held(request: Request, _attempt: int) -> tuple[Completion, ...]:
        await (go_on if request.number == 0 else end).wait()
        return OK * request.n

    source, sink = ListSource([request(0, n=sequences), *(request(n) for n in range(1, 30))]), Held()
    scheduler, backend = make(held, source, sink, replace(QUICK, concurrency=8))

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        await let_everything_run()
        assert scheduler.statistics().in_flight == 8
        go_on.set()
        await let_everything_run()
        assert not sink.answers
        assert scheduler.statistics().in_flight == backend.in_flight == 8
        end.set()
        sink.opened.set()
        await task

    run(main)
    assert backend.most_in_flight == 8


def test_when_one_request_of_several_follows_another_no_more_are_in_flight_than_allowed() -> None:
    draw, now, most = random.Random(5), 0, 0

    async def counted(request: Request, _attempt: int) -> tuple[Completion, ...]:
        nonlocal now, most
        now += request.n
        most = max(most, now)
        for _ in range(draw.randrange(5)):
            await asyncio.sleep(0)
        now -= request.n
        return OK * request.n

    requests = [request(number, n=draw.choice([1, 2, 5])) for number in range(300)]
    scheduler, _ = make(counted, ListSource(list(requests)), Sink(), replace(QUICK, concurrency=7))
    run(scheduler.run)
    assert 7 <= most <= 6 + 5, "a request of 5 may begin while 6 are in flight"


def test_a_stage_that_is_no_longer_asked_for_is_given_back_and_the_rest_is_finished() -> None:
    wanted = ["instruction", "instance", "instruction"]
    source = ListSource([at(stage, number) for number, stage in enumerate(wanted)])

    def after_the_first(answers: Sequence[Answer]) -> None:
        if answers[0].request.number == 0:
            assert not scheduler.statistics().asked_for_nothing
            scheduler.stop_asking({"instruction"})

    sink = Sink(on_batch=after_the_first)
    scheduler, _ = make(answer_ok, source, sink, replace(QUICK, concurrency=1))
    run(scheduler.run)
    assert [answer.request.number for answer in sink.answers] == [0, 1]
    assert [one.number for one in source.given_back] == [2]
    assert scheduler.statistics().asked_for_nothing


def test_the_last_error_is_not_lost_behind_a_commit() -> None:
    async def broken(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number:
            await asyncio.sleep(0)
            raise InputError("--model: gone")
        return OK

    with pytest.raises(InputError, match="gone"):
        run(make(broken, ListSource([request(0), request(1)]), Sink())[0].run)


def test_an_error_cancels_the_rest_while_the_consumer_is_still_busy() -> None:
    asked: list[int] = []

    async def main() -> None:
        in_sink, let_through = asyncio.Event(), asyncio.Event()

        async def broken(request: Request, _attempt: int) -> tuple[Completion, ...]:
            asked.append(request.number)
            if request.number == 1:
                await in_sink.wait()
                raise InputError("--model: gone")
            if request.number > 1:
                await asyncio.Event().wait()
            return OK

        class Busy(Sink):
            async def __call__(self, answers: Sequence[Answer]) -> bool:
                in_sink.set()
                await let_through.wait()
                return await super().__call__(answers)

        source, sink = ListSource([request(number) for number in range(50)]), Busy()
        scheduler, backend = make(broken, source, sink)
        running = asyncio.create_task(scheduler.run())
        await in_sink.wait()
        await let_everything_run()
        assert backend.in_flight == 0
        before = len(asked)
        await let_everything_run()
        assert len(asked) == before
        let_through.set()
        with pytest.raises(InputError, match="gone"):
            await running
        assert [answer.request.number for answer in sink.answers] == [0]
        assert sorted(one.number for one in source.given_back) == sorted({*asked} - {0})

    run(main)


# -- room --------------------------------------------------------------------------------------------------------------


def test_a_request_without_room_is_not_asked_again_and_holds_up_no_other() -> None:
    async def first_fails(request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt == 1 and request.number < 4:
            raise TransientError("busy", kind="http_503")
        return OK

    early = [at("instance", 0), at("instance", 1), at("instruction", 2), at("instance", 3)]
    source = ListSource([*early, *(at("instruction", number) for number in range(4, 60))])
    sink, rooms = Sink(), Rooms(instance=0, instruction=9)
    backend = ScriptedBackend(first_fails)
    scheduler = SinkScheduler(source, backend, sink, QUICK, jitter=random.Random(1), capacity=rooms)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while len(sink.answers) < 57:
            await asyncio.sleep(0)
        assert {answer.request.number for answer in sink.answers} == {2, *range(4, 60)}
        while scheduler.statistics().in_flight:
            await asyncio.sleep(0)
        assert not task.done()
        assert scheduler.statistics().waiting_retries == 3
        rooms.places["instance"] = 9
        source.requests.append(at("instruction", 60))
        scheduler.set_concurrency(1)
        scheduler.set_concurrency(4)  # as when a governor finds more room
        await task

    run(main)
    assert len(sink.answers) == 61
    assert sorted(rooms.taken) == [0, 1, 2, 3]
    assert all(backend.attempts[number] == (2 if number < 4 else 1) for number in range(61))


def test_an_error_in_the_batch_that_is_let_through_at_the_end_is_raised() -> None:
    """The drain timeout ends the run while the sink is in the middle of a batch, which then cannot be written."""

    async def main() -> None:
        in_sink, let_through = asyncio.Event(), asyncio.Event()

        async def sink(_answers: Sequence[Answer]) -> bool:
            in_sink.set()
            await let_through.wait()
            raise DiskError("the disk is full")

        limits = replace(QUICK, concurrency=1, drain_timeout_s=0.001)
        backend = ScriptedBackend(answer_ok)
        scheduler = SinkScheduler(ListSource([request(0)]), backend, sink, limits, jitter=random.Random(1))
        running = asyncio.create_task(scheduler.run())
        await in_sink.wait()
        scheduler.stop()
        ended = scheduler._ended
        assert ended is not None
        await ended
        let_through.set()
        with pytest.raises(DiskError, match="the disk is full"):
            await running

    asyncio.run(main())
