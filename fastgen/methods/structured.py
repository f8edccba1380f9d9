r"""Answers made of fields: JSON that a schema asks for (structured output), and JSON or tables that come unasked.

A `Form` says what an answer's fields are. `with_form` asks for it: the prompt says so in words, and the request's
``response_format`` has the JSON schema (https://platform.openai.com/docs/guides/structured-outputs; vLLM, SGLang and
llama.cpp take the same field). A server that does not know the field ignores it, and the answer may come as any text.

A string in JSON has escapes (``\n``, ``\"``), but all that fastgen finds in an answer is a span of it. `as_text`
therefore writes an answer of JSON as plain text when it arrives: every record ends with the ASCII character for that
(record separator, ``1E``), and the unit separator (``1F``) stands between a field's name, its value and the next name.
Everything after that, the log included, has this text. An answer of another form stays as it is.

`read_records` reads this text, JSON and Markdown tables. It never raises and takes time linear in the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from fastgen.text import NOWHERE, answer_span, is_cut, lines, trim
from fastgen.types import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgen.types import Completion, Request, Span


# -- asking ------------------------------------------------------------------------------------------------------------


_PLACE: Final = "..."
"""Stands for a value where a prompt shows a form."""


@dataclass(frozen=True, slots=True)
class Form:
    """A list of records as JSON: ``{"NAME": [{"FIELD": "...", ...}, ...]}``.

    All fields are texts, in this order. One field alone gives a list of texts. ``most`` is how many records there may
    be. ``note`` is a sentence for the prompt about what the fields hold.
    """

    name: str
    fields: tuple[str, ...]
    most: int
    note: str = ""

    @property
    def schema(self) -> dict[str, Any]:
        """The form as a JSON schema."""
        text = {"type": "string"}
        record = text if len(self.fields) == 1 else _object_of(dict.fromkeys(self.fields, text))
        return _object_of({self.name: {"type": "array", "items": record, "minItems": 1, "maxItems": self.most}})

    @property
    def sentence(self) -> str:
        """The form in words."""
        record: object = _PLACE if len(self.fields) == 1 else dict.fromkeys(self.fields, _PLACE)
        shown = json.dumps({self.name: [record, "and so on"]}).replace('"and so on"', "...")
        return f"Write your answer as JSON, in this form and with nothing before or after it: {shown}" + (
            f" {self.note}" if self.note else ""
        )


def _object_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def with_form(request: Request, form: Form | None) -> Request:
    """Return the chat request with the form asked for at the end of its last message. Other requests stay the same."""
    messages = [one for one in request.prompt if isinstance(one, Message)]
    if form is None or not messages:
        return request
    *before, last = messages
    message = Message(last.role, f"{last.content}\n\n{form.sentence}")
    wanted = {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema, "strict": True}}
    return replace(request, prompt=(*before, message), extra={"response_format": wanted})


# -- JSON as plain text ------------------------------------------------------------------------------------------------

_RECORD_END: Final = "\x1e"
_UNIT_END: Final = "\x1f"
_NOT_OF_A_TEXT: Final = re.compile("[\x1c-\x1f\ud800-\udfff]")
_OPENED_FENCE: Final = re.compile(r"```[^\n`]*+\n\s*+\Z")
_END: Final = re.compile(r"\s*+(?:$|```|<[|/]|<end_of_turn>|<eos>)")  # with an end-of-turn token
_LIST: Final = re.compile(r'\s*+(?:\{\s*+"[^"\\]*+"\s*+:\s*+)?+\[\s*+(?=["{])')
_CUT_FIELD: Final = re.compile(r'(?:"([^"\\]*+)"\s*+:\s*+)?+"((?:[^"\\]++|\\.)*+)', re.DOTALL)
_DECODER: Final = json.JSONDecoder(strict=False)


def as_text(completion: Completion) -> Completion:
    """Return the completion with an answer of JSON written as plain text, see the module's docstring.

    Reasoning before the answer stays, a code fence around it does not. Of a cut answer, the record that the cut went
    through comes last and is left open. An answer that is no JSON object or list stays as it is.
    """
    text = completion.text
    answer = answer_span(text)
    if answer is None or len(text) - answer[0] > _LONGEST:
        return completion
    try:
        found = _decoded(text, answer[0], cut=is_cut(completion))
        if found is None:
            return completion
        records, is_open = found
        written = _RECORD_END + "".join(map(_written, records))
    except RecursionError:  # nested too deeply
        return completion
    head = _OPENED_FENCE.sub("", text[: answer[0]])
    return replace(completion, text=head + (written.removesuffix(_RECORD_END) if is_open else written))


def _decoded(text: str, at: int, *, cut: bool) -> tuple[list[Mapping[str, Any]], bool] | None:
    """The records of the JSON that begins at ``at``, and whether the last of them is cut. ``None`` for other text."""
    try:
        value, end = _DECODER.raw_decode(text, _blanks_end(text, at))
        listed = _list_in(value)
    except ValueError:
        return _decoded_of_cut(text, at) if cut else None
    return ([_record(one) for one in listed], False) if _END.match(text, end) else None


def _decoded_of_cut(text: str, at: int) -> tuple[list[Mapping[str, Any]], bool] | None:
    begun = _LIST.match(text, at)
    if begun is None:
        return None
    records: list[Mapping[str, Any]] = []
    at = begun.end()
    while True:
        try:
            value, at = _DECODER.raw_decode(text, at)
        except ValueError:
            break
        records.append(_record(value))
        at = _blanks_end(text, at)
    rest = {name or "text": _unescaped(value) for name, value in _CUT_FIELD.findall(text, at)}
    return ([*records, rest], True) if rest else (records, False)


def _blanks_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _list_in(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """:raises ValueError: neither a list nor an object."""
    if isinstance(value, dict):
        return next((one for one in value.values() if isinstance(one, list)), [value])
    if not isinstance(value, list):
        raise ValueError("no records")  # noqa: TRY004 - as other texts that are no form
    return value


def _record(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, dict) else {"text": value}


def _unescaped(cut: str) -> str:
    """The text of a JSON string whose end is missing, perhaps in the middle of an escape."""
    for end in range(len(cut), max(len(cut) - 6, -1), -1):  # the longest escape has six characters
        try:
            return str(json.loads(f'"{cut[:end]}"', strict=False))
        except ValueError:
            continue
    return ""


def _written(record: Mapping[str, Any]) -> str:
    units = (unit for name, value in record.items() for unit in (name, _value_text(value)))
    return _UNIT_END.join(_NOT_OF_A_TEXT.sub(" ", unit) for unit in units) + _RECORD_END


def _value_text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return "" if value == _PLACE else value  # copied from the prompt
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


# -- reading -----------------------------------------------------------------------------------------------------------

NUMBER_NAMES: Final = frozenset({"#", "no", "no.", "nr", "nr.", "number", "id", "example", "\u2116"})
"""Names of values that only count the records."""
Record = dict[str, "Span"]
"""Values by name; the elements of a plain list are records with the one name ``""``."""

_LONGEST: Final = 200_000  # characters; longer answers of models repeat themselves
_JSON_FENCE: Final = re.compile(r"```(?:json)?[ \t\r]*\n(?=\s*+[\[{])", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r'"(?P<string>(?:[^"\\]++|\\.)*+)"|(?P<mark>[\[\]{}:])|(?P<plain>[^\s"\[\]{}:,]++)', re.DOTALL
)
_ROW: Final = re.compile(r"[ \t]*+\|")
_RULE_ROW: Final = re.compile(r"[ \t]*+\|(?:[ \t]*+:?-++:?[ \t]*+\|)++[ \t\r]*+$")
_CELL: Final = re.compile(r"(?:[^|\\]++|\\.)*+", re.DOTALL)


def read_records(text: str, answer: Span) -> list[Record]:
    r"""Return the records of an answer that `as_text` wrote, that is JSON, or that has a Markdown table. Else nothing.

    A span holds a value as it is written, so a string with escapes in JSON that came unasked is left out. So is an
    answer of more than 200,000 characters.
    """
    if is_written(text, answer):
        return _written_records(text, text.index(_RECORD_END, answer[0]) + 1)
    start, end = trim(text, *answer)
    if end - start > _LONGEST:
        return []
    if text.startswith(("[", "{"), start, end):
        return _json_records(text, (start, end))
    if fence := _JSON_FENCE.search(text, start, end):
        closed = text.find("```", fence.end(), end)
        return _json_records(text, (fence.end(), closed)) if closed >= 0 else []
    return list(_table_records(text, (start, end)))


def is_written(text: str, answer: Span) -> bool:
    """Whether `as_text` wrote the answer."""
    begin = text.find(_RECORD_END, answer[0])
    return begin >= 0 and not text[answer[0] : begin].strip(" \t\r\n")


def is_left_open(text: str) -> bool:
    """Whether the last record of an answer that `as_text` wrote is cut."""
    return not text.endswith(_RECORD_END)


def _written_records(text: str, start: int) -> list[Record]:
    records = []
    while start < len(text):
        end = text.find(_RECORD_END, start)
        end = len(text) if end < 0 else end
        units = []
        at = start
        for unit in text[start:end].split(_UNIT_END):
            units.append((at, at + len(unit)))
            at += len(unit) + 1
        named = zip(units[::2], units[1::2], strict=False)
        records.append({_name(text[slice(*name)]): trim(text, *value) for name, value in named})
        start = end + 1
    return records


def _name(written: str) -> str:
    return written.strip().lower().replace("_", " ")


def _json_records(text: str, region: Span) -> list[Record]:
    try:
        json.loads(text[slice(*region)])
    except (ValueError, RecursionError):
        return []
    records: list[Record] = []
    containers: list[Record | None] = []  # those that are open; None for a list
    name = ""
    tokens = list(_TOKEN.finditer(text, *region))
    for token, following in zip_longest(tokens, tokens[1:]):
        if token["mark"] == "{":
            record: Record = {}
            records.append(record)
            containers.append(record)
        elif token["mark"] == "[":
            containers.append(None)
        elif token["mark"] in ("]", "}"):
            containers.pop()
        elif token["mark"]:  # a colon
            continue
        elif following is not None and following["mark"] == ":":
            name = _name(token["string"])
        elif "\\" not in token[0]:
            value = trim(text, *token.span("string" if token["plain"] is None else "plain"))
            value = NOWHERE if token["plain"] == "null" else value
            within = containers[-1] if containers else None
            if within is None:
                records.append({"": value})
            else:
                within[name] = value
    return records


def _table_records(text: str, region: Span) -> Iterator[Record]:
    """Yield the rows of all tables: a row of names, a row of dashes, rows of values."""
    names: list[str] = []
    previous: list[Span] = []
    for line in lines(text, *region):
        if not _ROW.match(text, *line):
            names, previous = [], []
        elif _RULE_ROW.match(text, *line):
            names = [text[slice(*cell)].strip("* \t").lower() for cell in previous]
        else:
            previous = list(_cells(text, line))
            if names:
                yield dict(zip(names, previous, strict=False))


def _cells(text: str, line: Span) -> Iterator[Span]:
    """Yield the cells of a row. What is cut before its closing bar is no cell."""
    at = text.index("|", *line) + 1
    while (cell := _CELL.match(text, at, line[1])) and cell.end() < line[1]:
        yield trim(text, *cell.span())
        at = cell.end() + 1
