"""The live page: what it lets in, what it shows, and that it cannot hold up a run."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from fastgen import cli
from fastgen.commits import Commit
from fastgen.dashboard import server
from fastgen.dashboard.live import LiveFigures
from fastgen.dashboard.server import Dashboard, serve_dashboard
from fastgen.dashboard.view import PIECES, pieces
from fastgen.errors import InputError
from fastgen.log import TornTail
from fastgen.metrics import MetricsHub, Sample
from fastgen.options import Options
from fastgen.report.figures import gather
from fastgen.report.sampling import SampleSizes
from fastgen.runs import open_run
from fastgen.store import RunFolder
from tests.export_help import Task, make_run, numbered
from tests.test_generate import shipped_server

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> list[Commit]:
    path = tmp_path_factory.mktemp("dashboard") / "run"
    make_run(path, [*numbered(8), Task(f"Translate {HOSTILE}", [("", HOSTILE)])])
    return [item[0] for item in RunFolder(path).commits() if not isinstance(item, TornTail)]


def make_dashboard(commits: list[Commit]) -> Dashboard:
    hub = MetricsHub()
    hub.publish(Sample(target=9, complete=9, kept=9))
    dashboard = Dashboard("name", LiveFigures(Options().rules), hub, 0.7)
    for commit in commits:
        dashboard.observe(commit)
    return dashboard


def test_live_figures_are_those_of_the_report(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", numbered(12)))
    live = LiveFigures(run.rules)
    for item in run.folder.commits():
        assert not isinstance(item, TornTail)
        live.observe(item[0])
    live.take_up()
    report = gather(run, SampleSizes(), 0)
    assert live.figures.ledger == report.ledger
    assert live.figures.classification == report.classification == 4
    assert live.figures.output_words.counts == report.output_words.counts
    assert [one.text for one in live.newest_kept] == [f"Describe thing number {n} in plain words." for n in range(12)]


def test_what_was_begun_before_this_session_disturbs_nothing(commits: list[Commit]) -> None:
    live = LiveFigures(Options().rules)
    for commit in commits[1:]:
        live.observe(commit)
    live.take_up()
    assert len(live.newest_kept) == 8
    assert set(pieces(live, None, 0.7)) == set(PIECES)


async def _get(url: str, host: str | None = None, method: str = "GET") -> tuple[int, Any, str]:
    headers = {} if host is None else {"Host": host}
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


async def _page(commits: list[Commit]) -> None:
    async with serve_dashboard(make_dashboard(commits), 0) as url:
        status, headers, text = await _get(url)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "Run name" in text
        assert (await _get(url, "localhost:99"))[0] == 200
        assert (await _get(url, "evil.example"))[0] == 403
        assert (await _get(url + "events", "evil.example:80"))[0] == 403
        assert (await _get(url, method="POST"))[0] == 405


def test_only_this_machine_is_answered_under_a_strict_policy(commits: list[Commit]) -> None:
    asyncio.run(_page(commits))


async def _events(commits: list[Commit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_VIEWERS", 1)
    dashboard = make_dashboard(commits)
    async with aiohttp.ClientSession() as session:
        async with serve_dashboard(dashboard, 0) as url:
            first = await session.get(url + "events")
            assert (await _get(url + "events"))[0] == 503
            await dashboard.refresh()
            line = await first.content.readline()
            assert set(orjson.loads(line.removeprefix(b"data: "))) == set(PIECES)
            assert b"<script>" not in line
        rest = await first.content.read()
        assert b"event: end" in rest
        assert dashboard.viewers == 0


def test_viewers_are_few_get_every_piece_and_are_told_the_end(
    commits: list[Commit], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(_events(commits, monkeypatch))


async def _slow(commits: list[Commit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 0.01)
    dashboard = make_dashboard(commits)
    async with serve_dashboard(dashboard, 0) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(re.findall(r":(\d+)/", url)[0]), limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        async with asyncio.timeout(30):
            while dashboard.viewers:  # it reads nothing of all this
                for commit in commits * 20:
                    dashboard.observe(commit)
                await dashboard.refresh()
        writer.close()


def test_a_viewer_that_does_not_read_is_let_go(commits: list[Commit], monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_slow(commits, monkeypatch))


async def _twice(port: int) -> None:
    async with serve_dashboard(make_dashboard([]), port):
        pass


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"^--dashboard-port {port}: cannot listen on 127.0.0.1 \(.*\); choose"):
            asyncio.run(_twice(port))


def test_generate_says_where_the_page_is_and_remembers_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shipped_server() as base_url:
        flags = ["--base-url", base_url, "--num-instructions", "5", "--dashboard", "--dashboard-port", "0"]
        assert cli.run(["generate", "--run-dir", str(tmp_path / "run"), *flags]) == 0
    assert re.search(r"dashboard at http://127\.0\.0\.1:\d+/", capsys.readouterr().err)
    assert not [name for name in RunFolder(tmp_path / "run").header().options if "dashboard" in name]


@contextmanager
def _served(commits: list[Commit]) -> Iterator[str]:
    """The page from a thread with a loop of its own."""
    urls: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serve_dashboard(make_dashboard(commits), 0) as url:
            urls.append(url)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield urls[0]
    finally:
        over.set()
        thread.join()


@pytest.mark.browser
def test_a_browser_shows_the_run_and_runs_nothing_of_its_texts(commits: list[Commit]) -> None:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    said: list[str] = []
    with api.sync_playwright() as playwright, _served(commits) as url:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url, wait_until="commit")
        page.wait_for_selector("#piece-rejections svg", state="attached")
        assert page.inner_text("#state") == "the run goes on"
        assert page.locator("svg.plot").count() >= 9
        assert HOSTILE in page.inner_text("#piece-newest")
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        browser.close()
    assert [line for line in said if "favicon" not in line] == []
