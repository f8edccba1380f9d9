"""The formats of OpenAI's API as vLLM serves them: requests, completions, errors, models and the page of metrics.

Tokens are counted by length: `CHARACTERS_PER_TOKEN` is about English's mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from fastgen.simulator.engine import Load, SimulatedEngine

CHARACTERS_PER_TOKEN: Final = 4
_HELP: Final = "As vLLM's."


def count_tokens(text: str) -> int:
    """Return the number of tokens: at least 1."""
    return len(text) // CHARACTERS_PER_TOKEN + 1


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What one request asks for: ``n`` completions of each of ``prompts``."""

    model: str
    prompts: tuple[str, ...]
    n: int
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None = None
    effort: str = "medium"
    """How much a chat model is to reason: ``none``, or a value of ``reasoning_effort``."""
    schema: Mapping[str, Any] | None = None
    """The JSON schema that the answer has to fit, ``None`` where it is free text."""
    messages: object = None
    """Of a chat, as they came."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion. ``text`` is ``None`` where all tokens were reasoning, which a server removes from the answer.

    ``reasoning`` is what was removed, where the server returns it: the name of the message's field, and the text.
    """

    text: str | None
    finish_reason: str
    tokens: int
    reasoning: tuple[str, str] | None = None


class BadRequestError(ValueError):
    """The API does not accept the body. A 400 carries the message."""


def read_request(body: bytes, *, chat: bool) -> CompletionRequest:
    """Return what a body asks for.

    :raises BadRequestError: when it is no JSON object, or a field has a wrong type or range.
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
    seed = asked.get("seed")
    return CompletionRequest(
        model=str(asked.get("model", "")),
        prompts=prompts,
        n=n,
        max_tokens=max_tokens,
        stop=_read_stop(asked.get("stop")),
        seed=seed if isinstance(seed, int) else None,
        effort=_read_effort(asked),
        schema=_read_schema(asked),
        messages=asked.get("messages"),
    )


def _default(asked: dict[str, Any], name: str, value: object) -> object:
    """Return a field. ``value`` where it is absent or null."""
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


def _read_effort(asked: dict[str, Any]) -> str:
    """Return the effort of reasoning. As in vLLM, the template's switch counts more than ``reasoning_effort``."""
    effort = _default(asked, "reasoning_effort", "medium")
    template = _default(asked, "chat_template_kwargs", {})
    if not isinstance(effort, str) or not isinstance(template, dict):
        raise BadRequestError("reasoning_effort must be a string, and chat_template_kwargs an object")
    if "enable_thinking" not in template:
        return effort
    return "none" if not template["enable_thinking"] else "medium" if effort == "none" else effort


def _read_schema(asked: dict[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of ``response_format``, or of vLLM's ``structured_outputs`` (``json`` or ``choice``)."""
    wanted: Any = _default(asked, "response_format", {})
    ours: Any = _default(asked, "structured_outputs", {})
    try:
        if "json" in ours:
            schema = orjson.loads(ours["json"]) if isinstance(ours["json"], str) else ours["json"]
        elif "choice" in ours:
            schema = {"enum": ours["choice"]}
        elif wanted.get("type") == "json_schema":
            schema = wanted["json_schema"]["schema"]
        else:
            schema = {"type": "object"} if wanted.get("type") == "json_object" else None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"no JSON schema: {error!r}") from None
    if schema is not None and not isinstance(schema, dict):
        raise BadRequestError("a JSON schema must be an object")
    return schema


def cut(text: str | None, asked: CompletionRequest, room_tokens: int) -> Completion:
    """Return ``text`` as a sampler would have ended it: at the first stop string or at the token limit.

    ``room_tokens`` is what the prompt leaves of the model's length.
    """
    limit = min(asked.max_tokens, room_tokens)
    if text is None:
        return Completion(None, "length", limit)
    ends = [at for at in (text.find(string) for string in asked.stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
    tokens = count_tokens(text)
    if tokens > limit:
        return Completion(text[: limit * CHARACTERS_PER_TOKEN], "length", limit)
    return Completion(text, "stop", tokens)


def answer(
    asked: CompletionRequest, completions: list[Completion], prompt_tokens: int, *, chat: bool
) -> dict[str, Any]:
    """Return a 200's body, before it is written as JSON."""
    generated = sum(completion.tokens for completion in completions)
    return {
        "id": "chatcmpl-0" if chat else "cmpl-0",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": asked.model,
        "choices": [
            choice(i, one.text, one.finish_reason, chat=chat, reasoning=one.reasoning)
            for i, one in enumerate(completions)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + generated,
            "completion_tokens": generated,
        },
    }


def choice(
    index: int, text: str | None, finish_reason: str, *, chat: bool, reasoning: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return one choice, with the field and the text of its reasoning where a chat has one."""
    said: dict[str, Any] = {"text": text or ""}
    if chat:
        said = {"message": {"role": "assistant", "content": text} | dict([reasoning] if reasoning else [])}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """Return vLLM's error body."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def too_long_body(max_model_len: int, prompt_tokens: int) -> bytes:
    """Return vLLM's error body for a prompt that does not fit."""
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your request has {prompt_tokens} "
        f"input tokens. Please reduce the length of the input messages. (parameter=input_tokens, value={prompt_tokens})"
    )
    return error_body(400, message, "BadRequestError", "input_tokens")


def models_body(model: str, max_model_len: int) -> bytes:
    """Return vLLM's list of one model."""
    card = {"id": model, "object": "model", "created": 0, "owned_by": "vllm", "root": model, "parent": None}
    return orjson.dumps({"object": "list", "data": [card | {"max_model_len": max_model_len}]})


def metrics_page(
    model: str, load: Load, counters: Mapping[str, float], finished: Mapping[str, int], engine: SimulatedEngine | None
) -> bytes:
    """Return the page of metrics as Prometheus text, with vLLM's names and labels.

    ``counters`` have vLLM's names without ``vllm:`` and ``_total``. ``finished`` counts completions by finish_reason.
    """
    labels = {"engine": "0", "model_name": model}

    class Page(Collector):
        def collect(self) -> Iterator[Metric]:
            gauges = {
                "num_requests_running": load.running,
                "num_requests_waiting": load.waiting,
                "kv_cache_usage_perc": load.kv_cache_usage,
            }
            for name, value in gauges.items():
                yield _labelled(GaugeMetricFamily(f"vllm:{name}", _HELP, value=value), labels)
            waiting = GaugeMetricFamily("vllm:num_requests_waiting_by_reason", _HELP, value=load.waiting)
            yield _labelled(waiting, {**labels, "reason": "capacity"})
            for name, value in {**counters, "num_preemptions": load.preemptions}.items():
                yield _labelled(CounterMetricFamily(f"vllm:{name}", _HELP, value=value), labels)
            success = CounterMetricFamily("vllm:request_success", _HELP, labels=["finished_reason"])
            for reason, count in finished.items():
                success.add_metric([reason], count)
            yield _labelled(success, labels)
            if engine is not None:
                for histogram in engine.histograms:
                    yield from (_labelled(metric, labels) for metric in histogram.collect())
                config = {
                    "block_size": str(engine.model.block_tokens),
                    "enable_prefix_caching": str(engine.model.prefix_caching),
                    "num_gpu_blocks": str(engine.model.kv_blocks),
                }
                info = GaugeMetricFamily("vllm:cache_config_info", _HELP, value=1)
                yield _labelled(info, {**config, "engine": "0"})

    return generate_latest(Page())


def _labelled(metric: Metric, labels: Mapping[str, str]) -> Metric:
    metric.samples = [sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples]
    return metric
