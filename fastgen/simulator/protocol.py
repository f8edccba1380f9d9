"""HTTP/1.1 for the test server, on `asyncio.Protocol`.

It is cheap enough never to be what a benchmark measures, and close enough to the socket to break in every way in which
a server breaks. It supports keep-alive, Content-Length bodies, ``Expect: 100-continue`` and ``Connection: close``. A
connection serves one request at a time. Pipelined requests wait. Chunked requests get a 411. There is no TLS.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_MAX_HEAD_BYTES = 64 << 10
_MAX_BODY_BYTES = 64 << 20
_OK_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with a zero timeout: close() sends RST instead of FIN
_RESET_DELAY_S = 0.01
_REASONS = {status.value: status.phrase for status in HTTPStatus}

Handler = Callable[["Exchange"], None]


class Exchange:
    """One request, and the ways to answer it: call exactly one of them, or none (a hang).

    ``on_gone``, if set, is called when the client disconnects before the answer. After that, answers are ignored.
    """

    __slots__ = ("_close", "_connection", "_head", "body", "method", "on_gone", "path")

    def __init__(
        self, connection: Connection, method: str, path: str, head: bytes, body: bytes, *, close: bool
    ) -> None:
        self._connection = connection
        self._head = head
        self._close = close
        self.method = method
        self.path = path
        self.body = body
        self.on_gone: Callable[[], None] | None = None

    def header(self, name: str) -> str:
        """Return the first value of a request header, or an empty string."""
        found = re.search(rb"\r\n" + re.escape(name.encode()) + rb":[ \t]*([^\r]*)", self._head, re.IGNORECASE)
        return found[1].strip().decode("latin-1") if found else ""

    def respond_json(self, body: bytes) -> None:
        """Answer with a 200 and a JSON body, in one write."""
        self._connection.finish(self, _OK_JSON % len(body) + body, close=self._close)

    def respond(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a complete answer."""
        lines = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._connection.finish(self, "\r\n".join([*lines, "", ""]).encode("latin-1") + body, close=self._close)

    def break_off(self, body: bytes, stated_bytes: int, *, reset: bool) -> None:
        """Answer with a 200 that states more bytes than it sends. Then reset or close the connection."""
        self._connection.finish(self, _OK_JSON % stated_bytes + body, close=not reset)
        if reset:  # later, or the reset would overtake the bytes
            asyncio.get_running_loop().call_later(_RESET_DELAY_S, self._connection.reset)

    def reset(self) -> None:
        """Reset the connection without an answer."""
        self._connection.reset()

    def disconnect(self) -> None:
        """Close the connection without an answer."""
        self._connection.close()


class Connection(asyncio.Protocol):
    """One client's connection: splits its stream into requests, and writes the answers."""

    def __init__(
        self, handler: Handler, opened: Callable[[Connection], bool], closed: Callable[[Connection], None]
    ) -> None:
        self._handler = handler
        self._opened = opened
        self._closed = closed
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._current: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Call ``opened``. Reset the connection where it returns false."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not subclass it
        if not self._opened(self):
            self.reset()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Call the current exchange's ``on_gone``, then ``closed``."""
        self._transport = None
        current, self._current = self._current, None
        if current is not None and current.on_gone is not None:
            current.on_gone()
        self._closed(self)

    def data_received(self, data: bytes) -> None:
        """Collect bytes until a request is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        if self._current is None:
            self._advance()

    def _advance(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                self._refuse(431)
            return
        head = self._buffer[: end + 2]
        stated = _LENGTH.search(head)
        length = int(stated[1]) if stated else 0
        if _CHUNKED.search(head) or length > _MAX_BODY_BYTES:
            self._refuse(413 if stated else 411)
        elif len(self._buffer) >= end + 4 + length:
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._dispatch(head, body)
        elif _EXPECT.search(head) and len(self._buffer) == end + 4 and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _dispatch(self, head: bytes, body: bytes) -> None:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path, _, version = rest.rpartition(" ")
        close = version == "HTTP/1.0" or _CLOSE.search(head) is not None
        self._current = Exchange(self, method, path.partition("?")[0], head, body, close=close)
        self._handler(self._current)

    def _refuse(self, status: int) -> None:
        self._current = exchange = Exchange(self, "", "", b"", b"", close=True)
        exchange.respond(status, b"")

    def finish(self, exchange: Exchange, answer: bytes, *, close: bool) -> None:
        """Write an answer unless the client has gone, then serve the next request."""
        if self._current is not exchange or self._transport is None:
            return
        self._current = None
        self._transport.write(answer)
        if close:
            self._transport.close()
        elif self._buffer:
            self._advance()

    def reset(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            peer: socket.socket | None = self._transport.get_extra_info("socket")
            if peer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()

    def close(self) -> None:
        """Close the connection, answered or not."""
        if self._transport is not None:
            self._transport.close()
