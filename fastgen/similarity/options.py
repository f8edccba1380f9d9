"""The similarity filter's options: name, default and help, for flags, TOML and run folders."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Group, Parameter

from fastgen.errors import InputError, flag_name, within
from fastgen.similarity.novelty import IndexKind
from fastgen.similarity.rouge import RejectAt, Tokenizer

MAX_RECORDED = 100
MIN_RECALL, MAX_RECALL = 0.5, 0.999999
MAX_BANDS, MAX_ROWS = 1024, 16
METHOD_GROUP = Group("The method (fixed for a run's life)", sort_key=30)
SIMILARITY_GROUP = Group("The similarity filter (fixed for a run's life)", sort_key=35)


@Parameter(name="*", group=SIMILARITY_GROUP)
@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityOptions:
    """When a new instruction is too similar to one that is there, and how that is found."""

    threshold: float = 0.7
    """ROUGE-L F1 to any seed or kept instruction above which a new one is rejected (0..1)."""
    reject_at: RejectAt = "gt"
    """gt: reject above the threshold (the original's code); ge: at the threshold too (the paper's text)."""
    tokenizer: Tokenizer = "unicode"
    """What ROUGE-L counts as tokens: every script's words, or rouge_score's [a-z0-9]+ only."""
    index: IndexKind = "lsh"
    """Similarity index: MinHash-LSH with a known miss rate, an exact prefix index, or the full scan."""
    lsh_recall: float = 0.9998
    """Expected share of true neighbours that --index lsh finds; chooses bands and rows."""
    lsh_bands: int | None = None
    """Bands of --index lsh, together with --lsh-rows instead of a recall."""
    lsh_rows: int | None = None
    """Rows of a band of --index lsh."""
    record_top_k: int = 0
    """Record each kept instruction's true nearest that many in the whole pool, by a full scan (0: off; 10 is the
    original's; the cost grows with the pool: docs/filter.md). Changes no decision."""

    def __post_init__(self) -> None:
        within("--record-top-k", self.record_top_k, 0, MAX_RECORDED)
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold: {self.threshold} is not above 0 and at most 1")
        within("--lsh-recall", self.lsh_recall, MIN_RECALL, MAX_RECALL)
        if (self.lsh_bands is None) != (self.lsh_rows is None):
            raise InputError("--lsh-bands: goes together with --lsh-rows; give both or neither")
        for name, most in (("lsh_bands", MAX_BANDS), ("lsh_rows", MAX_ROWS)):
            if (value := getattr(self, name)) is not None:
                within(flag_name(name), value, 1, most)
