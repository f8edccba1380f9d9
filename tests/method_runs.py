"""Finished runs of methods other than Self-Instruct, written commit by commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson

from fastgen.generate.inputs import fingerprint
from fastgen.generate.options import JobOptions, MethodOptions, Options, ServerOptions, run_configuration, saved_values
from fastgen.methods.base import (
    Answered,
    Commit,
    Continued,
    Created,
    Drawn,
    Ended,
    Kept,
    Labelled,
    Outcome,
    Rejected,
    Rejection,
    Turn,
)
from fastgen.methods.catalogue import METHODS
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct.seeds import parse_seed_tasks, seed_fingerprint
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Completion, Span
from tests.export_help import SEEDS

DOCUMENTS = ("Salt dissolves in water.\n\nIt is then dissociated.", "Bread rises because yeast makes gas.")
CODE = "Explain what this prints:\n\n```python\nfor n in range(3):\n    print(n)\n```"
"""An instruction of several lines."""
INPUT = "Line one.\nLine two."
CHAT = (
    Turn(CODE, "It prints 0, 1 and 2.", "range stops before 3."),
    Turn("And with range(1, 3)?", "Then it prints 1 and 2.", ""),
    Turn(
        "Thanks, but why not 3?",
        "The end of a range is not part of it, so its length is the difference.",
        "Half-open.",
    ),
)


class Writer:
    """The commits of a run, each in a request of its own."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []

    def create(
        self, number: int, text: str, given: str = "", *, shown: Sequence[int] = (), drawn: Drawn | None = None
    ) -> None:
        """Keep an instruction."""
        start = text.index(given) if given else 0
        span = None if not given else (start, start + len(given))
        end = start if given else len(text)
        while given and text[end - 1].isspace():
            end -= 1
        kept = Kept((0, end), number, None, (), span)
        self._add("instruction", None, text, Created((kept,), ()), shown=shown, drawn=drawn)

    def reject(self, text: str, rule: str) -> None:
        """Reject one."""
        self._add("instruction", None, text, Created((), (Rejection((0, len(text)), rule),)))

    def say(self, step: str, number: int, text: str, outcome: Outcome, *, end: Ended = "", thought: str = "") -> None:
        """Commit about an instruction."""
        self._add(step, number, text, outcome, end=end, thought=thought)

    def answer(self, step: str, number: int, text: str, *, end: Ended = "complete", thought: str = "") -> None:
        """Answer it."""
        whole: Span = (0, len(text))
        self.say(step, number, text, Answered((((0, 0), whole),)), end=end, thought=thought)

    def _add(
        self,
        step: str,
        subject: int | None,
        text: str,
        outcome: Outcome,
        *,
        end: Ended = "",
        thought: str = "",
        shown: Sequence[int] = (),
        drawn: Drawn | None = None,
    ) -> None:
        completion = Completion(text, "stop", 40, 20, thought)
        number, ended = len(self.commits), None if subject is None else end
        self.commits.append(
            Commit(number, 0, step, subject, tuple(shown), completion, outcome, 1e9, drawn=drawn, end=ended)
        )


def _chat() -> Writer:
    writer = Writer()
    writer.create(0, f"Count the words.\n{INPUT}", INPUT, shown=(0, 1))
    writer.create(1, CODE, shown=(2, 4))
    writer.answer("answer", 0, "Four words.", thought="One, two ...")
    writer.answer("answer", 1, "It prints 0, 1 and 2.")
    return writer


def _magpie() -> Writer:
    writer = Writer()
    writer.create(0, CODE, drawn={"topic": "code", "persona": "a novice"})
    writer.create(1, "Name a river in Spain.", drawn={"topic": "rivers", "persona": "a novice"})
    writer.answer("answer", 0, CHAT[0].assistant, end="", thought=CHAT[0].reasoning)
    writer.answer("answer", 1, "The Ebro.", end="")
    writer.say("follow_up_2", 1, "Bye.", Rejected("takes_leave"), end="complete")
    for number, turn in enumerate(CHAT[1:], 2):
        writer.say(f"follow_up_{number}", 0, turn.user, Continued((0, len(turn.user))))
        last: Ended = "complete" if number == len(CHAT) else ""
        writer.answer(f"answer_{number}", 0, turn.assistant, end=last, thought=turn.reasoning)
    return writer


def _evol() -> Writer:
    writer = Writer()
    writer.create(0, CODE, shown=(3,), drawn={"operation": "concretise", "round": "1"})
    writer.say("compare", 0, "Not equal", Labelled("different"))
    writer.answer("answer", 0, "It prints 0, 1 and 2.")
    writer.create(1, "Say it in French, within ten words.", shown=(4,), drawn={"operation": "deepen", "round": "2"})
    writer.say("compare", 1, "Not equal", Labelled("different"))
    writer.answer("answer", 1, "Cela affiche 0, 1 et 2.")
    writer.create(2, "Say the same again.", shown=(5,), drawn={"operation": "deepen", "round": "3"})
    writer.say("compare", 2, "Equal", Rejected("no_information_gain", "equal"), end="empty")
    writer.reject("Too short.", "too_short")
    return writer


def _backtranslate() -> Writer:
    writer = Writer()
    for number, text in enumerate(("Explain how salt\ndissolves.", "Why does bread rise?", "Why is bread soft?")):
        writer.create(number, text, shown=(number % 2 if number < 2 else 3,))  # 3: the second pass over two documents
    writer.say("score", 0, "Score: 5", Labelled(5), end="complete")
    writer.say("score", 1, "Score: 2", Rejected("low_score", 2), end="empty")
    writer.say("score", 2, "Score: 4", Labelled(4), end="complete")
    return writer


_WRITERS = {"self-instruct-chat": _chat, "magpie": _magpie, "evol": _evol, "backtranslate": _backtranslate}
OTHER_METHODS = tuple(_WRITERS)


def make_method_run(path: Path, name: str, more: Mapping[str, str] | None = None) -> Path:
    """A finished run of one of fastgen's other methods. ``more`` is the rest of the configuration."""
    entry = METHODS[name]
    writer = _WRITERS[name]()
    seeds = b"".join(orjson.dumps(seed) + b"\n" for seed in SEEDS) if entry.uses_seeds else b""
    texts: dict[str, Sequence[str]] = {"documents": DOCUMENTS if entry.needs_documents else ()}
    if name == "magpie":
        texts |= {"topics": ("code", "rivers"), "personas": ("a novice",)}
    method = MethodOptions(method=name, turns=3 if name == "magpie" else 1)
    options = Options(
        method=method,
        server=ServerOptions(api="chat"),
        job=JobOptions(num_instructions=2),
        rules=replace(PRESETS["default"], max_words=1000, max_characters=8000),
    )
    folder = RunFolder(path)
    store = Store(folder)
    tasks = parse_seed_tasks(path, seeds) if seeds else ()
    contents = {n: fingerprint(given) for n, given in texts.items()} | {"seed_tasks": seed_fingerprint(tasks)}
    what = run_configuration(options, model="some-model", contents=contents) | dict(more or {})
    if entry.uses_seeds:
        folder.seeds_path.write_bytes(seeds)
    store.begin(what, saved_values(options), "1.2.3")
    list(store.replay())
    folder.save_inputs(seeds, {}, texts)
    store.append(writer.commits)
    for commit in writer.commits:
        store.ledger.apply(commit)
    store.close()
    return path
