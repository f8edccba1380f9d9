"""What ``fastgen status`` says of a run: counts, yield, acceptance and the rejection ledger.

A plain reader: reads the ledger snapshot and only the end of the log, so it answers at once, also while the run goes on.
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
    lines = [
        f"{figures['run_dir']}: {counts.complete} of {figures['target']} instructions complete "
        f"({figures['model']}, preset {figures['preset']})",
        f"  kept {counts.kept}: {counts.complete} with instances, {counts.empty} settled without any, "
        f"{counts.pending} on the way; {counts.classification_tasks} classified as classification tasks",
        f"  instances {counts.instances}, {counts.empty_inputs} with an empty input",
        f"  acceptance {counts.acceptance:.1%} of the instructions written, "
        f"yield {counts.yield_per_1000_tokens:.2f} complete per 1,000 generated tokens",
        f"  completions {_listed(counts.completions)}; tokens generated {counts.generated_tokens:,}, "
        f"read {counts.prompt_tokens.total():,}{_hit_rate(figures)}",
        f"  instructions rejected {counts.rejected.total()}: {_listed(counts.rejected)}",
        f"  instances rejected {counts.rejected_instances.total()}: {_listed(counts.rejected_instances)}",
        f"  requests given up {counts.failures.total()}: {_listed(counts.failures)}",
    ]
    return "\n".join(lines)


def _listed(counter: Any) -> str:  # noqa: ANN401 - Counter[str], printed most frequent first
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _hit_rate(figures: dict[str, Any]) -> str:
    rate = figures["prefix_cache_hit_rate"]
    return "" if rate is None else f", {rate:.0%} of them from the server's prefix cache"
