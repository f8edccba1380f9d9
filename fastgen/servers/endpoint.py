"""What counts as a secret, by its name: flags of a server, fields of a request. No I/O.

The names are those that vLLM, Hugging Face, OpenAI, LiteLLM and cloud stores use for a credential. A name that merely
contains such a word (``--long-prefill-token-threshold``, ``stop_token_ids``) is no secret.
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
from urllib.parse import SplitResult, quote, unquote, urlsplit

import orjson

from fastgen.errors import InputError

HIDDEN: Final = "***"
"""Shown and stored in place of a secret; never used as a value."""
_NAMES: Final = frozenset(
    {
        *("apikey", "xapikey", "adminapikey", "apitoken", "hftoken", "token", "accesstoken", "authtoken"),
        *("bearertoken", "sessiontoken", "securitytoken", "authorization", "password", "sslkeyfilepassword"),
        *("secret", "clientsecret", "secretkey", "accesskey", "accesskeyid", "secretaccesskey", "awsaccesskeyid"),
        *("awssecretaccesskey", "awssessiontoken", "privatekey", "credentials", "vertexcredentials"),
    }
)


_ENDINGS: Final = ("apikey", "password", "secret", "secretkey", "accesskey", "accesstoken", "authtoken")
"""A longer name that ends like this is a secret too: ``--openai-api-key``, ``--s3-secret``."""


def names_a_secret(name: str) -> bool:
    """Whether a flag or field of this name holds a secret; of a dotted name the last part counts."""
    plain = re.sub(r"[-_]", "", name.rpartition(".")[2]).lower()
    return plain in _NAMES or plain.endswith(_ENDINGS)


def secret_name_in(value: object) -> str | None:
    """The first name of a secret in a JSON value, at any depth; ``None`` where there is none."""
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


Api = Literal["completions", "chat"]

_VERSION_SEGMENT = re.compile(r"v\d+[a-z0-9]*")
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f]")
_ROUTES = ("/chat/completions", "/completions", "/models")
_RESERVED = ("model", "prompt", "messages", "n", "stream")


def check_extra_body(body: Mapping[str, Any]) -> None:
    """:raises InputError: a field that is fastgen's own, or a value that no request can carry."""
    for name in _RESERVED:
        if name in body:
            raise InputError(f"--extra-body: '{name}' is fastgen's own field; leave it out")
    try:
        orjson.dumps(dict(body))
    except orjson.JSONEncodeError as error:
        raise InputError(f"--extra-body: no request can carry it ({error}); change that value") from None


def redact_url(url: str) -> str:
    """Return ``url`` without user, password, query and fragment: what may be shown and stored. Never raises.

    Whatever stands before an ``@`` is taken for a secret, also where the URL is broken.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    shown = scheme + separator + re.split(r"[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
    return _UNPRINTABLE.sub("_", shown)


def normalise_base_url(url: str, flag: str = "--base-url") -> str:
    """Return ``url`` as ``scheme://[user:password@]host[:port]/path/vN``, without a slash at its end.

    ``/v1`` is added where the path names no version; a pasted route (``.../v1/chat/completions``) is cut back. ``flag``
    is what errors name.

    :raises InputError: no http(s) URL, no host, a bad port, a query or a fragment.
    """
    shown = redact_url(url.strip())
    parts = _split(url.strip(), f"{flag} {shown}")
    if parts.query or parts.fragment:
        raise InputError(f"{flag} {shown}: leave out what follows '?' or '#'; keys belong to --api-key-env")
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        path = path.removesuffix(route)
    if not any(_VERSION_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _split(url: str, named: str) -> SplitResult:
    problem = InputError(f"{named}: use a form such as http://127.0.0.1:8000/v1")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may hold a piece of a password
        raise problem from None
    if parts.scheme not in ("http", "https") or not host or port == 0 or _UNPRINTABLE.search(url):
        raise problem
    if "@" in parts.path:
        raise InputError(f"{named}: write '/', '?', '#' and '@' in a password as %2F, %3F, %23 and %40")
    return parts


@dataclass(frozen=True, slots=True)
class TimeoutPolicy:
    """How long one request may take from its start to the last byte: ``base_s + max_tokens / floor_tokens_per_s``.

    ``base_s`` covers the server's queue and the prompt, ``floor_tokens_per_s`` is the slowest decoding of one sequence
    that still counts as alive (choices of one request decode side by side, so ``n`` does not count). ``total_s``, if
    given, replaces the formula. ``connect_s`` bounds opening a TCP connection (and TLS) alone.
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
        """Return the seconds allowed for a request of ``max_tokens``."""
        return self.total_s if self.total_s is not None else self.base_s + max_tokens / self.floor_tokens_per_s


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One OpenAI-compatible server and how to use it.

    ``base_url`` is normalised (`normalise_base_url`); ``display_url`` is the same without credentials. The URL may
    carry ``user:password@`` (sent as basic authentication, instead of ``api_key``). ``model`` may be empty while the
    server is only asked what it offers. ``extra_body`` is merged last into every request's body: it may replace
    sampling fields, and ``null`` removes a field (``{"max_tokens": null, "max_completion_tokens": 512}``).
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

    @property
    def completions_url(self) -> str:
        """Where completions are asked for; no credentials."""
        return self.display_url + ("/chat/completions" if self.api == "chat" else "/completions")

    @property
    def root_url(self) -> str:
        """The server's root (``/health``, ``/metrics``): the base URL without its version; no credentials."""
        head, _, last = self.display_url.rpartition("/")
        return head if _VERSION_SEGMENT.fullmatch(last) else self.display_url

    def authorization(self) -> str | None:
        """Return the ``Authorization`` header, if any."""
        if self.api_key is not None:
            return f"Bearer {self.api_key}"
        user_info = urlsplit(self.base_url).netloc.rpartition("@")[0]
        return "Basic " + base64.b64encode(unquote(user_info).encode()).decode() if user_info else None

    def redact(self, text: str) -> str:
        """Return ``text`` without this endpoint's secrets, should a server or a library have echoed them.

        They are found as they are, percent-encoded, and as the ``Authorization`` header carries them. Redact a text
        before it is cut: half a secret is not found.
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
