"""The address, the secret and the time allowed."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import InputError
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy, normalise_base_url, redact_url

KEY = "sk-very-secret"


@pytest.mark.parametrize(
    ("given_url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        (" http://127.0.0.1:8000/v1// ", "http://127.0.0.1:8000/v1"),
        ("HTTPS://Example.org/openai", "https://Example.org/openai/v1"),
        ("https://example.org/api/v3", "https://example.org/api/v3"),
        ("https://example.org/v1beta/openai/", "https://example.org/v1beta/openai"),
        ("http://host/v1/completions", "http://host/v1"),
        ("http://host/v1/chat/completions/", "http://host/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
        ("http://user:pass@host", "http://user:pass@host/v1"),
    ],
)
def test_a_base_url_is_brought_to_one_form(given_url: str, expected: str) -> None:
    assert normalise_base_url(given_url) == expected
    assert normalise_base_url(expected) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "127.0.0.1:8000/v1",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://host:0/v1",
        "http://[::1/v1",
        "http://ho st/v1",
        "http://host\n/v1",
        "http://host/\x00v1",
        "http://host/v1?api-version=1",
        "http://host/v1#part",
        "http://user:pa/ss@host/v1",
        "http://user:pa?ss@host/v1",
    ],
)
def test_a_bad_base_url_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(InputError, match=r"^--base-url [^\n]*$"):
        normalise_base_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host:1/v1", "https://host:1/v1"),
        ("https://secret@host/v1?key=secret#secret", "https://host/v1"),
        ("user:secret@host/v1", "host/v1"),
        ("http://u:secret://secret@host/v1", "http://host/v1"),
        ("http://u:se?cret@host/v1", "http://host/v1"),
        ("/v1/models?key=secret", "/v1/models"),
    ],
)
def test_a_shown_url_has_no_credentials(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@given(st.text())
def test_any_text_is_either_a_base_url_or_an_input_error(text: str) -> None:
    try:
        url = normalise_base_url(text)
    except InputError as error:
        said = str(error)
    else:
        said = f"--base-url {url}"
        assert url.startswith(("http://", "https://"))
    assert re.fullmatch(r"--base-url .+", said)


@given(st.text(alphabet="abcXYZ0123456789/?#:@% ", min_size=4))
def test_no_password_shows_in_anything_made_of_a_url(password: str) -> None:
    secret = f"Q{password}Q"
    assert secret not in redact_url(f"http://user:{secret}@host/v1")
    try:
        endpoint = Endpoint(f"http://user:{secret}@host/v1", "m")
    except InputError as error:
        shown = str(error)
    else:
        shown = f"{endpoint} {endpoint.url(chat=False)} {endpoint.url(chat=True)} {endpoint.root_url}"
    assert secret not in shown


def test_a_key_shows_in_no_representation() -> None:
    endpoint = Endpoint("http://host", "m", api_key=f" {KEY}\n")
    assert KEY not in repr(endpoint)
    assert KEY not in str(endpoint)
    assert endpoint.authorization() == f"Bearer {KEY}"
    assert endpoint.redact(f"Incorrect API key provided: {KEY}.") == "Incorrect API key provided: ***."


def test_credentials_in_the_url_become_basic_authentication() -> None:
    endpoint = Endpoint("http://user:p%40ss@host", "m")
    scheme, _, value = str(endpoint.authorization()).partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(value) == b"user:p@ss"
    assert endpoint.display_url == "http://host/v1"
    assert endpoint.redact("p@ss p%40ss") == "*** ***"


def test_credentials_survive_a_copy_with_another_model() -> None:
    endpoint = Endpoint("http://user:pass@host", "", api="chat")
    copy = replace(endpoint, model="m")
    assert copy.authorization() == endpoint.authorization() is not None
    assert copy.url(chat=True) == "http://host/v1/chat/completions"
    assert copy.url(chat=False) == "http://host/v1/completions"


@pytest.mark.parametrize("key", ["", "  ", "a\nb", "schlüssel", "a\x7f"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="--api-key-env"):
        Endpoint("http://host", "m", api_key=key)


def test_two_kinds_of_credentials_are_refused() -> None:
    with pytest.raises(InputError, match="either") as caught:
        Endpoint("http://user:hidden@host", "m", api_key=KEY)
    assert KEY not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_unknown_api_is_refused() -> None:
    with pytest.raises(InputError, match="--api responses"):
        Endpoint("http://host", "m", api="responses")  # type: ignore[arg-type]  # what a config file may hold


@pytest.mark.parametrize("name", ["model", "prompt", "messages", "n", "stream"])
def test_fields_that_fastgen_fills_are_refused_in_the_extra_body(name: str) -> None:
    with pytest.raises(InputError, match=f"--extra-body: '{name}'"):
        Endpoint("http://host", "m", extra_body={name: 1})


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("http://host:1/v1", "http://host:1"),
        ("http://host/a/v2", "http://host/a"),
        ("http://h/v1beta/openai", "http://h/v1beta/openai"),
    ],
)
def test_the_root_is_the_base_url_without_its_version(base_url: str, root: str) -> None:
    assert Endpoint(base_url, "m").root_url == root


def test_the_time_allowed_grows_with_max_tokens() -> None:
    policy = TimeoutPolicy(base_s=10.0, floor_tokens_per_s=4.0)
    assert policy.request_s(1) == pytest.approx(10.25)
    assert policy.request_s(1024) == pytest.approx(266.0)
    assert TimeoutPolicy(total_s=5.0).request_s(100_000) == 5.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["base_s", "floor_tokens_per_s", "connect_s", "total_s"])
def test_a_timeout_is_a_positive_number(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        TimeoutPolicy(**{name: value})
