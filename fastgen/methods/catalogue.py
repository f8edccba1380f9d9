"""The methods that a run can use: fastgen's own by name, a user's file, an installed package.

A method from elsewhere is code that fastgen runs: ``--method FILE.py`` or an entry point of the group
``fastgen.methods``, with a function ``build(setup) -> Method`` (see ``docs/methods.md`` and `fastgen.methods.foreign`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from fastgen.errors import InputError
from fastgen.methods import foreign
from fastgen.methods.base import CREATION, Method, Setup, trimmed
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS, Rules
from fastgen.types import Instance, SeedTask, Span

SELF_INSTRUCT: Final = "self-instruct"
ENTRY_POINTS: Final = "fastgen.methods"


@dataclass(frozen=True, slots=True)
class Entry:
    """A method that a run can use.

    ``options`` are its own options with their defaults. ``has_parents``: what a prompt shows of the pool are the texts
    that the new instruction is made from. ``rules`` are defaults of the filter's rules that differ from
    those of Self-Instruct, whose instructions are short. ``fingerprint`` is the SHA-256 of a user's file, in
    hexadecimal, and empty for fastgen's own methods.
    """

    name: str
    summary: str
    source: str
    module: str = ""
    uses_seeds: bool = False
    needs_template: bool = False
    needs_documents: bool = False
    has_parents: bool = False
    prefers_chat: bool = True
    options: Mapping[str, object] = field(default_factory=dict)
    rules: Mapping[str, object] = field(default_factory=dict)
    fingerprint: str = ""
    path: Path | None = None

    @property
    def needs(self) -> list[str]:
        """What a run must have for it, for people."""
        said = {
            "seed tasks (--seed-tasks, default: those that ship with fastgen)": self.uses_seeds,
            "a chat template, from the server (/tokenize, /apply-template) or --pre-query TEXT": self.needs_template,
            "documents (--documents FILE)": self.needs_documents,
            "an instruct model": self.prefers_chat,
        }
        return [need for need, is_needed in said.items() if is_needed]

    @property
    def is_own(self) -> bool:
        """Whether it is one of fastgen's own."""
        return not self.fingerprint

    def own(self, options: Mapping[str, object]) -> dict[str, object]:
        """Those options that the method has. A user's method gets all."""
        return {name: value for name, value in options.items() if not self.is_own or name in self.options}

    def build(self, setup: Setup) -> Method:
        """The method for a run.

        :raises InputError: a user's method cannot be built.
        """
        if self.is_own:
            method: Method = importlib.import_module(self.module).build(setup)
            return method
        assert self.path is not None, "a method from elsewhere has a file"  # noqa: S101 - as it is found
        return foreign.load(self.path, self.name, setup)


RULES_FOR_LONG_TEXTS: Final[Mapping[str, float]] = {"max_words": 1000, "max_characters": 8000}
"""Defaults of the filter's rules for methods whose instructions may hold code or a text to work on."""
METHODS: Final[Mapping[str, Entry]] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Entry(
                SELF_INSTRUCT,
                "instructions from examples, classification, instances; works with a base model",
                "Wang et al., ACL 2023, arXiv 2212.10560",
                uses_seeds=True,
                prefers_chat=False,
            ),
            Entry(
                "self-instruct-chat",
                "instructions with their inputs from examples, then answers as ordinary chat turns",
                "after Wang et al., ACL 2023, arXiv 2212.10560",
                "fastgen.methods.self_instruct_chat",
                uses_seeds=True,
                options={"num_prompt_instructions": 8, "num_machine_instructions": 2},
                rules=RULES_FOR_LONG_TEXTS,
            ),
            Entry(
                "magpie",
                "a chat model writes the users' messages itself, then answers them; no seeds, conversations of turns",
                "Xu et al., 2024, arXiv 2406.08464",
                "fastgen.methods.magpie",
                needs_template=True,
                options={"turns": 1},
                rules=RULES_FOR_LONG_TEXTS,
            ),
            Entry(
                "evol",
                "rewrites tasks harder or broader, round after round, and answers them",
                "Xu et al., ICLR 2024, arXiv 2304.12244",
                "fastgen.methods.evol",
                uses_seeds=True,
                has_parents=True,
                options={"rounds": 4},
                rules={**RULES_FOR_LONG_TEXTS, "threshold": 0.9},  # a rewriting shares most words with its parent
            ),
            Entry(
                "backtranslate",
                "writes the instruction that a document answers, and keeps the pairs with a good score",
                "Li et al., ICLR 2024, arXiv 2308.06259",
                "fastgen.methods.backtranslate",
                needs_documents=True,
                options={"min_score": 4, "max_document": 2048, "passes": 1},
                rules=RULES_FOR_LONG_TEXTS,
            ),
        )
    }
)
"""fastgen's own methods, by name."""


def find_method(name: str) -> Entry:
    """The method of a name, of an installed package's entry point, or in a file whose name ends in ``.py``.

    :raises InputError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    if name.endswith(".py"):
        path = Path(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--method {name}: cannot be read ({error.strerror}); check the path") from None
        if path.stem in METHODS:
            raise InputError(f"--method {name}: {path.stem} is a method of fastgen's; give the file another name")
        digest = hashlib.sha256(content).hexdigest()
        return Entry(path.stem, "a method of yours", str(path), uses_seeds=True, fingerprint=digest, path=path)
    found = [one for one in entry_points(group=ENTRY_POINTS) if one.name == name]
    if found:
        origin = importlib.util.find_spec(found[0].module)
        if origin is not None and origin.origin is not None:
            path = Path(origin.origin)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return Entry(name, "from an installed package", found[0].value, "", True, fingerprint=digest, path=path)
    others = sorted({*METHODS, *(one.name for one in entry_points(group=ENTRY_POINTS))})
    listed = ", ".join(others)
    raise InputError(f"--method {name}: is no method; choose one of {listed}, or name a file that ends in .py")


def outline(entry: Entry) -> dict[str, Any]:
    """One of fastgen's own methods as JSON values: steps with roles and main sampling figures, options, needs."""
    if entry.name == SELF_INSTRUCT:
        prompts = load_prompts("completions")
        method = self_instruct(PRESETS["default"], (), prompts, SAMPLING_PRESETS["default"])
    else:
        seed = SeedTask("seed", "", "Name three rivers.", (Instance("", "Rhine, Nile, Amazon"),), False)
        method = entry.build(Setup(api="chat", seeds=(seed,), options=entry.options, documents=("A text.",)))
    roles = {CREATION: method.creation.role} | {step.name: step.role or step.name for step in method.steps}
    shown = ("temperature", "top_p", "max_tokens")
    return {
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "steps": [
            {"name": name, "role": roles[name], "sampling": {one: getattr(sampling, one) for one in shown}}
            for name, sampling in method.sampling().items()
        ],
        "options": {f"--{name.replace('_', '-')}": value for name, value in entry.options.items()},
        "needs": entry.needs,
    }


def item_text_of(method: str, rules: Rules) -> Callable[[str, Span], str]:
    """How instructions are taken out of raw completions, for a method by its name."""
    return partial(item_text, rules=rules) if method == SELF_INSTRUCT else trimmed
