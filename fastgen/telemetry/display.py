"""Writes everything that people read: to standard error, standard output, and log files.

A `Display` writes to standard error and log files in a thread, so that a stream that is full, closed, broken or not
read neither ends nor delays the command. Standard output carries results: `put` waits for its reader, and a failure is
an error. Control characters are escaped either way (`fastgen.text.printable`), and so is what a stream's encoding does
not have.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Final, TextIO

from fastgen.errors import InputError
from fastgen.text import printable

CAPACITY: Final = 1 << 18
"""Characters that may wait for a display; what does not fit is dropped."""
CLOSE_WITHIN_S: Final = 2.0
"""How long `Display.close` may take. A reader that pauses for longer misses what is left."""
_WAIT_MS: Final = 100
_ASCII: Final = str.maketrans(
    {"·": "|", "━": "=", "─": "-", "…": "...", "\u2013": "-", "“": '"', "”": '"', "\u2019": "'"}
)


def fitting(text: str, encoding: str | None) -> str:
    """``text`` with what the encoding does not have replaced: typographic signs by similar ones, the rest by escapes.

    Call it before text is laid out, since escapes are longer than the characters.
    """
    encoding = encoding or "utf-8"  # of a stream in memory, which has none
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        return fitting(text, "ascii")
    return text


class Display:
    """A text stream that never blocks and never raises. ``None``, a stream closed from the start, shows nothing.

    Each `write` is written as a whole or, where it does not fit any more, dropped as a whole. After `close` nothing is
    written. `write` may be called from any thread. ``stream`` is left open.
    """

    def __init__(self, stream: TextIO | None, *, capacity: int = CAPACITY) -> None:
        self._stream = stream
        self._capacity = capacity
        self._waiting: deque[str] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closing = stream is None
        self._given_up = False
        self._torn = False
        self._descriptor = _descriptor_of(stream)
        self._thread: threading.Thread | None = None

    @property
    def encoding(self) -> str:
        """What the stream is written in."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The descriptor. :raises OSError: there is none."""
        if self._descriptor is None:
            raise OSError("no descriptor")
        return self._descriptor

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal. 80 and 24 where nothing tells."""
        columns, rows = 0, 0
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(self.fileno())
        return columns or 80, rows or 24

    def write(self, text: str) -> int:
        """Write all of ``text`` soon, or none of it."""
        with self._changed:
            if not self._closing and self._size + len(text) <= self._capacity:
                self._waiting.append(text)
                self._size += len(text)
                if self._thread is None:
                    # A daemon: a write that never returns must not keep the process from ending.
                    self._thread = threading.Thread(target=self._work, name="display", daemon=True)
                    self._thread.start()
                self._changed.notify()
        return len(text)

    def line(self, text: str) -> None:
        """Write lines of text, with control characters escaped."""
        self.write(fitting(printable(text, lines=True), self.encoding) + "\n")

    @property
    def is_stuck(self) -> bool:
        """Whether a write was still running when `close` gave up."""
        return self._given_up

    def flush(self) -> None:
        """Do nothing: everything is written soon."""

    def close(self, within_s: float = CLOSE_WITHIN_S) -> None:
        """Write the queued text, for at most ``within_s`` seconds. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within_s)
            self._given_up = self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting or self._given_up:
                    return
                text = self._waiting.popleft()
            try:
                self._put(text)
            except (OSError, ValueError):  # full, closed, gone: the next text may find it in order
                self._torn = True
            with self._changed:
                self._size -= len(text)

    def _put(self, text: str) -> None:
        if self._torn:
            text, self._torn = f"\n{text}", False
        if self._descriptor is None:
            assert self._stream is not None  # noqa: S101 - else nothing is accepted
            self._stream.write(text)
            self._stream.flush()
            return
        # Past the stream's own buffer: its lock, held by a write that blocks, would be waited for when Python ends.
        rest = text.encode(self.encoding, "backslashreplace")
        while rest and not self._given_up:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that shares the terminal or pipe made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_WAIT_MS)


def _descriptor_of(stream: TextIO | None) -> int | None:
    if stream is None:
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stream.flush()
        return stream.fileno()
    return None


def tell(text: str) -> None:
    """Write lines to standard error. A failure is ignored."""
    display = Display(sys.stderr)
    display.line(text)
    display.close()


def put(text: str) -> None:
    """Write lines to standard output.

    :raises OSError: it cannot be written, or its reader went away (`BrokenPipeError`).
    """
    if (stream := sys.stdout) is not None:
        stream.write(fitting(printable(text, lines=True), stream.encoding) + "\n")
        stream.flush()


class StderrHandler(logging.Handler):
    """Writes log records to standard error, as `tell` does: for commands without a reporter."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tell(record.getMessage())


class LogFile(logging.Handler):
    """Appends log records to a file through a `Display`, so that a full or slow disk costs records and nothing else.

    Control characters are escaped, and further lines of a record are indented, so that none looks like a record.

    :raises InputError: the file cannot be written.
    """

    def __init__(self, path: Path, level: str) -> None:
        super().__init__(level.upper())
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--log-file {path}: cannot be written ({error.strerror}); name another file, or leave it out"
            ) from None
        self._display = Display(self._file, capacity=32 * CAPACITY)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        return printable(super().format(record), lines=True).replace("\n", "\n    ")

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record."""
        try:
            self._display.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as all handlers do: a record that cannot be formatted
            self.handleError(record)

    def close(self) -> None:
        """Write the queued text, and close the file unless a write hangs."""
        self._display.close()
        if not self._display.is_stuck:
            self._file.close()
        super().close()
