"""One ``fastgen generate`` as its user sees it: reporter, logging, event loop, dry run, last line and exit code."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

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
from fastgen.telemetry.progress import (
    GuardedReporter,
    Reporter,
    ReporterHandler,
    choose_reporter,
    duration,
    json_event,
)
from fastgen.text import as_json, printable


def run(place: Place, options: Options) -> int:
    """Run, or dry-run, and return the exit code 0 or 130. Other ends are exceptions."""
    if options.job.dry_run:
        return _dry_run(place, options)
    outcome = _carry_out(place, options, MetricsHub())
    if outcome is None or outcome.interrupted:
        tell(_how_to_resume(place.run_dir))
        return INTERRUPTED
    _tell_end(outcome, place, options)
    return 0


def _tell_end(outcome: Outcome, place: Place, options: Options) -> None:
    """Say how the run ended, what it made and took, and what to type next. The last line says the most."""
    prices = _prices(options)
    if options.job.log_json:
        tell(json_event("summary", run_dir=str(place.run_dir), **summary(outcome, prices)).rstrip("\n"))
        return
    ended = f"{outcome.complete:,} instructions complete in {place.run_dir}"
    if outcome.used_up is not None:
        ended = (
            f"{outcome.used_up}: {outcome.complete:,} of {outcome.target:,} instructions complete in {place.run_dir}"
        )
    if outcome.ended_by is not None:
        lower = "the same command with a lower figure (0: none)"
        ended = f"ended by {outcome.ended_by}; {lower} continues to {outcome.target:,}\n{ended}"
    if not options.job.quiet:
        ended = f"{render_summary(outcome, prices, place.run_dir)}\n{ended}"
    tell(ended)


_MOST_RULES: Final = 4


def summary(outcome: Outcome, prices: Prices | None) -> dict[str, Any]:
    """What a run has made and what it took, as JSON values.

    Counts are since the start of the run. ``elapsed_s`` is of this session, from its first request to its last commit,
    and 0 if there was nothing to do. ``cost`` is in the currency of the prices, ``None`` without prices.
    """
    ledger = outcome.ledger
    tokens_in, tokens_out, rows = ledger.prompt_tokens.total(), ledger.generated_tokens, outcome.complete
    cost = None if prices is None else prices.of(tokens_in, tokens_out)
    return {
        "complete": rows,
        "target": outcome.target,
        "kept": ledger.kept,
        "empty": ledger.empty,
        "pending": ledger.pending,
        "rejected": dict(ledger.rejected.most_common()),
        "elapsed_s": round(outcome.elapsed_s, 3),
        "generated_tokens": tokens_out,
        "prompt_tokens": tokens_in,
        "generated_tokens_per_row": round(tokens_out / rows, 1) if rows else None,
        "prompt_tokens_per_row": round(tokens_in / rows, 1) if rows else None,
        "cost": cost,
        "cost_per_row": cost / rows if cost is not None and rows else None,
        "ended_by": outcome.ended_by or outcome.used_up or "",
    }


def render_summary(outcome: Outcome, prices: Prices | None, run_dir: Path) -> str:
    """The figures of `summary` and the next commands for people, as lines of text that begin with two spaces."""
    ledger, rows = outcome.ledger, outcome.complete
    rejected = ledger.rejected.total()
    unfinished = "".join(
        f", {count:,} {what}"
        for count, what in ((ledger.empty, "without an answer"), (ledger.pending, "not finished"))
        if count
    )
    lines = {
        "rows": f"{rows:,} complete{unfinished}, of {ledger.kept:,} kept and {ledger.kept + rejected:,} written",
        "rejected": _most_frequent(ledger.rejected),
        "tokens": f"{ledger.generated_tokens:,} generated, {ledger.prompt_tokens.total():,} read",
    }
    figures = summary(outcome, prices)
    if rows:
        each = f"{figures['generated_tokens_per_row']:,.0f} and {figures['prompt_tokens_per_row']:,.0f}"
        lines["tokens"] += f" ({each} for each row)"
    if (cost := figures["cost"]) is not None:
        each = f", {figures['cost_per_row']:.4g} for each row" if rows else ""
        lines["cost"] = f"{f'{cost:,.2f}' if cost >= 1 else f'{cost:.3g}'}{each}, every token at full price"
    if outcome.elapsed_s:
        lines = {"time": duration(outcome.elapsed_s)} | lines
    lines["read it"] = f"fastgen report --run-dir {run_dir} --output report.html"
    lines["export it"] = f"fastgen export --run-dir {run_dir} --output FILE"
    return "\n".join(f"  {name:<10} {text}" for name, text in lines.items())


def _most_frequent(rejected: Counter[str]) -> str:
    shown = [f"{printable(rule)} {count:,}" for rule, count in rejected.most_common(_MOST_RULES)]
    if (rest := len(rejected) - len(shown)) > 0:
        others = rejected.total() - sum(count for _, count in rejected.most_common(_MOST_RULES))
        shown.append(f"{others:,} by {rest} other rule{'s' if rest > 1 else ''}")
    return f"{rejected.total():,}: {', '.join(shown)}" if shown else "none"


def _prices(options: Options) -> Prices | None:
    read, generated = options.job.price_in, options.job.price_out
    return None if read is None or generated is None else Prices(read, generated)


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
    load = Load(hub.mean_latencies_s(), max(in_flight))
    expected = estimate(outcome.ledger, log_bytes, outcome.elapsed_s, job.num_instructions, _prices(options), load)
    figures = asdict(expected) | {"in_flight": outcome.concurrency, "prefix_cache_hit_rate": hit_rate}
    text = render(expected, in_flight=outcome.concurrency, hit_rate=hit_rate)
    put(as_json(figures, indent=2) if job.log_json else text)
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
