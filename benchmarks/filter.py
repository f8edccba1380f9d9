"""What the similarity filter costs as the pool grows, whether it decides rightly, and what it holds up.

    python -m benchmarks.filter                                  # 10k and 100k entries, a generated corpus, minutes
    python -m benchmarks.filter --sizes 10000 100000 1000000 --corpus stream.jsonl --plot benchmarks/plots/filter.png

Rates are candidates a second of one core (CPU time of the one thread that works): text in, decision and insertion,
growth included. For each index and pool size also: bytes an entry, wall time of batches of 64, the share kept, wrong
decisions among fresh candidates against the exhaustive scan of the same pool (whose rate is given too). Rivals run in
the same process on the same texts; rouge_score is measured per pair and extrapolated, and so marked. Beyond
``--fill-above`` the pool grows unchecked, which saves minutes and leaves more neighbours in it than a filtered one has.
The last line is JSON; ``--also`` joins the last lines of earlier parts, for machines that are lent for minutes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from benchmarks.filter_online import WINDOW, Row, grow, loop_lag_ms, outside_decision, two_threads
from benchmarks.filter_report import exponent, memory_slope, plot, print_rows, print_summary, ratios
from benchmarks.filter_rivals import rivals
from benchmarks.filter_streams import stream
from benchmarks.harness import finish
from fastgen.similarity.novelty import INDEX_KINDS


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


if __name__ == "__main__":
    main()
