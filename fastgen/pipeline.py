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
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastgen import __version__
from fastgen.config import Options, check_same_meaning, meaning, saved_values
from fastgen.errors import InputError, StoppedError
from fastgen.material import Material, load_material
from fastgen.plan import Method, Plan
from fastgen.progress import ProgressMeter, Reporter
from fastgen.records import Answer
from fastgen.scheduler import Limits, Scheduler
from fastgen.seeds import seed_fingerprint
from fastgen.serving import Serving, serve
from fastgen.store import RunFolder, RunHeader, Store

log = logging.getLogger(__name__)
_LEDGER_EVERY_S = 5.0
MAX_REFUSED = 64  # requests refused in a row: then it is the sampling or the model's context, not the requests


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
        material = load_material(folder, options)
        planning = asyncio.ensure_future(asyncio.to_thread(_plan, options, material))
        if folder.exists():
            plan = await _resume(folder, store, planning, options, material, reporter)
            if plan.done:
                return Outcome(plan.complete, plan.target, interrupted=False)
        model = _model_so_far(folder)
        async with serve(options, folder, place.cache_dir, place.api_key, model, reporter.say) as serving:
            if not planning.done():
                reporter.say("compiling the similarity filter (once on a machine, up to a minute)")
            plan = await planning
            _begin_or_check(folder, store, plan, options, material, serving)
            await _saturate(store, plan, serving, options, reporter, stopper)
        return Outcome(plan.complete, plan.target, interrupted=stopper.stopped and not plan.done)
    finally:
        store.close()


def _plan(options: Options, material: Material) -> Plan:
    from fastgen.novelty import NoveltyFilter, warm_up

    method = options.method
    warm_up(method.index)
    return Plan(
        Method(
            rules=options.rules,
            sampling=options.sampling.by_stage(),
            seed=method.seed,
            num_prompt_instructions=method.num_prompt_instructions,
            num_machine_instructions=method.num_machine_instructions,
            classification_only=method.classification_only,
        ),
        material.seeds,
        material.prompts,
        NoveltyFilter(
            threshold=method.threshold, reject_at=method.reject_at, tokenizer=method.tokenizer, index=method.index
        ),
        target=options.job.num_instructions,
        clock=time.time,
    )


def _meaning(options: Options, material: Material, model: str) -> dict[str, object]:
    return meaning(options, model=model, seeds=seed_fingerprint(material.seeds), prompts=material.prompts.fingerprint)


def _model_so_far(folder: RunFolder) -> str | None:
    return folder.header().meaning["model"] if folder.exists() else None


async def _resume(
    folder: RunFolder,
    store: Store,
    planning: asyncio.Future[Plan],
    options: Options,
    material: Material,
    reporter: Reporter,
) -> Plan:
    header = folder.header()
    model = options.server.model or header.meaning["model"]
    check_same_meaning(header.meaning, _meaning(options, material, model), folder.path)
    plan = await planning
    await asyncio.to_thread(plan.resume, store.replay())
    folder.write_header(RunHeader(header.run_id, header.version, header.meaning, saved_values(options)))
    if store.torn is not None:
        reporter.say(
            f"{store.torn.path}: dropped {store.torn.size} bytes of an unfinished line that a crash left behind"
        )
    reporter.say(f"going on with {plan.complete} of {plan.target} instructions complete, {len(plan.pool)} kept")
    return plan


def _begin_or_check(
    folder: RunFolder, store: Store, plan: Plan, options: Options, material: Material, serving: Serving
) -> None:
    asked = _meaning(options, material, serving.model)
    if folder.exists():
        check_same_meaning(folder.header().meaning, asked, folder.path)
        return
    material.keep_in(folder)
    store.begin(asked, saved_values(options), __version__)
    plan.resume(store.replay())


async def _saturate(
    store: Store, plan: Plan, serving: Serving, options: Options, reporter: Reporter, stopper: Stopper
) -> None:
    speed = options.speed
    limits = Limits(
        concurrency=speed.concurrency or serving.concurrency,
        max_attempts=speed.max_attempts,
        outage_timeout_s=speed.outage_timeout,
        drain_timeout_s=speed.drain_timeout,
    )
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge") as judge:
        committer = Committer(store, plan, judge, max_fruitless=speed.max_fruitless)
        scheduler = Scheduler(plan, serving.backend, committer, limits, jitter=random.Random())
        stopper.scheduler = scheduler
        meter = ProgressMeter(store.ledger, plan.target, time.monotonic())
        async with _beside(
            scheduler.run(),
            _keep_durable(store, speed.sync_interval),
            _show(meter, scheduler, reporter),
            _watch_figures(store, serving),
            serving.watch(),
        ) as run:
            await run
        store.server_figures = await serving.figures() or store.server_figures
    reporter.show(meter.look(time.monotonic(), in_flight=0, waiting_retries=0))


class Committer:
    """The scheduler's sink: judge in the worker thread, append, then apply. The only caller of ``store.append``."""

    def __init__(self, store: Store, plan: Plan, judge: ThreadPoolExecutor, *, max_fruitless: int) -> None:
        self._store = store
        self._plan = plan
        self._judge = judge
        self._max_fruitless = max_fruitless
        self._ledger_saved_s = 0.0

    async def __call__(self, answers: Sequence[Answer]) -> bool:
        """Commit the answers; true when the target is reached.

        :raises DiskError: the log cannot be written. :raises StoppedError: the model brings nothing new any more.
        """
        commits = await asyncio.get_running_loop().run_in_executor(self._judge, self._judge_and_append, answers)
        for commit in commits:
            self._plan.apply(commit)
            self._store.ledger.apply(commit)
        self._save_ledger_at_times()
        self._check_that_it_leads_somewhere()
        return self._plan.done

    def _check_that_it_leads_somewhere(self) -> None:
        plan = self._plan
        if plan.done:
            return
        if plan.fruitless >= self._max_fruitless:
            raise StoppedError(
                f"the last {plan.fruitless} instruction completions brought nothing new (--max-fruitless); see "
                f"'fastgen status' for the rules that rejected them, and try more seeds or another model in a new run"
            )
        if plan.refused >= MAX_REFUSED:
            raise InputError(f"the server refused the last {plan.refused} requests for good: {plan.last_refusal}")

    def _judge_and_append(self, answers: Sequence[Answer]) -> list:  # type: ignore[type-arg]
        commits = self._plan.judge(answers)
        self._store.append(commits)
        return commits

    def _save_ledger_at_times(self) -> None:
        now_s = time.monotonic()
        if now_s - self._ledger_saved_s >= _LEDGER_EVERY_S:
            self._ledger_saved_s = now_s
            self._store.save_ledger()


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


async def _show(meter: ProgressMeter, scheduler: Scheduler, reporter: Reporter) -> None:
    while True:
        await asyncio.sleep(1.0)
        now = scheduler.statistics()
        reporter.show(meter.look(time.monotonic(), in_flight=now.in_flight, waiting_retries=now.waiting_retries))


async def _watch_figures(store: Store, serving: Serving) -> None:
    while True:
        await asyncio.sleep(_LEDGER_EVERY_S)
        store.server_figures = await serving.figures() or store.server_figures


def require_target(options: Options) -> None:
    """:raises InputError: a new run without anything to do."""
    if options.job.num_instructions < 1:
        raise InputError("--num-instructions: ask for at least 1")
