"""Requests as JSON bytes and JSON bytes as completions: OpenAI's completions and chat formats. No I/O, no asyncio.

Reading is strict: an answer either is what was asked for, choice by choice, or raises; nothing is guessed. Of several
choices, those that came are taken and the others are marked as lost (`Completion.is_lost`). Only the usage figures are
read leniently, because a wrong count is no reason to lose text. ``reasoning_content`` and ``reasoning`` are ignored:
the answer is ``content``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastgen.errors import PromptTooLong, RequestRejected, TransientError
from fastgen.records import LOST_REASONS, Completion, Message, Request, token_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastgen.backends.endpoint import Endpoint

MAX_STOP_STRINGS = 4  # OpenAI's limit; more is a 400 there


def encode_request(endpoint: Endpoint, request: Request) -> bytes:
    """Return the body of one request.

    ``max_tokens``, ``temperature`` and ``top_p`` are always stated, penalties only if not 0. A ``top_p`` of 0 keeps the
    likeliest token only, which vLLM refuses to hear; it is said as a temperature of 0 instead.

    :raises RequestRejected: the prompt is no valid Unicode, or of the other API's kind.
    :raises PromptTooLong: one of several prompts is no valid Unicode.
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
        refusal = PromptTooLong if request.prompts > 1 else RequestRejected  # the other prompts may be fine
        raise refusal(f"request {request.number} cannot be written as JSON: {error}") from None


def _prompt_field(endpoint: Endpoint, prompt: str | tuple[str, ...] | tuple[Message, ...]) -> str:
    is_text = isinstance(prompt, str) or isinstance(prompt[0], str)
    if is_text == (endpoint.api == "chat"):
        raise RequestRejected(f"the prompt is not of the kind that --api {endpoint.api} takes")
    return "messages" if endpoint.api == "chat" else "prompt"


def decode_completions(body: bytes, endpoint: Endpoint, request: Request) -> tuple[Completion, ...]:
    """Return the ``request.sequences`` choices of a 200's body, in the order of their indexes.

    The usage's completion tokens are shared evenly over the choices that came (it is one sum); the prompts' count goes
    to the first of these. Choices are lost only beside good ones.

    :raises TransientError: ``bad_body`` (no JSON, another shape) or ``aborted`` (the server broke every sequence off).
    :raises PromptTooLong: a single choice for several prompts: the server cannot cope with that, and whether the choice
        is about the first of them or all of them joined is anyone's guess.
    """
    try:
        return _decode(body, request, chat=endpoint.api == "chat")
    except _BrokenError as broken:
        message, kind = f"{endpoint.display_url}: {endpoint.redact(str(broken))[:240]}", broken.kind
    if kind == "missing_choices":
        raise PromptTooLong(message)
    raise TransientError(message, kind=kind)


class _BrokenError(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, message: str, kind: str = "bad_body") -> None:
        super().__init__(message)
        self.kind = kind


def _decode(body: bytes, request: Request, *, chat: bool) -> tuple[Completion, ...]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _BrokenError(f"the answer is not JSON ({error})") from None
    choices = answer.get("choices") if type(answer) is dict else None
    if type(choices) is not list:
        raise _BrokenError(f"no list of choices in {' '.join(body[:4000].decode(errors='replace').split())}")
    _check_count(len(choices), request)
    by_index = _by_index(choices, request.sequences)
    read = {index: _read_choice(choice, chat=chat) for index, choice in by_index.items()}
    return _completions(read, request.sequences, *_usage(answer.get("usage")))


def _completions(
    read: Mapping[int, tuple[str, str | None]], count: int, prompt_tokens: int, completion_tokens: int
) -> tuple[Completion, ...]:
    """Share the tokens out over what is good; say of the rest how it was lost."""
    good = [index for index, (_, reason) in read.items() if reason not in LOST_REASONS]
    if not good:
        raise _BrokenError(f"the server broke every sequence off (finish_reason {read[min(read)][1]})", "aborted")
    share, rest = divmod(completion_tokens, len(good))
    done: list[Completion] = []
    for index in range(count):
        text, reason = read.get(index, ("", "missing"))
        if reason in LOST_REASONS:
            done.append(Completion("", reason))
        else:
            done.append(Completion(text, reason, prompt_tokens, share + (rest > 0)))
            prompt_tokens, rest = 0, max(0, rest - 1)
    return tuple(done)


def _check_count(count: int, request: Request) -> None:
    if 0 < count < request.sequences:
        if request.prompts > 1 and count == 1:
            raise _BrokenError(f"one choice for {request.prompts} prompts in one request", "missing_choices")
    elif count != request.sequences:
        raise _BrokenError(f"{count} choices instead of {request.sequences}")


def _by_index(choices: list[Any], count: int) -> dict[int, dict[str, Any]]:
    """Choices by index; a lone choice may leave its index out."""
    for choice in choices:
        if type(choice) is not dict:
            raise _BrokenError(f"a choice is a {type(choice).__name__}")
    indexes = [choice.get("index", 0 if len(choices) == 1 else None) for choice in choices]
    known = [index for index in indexes if type(index) is int and 0 <= index < count]
    if len(known) < len(choices) or len(set(known)) < len(known):
        raise _BrokenError(f"choice indexes {indexes!s:.100}")
    return dict(zip(known, choices, strict=True))


def _read_choice(choice: dict[str, Any], *, chat: bool) -> tuple[str, str | None]:
    reason = choice.get("finish_reason")
    if reason is not None and type(reason) is not str:
        raise _BrokenError(f"finish_reason is a {type(reason).__name__}")
    if reason in LOST_REASONS:  # the text is a torso, or none
        return "", reason
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
    """Prompt and completion tokens; 0 for what is missing or is no credible count."""
    if not isinstance(usage, dict):
        return 0, 0
    return token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
