"""Runs an `Auditor` beside a live run: in a thread of its own, fed by the committer, bounded in what it holds back."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from fastgen.audit import Audit, Auditor
from fastgen.commits import Commit
from fastgen.method.rules import Rules
from fastgen.method.run_state import RunState

log = logging.getLogger(__name__)
BACKLOG = 10_000  # commits; a scan that falls behind further than this slows the run rather than fill the memory


class BackgroundAudit:
    """Start it with `start`, give it every commit through `observe`, end it with `finish`."""

    def __init__(self, auditor: Auditor, rules: Rules, report: Callable[[str], None]) -> None:
        self._auditor = auditor
        self._rules = rules
        self._report = report
        self._queue: queue.Queue[Commit | None] = queue.Queue(maxsize=BACKLOG)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def observe(self, commit: Commit) -> None:
        """Hand over one commit, in order."""
        if self._thread.is_alive():  # it ends early only by an error, which is logged: the run goes on without it
            self._queue.put(commit)

    def finish(self) -> Audit:
        """Wait until everything handed over is checked; what was found."""
        self._queue.put(None)
        self._thread.join()
        return self._auditor.result()

    def _run(self) -> None:
        try:
            while (commit := self._queue.get()) is not None:
                for found in self._auditor.see(commit, self._rules):
                    self._report(f"audit: {found.kind} (ROUGE-L {found.rouge_l:.3f}): {found.instruction}")
        except Exception:
            log.exception("the audit ended; the run goes on without it")


def start_audit(
    state: RunState, rules: Rules, similarity: Mapping[str, Any], *, rate: float, report: Callable[[str], None]
) -> BackgroundAudit:
    """Begin to follow a run from ``state`` on; ``rate`` (above 0, at most 1) of its decisions are made again."""
    pool = state.pool
    auditor = Auditor(similarity, state.seeds, rate=rate, seed=len(pool))
    auditor.learn([pool.text(number) for number in range(len(pool))])
    audit = BackgroundAudit(auditor, rules, report)
    audit.start()
    return audit
