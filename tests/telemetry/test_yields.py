"""The yield watch: figures of the window, one warning, and a rule that ends a run by the commits alone."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from fastgen.store.ledger import Ledger
from fastgen.telemetry.yields import YieldWatch


class Story:
    """A ledger that gets instruction completions of 100 tokens each, and what its watch does."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.said: list[str] = []
        self.closed: list[Collection[str]] = []

    def write(self, completions: int, *, kept: int, other_tokens: int = 0, complete: int = 0) -> None:
        ledger = self.ledger
        ledger.completions["instruction"] += completions
        ledger.completion_tokens["instruction"] += 100 * completions
        ledger.completion_tokens["instance"] += other_tokens
        ledger.kept += kept
        ledger.complete += complete

    def watch(self, window: int, stop_below: float = 0.0) -> YieldWatch:
        return YieldWatch(
            self.ledger, window=window, stop_below=stop_below, say=self.said.append, stop_asking=self.closed.append
        )


def test_yield_counts_all_stages_tokens_and_novelty_those_of_instructions_alone() -> None:
    story = Story()
    watch = story.watch(10)
    story.write(10, kept=20, other_tokens=3000, complete=15)
    watch()
    assert watch.kept_per_1000_tokens == pytest.approx(5.0)
    assert watch.complete_per_1000_tokens == pytest.approx(3.75)
    assert watch.novelty == pytest.approx(20.0)
    assert watch.is_full


def test_the_window_forgets_older_completions() -> None:
    story = Story()
    watch = story.watch(10)
    for kept in [5] * 20 + [1] * 10:
        story.write(1, kept=kept)
        watch()
    assert watch.novelty == pytest.approx(10.0)
    assert watch.best_novelty == pytest.approx(50.0)


def test_a_window_is_at_most_a_fiftieth_longer_than_asked_whatever_the_batches() -> None:
    story = Story()
    watch = story.watch(500)
    for batch in [1, 7, 64, 3, 30, 64] * 20:
        story.write(batch, kept=batch)
        watch()
    before = story.ledger.kept
    story.write(500 + 64 + 10, kept=0)
    watch()
    assert before
    assert watch.novelty == 0.0


def test_nothing_is_judged_before_the_window_is_full() -> None:
    story = Story()
    watch = story.watch(10, stop_below=100.0)
    story.write(9, kept=1)
    watch()
    assert (watch.ended_by, story.said) == (None, [])
    story.write(1, kept=0)
    watch()
    assert watch.ended_by == (
        "--stop-when-yield-below 100: the last 10 instruction completions kept 1.00 instructions per 1,000 generated "
        "tokens"
    )


def test_a_yield_at_the_users_figure_continues_and_one_below_ends_the_run() -> None:
    story = Story()
    watch = story.watch(10, stop_below=10.0)
    story.write(10, kept=10)
    watch()
    assert watch.ended_by is None
    story.write(10, kept=9)
    watch()
    assert watch.ended_by is not None


def test_the_warning_comes_once_at_half_of_the_best_and_names_remedies() -> None:
    story = Story()
    watch = story.watch(10)
    counts = []
    for kept in [40, 20, 19, 5, 40, 1]:
        story.write(10, kept=kept)
        watch()
        counts.append(len(story.said))
    assert counts == [0, 0, 1, 1, 1, 1]
    for lever in ("--seed-tasks", "temperature", "--demonstrations", "--model"):
        assert lever in story.said[0]
    assert "kept 19.00 instructions per 1,000 tokens that wrote them, it was 40.00" in story.said[0]


def test_a_resumed_run_uses_its_mean_novelty() -> None:
    story = Story()
    story.write(100, kept=400)
    watch = story.watch(10)
    assert watch.best_novelty == pytest.approx(40.0)
    assert not watch.is_full
    story.write(10, kept=10)
    watch()
    assert len(story.said) == 1


def test_the_rule_stops_new_requests_once_and_says_so_once() -> None:
    story = Story()
    watch = story.watch(4, stop_below=100.0)
    for _ in range(4):
        story.write(3, kept=3)
        watch()
    assert story.closed == [("instruction",)]
    assert len(story.said) == 1
    assert watch.ended_by is not None
    assert story.said[0].startswith(watch.ended_by)
