"""The yield watch: figures of the window, one warning, and a rule that ends a run by the commits alone."""

from __future__ import annotations

import pytest

from fastgen.store.ledger import Ledger
from fastgen.telemetry.yields import YieldRule, YieldWatch


class Story:
    """A ledger that is told what each instruction completion of 100 tokens brings."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def write(self, completions: int, *, kept: int, other_tokens: int = 0, complete: int = 0) -> None:
        ledger = self.ledger
        ledger.completions["instruction"] += completions
        ledger.completion_tokens["instruction"] += 100 * completions
        ledger.completion_tokens["instance"] += other_tokens
        ledger.kept += kept
        ledger.complete += complete


def test_yield_counts_all_stages_tokens_and_novelty_those_of_instructions_alone() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=10)
    story.write(10, kept=20, other_tokens=3000, complete=15)
    watch.see(story.ledger)
    seen = watch.figures()
    assert seen.kept_per_1000_tokens == pytest.approx(5.0)
    assert seen.complete_per_1000_tokens == pytest.approx(3.75)
    assert seen.novelty == pytest.approx(20.0)
    assert seen.full


def test_the_window_forgets_what_is_older_than_so_many_completions() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=10)
    for kept in [5] * 20 + [1] * 10:
        story.write(1, kept=kept)
        watch.see(story.ledger)
    assert watch.figures().novelty == pytest.approx(10.0)
    assert watch.figures().best_novelty == pytest.approx(50.0)


def test_a_window_is_at_most_a_fiftieth_longer_than_asked_whatever_the_batches() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=500)
    for batch in [1, 7, 64, 3, 30, 64] * 20:
        story.write(batch, kept=batch)
        watch.see(story.ledger)
    before = story.ledger.kept
    story.write(500 + 64 + 10, kept=0)
    watch.see(story.ledger)
    assert before
    assert watch.figures().novelty == 0.0


def test_nothing_is_judged_before_the_window_is_full() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=10, stop_below=100.0)
    story.write(9, kept=1)
    watch.see(story.ledger)
    assert watch.stop_reason() is None
    assert watch.warning() is None
    story.write(1, kept=0)
    watch.see(story.ledger)
    assert watch.stop_reason() == (
        "--stop-when-yield-below 100: the last 10 instruction completions kept 1.00 instructions per 1,000 generated "
        "tokens"
    )


def test_a_yield_at_the_users_figure_goes_on_and_one_below_ends_the_run() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=10, stop_below=10.0)
    story.write(10, kept=10)
    watch.see(story.ledger)
    assert watch.stop_reason() is None
    story.write(10, kept=9)
    watch.see(story.ledger)
    assert watch.stop_reason() is not None


def test_the_warning_comes_once_at_half_of_the_best_and_names_the_levers() -> None:
    story = Story()
    watch = YieldWatch(story.ledger, window=10)
    warnings = []
    for kept in [40, 20, 19, 5, 40, 1]:
        story.write(10, kept=kept)
        watch.see(story.ledger)
        warnings.append(watch.warning())
    said = [w for w in warnings if w is not None]
    assert warnings[:2] == [None, None]
    assert len(said) == 1
    assert warnings[2] is said[0]
    for lever in ("--seed-tasks", "temperature", "--demonstrations", "--model"):
        assert lever in said[0]
    assert "kept 19.00 instructions per 1,000 tokens that wrote them, it was 40.00" in said[0]


def test_a_resumed_run_remembers_what_novelty_was_on_average() -> None:
    story = Story()
    story.write(100, kept=400)
    watch = YieldWatch(story.ledger, window=10)
    assert watch.figures().best_novelty == pytest.approx(40.0)
    assert not watch.is_full
    story.write(10, kept=10)
    watch.see(story.ledger)
    assert watch.warning() is not None


def test_the_rule_asks_for_nothing_new_once_and_says_so_once() -> None:
    story = Story()
    said: list[str] = []
    closed: list[int] = []
    watch = YieldWatch(story.ledger, window=4, stop_below=100.0)
    rule = YieldRule(watch, story.ledger, lambda: closed.append(1), said.append)
    for _ in range(4):
        story.write(3, kept=3)
        rule()
    assert closed == [1]
    assert len(said) == 1
    assert rule.ended_by is not None
    assert said[0].startswith(rule.ended_by)
