"""What judges said of a run, in figures and as text, and how far they agree.

Shares of yes have Wilson's 95 % score interval (E. B. Wilson, 1927), which assumes independent instances. Those of one
instruction are not quite independent, so it is a little too narrow. The original study's figures are its authors' own
ratings of 200 sampled instances (Wang et al., 2023, table 2). An instance without a readable vote is counted as such
and is in no share.

Agreement is Krippendorff's alpha (K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011): 1 - observed /
expected disagreement, for any number of raters and with missing ratings. 1 is perfect agreement, 0 is chance. Its 95 %
interval is a percentile bootstrap over items. Items with the same ratings are counted together, so neither the time nor
the memory of the bootstrap grows with their number.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from fastgen.judge.judgements import Judgements, judge_names, judgements_folder, read_header, read_judgements
from fastgen.judge.prompts import QUESTIONS, SCORES, Verdict
from fastgen.store.files import write_file
from fastgen.store.reader import open_run

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, np.dtype[np.float64]]

PAPER: Final[Mapping[str, float]] = {"valid_task": 0.92, "input_fits": 0.79, "output_right": 0.58, "all_right": 0.54}
"""The original study's shares of yes."""
ASKED: Final[Mapping[str, str]] = {
    "valid_task": "a valid task",
    "input_fits": "the input fits",
    "output_right": "the output is right",
    "all_right": "all three",
}
_Z: Final = 1.959963984540054  # 97.5 % of the normal distribution
_FILE: Final = "summary.json"
_MEDIANS: Final = tuple(half / 2 for half in range(2 * SCORES[0], 2 * SCORES[-1] + 1))
_RESAMPLES: Final = 1000
_PERCENTILES: Final = (2.5, 97.5)
_BAR: Final = 30


def summarise(run_dir: Path, name: str | None = None) -> dict[str, Any]:
    """The figures as plain JSON values: ``judges``, one for each name (or the one named), and ``between_judges``.

    Of a judge: ``questions`` (with ``all_right``) have ``yes``, ``share``, ``low``, ``high`` and ``paper``, all but the
    last ``None`` if nothing is judged. ``scores`` counts instances by median score.

    :raises InputError: nothing was judged, or not under that name. :raises DamagedLogError: a log is damaged.
    """
    names = judge_names(run_dir) if name is None else [name]
    if not names:
        read_judgements(run_dir)  # raises the error that says how to judge the run
    judges = [read_judgements(run_dir, one) for one in names]
    run = open_run(run_dir)
    instances = run.instances(run.folder.ledger())
    return {
        "judges": [_judge_figures(run_dir, one, instances) for one in judges],
        "between_judges": _agreement_between(judges) if len(judges) > 1 else None,
    }


def _judge_figures(run_dir: Path, judgements: Judgements, instances: int) -> dict[str, Any]:
    (name,) = judgements.names
    header = read_header(run_dir, name)
    yes: Counter[str] = Counter()
    scores: Counter[float] = Counter()
    ratings = _new_ratings(SCORES)
    for judged in judgements:
        verdict = judged.verdict
        yes.update(question for question in ASKED if getattr(verdict, question))
        scores[verdict.score] += 1
        for field, one in ratings.items():
            one.add(getattr(vote, field) for vote in judged.votes)
    total = len(judgements)
    return {
        "name": name,
        **{key: header.get(key) for key in ("model", "prompt", "api", "temperature", "top_p", "max_tokens")},
        "judged": total,
        "instances": instances,
        "unjudged": judgements.unjudged,
        "answers": judgements.answers,
        "unreadable": {fault.value: count for fault, count in judgements.faults.most_common()},
        "failed_requests": dict(judgements.failures.most_common()),
        "completion_tokens": judgements.completion_tokens,
        "questions": {question: _share(yes[question], total, PAPER[question]) for question in ASKED},
        "scores": {f"{score:g}": scores[score] for score in sorted(scores)},
        "mean_score": sum(score * count for score, count in scores.items()) / total if total else None,
        "vote_agreement": _agreements(ratings),
    }


def _share(yes: int, total: int, paper: float) -> dict[str, Any]:
    low, high = wilson(yes, total) if total else (None, None)
    return {"yes": yes, "share": yes / total if total else None, "low": low, "high": high, "paper": paper}


def wilson(yes: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. ``total`` is 1 or more."""
    share, square = yes / total, _Z * _Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = _Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _agreement_between(judges: Sequence[Judgements]) -> dict[str, Any] | None:
    """The judges' verdicts as ratings of the instances that they share."""
    ratings = _new_ratings(_MEDIANS)
    for verdicts in _shared_verdicts(judges):
        for field, one in ratings.items():
            one.add(getattr(verdict, field) for verdict in verdicts)
    return _agreements(ratings)


def _shared_verdicts(judges: Sequence[Judgements]) -> Iterator[list[Verdict]]:
    """The verdicts on every instance that two or more of them judged."""
    merged = heapq.merge(*judges, key=lambda judged: judged[:2])
    for _, found in groupby(merged, key=lambda judged: judged[:2]):
        verdicts = [judged.verdict for judged in found]
        if len(verdicts) > 1:
            yield verdicts


Level = Literal["nominal", "interval"]


def _new_ratings(scores: Sequence[float]) -> dict[str, Ratings]:
    """By field of a vote."""
    questions = {question: Ratings((False, True), "nominal") for question in QUESTIONS}
    return questions | {"score": Ratings(scores, "interval")}


def _agreements(ratings: Mapping[str, Ratings]) -> dict[str, Any] | None:
    """``None`` if nothing was rated twice."""
    found = {name: one.agreement() for name, one in ratings.items()}
    return {name: asdict(one) for name, one in found.items()} if any(one.items for one in found.values()) else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How ``items`` with two or more ratings were rated.

    ``alpha`` (at most 1) is ``None`` if no rating differs, since it is undefined then. ``low`` and ``high`` are its
    95 % interval. ``percent`` (0..1) is the share of equal pairs among the ratings of an item, averaged over items.
    """

    items: int
    alpha: float | None
    low: float | None
    high: float | None
    percent: float | None


class Ratings:
    """Collects items. ``values`` are all that a rating can be, in order."""

    def __init__(self, values: Sequence[float], level: Level) -> None:
        self._values = values
        self._level = level
        self._place = {value: place for place, value in enumerate(values)}
        self._patterns: Counter[tuple[int, ...]] = Counter()  # items by how many raters gave each value

    def add(self, ratings: Iterable[float]) -> None:
        """Count one item by its ratings. An item with fewer than two says nothing about agreement and is left out."""
        pattern = [0] * len(self._values)
        for rating in ratings:
            pattern[self._place[rating]] += 1
        if sum(pattern) > 1:
            self._patterns[tuple(pattern)] += 1

    def agreement(self, *, seed: int = 0) -> Agreement:
        """The figures. The same ratings and seed give the same interval."""
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


def write_summary(run_dir: Path, name: str) -> None:
    """Save the figures of one judge for `saved_summaries`.

    :raises DiskError: they cannot be written.
    """
    (figures,) = summarise(run_dir, name)["judges"]
    path = judgements_folder(run_dir) / name / _FILE
    write_file(path, orjson.dumps(figures, option=orjson.OPT_INDENT_2))


def saved_summaries(run_dir: Path) -> list[dict[str, Any]]:
    """The figures of every judge at the end of its last session, without reading any log.

    Files that cannot be read, or that lack what `one_line` shows, are left out.
    """
    found = []
    for path in sorted(judgements_folder(run_dir).glob(f"*/{_FILE}")):
        with suppress(OSError, ValueError, TypeError, LookupError):
            figures = orjson.loads(path.read_bytes())
            one_line(figures)
            found.append(figures)
    return found


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
