"""The log of a server that fastgen started: one heading a start, and what its last words were when it fails."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 200_000
_MAX_CHARS = 300
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(
    r"^(?:\([\w-]+ pid=\d+\)\s*)?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s?)?\s*"
)
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*|[\w./-]+: error: .*|cannot start .*)$")
_POINTS_ELSEWHERE = re.compile(r"See (?:root cause|stack trace)|Engine core initialization failed", re.IGNORECASE)


def last_words(path: Path, start: int) -> str:
    """The line after byte ``start`` that best says why the server failed, at most 300 characters, never multi-line.

    That is the last exception or usage error that does not merely point at another one, else the last line that is not
    empty. vLLM's own prefixes (process, level, time, source) are cut off.
    """
    lines = _lines(path, start)
    errors = [place for place, line in enumerate(lines) if _ERROR.match(line) and not _POINTS_ELSEWHERE.search(line)]
    if errors:
        return _with_detail(lines, errors[-1])[:_MAX_CHARS]
    return (lines[-1] if lines else "it wrote nothing")[:_MAX_CHARS]


def _with_detail(lines: list[str], place: int) -> str:
    """The error; one that is only a heading, such as ``1 validation error for X``, takes its next lines along."""
    line = lines[place]
    if line.endswith(":") or "validation error" in line:
        return " ".join(lines[place : place + 3])
    return line


def _lines(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    stripped = (" ".join(_PREFIX.sub("", _ANSI.sub("", line)).split()) for line in text.splitlines())
    return [line for line in stripped if line]
