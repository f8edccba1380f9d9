"""The simulated engine on its clocks, its script, its pages, and the command line that starts it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest

from benchmarks.saturation import recovered_after_s, window
from fastgen.engine.backend import parse_metrics
from fastgen.errors import InputError
from fastgen.simulator.__main__ import main
from fastgen.simulator.batching import ENGINES, EngineModel, Timeline, ideal_tokens_per_s
from fastgen.simulator.engine import LoopClock, SimulatedEngine, VirtualClock, Work
from fastgen.simulator.faults import Change, Fault, read_change, read_timed
from fastgen.simulator.server import FaultServer

GUARD_S = 20.0
TEXT = "What does a gardener do in the autumn before the first frost comes? " * 8
MODEL = EngineModel(max_num_seqs=8, kv_blocks=4000, max_model_len=4096, base_s=0.01)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; a hang is a failure, not a stuck suite."""
    asyncio.run(asyncio.wait_for(test, GUARD_S))


class ClosedLoop:
    """Clients in virtual time; each asks again as soon as it is answered."""

    def __init__(self, engine: SimulatedEngine, seed: int = 0) -> None:
        self.engine = engine
        self.answered = 0
        self._draw = random.Random(seed)

    def ask(self) -> None:
        work = Work(200, (self._draw.randint(10, 200),))
        self.engine.submit(work, self._answer)

    def _answer(self) -> None:
        self.answered += 1
        self.ask()


# -- virtual time ------------------------------------------------------------------------------------------------------


def test_virtual_time_passes_only_in_run_and_calls_come_in_order() -> None:
    clock, seen = VirtualClock(), list[tuple[str, float]]()

    def saw(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, clock.now_s()))

    clock.call_at(2.0, saw("late"))
    clock.call_at(1.0, saw("first"))
    clock.call_at(1.0, saw("second"))
    clock.call_at(1.5, saw("cancelled"))()
    clock.run_until(1.75)
    assert (seen, clock.now_s()) == ([("first", 1.0), ("second", 1.0)], 1.75)
    clock.run()
    assert seen[-1] == ("late", 2.0)


def test_work_is_done_once_when_its_last_sequence_is() -> None:
    clock, done = VirtualClock(), list[float]()
    engine = SimulatedEngine(MODEL, clock)
    engine.submit(Work(10, (1, 20, 5)), lambda: done.append(clock.now_s()))
    assert (engine.load().running, engine.load().waiting) == (3, 0)
    clock.run()
    assert len(done) == 1
    assert done[0] == pytest.approx(20 * MODEL.base_s, rel=0.05)
    assert engine.load().running == 0
    assert engine.counts().generation_tokens == 26


def test_cancelled_work_is_never_done_and_its_seats_are_free() -> None:
    clock, done = VirtualClock(), list[int]()
    engine = SimulatedEngine(replace(MODEL, max_num_seqs=1), clock)
    cancel = engine.submit(Work(10, (500, 500)), pytest.fail)
    engine.submit(Work(10, (1,)), lambda: done.append(1))
    clock.run_until(1.0)
    cancel()
    cancel()
    clock.run()
    assert (done, engine.load().kv_cache_usage) == ([1], 0.0)


def test_a_client_with_a_queue_reaches_the_ideal_and_one_with_half_a_batch_cannot() -> None:
    def share(clients: int) -> tuple[float, float, float]:
        clock = VirtualClock()
        engine = SimulatedEngine(ENGINES["h100-8b"], clock)
        loop = ClosedLoop(engine)
        for _ in range(clients):
            loop.ask()
        clock.run_until(60.0)
        timeline = engine.timeline()
        assert timeline is not None
        ideal = ideal_tokens_per_s(engine.model, engine.lengths(20.0, 60.0))
        seen = window(timeline.as_dict(), 20.0, 60.0, ideal)
        return seen.tokens_per_s / ideal, seen.saturation, seen.queue

    reached, saturation, queue = share(276)
    assert reached == pytest.approx(1.0, abs=0.02)
    assert saturation == pytest.approx(1.0, abs=0.01)
    assert queue == pytest.approx(20 / 256, abs=0.03)
    reached, saturation, queue = share(128)
    assert 0.6 < reached < 0.9
    assert saturation == pytest.approx(reached, abs=0.04)
    assert queue < 0.02


def test_the_same_requests_give_the_same_history() -> None:
    def history() -> tuple[int, list[float]]:
        clock = VirtualClock()
        engine = SimulatedEngine(MODEL, clock)
        loop = ClosedLoop(engine, seed=3)
        for _ in range(12):
            loop.ask()
        clock.run_until(30.0)
        timeline = engine.timeline()
        assert timeline is not None
        return loop.answered, timeline.tokens

    assert history() == history()


def test_a_reset_loses_everything_but_its_history() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(MODEL, clock)
    engine.submit(Work(10, (100,)), pytest.fail)
    clock.run_until(1.0)
    engine.reset()
    assert engine.load().running == engine.counts().generation_tokens == 0
    clock.run_until(3.0)
    engine.submit(Work(10, (50,)), lambda: None)
    clock.run_until(4.9)
    timeline = engine.timeline()
    assert timeline is not None
    assert [round(running) for running in timeline.running] == [1, 0, 0, 1, 0]
    assert (engine.now_s(), engine.started_s) == (4.9, 0.0)


def test_prompts_that_share_a_beginning_hit_the_prefix_cache() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(MODEL, clock)
    for tail in ("one", "two"):
        engine.submit(Work(300, (4, 4), (TEXT + tail, TEXT + tail)), lambda: None)
        clock.run()
    counted = engine.counts()
    whole_blocks = len(TEXT) // 64 * 16
    assert counted.prefix_hits_tokens == 3 * whole_blocks
    assert counted.prompt_tokens == counted.prefix_queries_tokens == 4 * (len(TEXT + "one") // 4 + 1)
    off = SimulatedEngine(replace(MODEL, prefix_caching=False), clock)
    off.submit(Work(300, (4, 4), (TEXT, TEXT)), lambda: None)
    clock.run()
    assert off.counts().prefix_hits_tokens == 0


def test_a_timeline_divides_what_spans_several_seconds() -> None:
    timeline = Timeline(10.0)
    timeline.reach(13.5, 8)
    timeline.spread(timeline.tokens, 30.0, 10.5, 13.5)
    timeline.spread(timeline.tokens, 5.0, 11.1, 11.2)
    assert timeline.tokens == pytest.approx([5.0, 15.0, 10.0, 5.0])
    assert timeline.capacity == [8, 8, 8, 8]


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_line_is_a_time_and_what_changes() -> None:
    assert read_timed("20:slow=3") == (20.0, Change(slow=3.0))
    assert read_change("stop=5,max-num-seqs=12,kv-blocks=9") == Change(stop_s=5.0, max_num_seqs=12, kv_blocks=9)
    assert read_change("fault-rate=0.5,faults=reset+500").faults == (Fault.RESET, Fault.SERVER_ERROR)


@pytest.mark.parametrize(
    "text",
    ["slow=3", "x:slow=3", "-1:slow=3", "1:slow=0", "1:stop=inf", "1:max-num-seqs=0", "1:faults=fire", "1:fly=1"],
)
def test_a_bad_script_line_is_refused_in_one_line_that_quotes_it(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text))) as error:
        read_timed(text)
    assert "\n" not in str(error.value)


# -- a server on it ----------------------------------------------------------------------------------------------------


async def post(server: FaultServer, route: str, body: object) -> tuple[int, Any]:
    url = server.base_url.removesuffix("/v1") + route
    async with aiohttp.ClientSession() as session, session.post(url, data=orjson.dumps(body)) as response:
        return response.status, orjson.loads(await response.read())


async def get(server: FaultServer, route: str) -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.get(server.base_url.removesuffix("/v1") + route) as response,
    ):
        return await response.read()


def simulated(*schedule: tuple[float, Change], speed: float = 1000.0, model: EngineModel = MODEL) -> FaultServer:
    engine = SimulatedEngine(model, LoopClock(speed))
    return FaultServer(engine=engine, max_model_len=model.max_model_len, schedule=schedule)


def ask(server: FaultServer, **more: object) -> Coroutine[Any, Any, tuple[int, Any]]:
    return post(server, "/v1/completions", {"model": "test-model-base", "prompt": TEXT, "max_tokens": 400} | more)


def test_the_page_of_metrics_has_vllms_names_and_the_engines_figures() -> None:
    async def test() -> None:
        server = simulated()
        async with server:
            _, answer = await ask(server, n=2)
            page = await get(server, "/metrics")
            read = parse_metrics(page)
            assert read is not None
            assert read.generation_tokens == answer["usage"]["completion_tokens"]
            assert (read.running, read.waiting, read.preemptions) == (0, 0, 0)
            assert read.prefix_hits_tokens * 2 == pytest.approx(read.prefix_queries_tokens, rel=0.1)
            text = page.decode()
            assert re.search(r'^vllm:request_success_total\{.*finished_reason="stop".*\} 2\.0$', text, re.MULTILINE)
            assert re.search(r'^vllm:cache_config_info\{block_size="16".*num_gpu_blocks="4000"', text, re.MULTILINE)
            for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
                assert re.search(rf'^vllm:{name}_seconds_bucket\{{.*le="\+Inf".*\}} 2\.0$', text, re.MULTILINE)
                assert re.search(rf"^vllm:{name}_seconds_count\{{.*\}} 2\.0$", text, re.MULTILINE)

    run(test())


def test_every_line_of_the_page_is_prometheus_text() -> None:
    async def test() -> None:
        server = simulated()
        async with server:
            await ask(server)
            line = re.compile(r'vllm:\w+\{(\w+="[^"]*",?)+\} [0-9.e+-]+|# (HELP|TYPE) vllm:\w+ .+')
            page = (await get(server, "/metrics")).decode()
            assert [text for text in page.splitlines() if not line.fullmatch(text)] == []

    run(test())


def test_stats_give_every_second_and_the_ideal_can_be_computed() -> None:
    async def test() -> None:
        server = simulated(speed=200.0)
        async with server:
            assert (await post(server, "/sim/ideal", {}))[0] == 400  # of nothing
            await asyncio.gather(*(ask(server, n=4) for _ in range(8)))
            stats = json.loads(await get(server, "/sim/stats"))
            assert sum(stats["seconds"]["tokens"]) == pytest.approx(stats["counters"]["generation_tokens"])
            assert max(stats["seconds"]["running"]) <= 8
            assert (stats["requests"], stats["sequences"], stats["model"]["max_num_seqs"]) == (8, 32, 8)
            assert stats["cpu_s"] > 0
            status, ideal = await post(server, "/sim/ideal", {"from_s": 0, "to_s": 1e9})
            assert (status, ideal["sequences"]) == (200, 32)
            assert ideal["tokens_per_s"] > 100

    run(test())


def test_a_change_on_command_changes_the_engine_and_a_bad_one_is_refused() -> None:
    async def test() -> None:
        server = simulated()
        async with server:
            assert (await post(server, "/sim/change", {"change": "slow=2,max-num-seqs=4"}))[0] == 200
            stats = json.loads(await get(server, "/sim/stats"))
            assert (stats["model"]["slowdown"], stats["model"]["max_num_seqs"]) == (2.0, 4)
            assert (await post(server, "/sim/change", {"change": "fault-rate=1,faults=500"}))[0] == 200
            assert (await ask(server))[0] == 500
            refused: list[object] = [{"change": "kv-blocks=1"}, {"change": "fly=1"}, {}, []]
            for bad in refused:
                assert (await post(server, "/sim/change", bad))[0] == 400

    run(test())


def test_a_script_that_stops_the_server_loses_its_state_and_brings_it_back_on_the_same_port() -> None:
    async def test() -> None:
        server = simulated((0.5, Change(stop_s=20.0)))
        async with server:
            url = server.base_url
            with pytest.raises(aiohttp.ClientError):
                await ask(server, prompt=TEXT * 8, max_tokens=1000, n=100)  # longer than half a simulated second
            await server.until(lambda: server.counters.open_connections == 0)
            while True:
                try:
                    status, _ = await ask(server)
                    break
                except aiohttp.ClientConnectorError:
                    continue
            assert (status, server.base_url) == (200, url)
            stats = json.loads(await get(server, "/sim/stats"))
            assert stats["now_s"] > 20.5
            assert stats["counters"]["generation_tokens"] <= 400  # counted from the restart on
            assert [change[1] for change in stats["changes"]] == [str(Change(stop_s=20.0))]

    run(test())


def test_an_answer_ends_where_the_models_length_does() -> None:
    async def test() -> None:
        server = simulated(model=replace(MODEL, max_model_len=150))
        async with server:
            status, answer = await ask(server, max_tokens=4000)
            assert status == 200
            assert answer["usage"]["total_tokens"] <= 150
            assert (await ask(server, prompt="x" * 600))[0] == 400  # no room for a single token

    run(test())


# -- what the benchmark makes of it ------------------------------------------------------------------------------------


def test_recovery_is_the_first_second_from_which_three_are_full_on_average() -> None:
    saturation = [1.0] * 10 + [0.0, 0.0, 0.2, 0.8, 0.98, 0.97, 0.99, 1.0, 1.0]
    assert recovered_after_s(saturation, 10.0, 19.0) == 4.0
    assert recovered_after_s(saturation, 10.0, 16.0) is None
    assert recovered_after_s([1.0] * 10, 4.5, 10.0) == 0.5


def test_a_window_takes_whole_seconds_only() -> None:
    seconds = {name: [100.0, 1.0, 3.0, 100.0] for name in ("tokens", "running", "waiting", "saturation")}
    seen = window({**seconds, "capacity": [4, 4, 4, 4]}, 0.5, 3.9, 8.0)
    assert (seen.tokens_per_s, seen.occupancy, seen.queue, seen.saturation) == (2.0, 0.5, 0.5, 2.0)
    with pytest.raises(ValueError, match="no second"):
        window({**seconds, "capacity": [4, 4, 4, 4]}, 3.0, 3.9, 8.0)


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--processes"]])
def test_several_instances_come_from_one_command_and_end_with_it(more: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "fastgen.simulator",
        "--port",
        "0",
        "--instances",
        "2",
        "--engine",
        "h100-8b",
        *more,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        urls = [process.stdout.readline().removeprefix("listening on ").strip() for _ in range(2)]
        for url in urls:
            with urllib.request.urlopen(url.removesuffix("/v1") + "/sim/stats", timeout=GUARD_S) as answer:  # noqa: S310 - our own server
                assert json.load(answer)["model"]["max_num_seqs"] == 256
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=GUARD_S) == 0
    assert len(set(urls)) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--engine", "h100-8b", "--slots", "4"], "--engine"),
        (["--speed", "2"], "--speed"),
        (["--at", "1:slow=2"], "--at"),
        (["--engine", "h100-8b", "--at", "slow=2"], "--at"),
        (["--engine", "h100-8b", "--speed", "0"], "--speed"),
        (["--engine", "h100-8b", "--kv-blocks", "5"], "--kv-blocks"),
        (["--engine", "h100-8b", "--max-num-batched-tokens", "5"], "--max-num-batched-tokens"),
        (["--instances", "0"], "--instances"),
        (["--max-model-len", "1"], "--max-model-len"),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said
