"""The scheduler's sink: judge, append, apply. The only caller of ``store.append``, so a run has one writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastgen.commits import Commit
from fastgen.errors import InputError
from fastgen.health import RunHealth
from fastgen.method.plan import Plan
from fastgen.metrics.instruments import CommitTimes
from fastgen.records import Answer
from fastgen.storage.store import Store

MAX_REFUSED = 64  # requests refused in a row: then it is the sampling or the model's context, not the requests
LEDGER_EVERY_S = 5.0


class Committer:
    """Judges and appends in the worker thread ``judge`` (kernels and disk, off the loop), applies in the loop."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        judge: ThreadPoolExecutor,
        *,
        health: RunHealth,
        observe: Callable[[Commit], None] | None = None,
        after_batch: Callable[[], Awaitable[None]] | None = None,
        watch_yield: Callable[[], None] | None = None,
        times: CommitTimes | None = None,
    ) -> None:
        self._store = store
        self._plan = plan
        self._judge = judge
        self._health = health
        self._observe = observe
        self._after_batch = after_batch
        self._watch_yield = watch_yield
        self._times = times or CommitTimes()
        self._ledger_saved_s = 0.0

    async def __call__(self, answers: Sequence[Answer]) -> bool:
        """Commit the answers; true when the target is reached.

        :raises DiskError: the log cannot be written. :raises InputError: the server refuses every request.
        """
        self._times.begin(len(answers))
        commits = await asyncio.get_running_loop().run_in_executor(self._judge, self._judge_and_append, answers)
        began_s = time.perf_counter()
        for commit in commits:
            self._plan.apply(commit)
            self._store.ledger.apply(commit)
            self._health.see(commit)
            if self._observe is not None:
                self._observe(commit)
        self._save_ledger_at_times()
        self._times.apply_s += time.perf_counter() - began_s
        if self._after_batch is not None:
            await self._after_batch()
        if self._watch_yield is not None:
            self._watch_yield()
        self._times.end()
        self._check_that_it_leads_somewhere()
        return self._plan.done

    def _check_that_it_leads_somewhere(self) -> None:
        state = self._plan.state
        if state.done:
            return
        self._health()
        if state.refused >= MAX_REFUSED:
            raise InputError(f"the server refused the last {state.refused} requests for good: {state.last_refusal}")

    def _judge_and_append(self, answers: Sequence[Answer]) -> list[Commit]:
        with self._times.judging() as judged:
            commits = self._plan.judge(answers)
            judged()
            self._store.append(commits)
        return commits

    def _save_ledger_at_times(self) -> None:
        now_s = time.monotonic()
        if now_s - self._ledger_saved_s >= LEDGER_EVERY_S:
            self._ledger_saved_s = now_s
            self._store.save_ledger()
