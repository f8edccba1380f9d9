"""Several servers kept running, as real processes: started together, brought back, left out, and gone at the end."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import DiskError, ServerError
from fastgen.servers.fleet import Fleet, RestartPolicy, start_fleet
from fastgen.servers.spec import ServerSpec
from tests.servers.test_processes import SERVER, get, read

GUARD_S = 60.0
AT_ONCE = RestartPolicy(pause_s=0.0)


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ServerSpec]:
    """A server program in a mode, as something to start."""

    def make(mode: str = "fine", name: str = "server") -> ServerSpec:
        script = tmp_path / f"{name}.py"
        script.write_text(SERVER)
        return ServerSpec((sys.executable, "-I", "-S", str(script), mode), "cheese", f"the {name}", concurrency=4)

    return make


class Heard:
    """What was reported, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._more.set()

    async def until(self, words: str, times: int = 1) -> None:
        """Wait until this many lines hold the words."""
        while sum(words in line for line in self.lines) < times:
            self._more.clear()
            await self._more.wait()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, GUARD_S))


async def die(fleet: Fleet, place: int, *, but_not: int = 0) -> int:
    """Let a server end itself as soon as it is there, unless it is the process named; its process id."""
    pid = but_not
    while pid == but_not:
        with suppress(OSError):  # it is not up yet, or going down
            pid = (await asyncio.to_thread(get, fleet.base_urls[place], "/about"))["tree"][0]
    with suppress(OSError):
        await asyncio.to_thread(get, fleet.base_urls[place], "/die")
    return pid


@given(st.lists(st.floats(0, 30), max_size=40), st.integers(0, 5), st.floats(1, 50))
def test_no_span_of_time_sees_more_restarts_than_allowed(pauses_s: list[float], most: int, within_s: float) -> None:
    policy, restarts = RestartPolicy(most, within_s), deque[float]()
    now_s, taken = 0.0, list[float]()
    for pause_s in pauses_s:
        now_s += pause_s
        recent = [one for one in taken if now_s - one <= within_s]
        assert policy.allows(restarts, now_s) == (len(recent) < most)
        if len(recent) < most:
            taken.append(now_s)


def test_servers_have_separate_addresses_and_logs(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def test() -> None:
        heard = Heard()
        async with start_fleet([spec(), spec()], tmp_path / "server.log", timeout_s=60, report=heard) as fleet:
            await heard.until("serves cheese", 2)
            assert fleet.model == "cheese"
            assert len({get(url, "/about")["tree"][0] for url in fleet.base_urls}) == 2

    run(test())
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["server-1.log", "server-2.log"]
    script = str(tmp_path / "server.py").encode()
    assert [p for p in Path("/proc").glob("[0-9]*/cmdline") if script in read(p)] == []


def test_the_run_begins_with_the_first_server_that_serves(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def test() -> None:
        servers = [spec("never", "slow"), spec(), spec("die", "broken")]
        heard = Heard()
        async with start_fleet(servers, tmp_path / "server.log", timeout_s=60, report=heard) as fleet:
            assert get(fleet.base_urls[1], "/v1/models")
            await heard.until("the broken did not start (exit code 3): ValueError: the model is made of cheese")
            assert any(line.endswith("; continuing without it") for line in heard.lines)
            watching = asyncio.create_task(fleet.watch())
            await asyncio.sleep(0)
            assert not watching.done()
            watching.cancel()

    run(test())


def test_a_server_that_dies_is_restarted_at_the_same_address(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def test() -> None:
        heard = Heard()
        async with start_fleet([spec()], tmp_path / "server.log", timeout_s=60, report=heard, policy=AT_ONCE) as fleet:
            before = get(fleet.base_urls[0], "/about")["tree"]
            await die(fleet, 0)
            await heard.until("serves cheese", 2)
            assert get(fleet.base_urls[0], "/about")["tree"] != before
            (told,) = [line for line in heard.lines if "starting it again" in line]
            assert "the server died (exit code 9): MemoryError: out of cheese (log: " in told
            assert told.endswith("starting it again (1 of at most 3 times in 10 min)")

    run(test())


def test_a_server_that_keeps_dying_is_left_out_and_the_last_ends_the_run(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    async def test() -> None:
        heard = Heard()
        policy = RestartPolicy(most=1, pause_s=0.0)
        servers = [spec("once", "first"), spec("fine", "second")]
        async with start_fleet(servers, tmp_path / "server.log", timeout_s=60, report=heard, policy=policy) as fleet:
            watching = asyncio.create_task(fleet.watch())
            await heard.until("serves cheese", 2)
            await die(fleet, 0)
            await heard.until("the first did not start (exit code 1): RuntimeError: not again")
            assert any(
                line.endswith("; 1 restarts within 10 min are allowed; continuing without it") for line in heard.lines
            )
            assert not watching.done()
            await die(fleet, 1, but_not=await die(fleet, 1))
            with pytest.raises(ServerError, match=r"none of the 2 servers .* is left; the last: the second di"):
                await watching

    run(test())


def test_a_single_server_that_does_not_start_is_an_error_as_it_stands(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    async def test() -> None:
        heard = Heard()
        with pytest.raises(ServerError) as caught:
            async with start_fleet([spec("die")], tmp_path / "server.log", timeout_s=60, report=heard):
                pytest.fail("it never serves")
        assert str(caught.value) == (
            "the server did not start (exit code 3): ValueError: the model is made of cheese "
            f"(log: {tmp_path / 'server.log'})"
        )
        assert len(heard.lines) == 1

    run(test())


def test_when_none_of_several_starts_the_last_failure_is_reported(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    async def test() -> None:
        with pytest.raises(ServerError, match=r"none of the 2 servers .* made of cheese"):
            async with start_fleet([spec("die")] * 2, tmp_path / "server.log", timeout_s=60, report=lambda _: None):
                pytest.fail("none serves")

    run(test())


def test_a_log_that_cannot_be_written_ends_the_start(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DiskError, match="cannot be written"):
            async with start_fleet([spec()] * 2, tmp_path / "file" / "log", timeout_s=60, report=lambda _: None):
                pytest.fail("it cannot log")

    run(test())
