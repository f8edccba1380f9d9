"""Candidate instructions for the filter's benchmark: a generator of the project's own, or a file."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BATCH = 64


def generate(seed: int) -> Iterator[str]:
    """Yield made-up instructions: sentence frames whose slots hold Zipf-distributed words, 22 % edited copies."""
    rng = random.Random(seed)
    vocabulary = 300_000

    def word() -> str:
        return f"w{int(vocabulary ** rng.random())}"

    frames = [[word() if rng.random() < 0.6 else "" for _ in range(rng.randint(5, 30))] for _ in range(20_000)]
    recent: list[list[str]] = []
    while True:
        if recent and rng.random() < 0.22:
            rate = rng.random() * 0.5
            text = [w if rng.random() > rate else word() for w in rng.choice(recent) if rng.random() > rate / 4]
        else:
            text = [w or word() for w in frames[int(len(frames) * rng.random() ** 2)]]
            text = [w if rng.random() > 0.3 else word() for w in text]
        if len(recent) < 200_000:
            recent.append(text)
        else:
            recent[rng.randrange(len(recent))] = text
        yield " ".join(text)


def read_corpus(path: Path) -> Iterator[str]:
    """Yield the ``instruction`` of every line."""
    with path.open("rb") as lines:
        for line in lines:
            yield orjson.loads(line)["instruction"]


def stream(corpus: Path | None) -> Iterator[str]:
    """Candidates from the file, or generated ones."""
    return read_corpus(corpus) if corpus else generate(1)


def fresh_candidates(pool: Sequence[str], following: Sequence[str], count: int) -> list[str]:
    """Three quarters the stream's next candidates, one quarter new near-duplicates of pool members."""
    rng = random.Random(7)
    near = []
    for text in rng.sample(list(pool), min(count // 4, len(pool))):
        words = text.split()
        rate = rng.random() * 0.5
        near.append(" ".join(w if rng.random() > rate else rng.choice(words) for w in words))
    return [*following[: count - len(near)], *near]


def chunks(texts: Sequence[str], size: int = BATCH) -> Iterator[Sequence[str]]:
    """Cut into batches."""
    return (texts[start : start + size] for start in range(0, len(texts), size))
