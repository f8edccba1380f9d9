"""Methods by name, from files and from packages; and what a user is told about the mistakes in one."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from fastgen.errors import InputError
from fastgen.methods import foreign
from fastgen.methods.base import Method, Setup, Subject
from fastgen.methods.catalogue import METHODS, find_method
from fastgen.methods.foreign import rehearse
from fastgen.types import Completion, Instance, Request, SeedTask
from tests.methods import declared

SEEDS = tuple(
    SeedTask(f"s{n}", f"s{n}", f"Tell the long story number {n}.", (Instance("", "x"),), False) for n in range(3)
)
WHOLE = """
from fastgen.methods.base import Answered, Ask, Continued, Creation, Item, Labelled, Method, Rejected, Step
from fastgen.types import Message, Sampling

S = Sampling(0.7, 0.9, 64)

def create(draw):
    return Ask("Write a task.", draw.demonstrations(1, 0))

def read(completion, request):
    return [Item((0, len(completion.text)), completion.text)]

def ask(subject):
    return Ask(subject.text)

def answer(completion, subject):
    return Answered((((0, 0), (0, len(completion.text))),))

def build(setup):
    return Method(
        name="mine",
        creation=Creation(sampling=S, ask=create, read=read),
        steps=(Step(name="answer", sampling=S, ask=ask, read=answer),),
        seeds=setup.seeds,
    )
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the whole method with some of its text replaced."""

    def replaced(old: str = "", new: str = "") -> Path:
        assert not old or WHOLE.count(old) == 1
        path = tmp_path / "mine.py"
        path.write_text(WHOLE.replace(old, new) if old else WHOLE)
        return path

    return replaced


def tried(path: Path, api: Literal["completions", "chat"] = "completions") -> Method:
    method = find_method(str(path)).build(Setup(seeds=SEEDS, api=api))
    rehearse(method)
    return method


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


# -- by name -----------------------------------------------------------------------------------------------------------


def test_a_name_that_there_is_not_lists_what_there_is() -> None:
    with pytest.raises(InputError) as caught:
        find_method("self-instrukt")
    known = ", ".join(sorted(METHODS))
    said = f"--method self-instrukt: is no method; choose one of {known}, or name a file that ends in .py"
    assert str(caught.value) == said


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_of_the_list_says_what_it_does_and_where_it_is_from(name: str) -> None:
    entry = find_method(name)
    assert entry.is_own
    assert entry.name == name
    assert entry.summary
    assert entry.source


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--method .*/none\.py: cannot be read \(No such file or directory\)"):
        find_method(str(tmp_path / "none.py"))


def test_a_package_offers_a_method_by_an_entry_point(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    information = tmp_path / "fastgen_mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fastgen-mine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[fastgen.methods]\nour-own = mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = find_method("our-own")
    assert (entry.name, entry.is_own, entry.path) == ("our-own", False, path)
    assert re.fullmatch("[0-9a-f]{64}", entry.fingerprint)
    method = entry.build(Setup(seeds=SEEDS))
    rehearse(method)
    assert method.name == "our-own"
    assert "mine" not in sys.modules, "the package's own module is not imported under its name"
    with pytest.raises(InputError, match="our-own"):
        find_method("another")


def test_a_file_is_known_by_its_name_and_content(write: Callable[..., Path]) -> None:
    before = find_method(str(write()))
    assert (before.name, before.is_own) == ("mine", False)
    after = find_method(str(write("Write a task.", "Write two tasks.")))
    assert after.fingerprint != before.fingerprint


# -- right ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("documents", [(), ("A document.",)])
def test_a_right_method_passes_its_rehearsal(documents: tuple[str, ...], api: Literal["completions", "chat"]) -> None:
    """Also one whose later steps need what the earlier ones bring."""
    path = Path(declared.__file__)
    setup = Setup(api=api, seeds=SEEDS, documents=documents)
    rehearse(find_method(str(path)).build(setup))
    rehearse(declared.build(setup))


def test_a_right_file_does_what_it_says(write: Callable[..., Path]) -> None:
    method = tried(write())
    step = method.steps[0]
    request = Request(0, "instruction", "", method.creation.sampling)
    assert [one.text for one in method.creation.read(Completion(" Go. ", "stop"), request)] == ["Go."]
    assert step.ask(Subject(0, "Go.")).prompt == "Go."
    assert method.step_names == ("instruction", "answer")


# -- mistakes ----------------------------------------------------------------------------------------------------------

RAISING = [
    ("S = Sampling(0.7, 0.9, 64)", "S = 1 / 0", "the file", "1 / 0", "ZeroDivisionError: division by zero"),
    ("S = Sampling(0.7, 0.9, 64)", "raise SystemExit(3)", "the file", "SystemExit", "SystemExit: 3"),
    ("    return Method(", "    setup.seeds[99]\n    return Method(", "build", "seeds[99]", "IndexError: tuple index"),
    ("draw.demonstrations(1, 0)", "draw.nothing()", "instruction", "draw.nothing", "AttributeError: 'Draw' object has"),
    (
        "return [Item(",
        "raise ValueError('a\\n\\x1b[31mb')\n    return [Item(",
        "instruction",
        "raise ",
        r"a \x1b[31mb",
    ),
    ("return Ask(subject.text)", "return Ask(subject.turns[0])", "answer", "turns[0]", "IndexError: tuple index"),
    ("return Answered(", "assert completion.text\n    return Answered(", "answer", "assert", "AssertionError"),
]


@pytest.mark.parametrize(("old", "new", "step", "at", "said"), RAISING)
def test_what_a_method_raises_is_one_line_with_file_line_and_step(
    write: Callable[..., Path], old: str, new: str, step: str, at: str, said: str
) -> None:
    path = write(old, new)
    with pytest.raises(InputError) as caught:
        tried(path)
    message = str(caught.value)
    assert message.startswith(f"--method {path}:{line_of(path, at)}: {step}: ")
    assert said in message
    assert message.endswith("fix the method")
    assert message.isprintable()


NONSENSE = [
    ("def build(setup):", "def make(setup):", "has no function build(setup)"),
    ("def build(setup):", "def build(setup:", "the file: SyntaxError: "),
    ("    return Method(", "    return 7\n    return Method(", "build: TypeError: gave int 7, not Method"),
    ('steps=(Step(name="answer", sampling=S, ask=ask, read=answer),)', "steps=()", "build() declares no step"),
    (
        'steps=(Step(name="answer", sampling=S, ask=ask, read=answer),)',
        "steps=5",
        "gives int 5 as steps; write a tuple",
    ),
    ("creation=Creation(sampling=S, ask=create, read=read)", "creation=None", "where a Creation belongs"),
    ("Creation(sampling=S,", "Creation(sampling=0.7,", "declares float 0.7 where a Sampling belongs"),
    ('Step(name="answer"', 'Step(name="The answer"', "a step is called 'The answer'"),
    ('Step(name="answer"', 'Step(name="instruction"', "a step is called 'instruction'"),
    (
        *('steps=(Step(name="answer", sampling=S, ask=ask, read=answer),)',),
        *('steps=(Step(name="answer", sampling=S, ask=ask, read=answer),) * 2', "two steps have the same name"),
    ),
    (
        'return Ask("Write a task.", draw.demonstrations(1, 0))',
        "return 'text'",
        "instruction: TypeError: gave str 'text', not Ask",
    ),
    ('Ask("Write a task."', "Ask(7", "instruction: TypeError: the prompt is int 7"),
    ("draw.demonstrations(1, 0)", "(3,)", "demonstrations are tuple (3,), not a tuple of numbers below 3"),
    ("draw.demonstrations(1, 0)", "(), {'tone': 5}", "drawn holds int 5, not a text"),
    ("return [Item((0, len(completion.text)), completion.text)]", "return None", "instruction: TypeError: "),
    ("[Item((0, len(completion.text)), completion.text)]", "['text']", "read() gave str 'text', not an Item"),
    ("Item((0, len(completion.text)),", "Item((0, 99999),", "the span (0, 99999) lies outside the completion of"),
    ("Item((0, len(completion.text)),", "Item((0, 0.5),", "the span is tuple (0, 0.5), not two whole numbers"),
    ("return Ask(subject.text)", "return subject.text", "answer: TypeError: gave str 'A task.', not Ask"),
    ("return Ask(subject.text)", "return None", "answer: TypeError: gave NoneType None, not Ask"),
    ("return Ask(subject.text)", "return Ask([Message('user', 'x')])", "answer: TypeError: the prompt is list"),
    ("return Ask(subject.text)", "return Ask('x', sampling=0.5)", "the sampling is float 0.5, not a Sampling"),
    (
        "read=answer)",
        "read=lambda completion, subject: True)",
        "answer: TypeError: gave bool True, not Labelled or Answered or",
    ),
    (
        "read=answer)",
        "read=lambda completion, subject: Answered(5))",
        "answer: TypeError: 'int' object is not iterable",
    ),
    ("read=answer)", "read=lambda completion, subject: Answered((1,)))", "answer: TypeError: "),
    (
        "((0, 0), (0, len(completion.text)))",
        "((0, 0), (5, 4))",
        "answer: ValueError: the span (5, 4) lies outside",
    ),
    ("read=answer)", "read=lambda completion, subject: Labelled([1]))", "answer: TypeError: the label is list [1]"),
    (
        "read=answer)",
        "read=lambda completion, subject: Rejected(None))",
        "answer: TypeError: the rule is NoneType None",
    ),
    (
        "read=answer)",
        "read=lambda completion, subject: Continued((-1, 0)))",
        "answer: ValueError: the span (-1, 0)",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), NONSENSE)
def test_what_a_method_must_not_return_is_one_line_with_the_file(
    write: Callable[..., Path], old: str, new: str, said: str
) -> None:
    path = write(old, new)
    with pytest.raises(InputError) as caught:
        tried(path)
    assert str(caught.value).startswith(f"--method {path}")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_batched_step_cannot_ask_with_messages(write: Callable[..., Path]) -> None:
    path = write("return Ask(subject.text)", "return Ask((Message('user', 'x'),))")
    tried(path, "chat")
    path.write_text(path.read_text().replace("read=answer)", "read=answer, is_batched=True)"))
    with pytest.raises(InputError, match="answer: TypeError: the prompt holds messages; a step with is_batched needs"):
        tried(path, "chat")


@pytest.mark.parametrize(
    ("old", "step"),
    [
        ("S = Sampling(0.7, 0.9, 64)", "the file"),
        ("    return Method(", "build"),
        ('    return Ask("Write a task."', "instruction"),
        ("    return [Item(", "instruction"),
        ("    return Ask(subject.text)", "answer"),
        ("    return Answered(", "answer"),
    ],
)
def test_a_method_that_loops_is_stopped_and_the_line_named(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, old: str, step: str
) -> None:
    monkeypatch.setattr(foreign, "BUILD_S", 0.05)
    monkeypatch.setattr(foreign, "REHEARSAL_S", 0.05)
    indent = " " * (len(old) - len(old.lstrip()))
    path = write(old, f"{indent}while True:\n{indent}    'for ever'\n{old}")
    with pytest.raises(InputError) as caught:
        tried(path)
    lines = (line_of(path, "while True"), line_of(path, "for ever"))
    assert re.match(rf"--method {path}:({lines[0]}|{lines[1]}): {step}: TimeoutError: it does not", str(caught.value))


def test_a_method_is_built_in_a_thread_as_in_the_main_one(write: Callable[..., Path]) -> None:
    built: list[Method] = []
    path = write()
    thread = threading.Thread(target=lambda: built.append(tried(path)))
    thread.start()
    thread.join()
    assert [method.name for method in built] == ["mine"]
