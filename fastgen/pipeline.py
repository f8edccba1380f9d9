"""``generate``: the whole story of a run on one screen.

Open the run folder, take up what is committed, start or attach the servers, keep them saturated until the target is
reached, close. Everything that decides anything is elsewhere: `fastgen.plan` (what to ask, what it means),
`fastgen.scheduler` (how much at once), `fastgen.store` (what is true).
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen import __version__
from fastgen.committer import Committer
from fastgen.config import check_same_meaning, meaning, saved_values
from fastgen.decontamination import filter_of_forbidden, fingerprint
from fastgen.errors import InputError
from fastgen.ledger import Ledger
from fastgen.material import Material, load_material
from fastgen.options import Options
from fastgen.plan import Method, Plan
from fastgen.progress import ProgressMeter, Reporter
from fastgen.scheduler import Limits, Scheduler
from fastgen.seeds import seed_fingerprint
from fastgen.serving import Serving, serve
from fastgen.store import RunFolder, Store

if TYPE_CHECKING:
    from fastgen.background_audit import BackgroundAudit

log = logging.getLogger(__name__)
_FIGURES_EVERY_S = 5.0
_SPACE_EVERY_S = 10.0
LOW_SPACE_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens: its folder, the cache for servers, and the key if the server wants one."""

    run_dir: Path
    cache_dir: Path
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: finished, or stopped by its user."""

    complete: int
    target: int
    interrupted: bool
    ledger: Ledger
    concurrency: int = 0
    elapsed_s: float = 0.0


class Stopper:
    """Turns the first signal into a drain and the second into a cancellation of the run's task."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._task = asyncio.current_task()
        self.scheduler: Scheduler | None = None
        self.stopped = False

    def __call__(self) -> None:
        """Handle one SIGINT or SIGTERM."""
        if self.scheduler is not None and not self.stopped:
            self._reporter.say("stopping: waiting for what is in flight (once more to stop at once)")
            self.scheduler.stop()
        elif self._task is not None:
            self._task.cancel()
        self.stopped = True


async def generate(place: Place, options: Options, reporter: Reporter, stopper: Stopper) -> Outcome:
    """Run until the target is reached or the user stops it.

    :raises InputError: bad flags or files, or a resume that would change what the run means.
    :raises StoppedError: the run cannot go on now; the same command goes on later.
    """
    folder = RunFolder(place.run_dir)
    folder.exists()
    store = Store(folder)
    try:
        run = _Run(place, options, reporter, folder, store, load_material(folder, options))
        return await run.carry_out(stopper)
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class _Run:
    place: Place
    options: Options
    reporter: Reporter
    folder: RunFolder
    store: Store
    material: Material

    async def carry_out(self, stopper: Stopper) -> Outcome:
        model = self._check_before_resume() if self.folder.exists() else None
        planning = asyncio.ensure_future(asyncio.to_thread(self._make_plan))
        if model is not None:
            plan = await planning
            await self._resume(plan)
            if plan.done:
                return Outcome(plan.complete, plan.target, interrupted=False, ledger=self.store.ledger)
        async with serve(
            self.options, self.folder, self.place.cache_dir, self.place.api_key, model, self.reporter.say
        ) as serving:
            if not planning.done():
                self.reporter.say("compiling the similarity filter (once on a machine, up to a minute)")
            plan = await planning
            self._begin_or_check(plan, serving.model)
            began_s = time.monotonic()
            await self._saturate(plan, serving, stopper)
            return Outcome(
                plan.complete,
                plan.target,
                interrupted=stopper.stopped and not plan.done,
                ledger=self.store.ledger,
                concurrency=self._concurrency(serving),
                elapsed_s=time.monotonic() - began_s,
            )

    def _concurrency(self, serving: Serving) -> int:
        return self.options.speed.concurrency or serving.concurrency

    def _make_plan(self) -> Plan:
        from fastgen.novelty import NoveltyFilter, warm_up

        method, similarity = self.options.method, self.options.similarity
        warm_up(similarity.index)
        novelty = NoveltyFilter(**asdict(similarity))
        if (bands := novelty.bands) is not None:
            self.reporter.say(
                f"similarity index: {bands.bands} MinHash bands of {bands.rows} rows, expected to meet "
                f"{bands.recall:.4%} of all true neighbours ({bands.at_bound:.2%} at the lowest possible overlap)"
            )
        meant = Method(
            rules=self.options.rules,
            sampling=self.options.sampling.by_stage(),
            seed=method.seed,
            num_prompt_instructions=method.num_prompt_instructions,
            num_machine_instructions=method.num_machine_instructions,
            classification_only=method.classification_only,
        )
        seeds, prompts = self.material.seeds, self.material.prompts
        return Plan(
            *(meant, seeds, prompts, novelty),
            target=self.options.job.num_instructions,
            clock=time.time,
            forbidden=filter_of_forbidden(self.material.forbidden, similarity),
        )

    def _meaning(self, model: str) -> dict[str, Any]:
        seeds, prompts = seed_fingerprint(self.material.seeds), self.material.prompts.fingerprint
        forbidden = fingerprint(self.material.forbidden)
        return meaning(self.options, model=model, seeds=seeds, prompts=prompts, forbidden=forbidden)

    def _check_before_resume(self) -> str:
        """The run's model, if nothing else would change what it means."""
        saved = self.folder.header().meaning
        model: str = saved["model"]
        check_same_meaning(saved, self._meaning(self.options.server.model or model), self.folder.path)
        return model

    async def _resume(self, plan: Plan) -> None:
        header = self.folder.header()
        await asyncio.to_thread(plan.resume, self.store.replay())
        self.folder.write_header(replace(header, options=saved_values(self.options)))
        if (torn := self.store.torn) is not None:
            self.reporter.say(f"{torn.path}: dropped {torn.size} bytes of an unfinished line that a crash left behind")
        self.reporter.say(
            f"going on with {plan.complete} of {plan.target} instructions complete, {len(plan.pool)} kept"
        )

    def _begin_or_check(self, plan: Plan, model: str) -> None:
        asked = self._meaning(model)
        if self.folder.exists():
            check_same_meaning(self.folder.header().meaning, asked, self.folder.path)
            return
        self.material.keep_in(self.folder)
        self.store.begin(asked, saved_values(self.options), __version__)
        plan.resume(self.store.replay())

    def _start_audit(self, plan: Plan) -> BackgroundAudit | None:
        rate = self.options.speed.audit_rate
        if not rate:
            return None
        from fastgen.audit import Auditor
        from fastgen.background_audit import BackgroundAudit

        auditor = Auditor(asdict(self.options.similarity), self.material.seeds, rate=rate, seed=len(plan.pool))
        auditor.learn([plan.pool.text(number) for number in range(len(plan.pool))])
        audit = BackgroundAudit(auditor, self.options.rules, self.reporter.say)
        audit.start()
        return audit

    async def _saturate(self, plan: Plan, serving: Serving, stopper: Stopper) -> None:
        speed, store = self.options.speed, self.store
        limits = Limits(
            concurrency=self._concurrency(serving),
            max_attempts=speed.max_attempts,
            outage_timeout_s=speed.outage_timeout,
            drain_timeout_s=speed.drain_timeout,
        )
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge") as judge:
            audit = self._start_audit(plan)
            observe = audit.observe if audit is not None else None
            committer = Committer(store, plan, judge, max_fruitless=speed.max_fruitless, observe=observe)
            scheduler = Scheduler(plan, serving.backend, committer, limits, jitter=random.Random())
            stopper.scheduler = scheduler
            meter = ProgressMeter(store.ledger, plan.target, time.monotonic())
            async with _beside(
                scheduler.run(),
                _keep_durable(store, speed.sync_interval),
                _watch_space(self.folder.path, self.reporter),
                _show(meter, scheduler, self.reporter),
                _watch_figures(store, serving),
                serving.watch(),
            ) as run:
                await run
            store.server_figures = await serving.figures() or store.server_figures
            if faults := scheduler.statistics().faults:
                listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
                self.reporter.say(f"server faults met, retried where that helps: {listed}")
            if audit is not None:
                self.reporter.say(str(await asyncio.to_thread(audit.finish)))
        self.reporter.show(meter.look(time.monotonic(), in_flight=0, waiting_retries=0))


@asynccontextmanager
async def _beside(
    main: Coroutine[None, None, None], *others: Coroutine[None, None, None]
) -> AsyncIterator[asyncio.Task[None]]:
    """``main`` with helpers beside it: they end with it, and it ends with the error of the first that fails."""
    task = asyncio.create_task(main)
    failures: list[BaseException] = []

    def ended(helper: asyncio.Task[None]) -> None:
        if not helper.cancelled() and (error := helper.exception()) is not None:
            failures.append(error)
            task.cancel()

    helpers = [asyncio.create_task(other) for other in others]
    for helper in helpers:
        helper.add_done_callback(ended)
    try:
        yield task
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if failures:
            raise failures[0] from None
        raise
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _keep_durable(store: Store, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(store.sync)
        await asyncio.to_thread(store.compress_closed)


async def _watch_space(path: Path, reporter: Reporter) -> None:
    """Warn once when the disk is nearly full, before a write fails."""
    while (free := shutil.disk_usage(path).free) > LOW_SPACE_BYTES:  # noqa: ASYNC110 - nothing tells of space
        await asyncio.sleep(_SPACE_EVERY_S)
    reporter.say(f"{path}: only {free / 1e6:,.0f} MB free on its disk; the run stops (resumable) when it is full")
    await asyncio.Event().wait()


async def _show(meter: ProgressMeter, scheduler: Scheduler, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(1.0)
        now = scheduler.statistics()
        reporter.show(meter.look(time.monotonic(), in_flight=now.in_flight, waiting_retries=now.waiting_retries))


async def _watch_figures(store: Store, serving: Serving) -> None:
    while True:
        await asyncio.sleep(_FIGURES_EVERY_S)
        store.server_figures = await serving.figures() or store.server_figures


def require_target(options: Options) -> None:
    """:raises InputError: a new run without anything to do."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")
