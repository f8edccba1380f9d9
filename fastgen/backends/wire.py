"""Requests as JSON bytes and JSON bytes as completions: OpenAI's completions and chat formats. No I/O, no asyncio.

Reading is strict: an answer either is what was asked for, choice by choice, or raises; nothing is guessed. Only the
usage figures are read leniently, because a wrong count is no reason to lose text. ``reasoning_content`` and
``reasoning`` are ignored: the answer is ``content``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastgen.errors import RequestRejected, TransientError
from fastgen.records import Completion, Message, Request

if TYPE_CHECKING:
    from fastgen.backends.endpoint import Endpoint

MAX_STOP_STRINGS = 4  # OpenAI's limit; more is a 400 there
_ABORTED = ("abort", "error")  # vLLM and SGLang end a sequence so when they stop or fail: the text is a torso


def encode_request(endpoint: Endpoint, request: Request) -> bytes:
    """Return the body of one request.

    ``max_tokens``, ``temperature`` and ``top_p`` are always stated, penalties only if not 0. A ``top_p`` of 0 keeps the
    likeliest token only, which vLLM refuses to hear; it is said as a temperature of 0 instead.

    :raises RequestRejected: the prompt is no valid Unicode, or of the other API's kind.
    """
    sampling = request.sampling
    greedy = sampling.top_p <= 0
    body: dict[str, Any] = {
        "model": endpoint.model,
        _prompt_field(endpoint, request.prompt): request.prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
    }
    if sampling.presence_penalty:
        body["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        body["frequency_penalty"] = sampling.frequency_penalty
    if sampling.stop:
        body["stop"] = sampling.stop[:MAX_STOP_STRINGS]
    if request.n > 1:
        body["n"] = request.n
    if endpoint.extra_body:
        body = {key: value for key, value in (body | dict(endpoint.extra_body)).items() if value is not None}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise RequestRejected(f"request {request.number} cannot be written as JSON: {error}") from None


def _prompt_field(endpoint: Endpoint, prompt: str | tuple[Message, ...]) -> str:
    if isinstance(prompt, str) == (endpoint.api == "chat"):
        raise RequestRejected(f"the prompt is not of the kind that --api {endpoint.api} takes")
    return "messages" if endpoint.api == "chat" else "prompt"


def decode_completions(body: bytes, endpoint: Endpoint, n: int) -> tuple[Completion, ...]:
    """Return the ``n`` choices of a 200's body, in the order of their indexes.

    The usage's completion tokens are shared evenly over the choices (it is one sum); the prompt's count on choice 0.

    :raises TransientError: ``bad_body`` (no JSON, another shape), ``missing_choices`` (fewer than ``n``) or ``aborted``
        (the server broke a sequence off).
    """
    try:
        return _decode(body, n, chat=endpoint.api == "chat")
    except _BrokenError as broken:
        message, kind = f"{endpoint.display_url}: {broken}", broken.kind
    raise TransientError(message, kind=kind)


class _BrokenError(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, message: str, kind: str = "bad_body") -> None:
        super().__init__(message)
        self.kind = kind


def _decode(body: bytes, n: int, *, chat: bool) -> tuple[Completion, ...]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _BrokenError(f"the answer is not JSON ({error})") from None
    choices = answer.get("choices") if type(answer) is dict else None
    if type(choices) is not list:
        raise _BrokenError(f"no list of choices in {' '.join(body[:120].decode(errors='replace').split())}")
    _check_count(len(choices), n)
    texts = [_read_choice(choice, chat=chat) for choice in _in_order(choices)]
    prompt_tokens, completion_tokens = _usage(answer.get("usage"))
    share, rest = divmod(completion_tokens, n)
    return tuple(
        Completion(text, reason, 0 if i else prompt_tokens, share + (i < rest))
        for i, (text, reason) in enumerate(texts)
    )


def _check_count(count: int, n: int) -> None:
    if 0 < count < n:
        hint = "if it always does, ask for one a request (--samples-per-prompt 1)"
        raise _BrokenError(f"the server sent {count} of {n} choices; {hint}", "missing_choices")
    if count != n:
        raise _BrokenError(f"{count} choices instead of {n}")


def _in_order(choices: list[Any]) -> list[dict[str, Any]]:
    """Choices by index; a lone choice may leave its index out."""
    for choice in choices:
        if type(choice) is not dict:
            raise _BrokenError(f"a choice is a {type(choice).__name__}")
    indexes = [choice.get("index", 0 if len(choices) == 1 else None) for choice in choices]
    if any(type(index) is not int for index in indexes) or sorted(indexes) != list(range(len(choices))):
        raise _BrokenError(f"choice indexes {indexes!s:.100}")
    return choices if len(choices) == 1 else sorted(choices, key=lambda choice: int(choice["index"]))


def _read_choice(choice: dict[str, Any], *, chat: bool) -> tuple[str, str | None]:
    reason = choice.get("finish_reason")
    if reason is not None and type(reason) is not str:
        raise _BrokenError(f"finish_reason is a {type(reason).__name__}")
    if reason in _ABORTED:
        raise _BrokenError(f"the server broke the sequence off (finish_reason {reason})", "aborted")
    text = _chat_text(choice, reason) if chat else choice.get("text")
    if type(text) is not str:
        raise _BrokenError(f"the text is a {type(text).__name__}")
    return text, reason


def _chat_text(choice: dict[str, Any], reason: str | None) -> object:
    """Return the content; empty where it is null beside a finish reason.

    That is legal: all tokens went into reasoning, or the model refused. An unusable answer, not a broken one.
    """
    message = choice.get("message")
    if type(message) is not dict:
        return None
    text = message.get("content")
    return "" if text is None and reason is not None else text


def _usage(usage: object) -> tuple[int, int]:
    """Prompt and completion tokens; 0 for whatever is missing or no count."""
    if not isinstance(usage, dict):
        return 0, 0
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return _count(prompt), _count(completion)


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
