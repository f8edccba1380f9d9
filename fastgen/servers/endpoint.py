"""An OpenAI-compatible server and how to use it: its address, its key, its timeouts; and what counts as a secret.

Neither the API key nor credentials in a URL appear in the ``repr`` of an `Endpoint`, in its ``display_url`` or in any
message of this module. A secret is recognised by its name: the flag of a server, or the field of a request.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import quote, unquote, urlsplit

import orjson

from fastgen.errors import InputError

Api = Literal["completions", "chat"]

_VERSION_SEGMENT = re.compile(r"v\d+[a-z0-9]*")
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f]")
_ROUTES = ("/chat/completions", "/completions", "/models")
_RESERVED = ("model", "prompt", "messages", "n", "stream")
_TEMPLATE_FIELD = "chat_template_kwargs"
"""An object of independent settings of the chat template, so that two of them are merged name by name."""


def with_fields(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a body with ``more`` over them. ``chat_template_kwargs`` of both are merged name by name."""
    merged = {**fields, **more}
    below, above = fields.get(_TEMPLATE_FIELD), more.get(_TEMPLATE_FIELD)
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        merged[_TEMPLATE_FIELD] = {**below, **above}
    return merged


def check_extra_body(body: Mapping[str, Any]) -> None:
    """Check the value of ``--extra-body``.

    :raises InputError: a field that fastgen itself sets, or a value that cannot be written as JSON.
    """
    for name in _RESERVED:
        if name in body:
            raise InputError(f"--extra-body: '{name}' is fastgen's own field; leave it out")
    try:
        orjson.dumps(dict(body))
    except orjson.JSONEncodeError as error:
        raise InputError(f"--extra-body: no request can carry it ({error}); change that value") from None


def redact_url(url: str) -> str:
    """``url`` without user, password, query and fragment, to be shown and stored. Never raises.

    Everything before an ``@`` counts as a secret, also where the URL is broken.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    shown = scheme + separator + re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    return _UNPRINTABLE.sub("_", shown)


def normalise_base_url(url: str, flag: str = "--base-url") -> str:
    """``url`` as ``scheme://[user:password@]host[:port]/path/vN``, without a slash at its end.

    ``/v1`` is added where the path names no version. A pasted route (``.../v1/chat/completions``) is cut back. Errors
    name ``flag``.

    :raises InputError: no http(s) URL, no host, a bad port, a query or a fragment.
    """
    url, shown = url.strip(), redact_url(url.strip())
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its text may hold a piece of a password
        is_good = False
    if not is_good or _UNPRINTABLE.search(url):
        raise InputError(f"{flag} {shown}: use a form such as http://127.0.0.1:8000/v1")
    if "@" in parts.path:
        raise InputError(f"{flag} {shown}: write '/', '?', '#' and '@' in a password as %2F, %3F, %23 and %40")
    if parts.query or parts.fragment:
        raise InputError(f"{flag} {shown}: leave out what follows '?' or '#'; keys belong to --api-key-env")
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        path = path.removesuffix(route)
    if not any(_VERSION_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass(frozen=True, slots=True)
class TimeoutPolicy:
    """How long one request may take from its start to the last byte: ``base_s + max_tokens / floor_tokens_per_s``.

    ``base_s`` is for the server's queue and the prompt. ``floor_tokens_per_s`` is the slowest decoding of one sequence
    that counts as alive (the choices of one request decode side by side, so ``n`` does not count). ``total_s``, if
    given, replaces the formula. ``connect_s`` bounds opening a TCP connection, TLS included.
    """

    base_s: float = 60.0
    floor_tokens_per_s: float = 2.0
    connect_s: float = 10.0
    total_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("base_s", "floor_tokens_per_s", "connect_s", "total_s"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"timeout {name} is {value}: use a positive number")

    def request_s(self, max_tokens: int) -> float:
        """The seconds allowed for a request of ``max_tokens``."""
        return self.total_s if self.total_s is not None else self.base_s + max_tokens / self.floor_tokens_per_s


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One OpenAI-compatible server and how to use it.

    ``base_url`` is normalised (`normalise_base_url`). ``display_url`` is the same without credentials. The URL may
    carry ``user:password@`` (sent as basic authentication, instead of ``api_key``). ``model`` may be empty where only
    the server's list of models is needed. ``api`` is the one that most prompts are for, and what messages name: each
    request goes to the API of its own prompt. ``extra_body`` is merged last into every request's body: it may replace
    sampling fields, and ``null`` removes a field (``{"max_tokens": null, "max_completion_tokens": 512}``).
    ``chat_body`` are fields of chat requests only, which those of ``extra_body`` and of the request replace.
    ``max_body_bytes`` bounds a response, per choice.

    :raises InputError: a bad URL, API, timeout or body, in one line that names the flag.
    """

    base_url: str = field(repr=False)
    model: str
    api: Api = "completions"
    api_key: str | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    timeout: TimeoutPolicy = field(default_factory=TimeoutPolicy)
    max_body_bytes: int = 1 << 20
    chat_body: Mapping[str, Any] = field(default_factory=dict)
    display_url: str = field(init=False)

    def __post_init__(self) -> None:
        if self.api not in ("completions", "chat"):
            raise InputError(f"--api {self.api}: use 'completions' or 'chat'")
        check_extra_body(self.extra_body)
        base_url = normalise_base_url(self.base_url)
        display_url = redact_url(base_url)
        if self.api_key is not None and display_url != base_url:
            raise InputError(
                f"--base-url {display_url}: give either user:password in the URL or --api-key-env, not both"
            )
        key = None if self.api_key is None else self.api_key.strip()
        if key is not None and not (key and key.isascii() and key.isprintable()):
            raise InputError("--api-key-env: the key is empty or holds characters that no HTTP header can carry")
        object.__setattr__(self, "base_url", base_url)
        object.__setattr__(self, "display_url", display_url)
        object.__setattr__(self, "api_key", key)
        object.__setattr__(self, "extra_body", MappingProxyType(dict(self.extra_body)))
        object.__setattr__(self, "chat_body", MappingProxyType(dict(self.chat_body)))

    def url(self, *, chat: bool) -> str:
        """The URL of chat completions or of completions, without credentials."""
        return self.display_url + ("/chat/completions" if chat else "/completions")

    @property
    def root_url(self) -> str:
        """The server's root (``/health``, ``/metrics``): the base URL without its version; no credentials."""
        head, _, last = self.display_url.rpartition("/")
        return head if _VERSION_SEGMENT.fullmatch(last) else self.display_url

    def authorization(self) -> str | None:
        """The ``Authorization`` header, if any."""
        if self.api_key is not None:
            return f"Bearer {self.api_key}"
        user_info = urlsplit(self.base_url).netloc.rpartition("@")[0]
        return "Basic " + base64.b64encode(unquote(user_info).encode()).decode() if user_info else None

    def redact(self, text: str) -> str:
        """``text`` without this endpoint's secrets, which a server or a library may have echoed.

        They are found as they are, percent-encoded, and as in the ``Authorization`` header. Redact a text before you
        cut it: half a secret is not found.
        """
        parts = urlsplit(self.base_url)
        secrets = {unquote(secret) for secret in (self.api_key, parts.password, parts.username) if secret}
        secrets |= {secret for secret in (self.api_key, parts.password, parts.username) if secret}
        secrets |= {quote(secret, safe="") for secret in secrets} | {quote(secret) for secret in secrets}
        if self.api_key is None and (authorization := self.authorization()):
            secrets.add(authorization.partition(" ")[2])
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text


# -- secrets -----------------------------------------------------------------------------------------------------------

HIDDEN: Final = "***"
"""Shown and stored in place of a secret; never used as a value."""
_SECRET_NAMES: Final = frozenset(
    {
        *("apikey", "xapikey", "adminapikey", "apitoken", "hftoken", "token", "accesstoken", "authtoken"),
        *("bearertoken", "sessiontoken", "securitytoken", "authorization", "password", "sslkeyfilepassword"),
        *("secret", "clientsecret", "secretkey", "accesskey", "accesskeyid", "secretaccesskey", "awsaccesskeyid"),
        *("awssecretaccesskey", "awssessiontoken", "privatekey", "credentials", "vertexcredentials"),
    }
)
"""As vLLM, Hugging Face, OpenAI, LiteLLM and cloud stores name a credential. A name that merely contains such a word
(``--long-prefill-token-threshold``, ``stop_token_ids``) is not a secret."""
_SECRET_ENDINGS: Final = ("apikey", "password", "secret", "secretkey", "accesskey", "accesstoken", "authtoken")
"""A longer name that ends like this is a secret too: ``--openai-api-key``, ``--s3-secret``."""


def names_a_secret(name: str) -> bool:
    """Whether a flag or field of this name holds a secret. Of a dotted name the last part counts."""
    plain = re.sub(r"[-_]", "", name.rpartition(".")[2]).lower()
    return plain in _SECRET_NAMES or plain.endswith(_SECRET_ENDINGS)


def secret_name_in(value: object) -> str | None:
    """The first name of a secret in a JSON value, at any depth, or ``None`` where there is none."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if names_a_secret(str(name)):
                return str(name)
            if (found := secret_name_in(inner)) is not None:
                return found
    elif isinstance(value, Sequence) and not isinstance(value, str):
        return next((found for inner in value if (found := secret_name_in(inner)) is not None), None)
    return None


def holds_a_secret(text: str) -> bool:
    """Whether a text is JSON in which something is named as a secret."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return secret_name_in(json.loads(text)) is not None
    except (ValueError, RecursionError):
        return False
