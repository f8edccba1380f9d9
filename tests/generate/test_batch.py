"""BatchSession many questions: each is answered once, over any number of interruptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fastgen.engine.requests import Limits
from fastgen.errors import DamagedLogError, InputError, RequestRejected, RunFolderError, TransientError
from fastgen.generate.batch import AnswerLog, BatchSession, Question, Reply, read_configuration, read_replies
from fastgen.types import Completion, Request, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=8)
CONFIGURATION = {"model": "m", "questions": "q1"}
QUICK = Limits(concurrency=4, backoff_base_s=0.001, backoff_cap_s=0.001)


class Parrot:
    """A backend that repeats the prompt; what is in ``wrong`` fails as told, once."""

    def __init__(self, wrong: dict[int, Exception] | None = None) -> None:
        self.asked: list[int] = []
        self._wrong = wrong or {}

    async def complete(self, request: Request) -> tuple[Completion, ...]:
        await asyncio.sleep(0)
        self.asked.append(request.number)
        if (error := self._wrong.pop(request.number, None)) is not None:
            raise error
        return (Completion(f"said {request.prompt}", "stop", 3, 2),)

    async def close(self) -> None: ...

    def statistics(self) -> None: ...


def questions(count: int) -> Iterator[Question]:
    return (Question(number, f"p{number}", SAMPLING) for number in range(count))


def ask(folder: Path, backend: Parrot, count: int, stop_after: int | None = None) -> None:
    with AnswerLog(folder, CONFIGURATION) as log:
        seen: list[Reply] = []

        def observe(replies: Sequence[Reply]) -> None:
            seen.extend(replies)
            if stop_after is not None and len(seen) >= stop_after:
                asking.stop()

        asking = BatchSession(questions(count), log, backend, QUICK, observe)  # type: ignore[arg-type]  # what is used of it
        asyncio.run(asking.run())


def test_every_question_gets_its_answer(tmp_path: Path) -> None:
    ask(tmp_path, Parrot(), 50)
    replies = {reply.number: reply for reply in read_replies(tmp_path)}
    assert len(replies) == 50
    assert replies[7] == Reply(7, "said p7", "stop", 3, 2)
    assert read_configuration(tmp_path) == CONFIGURATION


def test_what_was_answered_before_a_stop_is_not_asked_again(tmp_path: Path) -> None:
    first, second = Parrot(), Parrot()
    ask(tmp_path, first, 600, stop_after=10)
    answered = {reply.number for reply in read_replies(tmp_path)}
    assert 10 <= len(answered) < 600
    ask(tmp_path, second, 600)
    assert not answered & set(second.asked)
    assert sorted(reply.number for reply in read_replies(tmp_path)) == list(range(600))


def test_a_refused_question_is_recorded_and_asked_again_in_the_next_session(tmp_path: Path) -> None:
    ask(tmp_path, Parrot({3: RequestRejected("400: no")}), 5)
    failed = [reply for reply in read_replies(tmp_path) if reply.failure]
    assert [reply.number for reply in failed] == [3]
    assert failed[0].failure == "rejected: 400: no"
    again = Parrot()
    ask(tmp_path, again, 5)
    assert again.asked == [3]
    assert [reply.text for reply in read_replies(tmp_path) if reply.number == 3] == ["", "said p3"]


def test_a_transient_fault_is_retried(tmp_path: Path) -> None:
    backend = Parrot({2: TransientError("reset", kind="reset")})
    ask(tmp_path, backend, 4)
    assert backend.asked.count(2) == 2
    assert all(reply.failure is None for reply in read_replies(tmp_path))


def test_answers_to_other_questions_are_not_mixed(tmp_path: Path) -> None:
    ask(tmp_path, Parrot(), 2)
    with pytest.raises(InputError, match=r"holds answers to other questions, with model m, not n"):
        AnswerLog(tmp_path, CONFIGURATION | {"model": "n"})


def test_a_torn_end_is_dropped_and_asked_again(tmp_path: Path) -> None:
    ask(tmp_path, Parrot(), 3)
    segment = tmp_path / "answers" / "000000.jsonl"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-5])
    lost = len(list(read_replies(tmp_path)))
    again = Parrot()
    ask(tmp_path, again, 3)
    assert lost == 2
    assert len(again.asked) == 1
    assert len(list(read_replies(tmp_path))) == 3


def test_damage_is_reported_with_file_and_line(tmp_path: Path) -> None:
    ask(tmp_path, Parrot(), 3)
    segment = tmp_path / "answers" / "000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"said p0", b"said pX"))
    with pytest.raises(DamagedLogError, match=r"000000.jsonl:\d+: "):
        AnswerLog(tmp_path, CONFIGURATION)
    with AnswerLog(tmp_path / "free", CONFIGURATION):
        pass


def test_two_processes_do_not_write_the_same_answers(tmp_path: Path) -> None:
    with AnswerLog(tmp_path, CONFIGURATION), pytest.raises(RunFolderError, match="in use by process"):
        AnswerLog(tmp_path, CONFIGURATION)


def test_a_folder_without_answers_says_so(tmp_path: Path) -> None:
    assert read_configuration(tmp_path) is None
    with pytest.raises(InputError, match="there are no answers here"):
        list(read_replies(tmp_path))
