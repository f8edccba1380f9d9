"""The test servers' tokenizer: about English's mean, and cheap. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

CHARACTERS_PER_TOKEN: Final = 4


def count_tokens(text: str) -> int:
    """Return the number of tokens: at least 1."""
    return len(text) // CHARACTERS_PER_TOKEN + 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request for completions asks: ``n`` sequences for each of ``prompts``."""

    model: str
    prompts: tuple[str, ...]
    n: int
    max_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """One written sequence; no ``text``: all of its tokens were reasoning, which a server takes out of the answer."""

    text: str | None
    finish_reason: str
    tokens: int


class BadRequestError(ValueError):
    """The body is not what the API takes; the text goes into a 400."""


def read_request(body: bytes, *, chat: bool) -> Asked:
    """Return what a body asks for.

    :raises BadRequestError: no JSON object, or a field of a wrong type or range.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"JSON decode error: {error}") from None
    if not isinstance(asked, dict):
        raise BadRequestError("the body must be an object")
    prompts = _read_messages(asked.get("messages")) if chat else _read_prompts(asked.get("prompt"))
    n, max_tokens = _default(asked, "n", 1), _default(asked, "max_tokens", 16)
    if not isinstance(n, int) or not isinstance(max_tokens, int) or n < 1 or max_tokens < 1:
        raise BadRequestError("n and max_tokens must be at least 1")
    _check_sampling(asked)
    return Asked(str(asked.get("model", "")), prompts, n, max_tokens, _read_stop(asked.get("stop")))


def _default(asked: dict[str, Any], name: str, value: object) -> object:
    """Return a field; ``value`` where it is absent or null."""
    given = asked.get(name)
    return value if given is None else given


def _read_prompts(prompt: object) -> tuple[str, ...]:
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts or not all(isinstance(text, str) and text for text in prompts):
        raise BadRequestError("prompt must be a non-empty string or a list of them")
    return tuple(prompts)


def _read_messages(messages: object) -> tuple[str, ...]:
    """Return the text of all messages: what a chat template would make of them, more or less."""
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a non-empty list")
    if not all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages):
        raise BadRequestError("every message needs a role and a content")
    return ("\n".join(message["content"] for message in messages),)


def _check_sampling(asked: dict[str, Any]) -> None:
    temperature, top_p = _default(asked, "temperature", 1.0), _default(asked, "top_p", 1.0)
    if not isinstance(temperature, (int, float)) or temperature < 0:
        raise BadRequestError(f"temperature must be non-negative, got {temperature}.")
    if not isinstance(top_p, (int, float)) or not 0 < top_p <= 1:
        raise BadRequestError(f"top_p must be in (0, 1], got {top_p}.")


def _read_stop(stop: object) -> tuple[str, ...]:
    strings = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(strings, list) or not all(isinstance(text, str) and text for text in strings):
        raise BadRequestError("stop must be a string or a list of non-empty strings")
    return tuple(strings)


def cut(text: str | None, asked: Asked, room_tokens: int) -> Sequence:
    """``text`` as a sampler would have ended it: at the first stop string or at the token limit.

    ``room_tokens`` are what the prompt has left of the model's length.
    """
    if text is None:
        return Sequence(None, "length", min(asked.max_tokens, room_tokens))
    reason = "stop"
    ends = [at for at in (text.find(string) for string in asked.stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
    tokens, limit = count_tokens(text), min(asked.max_tokens, room_tokens)
    if tokens > limit:
        text, tokens, reason = text[: limit * CHARACTERS_PER_TOKEN], limit, "length"
    return Sequence(text, reason, tokens)


def answer(asked: Asked, sequences: list[Sequence], prompt_tokens: int, *, chat: bool) -> dict[str, Any]:
    """Return a 200's body, before it is written as JSON."""
    generated = sum(sequence.tokens for sequence in sequences)
    return {
        "id": "chatcmpl-0" if chat else "cmpl-0",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": asked.model,
        "choices": [
            choice(i, sequence.text, sequence.finish_reason, chat=chat) for i, sequence in enumerate(sequences)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + generated,
            "completion_tokens": generated,
        },
    }


def choice(index: int, text: str | None, finish_reason: str, *, chat: bool) -> dict[str, Any]:
    """Return one choice."""
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text or ""}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """Return vLLM's error body."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def too_long_body(max_model_len: int, prompt_tokens: int) -> bytes:
    """Return vLLM's words for a prompt that does not fit."""
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your request has {prompt_tokens} "
        f"input tokens. Please reduce the length of the input messages. (parameter=input_tokens, value={prompt_tokens})"
    )
    return error_body(400, message, "BadRequestError", "input_tokens")


def models_body(model: str, max_model_len: int) -> bytes:
    """Return vLLM's list of one model."""
    card = {"id": model, "object": "model", "created": 0, "owned_by": "vllm", "root": model, "parent": None}
    return orjson.dumps({"object": "list", "data": [card | {"max_model_len": max_model_len}]})
