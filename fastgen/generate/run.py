"""``generate``: one run, from its options to its last commit.

`generate` opens the run folder, resumes or begins the run, and starts or attaches the servers. `_Session.run` is the
loop: ask, judge, append, apply. Everything that runs in parallel to the loop is started there by name.
"""

from __future__ import annotations

import asyncio
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.engine.scheduler import Scheduler
from fastgen.errors import FastgenError, InputError, StoppedError
from fastgen.generate.checkpoint import CheckpointEnd, Checkpointer
from fastgen.generate.health import MAX_REFUSED, RunHealth, steps_of_run
from fastgen.generate.inputs import (
    Inputs,
    ask_server,
    begin,
    check_models,
    load_inputs,
    models_of_begun,
    needs_server,
    planned,
    resume,
)
from fastgen.generate.options import Options, as_settled, model_names, refuse_credentials, with_api, with_paper_server
from fastgen.generate.probe import is_probed, probe
from fastgen.generate.recommended import with_recommended_sampling
from fastgen.generate.runtime import Stopper, background_tasks, governor_of, limits_of, rates_of
from fastgen.generate.serving import Keys, Serving, serve
from fastgen.methods.base import CREATION, Commit
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.methods.foreign import MethodError
from fastgen.methods.plan import Plan
from fastgen.servers.router import RoomAwareSource
from fastgen.store.ledger import Ledger
from fastgen.store.run_folder import RunFolder, Store
from fastgen.telemetry.instruments import Instruments
from fastgen.telemetry.monitor import MetricsHub, Monitor
from fastgen.telemetry.progress import Reporter, progress_of
from fastgen.telemetry.series import MetricsFile
from fastgen.telemetry.yields import YieldWatch
from fastgen.types import Answer

if TYPE_CHECKING:
    from fastgen.generate.audit import BackgroundAudit

LEDGER_EVERY_S = 5.0
SERVER_FIGURES_EVERY_S = 5.0
SPACE_EVERY_S = 10.0
LOW_SPACE_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens: its folder, the cache for servers, and the servers' API keys."""

    run_dir: Path
    cache_dir: Path
    keys: Keys = field(default_factory=Keys)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended: with the target reached, by a rule of the user's, or interrupted."""

    complete: int
    target: int
    interrupted: bool
    ledger: Ledger
    concurrency: int = 0
    elapsed_s: float = 0.0
    ended_by: str | None = None
    """The user's rule that ended the run before the target, with its figures."""
    used_up: str | None = None
    """What was used up before the target was reached, such as the documents."""


def require_target(options: Options) -> None:
    """:raises InputError: the options ask for no instructions."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")


async def generate(
    place: Place, options: Options, reporter: Reporter, stopper: Stopper, hub: MetricsHub | None = None
) -> Outcome:
    """Run until the target is reached or the user stops it. ``hub`` receives the figures of the run.

    :raises InputError: bad flags or files, or a resume that would change the configuration.
    :raises StoppedError: the run cannot continue now; the same command resumes it later.
    """
    folder = RunFolder(place.run_dir)
    folder.exists()
    store = Store(folder)
    hub = hub or MetricsHub()
    try:
        with _metrics_page(options, hub, reporter):
            return await _generate(store, place, options, reporter, stopper, hub)
    finally:
        store.close()


async def _generate(
    store: Store, place: Place, options: Options, reporter: Reporter, stopper: Stopper, hub: MetricsHub
) -> Outcome:
    folder = store.folder
    if folder.exists():
        options = as_settled(options, folder.header().configuration)
        if options.server.api == "auto":
            options = with_api(options, folder.header().configuration["api"])
    inputs = load_inputs(folder, options)
    begun = models_of_begun(folder, options, inputs)
    if begun is None:
        refuse_credentials(options)
    options = with_paper_server(options, None if begun is None else folder.header().options)
    checkpoint, known = None, asyncio.get_running_loop().create_future()
    if begun is not None or not needs_server(options, inputs):
        known.set_result((options, inputs))
    async with planned(known, options, reporter.say) as making_plan:
        if begun is not None:  # a resumed run: its plan is the replay of its log
            plan = await making_plan
            checkpoint = await resume(store, plan, options, reporter.say)
            if plan.done:
                return Outcome(plan.state.complete, plan.state.target, interrupted=False, ledger=store.ledger)
        models = begun or model_names(options, {})
        async with serve(options, folder, place.cache_dir, place.keys, models, reporter.say) as serving:
            if begun is None:
                if not known.done():
                    known.set_result(await _settled(options, inputs, serving, reporter))
                plan, (settled, inputs) = await making_plan, await known
                options = await _begin(store, plan, serving, options, settled, inputs, reporter)
            else:
                check_models(folder, options, inputs, serving.models)
            session = _Session(plan, store, serving, options, reporter, stopper, hub)
            try:
                return await session.run(checkpoint)
            except MethodError as error:
                again = f"fastgen refilter --run-dir {folder.path} --output NEW, and fastgen generate --run-dir NEW"
                raise InputError(f"{error}, then run: {again}") from None


async def _settled(options: Options, inputs: Inputs, serving: Serving, reporter: Reporter) -> tuple[Options, Inputs]:
    """The options and inputs of a new run, with what its servers and models decide."""
    router = serving.backend
    options, inputs = await ask_server(options, inputs, router.member(CREATION), reporter.say)
    return await with_recommended_sampling(options, inputs, router, reporter.say), inputs


async def _begin(
    store: Store, plan: Plan, serving: Serving, asked: Options, options: Options, inputs: Inputs, reporter: Reporter
) -> Options:
    """Begin a new run, after a probe of its steps. Returns its options: ``options``, as the probe has changed them."""
    if is_probed(options):
        options = await probe(plan, serving, options, reporter.say)
    begin(store, plan, options, inputs, serving.models, asked=asked)
    _warn_of_generation_config(options, serving, reporter)
    reporter.say(
        f"making {plan.state.target:,} instructions with {serving.models['model']} in {store.folder.path}; Ctrl-C stops"
        " the run, and the same command continues it"
    )
    return options


class _Session:
    """One process's work on a run, with a plan that is at the log's end and servers that answer. Use once."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        serving: Serving,
        options: Options,
        reporter: Reporter,
        stopper: Stopper,
        hub: MetricsHub,
    ) -> None:
        self.plan, self.store, self.serving, self.options = plan, store, serving, options
        self.reporter, self.stopper, self.hub = reporter, stopper, hub
        speed, backend = options.speed, serving.backend
        self.instruments = Instruments()
        self.scheduler = scheduler = Scheduler(
            RoomAwareSource(plan, backend) if backend.is_split else plan,
            backend,
            limits_of(speed, serving),
            jitter=random.Random(),
            rates=rates_of(speed),
            capacity=backend if backend.is_split else None,
            observe=self.instruments.observe_latency,
        )
        self.governor = governor_of(speed, serving, scheduler)
        self.yields = YieldWatch(
            store.ledger,
            window=speed.yield_window,
            stop_below=speed.stop_when_yield_below,
            say=reporter.say,
            stop_asking=scheduler.stop_asking,
        )
        server = options.server
        steps = steps_of_run(
            plan.method,
            max_fruitless=speed.max_fruitless,
            api=server.api,
            is_thinking_off=serving.is_thinking_off(options),
        )
        self.health = RunHealth(steps, scheduler.stop_asking, reporter.say)
        self.ledger_saved_s = 0.0
        stopper.scheduler = scheduler

    async def run(self, checkpoint: CheckpointEnd | None) -> Outcome:
        """Ask until the plan is done, a rule of the user's ends the run, or the stopper does.

        ``checkpoint`` is the end of the checkpoint that the plan was restored from.

        :raises StoppedError: the run cannot continue now, or one of its steps brings nothing.
        """
        began_s = time.monotonic()
        plan, store, instruments = self.plan, self.store, self.instruments

        def judge_and_append(answers: Sequence[Answer]) -> list[Commit]:
            with instruments.judging() as judged:
                commits = plan.judge(answers)  # 2. judge: parse, check the rules, compare; changes nothing
                judged()
                store.append(commits)  # 3. append: one checksummed line of the log per choice
            return commits

        with (
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge") as worker,
            Checkpointer(store, plan.state, worker, last=checkpoint) as checkpointer,
            self._audit() as audit,
        ):
            monitor = self._monitor()  # its first sample begins here, after the audit has read the pool
            async with background_tasks() as start:
                start("sync", keep_durable(store, self.options.speed.sync_interval, instruments))
                start("free space", watch_space(store.folder.path, self.reporter))
                start("progress", self._show_progress())
                start("server figures", keep_server_figures(store, self.serving))
                start("servers", self.serving.watch())
                for figures in monitor.tasks():
                    start("figures", figures)
                if self.governor is not None:
                    start("concurrency", self.governor.run())

                async with aclosing(self.scheduler.answers()) as batches:
                    async for answers in batches:  # 1. ask: N completions in flight, answers in batches
                        instruments.begin_batch(len(answers))
                        judging = asyncio.get_running_loop().run_in_executor(worker, judge_and_append, answers)
                        commits = await self._judged(judging, audit)
                        self._apply(commits, audit)  # 4. apply: the pool grows, the next prompts use it
                        await checkpointer()
                        self.yields()
                        instruments.end_batch()
                        if plan.done:
                            break
                        self._check_progress()
            await monitor.finish()
            await checkpointer.finish()
            store.server_figures = await self.serving.figures() or store.server_figures
            await self._tell_findings(audit)
        self.reporter.show(progress_of(store.ledger, self.hub, target=plan.state.target))
        if self.health.ended_by is not None and not plan.done and not self.stopper.stopped:
            raise StoppedError(f"{self.health.ended_by}. Everything committed is kept")
        return self._outcome(time.monotonic() - began_s)

    async def _judged(self, judging: asyncio.Future[list[Commit]], audit: BackgroundAudit | None) -> list[Commit]:
        """The commits of a batch. When cancelled, apply what the worker thread appends all the same."""
        try:
            return await asyncio.shield(judging)
        except asyncio.CancelledError:
            with suppress(FastgenError):
                self._apply(await judging, audit)
            raise

    def _apply(self, commits: Sequence[Commit], audit: BackgroundAudit | None) -> None:
        began_s = time.perf_counter()
        for commit in commits:
            self.plan.apply(commit)
            self.store.ledger.apply(commit)
            self.health.see(commit)
            if audit is not None:
                audit.observe(commit)
        now_s = time.monotonic()
        if now_s - self.ledger_saved_s >= LEDGER_EVERY_S:
            self.ledger_saved_s = now_s
            self.store.save_ledger()
        self.instruments.apply_s += time.perf_counter() - began_s

    def _outcome(self, elapsed_s: float) -> Outcome:
        state = self.plan.state
        return Outcome(
            state.complete,
            state.target,
            interrupted=self.stopper.stopped and not state.done,
            ledger=self.store.ledger,
            concurrency=self.scheduler.statistics().concurrency,
            elapsed_s=elapsed_s,
            ended_by=None if state.done else self.yields.ended_by,
            used_up=self._used_up(),
        )

    def _used_up(self) -> str | None:
        plan = self.plan
        if plan.done or not plan.is_exhausted or self.stopper.stopped or self.yields.ended_by is not None:
            return None
        if plan.method.documents:
            return "the documents are used up"
        return f"--method {plan.method.name} has nothing more to ask for"

    def _check_progress(self) -> None:
        """:raises InputError: the server refuses every request."""
        state = self.plan.state
        if self.health.ended_by is None and state.refused >= MAX_REFUSED:
            asks_for_json = bool(self.plan.method.structured)
            remedy = ". If it knows no JSON schemas, use --structured off (in a new run)" if asks_for_json else ""
            refused = f"the server refused the last {state.refused} requests permanently"
            raise InputError(f"{refused}: {state.last_refusal}{remedy}")
        self.health()

    def _audit(self) -> AbstractContextManager[BackgroundAudit | None]:
        speed = self.options.speed
        if not speed.audit_rate:
            return nullcontext()
        from fastgen.generate.audit import audit_of

        similarity = asdict(self.options.similarity)
        return audit_of(self.plan.state, similarity, rate=speed.audit_rate, report=self.reporter.say)

    def _monitor(self) -> Monitor:
        backend, governor = self.serving.backend, self.governor
        return Monitor(
            self.instruments,
            self.scheduler,
            self.yields,
            ledger=self.store.ledger,
            target=self.plan.state.target,
            method="" if (name := self.plan.method.name) == SELF_INSTRUCT else name,
            hub=self.hub,
            file=MetricsFile(self.store.folder.path),
            servers=governor.states if governor is not None else lambda: backend.statistics().endpoints,
            poll=backend.metrics if governor is None else None,
            set_by=f"--concurrency {self.options.speed.concurrency}" if governor is None else "",
            is_stopping=lambda: self.stopper.stopped or self.health.ended_by is not None,
            trouble=self.health.trouble,
            pauses=lambda: self.stopper.pauses,
        )

    async def _show_progress(self) -> None:
        """Show the figures every second."""
        while True:
            await asyncio.sleep(1.0)
            now = self.scheduler.statistics()
            counts = {"in_flight": now.in_flight, "waiting_retries": now.waiting_retries}
            self.reporter.show(progress_of(self.store.ledger, self.hub, target=self.plan.state.target, **counts))

    async def _tell_findings(self, audit: BackgroundAudit | None) -> None:
        """Say what the session met: server faults, unhealthy steps, the audit's result."""
        if faults := self.scheduler.statistics().faults:
            listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
            self.reporter.say(f"server faults met, retried where that helps: {listed}")
        if not self.stopper.stopped:
            self.health.warn(at_the_end=True)
        if audit is not None and (found := await asyncio.to_thread(audit.finish)) is not None:
            self.reporter.say(str(found))


async def keep_durable(store: Store, interval_s: float, instruments: Instruments) -> None:
    """Force the log to disk every ``interval_s``, and compress its closed segments."""
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(instruments.syncing, store.sync)
        await asyncio.to_thread(store.compress_closed)


async def watch_space(path: Path, reporter: Reporter) -> None:
    """Warn once when the disk is nearly full, before a write fails."""
    while (free := free_bytes(path)) > LOW_SPACE_BYTES:  # noqa: ASYNC110 - no event reports free space
        await asyncio.sleep(SPACE_EVERY_S)
    reporter.say(f"{path}: only {free / 1e6:,.0f} MB free on its disk; the run stops (resumable) when it is full")
    await asyncio.Event().wait()


def free_bytes(path: Path) -> float:
    """Free bytes on the folder's disk. Infinite where unknown, since the next write reports the problem."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return math.inf


async def keep_server_figures(store: Store, serving: Serving) -> None:
    """Store the servers' own figures of the run every five seconds."""
    while True:
        await asyncio.sleep(SERVER_FIGURES_EVERY_S)
        store.server_figures = await serving.figures() or store.server_figures


@contextmanager
def _metrics_page(options: Options, hub: MetricsHub, reporter: Reporter) -> Iterator[None]:
    """Serve the figures of ``hub`` at ``--metrics-port``, if given."""
    host, port = options.job.metrics_host, options.job.metrics_port
    if port is None:
        yield
        return
    from fastgen.telemetry.prometheus import metrics_page

    with metrics_page(hub, host, port) as opened:
        reporter.say(f"metrics for Prometheus at http://{host}:{opened}/metrics")
        yield


def _warn_of_generation_config(options: Options, serving: Serving, reporter: Reporter) -> None:
    if options.method.preset == "paper" and serving.is_others_vllm:
        reporter.say(
            "--preset paper: this vLLM server adds its model's own generation_config (top_k, "
            "repetition_penalty) unless it was started with --generation-config vllm"
        )
