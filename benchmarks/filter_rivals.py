"""What people use today for the same decisions, on the same pools: scans and MinHash indexes of other packages."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from benchmarks.filter_online import Row
from fastgen.similarity.rouge import tokenise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BUDGET_S = 5.0


def rate(queries: Sequence[Any], check: Callable[[Any], object], budget_s: float = BUDGET_S) -> float:
    """Queries a second of CPU time, as many as fit in the budget."""
    began, done = time.thread_time(), 0
    for query in queries:
        check(query)
        done += 1
        if time.thread_time() - began > budget_s:
            break
    return done / (time.thread_time() - began)


def rivals(pool: Sequence[str], queries: Sequence[str], *, objects_to: int) -> Iterator[Row]:
    """Measure each on the pool; indexes of Python objects only up to ``objects_to`` entries (gigabytes beyond)."""
    scans: list[tuple[str, Callable[[Sequence[str], Sequence[str]], float]]] = [
        ("rouge_score", rouge_score_rate),
        ("rapidfuzz cdist scan", rapidfuzz_rate),
    ]
    indexes: list[tuple[str, Callable[[Sequence[str], Sequence[str]], float]]] = [
        ("datasketch as typed", lambda p, q: datasketch_rate(p, q, tuned=False)),
        ("datasketch tuned", lambda p, q: datasketch_rate(p, q, tuned=True)),
        ("rensa 32 bands", rensa_rate),
    ]
    for name, measure in scans + (indexes if len(pool) <= objects_to else []):
        try:
            yield Row(name, len(pool), measure(pool, queries), extrapolated=name == "rouge_score")
        except ImportError as error:
            print(f"skipped {name}: {error}")


def rouge_score_rate(pool: Sequence[str], queries: Sequence[str]) -> float:
    """Score a few thousand pairs and extrapolate to the pool."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = list(zip(pool[:20_000], itertools.cycle(queries), strict=False))
    return rate(pairs, lambda pair: scorer.score(*pair), 2.0) / len(pool)


def rapidfuzz_rate(pool: Sequence[str], queries: Sequence[str]) -> float:
    """Scan the pool with a cut-off; a token is one character, which rapidfuzz compares fastest."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cdist

    characters: dict[str, str] = {}

    def packed(text: str) -> str:
        return "".join([characters.setdefault(token, chr(0xE000 + len(characters))) for token in tokenise(text)])

    known = [packed(text) for text in pool]
    return rate(
        [packed(text) for text in queries],
        lambda text: cdist([text], known, scorer=Indel.normalized_similarity, score_cutoff=0.7),
    )


def datasketch_rate(pool: Sequence[str], queries: Sequence[str], *, tuned: bool) -> float:
    """Query and insert, as an online filter does."""
    from datasketch import MinHash, MinHashLSH

    def sketch(text: str) -> MinHash:
        tokens = tokenise(text)
        if tuned:
            seen: Counter[str] = Counter()
            tokens = [_tagged(token, seen) for token in tokens]
        made = MinHash(num_perm=128)
        made.update_batch([token.encode() for token in tokens])
        return made

    lsh = MinHashLSH(num_perm=128, params=(32, 4)) if tuned else MinHashLSH(threshold=0.7, num_perm=128)
    for number, text in enumerate(pool):
        lsh.insert(number, sketch(text))

    def check(pair: tuple[int, str]) -> None:
        made = sketch(pair[1])
        if not lsh.query(made):
            lsh.insert(-1 - pair[0], made)

    return rate(list(enumerate(queries)), check)


def _tagged(token: str, seen: Counter[str]) -> str:
    seen[token] += 1
    return f"{token} {seen[token]}"


def rensa_rate(pool: Sequence[str], queries: Sequence[str]) -> float:
    """Query only."""
    from rensa import RMinHash, RMinHashLSH

    def sketch(text: str) -> Any:  # noqa: ANN401 - rensa ships no types
        made = RMinHash(num_perm=128, seed=1)
        made.update(tokenise(text))
        return made

    lsh = RMinHashLSH(threshold=0.7, num_perm=128, num_bands=32)
    for number, text in enumerate(pool):
        lsh.insert(number, sketch(text))
    return rate(queries, lambda text: lsh.query(sketch(text)))
