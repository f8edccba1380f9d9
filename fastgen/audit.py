"""Checks a run's similarity decisions against the full scan, to learn how often its index missed a true neighbour.

A share of all decisions is drawn at random (keyed by the seed given), and each is made again by the exhaustive index
against the very pool that the instruction was compared with then. A kept instruction that the full scan rejects is a
miss; a rejected one that it keeps would be a wrong rejection, which cannot happen by construction. The bound is
Clopper and Pearson's (1934): with 95 % confidence the true rate is not above it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from fastgen.commits import Commit, InstructionOutcome
from fastgen.method.admission import SIMILAR
from fastgen.method.novelty import NoveltyFilter
from fastgen.method.rules import Rules
from fastgen.records import SeedTask
from fastgen.runs import open_run
from fastgen.stages.instruction import item_text
from fastgen.storage.log.format import TornTail

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A decision that the full scan makes otherwise, and the neighbour that decides (pool index, ROUGE-L)."""

    kind: Literal["missed", "wrongly rejected"]
    instruction: str
    neighbour: int | None
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What was checked and what was found."""

    kept_checked: int
    rejected_checked: int
    disagreements: tuple[Disagreement, ...]

    @property
    def misses(self) -> int:
        """Kept instructions that the full scan rejects."""
        return sum(found.kind == "missed" for found in self.disagreements)

    @property
    def miss_rate_bound(self) -> float:
        """Upper 95 % confidence bound of the share of kept instructions that should have been rejected."""
        return upper_bound(self.misses, self.kept_checked)

    def __str__(self) -> str:
        wrong = len(self.disagreements) - self.misses
        lines = [
            f"checked {self.kept_checked} kept and {self.rejected_checked} rejected instructions against the full scan",
            f"missed neighbours: {self.misses}; with 95 % confidence at most {self.miss_rate_bound:.3%} of the kept",
            f"wrong rejections: {wrong}",
        ]
        lines += [f"  {d.kind} (ROUGE-L {d.rouge_l:.3f}): {d.instruction}" for d in self.disagreements[:20]]
        return "\n".join(lines)


class Auditor:
    """Follows a run's similarity decisions in their order and makes a share of them again by the full scan.

    ``rate`` (0..1] is that share, drawn with ``seed``. Holds a pool of its own: about 100 bytes an instruction. One
    thread at a time.
    """

    def __init__(self, similarity: Mapping[str, Any], seeds: Sequence[SeedTask], *, rate: float, seed: int = 0) -> None:
        rule = {name: similarity[name] for name in ("threshold", "reject_at", "tokenizer")}
        self._scan = NoveltyFilter(**rule, index="exhaustive")
        self._scan.add_seeds([task.instruction for task in seeds])
        self._rate = rate
        self._drawn = random.Random(f"audit/{seed}")
        self._kept = self._rejected = 0
        self._found: list[Disagreement] = []

    def learn(self, texts: Sequence[str]) -> None:
        """Take kept instructions into the pool unchecked: what an earlier session decided."""
        self._scan.add(texts)

    def see(self, commit: Commit, rules: Rules) -> list[Disagreement]:
        """Follow one commit; what is found now is returned."""
        found = [d for text, kept in _decisions(commit, rules) if (d := self._follow(text, kept=kept)) is not None]
        self._found += found
        return found

    def _follow(self, text: str, *, kept: bool) -> Disagreement | None:
        found = self._check(text, kept=kept) if self._drawn.random() < self._rate else None
        if kept:
            self._scan.add([text])
        return found

    def _check(self, text: str, *, kept: bool) -> Disagreement | None:
        self._kept += kept
        self._rejected += not kept
        verdict = self._scan.look_up([text])[0]
        if verdict.novel == kept:
            return None
        return Disagreement("missed" if kept else "wrongly rejected", text, verdict.neighbour, verdict.score)

    def result(self) -> Audit:
        """What was checked so far."""
        return Audit(self._kept, self._rejected, tuple(self._found))


def audit(run_dir: Path, *, rate: float, seed: int = 0) -> Audit:
    """Check a share ``rate`` (0..1] of the run's similarity decisions.

    :raises InputError: no run there, or a damaged one.
    """
    run = open_run(run_dir)
    auditor = Auditor(run.meaning, run.seeds, rate=rate, seed=seed)
    for item in run.folder.commits():
        if not isinstance(item, TornTail):
            auditor.see(item[0], run.rules)
    return auditor.result()


def _decisions(commit: Commit, rules: Rules) -> Iterator[tuple[str, bool]]:
    """(text, whether it was kept) of what the similarity filter decided about a completion, in order."""
    if isinstance(commit.outcome, InstructionOutcome):
        spans = [(kept.span, True) for kept in commit.outcome.kept]
        spans += [(rejection.span, False) for rejection in commit.outcome.rejected if rejection.rule == SIMILAR]
        for span, kept in sorted(spans):
            yield item_text(commit.completion.text, span, rules), kept


def upper_bound(events: int, trials: int) -> float:
    """Clopper-Pearson upper bound of a rate at 95 % confidence, by bisection on the binomial distribution."""
    if trials == 0 or events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    while high - low > 1e-9:  # noqa: PLR2004 - far below what is shown
        middle = (low + high) / 2
        if _at_most(events, trials, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, trials: int, rate: float) -> float:
    """P(X <= events) for a binomial X; the normal approximation where the exact sum would be long."""
    if events > 1000:  # noqa: PLR2004 - terms
        spread = (trials * rate * (1 - rate)) ** 0.5
        return NormalDist(trials * rate, spread).cdf(events + 0.5)
    term = total = (1 - rate) ** trials
    for k in range(events):
        term *= (trials - k) / (k + 1) * rate / (1 - rate)
        total += term
    return total
