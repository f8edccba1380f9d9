"""Requests as JSON bytes and JSON bytes as completions: OpenAI's completions and chat formats. No I/O, no asyncio.

Reading is strict: an answer either is what was asked for, choice by choice, or raises; nothing is guessed. Only the usage
figures are read leniently, because a wrong count is no reason to lose text. ``reasoning_content`` and ``reasoning`` are ignored:
the answer is ``content``.
"""

from __future__ import annotations

from typing import Any

import orjson

from fastgen.backends.endpoint import Endpoint
from fastgen.errors import RequestRejected, TransientError
from fastgen.records import Completion, Message, Request

MAX_STOP_STRINGS = 4  # OpenAI's limit; more is a 400 there
_ABORTED = ("abort", "error")  # vLLM and SGLang end a sequence so when they stop or fail: the text is a torso


def encode_request(endpoint: Endpoint, request: Request) -> bytes:
    """The body of one request. ``max_tokens``, ``temperature`` and ``top_p`` are always stated, penalties only if not 0.

    A ``top_p`` of 0 keeps the likeliest token only, which vLLM refuses to hear; it is said as a temperature of 0 instead.

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


def decode_completions(body: bytes, *, chat: bool, n: int) -> tuple[Completion, ...]:
    """The ``n`` choices of a 200's body, in the order of their indexes.

    The usage's completion tokens are shared evenly over the choices (it is one sum); the prompt's count on choice 0.

    :raises TransientError: ``bad_body`` (no JSON, another shape), ``missing_choices`` (fewer than ``n``) or ``aborted``
        (the server broke a sequence off).
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad_body(f"invalid JSON ({error})") from None
    choices = answer.get("choices") if type(answer) is dict else None
    if type(choices) is not list:
        raise _bad_body(f"no list of choices in {_excerpt(body)}")
    if len(choices) != n:
        raise _wrong_count(len(choices), n)
    texts = [_read_choice(choice, chat=chat) for choice in _in_order(choices)]
    prompt_tokens, completion_tokens = _usage(answer.get("usage"))
    share, rest = divmod(completion_tokens, n)
    return tuple(
        Completion(text, reason, 0 if i else prompt_tokens, share + (i < rest)) for i, (text, reason) in enumerate(texts)
    )


def _in_order(choices: list[Any]) -> list[dict[str, Any]]:
    """Choices by index; a lone choice may leave its index out."""
    for choice in choices:
        if type(choice) is not dict:
            raise _bad_body(f"a choice is a {type(choice).__name__}")
    indexes = [choice.get("index", 0 if len(choices) == 1 else None) for choice in choices]
    if len(indexes) == 1 and indexes[0] == 0:
        return choices
    if any(type(index) is not int for index in indexes) or sorted(indexes) != list(range(len(choices))):
        raise _bad_body(f"choice indexes {indexes!r:.100}")
    return sorted(choices, key=lambda choice: int(choice["index"]))


def _read_choice(choice: dict[str, Any], *, chat: bool) -> tuple[str, str | None]:
    reason = choice.get("finish_reason")
    if reason is not None and type(reason) is not str:
        raise _bad_body(f"finish_reason is a {type(reason).__name__}")
    if reason in _ABORTED:
        raise TransientError(f"the server broke the sequence off (finish_reason {reason})", kind="aborted")
    if chat:
        message = choice.get("message")
        text = message.get("content") if type(message) is dict else message
        if text is None and type(message) is dict and reason is not None:
            text = ""  # legal: all tokens went into reasoning, or the model refused; an unusable answer, not a broken one
    else:
        text = choice.get("text")
    if type(text) is not str:
        raise _bad_body(f"the text is a {type(text).__name__}")
    return text, reason


def _usage(usage: object) -> tuple[int, int]:
    """Prompt and completion tokens; 0 for whatever is missing or no count."""
    if type(usage) is not dict:
        return 0, 0
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    prompt, completion = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return prompt, completion


def _wrong_count(count: int, n: int) -> TransientError:
    if 0 < count < n:
        return TransientError(
            f"the server sent {count} of {n} choices; if it always does, ask for one a request (--samples-per-prompt 1)",
            kind="missing_choices",
        )
    return _bad_body(f"{count} choices instead of {n}")


def _bad_body(what: str) -> TransientError:
    return TransientError(f"the server's answer is broken: {what}", kind="bad_body")


def _excerpt(body: bytes) -> str:
    return " ".join(body[:120].decode(errors="replace").split())
