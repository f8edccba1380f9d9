"""From the speed options to what carries them out: the scheduler's limits, its rates, and what steers it."""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.engine.concurrency import Governor
from fastgen.engine.rate_limits import RateLimits
from fastgen.engine.requests import Limits
from fastgen.engine.scheduler import Scheduler
from fastgen.errors import InputError, StoppedError
from fastgen.generate.checkpoint import Checkpointer, Saved
from fastgen.generate.health import RunHealth, steps_of_run
from fastgen.generate.inputs import begin_or_check, load_material, models_of_begun, planned, resume
from fastgen.generate.options import Options, SpeedOptions, model_names, refuse_credentials, with_paper_server
from fastgen.generate.serving import Keys, Serving, serve
from fastgen.generate.stopping import Stopper
from fastgen.methods.base import Commit
from fastgen.methods.self_instruct.plan import Plan
from fastgen.servers.staged import RoomFirst
from fastgen.store.ledger import Ledger
from fastgen.store.run_folder import RunFolder, Store
from fastgen.telemetry.instruments import CommitTimes, Instruments, TimedBackend, WatchedSource
from fastgen.telemetry.monitor import MetricsHub, Monitor, Steering
from fastgen.telemetry.progress import ProgressMeter, Reporter
from fastgen.telemetry.series import MetricsFile
from fastgen.telemetry.yields import YieldRule, YieldWatch
from fastgen.types import Answer

if TYPE_CHECKING:
    from fastgen.generate.audit import BackgroundAudit


def limits_of(speed: SpeedOptions, serving: Serving) -> Limits:
    """How much at once, and how hard to try; with ``auto`` where it begins, and the most that a governor may set.

    Never more than this process can have connections for.
    """
    auto, most = speed.concurrency == "auto", serving.most_in_flight
    return Limits(
        concurrency=min(most, sum(serving.sizes) if speed.concurrency == "auto" else speed.concurrency),
        max_concurrency=min(most, speed.max_concurrency * len(serving.sizes)) if auto else None,
        max_attempts=speed.max_attempts,
        outage_timeout_s=speed.outage_timeout,
        drain_timeout_s=speed.drain_timeout,
    )


def rates_of(speed: SpeedOptions) -> RateLimits | None:
    """The limits a minute; ``None`` where there are none."""
    allowed = speed.requests_per_minute, speed.tokens_per_minute
    return RateLimits(*allowed) if any(allowed) else None


def governor_of(speed: SpeedOptions, serving: Serving, scheduler: Scheduler) -> Governor | None:
    """What steers the limits; ``None`` where the user fixed them."""
    if speed.concurrency != "auto":
        return None
    set_total = scheduler.set_concurrency
    maximum = min(serving.most_in_flight, speed.max_concurrency)
    return Governor(serving.backend, set_total, initial=serving.sizes, maximum=maximum)


_FIGURES_EVERY_S = 5.0
_SPACE_EVERY_S = 10.0
LOW_SPACE_BYTES = 500_000_000


@asynccontextmanager
async def beside(
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


async def keep_durable(store: Store, interval_s: float, times: CommitTimes) -> None:
    """Force the log to the disk every ``interval_s``, and compress the segments that are closed."""
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(times.syncing, store.sync)
        await asyncio.to_thread(store.compress_closed)


async def watch_space(path: Path, reporter: Reporter) -> None:
    """Warn once when the disk is nearly full, before a write fails."""
    while (free := free_bytes(path)) > LOW_SPACE_BYTES:  # noqa: ASYNC110 - nothing tells of space
        await asyncio.sleep(_SPACE_EVERY_S)
    reporter.say(f"{path}: only {free / 1e6:,.0f} MB free on its disk; the run stops (resumable) when it is full")
    await asyncio.Event().wait()


def free_bytes(path: Path) -> float:
    """Free bytes on the folder's disk; endless where nothing tells, as when the folder is gone: a write will say so."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return math.inf


async def show(meter: ProgressMeter, scheduler: Scheduler, reporter: Reporter) -> None:
    """Show the figures every second."""
    while True:
        await asyncio.sleep(1.0)
        now = scheduler.statistics()
        reporter.show(meter.look(in_flight=now.in_flight, waiting_retries=now.waiting_retries))


async def watch_figures(store: Store, serving: Serving) -> None:
    """Keep what the servers say of the run in its folder."""
    while True:
        await asyncio.sleep(_FIGURES_EVERY_S)
        store.server_figures = await serving.figures() or store.server_figures


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
        from fastgen.generate.audit import audit_of

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens: its folder, the cache for servers, and the keys of servers that want one."""

    run_dir: Path
    cache_dir: Path
    keys: Keys = field(default_factory=Keys)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: finished, or stopped by its user."""

    complete: int
    target: int
    interrupted: bool
    ledger: Ledger
    concurrency: int = 0
    elapsed_s: float = 0.0
    ended_by: str | None = None
    """The user's rule that ended it before the target, with its figures."""


async def generate(
    place: Place,
    options: Options,
    reporter: Reporter,
    stopper: Stopper,
    hub: MetricsHub | None = None,
) -> Outcome:
    """Run until the target is reached or the user stops it; ``hub`` gets the figures of the run as they come.

    :raises InputError: bad flags or files, or a resume that would change what the run means.
    :raises StoppedError: the run cannot go on now; the same command goes on later.
    """
    folder = RunFolder(place.run_dir)
    folder.exists()
    store = Store(folder)
    try:
        hub = hub or MetricsHub()
        with _metrics_page(options, hub, reporter):
            return await _carry_out(store, place, options, reporter, stopper, hub)
    finally:
        store.close()


async def _carry_out(
    store: Store, place: Place, options: Options, reporter: Reporter, stopper: Stopper, hub: MetricsHub
) -> Outcome:
    folder, material = store.folder, load_material(store.folder, options)
    models = models_of_begun(folder, options, material)
    if models is None:
        refuse_credentials(options)
    options = with_paper_server(options, None if models is None else folder.header().options)
    async with planned(options, material, reporter.say) as made:
        saved = None
        if models is not None:
            plan = await made
            saved = await resume(store, plan, options, reporter.say)
            if plan.done:
                return Outcome(plan.state.complete, plan.state.target, interrupted=False, ledger=store.ledger)
        known = models or model_names(options, {})
        async with serve(options, folder, place.cache_dir, place.keys, known, reporter.say) as serving:
            plan = await made
            if models is None and options.method.preset == "paper" and serving.is_others_vllm:
                reporter.say(
                    "--preset paper: this vLLM server adds its model's own generation_config (top_k, "
                    "repetition_penalty) unless it was started with --generation-config vllm"
                )
            begin_or_check(store, plan, options, material, serving.models)
            began_s = time.monotonic()
            saturation = Saturation(plan, store, serving, options, reporter, hub)
            await saturation.run(stopper, saved)
            return Outcome(
                plan.state.complete,
                plan.state.target,
                interrupted=stopper.stopped and not plan.done,
                ledger=store.ledger,
                concurrency=saturation.concurrency,
                elapsed_s=time.monotonic() - began_s,
                ended_by=None if plan.done else saturation.ended_by,
            )


@contextmanager
def _metrics_page(options: Options, hub: MetricsHub, reporter: Reporter) -> Iterator[None]:
    """The figures of ``hub`` at ``--metrics-port``, if there is one."""
    host, port = options.job.metrics_host, options.job.metrics_port
    if port is None:
        yield
        return
    from fastgen.telemetry.prometheus import metrics_page

    with metrics_page(hub, host, port) as opened:
        reporter.say(f"metrics for Prometheus at http://{host}:{opened}/metrics")
        yield


def require_target(options: Options) -> None:
    """:raises InputError: a new run without anything to do."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")
