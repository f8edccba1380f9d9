"""Text of others stays text: on a terminal, in Markdown, in JSON."""

from __future__ import annotations

import json
import math
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fastgen.text import as_json, markdown, markdown_code, printable

ANY_TEXT = st.text(st.characters(categories=["C", "L", "P", "S", "Z"], include_characters="\ud800"))


def is_harmless(text: str) -> bool:
    return not any(
        unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(one) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        or one in "\u200e\u200f\u061c"
        for one in text.replace("\t", "")
    )


@given(ANY_TEXT)
def test_no_control_character_stays_and_the_rest_does(text: str) -> None:
    shown = printable(text)
    assert is_harmless(shown)
    assert is_harmless(printable(text, lines=True).replace("\n", ""))
    assert printable(shown) == shown
    if is_harmless(text):
        assert shown == text


def test_control_characters_are_seen_as_escapes() -> None:
    assert printable("a\x1b[31mb\x9b1m\u202ec\u2028\udcff\x7f") == r"a\x1b[31mb\x9b1m\u202ec\u2028\udcff\x7f"
    assert printable("a\r\nb\rc\td", lines=True) == "a\nb\\x0dc\td"
    assert printable("a\nb") == "a b"


@given(ANY_TEXT)
def test_a_code_span_is_one_span_on_one_line(text: str) -> None:
    span = markdown_code(text)
    assert is_harmless(span)
    assert span[0] == span[-1] == "`"
    assert not set("`|\n") & set(span[1:-1])


def test_markdown_has_no_markup() -> None:
    hostile = "<img src=x>\n# [a](http://b) **c** | `d` ~e~ $f$ @me &amp; www.x.org"
    assert markdown(hostile) == (
        r"\<img src=x\> \# \[a\](http\://b) \*\*c\*\* \| \`d\` \~e\~ \$f\$ \@me \&amp; www\.x.org"
    )
    assert markdown("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"


@given(st.recursive(ANY_TEXT | st.floats() | st.integers() | st.none(), lambda one: st.lists(one, max_size=3)))
def test_json_is_printable_ascii_and_says_the_same(value: object) -> None:
    text = as_json({"a": value})
    assert text.isascii()
    assert text.isprintable()
    read = json.loads(text)["a"]
    if isinstance(value, float) and not math.isfinite(value):
        assert read is None
    elif isinstance(value, str):
        assert read == value.encode("utf-8", "backslashreplace").decode()
