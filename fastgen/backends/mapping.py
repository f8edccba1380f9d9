"""The one table from what a server or aiohttp says to what fastgen's errors mean.

Every aiohttp client error and every HTTP status that is not a success ends here; nothing else in the package catches them.
Messages are one line, carry the endpoint's address without credentials, and never a key, also where a server echoes it.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Literal

import aiohttp
import orjson
from aiohttp.http_exceptions import HttpProcessingError

from fastgen.backends.endpoint import Endpoint, redact_url
from fastgen.errors import FastgenError, InputError, PromptTooLong, RequestRejected, TransientError

Meaning = Literal["connection", "timeout", "incomplete_body", "bad_body", "bad_url", "certificate"]

CLIENT_ERRORS: Final[Mapping[type[BaseException], Meaning]] = {
    aiohttp.ClientError: "connection",
    aiohttp.ClientConnectionError: "connection",
    aiohttp.ClientConnectionResetError: "connection",
    aiohttp.ClientOSError: "connection",
    aiohttp.ClientConnectorError: "connection",
    aiohttp.ClientConnectorDNSError: "connection",
    aiohttp.ClientProxyConnectionError: "connection",
    aiohttp.client_exceptions.UnixClientConnectorError: "connection",
    aiohttp.ClientSSLError: "connection",
    aiohttp.ClientConnectorSSLError: "connection",
    aiohttp.ClientConnectorCertificateError: "certificate",
    aiohttp.ServerConnectionError: "connection",
    aiohttp.ServerDisconnectedError: "connection",
    aiohttp.ServerTimeoutError: "timeout",
    aiohttp.ConnectionTimeoutError: "timeout",
    aiohttp.SocketTimeoutError: "timeout",
    aiohttp.ServerFingerprintMismatch: "certificate",
    aiohttp.ClientPayloadError: "incomplete_body",
    aiohttp.ClientResponseError: "bad_body",
    aiohttp.ContentTypeError: "bad_body",
    aiohttp.WSServerHandshakeError: "bad_body",
    aiohttp.ClientHttpProxyError: "connection",
    aiohttp.TooManyRedirects: "bad_url",
    aiohttp.InvalidURL: "bad_url",
    aiohttp.InvalidUrlClientError: "bad_url",
    aiohttp.RedirectClientError: "bad_url",
    aiohttp.NonHttpUrlClientError: "bad_url",
    aiohttp.InvalidUrlRedirectClientError: "bad_url",
    aiohttp.NonHttpUrlRedirectClientError: "bad_url",
    HttpProcessingError: "bad_body",  # aiohttp's parser, where it escapes unwrapped
    UnicodeError: "bad_url",  # a host name that cannot be encoded for the resolver
    TimeoutError: "timeout",
    OSError: "connection",
}
"""What each error means; an error that is not listed means what its nearest listed ancestor does."""

_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_TRANSIENT_STATUSES = (408, 409, 425, 429)
_TOO_LONG = re.compile(
    # vLLM and OpenAI | OpenAI's code | vLLM's field | SGLang | SGLang | llama.cpp | llama.cpp | vLLM's engine | TGI | others
    r"maximum context length|context_length_exceeded|\binput_tokens\b|model's context length|maximum allowed length"
    r"|exceed_context_size|available context size|maximum model length|max_new_tokens. must be|prompt is too long",
    re.IGNORECASE,
)
_NO_SUCH_MODEL = re.compile(r"model_not_found|model\W.{0,200}(?:not exist|not found)|(?:invalid|unknown|no such) model", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back for one HTTP request, of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def detail(self) -> str:
        """What the server says, as one line of at most 240 characters."""
        try:
            text = _message(orjson.loads(self.body))
        except orjson.JSONDecodeError:
            text = re.sub(r"<[^>]*>", " ", self.body[:4000].decode(errors="replace"))
        return " ".join(text.split())[:240] or "no explanation"

    def text(self) -> str:
        """The body as text, for looking for wordings."""
        return self.body[:20_000].decode(errors="replace")


def _message(answer: object) -> str:
    """The message in the error bodies of OpenAI, vLLM (old and new), llama.cpp and FastAPI."""
    while isinstance(answer, dict):
        answer = next((answer[key] for key in ("error", "message", "detail") if answer.get(key)), str(answer))
    return str(answer)


def from_client_error(error: BaseException, endpoint: Endpoint) -> FastgenError:
    """What an error of aiohttp (or a timeout, or the operating system's) means.

    Only a body that broke off or could not be read has reached a server; the rest are what an outage looks like.
    """
    meaning = next(CLIENT_ERRORS[base] for base in type(error).__mro__ if base in CLIENT_ERRORS)
    where, what = endpoint.display_url, endpoint.redact(_describe(error))
    if isinstance(error, OSError) and error.errno in _OUT_OF_FILES:
        return InputError(f"too many open files for so many connections: raise the limit (ulimit -n) or lower --concurrency ({where})")
    if meaning == "certificate":
        return InputError(f"--base-url {where}: the server's certificate is not trusted ({what})")
    if meaning == "bad_url":
        return InputError(f"--base-url {where} cannot be used ({what})")
    if "WRONG_VERSION_NUMBER" in what:
        return InputError(f"--base-url {where}: the server does not speak TLS; begin the URL with http://")
    reached = meaning in ("incomplete_body", "bad_body")
    return TransientError(f"{where}: {what}", kind=meaning, reached_server=reached)


def _describe(error: BaseException) -> str:
    """One line; the class says it where the text is empty or would show request headers."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"not an HTTP answer: {error.message}"[:240]
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off in the middle"
    text = " ".join(str(error).split())[:240]
    if isinstance(error, aiohttp.InvalidURL):
        text = redact_url(text)
    return text or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def is_unknown_model(answer: HttpAnswer, endpoint: Endpoint) -> bool:
    """Whether the server says that it has no such model (as opposed to: no such route)."""
    text = answer.text()
    if answer.status == 404:
        return "/chat/completions" not in text and (bool(_NO_SUCH_MODEL.search(text)) or _names(text, endpoint.model))
    return answer.status == 400 and bool(re.search(r"model_not_found|invalid model", text, re.IGNORECASE))


def _names(text: str, model: str) -> bool:
    return bool(model) and (model in text or orjson.dumps(model).decode()[1:-1] in text)


def from_refusal(answer: HttpAnswer, endpoint: Endpoint, *, offered: Sequence[str] = (), now_s: float | None = None) -> FastgenError:
    """What an HTTP answer other than 2xx means; ``offered`` are the server's models, for the message.

    ``now_s`` is the Unix time that a Retry-After date is compared with (default: the clock's).
    """
    status, where = answer.status, endpoint.display_url
    said = endpoint.redact(f"{status}: {answer.detail()}")
    if status in (401, 403):
        return InputError(_key_message(endpoint, said))
    if status == 402 or "insufficient_quota" in answer.text():
        return InputError(f"{where}: the account has no credit left ({said}); add some, then run the same command again")
    if status >= 400 and _TOO_LONG.search(answer.text()):
        return PromptTooLong(f"{where} ({said})")
    if is_unknown_model(answer, endpoint):
        return InputError(_model_message(endpoint, offered, said))
    if status in (404, 405) or status // 100 == 3:
        return InputError(_route_message(endpoint, answer, said))
    if status in _TRANSIENT_STATUSES or status >= 500:
        wait_s = parse_retry_after(answer.headers, time.time() if now_s is None else now_s)
        return TransientError(f"{where} ({said})", kind=f"http_{status}", retry_after_s=wait_s)
    if status == 400 and endpoint.api == "chat" and "chat template" in answer.text():
        return InputError(f"--api chat: {endpoint.model} has no chat template ({said}); use --api completions")
    return RequestRejected(f"{where} ({said})")


def _key_message(endpoint: Endpoint, said: str) -> str:
    if endpoint.authorization() is None:
        return f"{endpoint.display_url} asks for a key ({said}): put it into an environment variable and name that with --api-key-env"
    return f"{endpoint.display_url} refuses the key ({said}): name the variable that holds a valid one with --api-key-env"


def _model_message(endpoint: Endpoint, offered: Sequence[str], said: str) -> str:
    if not offered:
        return f"--model {endpoint.model}: {endpoint.display_url} has no such model ({said})"
    listed = ", ".join(offered[:8]) + (f" and {len(offered) - 8} more" if len(offered) > 8 else "")  # noqa: PLR2004 - both sides of one cut
    return f"--model {endpoint.model}: {endpoint.display_url} has no such model; it offers {listed}"


def _route_message(endpoint: Endpoint, answer: HttpAnswer, said: str) -> str:
    if target := answer.headers.get("Location"):
        return f"--base-url {endpoint.display_url} redirects to {redact_url(target)}: give the final URL"
    if endpoint.api == "completions":
        return f"{endpoint.completions_url} does not exist there ({said}): use --api chat, or check --base-url"
    return f"{endpoint.completions_url} does not exist there ({said}): use --api completions, or check --base-url"


def parse_retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait by ``Retry-After`` (seconds or HTTP date, RFC 9110 10.2.3) or ``retry-after-ms``; ``None`` if unstated."""
    if milliseconds := headers.get("retry-after-ms"):
        return _seconds(milliseconds, 1e-3)
    stated = headers.get("Retry-After")
    if not stated:
        return None
    seconds = _seconds(stated, 1.0)
    if seconds is not None:
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
