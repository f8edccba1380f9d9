"""Whether the client's memory grows with the number of completions, apart from similarity index and pool.

``python -m benchmarks.memory [--completions 1000000] [--concurrency 256]``

One whole run of ``generate`` against the test server without latency. At each tenth of the completions the resident
memory of the process is read. The similarity index, the pool of instructions, and the copy of both while a checkpoint
is written report their size; these grow with the pool. The rest must not grow: the benchmark prints its growth from
the first tenth to the last.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import uvloop

from benchmarks.harness import finish, memory_bytes, print_table, test_server
from fastgen.generate import run as run_module
from fastgen.generate.audit import BackgroundAudit
from fastgen.generate.options import JobOptions, Options, ServerOptions, SpeedOptions
from fastgen.generate.run import Place, generate
from fastgen.generate.runtime import Stopper, return_large_blocks
from fastgen.methods.base import Commit
from fastgen.methods.plan import Plan
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.run_folder import Store
from fastgen.telemetry.progress import QuietReporter

_MB = 1e6


@dataclass(frozen=True, slots=True)
class Look:
    """Memory at one moment, in bytes; ``rest_bytes`` is what should stay as it is.

    ``copy_bytes`` is shared memory: while a checkpoint is made, the copy of index and pool that it is written from.
    """

    completions: int
    kept: int
    resident_bytes: int
    copy_bytes: int
    pool_bytes: int

    @property
    def rest_bytes(self) -> int:
        """Resident memory without index and pool and their copy."""
        return self.resident_bytes - self.copy_bytes - self.pool_bytes


class _Watch:
    """Looks at the run's memory at the given numbers of completions and ends the run at the last."""

    def __init__(self, at: Sequence[int]) -> None:
        self.looks: list[Look] = []
        self._at = list(at)

    def see(self, store: Store, plan: Plan) -> bool:
        """Look if it is time; true at the last."""
        done = store.ledger.completions.total()
        if self._at and done >= self._at[0]:
            self._at.pop(0)
            self.looks.append(_look(done, plan))
        return not self._at


def _look(done: int, plan: Plan) -> Look:
    gc.collect()
    return Look(done, len(plan.state.pool), memory_bytes("VmRSS"), memory_bytes("RssShmem"), plan.state.memory_bytes())


def measure(base_url: str, completions: int, concurrency: int, index: str) -> list[Look]:
    """The looks of one run."""
    watch = _Watch([completions * tenth // 10 for tenth in range(1, 11)])

    class Watched(run_module._Session):  # noqa: SLF001 - looks after each batch, at the same moment in every run
        def _apply(self, commits: Sequence[Commit], audit: BackgroundAudit | None) -> None:
            super()._apply(commits, audit)
            if watch.see(self.store, self.plan) and not self.stopper.stopped:
                self.stopper()

    options = Options(
        job=JobOptions(num_instructions=completions),
        server=ServerOptions(base_url=(base_url,)),
        speed=SpeedOptions(concurrency=concurrency),
        similarity=SimilarityOptions(index=index),  # type: ignore[arg-type]  # argparse gives one of its choices
    )

    async def main(folder: Path) -> None:
        reporter = QuietReporter()
        await generate(Place(folder, folder), options, reporter, Stopper(reporter))

    with tempfile.TemporaryDirectory() as name, patch.object(run_module, "_Session", Watched):
        uvloop.run(main(Path(name) / "run"))
    return watch.looks


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--index", choices=("lsh", "exact"), default="lsh")
    given = parser.parse_args()
    return_large_blocks()  # as the command does
    with test_server() as server:
        looks = measure(server.base_url, given.completions, given.concurrency, given.index)
    print_table(
        ("completions", "kept", "resident MB", "index and pool MB", "their copy MB", "rest MB"),
        [
            (
                look.completions,
                look.kept,
                *(round(b / _MB, 1) for b in (look.resident_bytes, look.pool_bytes, look.copy_bytes, look.rest_bytes)),
            )
            for look in looks
        ],
    )
    growth = looks[-1].rest_bytes / looks[0].rest_bytes - 1
    print(
        f"\nthe rest grew by {growth:.1%} over {looks[-1].completions / looks[0].completions:.0f} times the completions"
    )
    finish("memory", {"looks": [asdict(look) for look in looks], "growth": growth, "settings": vars(given)})


if __name__ == "__main__":
    main()
