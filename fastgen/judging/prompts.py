"""What the judge sees of an instance: the three texts, each in a frame that they cannot close.

Guarantees: the lines of the frame carry a code that is drawn from a secret salt and is in none of the texts; nothing in
a text is taken for a place of the template or for a chat template's own mark. The wording is in ``prompt.toml``.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from fastgen.asking.asker import Prompt
from fastgen.backends.endpoint import Api
from fastgen.judging.verdicts import CODE_LENGTH
from fastgen.records import Instance, Message
from fastgen.untrusted import without_template_marks

_PLACE: Final = re.compile(r"\{(code|instruction|input|output)\}")
_LETTERS: Final = 26


@dataclass(frozen=True, slots=True)
class Wording:
    """The shipped template; ``fingerprint`` is its version and a hash of its text."""

    system: str
    user: str
    answer: str
    fingerprint: str


@cache
def wording() -> Wording:
    """The template of ``prompt.toml``."""
    source = files("fastgen.judging").joinpath("prompt.toml").read_text(encoding="utf-8")
    table = tomllib.loads(source)
    words = {name: table[name] for name in ("system", "user", "answer")}
    shown = hashlib.sha256("\0".join(words.values()).encode()).hexdigest()[:12]
    return Wording(**words, fingerprint=f"{table['version']}-{shown}")


def code_of(salt: str, number: int, index: int) -> str:
    """Six letters that belong to one instance; without the salt nobody can tell them beforehand."""
    digest = hashlib.blake2b(f"{number}/{index}".encode(), key=salt.encode(), digest_size=8).digest()
    value = int.from_bytes(digest)
    return "".join(chr(ord("a") + value // _LETTERS**place % _LETTERS) for place in range(CODE_LENGTH))


def build_prompt(api: Api, instruction: str, instance: Instance, code: str) -> Prompt:
    """The question about one instance: messages for ``chat``, one text for ``completions``."""
    texts = {"instruction": instruction, "input": instance.input, "output": instance.output}
    words = wording()
    user = _fill(words.user, {name: _harmless(text, code) for name, text in texts.items()} | {"code": code})
    if api == "chat":
        return (Message("system", words.system), Message("user", user))
    return f"{words.system}\n\n{user}{words.answer}"


def _fill(template: str, values: Mapping[str, str]) -> str:
    """All places at once, so that what looks like a place in a text stays what it is."""
    return _PLACE.sub(lambda place: values[place[1]], template)


def _harmless(text: str, code: str) -> str:
    """The text without the code (which chance may put there) and with chat templates' marks broken by a space."""
    text = re.sub(re.escape(code), f"{code[:1]} {code[1:]}", text, flags=re.IGNORECASE)
    return without_template_marks(text).strip("\n")
