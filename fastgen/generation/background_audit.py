"""Runs an `Auditor` beside a live run, in a thread of its own that the committer feeds. It never holds up the run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from fastgen.audit import Audit, Auditor
from fastgen.commits import Commit
from fastgen.method.rules import Rules
from fastgen.method.run_state import RunState

log = logging.getLogger(__name__)
BACKLOG = 10_000  # commits; bounds the memory that a scan slower than the run can take


class BackgroundAudit:
    """A context manager: the thread runs for the length of the block.

    Give it every commit through `observe`. `finish` waits for the rest and returns what was found; leaving the block
    without it abandons the rest. An audit that fails, or falls ``backlog`` commits behind, ends with one warning.
    """

    def __init__(
        self, auditor: Auditor, rules: Rules, report: Callable[[str], None], *, backlog: int = BACKLOG
    ) -> None:
        self._auditor = auditor
        self._rules = rules
        self._report = report
        self._backlog = backlog
        self._queue: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._queue.put(None)
        self._thread.join()

    def observe(self, commit: Commit) -> None:
        """Hand over one commit, in order. Never waits."""
        if self._ended.is_set():
            return
        if self._queue.qsize() >= self._backlog:
            self._ended.set()
            log.warning(
                "the audit is %d answers behind and ends here; the run continues without it, and 'fastgen audit "
                "--rate 1' checks all of it later",
                self._backlog,
            )
            return
        self._queue.put(commit)

    def finish(self) -> Audit | None:
        """Wait until everything handed over is checked; return what was found, ``None`` if the audit ended early."""
        self._queue.put(None)
        self._thread.join()
        return None if self._ended.is_set() else self._auditor.result()

    def _run(self) -> None:
        try:
            while (commit := self._queue.get()) is not None and not self._ended.is_set():
                for found in self._auditor.see(commit, self._rules):
                    self._report(f"audit: {found.kind} (ROUGE-L {found.rouge_l:.3f}): {found.instruction}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no reason to end the run
            self._ended.set()
            log.warning(
                "the audit ended (%s: %s); the run continues without it, and "
                "'fastgen audit --rate 1' checks all of it later",
                type(error).__name__,
                error,
            )


def audit_of(
    state: RunState, rules: Rules, similarity: Mapping[str, Any], *, rate: float, report: Callable[[str], None]
) -> BackgroundAudit:
    """An audit of a run from ``state`` on; it checks a share ``rate`` (above 0, at most 1) of the decisions."""
    pool = state.pool
    auditor = Auditor(similarity, state.seeds, rate=rate, seed=len(pool))
    auditor.learn([pool.text(number) for number in range(len(pool))])
    return BackgroundAudit(auditor, rules, report)
