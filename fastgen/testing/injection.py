"""How each fault looks on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from fastgen.testing.api import choice, error_body
from fastgen.testing.faults import Event, Fault, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgen.testing.protocol import Exchange

HUGE_BYTES: Final = 2_000_000
RETRY_AFTER_S: Final = 1

_REFUSALS: Final[dict[Fault, tuple[int, bytes, dict[str, str]]]] = {
    Fault.RATE_LIMIT: (429, error_body(429, "Too many requests.", "RateLimitError"), {}),
    Fault.RATE_LIMIT_RETRY_AFTER: (
        429,
        error_body(429, "Too many requests.", "RateLimitError"),
        {"Retry-After": str(RETRY_AFTER_S)},
    ),
    Fault.OVERLOADED: (503, error_body(503, "The request queue is full.", "ServiceUnavailableError"), {}),
    Fault.OVERLOADED_RETRY_AFTER: (
        503,
        error_body(503, "The request queue is full.", "ServiceUnavailableError"),
        {"Retry-After": str(RETRY_AFTER_S)},
    ),
    Fault.SERVER_ERROR: (500, error_body(500, "EngineCore encountered an issue.", "InternalServerError"), {}),
    Fault.BAD_GATEWAY: (502, b"<html><head><title>502 Bad Gateway</title></head></html>", {}),
}


def inject_instead(exchange: Exchange, event: Event, *, prompt_too_long: bytes) -> bool:
    """Answer with a fault that takes the place of any work; false where the event is none of these."""
    if isinstance(event, Reply):
        exchange.respond(event.status, event.body, content_type=event.content_type, headers=event.headers)
    elif event is Fault.RESET:
        exchange.reset()
    elif event is Fault.DISCONNECT:
        exchange.disconnect()
    elif event is Fault.PROMPT_TOO_LONG:
        exchange.respond(400, prompt_too_long)
    elif event in _REFUSALS:
        status, body, headers = _REFUSALS[event]
        exchange.respond(status, body, headers=headers)
    else:
        return False
    return True


def inject_into(exchange: Exchange, answer: dict[str, Any], fault: Fault, *, chat: bool) -> None:
    """Send a good answer spoilt by a fault that shows in it."""
    spoil = _SPOILERS.get(fault)
    if spoil is not None:
        spoil(answer, chat)
    body = orjson.dumps(answer)
    if fault in (Fault.RESET_MID_BODY, Fault.TRUNCATED_BODY):
        exchange.break_off(body[: len(body) // 2], len(body), reset=fault is Fault.RESET_MID_BODY)
    elif fault is Fault.INVALID_JSON:
        exchange.respond_json(body[:-1] + b",,")
    else:
        exchange.respond_json(body)


def _set_text(answer: dict[str, Any], chat: bool, text: object) -> None:
    for one in answer["choices"]:
        if chat:
            one["message"]["content"] = text
        else:
            one["text"] = text


def _null_text(answer: dict[str, Any], chat: bool) -> None:
    """Take the text away; in a chat the finish reason too, because a null content beside one is legal."""
    _set_text(answer, chat, None)
    if chat:
        _set_finish_reason(answer, None)


def _set_finish_reason(answer: dict[str, Any], reason: str | None) -> None:
    for one in answer["choices"]:
        one["finish_reason"] = reason


def _add_choice(answer: dict[str, Any], chat: bool) -> None:
    answer["choices"].append(choice(len(answer["choices"]), "", "stop", chat=chat))


def _spoil_index(answer: dict[str, Any]) -> None:
    answer["choices"][-1]["index"] = 0 if len(answer["choices"]) > 1 else 1


_SPOILERS: Final[dict[Fault, Callable[[dict[str, Any], bool], object]]] = {
    Fault.EMPTY_CHOICES: lambda answer, _: answer["choices"].clear(),
    Fault.MISSING_CHOICE: lambda answer, _: answer["choices"].pop(),
    Fault.EXTRA_CHOICE: _add_choice,
    Fault.DUPLICATE_INDEX: lambda answer, _: _spoil_index(answer),
    Fault.WRONG_TYPES: lambda answer, chat: _set_text(answer, chat, ["text"]),
    Fault.NULL_TEXT: _null_text,
    Fault.NULL_FINISH_REASON: lambda answer, _: _set_finish_reason(answer, None),
    Fault.NO_USAGE: lambda answer, _: answer.pop("usage"),
    Fault.ABORTED: lambda answer, _: _set_finish_reason(answer, "abort"),
    Fault.HUGE: lambda answer, chat: _set_text(answer, chat, "x" * HUGE_BYTES),
}
