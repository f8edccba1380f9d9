"""Where judgements are: ``judgements/NAME/`` in the run folder, a log of answers each (`fastgen.generate.batch`).

::

    judgements/NAME/answers/        the log; a line's number is a slot (see `fastgen.judge.options`)
    judgements/NAME/summary.json    the figures when the last session ended, for `fastgen status`; may be deleted
    judgements/server.log           output of a server that fastgen started to judge

The first line of the log says what the judgements mean: the run, the judge's model, the prompt's version, the sampling
and the salt of the codes.
"""

from __future__ import annotations

import re
import secrets
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastgen.errors import InputError, RunFolderError
from fastgen.generate.batch import Reply, read_meaning, read_replies
from fastgen.judge.options import MAX_INSTANCES, MAX_VOTES, AnswerId, instance_key
from fastgen.judge.prompts import Fault, Verdict, Vote, code_of, read_vote, verdict_of

if TYPE_CHECKING:
    import numpy as np

    _Keys = np.ndarray[Any, np.dtype[np.int64]]
    _Votes = np.ndarray[Any, np.dtype[np.uint8]]


KIND: Final = "judgements"
_FLAGS: Final = {
    "model": "--model",
    "api": "--api",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_tokens": "--max-tokens",
    "extra_body": "--extra-body",
}


def judgements_folder(run_dir: Path) -> Path:
    """The folder of all judgements of a run."""
    return run_dir / "judgements"


def default_name(model: str) -> str:
    """A name for the judgements of a model, such as ``Qwen-Qwen3-8B``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._") or "judge"


def judge_names(run_dir: Path) -> list[str]:
    """The names of what was judged so far, sorted; empty where nothing was.

    :raises RunFolderError: the folder cannot be read. :raises DamagedLogError: the beginning of a log is damaged.
    """
    folder = judgements_folder(run_dir)
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be read ({error.strerror})") from None
    return [path.name for path in found if (read_meaning(path) or {}).get("kind") == KIND]


def settle_meaning(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """``asked`` with the salt of what is there already, or with a new one.

    :raises InputError: what is there was asked otherwise, and judgements are not mixed.
    """
    saved = read_meaning(folder)
    if saved is None:
        return {"kind": KIND, **asked, "salt": secrets.token_hex(16)}
    if saved.get("run") != asked["run"]:
        raise InputError(f"{folder}: holds judgements of another run; move that folder away")
    for key in sorted(asked):
        if saved.get(key) != asked[key]:
            what = _FLAGS.get(key, f"the {key}")
            raise InputError(
                f"{folder}: was judged with {what} {saved.get(key)}, not {asked[key]}; leave that as it was, or give "
                "these judgements another --name"
            )
    return {"kind": KIND, **asked, "salt": saved["salt"]}


_YES = 1, 2, 4
_SCORE = 8


class Judged(NamedTuple):
    """One instance: instruction number, its instance (from 0), and the votes (1 or more)."""

    number: int
    instance: int
    votes: tuple[Vote, ...]

    @property
    def verdict(self) -> Verdict:
        """What the votes say together."""
        return verdict_of(self.votes)


@dataclass(slots=True)
class Answers:
    """What came of one judge's questions, counted.

    ``answers`` are all that were given, ``faults`` those of them that are no vote, by reason; ``unjudged`` instances
    were asked about without getting any vote. ``failures`` are requests that failed for good, by kind.
    """

    answers: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    completion_tokens: int = 0
    unjudged: int = 0


class Judgements:
    """The votes of one judge or several; iterating gives every `Judged` instance, by instruction and instance."""

    def __init__(self, names: Sequence[str], keys: _Keys, votes: _Votes, answers: Answers) -> None:
        """``keys`` are sorted instance keys, one for each vote."""
        import numpy as np

        self.names = tuple(names)
        self.answers = answers
        self._votes = votes
        self._instances, self._starts = np.unique(keys, return_index=True)

    def __len__(self) -> int:
        return len(self._instances)

    def __iter__(self) -> Iterator[Judged]:
        for place, key in enumerate(self._instances):
            yield Judged(*divmod(int(key), MAX_INSTANCES), self._votes_at(place))

    def verdict(self, number: int, index: int) -> Verdict | None:
        """The verdict on instance ``index`` (from 0) of machine instruction ``number``, if there is any vote on it."""
        key = instance_key(number, index)
        place = int(self._instances.searchsorted(key))
        if place == len(self._instances) or self._instances[place] != key:
            return None
        return verdict_of(self._votes_at(place))

    def score(self, number: int, index: int) -> float | None:
        """The verdict's score (1..5), as `fastgen.export.entries.InstanceScores` has it."""
        found = self.verdict(number, index)
        return None if found is None else found.score

    def _votes_at(self, place: int) -> tuple[Vote, ...]:
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self._votes)
        return tuple(map(_unpack, self._votes[self._starts[place] : end].tolist()))


def read_judgements(run_dir: Path, name: str | None = None) -> Judgements:
    """The judgements under this name; without one, the votes of all judges together.

    :raises InputError: there are none. :raises DamagedLogError: a log is damaged.
    """
    names = judge_names(run_dir)
    if not names:
        raise InputError(f"--run-dir {run_dir}: nothing was judged yet; 'fastgen judge --run-dir {run_dir}' does it")
    if name is not None and name not in names:
        raise InputError(f"--name {name}: no judgements of that name in {run_dir}; there are {', '.join(names)}")
    return _together([_read(judgements_folder(run_dir) / one) for one in (names if name is None else [name])])


def instance_scores(run_dir: Path) -> Judgements | None:
    """The scores for an export; ``None`` where nothing was judged. :raises InputError: a log that cannot be read."""
    return read_judgements(run_dir) if judge_names(run_dir) else None


def read_header(run_dir: Path, name: str) -> dict[str, Any]:
    """What the judgements mean: ``model``, ``prompt``, ``api``, ``temperature``, ``top_p`` and ``max_tokens``."""
    return read_meaning(judgements_folder(run_dir) / name) or {}


@dataclass(slots=True)
class _Reading:
    name: str
    salt: str
    answers: Answers = field(default_factory=Answers)
    keys: array[int] = field(default_factory=lambda: array("q"))  # instance, vote
    votes: array[int] = field(default_factory=lambda: array("B"))
    fruitless: array[int] = field(default_factory=lambda: array("q"))  # instances

    def add(self, reply: Reply) -> None:
        """Count one reply, and keep its vote if it is one."""
        slot = AnswerId.unpack(reply.number)
        key = instance_key(slot.number, slot.instance)
        if reply.failure is not None:
            self.answers.failures[reply.failure.partition(":")[0]] += 1
            self.fruitless.append(key)
            return
        self.answers.answers += 1
        self.answers.completion_tokens += reply.completion_tokens
        vote = read_vote(reply.text, code_of(self.salt, slot.number, slot.instance), reply.finish_reason)
        if isinstance(vote, Fault):
            self.answers.faults[vote] += 1
            self.fruitless.append(key)
        else:
            self.keys.append(key * MAX_VOTES + slot.vote)
            self.votes.append(_pack(vote))


def _read(folder: Path) -> _Reading:
    reading = _Reading(folder.name, (read_meaning(folder) or {}).get("salt", ""))
    for reply in read_replies(folder):
        reading.add(reply)
    return reading


def _together(readings: Sequence[_Reading]) -> Judgements:
    import numpy as np

    keys = np.concatenate([np.frombuffer(one.keys, dtype=np.int64) for one in readings])
    votes = np.concatenate([np.frombuffer(one.votes, dtype=np.uint8) for one in readings])
    order = np.argsort(keys, kind="stable")
    instances = keys[order] // MAX_VOTES
    total = Answers()
    for one in readings:
        total.answers += one.answers.answers
        total.faults += one.answers.faults
        total.failures += one.answers.failures
        total.completion_tokens += one.answers.completion_tokens
    fruitless = np.concatenate([np.frombuffer(one.fruitless, dtype=np.int64) for one in readings])
    total.unjudged = int(np.setdiff1d(fruitless, instances).size)
    return Judgements([one.name for one in readings], instances, votes[order], total)


def _pack(vote: Vote) -> int:
    answers = vote.valid_task, vote.input_fits, vote.output_right
    return sum(bit for bit, yes in zip(_YES, answers, strict=True) if yes) + _SCORE * vote.score


def _unpack(packed: int) -> Vote:
    valid, fits, right = (bool(packed & bit) for bit in _YES)
    return Vote(valid, fits, right, packed // _SCORE)


def side_by_side(all_judgements: Sequence[Judgements]) -> Iterator[tuple[Verdict, ...]]:
    """The verdicts on every instance that two or more of them judged."""
    import heapq

    def keyed(one: Judgements) -> Iterator[tuple[int, int, Verdict]]:
        return ((judged.number, judged.instance, judged.verdict) for judged in one)

    merged = heapq.merge(*map(keyed, all_judgements), key=lambda item: item[:2])
    for _, found in groupby(merged, key=lambda item: item[:2]):
        verdicts = tuple(verdict for *_, verdict in found)
        if len(verdicts) > 1:
            yield verdicts
