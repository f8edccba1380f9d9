"""What ``fastgen status`` says of a run: counts, yield, acceptance and the rejection ledger.

A plain reader: it reads the ledger snapshot and only the end of the log, so it answers at once, also during the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastgen.ledger import Ledger
from fastgen.store import RunFolder


def status(run_dir: Path) -> dict[str, Any]:
    """The figures as plain JSON values; counts are since the start of the run.

    :raises InputError: no run there, or a damaged one.
    """
    folder = RunFolder(run_dir)
    header = folder.header()
    ledger = folder.ledger()
    return {
        "run_dir": str(run_dir),
        "model": header.meaning["model"],
        "preset": header.meaning["preset"],
        "target": header.options["num_instructions"],
        "yield_per_1000_tokens": round(ledger.yield_per_1000_tokens, 3),
        "acceptance": round(ledger.acceptance, 4),
        "pending": ledger.pending,
        **ledger.as_dict(),
        "prefix_cache_hit_rate": folder.server_figures().get("prefix_cache_hit_rate"),
    }


def render(figures: dict[str, Any]) -> str:
    """The same for people, as lines of text."""
    counts = Ledger.from_dict(figures)
    return f"""\
{figures["run_dir"]}: {counts.complete} of {figures["target"]} instructions complete
  made with          {figures["model"]}, preset {figures["preset"]}
  kept               {counts.kept}: {counts.complete} complete, {counts.empty} empty, {counts.pending} on the way
  classification     {counts.classification_tasks} of them are classification tasks
  instances          {counts.instances}, {counts.empty_inputs} with an empty input
  acceptance         {counts.acceptance:.1%} of the instructions written
  yield              {counts.yield_per_1000_tokens:.2f} complete per 1,000 generated tokens
  tokens             {counts.generated_tokens:,} generated, {counts.prompt_tokens.total():,} read{_hit_rate(figures)}
  completions        {_listed(counts.completions)}
  rejected           {counts.rejected.total()} instructions: {_listed(counts.rejected)}
                     {counts.rejected_instances.total()} instances: {_listed(counts.rejected_instances)}
  requests given up  {counts.failures.total()}: {_listed(counts.failures)}"""


def _listed(counter: Any) -> str:  # noqa: ANN401 - Counter[str], printed most frequent first
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _hit_rate(figures: dict[str, Any]) -> str:
    rate = figures["prefix_cache_hit_rate"]
    return "" if rate is None else f", {rate:.0%} of them from the server's prefix cache"
