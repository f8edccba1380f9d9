"""Texts that no kept instruction may resemble, such as the tasks of a benchmark that a tuned model will be judged on.

They are compared by the rule of the similarity filter (exact ROUGE-L above the threshold) but are not part of the pool:
they feed no prompt and have no pool index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import InputError
from fastgen.options import SimilarityOptions
from fastgen.tables import read_texts

if TYPE_CHECKING:
    from fastgen.novelty import NoveltyFilter

FIELD = "instruction"


def load_forbidden(paths: Iterable[Path]) -> tuple[str, ...]:
    """The ``instruction`` of each row of JSON-lines or Parquet files, the definition of each SuperNI task (.json).

    :raises InputError: a file cannot be read or used, with file and line.
    """
    texts: list[str] = []
    for path in paths:
        if path.suffix == ".json":
            texts += _definitions(path)
        else:
            texts += [text for _, batch in read_texts(path, FIELD) for text in batch]
    return tuple(texts)


def _definitions(path: Path) -> list[str]:
    try:
        task = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--decontaminate {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(
            f"--decontaminate {path}: not JSON ({error}); JSON lines need another ending than .json"
        ) from None
    definition = task.get("Definition") if isinstance(task, dict) else None
    texts = [definition] if isinstance(definition, str) else definition
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"--decontaminate {path}: no task of Super-NaturalInstructions (it has no text 'Definition')")
    return texts


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 of the texts, in hexadecimal; empty for none."""
    if not texts:
        return ""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def filter_of_forbidden(texts: Sequence[str], similarity: SimilarityOptions) -> NoveltyFilter | None:
    """An exact filter over the texts, by the run's own rule; ``None`` for no texts."""
    if not texts:
        return None
    from fastgen.novelty import NoveltyFilter

    forbidden = NoveltyFilter(
        threshold=similarity.threshold, reject_at=similarity.reject_at, tokenizer=similarity.tokenizer, index="exact"
    )
    forbidden.add(texts)
    return forbidden
