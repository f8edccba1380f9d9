"""The controller against simulated servers, step by step in simulated time; the governor without any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.cli import app as cli
from fastgen.cli import app as option_sources
from fastgen.engine.backend import BackendStatistics, ServerMetrics, ServerState
from fastgen.engine.concurrency import ConcurrencyController, Governor, Reason
from fastgen.generate import session
from fastgen.generate.options import Options, SpeedOptions
from tests.batching_model import Batching, Loop

MAXIMUM = 4096


def loop(server: Batching, start: int = 64, **client: float) -> Loop:
    return Loop(server, ConcurrencyController(start, MAXIMUM), **client)  # type: ignore[arg-type]  # fields of Loop


# -- a server that tells its queue -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "start", "within_s"), [(256, 64, 3.0), (1024, 64, 4.0), (1024, 1, 6.0)])
def test_a_cold_server_is_full_within_seconds(slots: int, start: int, within_s: float) -> None:
    run = loop(Batching(slots), start)
    run.run(within_s)
    assert len(run.server.running) >= 0.97 * slots  # some have just ended
    assert run.controller.limit < 1.4 * slots


@pytest.mark.parametrize("slots", [32, 64, 256, 1024])
def test_in_steady_state_the_batch_is_full_and_the_queue_short_and_the_limit_rests(slots: int) -> None:
    run = loop(Batching(slots)).run(20.0)
    run.limits.clear()
    run.run(30.0)
    assert run.occupancy > 0.99
    assert run.queue_share < 0.1
    limits = [limit for _, limit in run.limits]
    assert max(limits) <= 1.1 * min(limits)
    assert run.controller.reason is Reason.FULL
    assert sum(one != two for one, two in pairwise(limits)) <= 3


def test_a_start_above_what_a_small_server_holds_drains_to_a_short_queue() -> None:
    run = loop(Batching(16), 64).run(25.0)
    assert run.controller.limit <= 18
    assert run.run(10.0).occupancy > 0.99
    assert run.queue_share <= 0.125


def test_a_server_three_times_slower_keeps_its_full_batch_and_its_limit() -> None:
    run = loop(Batching(256)).run(10.0)
    limit = run.controller.limit
    run.server.step_s *= 3
    assert run.run(10.0).occupancy > 0.99
    assert run.queue_share < 0.1
    run.server.step_s /= 3
    assert run.run(10.0).occupancy > 0.99
    assert abs(run.controller.limit - limit) <= 0.05 * limit


def test_a_server_that_shrinks_gets_its_queue_shortened_without_a_hole() -> None:
    run = loop(Batching(256)).run(10.0)
    run.server.slots = 128
    assert run.run(10.0).occupancy > 0.99
    assert run.controller.limit <= 1.1 * 128
    assert run.run(10.0).queue_share < 0.1


def test_a_server_that_grows_is_full_again_within_seconds() -> None:
    run = loop(Batching(256)).run(10.0)
    run.server.slots = 1024
    run.run(5.0)
    assert run.run(5.0).occupancy > 0.95
    assert run.run(10.0).queue_share < 0.1


def test_a_killed_server_is_full_within_seconds_of_its_return() -> None:
    run = loop(Batching(256)).run(10.0)
    run.kill()
    run.run(5.0)
    assert run.controller.reason is Reason.TAKEN_OUT
    run.server.up = True
    assert run.run(3.0).occupancy > 0.8
    assert run.run(5.0).occupancy > 0.99


def test_a_server_that_comes_and_goes_is_filled_each_time_as_fast_as_the_first() -> None:
    run = loop(Batching(256)).run(10.0)
    for _ in range(6):
        run.kill()
        run.run(1.0)
        run.server.up = True
        run.run(1.0)
        assert run.controller.limit >= 128
        assert run.run(1.0).occupancy > 0.99
    assert run.controller.limit < 2 * 256


def test_a_restart_shows_in_the_counters_and_is_followed() -> None:
    run = loop(Batching(256)).run(10.0)
    run.server.restart()
    run.server.slots, run.in_flight = 512, 0
    run.run(4.0)
    assert run.run(5.0).occupancy > 0.95


@pytest.mark.parametrize("work", [5, 40, 100])
def test_a_client_with_less_work_than_its_limit_does_not_raise_it(work: int) -> None:
    run = loop(Batching(256), 128, work=work).run(20.0)
    assert run.controller.limit == 128
    assert run.controller.reason is Reason.OWN_WORK


def test_figures_that_lag_by_half_a_second_slow_the_growth_without_oscillation() -> None:
    run = loop(Batching(512), lag_s=0.5).run(10.0)
    assert max(limit for _, limit in run.limits) < 1.6 * 512
    run.run(10.0)
    assert run.run(20.0).occupancy > 0.99
    assert run.queue_share < 0.1


def test_a_network_of_half_a_second_each_way_is_filled_too() -> None:
    run = loop(Batching(256), transit_s=0.5).run(20.0)
    assert run.run(20.0).occupancy > 0.98
    assert run.queue_share < 0.12


def test_an_engine_with_long_steps_whose_figures_lag_is_kept_busy() -> None:
    run = loop(Batching(32, step_s=0.3, mean_output_tokens=20), lag_s=0.5).run(60.0)
    assert run.run(60.0).occupancy > 0.97
    assert run.queue_share < 0.2


def test_figures_that_fail_for_a_while_change_nothing_and_for_long_leave_the_server_busy() -> None:
    run = loop(Batching(256)).run(10.0)
    limit = run.controller.limit
    run.server.tells = False
    run.run(5.0)
    assert (run.controller.limit, run.controller.reason) == (limit, Reason.NO_FIGURES)
    assert run.run(60.0).occupancy > 0.99
    assert run.controller.law == "gradient"
    run.server.tells = True
    run.run(10.0)
    assert run.controller.law == "queue"
    assert run.run(10.0).queue_share < 0.1


def test_another_client_s_queue_is_not_taken_for_our_own() -> None:
    """Of 300 sequences on a server of 256 slots only 30 are ours: our share of the queue is 4.4, not 44."""
    controller = ConcurrencyController(30, MAXIMUM)
    for beat in range(40):
        page = ServerMetrics(running=256, waiting=44, generation_tokens=1 + beat)
        controller.observe(ServerState(at_s=0.5 * beat, sequences=30, completions=10 * beat, metrics=page))
    assert controller.limit >= 25


# -- a KV cache that is too small --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_tokens", [20_000, 60_000])
def test_preemptions_are_kept_rare_and_the_throughput_near_its_best(kv_tokens: int) -> None:
    def completions(run: Loop) -> float:
        before = run.completed
        run.run(40.0)
        return run.completed - before

    def server() -> Batching:
        return Batching(512, kv_tokens=kv_tokens, prefill_s_per_token=2e-4)

    steered, flooded = loop(server()).run(20.0), loop(server(), 2048)
    flooded.controller = _Fixed(2048)
    flooded.run(20.0)
    before = steered.server.preemptions
    completed = completions(steered)
    assert completed > completions(flooded)
    assert steered.server.preemptions - before < 0.12 * completed
    assert steered.queue_share < 0.1


def test_preemptions_without_a_full_cache_are_no_thrash() -> None:
    controller = ConcurrencyController(64, MAXIMUM)
    for beat in range(40):
        page = ServerMetrics(running=60, waiting=4, preemptions=100 * beat, kv_cache_usage=0.3)
        controller.observe(ServerState(at_s=0.5 * beat, sequences=64, completions=beat, metrics=page))
    assert controller.limit == 64


class _Fixed(ConcurrencyController):
    """A limit that nothing changes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, limit)

    def observe(self, seen: ServerState) -> int:
        return self.limit


# -- a server that tells nothing ---------------------------------------------------------------------------------------


def test_without_figures_the_limit_grows_while_that_brings_throughput_and_stops_near_the_knee() -> None:
    run = loop(Batching(256, tells=False)).run(20.0)
    assert run.run(60.0).occupancy > 0.97
    assert run.controller.limit < 2 * 256
    assert run.controller.law == "gradient"


def test_without_figures_a_small_server_is_kept_busy_and_the_excess_taken_back() -> None:
    run = loop(Batching(16, tells=False)).run(120.0)
    assert run.run(30.0).occupancy > 0.97
    assert run.controller.limit <= 128


def test_without_figures_and_without_work_nothing_grows() -> None:
    run = loop(Batching(256, tells=False), 128, work=60).run(60.0)
    assert run.controller.limit == 128


@pytest.mark.parametrize("tells", [True, False])
def test_a_server_that_refuses_above_a_bound_is_held_just_below_it(tells: bool) -> None:
    run = loop(Batching(256, most_sequences=100, tells=tells)).run(20.0)
    refused, completed = run.refused, run.completed
    run.run(60.0)
    assert run.mean_running > 0.9 * 96
    assert run.refused - refused < 0.25 * (run.completed - completed)
    assert run.controller.limit < 1.3 * 100


def test_a_single_refusal_is_no_signal() -> None:
    controller = ConcurrencyController(64, MAXIMUM)
    for beat in range(20):
        controller.observe(ServerState(at_s=0.5 * beat, sequences=64, refused=int(beat > 3)))
    assert controller.limit == 64


def test_a_server_whose_figures_show_nothing_of_what_is_in_flight_is_steered_by_throughput() -> None:
    """All the time goes to the network: nothing ever runs or waits when the server is looked at."""
    controller = ConcurrencyController(64, MAXIMUM)
    completed = 0
    for beat in range(400):
        completed += controller.limit // 4
        seen = ServerState(at_s=0.25 * beat, sequences=controller.limit, completions=completed, metrics=ServerMetrics())
        controller.observe(seen)
    assert controller.law == "gradient"
    assert controller.limit > 256


# -- always ------------------------------------------------------------------------------------------------------------

PAGES = st.none() | st.builds(
    ServerMetrics,
    running=st.integers(0, 5000),
    waiting=st.integers(0, 5000),
    kv_cache_usage=st.floats(0, 1),
    preemptions=st.integers(0, 10**6),
    generation_tokens=st.integers(0, 10**9),
)
BEATS = st.lists(
    st.tuples(st.floats(0, 100), st.integers(0, 5000), st.integers(0, 500), st.integers(0, 50), st.booleans(), PAGES),
    max_size=60,
)


@given(BEATS, st.integers(1, 5000), st.integers(1, 5000))
def test_whatever_is_seen_the_limit_stays_within_its_bounds_and_the_same_is_decided_again(
    beats: list[tuple[float, int, int, int, bool, ServerMetrics | None]], initial: int, maximum: int
) -> None:
    def decide() -> list[tuple[int, Reason]]:
        controller = ConcurrencyController(initial, maximum)
        now_s, completed, refused, decided = 0.0, 0, 0, []
        for pause_s, in_flight, more, no_more, healthy, page in beats:
            now_s, completed, refused = now_s + pause_s, completed + more, refused + no_more
            seen = ServerState(
                at_s=now_s,
                healthy=healthy,
                sequences=in_flight,
                completions=completed,
                refused=refused,
                generated_tokens=10 * completed,
                metrics=page,
            )
            decided.append((controller.observe(seen), controller.reason))
        return decided

    decided = decide()
    assert all(1 <= limit <= maximum for limit, _ in decided)
    assert decided == decide()


def test_the_maximum_is_never_exceeded_and_named_as_the_reason() -> None:
    run = Loop(Batching(1024), ConcurrencyController(64, 300)).run(10.0)
    assert max(limit for _, limit in run.limits) == 300
    assert run.controller.reason is Reason.AT_MAXIMUM


# -- the governor ------------------------------------------------------------------------------------------------------


class Servers:
    """Servers whose state a test sets by hand."""

    def __init__(self, *pages: ServerMetrics | None) -> None:
        self.pages = list(pages)
        self.sequences = [0] * len(pages)
        self.healthy = [True] * len(pages)
        self.limits: list[int] = []
        self.asked = [0] * len(pages)

    class _Server:
        def __init__(self, servers: Servers, number: int) -> None:
            self._servers, self._number = servers, number

        async def metrics(self) -> ServerMetrics | None:
            self._servers.asked[self._number] += 1
            return self._servers.pages[self._number]

    @property
    def backends(self) -> Sequence[Servers._Server]:
        return [self._Server(self, number) for number in range(len(self.pages))]

    def set_limits(self, limits: Sequence[int]) -> None:
        self.limits = list(limits)

    def statistics(self) -> BackendStatistics:
        return BackendStatistics(
            tuple(
                ServerState(f"http://server-{number}", healthy, sequences, sequences)
                for number, (sequences, healthy) in enumerate(zip(self.sequences, self.healthy, strict=True))
            )
        )


def governed(servers: Servers, initial: Sequence[int]) -> tuple[Governor, list[int], list[float]]:
    totals: list[int] = []
    now_s = [0.0]
    return Governor(servers, totals.append, initial=initial, maximum=512, clock=lambda: now_s[0]), totals, now_s


def test_the_total_is_the_sum_of_the_limits_and_a_server_that_is_out_counts_with_what_it_still_holds() -> None:
    servers = Servers(None, None)
    governor, totals, _ = governed(servers, [64, 32])
    assert (totals[-1], servers.limits) == (96, [64, 32])
    servers.sequences, servers.healthy = [64, 32], [True, False]
    governor.observe(1)
    assert totals[-1] == 64 + 32
    servers.sequences = [64, 0]
    governor.observe(1)
    assert totals[-1] == 64
    servers.healthy = [False, False]
    servers.sequences = [0, 0]
    governor.observe(0)
    assert totals[-1] == 1, "one server must be probed to find out when they are back"


def test_what_drains_from_one_server_takes_no_slots_from_another_for_a_while() -> None:
    servers = Servers(ServerMetrics(running=50, waiting=150), ServerMetrics(running=95, waiting=5))
    governor, totals, now_s = governed(servers, [200, 100])
    governor._pages[:] = servers.pages
    servers.sequences = [200, 100]
    for _ in range(3):
        now_s[0] += 0.25
        governor.observe(0)
        governor.observe(1)
    limit = servers.limits[0]
    assert limit < 60
    assert totals[-1] == 200 + 100
    for _ in range(30):
        now_s[0] += 0.25
        governor.observe(0)
    assert totals[-1] == servers.limits[0] + 100


def test_with_a_single_server_the_total_is_its_limit_at_once() -> None:
    servers = Servers(ServerMetrics(running=50, waiting=150))
    governor, totals, now_s = governed(servers, [200])
    governor._pages[:] = servers.pages
    servers.sequences = [200]
    for _ in range(3):
        now_s[0] += 0.25
        governor.observe(0)
    assert totals[-1] == servers.limits[0] < 60


def test_the_statistics_say_for_each_server_what_it_may_and_why() -> None:
    servers = Servers(ServerMetrics(running=60, waiting=4, kv_cache_usage=0.5), None)
    governor, _, now_s = governed(servers, [64, 64])
    governor._pages[:] = servers.pages
    servers.sequences = [64, 10]
    for number in range(2):
        now_s[0] += 0.25
        governor.observe(number)
    one, two = governor.states()
    assert (one.url, one.limit, one.sequences, one.reason) == ("http://server-0", 64, 64, "the server is full")
    assert (one.metrics, two.metrics, governor.total) == (servers.pages[0], None, 128)
    assert [controller.law for controller in governor.controllers] == ["queue", "gradient"]


def govern_for(
    monkeypatch: pytest.MonkeyPatch, servers: Servers, seconds: float, each_s: Callable[[float], None] | None = None
) -> None:
    """Let a governor of one server run on a clock that only its own pauses move."""
    governor, _, now_s = governed(servers, [64])
    real_sleep = asyncio.sleep

    async def sleep(delay_s: float) -> None:
        now_s[0] += delay_s
        if each_s is not None:
            each_s(now_s[0])
        await real_sleep(0)

    async def main() -> None:
        task = asyncio.create_task(governor.run())
        while now_s[0] < seconds:
            await real_sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    monkeypatch.setattr("fastgen.engine.concurrency.asyncio.sleep", sleep)
    asyncio.run(main())


def test_a_server_without_a_metrics_page_is_not_asked_for_it_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(None)
    govern_for(monkeypatch, servers, 60.0)
    assert servers.asked[0] <= 4 + 60 / 15


@pytest.mark.parametrize("told_before", [True, False])
def test_a_server_that_was_away_is_asked_for_its_figures_at_once(
    monkeypatch: pytest.MonkeyPatch, told_before: bool
) -> None:
    page = ServerMetrics(running=60, waiting=4)
    servers = Servers(page if told_before else None)
    asked: dict[str, int] = {}

    def away_for_a_while(now_s: float) -> None:
        if now_s < 20.0:
            servers.pages[0], servers.healthy[0] = (None, False) if now_s > 5.0 or not told_before else (page, True)
            asked["away"] = servers.asked[0]
        else:
            servers.pages[0], servers.healthy[0] = page, True
            asked.setdefault("back", servers.asked[0])

    govern_for(monkeypatch, servers, 21.0, away_for_a_while)
    assert asked["back"] - asked["away"] <= 1
    assert servers.asked[0] > asked["back"]


# -- the options -------------------------------------------------------------------------------------------------------


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> SpeedOptions | None:
    """What `generate` would run with; ``None`` where it refuses."""
    seen: list[Options] = []

    def catch(_place: object, options: Options) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(session, "run", catch)
    return seen[0].speed if cli.run(["generate", *arguments]) == 0 else None


@pytest.mark.parametrize(("given", "meant"), [((), "auto"), (("auto",), "auto"), (("48",), 48)])
def test_concurrency_is_auto_or_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: tuple[str, ...], meant: object
) -> None:
    flags = ("--concurrency", *given) if given else ()
    speed = parsed(monkeypatch, "--run-dir", str(tmp_path), *flags)
    assert speed is not None
    assert speed.concurrency == meant


@pytest.mark.parametrize(
    "flags",
    [
        ("--concurrency", "0"),
        ("--concurrency", "many"),
        ("--max-concurrency", "0"),
        ("--requests-per-minute", "0"),
        ("--tokens-per-minute", "-1"),
    ],
)
def test_invalid_limits_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    assert parsed(monkeypatch, "--run-dir", str(tmp_path), *flags) is None
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert flags[0] in lines[0]


@pytest.mark.parametrize("remembered", [{"concurrency": 32}, {"concurrency": "auto"}, {}])
def test_concurrency_options_saved_in_run_folders_still_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remembered: dict[str, object]
) -> None:
    monkeypatch.setattr(option_sources, "saved_options", lambda _run_dir: remembered)
    speed = parsed(monkeypatch, "--run-dir", str(tmp_path))
    assert speed is not None
    assert speed.concurrency == remembered.get("concurrency", "auto")
