"""The flags of ``fastgen report``: names, defaults and help are defined only here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastgen.errors import InputError

_MAX_SAMPLED = 20_000
_MAX_PARSED = 200_000


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report shows and how much of the run it samples."""

    sample: int = 2_000
    """Complete instructions to read on the page, drawn at random; all other figures are of the whole run."""
    rejected_sample: int = 500
    """Rejected instructions to read on the page."""
    parse_sample: int = 5_000
    """Instructions that are parsed for verbs and measured for diversity, drawn at random."""
    seed: int = 0
    """Draws the samples."""
    spacy_model: str | None = None
    """Installed spaCy model (or its folder) that parses; else en_core_web_sm or what the extra 'report' brings."""
    evaluation_data: Path | None = None
    """SuperNI folder, or file of user-oriented tasks, to state the overlap with."""
    overwrite: Annotated[bool, Parameter(negative=())] = False
    """Replace the file --output if it is there."""

    def __post_init__(self) -> None:
        """:raises InputError: a size is out of range."""
        for flag, value, most in (
            ("--sample", self.sample, _MAX_SAMPLED),
            ("--rejected-sample", self.rejected_sample, _MAX_SAMPLED),
            ("--parse-sample", self.parse_sample, _MAX_PARSED),
        ):
            if not 0 <= value <= most:
                raise InputError(f"{flag}: {value} is not within 0 to {most}")
