"""The tuned model's README: what it is, what it was tuned on and how, its figures, and what to be careful about.

It is made to be published, so it has no paths and no generated text. Pure: knows nothing of files and trainers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastgen.untrusted import markdown, markdown_code

_CAUTION: Final = """\
- **A model wrote the data** (unless its source says otherwise), and nobody checked it. The tuned model learns its form,
  and its mistakes with it; a small model that learns from itself gains format, not knowledge.
- **Terms.** The licences of the base model and of the model that wrote the data both apply to this one.
- **Not evaluated here.** A lower loss on held-out rows says that the model writes more like its data, not that it is
  better; `fastgen evaluate` measures that."""


def write_card(name: str, result: Mapping[str, Any]) -> str:
    """The content of README.md; ``result`` is what tuning.json says."""
    base, data, meaning = result["base_model"], result["data"], result["meaning"]
    source = markdown(str(data["source"]))
    sections = (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- fastgen\n- self-instruct\n- sft\n---",
        f"# {markdown(name)}",
        f"{markdown_code(base)} tuned by fastgen {result['fastgen']} on {data['train_rows']:,} rows of {source}.",
        "Serve it with `vllm serve FOLDER`, or let fastgen start it: `fastgen generate --model FOLDER`.",
        "## How it was tuned\n\n" + "\n".join(_flags(meaning)),
        "## Figures\n\n" + "\n".join(_figures(result)),
        "## What to be careful about\n\n" + _CAUTION,
    )
    return "\n\n".join(sections) + "\n"


def _flags(meaning: Mapping[str, Any]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, value in meaning.items():
        if name not in ("base_model", "source"):
            yield f"| {name.replace('_', ' ')} | {markdown(str(value))} |"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    figures = result["figures"]
    yield "| | |"
    yield "|---|---|"
    for name, value in figures.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        yield f"| {name.replace('_', ' ')} | {markdown(shown)} |"
    yield ""
    yield f"Data fingerprint (SHA-256): `{result['data']['sha256'][:16]}`. Losses are in nats per completion token."
    if result["plot"]:
        yield ""
        yield "![loss](loss.png)"
