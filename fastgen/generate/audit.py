"""Checks a run's similarity decisions against the full scan, to learn how often its index missed a true neighbour.

Decisions are drawn at random (keyed by the seed given). The exhaustive index makes each again, against the very pool
that the instruction was compared with then. A kept instruction that the full scan rejects is a miss. A rejected one
that it keeps would be a wrong rejection, which cannot happen by construction. The bound is exact: with 95 % confidence
no more of the run's kept instructions are misses. Where all were checked it is the number found.

`audit` checks a run in its folder. `BackgroundAudit` checks a run in progress in a thread, which gets every commit from
the run's loop and never delays it.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fastgen.methods.admission import SIMILAR
from fastgen.methods.base import Commit, Created
from fastgen.methods.state import RunState
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.store.reader import open_run
from fastgen.types import SeedTask, Span

log = logging.getLogger(__name__)

CONFIDENCE = 0.95
BUDGET = 10_000_000_000
"""Pairs of texts that an audit compares where no share is asked for: about half a minute on one core."""
FEWEST = 3000
"""Decisions that are checked whatever that costs: enough to bound the misses at 0.1 % where none is found."""
BACKLOG = 10_000
"""Commits that may wait for a check, which bounds the memory of an audit that is slower than the run."""
ItemText = Callable[[str, Span], str]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A decision that the full scan makes otherwise, and the neighbour that decides (pool index, ROUGE-L)."""

    kind: Literal["missed", "wrongly rejected"]
    instruction: str
    neighbour: int | None
    rouge_l: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What was checked and what was found, of ``kept`` instructions in all."""

    kept: int
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
        return upper_bound(self.misses, self.kept_checked, self.kept)

    def __str__(self) -> str:
        wrong = len(self.disagreements) - self.misses
        bound = f"with 95 % confidence at most {self.miss_rate_bound:.3%} of the {self.kept} kept"
        if self.kept_checked == self.kept:
            bound = f"all {self.kept} kept were checked"
        lines = [
            f"checked {self.kept_checked} kept and {self.rejected_checked} rejected instructions against the full scan",
            f"missed neighbours: {self.misses}; {bound}",
            f"wrong rejections: {wrong}",
        ]
        lines += [f"  {d.kind} (ROUGE-L {d.rouge_l:.3f}): {d.instruction}" for d in self.disagreements[:20]]
        return "\n".join(lines)


class Auditor:
    """Follows a run's similarity decisions in their order and makes a share of them again by the full scan.

    ``rate`` (0..1] is that share, drawn with ``seed``. It holds a second pool of about 100 bytes an instruction. One
    thread at a time may call it.
    """

    def __init__(self, similarity: Mapping[str, Any], seeds: Sequence[SeedTask], *, rate: float, seed: int = 0) -> None:
        rule = {name: similarity[name] for name in ("threshold", "reject_at", "tokenizer")}
        self._scan = NoveltyFilter(**rule, index="exhaustive")
        self._scan.add_seeds([task.instruction for task in seeds])
        self._rate = rate
        self._drawn = random.Random(f"audit/{seed}")
        self._all_kept = self._kept = self._rejected = 0
        self._found: list[Disagreement] = []

    def learn(self, texts: Sequence[str]) -> None:
        """Add kept instructions that an earlier session decided. They are not checked."""
        self._scan.add(texts)

    def see(self, commit: Commit, item_text: ItemText) -> list[Disagreement]:
        """Check one commit and return the disagreements in it."""
        found = []
        for text, kept in _decisions(commit, item_text):
            if self._drawn.random() < self._rate and (one := self._check(text, kept=kept)) is not None:
                found.append(one)
            if kept:
                self._all_kept += 1
                self._scan.add([text])
        self._found += found
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
        return Audit(self._all_kept, self._kept, self._rejected, tuple(self._found))


def audit(run_dir: Path, *, rate: float | None = None, seed: int = 0, budget: int = BUDGET) -> Audit:
    """Check a share ``rate`` (0..1] of the run's similarity decisions.

    Without a rate, as many are checked as ``budget`` comparisons allow (all of them in a run of up to about 100,000
    instructions), and at least `FEWEST`.

    :raises InputError: no run there, or a damaged one.
    """
    run = open_run(run_dir)
    if rate is None:
        ledger = run.folder.ledger()
        rate = _share(ledger.kept, ledger.rejected[SIMILAR], len(run.seeds), budget)
    auditor = Auditor(run.configuration, run.seeds, rate=rate, seed=seed)
    for commit in run.folder.whole_commits():
        auditor.see(commit, run.item_text)
    return auditor.result()


def _share(kept: int, rejected: int, seeds: int, budget: int) -> float:
    """Share of the decisions that ``budget`` comparisons allow. On average the pool has half of its last size."""
    decisions = max(kept + rejected, 1)
    return min(1.0, max(FEWEST / decisions, budget / (decisions * (seeds + kept / 2 + 1))))


def _decisions(commit: Commit, item_text: ItemText) -> Iterator[tuple[str, bool]]:
    """(text, whether it was kept) of what the similarity filter decided about a completion, in order."""
    if isinstance(commit.outcome, Created):
        spans = [(kept.span, True) for kept in commit.outcome.kept]
        spans += [(rejection.span, False) for rejection in commit.outcome.rejected if rejection.rule == SIMILAR]
        for span, kept in sorted(spans):
            yield item_text(commit.completion.text, span), kept


def upper_bound(events: int, trials: int, population: int) -> float:
    """Exact upper bound, at 95 % confidence, of the share of a population that has the property.

    ``events`` of ``trials`` members, drawn without replacement from ``population``, have it: the largest share with
    which that few would be drawn in more than 5 % of all draws (hypergeometric distribution).
    """
    low, high = events, population - (trials - events)
    while low < high:
        middle = (low + high + 1) // 2
        if _at_most(events, trials, middle, population) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle - 1
    return low / population if population else 1.0


def _at_most(events: int, trials: int, marked: int, population: int) -> float:
    """P(X <= events), X being how many of ``trials`` drawn are ``marked``. Summed from the largest term down."""
    fewest = max(0, trials - (population - marked))
    if events < fewest:
        return 0.0
    top = min(events, marked)
    log_term = (
        _log_choose(marked, top) + _log_choose(population - marked, trials - top) - _log_choose(population, trials)
    )
    term = total = 1.0
    for k in range(top, fewest, -1):
        term *= k / (marked - k + 1) * ((population - marked - trials + k) / (trials - k + 1))
        total += term
        if term < total * 1e-17:  # below a float's resolution; terms only fall from here on
            break
    return min(1.0, math.exp(log_term + math.log(total)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


class BackgroundAudit:
    """An audit in a thread, which runs as long as the block of this context manager.

    Give it every commit through `observe`. `finish` waits for the rest and returns what was found. Leaving the block
    without it abandons the rest. An audit that fails, or falls ``backlog`` commits behind, ends with one warning.
    """

    def __init__(
        self, auditor: Auditor, item_text: ItemText, report: Callable[[str], None], *, backlog: int = BACKLOG
    ) -> None:
        self._auditor = auditor
        self._item_text = item_text
        self._report = report
        self._backlog = backlog
        self._queue: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._queue.put(None)
        self._thread.join()

    def observe(self, commit: Commit) -> None:
        """Hand over one commit, in order. Never waits."""
        if self._ended.is_set():
            return
        if self._queue.qsize() >= self._backlog:
            self._end_early(f"the audit is {self._backlog} answers behind and ends here")
            return
        self._queue.put(commit)

    def finish(self) -> Audit | None:
        """Wait until all commits are checked. Returns the result, or ``None`` if the audit ended early."""
        self._queue.put(None)
        self._thread.join()
        return None if self._ended.is_set() else self._auditor.result()

    def _run(self) -> None:
        try:
            while (commit := self._queue.get()) is not None and not self._ended.is_set():
                for found in self._auditor.see(commit, self._item_text):
                    self._report(f"audit: {found.kind} (ROUGE-L {found.rouge_l:.3f}): {found.instruction}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to end the run
            self._end_early(f"the audit ended ({type(error).__name__}: {error})")

    def _end_early(self, reason: str) -> None:
        self._ended.set()
        log.warning("%s; the run continues without it, and 'fastgen audit --rate 1' checks all of it later", reason)


def audit_of(
    state: RunState, similarity: Mapping[str, Any], *, rate: float, report: Callable[[str], None]
) -> BackgroundAudit:
    """An audit of a run from ``state`` on. It checks a share ``rate`` (above 0, at most 1) of the decisions."""
    pool = state.pool
    auditor = Auditor(similarity, state.method.seeds, rate=rate, seed=len(pool))
    auditor.learn([pool.text(number) for number in range(len(pool))])
    return BackgroundAudit(auditor, state.method.item_text, report)
