"""Every promise of a run holds for every method: kills, faults, refilter, audit, checkpoints, resumes, bad input.

The runs are separate processes (see `tests.generate.test_faults`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from fastgen.generate.checkpoint import load_checkpoint
from fastgen.generate.options import RefilterOptions
from fastgen.generate.refilter import _method_of
from fastgen.methods.base import CREATION, Commit, Created
from fastgen.methods.catalogue import find_method
from fastgen.methods.plan import Plan
from fastgen.methods.state import COMPLETE, EMPTY
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.store.reader import open_run
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Failure
from tests.generate.test_faults import (
    EXACT,
    _compiled,
    _ended,
    call,
    commits,
    eager_checkpoints,
    export,
    faults_of,
    generate,
    server,
    small_segments,
    written,
)

__all__ = ["_compiled", "_ended"]  # fixtures

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "own_method.py"
METHODS: Final = {
    "self-instruct": (),
    "self-instruct-chat": (),
    "magpie": (),
    "magpie-3": ("--turns", "3"),
    "evol": ("--rounds", "3"),
    "backtranslate": ("--documents", "documents.jsonl"),
    "own_method": ("--topics", "topics.txt"),
}
DOCUMENTS: Final = 3000
each_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents and topics."""
    folder, draws = tmp_path_factory.mktemp("inputs"), random.Random(7)
    words = [f"{a}{b}" for a in ("mar", "tol", "ven", "sik", "dra", "pel") for b in ("ket", "una", "ost", "ir", "em")]
    rows = [{"text": f"Document {n}. " + " ".join(draws.choices(words, k=60)) + "."} for n in range(DOCUMENTS)]
    (folder / "documents.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (folder / "topics.txt").write_text("\n".join(" ".join(draws.choices(words, k=3)) for _ in range(500)))
    return folder


@pytest.fixture
def url() -> Iterator[str]:
    """A server that fails now and then."""
    with server("--fault-rate", "0.05", "--latency", "0.002", "--seed", "5") as found:
        yield found


def flags(name: str, inputs: Path) -> list[str]:
    own = [str(inputs / flag) if flag.endswith(("jsonl", "txt")) else flag for flag in METHODS[name]]
    return ["--method", str(EXAMPLE) if name == "own_method" else name.removesuffix("-3"), *own]


def plan_of(run: Path) -> Plan:
    """A fresh plan of the run's method."""
    opened = open_run(run)
    entry = find_method(RunFolder(run).header().options["method"])
    method = _method_of(opened, RefilterOptions(rules=opened.rules), entry)
    similarity = {name: opened.configuration[name] for name in ("threshold", "reject_at", "tokenizer", "index")}
    return Plan(method, NoveltyFilter(**similarity), target=10**9, clock=lambda: 0.0)


def state_of(run: Path, *, checkpoint: bool = False) -> tuple[Any, ...]:
    """All that a resume makes of the folder, which does not change."""
    copy = run.with_name(f"{run.name}-read")
    shutil.copytree(run, copy)
    try:
        plan, store = plan_of(copy), Store(RunFolder(copy))
        if not checkpoint:
            (copy / "checkpoint.npz").unlink(missing_ok=True)
        used = load_checkpoint(store, plan)
        assert (used is not None) == checkpoint
        store.close()
    finally:
        shutil.rmtree(copy)
    state = plan.state
    columns = [bytes(column.data) for column in state.pool.columns()]
    counts = {key: value for key, value in store.ledger.as_dict().items() if not key.endswith("_s")}
    return (
        orjson.dumps(state.folded()),
        bytes(state.shown_counts()),
        columns,
        counts,
    )


def assert_whole(run: Path, before: list[Commit]) -> None:
    """Nothing was lost, changed or doubled, and every instruction ended as the log says."""
    now, plan = commits(run), plan_of(run)
    assert now[: len(before)] == before
    assert max(Counter((one.request, one.choice) for one in now).values()) == 1
    numbers = [kept.number for one in now if isinstance(one.outcome, Created) for kept in one.outcome.kept]
    assert numbers == [*range(len(numbers))]
    steps: dict[int, list[str]] = {number: [] for number in numbers}
    ends: dict[int, str] = {}
    for one in now:
        if one.subject is None:
            continue
        assert one.subject not in ends, "nothing is asked about an instruction that has ended"
        if not isinstance(one.outcome, Failure):
            steps[one.subject].append(one.step)
        if one.ended:
            ends[one.subject] = one.ended
    names = [step.name for step in plan.method.steps]
    assert all(passed == names[: len(passed)] for passed in steps.values())
    plan.resume(now)
    for number in numbers:
        expected = {"complete": COMPLETE, "empty": EMPTY}.get(ends.get(number, ""), len(steps[number]))
        assert plan.state.pool.state(number) == expected
    if plan.method.documents:
        used = {(one.request, one.demonstrations) for one in now if isinstance(one.outcome, Created)}
        assert len(used) == len({document for _, document in used}), "a document brought something in two requests"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return export(run, "--format", "raw")


# -- kills, faults, exact targets --------------------------------------------------------------------------------------


@each_method
def test_killed_under_a_faulty_server_a_run_loses_and_doubles_nothing_and_reaches_its_target_exactly(
    name: str, inputs: Path, url: str, tmp_path: Path
) -> None:
    run, moments, before = tmp_path / "run", random.Random(name), list[Commit]()
    own = (*flags(name, inputs), "--concurrency", "16", *EXACT)
    for kill in range(4):
        job = generate(run, url, 10**6, *own, prepare=eager_checkpoints)
        job.wait_for_bytes(run, written(run) + moments.randrange(3_000, 20_000))
        job.kill()
        if job.process.exitcode != -signal.SIGKILL:
            assert name == "backtranslate", job.said.read_text()  # its documents are used up
        now = commits(run)
        assert now[: len(before)] == before
        before = now
        if kill == 1 and now:
            job = generate(run, url, 10**6, *own, prepare=small_segments)
            job.wait_for_bytes(run, written(run) + 5_000)
            if job.process.is_alive() and job.process.pid is not None:
                os.kill(job.process.pid, signal.SIGINT)
                code, said = job.ended()
                assert code in {130, 0}, said
            before = commits(run)
    assert before
    target = RunFolder(run).ledger().complete + 7
    code, said = generate(run, url, target, *own, prepare=eager_checkpoints).ended()
    assert code == 0, said
    assert len(rows_of(run)) == RunFolder(run).ledger().complete == target
    assert_whole(run, before)
    assert (run / "checkpoint.npz").exists()
    assert state_of(run) == state_of(run, checkpoint=True)


# -- rebuilt, checked, continued ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a method; made once."""
    folder, runs = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in runs:
            run = folder / name
            own = (*flags(name, inputs), "--samples-per-prompt", "4", "--concurrency", "16", *EXACT)
            with server("--fault-rate", "0.05", "--latency", "0.002", "--seed", "5") as url:
                code, said = generate(run, url, 40, *own).ended()
            assert code == 0, said
            runs[name] = run
        return runs[name]

    return make


@each_method
def test_rebuilt_under_the_same_rules_a_run_is_the_same_and_under_others_it_continues(
    name: str, made: Callable[[str], Path], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, same, other = made(name), tmp_path / "same", tmp_path / "other"
    assert_whole(run, [])
    assert call("refilter", "--run-dir", run, "--output", same) == 0
    assert commits(same) == commits(run)
    assert open_run(same).configuration == open_run(run).configuration
    assert state_of(same) == state_of(run)
    assert rows_of(same) == rows_of(run)
    assert call("refilter", "--run-dir", run, "--output", other, "--threshold", "0.5", "--max-words", "30") == 0
    kept = RunFolder(other).ledger().kept
    assert 0 < kept <= RunFolder(run).ledger().kept
    code, said = generate(other, url, 45).ended()
    assert code == 0, said
    assert len(rows_of(other)) == 45
    assert_whole(other, [])
    capsys.readouterr()
    for folder in (run, other):
        assert call("audit", "--run-dir", folder, "--rate", "1") == 0
        said_ = capsys.readouterr().out
        assert "missed neighbours: 0" in said_
        assert "wrong rejections: 0" in said_
        assert call("status", "--run-dir", folder) == 0
        shown = capsys.readouterr().out
        assert all(step.name in shown for step in plan_of(folder).method.steps)


@each_method
def test_a_dry_run_leaves_nothing_and_the_forbidden_are_never_kept(
    name: str, made: Callable[[str], Path], inputs: Path, url: str, tmp_path: Path
) -> None:
    texts = [row["instruction"] for row in rows_of(made(name))][:20]
    forbidden = tmp_path / "forbidden.jsonl"
    forbidden.write_bytes(b"".join(orjson.dumps({"instruction": text}) + b"\n" for text in texts))
    run, own = tmp_path / "run", (*flags(name, inputs), "--concurrency", "16")
    code, said = generate(run, url, 1000, *own, "--dry-run").ended()
    assert code == 0, said
    assert any(line.startswith("1,000 instructions, from a probe of") for line in said)
    assert not run.exists()
    code, said = generate(run, url, 10, *own, *EXACT, "--decontaminate", str(forbidden)).ended()
    assert code == 0, said
    assert not {*texts} & {row["instruction"] for row in rows_of(run)}


def test_comparisons_of_a_base_model_share_requests(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with server("--latency", "0.002") as url:
        own = (*flags("evol", inputs), "--api", "completions", "--samples-per-prompt", "4")
        code, said = generate(run, url, 20, *own, "--classification-batch", "4", *EXACT).ended()
    assert code == 0, said
    assert_whole(run, [])
    shared = Counter(one.request for one in commits(run) if one.step == "compare")
    assert max(shared.values()) > 1


# -- what is used up ---------------------------------------------------------------------------------------------------


def test_a_run_whose_documents_are_used_up_ends_well_and_each_was_used_once(
    inputs: Path, url: str, tmp_path: Path
) -> None:
    run, few = tmp_path / "run", tmp_path / "few.jsonl"
    few.write_bytes(b"".join((inputs / "documents.jsonl").read_bytes().splitlines(keepends=True)[:60]))
    own = ("--method", "backtranslate", "--documents", str(few), "--samples-per-prompt", "2", *EXACT)
    for _ in range(3):
        job = generate(run, url, 1000, *own, "--concurrency", "8")
        before = written(run)
        job.wait_for_bytes(run, before + 4_000)
        job.kill()
    for _ in range(2):  # the same command again ends the same way
        code, said = generate(run, url, 1000, *own).ended()
        assert code == 0, said
        complete = RunFolder(run).ledger().complete
        assert said[-1] == f"the documents are used up: {complete:,} of 1,000 instructions complete in {run}"
    asked = {one.request: one.demonstrations for one in commits(run) if one.step == CREATION}
    assert sorted(asked.values()) == [(number,) for number in range(60)]


def own_method(path: Path, *changes: tuple[str, str]) -> Path:
    text = EXAMPLE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_a_users_method_that_has_nothing_more_to_ask_ends_well(inputs: Path, url: str, tmp_path: Path) -> None:
    ask = "def ask_question(draw: base.Draw) -> base.Ask:\n"
    mine = own_method(tmp_path / "mine.py", (ask, f"{ask}        if draw.number > 20:\n            return None\n"))
    own = ("--method", str(mine), "--topics", str(inputs / "topics.txt"), *EXACT)
    code, said = generate(tmp_path / "run", url, 1000, *own).ended()
    assert code == 0, said
    assert said[-1].startswith("--method mine has nothing more to ask for: ")


# -- too long for the model --------------------------------------------------------------------------------------------


def test_a_conversation_that_outgrows_the_context_keeps_its_turns(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sampling = ("--step-sampling", "instruction.max-tokens=80", "--step-sampling", "answer.max-tokens=300")
    with server("--max-model-len", "420") as url:
        own = ("--method", "magpie", "--turns", "8", *sampling, "--concurrency", "64", *EXACT)
        code, said = generate(run, url, 150, *own).ended()
    assert code == 0, said
    assert_whole(run, [])
    refused = [one for one in commits(run) if isinstance(one.outcome, Failure)]
    assert len(refused) > 64
    assert {one.ended for one in refused if one.subject is not None} == {"complete"}
    assert max(Counter(one.subject for one in refused if one.subject is not None).values()) == 1


def test_a_step_that_is_always_refused_stops_the_run_with_its_name_and_a_remedy(inputs: Path, tmp_path: Path) -> None:
    mine = own_method(tmp_path / "mine.py", ("lambda q: ask(q.text)", "lambda q: ask(q.text + ' and more' * 900)"))
    own = ("--method", str(mine), "--topics", str(inputs / "topics.txt"), "--concurrency", "8", *EXACT)
    with server("--max-model-len", "700") as url:
        code, said = generate(tmp_path / "run", url, 50, *own).ended()
    assert code in {2, 3}, said
    assert "answer: the server refused the last " in said[-1]
    assert "lower --step-sampling answer.max-tokens=N, or use a model with a longer context" in said[-1]


# -- roles -------------------------------------------------------------------------------------------------------------


@each_method
def test_each_role_has_its_server_and_a_resume_may_change_the_urls_but_not_the_models(
    name: str, inputs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with server("--model", "writer") as one, server("--model", "other") as two, server("--model", "other") as three:
        role = plan_role(name)
        own = (*flags(name, inputs), *EXACT)
        code, said = generate(run, one, 10, *own, "--role", f"{role}={two},other").ended()
        assert code == 0, said
        last = {choice.step for choice in commits(run)} - {CREATION}
        assert last
        asked = faults_of(two)["requests"]
        assert asked > 0
        assert open_run(run).configuration[f"{role}_model"] == "other"
        assert open_run(run).configuration["model"] == "writer"
        code, said = generate(run, one, 14, "--role", f"{role}={three},other").ended()
        assert code == 0, said
        assert faults_of(two)["requests"] == asked
        code, said = generate(run, one, 16, "--role", f"{role}={one},writer").ended()
        assert code == 2, said
        code, said = generate(tmp_path / "no", one, 10, *own, "--role", f"nobody={two},other").ended()
        assert code == 2
        assert "--role nobody" in said[-1]
        assert role in said[-1]
        assert not (tmp_path / "no").exists() or not RunFolder(tmp_path / "no").exists()


def plan_role(name: str) -> str:
    return {"self-instruct": "instance", "backtranslate": "score"}.get(name, "answer")


# -- a resume that would change what is made ---------------------------------------------------------------------------

CHANGES: Final = {
    "self-instruct": (("--num-prompt-instructions", "6"), "--num-prompt-instructions"),
    "self-instruct-chat": (("--num-machine-instructions", "3"), "--num-machine-instructions"),
    "magpie": (("--turns", "2"), "--turns"),
    "magpie-3": (("--topics", "other.txt"), "--topics"),
    "evol": (("--rounds", "2"), "--rounds"),
    "backtranslate": (("--documents", "other.jsonl"), "--documents"),
    "own_method": (("--personas", "other.txt"), "--personas"),
}


@each_method
def test_a_resume_with_other_options_or_another_method_is_refused_by_the_flag(
    name: str, made: Callable[[str], Path], inputs: Path, tmp_path: Path
) -> None:
    run = made(name)
    (tmp_path / "other.txt").write_text("bees\n")
    (tmp_path / "other.jsonl").write_text('{"text": "%s"}\n' % ("A short text about bees. " * 20))
    changed, flag = CHANGES[name]
    given = [str(tmp_path / one) if one.startswith("other") else one for one in changed]
    code, said = generate(run, "http://127.0.0.1:9", 50, *given, said=tmp_path / "a").ended()
    assert (code, len(said)) == (2, 1), said
    assert flag in said[0]
    assert "leave that as it was, or name a new run folder" in said[0]
    for other in ("self-instruct", "magpie", "evol", "backtranslate"):
        if other != name.removesuffix("-3"):
            code, said = generate(run, "http://127.0.0.1:9", 50, "--method", other, said=tmp_path / "b").ended()
            assert (code, len(said)) == (2, 1), said
            assert f"--method {name.removesuffix('-3')} (not {other})" in said[0]


def test_a_changed_method_file_is_refused_and_a_refilter_takes_the_run_over(
    inputs: Path, url: str, tmp_path: Path
) -> None:
    run, new, mine = tmp_path / "run", tmp_path / "new", own_method(tmp_path / "mine.py")
    own = ("--method", str(mine), "--topics", str(inputs / "topics.txt"), *EXACT)
    assert generate(run, url, 20, *own).ended()[0] == 0
    own_method(mine, ('"too_easy"', '"far_too_easy"'))
    code, said = generate(run, url, 25, *own).ended()
    assert (code, len(said)) == (2, 1), said
    assert "other contents of --method" in said[0]
    assert call("refilter", "--run-dir", run, "--output", new) == 0
    code, said = generate(new, url, 25).ended()
    assert code == 0, said
    assert len(rows_of(new)) == 25
    assert_whole(new, [])


def test_a_magpie_run_keeps_its_template_when_the_server_no_longer_tells_it(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    own = (*flags("magpie-3", inputs), *EXACT)
    with server() as url, server("--no-tokenize") as mute:
        code, said = generate(tmp_path / "mute", mute, 5, *own).ended()
        assert code == 2, said
        assert "--pre-query" in said[-1]
        assert generate(run, url, 5, *own).ended()[0] == 0
        code, said = generate(run, mute, 10).ended()
        assert code == 0, said
        query = ("--pre-query", "<|im_start|>user\n")
        code, said = generate(tmp_path / "turns", mute, 5, *own, *query).ended()
        assert code == 2, said
        assert "--turns 3: only the beginning of the model's chat template is known" in said[-1]
        code, said = generate(tmp_path / "given", mute, 5, "--method", "magpie", *query, *EXACT).ended()
        assert code == 0, said
        assert generate(tmp_path / "given", mute, 8).ended()[0] == 0
        assert len(rows_of(tmp_path / "given")) == 8


# -- bad input ---------------------------------------------------------------------------------------------------------

BROKEN: Final = {
    "syntax": (("def ask(", "def ask((("), "the file: SyntaxError"),
    "import": (("import re\n", "import re\nimport no_such_module\n"), "the file: ModuleNotFoundError"),
    "exit": (("import re\n", "import re\nraise SystemExit(0)\n"), "the file: SystemExit"),
    "loops": (("import re\n", "import re\nwhile True: pass\n"), "the file: TimeoutError"),
    "build": (("    def ask_question", "    1 / 0\n\n    def ask_question"), "build: ZeroDivisionError"),
    "build loops": (("    def ask_question", "    while True: pass\n\n    def ask_question"), "build: TimeoutError"),
    "nothing": (("    return base.Method(", "    return (lambda **_: None)("), "build: TypeError: gave NoneType None"),
    "ask": (("    return base.Ask((Message", "    raise KeyError\n    return base.Ask((Message"), "KeyError"),
    "prompt": (('base.Ask((Message("user", text),)', "base.Ask(3"), "instruction: TypeError: the prompt is int 3"),
    "read": (("    start, end = written(completion)", "    start, end = None"), "instruction: TypeError"),
    "rating": (("    if digit is None:", "    if digit[0]:"), "difficulty: TypeError"),
    "label": (
        ("else base.Labelled(int(digit[0]))", "else base.Labelled([])"),
        "difficulty: TypeError: the label is list",
    ),
    "answer": (("    span = written(completion)", "    return None\n    span = 0"), "answer: TypeError: gave NoneType"),
    "span": (("base.Answered((((0, 0), span),))", "base.Answered((((0, 0), (0, 10**9)),))"), "answer: ValueError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_method_file_is_named_with_step_and_line_before_anything_is_started(kind: str, tmp_path: Path) -> None:
    change, expected = BROKEN[kind]
    mine = own_method(tmp_path / "mine.py", change)
    run = tmp_path / "run"
    prepare = short_rehearsal if "loops" in kind else dict[str, str]
    code, said = generate(run, "http://127.0.0.1:9", 5, "--method", str(mine), prepare=prepare).ended()
    assert (code, len(said)) == (2, 1), said
    assert expected in said[0]
    assert f"--method {mine}:" in said[0]
    assert not (run / "run.json").exists()


def short_rehearsal() -> None:
    """A method that loops is found at once."""
    import fastgen.methods.foreign

    fastgen.methods.foreign.BUILD_S = fastgen.methods.foreign.REHEARSAL_S = 0.2


def test_a_method_file_that_fails_later_costs_nothing_that_was_committed(
    inputs: Path, url: str, tmp_path: Path
) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    fails = ("    span = written(completion)", "    span = written(completion)\n    assert subject.number < 15")
    mine = own_method(
        tmp_path / "mine.py",
        fails,
        ("def read_answer(completion: Completion, _:", "def read_answer(completion: Completion, subject:"),
    )
    own = ("--method", str(mine), "--topics", str(inputs / "topics.txt"), "--concurrency", "4", *EXACT)
    code, said = generate(run, url, 100, *own).ended()
    assert code == 2, said
    assert f"--method {mine}:" in said[-1]
    assert "answer: AssertionError" in said[-1]
    assert f"fastgen refilter --run-dir {run} --output NEW" in said[-1]
    kept = RunFolder(run).ledger().complete
    assert kept > 5
    own_method(mine)
    assert call("refilter", "--run-dir", run, "--output", new) == 0
    assert RunFolder(new).ledger().complete == kept
    code, said = generate(new, url, 30).ended()
    assert code == 0, said
    assert len(rows_of(new)) == 30


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--method", "magpi"), "self-instruct, self-instruct-chat"),
        (("--method", "no.py"), "no.py: cannot be read"),
        (("--method", "evol", "--step-sampling", "answers.temperature=1"), "instruction, compare, answer"),
        (("--method", "magpie", "--documents", "x.jsonl"), "--documents: belongs to --method backtranslate"),
        (("--method", "backtranslate"), "name a file of them with --documents"),
        (("--method", "evol", "--turns", "2"), "--turns: belongs to --method magpie"),
        (("--method", "magpie", "--preset", "paper"), "--preset paper: belongs to --method self-instruct"),
        (("--model-preset", "llama9"), "llama3"),
    ],
)
def test_what_does_not_exist_or_fit_is_answered_with_what_does(
    given: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    code, said = generate(tmp_path / "run", "http://127.0.0.1:9", 5, *given).ended()
    assert code == 2, said
    assert expected in "\n".join(said)


@pytest.mark.parametrize("flag", ["--topics", "--personas", "--documents"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        (b"", ""),
        (b"\n\n  \n", ""),
        (b"\xff\xfd\n", "UTF-8"),
        (b'{"body": "a text"}\n', "text"),
        (b"x" * 9000 + b"\n", ""),
    ],
)
def test_a_file_that_cannot_be_used_is_named(flag: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / ("list.txt" if flag != "--documents" else "list.jsonl")
    if content is not None:
        path.write_bytes(content)
    if content == b'{"body": "a text"}\n' and flag != "--documents":
        return  # a line like others
    method = "backtranslate" if flag == "--documents" else "magpie"
    code, said = generate(tmp_path / "run", "http://127.0.0.1:9", 5, "--method", method, flag, str(path)).ended()
    assert (code, len(said)) == (2, 1), said
    assert str(path) in said[0]
    assert expected in said[0]
