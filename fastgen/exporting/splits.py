"""Splits of a data set by instruction. Stateless: an instruction's text alone, with the seed, decides where it goes.

So no instruction is in two splits, not even one that two runs have both written, and none moves while a run grows; the
shares are met as closely as chance meets them. Knows nothing of rows and files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from fastgen.errors import InputError
from fastgen.exporting.draws import draw

_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_RESERVED: Final = "all"  # what the loader calls all splits together
_FORM: Final = "give names and shares that sum up to 1, such as train=0.9,test=0.1"
_TOLERANCE: Final = 1e-9


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
            raise InputError(f"--split: {part.strip()!r} has no usable name of its own; {_FORM}")
        names.append(name)
        ends.append((ends[-1] if ends else 0.0) + _share(share, part))
    if abs(ends[-1] - 1) > _TOLERANCE:
        raise InputError(f"--split: the shares of {text!r} sum up to {ends[-1]:g}; {_FORM}")
    return Splits(tuple(names), (*ends[:-1], 1.0))


def _share(text: str, part: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1 + _TOLERANCE:
        raise InputError(f"--split: {part.strip()!r} has no share above 0 and at most 1; {_FORM}")
    return share
