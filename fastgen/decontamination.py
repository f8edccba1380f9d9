"""Texts that no kept instruction may resemble, such as the tasks of a benchmark that a tuned model will be judged on.

They are compared by the rule of the similarity filter (exact ROUGE-L above the threshold) but are not part of the pool:
they feed no prompt and have no pool index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.options import SimilarityOptions
from fastgen.tables.table import read_texts

if TYPE_CHECKING:
    from fastgen.method.novelty import NoveltyFilter

FIELD = "instruction"


def load_forbidden(paths: Iterable[Path]) -> tuple[str, ...]:
    """The ``instruction`` of each row of JSON-lines or Parquet files, the definition of each SuperNI task (.json).

    :raises InputError: a file cannot be read or used, with file and line.
    """
    return tuple(text for path in paths for _, batch in read_texts(path, FIELD) for text in batch)


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of the texts, in hexadecimal; empty for none."""
    if not texts:
        return ""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def filter_of_forbidden(texts: Sequence[str], similarity: SimilarityOptions) -> NoveltyFilter | None:
    """An exact filter over the texts, by the run's own rule; ``None`` for no texts."""
    if not texts:
        return None
    from fastgen.method.novelty import NoveltyFilter

    forbidden = NoveltyFilter(
        threshold=similarity.threshold, reject_at=similarity.reject_at, tokenizer=similarity.tokenizer, index="exact"
    )
    forbidden.add(texts)
    return forbidden
