"""The columns of each format, as the ``dataset_info`` of a data set card names them.

With them a loader need not guess types from the first rows, which would go wrong where those have no neighbour or no
judge's score. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from fastgen.exporting.options import Format

Feature = str | dict[str, "Feature"] | list["Feature"]
"""A value's type, an object's fields, or a list of one kind."""

_FLAT: Final[dict[str, Feature]] = {"instruction": "string", "input": "string", "output": "string"}
_NEIGHBOUR: Final[Feature] = {"id": "string", "rouge_l": "float64"}
_PROVENANCE: Final[Feature] = {
    "request_id": "int64",
    "model": "string",
    "demonstration_ids": ["string"],
    "seed": "int64",
}
FEATURES: Final[Mapping[Format, dict[str, Feature]]] = {
    "raw": {
        "id": "string",
        "instruction": "string",
        "is_classification": "bool",
        "instances": [{"input": "string", "output": "string"}],
        "nearest_seed": _NEIGHBOUR,
        "nearest_checked": [_NEIGHBOUR],
        "provenance": _PROVENANCE,
    },
    "instances": _FLAT,
    "alpaca": _FLAT,
    "messages": {"messages": [{"role": "string", "content": "string"}]},
    "prompt-completion": {"prompt": "string", "completion": "string"},
    "parquet": {
        "id": "string",
        "instance": "int64",
        **_FLAT,
        "is_classification": "bool",
        "nearest_seed": "string",
        "nearest_seed_rouge_l": "float64",
        "judge_score": "float64",
        "model": "string",
        "instance_model": "string",
        "request_id": "int64",
    },
}
"""Every format that a card can describe."""


def feature_lines(fields: Mapping[str, Feature], indent: str = "  ") -> Iterator[str]:
    """The fields as YAML."""
    for name, feature in fields.items():
        yield f"{indent}- name: {name}"
        yield from _lines(feature, indent + "  ")


def _lines(feature: Feature, indent: str) -> Iterator[str]:
    match feature:
        case str():
            yield f"{indent}dtype: {feature}"
        case dict():
            yield f"{indent}struct:"
            yield from feature_lines(feature, indent)
        case [str(kind)]:
            yield f"{indent}list: {kind}"
        case [dict() as fields]:
            yield f"{indent}list:"
            yield from feature_lines(fields, indent)
        case _:
            raise ValueError(f"no form for {feature!r}")
