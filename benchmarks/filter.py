"""What the similarity filter costs as the pool grows, and whether it decides rightly.

    python benchmarks/filter.py                                  # 10k and 100k entries, a generated corpus, minutes
    python benchmarks/filter.py --sizes 10000 100000 1000000 --corpus stream.jsonl --plot filter.png

Everything runs on one core (CPU time of this thread is what is counted, so a busy machine changes little). For each
index and pool size: candidates a second online (text in, decision and insertion, growth included), bytes an entry, the
99.9th percentile and maximum of a batch of 64, and wrong decisions among fresh candidates against the exhaustive scan
of the same pool. Rivals run in the same process on the same texts; a rival that would take too long is measured on few
queries, and rouge_score per pair and extrapolated. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from fastgen.novelty import NoveltyFilter, warm_up
from fastgen.rouge import tokenise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH = 64
WINDOW = 10_000  # candidates timed at each size


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Rates are candidates a second; ``wrong`` of ``audited`` decisions, -1 where unknown."""

    method: str
    pool: int
    per_s: float
    bytes_per_entry: float = 0.0
    batch_p50_ms: float = 0.0
    batch_p999_ms: float = 0.0
    batch_max_ms: float = 0.0
    wrong: int = -1
    audited: int = 0
    accepted: float = 0.0


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


def grow(index: str, sizes: Sequence[int], texts: Iterator[str], audit: int) -> Iterator[Row]:
    """Feed the stream to a filter and measure at each pool size."""
    warm_up(index)  # type: ignore[arg-type]  # argparse has checked the name
    novelty = NoveltyFilter(index=index)  # type: ignore[arg-type]  # the same
    pool: list[str] = []
    for size in sizes:
        while len(novelty) < size:
            batch = list(itertools.islice(texts, BATCH))
            if not batch:
                return
            pool += [text for text, verdict in zip(batch, novelty.filter(batch), strict=True) if verdict.novel]
        window = list(itertools.islice(texts, WINDOW))
        if len(window) < WINDOW:
            return
        wrong = audit_decisions(index, pool, fresh_candidates(pool, window, audit)) if audit else -1
        laps, cpu, kept = [], time.thread_time(), len(pool)
        for cut in chunks(window):
            began = time.perf_counter()
            verdicts = novelty.filter(cut)
            laps.append(1000 * (time.perf_counter() - began))
            pool += [text for text, verdict in zip(cut, verdicts, strict=True) if verdict.novel]
        cpu, kept = time.thread_time() - cpu, len(pool) - kept
        yield Row(
            method=f"fastgen {index}",
            pool=size,
            per_s=len(window) / cpu,
            bytes_per_entry=novelty.memory_bytes() / len(novelty),
            batch_p50_ms=float(np.median(laps)),
            batch_p999_ms=float(np.quantile(laps, 0.999)),
            batch_max_ms=max(laps),
            wrong=wrong,
            audited=audit if wrong >= 0 else 0,
            accepted=kept / len(window),
        )


def audit_decisions(index: str, pool: Sequence[str], candidates: Sequence[str]) -> int:
    """Count decisions that differ from the exhaustive scan's, each candidate by itself against the same pool."""
    if index == "exhaustive":
        return 0
    verdicts = []
    for kind in (index, "exhaustive"):
        novelty = NoveltyFilter(index=kind)  # type: ignore[arg-type]  # checked
        for batch in chunks(pool, 10_000):
            novelty.add(batch)
        verdicts.append([novelty.decide([text])[0].novel for text in candidates])
    return sum(mine != true for mine, true in zip(*verdicts, strict=True))


def rate(queries: Sequence[Any], check: Any, budget_s: float = 20.0) -> float:  # noqa: ANN401 - rivals differ in types
    """Queries a second of CPU time, as many as fit in the budget."""
    began, done = time.thread_time(), 0
    for query in queries:
        check(query)
        done += 1
        if time.thread_time() - began > budget_s:
            break
    return done / (time.thread_time() - began)


def rivals(size: int, pool: Sequence[str], queries: Sequence[str]) -> Iterator[Row]:
    """Measure what people use today on the same pool; a missing package is skipped with a line."""
    for name, measure in (
        ("rouge_score, extrapolated", rouge_score_rate),
        ("rapidfuzz cdist scan", rapidfuzz_rate),
        ("datasketch as typed", lambda p, q: datasketch_rate(p, q, tuned=False)),
        ("datasketch tuned", lambda p, q: datasketch_rate(p, q, tuned=True)),
        ("rensa 32 bands", rensa_rate),
    ):
        if name.startswith(("datasketch", "rensa")) and size > 200_000:
            continue  # gigabytes of Python objects
        try:
            yield Row(name, size, measure(pool, queries))
        except ImportError as error:
            print(f"skipped {name}: {error}")


def rouge_score_rate(pool: Sequence[str], queries: Sequence[str]) -> float:
    """Score a few thousand pairs and extrapolate to the pool."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = list(zip(pool[:2000], itertools.cycle(queries), strict=False))
    return rate(pairs, lambda pair: scorer.score(*pair), 3.0) / len(pool)


def rapidfuzz_rate(pool: Sequence[str], queries: Sequence[str]) -> float:
    """Scan the pool with a cut-off."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cdist

    known = [tokenise(text) for text in pool]
    return rate(
        [tokenise(text) for text in queries],
        lambda tokens: cdist([tokens], known, scorer=Indel.normalized_similarity, score_cutoff=0.7),
    )


def datasketch_rate(pool: Sequence[str], queries: Sequence[str], *, tuned: bool) -> float:
    """Query and insert, as an online filter does."""
    from datasketch import MinHash, MinHashLSH

    def sketch(text: str) -> MinHash:
        tokens = tokenise(text)
        if tuned:
            seen: Counter[str] = Counter()
            tokens = [tagged(token, seen) for token in tokens]
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


def tagged(token: str, seen: Counter[str]) -> str:
    """Tag a token with its occurrence number."""
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


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row, the fastest first."""
    heads = f"{'cand/s':>12}{'B/entry':>9}{'p50 ms':>8}{'p99.9':>8}{'max':>8}{'wrong':>12}{'kept':>6}"
    print(f"{'method':28}{'pool':>10}{heads}")
    for row in sorted(rows, key=lambda row: (row.pool, -row.per_s)):
        wrong = f"{row.wrong}/{row.audited}" if row.wrong >= 0 else "-"
        print(
            f"{row.method:28}{row.pool:>10,}{row.per_s:>12,.4g}{row.bytes_per_entry:>9.0f}{row.batch_p50_ms:>8.2f}"
            f"{row.batch_p999_ms:>8.2f}{row.batch_max_ms:>8.2f}{wrong:>12}{row.accepted:>6.2f}"
        )


def exponent(rows: Sequence[Row], method: str) -> float | None:
    """Slope of log time per candidate over log pool size, smallest to largest size."""
    mine = sorted((row.pool, row.per_s) for row in rows if row.method == method)
    if len(mine) < 2:
        return None
    (small, fast), (large, slow) = mine[0], mine[-1]
    return float(np.log(fast / slow) / np.log(large / small))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw rate over pool size, both logarithmic."""
    from matplotlib import pyplot as plt  # type: ignore[import-not-found,unused-ignore]  # optional

    figure, axes = plt.subplots(figsize=(8, 5))
    for method in dict.fromkeys(row.method for row in rows):
        points = sorted((row.pool, row.per_s) for row in rows if row.method == method)
        axes.loglog(*zip(*points, strict=True), marker="o", label=method)
    axes.set(xlabel="entries in the pool", ylabel="candidates per second, one core", title="Similarity filter")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--indexes", nargs="+", default=["exact", "lsh", "exhaustive"])
    parser.add_argument("--exhaustive-to", type=int, default=100_000, help="largest pool for the exhaustive scan")
    parser.add_argument("--corpus", type=Path, help='JSON lines with an "instruction"; generated when left out')
    parser.add_argument("--audit", type=int, default=2000, help="decisions checked against the scan at each size")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows: list[Row] = []
    for index in args.indexes:
        texts = read_corpus(args.corpus) if args.corpus else generate(1)
        sizes = [size for size in args.sizes if index != "exhaustive" or size <= args.exhaustive_to]
        for row in grow(index, sizes, texts, args.audit):
            rows.append(row)
            print_table([row])
    if not args.no_rivals:
        texts = read_corpus(args.corpus) if args.corpus else generate(1)
        corpus = list(itertools.islice(texts, max(args.sizes) + WINDOW))
        for size in args.sizes:
            rows += rivals(size, corpus[:size], corpus[size : size + WINDOW])
    print()
    print_table(rows)
    if args.plot:
        plot(rows, args.plot)
    summary = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "corpus": str(args.corpus.name) if args.corpus else "generated",
        "exponent": {index: exponent(rows, f"fastgen {index}") for index in args.indexes},
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
