"""``fastgen status``: a run's counts, yield, acceptance and rejections, and what limits it.

It reads the saved ledger, the end of the log only, and ``metrics.jsonl`` (some 25 MB after a week), so it answers at
once, also while the run is running.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen.judge.summary import one_line, saved_summaries
from fastgen.methods.base import CREATION
from fastgen.methods.catalogue import SELF_INSTRUCT
from fastgen.store.ledger import Ledger
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.progress import duration
from fastgen.telemetry.series import last_sample, limit_shares
from fastgen.text import AnswerKind, printable


def status(run_dir: Path, *, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """The figures as plain JSON values. Counts are since the start of the run.

    ``limit`` is what was measured last, ``None`` where nothing was: ``name``, ``reason``, ``age_s``, and as ``shares``
    what part of the measured time each limit was the binding one.

    :raises InputError: no run there, or a damaged one.
    """
    folder = RunFolder(run_dir)
    header = folder.header()
    ledger = folder.ledger()
    return {
        "run_dir": str(run_dir),
        "model": header.configuration["model"],
        "method": header.configuration.get("method", SELF_INSTRUCT),
        "preset": header.configuration["preset"],
        "target": header.options["num_instructions"],
        "yield_per_1000_tokens": round(ledger.yield_per_1000_tokens, 3),
        "acceptance": round(ledger.acceptance, 4),
        "pending": ledger.pending,
        "seed_only_share": round(ledger.seed_only_share, 4),
        **ledger.as_dict(),
        "prefix_cache_hit_rate": folder.saved_counts().server.get("prefix_cache_hit_rate"),
        **_measured(run_dir, clock()),
        "judgements": saved_summaries(run_dir),
    }


def _measured(run_dir: Path, now_s: float) -> dict[str, Any]:
    """What the run's last sample says of its yield and its limit."""
    last = last_sample(run_dir)
    if last is None:
        return dict.fromkeys(
            ("kept_per_1000_tokens", "complete_per_min", "generated_tokens_per_s", "kept_per_server_s", "limit")
        )
    recent = last.recent
    # An older fastgen wrote no recent rates; the last window's is the nearest thing.
    kept_per_server_s = recent.kept_per_server_s if recent.over_s else last.kept_per_server_s
    return {
        "kept_per_1000_tokens": round(last.kept_per_1000_tokens, 3),
        "complete_per_min": round(recent.complete_per_min, 2),
        "generated_tokens_per_s": round(recent.generated_tokens_per_s, 1),
        "kept_per_server_s": round(kept_per_server_s, 4),
        "limit": {
            "name": last.limit.value,
            "reason": last.limit_reason,
            "age_s": round(max(0.0, now_s - last.time_s), 1),
            "shares": limit_shares(run_dir),
        },
    }


def render(figures: dict[str, Any]) -> str:
    """The figures of `status` for people, as lines of text."""
    counts = Ledger.from_dict(figures)
    is_self_instruct = figures["method"] == SELF_INSTRUCT
    method = "" if is_self_instruct else f"method {printable(figures['method'])}, "
    made = _made_by_self_instruct(counts) if is_self_instruct else _made(counts)
    seeds = f"{counts.seed_only_share:.1%} of the instruction prompts showed seed tasks only"
    seed_line = f"\n  seed prompts       {seeds}" if is_self_instruct or counts.seed_only else ""
    later = "instances" if is_self_instruct else "by later steps"
    judged = "".join(f"\n  judged             {one_line(judge)}" for judge in figures["judgements"])
    return f"""\
{figures["run_dir"]}: {counts.complete} of {figures["target"]} instructions complete
  made with          {figures["model"]}, {method}preset {figures["preset"]}
  kept               {counts.kept}: {counts.complete} complete, {counts.empty} empty, {counts.pending} on the way{made}
  acceptance         {counts.acceptance:.1%} of the instructions written
  yield              {counts.yield_per_1000_tokens:.2f} complete per 1,000 generated tokens{_window(figures)}
  tokens             {counts.generated_tokens:,} generated, {counts.prompt_tokens.total():,} read{_hit_rate(figures)}
  completions        {_listed(counts.completions)}{_health(counts)}{seed_line}
  rejected           {counts.rejected.total()} instructions: {_listed(counts.rejected)}
                     {counts.rejected_instances.total()} {later}: {_listed(counts.rejected_instances)}
  requests given up  {counts.failures.total()}: {_listed(counts.failures)}
  limited by         {_limited(figures["limit"])}{judged}"""


def _made_by_self_instruct(counts: Ledger) -> str:
    return f"""
  classification     {counts.classification_tasks} of them are classification tasks
  instances          {counts.instances}, {counts.empty_inputs} with an empty input"""


def _made(counts: Ledger) -> str:
    """The answers, where the method asks for some. One subject has several of them in a conversation."""
    if not counts.instances:
        return ""
    reads = (counts.answers[f"{step}.{AnswerKind.READ}"] for step in counts.completions if step != CREATION)
    answered = max(reads, default=0)
    turns = f", {counts.instances / answered:.2f} for each instruction that has one" if answered else ""
    return f"\n  answers            {counts.instances}{turns if counts.instances > answered else ''}"


def _listed(counter: Any) -> str:  # noqa: ANN401 - Counter[str], printed most frequent first
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _health(counts: Ledger) -> str:
    """A line for each step: what could be made of its answers."""
    by_step: dict[str, Counter[str]] = {}
    for name, count in counts.answers.items():
        step, _, kind = name.partition(".")
        by_step.setdefault(step, Counter())[kind] = count
    return "".join(f"\n    {step:<16} {_listed(kinds)}" for step, kinds in by_step.items())


def _window(figures: dict[str, Any]) -> str:
    if (kept := figures["kept_per_1000_tokens"]) is None:
        return ""
    return f"; last measured: {kept:.2f} kept per 1,000, {figures['kept_per_server_s']:.3g} kept per server-second"


def _limited(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return "not measured yet"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in limit["shares"].items())
    over = f"; of all the time: {shares}" if shares else ""
    return f"{limit['name']}, {duration(limit['age_s'])} ago ({limit['reason']}){over}"


def _hit_rate(figures: dict[str, Any]) -> str:
    rate = figures["prefix_cache_hit_rate"]
    return "" if rate is None else f", {rate:.0%} of them from the server's prefix cache"
