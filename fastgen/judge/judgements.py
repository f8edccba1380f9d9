"""The judgements in a run folder: one log of answers (`fastgen.generate.batch`) for each name.

::

    judgements/NAME/answers/        the log; an answer's number is a packed `fastgen.judge.prompts.AnswerId`
    judgements/NAME/summary.json    the figures at the end of the last session, for `fastgen status`; may be deleted
    judgements/server.log           output of a server that fastgen started to judge

The first line of the log says what the judgements mean: the run, the judge's model, the prompt's version, the sampling
and the salt of the codes. Logs are streamed. Nine bytes a vote stay in memory, so a run of millions can be read.
"""

from __future__ import annotations

import re
import secrets
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fastgen.errors import InputError, RunFolderError
from fastgen.generate.batch import read_configuration, read_replies
from fastgen.judge.options import MAX_VOTES
from fastgen.judge.prompts import MAX_INSTANCES, AnswerId, Fault, Verdict, Vote, instance_key, verdict_of, vote_of
from fastgen.store.job_folder import check_configuration

KIND: Final = "judgements"
_FLAGS: Final = {
    "model": "--model",
    "api": "--api",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "max_tokens": "--max-tokens",
    "extra_body": "--extra-body",
    "thinking": "--thinking",
}


def judgements_folder(run_dir: Path) -> Path:
    """The folder of all judgements of a run."""
    return run_dir / "judgements"


def default_name(model: str) -> str:
    """A name for the judgements of a model, such as ``Qwen-Qwen3-8B``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._") or "judge"


def judge_names(run_dir: Path) -> list[str]:
    """The names of all judgements, sorted.

    :raises RunFolderError: the folder cannot be read. :raises DamagedLogError: the beginning of a log is damaged.
    """
    folder = judgements_folder(run_dir)
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be read ({error.strerror})") from None
    return [path.name for path in found if (read_configuration(path) or {}).get("kind") == KIND]


def judging_configuration(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """``asked`` with the salt of the judgements that exist, or with a new one.

    :raises InputError: the folder has judgements of another run, or with other flags. They are not mixed.
    """
    saved = read_configuration(folder)
    if saved is None:
        return {"kind": KIND, **asked, "salt": secrets.token_hex(16)}
    if saved.get("run") != asked["run"]:
        raise InputError(f"{folder}: holds judgements of another run; move that folder away")
    check_configuration(
        {name: saved.get(name) for name in asked},
        asked,
        holds=f"{folder}: was judged with",
        remedy="leave that as it was, or give these judgements another --name",
        label=lambda name: _FLAGS.get(name, f"the {name}"),
    )
    return {"kind": KIND, **asked, "salt": saved["salt"]}


def read_header(run_dir: Path, name: str) -> dict[str, Any]:
    """What the judgements mean: ``model``, ``prompt``, ``api``, ``temperature``, ``top_p`` and ``max_tokens``."""
    return read_configuration(judgements_folder(run_dir) / name) or {}


def read_judgements(run_dir: Path, name: str | None = None) -> Judgements:
    """The judgements under this name, or the votes of all judges together.

    :raises InputError: there are none. :raises DamagedLogError: a log is damaged.
    """
    names = judge_names(run_dir)
    if not names:
        raise InputError(f"--run-dir {run_dir}: nothing was judged yet; run 'fastgen judge --run-dir {run_dir}' first")
    if name is not None and name not in names:
        raise InputError(f"--name {name}: no judgements of that name in {run_dir}; there are {', '.join(names)}")
    return Judgements(run_dir, names if name is None else [name])


def instance_scores(run_dir: Path) -> Judgements | None:
    """The scores for an export, or ``None`` if nothing was judged.

    :raises InputError: a log cannot be read.
    """
    return read_judgements(run_dir) if judge_names(run_dir) else None


class Judged(NamedTuple):
    """One instance: instruction number, its instance (from 0), and the votes (1 or more)."""

    number: int
    instance: int
    votes: tuple[Vote, ...]

    @property
    def verdict(self) -> Verdict:
        """What the votes say together."""
        return verdict_of(self.votes)


class Judgements:
    """The votes of one judge or several, as they are now. Iterating gives every `Judged` instance in order.

    ``answers`` counts all answers and ``completion_tokens`` their tokens, ``faults`` the unreadable answers by reason,
    and ``failures`` the failed requests by kind. ``unjudged`` instances were asked about and have no vote.
    """

    def __init__(self, run_dir: Path, names: Sequence[str]) -> None:
        """See `read_judgements`."""
        import numpy as np

        self.names = tuple(names)
        self.answers = self.completion_tokens = 0
        self.faults: Counter[Fault] = Counter()
        self.failures: Counter[str] = Counter()
        vote_keys, votes = array("q"), array("B")  # key of the instance and number of the vote; the vote
        voteless = array("q")  # keys of instances
        for name in names:
            salt = read_header(run_dir, name).get("salt", "")
            for reply in read_replies(judgements_folder(run_dir) / name):
                answer = AnswerId.unpack(reply.number)
                key = instance_key(answer.number, answer.instance)
                if reply.failure is not None:
                    self.failures[reply.failure.partition(":")[0]] += 1
                    voteless.append(key)
                    continue
                self.answers += 1
                self.completion_tokens += reply.completion_tokens
                vote = vote_of(reply, salt)
                if isinstance(vote, Fault):
                    self.faults[vote] += 1
                    voteless.append(key)
                else:
                    vote_keys.append(key * MAX_VOTES + answer.vote)
                    votes.append(_pack(vote))
        keys = np.frombuffer(vote_keys, dtype=np.int64)
        order = np.argsort(keys, kind="stable")
        self._votes = np.frombuffer(votes, dtype=np.uint8)[order]
        self._instances, self._starts = np.unique(keys[order] // MAX_VOTES, return_index=True)
        self.unjudged = int(np.setdiff1d(np.frombuffer(voteless, dtype=np.int64), self._instances).size)

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
        """The verdict's score (1..5), as in `fastgen.export.entries.InstanceScores`."""
        found = self.verdict(number, index)
        return None if found is None else found.score

    def _votes_at(self, place: int) -> tuple[Vote, ...]:
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self._votes)
        return tuple(map(_unpack, self._votes[self._starts[place] : end].tolist()))


_YES = 1, 2, 4
_SCORE = 8


def _pack(vote: Vote) -> int:
    answers = vote.valid_task, vote.input_fits, vote.output_right
    return sum(bit for bit, yes in zip(_YES, answers, strict=True) if yes) + _SCORE * vote.score


def _unpack(packed: int) -> Vote:
    valid, fits, right = (bool(packed & bit) for bit in _YES)
    return Vote(valid, fits, right, packed // _SCORE)
