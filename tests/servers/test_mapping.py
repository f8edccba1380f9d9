"""The table from foreign errors to fastgen's, held against the installed aiohttp and the wordings of real servers."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from unittest.mock import sentinel
from urllib.parse import quote

import aiohttp
import orjson
import pytest
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict

from fastgen.errors import FastgenError, InputError, PromptTooLong, RequestRejected, TransientError
from fastgen.servers.endpoint import Endpoint
from fastgen.servers.protocol import HttpAnswer, from_client_error, from_refusal, parse_retry_after
from fastgen.types import Message, Request, Sampling

ENDPOINT = Endpoint("http://host", "org/model-7b", api_key="sk-secret")
CHAT = Endpoint("http://host", "org/model-7b", api="chat")
SAMPLING = Sampling(0.7, 0.5, 32)

MEANINGS = {
    "ClientConnectionError": "connection",
    "ClientConnectionResetError": "connection",
    "ClientConnectorCertificateError": "certificate",
    "ClientConnectorDNSError": "connection",
    "ClientConnectorError": "connection",
    "ClientConnectorSSLError": "connection",
    "ClientHttpProxyError": "connection",
    "ClientOSError": "connection",
    "ClientPayloadError": "incomplete_body",
    "ClientProxyConnectionError": "connection",
    "ClientResponseError": "bad_body",
    "ClientSSLError": "connection",
    "ConnectionTimeoutError": "timeout",
    "ContentTypeError": "bad_body",
    "InvalidURL": "bad_url",
    "InvalidUrlClientError": "bad_url",
    "InvalidUrlRedirectClientError": "bad_url",
    "NonHttpUrlClientError": "bad_url",
    "NonHttpUrlRedirectClientError": "bad_url",
    "RedirectClientError": "bad_url",
    "ServerConnectionError": "connection",
    "ServerDisconnectedError": "connection",
    "ServerFingerprintMismatch": "certificate",
    "ServerTimeoutError": "timeout",
    "SocketTimeoutError": "timeout",
    "TooManyRedirects": "bad_url",
    "UnixClientConnectorError": "connection",
    "UploadAbortedError": "connection",
    "WSServerHandshakeError": "bad_body",
}

KEY = ConnectionKey("host", 1, False, True, None, None, None)
REFUSED = OSError(errno.ECONNREFUSED, "Connect call failed")
REQUEST_INFO: Any = sentinel.request_info
ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "ClientConnectorCertificateError": (KEY, ssl.SSLCertVerificationError(1, "self-signed certificate")),
    "ClientConnectorDNSError": (KEY, OSError(-2, "Name or service not known")),
    "ClientConnectorError": (KEY, REFUSED),
    "ClientConnectorSSLError": (KEY, OSError(1, "handshake failure")),
    "ClientHttpProxyError": (REQUEST_INFO, ()),
    "ClientProxyConnectionError": (KEY, REFUSED),
    "ClientResponseError": (REQUEST_INFO, ()),
    "ClientSSLError": (KEY, OSError(1, "handshake failure")),
    "ContentTypeError": (REQUEST_INFO, ()),
    "InvalidURL": ("http://u:sk-secret@",),
    "InvalidUrlClientError": ("http://u:sk-secret@",),
    "InvalidUrlRedirectClientError": ("http://u:sk-secret@",),
    "ServerFingerprintMismatch": (b"a", b"b", "host", 1),
    "TooManyRedirects": (REQUEST_INFO, ()),
    "UnixClientConnectorError": ("/path", KEY, REFUSED),
    "WSServerHandshakeError": (REQUEST_INFO, ()),
}


def subclasses(base: type[Exception]) -> Iterator[type[Exception]]:
    for child in base.__subclasses__():
        if child.__module__.startswith("aiohttp"):
            yield child
            yield from subclasses(child)


CLIENT_ERROR_CLASSES = sorted(set(subclasses(aiohttp.ClientError)), key=lambda one: one.__name__)


@pytest.mark.parametrize("error_class", CLIENT_ERROR_CLASSES, ids=lambda one: one.__name__)
def test_every_client_error_of_aiohttp_has_its_meaning(error_class: type[Exception]) -> None:
    name = error_class.__name__
    mapped = from_client_error(error_class(*ARGUMENTS.get(name, ())), ENDPOINT)
    meaning = MEANINGS[name]
    if meaning in ("certificate", "bad_url"):
        assert type(mapped) is InputError
        assert "--base-url http://host/v1" in str(mapped)
    else:
        assert type(mapped) is TransientError
        assert mapped.kind == meaning
        assert mapped.reached_server == (meaning in ("incomplete_body", "bad_body"))
    assert "sk-secret" not in str(mapped)
    assert "\n" not in str(mapped)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "timeout"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "timeout"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "connection"),
        (BrokenPipeError(), "connection"),
        (OSError(errno.ENETUNREACH, "unreachable"), "connection"),
    ],
)
def test_errors_of_the_operating_system_look_like_an_outage(error: OSError, kind: str) -> None:
    mapped = from_client_error(error, ENDPOINT)
    assert isinstance(mapped, TransientError)
    assert (mapped.kind, mapped.reached_server) == (kind, False)


def test_a_key_that_a_library_echoes_is_hidden() -> None:
    assert "sk-secret" not in str(from_client_error(aiohttp.ClientOSError(1, "Bearer sk-secret failed"), ENDPOINT))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_names_the_limit_and_the_flag(number: int) -> None:
    mapped = from_client_error(aiohttp.ClientConnectorError(KEY, OSError(number, os.strerror(number))), ENDPOINT)
    assert isinstance(mapped, InputError)
    assert "ulimit -n" in str(mapped)
    assert "--concurrency" in str(mapped)


def test_tls_spoken_to_a_plain_server_names_the_scheme() -> None:
    error = aiohttp.ClientConnectorSSLError(KEY, OSError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"))
    mapped = from_client_error(error, Endpoint("https://host", "m"))
    assert isinstance(mapped, InputError)
    assert "http://" in str(mapped)


def refusal(status: int, body: bytes | dict[str, Any], headers: Mapping[str, str] | None = None) -> HttpAnswer:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return HttpAnswer(status, CIMultiDict(headers or {}), raw)


def mapped(status: int, body: bytes | dict[str, Any] = b"", endpoint: Endpoint = ENDPOINT, **more: Any) -> FastgenError:
    error = from_refusal(refusal(status, body, more.pop("headers", None)), endpoint, **more)
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_statuses_that_pass_are_transient(status: int) -> None:
    error = mapped(status, {"error": {"message": "later"}})
    assert isinstance(error, TransientError)
    assert error.kind == f"http_{status}"
    assert error.reached_server
    assert "later" in str(error)


@pytest.mark.parametrize("status", [400, 406, 410, 413, 415, 422, 451])
def test_other_refusals_reject_the_request(status: int) -> None:
    error = mapped(status, {"object": "error", "message": "best_of must be 1"})
    assert type(error) is RequestRejected
    assert "best_of must be 1" in str(error)


@pytest.mark.parametrize("status", list(HTTPStatus), ids=str)
def test_every_status_but_success_has_a_meaning(status: HTTPStatus) -> None:
    if status >= 300:
        assert isinstance(mapped(status), (InputError, TransientError, RequestRejected))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_flag_and_hides_the_key(status: int) -> None:
    error = mapped(status, {"error": {"message": "Incorrect API key provided: sk-secret."}})
    assert isinstance(error, InputError)
    assert "--api-key-env" in str(error)
    assert "sk-secret" not in str(error)


def test_a_missing_key_names_the_flag() -> None:
    error = mapped(401, {"error": "Unauthorized"}, CHAT)
    assert isinstance(error, InputError)
    assert "asks for a key" in str(error)


@pytest.mark.parametrize("body", [{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}])
@pytest.mark.parametrize("status", [402, 429])
def test_an_empty_account_is_for_the_user_to_fix(status: int, body: dict[str, Any]) -> None:
    error = mapped(status, body)
    assert isinstance(error, InputError)
    assert "credit" in str(error)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"error": {"message": "The model `org/model-7b` does not exist.", "param": "model", "code": 404}}),
        (404, {"object": "error", "message": "The model `org/model-7b` does not exist.", "type": "NotFoundError"}),
        (404, {"error": {"message": "The model `x` does not exist or ...", "code": "model_not_found"}}),
        (404, {"error": {"message": 'model "org/model-7b" not found, try pulling it first', "type": "api_error"}}),
        (400, {"error": {"message": "Invalid model name passed in model=org/model-7b", "code": "400"}}),
    ],
)
def test_an_unknown_model_names_the_flag_and_what_the_server_offers(status: int, body: dict[str, Any]) -> None:
    error = mapped(status, body, offered=("small", "large"))
    assert isinstance(error, InputError)
    assert str(error).startswith("--model org/model-7b: http://host/v1 has no such model")
    assert "small, large" in str(error)
    assert "--model org/model-7b" in str(mapped(status, body))


def test_a_long_list_of_models_is_cut() -> None:
    error = mapped(
        404, {"error": {"message": "The model `org/model-7b` does not exist."}}, offered=[f"m{i}" for i in range(30)]
    )
    assert "m7 and 22 more" in str(error)
    assert "m8" not in str(error)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"detail": "Not Found"}),
        (404, b"<html>404</html>"),
        (405, {"detail": "Method Not Allowed"}),
        (404, {"error": {"message": "This is a chat model ... Did you mean to use v1/chat/completions?"}}),
    ],
)
def test_a_route_that_is_not_there_names_the_other_api(status: int, body: Any) -> None:
    error = mapped(status, body)
    assert isinstance(error, InputError)
    assert "--api chat" in str(error)
    assert "--api completions" in str(mapped(status, {"detail": "Not Found"}, CHAT))


def test_a_redirect_names_the_url_to_use_without_its_secrets() -> None:
    error = mapped(308, b"", headers={"location": "https://u:hidden@host/v1/completions?key=hidden"})
    assert isinstance(error, InputError)
    assert "https://host/v1/completions" in str(error)
    assert "hidden" not in str(error)


@pytest.mark.parametrize("endpoint", [ENDPOINT, CHAT])
def test_an_api_that_one_step_alone_needs_names_the_step_and_its_role(endpoint: Endpoint) -> None:
    texts = Request(1, "pre_query", "<|user|>", SAMPLING, role="instruction")
    messages = Request(1, "answer", (Message("user", "hi"),), SAMPLING)
    request, role = (messages, "answer") if endpoint is ENDPOINT else (texts, "instruction")
    error = from_refusal(HttpAnswer(404, {}, b'{"detail": "Not Found"}'), endpoint, request)
    assert isinstance(error, InputError)
    assert f"which the step {request.step} asks" in str(error)
    assert f"--role {role}=URL,MODEL" in str(error)
    assert endpoint.url(chat=request.is_chat) in str(error)
    other = texts if request is messages else messages
    assert "--role" not in str(from_refusal(HttpAnswer(404, {}, b"{}"), endpoint, other))


def test_a_step_that_needs_a_chat_model_says_so() -> None:
    body = b'{"error": {"message": "default chat template is no longer allowed"}}'
    request = Request(1, "answer", (Message("user", "hi"),), SAMPLING)
    error = from_refusal(HttpAnswer(400, {}, body), ENDPOINT, request)
    assert isinstance(error, InputError)
    assert "--role answer=URL,MODEL" in str(error)
    assert "--api completions" in str(from_refusal(HttpAnswer(400, {}, body), CHAT, request))


def test_a_model_without_a_chat_template_names_the_other_api() -> None:
    body = {"error": {"message": "As of transformers v4.44, default chat template is no longer allowed"}}
    error = mapped(400, body, CHAT)
    assert isinstance(error, InputError)
    assert "--api completions" in str(error)


NEW_VLLM = "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens."
OLD_VLLM = "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (2000 in ..."
LLAMA_CPP = "the request exceeds the available context size, try increasing it"
TOO_LONG: list[tuple[int, dict[str, Any]]] = [
    (400, {"error": {"message": NEW_VLLM, "param": "input_tokens"}}),
    (400, {"object": "error", "message": OLD_VLLM, "code": 400}),
    (400, {"error": {"message": "Please shorten the prompt.", "code": "context_length_exceeded"}}),
    (400, {"message": "The input (61709 tokens) is longer than the model's context length (40960 tokens)."}),
    (400, {"message": "Requested token count exceeds the model's maximum context length of 202752 tokens."}),
    (400, {"message": "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."}),
    (400, {"error": {"code": 400, "message": LLAMA_CPP, "type": "exceed_context_size_error"}}),
    (500, {"error": {"code": 500, "message": LLAMA_CPP, "type": "exceed_context_size_error"}}),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens"}),
    (413, {"error": {"message": "prompt is too long: 9000 tokens > 8000 maximum"}}),
]


@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_each_servers_words_for_a_too_long_prompt_are_understood(status: int, body: dict[str, Any]) -> None:
    assert isinstance(mapped(status, body), PromptTooLong)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"Retry-After": "Fri, 20 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Fri, 20 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Fri, 99 Nov 9999 99:00:00 GMT"}, None),
    ],
)
def test_the_servers_wish_to_wait_is_understood(headers: dict[str, str], expected: float | None) -> None:
    now_s = 1795176000.0  # 2026-11-20 12:00:00 UTC
    assert parse_retry_after(CIMultiDict(headers), now_s) == expected
    error = mapped(429, headers=headers, now_s=now_s)
    assert isinstance(error, TransientError)
    assert error.retry_after_s == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "no explanation"),
        (b"<html><body>Bad   gateway\n</body></html>", "Bad gateway"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
        (b'{"error": "plain"}', "plain"),
        (b'{"error": {"message": "inner"}}', "inner"),
        (b'{"error": {"code": 3}}', "3"),
        (b'"text"', "text"),
        (b"\xff\xfe", "�"),
        (b'{"message": "' + b"x" * 1000 + b'"}', "x" * 240),
    ],
)
def test_what_a_server_says_becomes_one_short_line(body: bytes, expected: str) -> None:
    detail = refusal(500, body).detail()
    assert expected in detail
    assert len(detail) <= 240
    assert "\n" not in detail


@pytest.mark.parametrize("key", ["sk-secret", "sk/secret+1="])
def test_a_key_that_a_server_sends_back_is_shown_nowhere(key: str) -> None:
    endpoint = Endpoint("http://host", "m", api_key=key)
    quoted = quote(key, safe="")
    answers = [
        HttpAnswer(307, CIMultiDict(Location=f"http://elsewhere/{quoted}/{key}"), b""),
        HttpAnswer(500, CIMultiDict(), orjson.dumps({"error": {"message": "x" * 235 + f"{key} {key}"}})),
        HttpAnswer(500, CIMultiDict(), f"<b>{key}</b>".encode()),
        HttpAnswer(404, CIMultiDict(), orjson.dumps({"error": f"model m not found for {key}"})),
    ]
    said = [str(from_refusal(answer, endpoint, offered=[f"model-of-{key}"])) for answer in answers]
    said.append(str(from_client_error(OSError(1, "x" * 235 + key), endpoint)))
    for text in said:
        assert key[:4] not in text
        assert quoted not in text


def test_basic_credentials_that_a_server_sends_back_are_shown_nowhere() -> None:
    endpoint = Endpoint("http://me:hunter2@host", "m")
    header = str(endpoint.authorization()).removeprefix("Basic ")
    said = str(from_refusal(HttpAnswer(500, CIMultiDict(), f"got {header}".encode()), endpoint))
    assert header not in said
