"""The live page: what it lets in, and what it shows."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from fastgen.report.live import MAX_CONNECTIONS, Dashboard, serve_dashboard
from fastgen.report.live_view import PIECES, STATE, TITLE, Follower, pieces
from fastgen.telemetry.live_page import listen, url_of
from tests.command_help import chromium
from tests.dashboard_help import HOSTILE, SAMPLE, make_hostile_run, read_all
from tests.export_help import Task, make_run, numbered


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hostile_run(tmp_path_factory.mktemp("dashboard") / "run")


async def _get(url: str, host: str | None = None, method: str = "GET") -> tuple[int, Any, str]:
    headers = {} if host is None else {"Host": host}
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


def make_dashboard(path: Path, **limits: Any) -> Dashboard:
    return Dashboard(Follower(path), lambda: SAMPLE, is_running=True, **limits)


async def _page(run: Path) -> None:
    listening = listen(0, "--port")
    url = url_of(listening)
    async with serve_dashboard(make_dashboard(run), listening):
        status, headers, text = await _get(url)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "<h1>Run run</h1>" in text
        assert (await _get(url, "localhost:99"))[0] == 200
        assert (await _get(url, "evil.example"))[0] == 403
        assert (await _get(url + "events", "evil.example:80"))[0] == 403
        assert (await _get(url, method="POST"))[0] == 405


def test_only_this_machine_is_answered_under_a_strict_policy(run: Path) -> None:
    asyncio.run(_page(run))


async def _events(run: Path) -> None:
    dashboard, listening = make_dashboard(run, max_viewers=1), listen(0, "--port")
    url = url_of(listening)
    async with aiohttp.ClientSession() as session:
        async with serve_dashboard(dashboard, listening):
            first = await session.get(url + "events")
            assert (await _get(url + "events"))[0] == 503
            line = await first.content.readline()
            shown = orjson.loads(line.removeprefix(b"data: "))
            assert set(shown) == {*PIECES, STATE, TITLE}
            assert shown[TITLE] == "100% - Run run"
            assert shown[STATE] == "the run is in progress"
            assert "<dd>9</dd>" in shown["now"]
            assert b"<script>" not in line
        rest = await first.content.read()
        assert rest.endswith(b"event: end\ndata: the run has ended; 'fastgen report' makes a page to keep\n\n")
        assert dashboard.viewers == 0


def test_viewers_are_few_get_every_piece_and_see_the_end(run: Path) -> None:
    asyncio.run(_events(run))


async def _no_viewer(run: Path) -> None:
    follower = Follower(run)
    listening = listen(0, "--port")
    async with serve_dashboard(Dashboard(follower, lambda: None, is_running=True), listening):
        await _get(url_of(listening))
    assert follower.figures is None


def test_nothing_is_read_without_a_viewer(run: Path) -> None:
    asyncio.run(_no_viewer(run))


async def _slow(run: Path) -> None:
    dashboard, listening = make_dashboard(run, timeout_s=0.01), listen(0, "--port")
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # soon full
    async with serve_dashboard(dashboard, listening):
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1], limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        async with asyncio.timeout(30):
            while dashboard.viewers:  # it reads nothing of all this
                dashboard._pieces.clear()
                await dashboard.refresh()
                await asyncio.sleep(0.0)
        writer.close()


def test_a_viewer_that_does_not_read_is_disconnected(run: Path) -> None:
    asyncio.run(_slow(run))


def test_a_page_of_a_run_that_is_not_active_shows_the_time_of_its_measurements(run: Path) -> None:
    follower = read_all(Follower(run))
    assert "2001-09-09 01:46:40 UTC" in pieces(follower, SAMPLE, is_running=False)["now"]
    assert "2001-09-09" not in pieces(follower, SAMPLE, is_running=True)["now"]
    assert pieces(follower, SAMPLE, is_running=False)[STATE] == "the run is complete"


def _tiles(now: str) -> dict[str, tuple[str, str]]:
    """Value and note of each tile, by its title."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd><dd class=\"note\">(.*?)</dd>", now)
    return {title: (value, note) for title, value, note in found}


def test_the_figures_of_now_are_times_errors_and_what_was_empty(run: Path) -> None:
    follower = read_all(Follower(run))
    follower.target = 10
    shown = _tiles(pieces(follower, SAMPLE, is_running=True)["now"])
    assert shown["Time left"][0] == "1:00 to 2:00"
    assert shown["Elapsed"][0] == "1:02:05"
    assert shown["Complete a minute"][0] == "12.5"
    assert shown["Error rate"] == ("25.0%", "of 12 attempts lately; 0 requests given up")
    assert shown["Empty answers"] == ("0", "0.0% of 27 answers; 0 instructions ended without one")
    assert pieces(follower, SAMPLE, is_running=True)[TITLE] == "90% - Run run"
    before = _tiles(pieces(follower, None, is_running=True)["now"])
    assert {before[name][0] for name in ("Time left", "Elapsed", "Complete a minute", "Error rate")} == {"-"}
    follower.target = 9
    assert _tiles(pieces(follower, SAMPLE, is_running=True)["now"])["Time left"][0] == "done"


def test_answers_without_a_text_are_counted(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", [*numbered(2), Task("Say nothing.", [])])
    follower = read_all(Follower(path))
    value, note = _tiles(pieces(follower, None, is_running=True)["now"])["Empty answers"]
    empty = follower.ledger.answers["instance.empty"]
    assert empty == 1
    assert (value, note) == ("1", "11.1% of 9 answers; 1 instructions ended without one")


def test_before_the_run_begins_the_tab_has_its_name(tmp_path: Path) -> None:
    shown = pieces(Follower(tmp_path / "later"), None, is_running=True)
    assert shown[TITLE] == "Run later"
    assert shown[STATE] == "waiting for the run to begin"


@contextmanager
def _served(run: Path) -> Iterator[str]:
    """The page from a thread with a separate event loop."""
    ready, over = threading.Event(), threading.Event()
    listening = listen(0, "--port")

    async def serve() -> None:
        async with serve_dashboard(make_dashboard(run), listening):
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    url = url_of(listening)
    thread.start()
    ready.wait()
    try:
        yield url
    finally:
        over.set()
        thread.join()


@pytest.mark.browser
def test_a_browser_shows_the_run_and_runs_nothing_of_its_texts(run: Path) -> None:
    said: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        with _served(run) as url:
            page.goto(url, wait_until="commit")
            page.wait_for_selector("#piece-rejections svg", state="attached")
            page.wait_for_selector("#state:text-is('the run is in progress')")
            assert page.locator("svg.plot").count() >= 9
            assert HOSTILE in page.inner_text("#piece-newest")
            assert f"Model: a/{'long' * 40} {HOSTILE} \\u202e" in page.inner_text("#piece-now")
            page.set_viewport_size({"width": 400, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 400
            assert page.title() == "100% - Run run"
            assert page.evaluate("window.hacked") is None
            assert page.locator("img").count() == 0
        page.wait_for_selector("#state:text('the run has ended')")
    assert [line for line in said if "favicon" not in line] == []


async def _too_many(run: Path) -> None:
    listening = listen(0, "--port")
    port = listening.getsockname()[1]
    async with serve_dashboard(make_dashboard(run), listening, timeout_s=60):
        streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS + 1)]
        assert await streams[-1][0].read() == b""
        assert not streams[0][0].at_eof()
        for _, writer in streams:
            writer.close()


async def _idle(run: Path) -> None:
    listening = listen(0, "--port")
    port, url = listening.getsockname()[1], url_of(listening)
    async with serve_dashboard(make_dashboard(run), listening, timeout_s=0.05):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        assert (await _get(url))[0] == 200


def test_connections_beyond_the_most_are_closed_at_once(run: Path) -> None:
    asyncio.run(_too_many(run))


def test_an_idle_connection_is_closed(run: Path) -> None:
    asyncio.run(_idle(run))
