"""``generate``: the whole story of a run on one screen.

Open the run folder, take up what is committed, start or attach the servers, keep them saturated until the target is
reached, close. Everything that decides anything is elsewhere: `fastgen.plan` (what to ask, what it means),
`fastgen.scheduler` (how much at once), `fastgen.store` (what is true).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any

from fastgen import __version__
from fastgen.backends.staged import RoomFirst
from fastgen.beside import beside, keep_durable, show, watch_figures, watch_space
from fastgen.checkpoint import Saved, take_up
from fastgen.checkpointer import Checkpointer
from fastgen.committer import Committer
from fastgen.concurrency import Governor
from fastgen.config import check_same_meaning, meaning, model_names, saved_values, stage_models
from fastgen.decontamination import filter_of_forbidden, fingerprint
from fastgen.errors import InputError
from fastgen.ledger import Ledger
from fastgen.material import Material, load_material
from fastgen.metrics import MetricsHub
from fastgen.metrics.instruments import Instruments, TimedBackend, WatchedSource
from fastgen.metrics.monitor import Monitor, Steering
from fastgen.metrics.series import MetricsFile
from fastgen.metrics.yields import YieldRule, YieldWatch
from fastgen.options import Options
from fastgen.pace import governor_of, limits_of, rates_of
from fastgen.plan import Method, Plan
from fastgen.progress import ProgressMeter, Reporter
from fastgen.scheduler import Scheduler
from fastgen.seeds import seed_fingerprint
from fastgen.serving import Keys, Serving, serve
from fastgen.store import RunFolder, Store

if TYPE_CHECKING:
    from fastgen.background_audit import BackgroundAudit
    from fastgen.commits import Commit
    from fastgen.novelty import NoveltyFilter

log = logging.getLogger(__name__)
COMPILES_AFTER_S = 3.0  # loading compiled kernels takes half a second


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


async def generate(
    place: Place,
    options: Options,
    reporter: Reporter,
    stopper: Stopper,
    hub: MetricsHub | None = None,
    observe: Callable[[Commit], None] | None = None,
) -> Outcome:
    """Run until the target is reached or the user stops it.

    ``hub`` gets the figures of the run as they come, and ``observe`` (quick; it must not raise) every new commit.

    :raises InputError: bad flags or files, or a resume that would change what the run means.
    :raises StoppedError: the run cannot go on now; the same command goes on later.
    """
    folder = RunFolder(place.run_dir)
    folder.exists()
    store = Store(folder)
    try:
        hub = hub or MetricsHub()
        with _metrics_page(options, hub, reporter):
            run = _Run(place, options, reporter, folder, store, load_material(folder, options), hub, observe)
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
    hub: MetricsHub
    observe: Callable[[Commit], None] | None = None

    async def carry_out(self, stopper: Stopper) -> Outcome:
        models = self._check_before_resume() if self.folder.exists() else None
        planning = asyncio.ensure_future(asyncio.to_thread(self._make_plan))
        saved = None
        if models is not None:
            plan = await planning
            saved = await self._resume(plan)
            if plan.done:
                return Outcome(plan.complete, plan.target, interrupted=False, ledger=self.store.ledger)
        async with serve(
            *(self.options, self.folder, self.place.cache_dir, self.place.keys),
            models or model_names(self.options, {}),
            self.reporter.say,
        ) as serving:
            plan = await planning
            self._begin_or_check(plan, serving.models)
            began_s = time.monotonic()
            concurrency, ended_by = await self._saturate(plan, serving, stopper, saved)
            return Outcome(
                plan.complete,
                plan.target,
                interrupted=stopper.stopped and not plan.done,
                ledger=self.store.ledger,
                concurrency=concurrency,
                elapsed_s=time.monotonic() - began_s,
                ended_by=None if plan.done else ended_by,
            )

    def _make_plan(self) -> Plan:
        from fastgen.novelty import NoveltyFilter

        method, similarity = self.options.method, self.options.similarity
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
            demonstrations=method.demonstrations,
            samples_per_prompt=method.samples_per_prompt,
            classification_only=method.classification_only,
        )
        seeds, prompts = self.material.seeds, self.material.prompts
        plan = Plan(
            *(meant, seeds, prompts, novelty),
            target=self.options.job.num_instructions,
            clock=time.time,
            forbidden=filter_of_forbidden(self.material.forbidden, similarity),
            classification_batch=self.options.speed.classification_batch,
        )
        # A daemon, so that nobody who stops a run waits for compilers.
        Thread(target=self._prepare, args=(novelty,), name="kernels", daemon=True).start()
        return plan

    def _prepare(self, novelty: NoveltyFilter) -> None:
        """Load the filter's kernels while the first requests go out; who needs them meanwhile waits for them."""
        slow = Timer(
            COMPILES_AFTER_S,
            self.reporter.say,
            ["compiling the similarity filter (once on a machine, up to a minute); the servers are asked meanwhile"],
        )
        slow.daemon = True
        slow.start()
        with suppress(Exception):  # it fails again where it is needed, and is told from there
            novelty.prepare()
        slow.cancel()

    def _meaning(self, models: Mapping[str, str]) -> dict[str, Any]:
        seeds, prompts = seed_fingerprint(self.material.seeds), self.material.prompts.fingerprint
        forbidden = fingerprint(self.material.forbidden)
        own = stage_models(models)
        return meaning(
            self.options, model=models["model"], seeds=seeds, prompts=prompts, forbidden=forbidden, own_models=own
        )

    def _check_before_resume(self) -> dict[str, str]:
        """The run's models, if nothing else would change what it means."""
        saved = self.folder.header().meaning
        models = model_names(self.options, saved)
        check_same_meaning(saved, self._meaning(models), self.folder.path)
        return models

    async def _resume(self, plan: Plan) -> Saved | None:
        header = self.folder.header()
        saved = await asyncio.to_thread(take_up, self.store, plan)
        self.folder.write_header(replace(header, options=saved_values(self.options)))
        if (torn := self.store.torn) is not None:
            self.reporter.say(f"{torn.path}: dropped {torn.size} bytes of an unfinished line that a crash left behind")
        if lost := self.store.lost_bytes:
            self.reporter.say(
                f"{self.folder.log_path}: the log ends {lost} bytes before where it was last counted: its end was "
                f"lost, as by a power cut or an incomplete copy; what it held is made anew"
            )
        self.reporter.say(
            f"going on with {plan.complete} of {plan.target} instructions complete, {len(plan.pool)} kept"
        )
        return saved

    def _begin_or_check(self, plan: Plan, models: Mapping[str, str]) -> None:
        asked = self._meaning(models)
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

    def _yield_rule(self, begin_nothing_new: Callable[[], None]) -> YieldRule:
        speed, ledger = self.options.speed, self.store.ledger
        watch = YieldWatch(ledger, window=speed.yield_window, stop_below=speed.stop_when_yield_below)
        return YieldRule(watch, ledger, begin_nothing_new, self.reporter.say)

    def _monitor(
        self,
        instruments: Instruments,
        scheduler: Scheduler,
        governor: Governor | None,
        rule: YieldRule,
        *,
        serving: Serving,
        stopper: Stopper,
    ) -> Monitor:
        fixed = f"--concurrency {self.options.speed.concurrency}"
        return Monitor(
            instruments,
            scheduler,
            Steering(fixed) if governor is None else Steering(servers=lambda: governor.statistics().servers),
            rule,
            ledger=self.store.ledger,
            target=self.options.job.num_instructions,
            hub=self.hub,
            file=MetricsFile(self.folder.path),
            pages=serving.backend.metrics,
            is_stopping=lambda: stopper.stopped,
        )

    async def _saturate(
        self, plan: Plan, serving: Serving, stopper: Stopper, saved: Saved | None
    ) -> tuple[int, str | None]:
        """Ask until the plan is done; how many completions could be in flight in the end, and what rule ended it."""
        speed, store = self.options.speed, self.store
        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge") as judge,
            Checkpointer(store, plan, judge, last=saved) as checkpointer,
        ):
            audit = self._start_audit(plan)
            observe = _both(self.observe, audit.observe if audit is not None else None)
            source = RoomFirst(plan, serving.backend) if serving.backend.is_staged else plan
            instruments = Instruments(WatchedSource(source), TimedBackend(serving.backend))
            rule = self._yield_rule(instruments.source.begin_nothing_new)
            committer = Committer(
                *(store, plan, judge),
                max_fruitless=speed.max_fruitless,
                observe=observe,
                after_batch=checkpointer,
                watch_yield=rule,
                times=instruments.times,
            )
            scheduler = Scheduler(
                *(instruments.source, instruments.backend, committer, limits_of(speed, serving)),
                jitter=random.Random(),
                rates=rates_of(speed),
            )
            governor = governor_of(speed, serving, scheduler)
            monitor = self._monitor(instruments, scheduler, governor, rule, serving=serving, stopper=stopper)
            stopper.scheduler = scheduler
            meter = ProgressMeter(store.ledger, plan.target, time.monotonic())
            async with beside(
                scheduler.run(),
                keep_durable(store, speed.sync_interval, instruments.times),
                watch_space(self.folder.path, self.reporter),
                show(meter, scheduler, self.reporter, self.hub),
                *monitor.helpers(),
                watch_figures(store, serving),
                serving.watch(),
                *([governor.run()] if governor is not None else []),
            ) as run:
                await run
            await monitor.finish()
            await checkpointer.finish()
            store.server_figures = await serving.figures() or store.server_figures
            if faults := scheduler.statistics().faults:
                listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
                self.reporter.say(f"server faults met, retried where that helps: {listed}")
            if audit is not None:
                self.reporter.say(str(await asyncio.to_thread(audit.finish)))
        last = meter.look(time.monotonic(), in_flight=0, waiting_retries=0, sample=self.hub.latest)
        self.reporter.show(last)
        return scheduler.statistics().concurrency, rule.ended_by


def _both(
    one: Callable[[Commit], None] | None, other: Callable[[Commit], None] | None
) -> Callable[[Commit], None] | None:
    """What hands a commit to both of them, where there are two."""
    if one is None or other is None:
        return one or other

    def observe(commit: Commit) -> None:
        one(commit)
        other(commit)

    return observe


@contextmanager
def _metrics_page(options: Options, hub: MetricsHub, reporter: Reporter) -> Iterator[None]:
    """The figures of ``hub`` at ``--metrics-port``, if there is one."""
    host, port = options.job.metrics_host, options.job.metrics_port
    if port is None:
        yield
        return
    from fastgen.metrics.exposition import metrics_page

    with metrics_page(hub, host, port) as opened:
        reporter.say(f"metrics for Prometheus at http://{host}:{opened}/metrics")
        yield


def require_target(options: Options) -> None:
    """:raises InputError: a new run without anything to do."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")
