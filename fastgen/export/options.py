"""What an export is asked to do: the flags of ``fastgen export``, its splits, and the seeded draws that both use.

Each flag's name, default and help are defined only here.

Splits are by instruction. An instruction's text alone, with the seed, decides where it goes. So no instruction is in
two splits, not even one that two runs have both written, and none moves while a run grows. The shares are met on
average.

A draw depends only on the seed, the purpose and the instruction or instance. So it does not depend on the other rows or
their order, and stays the same while the run grows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Final, Literal, get_args

from cyclopts import Group, Parameter

from fastgen.errors import InputError

Format = Literal[
    "raw", "instances", "rejected", "alpaca", "messages", "sharegpt", "prompt-completion", "parquet", "csv"
]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

_CHOICE = Group("Which rows", sort_key=1)
_FOLDER = Group("A folder with a card", sort_key=2)
_LICENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_RESERVED: Final = "all"  # what the loader calls all splits together
_SPLIT_FORM: Final = "give names and shares that sum up to 1, such as train=0.9,test=0.1"
_TOLERANCE: Final = 1e-9


@Parameter(name="*", group=_CHOICE)
@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOptions:
    """Which instructions and instances are written, with what, and how they are divided."""

    include_empty: Annotated[bool, Parameter(negative=())] = False
    """raw only: also instructions that were finished without any instance."""
    include_seeds: Annotated[bool, Parameter(negative=())] = False
    """Also the run's seed tasks, before the others."""
    max_instructions: int | None = None
    """At most this many instructions, drawn with --seed; a smaller number gives a part of what a larger one gives.
    Seed tasks, if they are included, count and are taken first."""
    min_judge_score: float | None = None
    """Only instances that 'fastgen judge' gave this score or more (the median of all votes on it, of all
    judges); seed tasks stay."""
    with_reasoning: Annotated[bool, Parameter(negative=())] = False
    """Also what the model thought before it answered: a field 'reasoning', null where there is nothing. In messages it
    is the field 'thinking' of the assistant's turn, as TRL and the chat template of gpt-oss read it."""
    for_spreadsheets: Annotated[bool, Parameter(negative=())] = False
    """csv only: an apostrophe before each cell that a spreadsheet would run as a formula, and a byte order mark. Texts
    of models are data, so use it for files that people open in Excel or LibreOffice, not for training."""
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
        if self.with_reasoning and form in ("prompt-completion", "rejected", "sharegpt"):
            raise InputError(f"--with-reasoning: --format {form} has no place for it; choose messages or instances")
        if self.for_spreadsheets and form != "csv":
            raise InputError(f"--for-spreadsheets: --format {form} is no spreadsheet; leave it out or choose csv")
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


@dataclass(frozen=True, slots=True)
class Splits:
    """Names, and for each the upper end of its part of 0..1; the last end is 1."""

    names: tuple[str, ...]
    ends: tuple[float, ...]

    def of(self, instruction: str, seed: int) -> str:
        """The split of an instruction."""
        if len(self.names) == 1:
            return self.names[0]
        place = draw(seed, "split", " ".join(instruction.split())) / 2**64
        return next((n for n, end in zip(self.names, self.ends, strict=True) if place < end), self.names[-1])


DEFAULT_SPLIT: Final = Splits(("train",), (1.0,))


def parse_splits(text: str) -> Splits:
    """``train=0.9,test=0.1`` as splits.

    :raises InputError: another form, a name twice, a share out of range, or a sum that is not 1.
    """
    names: list[str] = []
    ends: list[float] = []
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if not _NAME.fullmatch(name) or name == _RESERVED or name in names:
            raise InputError(f"--split: {part.strip()!r} has no valid and unique name; {_SPLIT_FORM}")
        names.append(name)
        ends.append((ends[-1] if ends else 0.0) + _share(share, part))
    if abs(ends[-1] - 1) > _TOLERANCE:
        raise InputError(f"--split: the shares of {text!r} sum up to {ends[-1]:g}; {_SPLIT_FORM}")
    return Splits(tuple(names), (*ends[:-1], 1.0))


def _share(text: str, part: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1 + _TOLERANCE:
        raise InputError(f"--split: {part.strip()!r} has no share above 0 and at most 1; {_SPLIT_FORM}")
    return share


def draw(seed: int, purpose: str, thing: str) -> int:
    """64 bits, uniform over things and independent between purposes (at most 16 ASCII characters)."""
    return int.from_bytes(digest(seed, purpose, thing.encode(errors="surrogatepass"), size=8))


def digest(seed: int, purpose: str, content: bytes, *, size: int = 16) -> bytes:
    """``size`` bytes; 16 are equal for equal content and, for any number of rows that fits a disk, for no other."""
    return blake2b(content, digest_size=size, key=str(seed).encode()[:64], person=purpose.encode()).digest()
