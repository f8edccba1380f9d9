"""JSON that fits a schema, as structured output forces a model to write it.

Only simple schemas are understood: objects (every property is written), arrays, texts, numbers, truth values, ``enum``,
``const``, the first of ``anyOf`` or ``oneOf``, and references within the schema. Limits are kept: ``minItems``,
``maxItems``, ``minimum``, ``maximum`` of whole numbers, ``maxLength``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from fastgen.simulator.answers import draws_from, instruction, sentence

_DEEPEST: Final = 12
_MOST_ITEMS: Final = 3
_LONGEST: Final = 1 << 20
_INSTRUCTION_FIELD: Final = re.compile(r"instruction|task|question|prompt", re.IGNORECASE)
_INPUT_FIELD: Final = re.compile(r"input|context", re.IGNORECASE)


def fitting_json(schema: Mapping[str, Any], prompt: str, choice: int = 0, seed: int = 0) -> str:
    """Return a JSON text that fits ``schema``. The same arguments give the same text."""
    draws = draws_from("json", str(seed), str(choice), prompt)
    return orjson.dumps(_Filler(schema, draws).value(schema, "", _DEEPEST)).decode()


@dataclass(frozen=True, slots=True)
class _Filler:
    root: Mapping[str, Any]
    draws: Iterator[int]

    def value(self, schema: Any, name: str, depth: int) -> Any:  # noqa: ANN401 - any JSON value
        """Return a value for the field ``name``. What is no schema, or too deep, is null."""
        schema = self._resolved(schema)
        if depth == 0 or schema is None:
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][next(self.draws) % len(schema["enum"])]
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object":
            properties = schema.get("properties") or {}
            return {key: self.value(inner, key, depth - 1) for key, inner in properties.items()}
        if kind == "array":
            return [self.value(schema.get("items", {}), name, depth - 1) for _ in range(self._count(schema))]
        return self._scalar(kind, schema, name)

    def _resolved(self, schema: Any) -> dict[str, Any] | None:  # noqa: ANN401 - any JSON value
        """Return the schema that references and alternatives lead to."""
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict):
                return None
            alternatives = schema.get("anyOf") or schema.get("oneOf")
            if alternatives:
                schema = alternatives[0]
            elif isinstance(schema.get("$ref"), str):
                schema = self._referred(schema["$ref"])
            else:
                return schema
        return None

    def _referred(self, reference: str) -> Any:  # noqa: ANN401 - any JSON value
        found: Any = self.root
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def _count(self, schema: Mapping[str, Any]) -> int:
        least = int(schema.get("minItems", 1))
        return min(max(least, 1 + next(self.draws) % _MOST_ITEMS), int(schema.get("maxItems", least + _MOST_ITEMS)))

    def _scalar(self, kind: str, schema: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any JSON value
        drawn = next(self.draws)
        if kind in ("integer", "number"):
            least = int(schema.get("minimum", 1))
            return least + drawn % max(1, int(schema.get("maximum", least + 4)) - least + 1)
        if kind == "boolean":
            return drawn % 4 == 0
        return None if kind == "null" else self._text(name)[: int(schema.get("maxLength", _LONGEST))]

    def _text(self, name: str) -> str:
        """Return a text that suits the name of its field."""
        if _INSTRUCTION_FIELD.search(name):
            return instruction(self.draws)
        if _INPUT_FIELD.search(name) and next(self.draws) % 5 < 2:  # noqa: PLR2004 - as in Self-Instruct's examples
            return ""
        return " ".join(sentence(self.draws) for _ in range(1 + next(self.draws) % 3))
