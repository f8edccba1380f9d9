"""Counts and lengths of what an export writes: a fold over its entries, of a constant size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fastgen.exporting.entries import Entry


@dataclass(slots=True)
class Figures:
    """Counts so far; words are what stands between whitespace. ``instructions`` is by split."""

    instructions: Counter[str] = field(default_factory=Counter)
    seed_tasks: int = 0
    classification: int = 0
    instances: int = 0
    empty_inputs: int = 0
    instruction_words: int = 0
    input_words: int = 0
    output_words: int = 0

    def add(self, entry: Entry, split: str) -> None:
        """Count one instruction that is written."""
        self.instructions[split] += 1
        self.seed_tasks += entry.settled is None
        self.classification += entry.is_classification
        self.instances += len(entry.instances)
        self.instruction_words += len(entry.instruction.split())
        for scored in entry.instances:
            words = len(scored.instance.input.split())
            self.empty_inputs += words == 0
            self.input_words += words
            self.output_words += len(scored.instance.output.split())

    @property
    def instances_per_instruction(self) -> float:
        """Mean."""
        return _ratio(self.instances, self.instructions.total())

    @property
    def empty_input_share(self) -> float:
        """Share of the instances, 0..1."""
        return _ratio(self.empty_inputs, self.instances)

    @property
    def classification_share(self) -> float:
        """Share of the instructions, 0..1."""
        return _ratio(self.classification, self.instructions.total())

    @property
    def mean_words(self) -> tuple[float, float, float]:
        """Of an instruction, of an input that is not empty, of an output."""
        return (
            _ratio(self.instruction_words, self.instructions.total()),
            _ratio(self.input_words, self.instances - self.empty_inputs),
            _ratio(self.output_words, self.instances),
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
