"""The scheduler, with a scripted source and backend: what it promises, without a single real pause."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from fastgen.backends import BackendStatistics
from fastgen.errors import BackendUnavailable, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.rate_limits import RateLimits, RateStatistics
from fastgen.records import Answer, Completion, Failure, Request, Sampling, Stage
from fastgen.scheduler import Limits, Scheduler

Behaviour = Callable[[Request, int], Awaitable[tuple[Completion, ...]]]
OK = (Completion("ok", "stop"),)
QUICK = Limits(concurrency=4, backoff_base_s=0.0005, backoff_cap_s=0.001, reconnect_cap_s=0.001, drain_timeout_s=30.0)


def request(number: int, n: int = 1) -> Request:
    return Request(number, Stage.INSTRUCTION, f"prompt {number}", Sampling(0.7, 0.5, 16), n=n)


@dataclass
class ListSource:
    """Hands out a list of requests; work that was given back is handed out again."""

    requests: list[Request]
    given_back: list[Request] = field(default_factory=list)
    shorter: bool = False

    def next(self) -> Request | None:
        return self.requests.pop(0) if self.requests else None

    def give_back(self, request: Request) -> None:
        self.given_back.append(request)

    def shrink(self, request: Request) -> Request | None:
        return replace(request, prompt="short") if self.shorter and request.prompt != "short" else None


class ScriptedBackend:
    """Answers as told; counts what is in flight at once and every attempt."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.attempts: dict[int, int] = {}
        self.in_flight = self.most_in_flight = 0

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        attempt = self.attempts[request.number] = self.attempts.get(request.number, 0) + 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            return await self.behaviour(request, attempt)
        finally:
            self.in_flight -= 1

    async def close(self) -> None: ...

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(())


class Sink:
    """Collects answers; done after ``want`` of them; optionally makes more work for the source."""

    def __init__(self, want: int = 10**9, on_batch: Callable[[Sequence[Answer]], None] | None = None) -> None:
        self.answers: list[Answer] = []
        self.batches: list[int] = []
        self._want = want
        self._on_batch = on_batch

    async def __call__(self, answers: Sequence[Answer]) -> bool:
        await asyncio.sleep(0)
        self.answers += answers
        self.batches.append(len(answers))
        if self._on_batch:
            self._on_batch(answers)
        return len(self.answers) >= self._want


def make(
    behaviour: Behaviour, source: ListSource, sink: Sink, limits: Limits = QUICK
) -> tuple[Scheduler, ScriptedBackend]:
    backend = ScriptedBackend(behaviour)
    return Scheduler(source, backend, sink, limits, jitter=random.Random(1)), backend


async def answer_ok(_request: Request, _attempt: int) -> tuple[Completion, ...]:
    return OK


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(bounded())


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


def test_a_satisfied_sink_ends_the_run_and_the_rest_is_given_back() -> None:
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
def test_an_error_that_a_person_must_mend_ends_the_run(where: str) -> None:
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
        assert left > 1500
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


def test_a_storm_of_errors_blames_no_request() -> None:
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


def test_errors_count_while_others_get_good_answers_and_no_longer_a_minute_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def poison(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number:
            raise TransientError("boom", kind="http_500")
        return OK

    def failures(alive_s: float, outage_timeout_s: float) -> list[str]:
        monkeypatch.setattr("fastgen.scheduler._ALIVE_S", alive_s)
        sink = Sink()
        limits = replace(QUICK, max_attempts=3, outage_timeout_s=outage_timeout_s)
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


def test_the_server_s_wish_is_obeyed_up_to_a_bound_and_back_off_grows_with_jitter() -> None:
    scheduler, _ = make(answer_ok, ListSource([]), Sink(), Limits(concurrency=1))
    plain = TransientError("", kind="http_500")
    for tries, ceiling_s in ((1, 0.5), (2, 1.0), (5, 8.0), (50, 30.0)):
        delays = [scheduler._delay_s(tries, plain) for _ in range(200)]
        assert 0.1 * ceiling_s <= min(delays) < 0.3 * ceiling_s
        assert 0.8 * ceiling_s < max(delays) <= ceiling_s
    refused = TransientError("", kind="connection", reached_server=False)
    assert max(scheduler._delay_s(50, refused) for _ in range(50)) <= 5.0
    asked = TransientError("", kind="http_429", retry_after_s=7.0)
    assert scheduler._delay_s(1, asked) == 7.0
    asked = TransientError("", kind="http_429", retry_after_s=1e6)
    assert scheduler._delay_s(1, asked) == 300.0


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


def test_a_process_that_slept_has_seen_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by an hour between a first fault and the next, as when the process was stopped."""
    scheduler, _ = make(answer_ok, ListSource([]), Sink(), Limits(concurrency=1, outage_timeout_s=600.0))
    fault = TransientError("refused", kind="connection", reached_server=False)
    now_s = 1000.0

    async def main() -> None:
        nonlocal now_s
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: now_s)
        scheduler._beat()
        scheduler._note_fault(fault)
        for slept_s in (1.0, 3600.0, 1.0, 1.0):
            now_s += slept_s
            scheduler._beat()
            scheduler._note_fault(fault)
        now_s += 601.0
        with pytest.raises(BackendUnavailable):
            scheduler._note_fault(fault)
        monkeypatch.undo()

    run(main)


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


def test_cancelling_the_run_lets_a_batch_through_that_the_sink_is_in_the_middle_of() -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    class SlowSink(Sink):
        async def __call__(self, answers: Sequence[Answer]) -> bool:
            inside.set()
            await go_on.wait()
            return await super().__call__(answers)

    sink = SlowSink()
    scheduler, _ = make(answer_ok, ListSource([request(n) for n in range(3)]), sink)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    assert len(sink.answers) >= 1


def test_a_good_answer_now_and_then_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, _ = make(answer_ok, ListSource([]), Sink(), Limits(concurrency=1, outage_timeout_s=600.0))
    fault = TransientError("refused", kind="connection", reached_server=False)

    async def main() -> None:
        times_s = iter([0.0, 500.0, 1000.0, 1500.0, 1600.0, 2199.0, 2200.0])
        now_s = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
        for now_s in times_s:
            if now_s == 2200.0:
                with pytest.raises(BackendUnavailable):
                    scheduler._note_fault(fault)
                break
            scheduler._note_fault(fault)
            if now_s <= 1500.0:
                scheduler._saw_answer()
        monkeypatch.undo()

    run(main)


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


def test_a_limit_that_moves_all_the_time_loses_and_doubles_nothing() -> None:
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


def test_a_request_for_several_completions_counts_as_so_many() -> None:
    async def several(request: Request, _attempt: int) -> tuple[Completion, ...]:
        return OK * request.n

    sink = Sink()
    requests = [request(n, n=3) for n in range(20)]
    scheduler, backend = make(several, ListSource(requests), sink, replace(QUICK, concurrency=7))
    run(scheduler.run)
    assert len(sink.answers) == 60
    assert backend.most_in_flight == 3, "the third begins while 6 of 7 are in flight"


def test_the_last_error_is_not_lost_behind_a_commit() -> None:
    async def broken(request: Request, _attempt: int) -> tuple[Completion, ...]:
        if request.number:
            await asyncio.sleep(0)
            raise InputError("--model: gone")
        return OK

    with pytest.raises(InputError, match="gone"):
        run(make(broken, ListSource([request(0), request(1)]), Sink())[0].run)


# -- rate limits -------------------------------------------------------------------------------------------------------


class Clock:
    """The loop's time, which jumps to the next timer whenever nothing else can run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self._timers: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._monkeypatch = monkeypatch

    async def run(self, main: Awaitable[None]) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(main)
        with self._monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: self.now_s)
            patch.setattr(loop, "call_later", self._call_later)
            while not task.done():
                for _ in range(20):
                    await asyncio.sleep(0)
                if self._timers and not task.done():
                    self._timers.sort(key=lambda timer: timer[:2])
                    at_s, _, callback, arguments = self._timers.pop(0)
                    self.now_s = max(self.now_s, at_s)
                    callback(*arguments)
        await task

    def _call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> _Handle:
        timer = (self.now_s + delay_s, len(self._timers), callback, arguments)
        self._timers.append(timer)
        return _Handle(lambda: self._timers.remove(timer) if timer in self._timers else None)


class _Handle:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


def rated(
    monkeypatch: pytest.MonkeyPatch, count: int, rates: RateLimits, behaviour: Behaviour = answer_ok
) -> tuple[list[float], Scheduler, Sink]:
    """Run ``count`` requests on a clock that jumps; when each attempt began, from 0."""
    began_s: list[float] = []

    async def noting(request: Request, attempt: int) -> tuple[Completion, ...]:
        began_s.append(clock.now_s - 1000.0)
        return await behaviour(request, attempt)

    clock, sink = Clock(monkeypatch), Sink()
    source, backend = ListSource([request(n) for n in range(count)]), ScriptedBackend(noting)
    limits = Limits(concurrency=8, max_attempts=10**6)
    scheduler = Scheduler(source, backend, sink, limits, jitter=random.Random(1), rates=rates)

    async def main() -> None:
        await clock.run(scheduler.run())

    run(main)
    return began_s, scheduler, sink


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600, 6000])
def test_no_minute_holds_more_requests_than_allowed_and_they_are_evenly_spread(
    monkeypatch: pytest.MonkeyPatch, per_minute: int
) -> None:
    count = min(3 * per_minute, 1500)
    began_s, _, sink = rated(monkeypatch, count, RateLimits(per_minute))
    assert len(sink.answers) == len(began_s) == count
    for first, start_s in enumerate(began_s):
        assert sum(start_s <= later_s < start_s + 60.0 - 1e-6 for later_s in began_s[first:]) <= per_minute
    assert began_s[-1] <= 1.01 * (count - 1) * 60.0 / per_minute + 1e-6
    gaps = [later - earlier for earlier, later in pairwise(began_s[10:])]
    assert all(gap <= 2.5 * 60.0 / per_minute for gap in gaps)


def test_another_attempt_counts_as_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(_request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt == 1:
            raise TransientError("busy", kind="http_503")
        return OK

    began_s, _, sink = rated(monkeypatch, 30, RateLimits(60), twice)
    assert len(began_s) == 60
    assert len(sink.answers) == 30
    assert began_s[-1] >= 58.0


def test_tokens_are_charged_by_what_was_used_and_the_estimate_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each uses 50 tokens, not the 18 that prompt and max_tokens of these requests promise: 10 a second fit 30,000."""

    async def fifty(_request: Request, _attempt: int) -> tuple[Completion, ...]:
        return (Completion("ok", "stop", 40, 10),)

    began_s, _, _ = rated(monkeypatch, 400, RateLimits(tokens_per_minute=30_000), fifty)
    assert 0.9 * 40.0 <= began_s[-1] <= 1.1 * 40.0
    late = [at_s for at_s in began_s if at_s >= 10.0]
    for start_s in range(10, 35):
        assert 8 <= sum(start_s <= at_s < start_s + 1 for at_s in late) <= 12


def test_a_refused_request_costs_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused_at_first(_request: Request, attempt: int) -> tuple[Completion, ...]:
        if attempt <= 3:
            raise TransientError("busy", kind="http_429")
        return (Completion("ok", "stop", 30, 20),)

    began_s, _, sink = rated(monkeypatch, 60, RateLimits(tokens_per_minute=3000), refused_at_first)
    assert len(sink.answers) == 60
    assert began_s[-1] <= 75.0, "60 times 50 tokens are one minute's"


def test_the_rate_limit_that_binds_is_named_and_its_time_counted() -> None:
    rates = RateLimits(60, 1_000_000)
    assert rates.statistics(0.0) == RateStatistics(None, 0.0)
    rates.began(0.0, request(0))
    assert rates.wait_s(0.5) == pytest.approx(0.5)
    assert rates.statistics(0.75) == RateStatistics("--requests-per-minute", 0.25)
    assert rates.wait_s(1.0) == 0.0
    assert rates.statistics(5.0) == RateStatistics(None, 0.5)


def test_stop_does_not_wait_for_a_rate_limit() -> None:
    rates = RateLimits(1)
    source, sink = ListSource([request(n) for n in range(3)]), Sink()
    scheduler = Scheduler(source, ScriptedBackend(answer_ok), sink, QUICK, jitter=random.Random(1), rates=rates)

    async def main() -> None:
        task = asyncio.create_task(scheduler.run())
        while not sink.answers:
            await asyncio.sleep(0)
        assert not task.done()
        assert scheduler.statistics().rate_limit == "--requests-per-minute"
        scheduler.stop()
        await task

    run(main)
    assert len(sink.answers) == 1
    assert len(source.requests) == 2
