"""What other rules would keep of a run's own completions: by rule, kept and rejected before and after, with samples.

``python -m benchmarks.rules --run-dir RUN [--preset default] [--samples 20] [--seed 0]``

*Before* is what the run's log says. *After* reads the same raw completions again under the rules of ``--preset``.
Similarity is not computed again: what the log rejects as ``similar`` stays rejected, and an item that only the new
rules let through counts as kept. An instance is read with its instruction as in the log, whether that is kept now or
not, so the figures of the stages do not depend on each other. The run may be in progress.

Columns: rule, before, after; ``kept`` is what no rule rejects. Random differences follow: ``-`` was kept and is not,
``+`` is kept and was not.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import finish
from fastgen.methods.base import Answered, Commit, Created, Labelled
from fastgen.methods.self_instruct import instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.rules import PRESETS, Rules
from fastgen.store.reader import open_run

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT = "kept"


@dataclass
class Comparison:
    """What became of one stage's items: how many by rule, and those of which the verdicts differ."""

    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def add(self, before: dict[str, str], after: dict[str, str]) -> None:
        """Take in one completion's items: text to rule, or to ``kept``."""
        for text in before.keys() | after.keys():
            was, now = before.get(text, "not found"), after.get(text, "not found")
            if (was == KEPT) != (now == KEPT):
                self.differences.append(f"{'-' if was == KEPT else '+'} {was} -> {now}: {text}")

    def show(self, title: str, samples: int, draw: random.Random) -> None:
        """Print the table and some of the differences."""
        print(f"\n{title:28} {'before':>8} {'after':>8}")
        for rule in sorted({*self.before, *self.after}, key=lambda rule: (rule != KEPT, rule)):
            print(f"{rule:28} {self.before[rule]:8,} {self.after[rule]:8,}")
        print(f"{len(self.differences)} differ")
        for line in draw.sample(self.differences, min(samples, len(self.differences))):
            print(f"  {line[:400]}")


def compare(commits: Iterable[Commit], old: Rules, new: Rules) -> tuple[int, Comparison, Comparison]:
    """Return how many completions were read, and what became of instructions and of instances."""
    texts: dict[int, str] = {}
    classifications: set[int | None] = set()
    count, instructions, instances = 0, Comparison(), Comparison()
    for commit in commits:
        count += 1
        raw = commit.completion.text
        match commit.outcome:
            case Created(kept, rejected):
                texts |= {one.number: item_text(raw, one.span, old) for one in kept}
                before = [(one.span, KEPT) for one in kept] + [(one.span, one.rule) for one in rejected]
                similar = {one.span for one in rejected if one.rule == "similar"}
                items = instruction.parse(commit.completion, new, first_number=commit.demonstrations_shown + 1)
                after = [
                    (i.span, i.rule or check_instruction(i.text, new) or ("similar" if i.span in similar else KEPT))
                    for i in items
                ]
                instructions.before.update(rule for _, rule in before)
                instructions.after.update(rule for _, rule in after)
                shown = ({item_text(raw, span, old): rule for span, rule in verdicts} for verdicts in (before, after))
                instructions.add(*shown)
            case Labelled(is_classification):
                classifications |= {commit.subject} if is_classification else set()
            case Answered(pairs, rules) if commit.subject is not None:
                task = texts[commit.subject]
                parsed = instance.parse(commit.completion, commit.subject in classifications, new, task)
                instances.before.update([KEPT] * len(pairs) + [*rules])
                instances.after.update([KEPT] * len(parsed.instances) + [*parsed.rules])
                show = "{} || {!r} => {!r}".format
                verdicts = {show(task, raw[slice(*o.input)], raw[slice(*o.output)]): o.rule for o in parsed.rejected}
                verdicts |= {show(task, raw[slice(*o.input)], raw[slice(*o.output)]): KEPT for o in parsed.instances}
                instances.add({show(task, raw[slice(*i)], raw[slice(*o)]): KEPT for i, o in pairs}, verdicts)
    return count, instructions, instances


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = open_run(given.run_dir)
    commits = run.folder.whole_commits()
    count, instructions, instances = compare(commits, run.rules, PRESETS[given.preset])
    draw = random.Random(given.seed)
    print(f"{count:,} completions of {run.configuration['model']}")
    instructions.show("instructions", given.samples, draw)
    instances.show("instances", given.samples, draw)
    figures = {"instructions": instructions, "instances": instances}
    result = {name: {"before": one.before, "after": one.after} for name, one in figures.items()}
    finish("rules", {"completions": count, **result})


if __name__ == "__main__":
    main()
