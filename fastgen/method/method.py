"""What a run means: Self-Instruct's own parameters, apart from the seeds, the prompts and the similarity filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastgen.method.demonstrations import Policy
from fastgen.method.rules import Rules
from fastgen.records import Sampling


@dataclass(frozen=True, slots=True)
class Method:
    """``sampling`` is by stage (`SamplingOptions.by_stage`); empty where nothing is asked, as in a refilter."""

    rules: Rules
    sampling: Mapping[str, Sampling]
    seed: int = 0
    """Keys every request's random draws, together with its number."""
    num_prompt_instructions: int = 8
    """Demonstrations of an instruction prompt."""
    num_machine_instructions: int = 2
    """Of these, so many are machine-generated, as soon as there are any."""
    demonstrations: Policy = "uniform"
    samples_per_prompt: int = 1
    classification_only: bool = False

    @property
    def classification_tokens(self) -> int:
        """Most tokens of a classification answer (0 in a method that does not sample)."""
        return self.sampling["classification"].max_tokens if "classification" in self.sampling else 0
