"""How far raters agree: Krippendorff's alpha and the share of agreeing pairs, with a bootstrap interval.

Alpha after K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): 1 - observed / expected disagreement,
for any number of raters and with missing ratings; 1 is perfect agreement, 0 what chance gives. Items are held as
patterns (how many raters gave each value) with their frequency, so neither time nor memory of the bootstrap grows with
the number of items. The bootstrap (percentile) draws items, not ratings. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from fastgen.errors import DiskError
from fastgen.judge.judgements import (
    Judgements,
    judge_names,
    judgements_folder,
    read_header,
    read_judgements,
    side_by_side,
)
from fastgen.judge.prompts import QUESTIONS, SCORES
from fastgen.store.files import replacing
from fastgen.store.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, np.dtype[np.float64]]


Level = Literal["nominal", "interval"]
_RESAMPLES = 1000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How ``items`` with two or more ratings were rated.

    ``alpha`` (at most 1) is ``None`` where nothing varies, so that nothing can be said; ``low`` and ``high`` bound it
    at 95 %. ``percent`` (0..1) is the share of equal pairs of ratings of one item, every item counting the same.
    """

    items: int
    alpha: float | None
    low: float | None
    high: float | None
    percent: float | None


class Ratings:
    """Collects items; ``values`` are all that a rating can be, in order."""

    def __init__(self, values: Sequence[float], level: Level) -> None:
        self._values = list(values)
        self._level = level
        self._place = {value: place for place, value in enumerate(values)}
        self._patterns: Counter[tuple[int, ...]] = Counter()

    def add(self, ratings: Iterable[float]) -> None:
        """One item's ratings; one with fewer than two says nothing of agreement."""
        pattern = [0] * len(self._values)
        for rating in ratings:
            pattern[self._place[rating]] += 1
        if sum(pattern) > 1:
            self._patterns[tuple(pattern)] += 1

    def agreement(self, *, seed: int = 0) -> Agreement:
        """The figures; the same ratings and seed give the same interval."""
        import numpy as np

        if not self._patterns:
            return Agreement(0, None, None, None, None)
        patterns = sorted(self._patterns)
        counts = np.array(patterns, dtype=np.float64)
        items = np.array([[self._patterns[pattern] for pattern in patterns]], dtype=np.float64)
        total = int(items.sum())
        alpha = self._alphas(counts, items)[0]
        raters = counts.sum(axis=1)
        equal = (counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))
        percent = float(items[0] @ equal / total)
        if np.isnan(alpha):
            return Agreement(total, None, None, None, percent)
        draws = np.random.default_rng(seed).multinomial(total, items[0] / total, size=_RESAMPLES)
        drawn = self._alphas(counts, draws.astype(np.float64))
        drawn = drawn[~np.isnan(drawn)]
        low, high = (float(bound) for bound in np.percentile(drawn, _PERCENTILES)) if drawn.size else (None, None)
        return Agreement(total, float(alpha), low, high, percent)

    def _alphas(self, counts: _Array, items: _Array) -> _Array:
        """Alpha for each row of item frequencies (rows x patterns); NaN where nothing varies."""
        import numpy as np

        values = np.array(self._values, dtype=np.float64)
        difference = values[:, None] - values[None, :]
        distance = (difference != 0).astype(np.float64) if self._level == "nominal" else difference**2
        raters = counts.sum(axis=1)
        observed = items @ (np.einsum("pc,ck,pk->p", counts, distance, counts) / (raters - 1))
        totals = items @ counts
        ratings = totals.sum(axis=1)
        expected = np.einsum("rc,ck,rk->r", totals, distance, totals) / (ratings - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            alphas: _Array = np.where(expected > 0, 1 - observed / expected, np.nan)
        return alphas


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


_BAR = 30


def render(figures: Mapping[str, Any]) -> str:
    """Everything that `summarise` found."""
    parts = [_judge_lines(judge) for judge in figures["judges"]]
    if figures["between_judges"] is not None:
        parts.append("agreement between judges\n" + _agreement(figures["between_judges"]))
    return "\n\n".join(parts)


def one_line(figures: Mapping[str, Any]) -> str:
    """One judge in one line, for `fastgen status`."""
    right = figures["questions"]["all_right"]["share"]
    if right is None:
        return f"{figures['name']}: nothing readable yet"
    return (
        f"{figures['name']}: {figures['judged']:,} instances, all three right {right:.0%}, mean score "
        f"{figures['mean_score']:.2f}"
    )


def _judge_lines(judge: Mapping[str, Any]) -> str:
    unreadable, failed = judge["unreadable"], judge["failed_requests"]
    share = f" ({sum(unreadable.values()) / judge['answers']:.1%})" if judge["answers"] else ""
    lines = [
        f"{judge['name']}: {judge['judged']:,} of {judge['instances']:,} instances judged by {judge['model']}",
        f"  prompt {judge['prompt']}, --api {judge['api']}, temperature {judge['temperature']}",
        f"  answers            {judge['answers']:,}, {judge['completion_tokens']:,} tokens",
        f"  unreadable         {sum(unreadable.values()):,}{share}: {_listed(unreadable)}",
        f"  failed requests    {sum(failed.values()):,}: {_listed(failed)}",
        f"  without a verdict  {judge['unjudged']:,} instances that were asked about",
    ]
    if judge["judged"]:
        lines += [
            "",
            "                         yes   95 % interval   original",
            *map(_question, judge["questions"].items()),
        ]
        lines += ["", f"  score (median of the votes), mean {judge['mean_score']:.2f}", *_histogram(judge["scores"])]
    if judge["vote_agreement"] is not None:
        lines += ["", "  agreement between votes", _agreement(judge["vote_agreement"])]
    return "\n".join(lines)


def _question(item: tuple[str, Mapping[str, Any]]) -> str:
    question, one = item
    interval = f"{one['low']:>5.1%} to {one['high']:>5.1%}"
    return f"  {ASKED[question]:<20} {one['share']:>6.1%}   {interval:<16} {one['paper']:>6.0%}"


def _histogram(scores: Mapping[str, int]) -> list[str]:
    most = max(scores.values())
    return [f"    {score:>3}  {'#' * round(_BAR * count / most):<{_BAR}} {count:,}" for score, count in scores.items()]


def _agreement(found: Mapping[str, Any]) -> str:
    lines = ["                         alpha   95 % interval      equal   instances"]
    for name, one in found.items():
        if one["alpha"] is None:
            alpha = "    -   nothing varies "
        else:
            alpha = f"{one['alpha']:>5.2f}   {one['low']:>5.2f} to {one['high']:>5.2f}"
        equal = "-" if one["percent"] is None else f"{one['percent']:.1%}"
        lines.append(f"  {ASKED.get(name, name):<22} {alpha:<24} {equal:>6}   {one['items']:,}")
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
