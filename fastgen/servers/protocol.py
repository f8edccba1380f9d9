"""The OpenAI format: requests as JSON, JSON as completions, and what each error of a server or of aiohttp means.

Reading is strict: an answer either is what was asked for, choice by choice, or raises. Where only some choices came,
those are used and the others are marked as lost (`Completion.is_lost`). Only the usage figures and the reasoning are
read leniently, because neither is a reason to lose text. The answer is ``content``. ``reasoning_content`` (vLLM,
SGLang, llama.cpp, DeepSeek) or ``reasoning`` (newer vLLM, OpenRouter) becomes `Completion.reasoning`.

Every aiohttp client error and every HTTP status that is not a success becomes one of fastgen's errors here. No other
module catches them. Messages are one line, carry the endpoint's address without credentials, and never a key, also
where a server echoes it.
"""

from __future__ import annotations

import errno
import math
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

import aiohttp
import orjson
from aiohttp.http_exceptions import HttpProcessingError

from fastgen.errors import FastgenError, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.servers.endpoint import Endpoint, redact_url, with_fields
from fastgen.types import LOST_REASONS, Completion, Request, token_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


MAX_STOP_STRINGS = 4  # OpenAI's limit; more is a 400 there


_UNLESS_ZERO: Final = ("presence_penalty", "frequency_penalty", "top_k", "min_p")


def encode_request(endpoint: Endpoint, request: Request) -> bytes:
    """The body of one request, in the form of the API that its prompt is for.

    ``max_tokens``, ``temperature`` and ``top_p`` are always stated, penalties, ``top_k`` and ``min_p`` only if not 0.
    A ``top_p`` of 0 keeps the likeliest token only, which vLLM refuses. It is sent as a temperature of 0 instead.
    Fields of the endpoint's ``chat_body``, of the request's ``extra`` and of the endpoint's ``extra_body`` follow, each
    over those before.

    :raises RequestRejected: the prompt is not valid Unicode.
    :raises PromptTooLong: one of several prompts is not valid Unicode.
    """
    sampling, is_chat = request.sampling, request.is_chat
    greedy = sampling.top_p <= 0
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages" if is_chat else "prompt": request.prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
    }
    for name in _UNLESS_ZERO:
        if value := getattr(sampling, name):
            body[name] = value
    if sampling.stop:
        body["stop"] = sampling.stop[:MAX_STOP_STRINGS]
    if request.n > 1:
        body["n"] = request.n
    more: Mapping[str, Any] = endpoint.chat_body if is_chat else {}
    if request.extra:
        more = with_fields(more, request.extra)
    if endpoint.extra_body:
        more = with_fields(more, endpoint.extra_body)
    if more:
        body = {key: value for key, value in (body | dict(more)).items() if value is not None}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        refusal = PromptTooLong if request.prompts > 1 else RequestRejected  # the other prompts may be fine
        raise refusal(f"request {request.number} cannot be written as JSON: {error}") from None


def decode_completions(body: bytes, endpoint: Endpoint, request: Request) -> tuple[Completion, ...]:
    """The ``request.sequences`` choices of a 200's body, in the order of their indexes.

    The usage's completion tokens are one sum, which is shared evenly over the choices that came. The first of these
    gets the prompts' count. Choices count as lost only if others of the response are good.

    :raises TransientError: ``bad_body`` (no JSON, another shape) or ``aborted`` (the server aborted every sequence).
    :raises PromptTooLong: a single choice for several prompts: the server does not support that, and the choice may be
        about the first of them or about all of them joined.
    """
    try:
        read, usage = _read_choices(body, request, chat=request.is_chat)
        return _completions(read, request.sequences, usage)
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


_Read = tuple[str, str | None, str]
"""Text, finish reason and reasoning of a choice."""


def _read_choices(body: bytes, request: Request, *, chat: bool) -> tuple[dict[int, _Read], object]:
    """The choices by index, and the usage as it is. A lone choice may leave its index out."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _BrokenError(f"the answer is not JSON ({error})") from None
    choices = answer.get("choices") if type(answer) is dict else None
    if type(choices) is not list:
        raise _BrokenError(f"no list of choices in {' '.join(body[:4000].decode(errors='replace').split())}")
    count, wanted = len(choices), request.sequences
    if count == 1 and request.prompts > 1:
        raise _BrokenError(f"one choice for {request.prompts} prompts in one request", "missing_choices")
    if not 0 < count <= wanted:
        raise _BrokenError(f"{count} choices instead of {wanted}")
    for choice in choices:
        if type(choice) is not dict:
            raise _BrokenError(f"a choice is a {type(choice).__name__}")
    indexes = [choice.get("index", 0 if count == 1 else None) for choice in choices]
    if len({index for index in indexes if type(index) is int and 0 <= index < wanted}) < count:
        raise _BrokenError(f"choice indexes {indexes!s:.100}")
    read = {index: _read_choice(choice, chat=chat) for index, choice in zip(indexes, choices, strict=True)}
    return read, answer.get("usage")


def _read_choice(choice: dict[str, Any], *, chat: bool) -> _Read:
    reason = choice.get("finish_reason")
    if reason is not None and type(reason) is not str:
        raise _BrokenError(f"finish_reason is a {type(reason).__name__}")
    if reason in LOST_REASONS:  # the text is incomplete, or missing
        return "", reason, ""
    text, reasoning = choice.get("text"), ""
    if chat:
        message = choice.get("message")
        text = message.get("content") if type(message) is dict else None
        if text is None and reason is not None and type(message) is dict:
            text = ""  # legal: all tokens went into reasoning, or the model refused; unusable but not broken
        if type(message) is dict:
            reasoning = _read_reasoning(message)
    if type(text) is not str:
        raise _BrokenError(f"the text is a {type(text).__name__}")
    return text, reason, reasoning


def _read_reasoning(message: dict[str, Any]) -> str:
    """What a message says of its reasoning. Servers in transition send it under both names."""
    named = (message.get("reasoning_content"), message.get("reasoning"))
    return next((text for text in named if type(text) is str and text), "")


def _completions(read: Mapping[int, _Read], count: int, usage: object) -> tuple[Completion, ...]:
    """Share the tokens over the good choices. The others are lost for the reason that they carry."""
    good = [index for index, (_, reason, _) in read.items() if reason not in LOST_REASONS]
    if not good:
        raise _BrokenError(f"the server aborted every sequence (finish_reason {read[min(read)][1]})", "aborted")
    counts = usage if isinstance(usage, dict) else {}
    prompt_tokens = token_count(counts.get("prompt_tokens"))
    share, rest = divmod(token_count(counts.get("completion_tokens")), len(good))
    done: list[Completion] = []
    for index in range(count):
        text, reason, reasoning = read.get(index, ("", "missing", ""))
        if reason in LOST_REASONS:
            done.append(Completion("", reason))
        else:
            done.append(Completion(text, reason, prompt_tokens, share + (rest > 0), reasoning))
            prompt_tokens, rest = 0, max(0, rest - 1)
    return tuple(done)


Meaning = Literal["connection", "timeout", "incomplete_body", "bad_body", "bad_url", "certificate"]

CLIENT_ERRORS: Final[Mapping[type[BaseException], Meaning]] = {
    aiohttp.ClientError: "connection",
    aiohttp.ClientConnectorCertificateError: "certificate",
    aiohttp.ServerFingerprintMismatch: "certificate",
    aiohttp.ServerTimeoutError: "timeout",
    aiohttp.ClientPayloadError: "incomplete_body",
    aiohttp.ClientResponseError: "bad_body",
    aiohttp.ClientHttpProxyError: "connection",
    aiohttp.TooManyRedirects: "bad_url",
    aiohttp.InvalidURL: "bad_url",
    aiohttp.RedirectClientError: "bad_url",
    aiohttp.NonHttpUrlClientError: "bad_url",
    HttpProcessingError: "bad_body",  # aiohttp's parser, where it escapes unwrapped
    UnicodeError: "bad_url",  # a host name that cannot be encoded for the resolver
    TimeoutError: "timeout",
    OSError: "connection",
}
"""What each error means; one that is not listed means what its nearest listed base class does."""

_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_TRANSIENT_STATUSES = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
_LISTED_MODELS = 8  # as many names as fit one line
_TOO_LONG = re.compile(
    r"maximum context length|context_length_exceeded|\binput_tokens\b"  # vLLM and OpenAI, OpenAI's code, vLLM's field
    r"|model's context length|maximum allowed length"  # SGLang
    r"|exceed_context_size|available context size"  # llama.cpp's type and message
    r"|maximum model length|max_new_tokens. must be|prompt is too long",  # vLLM's engine, TGI, several others
    re.IGNORECASE,
)
_NO_SUCH_MODEL = re.compile(
    r"model_not_found|model\W.{0,200}(?:not exist|not found)|(?:invalid|unknown|no such) model", re.IGNORECASE
)
_NO_SUCH_MODEL_400 = re.compile(r"model_not_found|invalid model name", re.IGNORECASE)  # LiteLLM and some hosted ones


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An HTTP response of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def detail(self, redact: Callable[[str], str] = str) -> str:
        """The server's message, redacted, as one line of at most 240 characters."""
        try:
            answer = orjson.loads(self.body)
            while isinstance(answer, dict):  # OpenAI, vLLM (old and new), llama.cpp, FastAPI
                answer = next((answer[key] for key in ("error", "message", "detail") if answer.get(key)), str(answer))
            text = str(answer)
        except orjson.JSONDecodeError:
            text = re.sub(r"<[^>]*>", " ", self.body[:4000].decode(errors="replace"))
        return redact(" ".join(text.split()))[:240] or "no explanation"

    def text(self) -> str:
        """The body as text, to search for phrases."""
        return self.body[:20_000].decode(errors="replace")


def from_client_error(error: BaseException, endpoint: Endpoint) -> FastgenError:
    """What an error of aiohttp, a timeout or an error of the operating system means.

    Only where a body broke off or could not be read was a server reached. The rest look like an outage.
    """
    meaning = next(CLIENT_ERRORS[base] for base in type(error).__mro__ if base in CLIENT_ERRORS)
    where, what = endpoint.display_url, _describe(error, endpoint.redact)
    if isinstance(error, OSError) and error.errno in _OUT_OF_FILES:
        return InputError(f"{where}: too many open files; raise the limit (ulimit -n) or lower --concurrency")
    if meaning == "certificate":
        return InputError(f"--base-url {where}: the server's certificate is not trusted ({what})")
    if meaning == "bad_url":
        return InputError(f"--base-url {where} cannot be used ({what})")
    if "WRONG_VERSION_NUMBER" in what:
        return InputError(f"--base-url {where}: the server does not speak TLS; begin the URL with http://")
    reached = meaning in ("incomplete_body", "bad_body")
    return TransientError(f"{where}: {what}", kind=meaning, reached_server=reached)


def _describe(error: BaseException, redact: Callable[[str], str]) -> str:
    """One line, redacted. Never the text of an error that holds request headers or a whole URL."""
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        return redact(" ".join(f"not an HTTP answer: {error.message}".split()))[:240]
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off in the middle"
    if isinstance(error, aiohttp.InvalidURL):
        return "not a URL"
    text = redact(" ".join(str(error).split()))[:240]
    return text or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def is_unknown_model(answer: HttpAnswer, endpoint: Endpoint) -> bool:
    """Whether the server reports that it has no such model (as opposed to no such route)."""
    text = answer.text()
    if answer.status == HTTPStatus.NOT_FOUND:
        named = bool(endpoint.model) and (endpoint.model in text or orjson.dumps(endpoint.model).decode()[1:-1] in text)
        return "/chat/completions" not in text and (named or _NO_SUCH_MODEL.search(text) is not None)
    return answer.status == HTTPStatus.BAD_REQUEST and _NO_SUCH_MODEL_400.search(text) is not None


def from_refusal(
    answer: HttpAnswer,
    endpoint: Endpoint,
    request: Request | None = None,
    *,
    offered: Sequence[str] = (),
    now_s: float | None = None,
) -> FastgenError:
    """What an HTTP answer other than 2xx means.

    ``request`` is what was asked, if it was a completion. ``offered`` are the server's models, for the message.
    ``now_s`` is the Unix time that a Retry-After date is compared with (default: the clock's).
    """
    said = f"{answer.status}: {answer.detail(endpoint.redact)}"
    if (problem := _users_problem(answer, endpoint, request, offered, said)) is not None:
        return InputError(problem)
    where = f"{endpoint.display_url} ({said})"
    if answer.status >= HTTPStatus.BAD_REQUEST and _TOO_LONG.search(answer.text()):
        return PromptTooLong(where)
    if answer.status in _TRANSIENT_STATUSES or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        wait_s = parse_retry_after(answer.headers, time.time() if now_s is None else now_s)
        return TransientError(where, kind=f"http_{answer.status}", retry_after_s=wait_s)
    return RequestRejected(where)


def _users_problem(
    answer: HttpAnswer, endpoint: Endpoint, request: Request | None, offered: Sequence[str], said: str
) -> str | None:
    """What the user must fix, in one line, or ``None`` where that is not the cause."""
    status, where, problem = answer.status, endpoint.display_url, None
    is_chat = endpoint.api == "chat" if request is None else request.is_chat
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        problem = f"{where} refuses the key ({said}): name the variable of a valid one with --api-key-env"
        if endpoint.authorization() is None:
            remedy = "put a key into an environment variable and name that with --api-key-env"
            problem = f"{where} asks for a key ({said}): {remedy}"
    elif status == HTTPStatus.PAYMENT_REQUIRED or "insufficient_quota" in answer.text():
        problem = f"{where}: no credit left ({said}); add some, then run the same command again"
    elif is_unknown_model(answer, endpoint):
        problem = _model_message(endpoint, offered, said)
    elif status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) or status < HTTPStatus.BAD_REQUEST:
        problem = _route_message(endpoint, request, answer, said)
    elif status == HTTPStatus.BAD_REQUEST and is_chat and "chat template" in answer.text():
        problem = f"--api chat: {endpoint.model} has no chat template ({said}); use --api completions"
        if request is not None and endpoint.api != "chat":
            remedy = f"name a chat model for it with --role {request.server_role}=URL,MODEL"
            problem = f"the step {request.step} asks a chat model, and {endpoint.model} is none ({said}); {remedy}"
    return problem


def _model_message(endpoint: Endpoint, offered: Sequence[str], said: str) -> str:
    if not offered:
        return f"--model {endpoint.model}: {endpoint.display_url} has no such model ({said})"
    more = f" and {len(offered) - _LISTED_MODELS} more" if len(offered) > _LISTED_MODELS else ""
    listed = endpoint.redact(", ".join(offered[:_LISTED_MODELS])) + more
    return f"--model {endpoint.model}: {endpoint.display_url} has no such model; it offers {listed}"


def _route_message(endpoint: Endpoint, request: Request | None, answer: HttpAnswer, said: str) -> str:
    if target := answer.headers.get("Location"):
        shown = endpoint.redact(redact_url(target))
        return f"--base-url {endpoint.display_url} redirects to {shown}: give the final URL"
    main_is_chat = endpoint.api == "chat"
    if request is not None and request.is_chat != main_is_chat:  # the method needs both APIs
        role = request.server_role
        return (
            f"{endpoint.url(chat=request.is_chat)}, which the step {request.step} asks, does not exist ({said}): name "
            f"a server that has it with --role {role}=URL,MODEL, or check --base-url"
        )
    other = "completions" if main_is_chat else "chat"
    return f"{endpoint.url(chat=main_is_chat)} does not exist ({said}): use --api {other}, or check --base-url"


def parse_retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """The seconds to wait by ``Retry-After`` (seconds or a date, RFC 9110 10.2.3) or ``retry-after-ms``."""
    stated = headers.get("Retry-After", "")
    seconds = _seconds(headers.get("retry-after-ms", ""), 1e-3)
    if seconds is None:
        seconds = _seconds(stated, 1.0)
    if seconds is not None or not stated:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _seconds(text: str, unit_s: float) -> float | None:
    try:
        seconds = float(text) * unit_s
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
