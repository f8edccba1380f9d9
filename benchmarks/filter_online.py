"""The filter online: text in, decision and insertion, growth included; what it decides wrongly; what it holds up."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.filter_streams import BATCH, chunks, fresh_candidates
from benchmarks.harness import memory_bytes
from fastgen.similarity.novelty import IndexKind, NoveltyFilter, warm_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WINDOW = 20_000  # candidates timed at each size
_FILL = 8192  # texts added at once where the pool grows unchecked


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
