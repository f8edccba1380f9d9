"""Data sets for the tests of dedup: made from a seed, with near-duplicates, and no word of any real one."""

from __future__ import annotations

import random
from pathlib import Path

import orjson

from fastgen.similarity.novelty import IndexKind
from fastgen.similarity.options import SimilarityOptions
from fastgen.similarity.rouge import RejectAt, Tokenizer

_WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in "lmnrst"]


def make_texts(count: int, seed: int = 1) -> list[str]:
    """About a third are near-duplicates of an earlier text, at all distances around the threshold."""
    draw = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and draw.random() < 0.35:
            words = draw.choice(texts).split()
            for _ in range(draw.randint(0, len(words) // 2)):
                words[draw.randrange(len(words))] = draw.choice(_WORDS)
        else:
            words = draw.choices(_WORDS, k=draw.randint(3, 25))
        texts.append(" ".join(words))
    return texts


def make_rows(count: int, seed: int = 1) -> list[bytes]:
    """One JSON line per text, each with another spacing, key order and line end, so that a rewritten row would show."""
    forms = [
        b'{"instruction": %b, "id": %d}\n',
        b'{"id":%d,"instruction":%b}\n',
        b' { "id" : %d , "note": "gr\\u00fc\xc3\x9fe", "instruction" : %b }  \n',
        b'{"id": %d, "x": [1.0, 2e3, {"y": null}], "instruction": %b}\r\n',
    ]
    rows = []
    for i, text in enumerate(make_texts(count, seed)):
        form = forms[i % len(forms)]
        value = orjson.dumps(text)
        rows.append(form % ((value, i) if form.index(b"%b") < form.index(b"%d") else (i, value)))
    return rows


def write_rows(path: Path, count: int, seed: int = 1) -> list[bytes]:
    """The rows in a file."""
    rows = make_rows(count, seed)
    path.write_bytes(b"".join(rows))
    return rows


def similarity(
    index: IndexKind = "exhaustive",
    threshold: float = 0.7,
    tokenizer: Tokenizer = "unicode",
    reject_at: RejectAt = "gt",
) -> SimilarityOptions:
    """The rule; the index that needs the least compiling unless another is asked for."""
    return SimilarityOptions(index=index, threshold=threshold, tokenizer=tokenizer, reject_at=reject_at)
