"""The flags of ``fastgen export``: name, default and help exist here once. Knows nothing of runs and files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

from cyclopts import Group, Parameter

from fastgen.errors import InputError
from fastgen.exporting.splits import DEFAULT_SPLIT, Splits, parse_splits

Format = Literal["raw", "instances", "rejected", "alpaca", "messages", "prompt-completion", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

_CHOICE = Group("Which rows", sort_key=1)
_FOLDER = Group("A folder with a card", sort_key=2)
_LICENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@Parameter(name="*", group=_CHOICE)
@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOptions:
    """Which instructions and instances are written, and how they are divided."""

    include_empty: Annotated[bool, Parameter(negative=())] = False
    """raw only: also instructions that were settled without any instance."""
    include_seeds: Annotated[bool, Parameter(negative=())] = False
    """Also the run's seed tasks, before the others."""
    max_instructions: int | None = None
    """Only so many instructions, drawn with --seed; a smaller number gives a part of what a larger one gives. Seed
    tasks, if they are included, count and are taken first."""
    min_judge_score: float | None = None
    """Only instances that 'fastgen judge' gave this score or more (the median of all votes on it, of all
    judges); seed tasks stay."""
    split: str | None = None
    """Names and shares, such as train=0.9,test=0.1: one file each in the folder --output. By instruction, and an
    instruction stays in its split while the run grows."""
    seed: int = 0
    """Keys every draw: --max-instructions, --split, and prompt-completion's templates and order."""
    overwrite: Annotated[bool, Parameter(negative=())] = False
    """Replace what is there: the file --output, or files of the same names in the folder --output."""

    def __post_init__(self) -> None:
        if self.max_instructions is not None and self.max_instructions < 1:
            raise InputError(f"--max-instructions: {self.max_instructions} is below 1")
        if self.min_judge_score is not None and not math.isfinite(self.min_judge_score):
            raise InputError(f"--min-judge-score: {self.min_judge_score} is not a number")
        self.splits()

    def splits(self) -> Splits:
        """The splits that ``--split`` names; without it, one that has everything.

        :raises InputError: not names with shares that sum up to 1.
        """
        return DEFAULT_SPLIT if self.split is None else parse_splits(self.split)

    def check_format(self, form: Format) -> None:
        """:raises InputError: an option that this format has no use for."""
        if self.include_empty and form != "raw":
            raise InputError(f"--include-empty: --format {form} has no place for them; leave it out or choose raw")
        given = {
            "--include-seeds": self.include_seeds,
            "--max-instructions": self.max_instructions is not None,
            "--min-judge-score": self.min_judge_score is not None,
            "--split": self.split is not None,
        }
        unfit = [flag for flag, is_given in given.items() if is_given]
        if form == "rejected" and unfit:
            raise InputError(f"{unfit[0]}: is about kept instructions; leave it out with --format rejected")


@Parameter(name="*", group=_FOLDER)
@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """The data set card and where it goes."""

    card: Annotated[bool, Parameter(negative=())] = False
    """Write the data and a data set card (README.md) into the folder --output."""
    license: str | None = None
    """The card's licence, by the hub's name for it, such as apache-2.0; without it the card says unknown."""
    model_terms: str | None = None
    """What the card says on the terms of the generating model's output; without it, that they have to be checked."""
    push_to_hub: str | None = None
    """Upload the folder with its card to this data set of the Hugging Face hub, such as me/my-data. The token is
    HF_TOKEN's or that of 'hf auth login'."""
    private: bool = True
    """Make the data set of --push-to-hub private, if it is not there yet."""

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENCE.fullmatch(self.license):
            raise InputError(f"--license: {self.license!r} is no licence identifier; give one such as apache-2.0")
        for flag, value in (("--license", self.license), ("--model-terms", self.model_terms)):
            if value is not None and not self.wanted:
                raise InputError(f"{flag}: is for the card; add --card")

    @property
    def wanted(self) -> bool:
        """Whether a card is written."""
        return self.card or self.push_to_hub is not None

    def check_format(self, form: Format) -> None:
        """:raises InputError: rejected texts are no data set."""
        if self.wanted and form == "rejected":
            raise InputError("--card: describes kept instructions; leave it out with --format rejected")
