"""Judgements in figures: shares of yes beside the original study's, scores, what could not be read, agreement.

Shares have Wilson's 95 % score interval (E. B. Wilson, 1927), which takes instances for independent; those of one
instruction are not quite, so it is a little too narrow. Agreement: :mod:`fastgen.judging.agreement`. The original's
figures are its authors' own ratings of 200 sampled instances (Wang et al., 2023, table 2). Nothing here guesses: an
instance without a readable vote is counted as such and in no share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from fastgen.errors import DiskError
from fastgen.judging.agreement import Agreement, Ratings
from fastgen.judging.places import judge_names, judgements_folder
from fastgen.judging.readings import Judgements, read_header, read_judgements, side_by_side
from fastgen.judging.verdicts import QUESTIONS, SCORES
from fastgen.storage.files import replacing
from fastgen.storage.runfolder import RunFolder

PAPER: Final[Mapping[str, float]] = {"valid_task": 0.92, "input_fits": 0.79, "output_right": 0.58, "all_right": 0.54}
"""Shares of yes in the original study."""
ASKED: Final[Mapping[str, str]] = {
    "valid_task": "a valid task",
    "input_fits": "the input fits",
    "output_right": "the output is right",
    "all_right": "all three",
}
_Z = 1.959963984540054  # 97.5 % of the normal distribution
_FILE: Final = "summary.json"
_MEDIANS: Final = tuple(half / 2 for half in range(2 * SCORES[0], 2 * SCORES[-1] + 1))


def wilson(yes: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; ``total`` is 1 or more."""
    share, square = yes / total, _Z * _Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise(run_dir: Path, name: str | None = None) -> dict[str, Any]:
    """The figures as plain JSON values: ``judges``, one for each name (or the one named), and ``between_judges``.

    Of a judge: ``questions`` (with ``all_right``) have ``yes``, ``share``, ``low``, ``high`` and ``paper``, all but the
    last ``None`` where nothing is judged; ``scores`` counts instances by median score.

    :raises InputError: nothing was judged, or not under that name. :raises DamagedLogError: a log is damaged.
    """
    all_judgements = [read_judgements(run_dir, one) for one in _names(run_dir, name)]
    of = RunFolder(run_dir).ledger().instances
    judges = [_judge(run_dir, one.names[0], one, of) for one in all_judgements]
    return {"judges": judges, "between_judges": _between(all_judgements) if len(all_judgements) > 1 else None}


def _names(run_dir: Path, name: str | None) -> list[str]:
    names = judge_names(run_dir) if name is None else [name]
    if not names:
        read_judgements(run_dir)  # says what is missing
    return names


def _judge(run_dir: Path, name: str, judgements: Judgements, instances: int) -> dict[str, Any]:
    header, answers = read_header(run_dir, name), judgements.answers
    yes: Counter[str] = Counter()
    scores: Counter[float] = Counter()
    ratings = _ratings(SCORES)
    for judged in judgements:
        verdict = judged.verdict
        yes.update(question for question in ASKED if getattr(verdict, question))
        scores[verdict.score] += 1
        for question in QUESTIONS:
            ratings[question].add(getattr(vote, question) for vote in judged.votes)
        ratings["score"].add(vote.score for vote in judged.votes)
    total = len(judgements)
    return {
        "name": name,
        **{key: header.get(key) for key in ("model", "prompt", "api", "temperature", "top_p", "max_tokens")},
        "judged": total,
        "instances": instances,
        "unjudged": answers.unjudged,
        "answers": answers.answers,
        "unreadable": {fault.value: count for fault, count in answers.faults.most_common()},
        "failed_requests": dict(answers.failures.most_common()),
        "completion_tokens": answers.completion_tokens,
        "questions": {question: _share(yes[question], total, PAPER[question]) for question in ASKED},
        "scores": {f"{score:g}": scores[score] for score in sorted(scores)},
        "mean_score": sum(score * count for score, count in scores.items()) / total if total else None,
        "vote_agreement": _agreements(ratings),
    }


def _share(yes: int, total: int, paper: float) -> dict[str, Any]:
    low, high = wilson(yes, total) if total else (None, None)
    return {"yes": yes, "share": yes / total if total else None, "low": low, "high": high, "paper": paper}


def _ratings(scores: Sequence[float]) -> dict[str, Ratings]:
    return {question: Ratings((False, True), "nominal") for question in QUESTIONS} | {
        "score": Ratings(scores, "interval")
    }


def _agreements(ratings: Mapping[str, Ratings]) -> dict[str, Any] | None:
    """``None`` where nothing was rated twice."""
    found: dict[str, Agreement] = {name: one.agreement() for name, one in ratings.items()}
    return {name: asdict(one) for name, one in found.items()} if any(one.items for one in found.values()) else None


def _between(judges: Sequence[Judgements]) -> dict[str, Any] | None:
    """The judges' verdicts as ratings of the instances that they share."""
    ratings = _ratings(_MEDIANS)
    for verdicts in side_by_side(judges):
        for question in QUESTIONS:
            ratings[question].add(getattr(verdict, question) for verdict in verdicts)
        ratings["score"].add(verdict.score for verdict in verdicts)
    return _agreements(ratings)


def write_summary(run_dir: Path, name: str) -> None:
    """Keep the figures of one judge where `kept_summaries` finds them. :raises DiskError: they cannot be written."""
    (figures,) = summarise(run_dir, name)["judges"]
    path = judgements_folder(run_dir) / name / _FILE
    try:
        with replacing(path) as sink:
            sink.write(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); make it writable and run the same command again"
        ) from None


def kept_summaries(run_dir: Path) -> list[dict[str, Any]]:
    """The figures of every judge as its last session left them, without reading any log; broken files are left out."""
    found = []
    for path in sorted(judgements_folder(run_dir).glob(f"*/{_FILE}")):
        try:
            figures = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if _is_whole(figures):
            found.append(figures)
    return found


def _is_whole(figures: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether it has what `fastgen status` shows of a judge."""
    try:
        share = figures["questions"]["all_right"]["share"]
        shown = figures["mean_score"], share
        named = isinstance(figures["name"], str) and isinstance(figures["judged"], int)
    except (TypeError, LookupError):
        return False
    return named and (shown == (None, None) or all(isinstance(one, int | float) for one in shown))
