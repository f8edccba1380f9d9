"""Keeps a run's servers saturated until its plan is done: everything that works on a run at once, put together.

The scheduler asks, one thread judges and appends (`fastgen.generation.committer`), snapshots are saved between its
batches, and beside them go what steers, what is shown and what is written down. Decides nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastgen.backends.staged import RoomFirst
from fastgen.beside import beside, keep_durable, show, watch_figures, watch_space
from fastgen.concurrency import Governor
from fastgen.errors import StoppedError
from fastgen.generation.checkpoint import Saved
from fastgen.generation.checkpointer import Checkpointer
from fastgen.generation.committer import Committer
from fastgen.health import RunHealth, steps_of_run
from fastgen.method.plan import Plan
from fastgen.metrics import MetricsHub
from fastgen.metrics.instruments import Instruments, TimedBackend, WatchedSource
from fastgen.metrics.monitor import Monitor, Steering
from fastgen.metrics.series import MetricsFile
from fastgen.metrics.yields import YieldRule, YieldWatch
from fastgen.options import Options
from fastgen.progress import ProgressMeter, Reporter
from fastgen.scheduling.pace import governor_of, limits_of, rates_of
from fastgen.scheduling.scheduler import Scheduler
from fastgen.serving import Serving
from fastgen.stopping import Stopper
from fastgen.storage.store import Store

if TYPE_CHECKING:
    from fastgen.generation.background_audit import BackgroundAudit


class Saturation:
    """One run's work on a plan that is at its log's end, with servers that answer. Use once."""

    def __init__(
        self, plan: Plan, store: Store, serving: Serving, options: Options, reporter: Reporter, hub: MetricsHub
    ) -> None:
        self._plan = plan
        self._store = store
        self._serving = serving
        self._options = options
        self._speed = options.speed
        self._reporter = reporter
        self._hub = hub
        source = RoomFirst(plan, serving.backend) if serving.backend.is_staged else plan
        self._instruments = Instruments(WatchedSource(source), TimedBackend(serving.backend))
        watch = YieldWatch(store.ledger, window=self._speed.yield_window, stop_below=self._speed.stop_when_yield_below)
        self._rule = YieldRule(watch, store.ledger, self._instruments.source.begin_nothing_new, reporter.say)
        steps = steps_of_run(max_fruitless=self._speed.max_fruitless, api=options.server.api)
        self._health = RunHealth(steps, self._instruments.source.begin_nothing_new, reporter.say)
        self.concurrency = 0
        """How many completions could be in flight in the end."""

    @property
    def ended_by(self) -> str | None:
        """The user's rule that ended it, with its figures."""
        return self._rule.ended_by

    async def run(self, stopper: Stopper, saved: Saved | None) -> None:
        """Ask until the plan is done, a rule of the user's ends it, or ``stopper`` does.

        ``saved`` is the snapshot that the plan began with.

        :raises StoppedError: it cannot continue now, or one of its steps brings nothing.
        """
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge") as judge,
            Checkpointer(self._store, self._plan.state, judge, last=saved) as checkpointer,
            self._audit() as audit,
        ):
            scheduler = self._scheduler(judge, checkpointer, audit)
            governor = governor_of(self._speed, self._serving, scheduler)
            monitor = self._monitor(scheduler, governor, stopper)
            stopper.scheduler = scheduler
            meter = ProgressMeter(self._store.ledger, self._plan.state.target, self._hub)
            async with beside(scheduler.run(), *self._helpers(scheduler, governor, monitor, meter)) as work:
                await work
            await monitor.finish()
            await checkpointer.finish()
            self._store.server_figures = await self._serving.figures() or self._store.server_figures
            self._tell_faults(scheduler)
            if not stopper.stopped:
                self._health.warn(at_the_end=True)
            if audit is not None and (found := await asyncio.to_thread(audit.finish)) is not None:
                self._reporter.say(str(found))
        self._reporter.show(meter.look(in_flight=0, waiting_retries=0))
        self.concurrency = scheduler.statistics().concurrency
        if self._health.ended_by is not None and not self._plan.done and not stopper.stopped:
            raise StoppedError(f"{self._health.ended_by}. Everything committed is kept")

    def _audit(self) -> AbstractContextManager[BackgroundAudit | None]:
        if not self._speed.audit_rate:
            return nullcontext()
        from fastgen.generation.background_audit import audit_of

        similarity = asdict(self._options.similarity)
        return audit_of(
            self._plan.state, self._options.rules, similarity, rate=self._speed.audit_rate, report=self._reporter.say
        )

    def _scheduler(
        self, judge: ThreadPoolExecutor, checkpointer: Checkpointer, audit: BackgroundAudit | None
    ) -> Scheduler:
        committer = Committer(
            *(self._store, self._plan, judge),
            health=self._health,
            observe=None if audit is None else audit.observe,
            after_batch=checkpointer,
            watch_yield=self._rule,
            times=self._instruments.times,
        )
        return Scheduler(
            *(self._instruments.source, self._instruments.backend, committer, limits_of(self._speed, self._serving)),
            jitter=random.Random(),
            rates=rates_of(self._speed),
            room=self._serving.backend if self._serving.backend.is_staged else None,
        )

    def _monitor(self, scheduler: Scheduler, governor: Governor | None, stopper: Stopper) -> Monitor:
        fixed = f"--concurrency {self._speed.concurrency}"
        return Monitor(
            self._instruments,
            scheduler,
            Steering(fixed) if governor is None else Steering(servers=lambda: governor.statistics().servers),
            self._rule,
            ledger=self._store.ledger,
            target=self._plan.state.target,
            hub=self._hub,
            file=MetricsFile(self._store.folder.path),
            pages=self._serving.backend.metrics,
            is_stopping=lambda: stopper.stopped or self._health.ended_by is not None,
            trouble=self._health.trouble,
            pauses=lambda: stopper.pauses,
        )

    def _helpers(
        self, scheduler: Scheduler, governor: Governor | None, monitor: Monitor, meter: ProgressMeter
    ) -> list[Coroutine[None, None, None]]:
        """What goes on beside the scheduler for as long as it runs."""
        helpers = [
            keep_durable(self._store, self._speed.sync_interval, self._instruments.times),
            watch_space(self._store.folder.path, self._reporter),
            show(meter, scheduler, self._reporter),
            *monitor.helpers(),
            watch_figures(self._store, self._serving),
            self._serving.watch(),
        ]
        return helpers if governor is None else [*helpers, governor.run()]

    def _tell_faults(self, scheduler: Scheduler) -> None:
        if faults := scheduler.statistics().faults:
            listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
            self._reporter.say(f"server faults met, retried where that helps: {listed}")
