"""What the similarity filter costs as its pool grows, whether its decisions are right, and how long it blocks.

    python -m benchmarks.filter                                  # 10k and 100k entries, a generated corpus, minutes
    python -m benchmarks.filter --sizes 10000 100000 1000000 --corpus stream.jsonl --plot benchmarks/plots/filter.png

Rates are candidates a second of one core (CPU time of the working thread): text in, decision and insertion, growth
included. Other figures of each index and pool size: bytes an entry, wall time of batches of 64, the share kept, and
wrong decisions on fresh candidates compared with an exhaustive scan of the same pool (whose rate is given too). Rivals
run in the same process on the same texts. rouge_score is measured per pair and extrapolated, and marked as such. Beyond
``--fill-above`` the pool grows unchecked, which saves minutes and leaves more near-duplicates in it than a filtered
pool has. ``--also`` joins the last lines of earlier parts, for machines with short time limits.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.harness import finish, memory_bytes, print_table
from fastgen.similarity.novelty import INDEX_KINDS, IndexKind, NoveltyFilter, warm_up
from fastgen.similarity.rouge import tokenise

WINDOW = 20_000  # candidates timed at each size
_FILL = 8192  # texts added at once where the pool grows unchecked
BUDGET_S = 5.0
_COLUMNS = ("method", "pool", "candidates/s", "B/entry", "batch p50 ms", "p99.9 ms", "max ms", "wrong", "kept")
BATCH = 64


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--indexes", nargs="*", default=["exact", "lsh"], choices=INDEX_KINDS)
    parser.add_argument("--corpus", type=Path, help='JSON lines with an "instruction"; generated when left out')
    parser.add_argument("--audit", type=int, default=20_000, help="decisions checked against the scan at each size")
    parser.add_argument("--audit-to", type=int, default=1_000_000, help="largest pool whose decisions are checked")
    parser.add_argument("--fill-above", type=int, default=1_000_000, help="beyond this size the pool grows unchecked")
    parser.add_argument("--rivals-to", type=int, default=1_000_000, help="largest pool for scans by others")
    parser.add_argument("--objects-to", type=int, default=100_000, help="largest pool for indexes of Python objects")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--no-threads", action="store_true", help="leave out the event loop's lag and two cores")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="outputs of earlier parts to join")
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> list[Row]:
    """Every index at every size, then every rival."""
    rows: list[Row] = []
    for index in args.indexes:
        limits = {"audit": args.audit, "audit_to": args.audit_to, "fill_above": args.fill_above}
        for row in grow(index, args.sizes, stream(args.corpus), **limits):
            measured = {(other.method, other.pool) for other in rows}
            if (row.method, row.pool) not in measured:  # the scan's row comes twice
                rows.append(row)
                print(f"{row.method} at {row.pool:,}: {row.per_s:,.0f} candidates/s", file=sys.stderr, flush=True)
    if args.no_rivals:
        return rows
    texts = list(itertools.islice(stream(args.corpus), min(max(args.sizes), args.rivals_to) + WINDOW))
    for size in (size for size in args.sizes if size <= args.rivals_to):
        rows += rivals(texts[:size], texts[size : size + WINDOW], objects_to=args.objects_to)
    return rows


def threads(args: argparse.Namespace) -> dict[str, Any]:
    """What one thread holds up, and what a second core brings."""
    texts = list(itertools.islice(stream(args.corpus), 100_000))
    lag = dict(zip(("p50", "p999", "max"), loop_lag_ms(texts[:50_000]), strict=True))
    return {
        "loop_lag_ms_at_10000_per_s": lag,
        "two_pools_in_two_threads_over_one": two_threads(texts),
        "share_of_one_pool_that_could_run_ahead": outside_decision(texts),
    }


def earlier(paths: list[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Rows and thread figures of earlier parts."""
    rows: list[Row] = []
    figures: dict[str, Any] = {}
    for path in paths:
        part = orjson.loads(path.read_bytes().splitlines()[-1])["figures"]
        rows += [Row(**row) for row in part["rows"]]
        figures |= part["threads"]
    return rows, figures


def main() -> None:
    """Run it."""
    args = arguments()
    rows, figures = earlier(args.also)
    rows += measure(args)
    if not args.no_threads:
        figures |= threads(args)
    print()
    print_rows(rows)
    if args.plot:
        plot(rows, args.plot)
    methods = [method for method in dict.fromkeys(row.method for row in rows) if method.startswith("fastgen")]
    summary = {
        "corpus": args.corpus.name if args.corpus else "generated",
        "exponent_to_1m": {method: exponent(rows, method) for method in methods},
        "ratios": ratios(rows),
        "memory": {method: memory_slope(rows, method) for method in methods},
        "threads": figures,
    }
    print_summary(summary)
    finish("filter", {**summary, "rows": [asdict(row) for row in rows]})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Rates are candidates a second of one core; ``wrong`` of ``audited``, -1 where unknown.

    ``latencies``: (median, p99.9, maximum) wall milliseconds of a batch of 64, over the last ``batches`` before and
    while the window was timed. ``accepted``: share of the window that was kept. ``filled``: the pool grew unchecked.
    """

    method: str
    pool: int
    per_s: float
    bytes_per_entry: float = 0.0
    rss_bytes: int = 0
    latencies: tuple[float, float, float] = (0.0, 0.0, 0.0)
    batches: int = 0
    wrong: int = -1
    audited: int = 0
    accepted: float = 0.0
    candidates: int = 0
    filled: bool = False
    extrapolated: bool = False


@dataclass(slots=True)
class _Growth:
    novelty: NoveltyFilter
    texts: Iterator[str]
    keep_texts: bool
    pool: list[str]
    laps: deque[float]
    seen: int = 0

    def filter(self, batch: Sequence[str]) -> int:
        began = time.perf_counter()
        verdicts = self.novelty.filter(batch)
        self.laps.append(1000 * (time.perf_counter() - began))
        self.seen += len(batch)
        kept = [text for text, verdict in zip(batch, verdicts, strict=True) if verdict.novel]
        if self.keep_texts:
            self.pool += kept
        return len(kept)

    def grow_to(self, size: int) -> bool:
        while len(self.novelty) < size:
            batch = list(itertools.islice(self.texts, BATCH))
            if not batch:
                return False
            self.filter(batch)
        return True

    def fill_to(self, size: int) -> bool:
        while len(self.novelty) < size:
            batch = list(itertools.islice(self.texts, min(_FILL, size - len(self.novelty))))
            if not batch:
                return False
            self.novelty.add(batch)
            self.pool += batch if self.keep_texts else []
        return True


def grow(
    index: IndexKind, sizes: Sequence[int], texts: Iterator[str], *, audit: int, audit_to: int, fill_above: int
) -> Iterator[Row]:
    """Feed the stream to a filter and measure at each pool size; beyond ``fill_above`` the pool grows unchecked.

    At each size up to ``audit_to``, ``audit`` fresh candidates are looked up in the live index and by the exhaustive
    scan of the same pool: its rate is a row too.
    """
    warm_up(index)
    growth = _Growth(NoveltyFilter(index=index), texts, audit > 0, [], deque(maxlen=10_000))
    for size in sizes:
        filled = size > fill_above
        if not (growth.fill_to(size) if filled else growth.grow_to(size)):
            return
        window = list(itertools.islice(texts, WINDOW))
        if len(window) < WINDOW:
            return
        wrong, scan_per_s = -1, 0.0
        if audit and size <= audit_to:
            candidates = fresh_candidates(growth.pool, window, audit)
            wrong, scan_per_s = audit_decisions(growth.novelty, growth.pool, candidates)
        if filled:
            growth.laps.clear()
        cpu, kept = time.thread_time(), 0
        for cut in chunks(window):
            kept += growth.filter(cut)
        cpu = time.thread_time() - cpu
        laps = np.array(growth.laps)
        yield Row(
            method=f"fastgen {index}",
            pool=size,
            per_s=len(window) / cpu,
            bytes_per_entry=growth.novelty.memory_bytes() / len(growth.novelty),
            rss_bytes=0 if growth.keep_texts else memory_bytes("VmRSS"),
            latencies=(float(np.median(laps[-WINDOW // BATCH :])), float(np.quantile(laps, 0.999)), float(laps.max())),
            batches=laps.size,
            wrong=wrong,
            audited=audit if wrong >= 0 else 0,
            accepted=kept / len(window),
            candidates=growth.seen,
            filled=filled,
        )
        if scan_per_s:
            yield Row("exhaustive scan", size, scan_per_s)


def audit_decisions(novelty: NoveltyFilter, pool: Sequence[str], candidates: Sequence[str]) -> tuple[int, float]:
    """Decisions that differ from the exhaustive scan's, and the scan's rate."""
    scan = NoveltyFilter(index="exhaustive")
    for cut in chunks(pool, _FILL):
        scan.add(cut)
    scan.look_up(candidates[:BATCH])
    mine = [verdict.novel for cut in chunks(candidates) for verdict in novelty.look_up(cut)]
    cpu = time.thread_time()
    true = [verdict.novel for cut in chunks(candidates) for verdict in scan.look_up(cut)]
    cpu = time.thread_time() - cpu
    return sum(a != b for a, b in zip(mine, true, strict=True)), len(candidates) / cpu


def loop_lag_ms(texts: Sequence[str], per_s: int = 10_000, tick_s: float = 0.001) -> tuple[float, float, float]:
    """Median, 99.9th percentile and maximum lag of an event loop while a thread filters ``per_s`` candidates a second.

    The lag is how much later than asked the loop woke up from a sleep of ``tick_s``.
    """
    novelty = NoveltyFilter(index="lsh")
    lags: list[float] = []

    async def watch(done: asyncio.Event) -> None:
        while not done.is_set():
            began = time.perf_counter()
            await asyncio.sleep(tick_s)
            lags.append(1000 * (time.perf_counter() - began - tick_s))

    async def drive() -> None:
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        watcher = asyncio.create_task(watch(done))
        with ThreadPoolExecutor(1) as worker:
            began = time.perf_counter()
            for number, cut in enumerate(chunks(texts)):
                await loop.run_in_executor(worker, novelty.filter, cut)
                await asyncio.sleep(max(0.0, (number + 1) * BATCH / per_s - (time.perf_counter() - began)))
        done.set()
        await watcher

    asyncio.run(drive())
    return float(np.median(lags)), float(np.quantile(lags, 0.999)), max(lags)


def two_threads(texts: Sequence[str]) -> float:
    """Rate of two filters in two threads of one process over the rate of one: what two cores bring two pools."""

    def work() -> None:
        novelty = NoveltyFilter(index="exact")
        for cut in chunks(texts):
            novelty.filter(cut)

    def timed(threads: int) -> float:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return threads / (time.perf_counter() - began)

    work()
    return timed(2) / timed(1)


def outside_decision(texts: Sequence[str]) -> float:
    """Share of one pool's time that does not depend on earlier decisions: encoding, tokens, elements and their hashes.

    Only that could run ahead on a second core: decisions are in order, each against what those before it kept.
    """
    from fastgen.similarity.lsh import signatures

    novelty = NoveltyFilter(index="exact")
    whole = time.thread_time()
    for cut in chunks(texts):
        novelty.filter(cut)
    whole = time.thread_time() - whole
    signatures([text.encode() for text in texts[:64]], 1)  # loads the kernel
    tokens = time.thread_time()
    signatures([text.encode() for text in texts], 1)  # tokenises; one permutation costs next to nothing
    return (time.thread_time() - tokens) / whole


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


def print_rows(rows: Sequence[Row]) -> None:
    """Print a Markdown table, the fastest of each pool size first."""
    print_table(_COLUMNS, [_cells(row) for row in sorted(rows, key=lambda row: (row.pool, -row.per_s))])


def _cells(row: Row) -> tuple[object, ...]:
    note = " (extrapolated)" if row.extrapolated else " (filled unchecked)" if row.filled else ""
    wrong = f"{row.wrong} of {row.audited:,}" if row.wrong >= 0 else "-"
    laps = [f"{lap:.2f}" if row.batches else "-" for lap in row.latencies]
    held = f"{row.bytes_per_entry:.0f}" if row.bytes_per_entry else "-"
    return (row.method + note, f"{row.pool:,}", row.per_s, held, *laps, wrong, row.accepted or "-")


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what follows from the rows, and what a second thread brings, as tables."""
    compared = summary["ratios"]
    others = list(dict.fromkeys(other for ours in compared.values() for other in ours))
    print("\nTimes as fast:\n")
    print_table(("", *compared), [(other, *(ours.get(other, "-") for ours in compared.values())) for other in others])
    print("\nGrowth: time a candidate ~ pool to the power of; bytes of one more entry:\n")
    slopes = {method: memory and memory["bytes_per_entry"] for method, memory in summary["memory"].items()}
    print_table(("", *slopes), [("exponent", *_known(summary["exponent_to_1m"])), ("bytes", *_known(slopes))])
    if threads := summary["threads"]:
        lag = threads["loop_lag_ms_at_10000_per_s"]
        print(
            f"\nevent loop's lag while a thread decides 10,000 candidates a second: median {lag['p50']:.1f} ms, "
            f"p99.9 {lag['p999']:.1f} ms, most {lag['max']:.1f} ms\n"
            f"two pools in two threads over one: {threads['two_pools_in_two_threads_over_one']:.2f}; share of one "
            f"pool's time that could run ahead: {threads['share_of_one_pool_that_could_run_ahead']:.2f}"
        )


def _known(by_method: Mapping[str, float | None]) -> Iterator[object]:
    return ("-" if value is None else value for value in by_method.values())


def exponent(rows: Sequence[Row], method: str, largest: int = 1_000_000) -> float | None:
    """Slope of log time per candidate over log pool size, from the smallest size to the largest up to ``largest``."""
    mine = sorted((row.pool, row.per_s) for row in rows if row.method == method and row.pool <= largest)
    if len(mine) < 2:
        return None
    (small, fast), (large, slow) = mine[0], mine[-1]
    return math.log(fast / slow) / math.log(large / small)


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How many times faster each index is than every other method, at the largest pool that both were measured at."""
    rates = {(row.method, row.pool): row.per_s for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    out: dict[str, dict[str, float]] = {}
    for mine in (method for method in methods if method.startswith("fastgen")):
        for other in (method for method in methods if not method.startswith("fastgen")):
            both = [pool for method, pool in rates if method == other and (mine, pool) in rates]
            if both:
                out.setdefault(mine, {})[f"{other} at {max(both):,}"] = rates[mine, max(both)] / rates[other, max(both)]
    return out


def memory_slope(rows: Sequence[Row], method: str) -> dict[str, float] | None:
    """Bytes that one more entry takes between the two largest pools, and what 10,000,000 entries then take."""
    mine = sorted((row.pool, row.bytes_per_entry * row.pool) for row in rows if row.method == method)
    if len(mine) < 2:
        return None
    (small, less), (large, more) = mine[-2:]
    slope = (more - less) / (large - small)
    return {"bytes_per_entry": slope, "gb_at_10m_extrapolated": (more + slope * (10_000_000 - large)) / 1e9}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw rate and bytes over pool size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speed, memory) = plt.subplots(1, 2, figsize=(12, 5.5), width_ratios=(3, 2), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
        mine = method.startswith("fastgen")
        width, dashes = (2.5, "-") if mine else (1.2, "--")
        style: dict[str, Any] = {"marker": "o", "linewidth": width, "linestyle": dashes, "color": f"C{number}"}
        points = sorted((row.pool, row.per_s, row.bytes_per_entry) for row in rows if row.method == method)
        label = f"{method} (extrapolated)" if method == "rouge_score" else method
        speed.loglog([p[0] for p in points], [p[1] for p in points], label=label, **style)
        if mine:
            memory.semilogx([p[0] for p in points], [p[2] for p in points], **style)
    speed.set(xlabel="entries in the pool", ylabel="candidates a second, one core", title="Similarity filter, online")
    memory.set(
        xlabel="entries in the pool", ylabel="bytes an entry, everything included", title="Memory", ylim=(0, None)
    )
    for axes in (speed, memory):
        axes.grid(visible=True, which="both", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


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


if __name__ == "__main__":
    main()
