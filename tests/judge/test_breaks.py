"""What can go wrong while a run is judged, or when there is nothing left to do: dead servers, full disks, company."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgen.generate.batch import AnswerLog, read_configuration, read_replies
from fastgen.judge.judgements import read_judgements
from fastgen.judge.prompts import AnswerId
from tests.command_help import Said, fastgen, file_size_limit
from tests.export_help import extend_run, make_run, numbered
from tests.judge_help import answer, figures, judge, judging_server

DEAD = "http://127.0.0.1:9/v1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten instructions with two instances each."""
    return make_run(tmp_path / "run", numbered(10))


@pytest.fixture
def judged(run: Path) -> Path:
    """The same, judged by judge-1; its server is gone."""
    with judging_server() as server:
        assert judge(run, server).code == 0
    return run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a server that fastgen started would be set up: nothing may come there."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTGEN_CACHE_DIR", str(folder))
    yield folder
    assert not folder.exists()


def alone(run: Path, *more: str | Path) -> Said:
    """``fastgen judge`` without any server."""
    return fastgen("judge", "--run-dir", run, *more)


def answered(run: Path, name: str = "judge-1") -> list[AnswerId]:
    return [AnswerId.unpack(reply.number) for reply in read_replies(run / "judgements" / name) if reply.failure is None]


# nothing left


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "judge-1"),
        ("--name", "judge-1"),
        ("--name", "judge-1", "--model", "judge-1"),
        ("--model", "judge-1", "--base-url", DEAD),
        ("--model", "judge-1", "--max-instructions", "4"),
        (),
    ],
)
def test_no_server_is_needed_or_started_if_everything_is_judged(
    judged: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgen.judge.session.default_model", lambda: "judge-1")  # what this machine would serve
    said = alone(judged, *flags)
    assert (said.code, said.err) == (0, "judge-1: everything is judged already; nothing is left to ask\n")
    assert said.out == fastgen("judge", "--run-dir", judged, "--summary").out


def test_an_instance_that_was_unreadable_twice_is_not_asked_again(run: Path) -> None:
    first = []

    def knows_one(prompt: str, _: int) -> str:
        first.append(prompt)
        return answer(prompt) if prompt == first[0] else "no idea"

    with judging_server(knows_one) as server:
        assert judge(run, server).code == 0
    assert "nothing is left to ask" in alone(run, "--model", "judge-1").err


@pytest.mark.parametrize("change", ["votes", "growth", "refusal"])
def test_the_server_is_asked_if_something_is_left(judged: Path, change: str) -> None:
    more: tuple[str, ...] = ()
    if change == "votes":
        more = ("--votes", "2")
    elif change == "growth":
        extend_run(judged, numbered(11, 10), first=10)
    else:
        folder = judged / "judgements" / "judge-1" / "answers"
        segment = next(folder.iterdir())
        segment.write_bytes(segment.read_bytes()[:-20])  # as a power cut leaves it
    said = alone(judged, "--model", "judge-1", "--base-url", DEAD, "--server-timeout", "0.1", "--quiet", *more)
    assert said.code == 3
    assert len(said.err.splitlines()) == 1
    with judging_server() as server:
        assert judge(judged, server, *more).code == 0
    assert len(set(answered(judged))) == {"votes": 40, "growth": 22, "refusal": 20}[change]


def test_another_configuration_is_refused_before_any_server_is_asked(judged: Path) -> None:
    said = alone(judged, "--model", "judge-1", "--temperature", "0.1", "--base-url", DEAD)
    assert said.code == 2
    assert "was judged with --temperature 0.7, not 0.1" in said.err


# servers


def test_a_server_that_dies_ends_the_session_and_another_one_resumes_it(run: Path) -> None:
    dying: list[asyncio.Task[None]] = []
    asked = 0

    def write(prompt: str, _: int) -> str:
        nonlocal asked
        asked += 1
        if asked == 8:
            dying.append(asyncio.get_running_loop().create_task(server.refuse()))
        return answer(prompt)

    with judging_server(write) as server:
        said = judge(run, server, "--concurrency", "2", "--outage-timeout", "0.2")
    assert said.code == 3
    assert "Traceback" not in said.err
    first = answered(run)
    assert 6 <= len(first) < 20
    with judging_server() as another:
        assert judge(run, another).code == 0
        assert another.counters.requests == 20 - len(first)
    assert len(answered(run)) == len(set(answered(run))) == 20


def test_a_server_that_answers_in_another_form_ends_the_session_and_is_quoted(run: Path) -> None:
    with judging_server() as server:
        server.add_route(
            "POST", "/v1/chat/completions", lambda exchange: exchange.respond(200, b'{"choices": [{"message": 5}]}')
        )
        said = judge(run, server, "--outage-timeout", "0.2")
    assert said.code == 3
    assert "the text is a NoneType" in said.last
    assert "Traceback" not in said.err
    assert not answered(run)
    with judging_server() as server:
        assert judge(run, server).code == 0
    assert figures(run)["judges"][0]["judged"] == 20


# disks


@pytest.mark.parametrize("size", [0, 300, 2000])
def test_a_full_disk_ends_the_session_in_one_line_and_what_was_logged_stays(run: Path, size: int) -> None:
    with judging_server() as server:
        with file_size_limit(size):
            said = judge(run, server, "--concurrency", "2", "--quiet")
        assert said.code == 3
        assert len(said.err.splitlines()) == 1
        assert "cannot be written" in said.err or "could not be" in said.err
        before = server.counters.requests
        assert judge(run, server).code == 0
    assert len(answered(run)) == len(set(answered(run))) == 20
    assert before <= 20


# company


def test_a_second_judge_of_the_same_name_is_refused_before_any_server_is_asked(judged: Path) -> None:
    folder = judged / "judgements" / "judge-1"
    with AnswerLog(folder, read_configuration(folder) or {}):
        said = alone(judged, "--model", "judge-1", "--base-url", DEAD, "--votes", "2")
    assert said.code == 2
    assert f"{folder}: in use by process" in said.err
    assert len(said.err.splitlines()) == 1


def test_two_judges_of_different_names_work_on_one_run_at_the_same_time(run: Path) -> None:
    with judging_server() as server:
        command = [sys.executable, "-m", "fastgen", "judge", "--run-dir", str(run), "--base-url", server.base_url]
        both = [
            subprocess.Popen([*command, "--name", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for name in ("a", "b")
        ]
        said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(answered(run, "a")) == len(answered(run, "b")) == 20
    assert {len(one.votes) for one in read_judgements(run)} == {2}
