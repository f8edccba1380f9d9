"""One ``fastgen generate`` as its user sees it: reporter, logging, event loop, dry run, last line and exit code."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import uvloop

from fastgen.errors import INTERRUPTED
from fastgen.generate.dry_run import PROBE_INSTRUCTIONS, Load, Prices, estimate, render
from fastgen.generate.options import Options
from fastgen.generate.run import Outcome, Place, generate
from fastgen.generate.runtime import Stopper, by_signals, return_large_blocks, until_stopped
from fastgen.methods.self_instruct.prompts import FILES
from fastgen.store.output import check_output
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.display import LogFile, put, tell
from fastgen.telemetry.monitor import MetricsHub
from fastgen.telemetry.progress import GuardedReporter, Reporter, ReporterHandler, choose_reporter


def run(place: Place, options: Options) -> int:
    """Run, or dry-run, and return the exit code 0 or 130. Other ends are exceptions."""
    if options.job.dry_run:
        return _dry_run(place, options)
    outcome = _carry_out(place, options, MetricsHub())
    if outcome is None or outcome.interrupted:
        tell(_how_to_resume(place.run_dir))
        return INTERRUPTED
    ended = (
        f"{outcome.complete} instructions complete in {place.run_dir}; write them out with: fastgen export --run-dir "
    )
    ended += f"{place.run_dir} --output FILE"
    if outcome.used_up is not None:
        ended = f"{outcome.used_up}: {outcome.complete} of {outcome.target} instructions complete in {place.run_dir}; "
        ended += f"write them out with: fastgen export --run-dir {place.run_dir} --output FILE"
    if outcome.ended_by is not None:
        lower = "the same command with a lower figure (0: none)"
        ended = f"ended by {outcome.ended_by}; {lower} continues to {outcome.target}\n{ended}"
    tell(ended)
    return 0


def _carry_out(place: Place, options: Options, hub: MetricsHub) -> Outcome | None:
    """Run in an event loop of uvloop with reporter and log file. Returns ``None`` if the user cancelled it."""
    return_large_blocks()
    shown = choose_reporter(quiet=options.job.quiet, log_json=options.job.log_json)
    handlers: list[logging.Handler] = [ReporterHandler(shown)]
    if options.job.log_file is not None:
        check_output("--log-file", options.job.log_file, _inputs(place, options))
        handlers.append(LogFile(options.job.log_file, options.job.log_level))
    logging.basicConfig(level=logging.DEBUG, handlers=handlers, force=True)
    logging.raiseExceptions = False  # a log file on a full disk must not print tracebacks
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        return uvloop.run(until_ended(place, options, GuardedReporter(shown, is_logged=True), hub))
    finally:
        shown.close()
        for handler in handlers:
            handler.close()


def _inputs(place: Place, options: Options) -> list[Path]:
    """The files and folders that the run reads and writes, so that no log file replaces one."""
    method = options.method
    prompts = [] if method.prompts is None else [method.prompts / name for name in FILES]
    return [place.run_dir, *(path for path in (method.seed_tasks, *method.decontaminate) if path is not None), *prompts]


def _dry_run(place: Place, options: Options) -> int:
    """Make a few instructions in a temporary folder and print an estimate for all. The run folder is not touched."""
    job = options.job
    small = replace(options, job=replace(job, num_instructions=min(PROBE_INSTRUCTIONS, job.num_instructions)))
    with tempfile.TemporaryDirectory(prefix="fastgen-dry-run-") as name:
        folder = RunFolder(Path(name) / "run")
        hub, in_flight = MetricsHub(), [0.0]
        hub.subscribe(lambda sample: in_flight.append(sample.in_flight))
        outcome = _carry_out(replace(place, run_dir=folder.path), small, hub)
        if outcome is None or outcome.interrupted:
            tell("interrupted; a dry run leaves nothing behind")
            return INTERRUPTED
        log_bytes = sum(path.stat().st_size for path in folder.log_path.iterdir())
        hit_rate = folder.saved_counts().server.get("prefix_cache_hit_rate")
    prices = None if job.price_in is None or job.price_out is None else Prices(job.price_in, job.price_out)
    load = Load(hub.mean_latencies_s(), max(in_flight))
    expected = estimate(outcome.ledger, log_bytes, outcome.elapsed_s, job.num_instructions, prices, load)
    put(render(expected, in_flight=outcome.concurrency, hit_rate=hit_rate))
    return 0


def _how_to_resume(run_dir: Path) -> str:
    if not RunFolder(run_dir).exists():
        return "interrupted before the run began; nothing was made"
    return f"interrupted; everything committed is kept, resume with: fastgen generate --run-dir {run_dir}"


@asynccontextmanager
async def _dashboard(place: Place, options: Options, reporter: Reporter, hub: MetricsHub) -> AsyncIterator[None]:
    """Serve the live page from the figures of ``hub``, if ``--dashboard`` is given."""
    if not options.job.dashboard:
        yield
        return
    from fastgen.telemetry.live_page import page_on_demand

    async with page_on_demand(place.run_dir, options.job.dashboard_port, hub) as url:
        reporter.say(f"dashboard at {url}")
        yield


async def until_ended(
    place: Place,
    options: Options,
    reporter: Reporter,
    hub: MetricsHub,
    stopped: Callable[[Stopper], None] = by_signals,
) -> Outcome | None:
    """Run in this event loop to the end, or until ``stopped``. Returns ``None`` if the user cancelled it.

    :raises FastgenError: as `fastgen.generate.run.generate`.
    """

    async def work(stopper: Stopper) -> Outcome:
        async with _dashboard(place, options, reporter, hub):
            return await generate(place, options, reporter, stopper, hub=hub)

    return await until_stopped(work, reporter, stopped)
