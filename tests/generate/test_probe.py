"""The probe of each step before a run, against every kind of model, and the sampling that models come with.

``python -m tests.generate.test_probe`` writes the tables of docs/development/probe.md anew.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from fastgen.generate.options import JobOptions, MethodOptions, Options
from fastgen.generate.probe import LEAST_INSTRUCTIONS, is_probed
from fastgen.methods.base import Commit
from fastgen.methods.catalogue import METHODS
from fastgen.simulator.answers import Writer
from fastgen.simulator.chat import TEMPLATES, AnswerForm, Schemas, ServedModel
from fastgen.simulator.faults import Event, Fault, Reply
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.run_folder import RunFolder
from tests.command_help import Said, fastgen

DOCS: Final = Path(__file__).parents[2] / "docs" / "development" / "probe.md"
ALWAYS = partial(ServedModel, switches_thinking=False)
KINDS: Final = {
    "base": ServedModel(template=None),
    "plain chat": ServedModel(),
    "`<think>`, closed": ServedModel(form=AnswerForm.THINK),
    "`<think>`, closed, always": ALWAYS(form=AnswerForm.THINK),
    "`<think>`, unclosed": ServedModel(form=AnswerForm.UNCLOSED_THINK),
    "`<think>`, unclosed, always": ALWAYS(form=AnswerForm.UNCLOSED_THINK),
    "`content: null`": ServedModel(form=AnswerForm.NULL_CONTENT),
    "`content: null`, always": ALWAYS(form=AnswerForm.NULL_CONTENT),
    "`reasoning_content`": ServedModel(form=AnswerForm.REASONING_CONTENT),
    "`reasoning`": ServedModel(form=AnswerForm.REASONING),
    "harmony (gpt-oss)": ALWAYS(template=TEMPLATES["harmony"], form=AnswerForm.HARMONY),
    "without `n`": ServedModel(ignores_n=True),
    "without `/tokenize`": ServedModel(tokenizes=False),
    "refuses schemas": ServedModel(schemas=Schemas.REFUSE),
    "honours schemas": ServedModel(schemas=Schemas.HONOUR),
}
"""Stand-ins. Those that are marked ``always`` reason whatever a request says."""


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents.jsonl")


def write_documents(path: Path) -> Path:
    text = "The river {} begins in the hills. " + 4 * "It passes the mill, where bread is sold on market days. "
    path.write_text("".join(json.dumps({"text": text.format(number)}) + "\n" for number in range(60)))
    return path


def served(name: str) -> FaultServer:
    kind = KINDS[name]
    model = "test-model-base" if kind.template is None else "gpt-oss-20b" if "gpt-oss" in name else "test-model"
    return FaultServer(kind=kind, model=model)


def generate(run: Path, server: FaultServer, *more: str | Path, count: int = 4) -> Said:
    flags = ("--base-url", server.base_url, "--num-instructions", str(count))
    return fastgen("generate", "--run-dir", run, *flags, *more)


# -- every kind of model -----------------------------------------------------------------------------------------------


def table(method: str, folder: Path) -> str:
    """What the probe finds at each step of a method, for every kind of model, as Markdown."""
    more: list[str | Path] = []
    if METHODS[method].needs_documents:
        more = ["--documents", write_documents(folder / "documents.jsonl")]
    rows: list[tuple[str, dict[str, str], str]] = []
    steps: list[str] = []
    for name in KINDS:
        with in_a_thread(served(name)) as server:
            samples = ["--samples-per-prompt", "4"] if "`n`" in name else []
            said = generate(folder / "run", server, "--method", method, "--dry-run", *more, *samples, count=2)
        found = dict(re.findall(r"^  (\w+) +(\d.*)$", said.err, re.MULTILINE))
        steps = [*found] or steps
        rows.append((name, found, ending(said)))
    lines = [f"### {method}", "", f"| model | {' | '.join(steps)} | ends in |", "|---" * (len(steps) + 2) + "|"]
    for name, found, end in rows:
        lines.append(f"| {name} | {' | '.join(found.get(step, '-') for step in steps)} | {end} |")
    return "\n".join(lines) + "\n"


def ending(said: Said) -> str:
    """Data, with what the probe changed for it, or the remedy."""
    changed = re.findall(r"(--thinking off|--samples-per-prompt 1|--structured \S+)$", said.err, re.MULTILINE)
    if said.code == 0:
        return " with ".join(["data", *(f"`{one}`" for one in changed)])
    assert said.code == 2, said.err
    assert len(said.last) < 700
    remedy = re.search(r"Remedy: (.*); --probe off", said.last) or re.search(r"(give the text .*)$", said.last)
    assert remedy is not None, said.last
    return f"exit 2: {remedy[1]}"


def documented() -> dict[str, str]:
    text = DOCS.read_text(encoding="utf-8").partition("<!-- begin: ")[2].partition("-->\n")[2].partition("<!-- end")[0]
    found = re.split(r"^(?=### )", text, flags=re.MULTILINE)[1:]
    return {one.splitlines()[0].removeprefix("### "): one.rstrip("\n") + "\n" for one in found}


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_model_ends_in_data_or_in_one_line_with_a_remedy(method: str, tmp_path: Path) -> None:
    assert table(method, tmp_path) == documented()[method]


# -- when, and what it leaves ------------------------------------------------------------------------------------------


def test_only_long_runs_and_dry_runs_are_probed_unless_asked() -> None:
    def probed(count: int, *, preset: Any = "default", **job: Any) -> bool:
        return is_probed(Options(job=JobOptions(num_instructions=count, **job), method=MethodOptions(preset=preset)))

    assert probed(LEAST_INSTRUCTIONS)
    assert not probed(LEAST_INSTRUCTIONS - 1)
    assert not probed(LEAST_INSTRUCTIONS, preset="paper")
    assert probed(1, dry_run=True)
    assert probed(1, probe="on")
    assert not probed(10**6, probe="off", dry_run=True)


def commits(run: Path) -> list[Commit]:
    return [commit._replace(time_s=0.0) for commit in RunFolder(run).whole_commits()]


@pytest.mark.parametrize("method", ["self-instruct", "evol"])
def test_a_run_is_the_same_with_and_without_a_probe(method: str, tmp_path: Path) -> None:
    runs = [tmp_path / "with", tmp_path / "without"]
    asked = []
    for run, probe in zip(runs, ("on", "off"), strict=True):
        with in_a_thread(FaultServer(model="test-model")) as server:
            said = generate(run, server, "--method", method, "--concurrency", "1", "--probe", probe)
            assert said.code == 0, said.err
            asked.append(server.counters.requests)
    assert commits(runs[0]) == commits(runs[1])
    steps = 3
    assert asked[0] - asked[1] == 3 * steps


def test_a_resume_is_not_probed(tmp_path: Path) -> None:
    with in_a_thread(FaultServer()) as server:
        assert generate(tmp_path / "run", server).code == 0
        said = generate(tmp_path / "run", server, "--probe", "on", count=6)
    assert said.code == 0, said.err
    assert "probe:" not in said.err


GOOD = Writer(similar_share=0.0).answer


def only_instances(said: str) -> Callable[[str, int], str]:
    def write(prompt: str, choice: int) -> str:
        good = GOOD(prompt, choice)
        return said if "Output:" in good or "Class label:" in good else good

    return write


def test_a_step_that_brings_nothing_is_refused_and_leaves_no_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with in_a_thread(FaultServer(write=only_instances("What a\x1b[31m lovely day."))) as server:
        said = generate(run, server, "--probe", "on")
        assert said.code == 2
        assert "\x1b" not in said.err
        assert said.last.startswith(
            "fastgen: --probe: instance: 0 of the last 3 answers could be read (3 unreadable). One of them: 'What a"
        )
        assert said.last.endswith(
            "try --api chat or another --model or other --prompts; --probe off begins all the same"
        )
        assert not (run / "run.json").exists()
        assert not (run / "log").exists()
        asked = server.counters.requests
        assert generate(run, server, "--probe", "off", "--max-fruitless", "4").code == 3
        assert server.counters.requests > asked
    assert (run / "run.json").exists()


def test_some_useless_answers_are_a_warning(tmp_path: Path) -> None:
    asked: list[str] = []

    def write(prompt: str, choice: int) -> str:
        asked.append(prompt)
        return "" if len(asked) == 1 else GOOD(prompt, choice)

    with in_a_thread(FaultServer(write=write)) as server:
        said = generate(tmp_path / "run", server, "--probe", "on", "--concurrency", "1")
    assert said.code == 0, said.err
    assert "warning: instruction: 2 of the last 3 answers could be read (1 empty). One of them: ''" in said.err


@pytest.mark.parametrize(
    ("fault", "kind", "remedy"),
    [
        (
            Fault.PROMPT_TOO_LONG,
            "prompt_too_long",
            "lower --instruction.max-tokens, or use a model with a longer",
        ),
        (Reply(400, b'{"message": "no"}'), "rejected", "try --api chat or another --model or other --prompts"),
    ],
)
def test_a_step_whose_requests_are_refused_is_named(fault: Event, kind: str, remedy: str, tmp_path: Path) -> None:
    with in_a_thread(FaultServer(script=[fault] * 40)) as server:
        said = generate(tmp_path / "run", server, "--probe", "on")
    assert said.code == 2
    assert said.last.startswith(f"fastgen: --probe: instruction: none of 3 requests was answered ({kind}: ")
    assert f"Remedy: {remedy}" in said.last
    assert not (tmp_path / "run" / "run.json").exists()


def test_answers_that_arrive_after_faults_count(tmp_path: Path) -> None:
    with in_a_thread(FaultServer(script=[Fault.RATE_LIMIT, Fault.RESET])) as server:
        said = generate(tmp_path / "run", server, "--probe", "on")
    assert said.code == 0, said.err
    assert "probe: the answers of instruction, classification, instance can be read" in said.err


# -- what it changes ---------------------------------------------------------------------------------------------------


def header(run: Path) -> dict[str, Any]:
    return dict(RunFolder(run).header().configuration)


def bodies(server: FaultServer) -> Iterator[dict[str, Any]]:
    return (orjson.loads(one.body) for one in server.received)


def test_reasoning_that_leaves_no_answers_is_turned_off_and_the_same_command_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with in_a_thread(served("`content: null`")) as server:
        flags = ("--probe", "on", "--thinking", "auto", "--method", "self-instruct-chat")
        said = generate(run, server, *flags)
        assert said.code == 0, said.err
        assert "answers without: --thinking off" in said.err
        assert header(run)["thinking"] == "off"
        server.received.clear()
        again = generate(run, server, *flags, count=6)
        assert again.code == 0, again.err
        assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in bodies(server))


def test_thinking_that_the_user_asked_for_stays_on(tmp_path: Path) -> None:
    with in_a_thread(served("`<think>`, unclosed")) as server:
        said = generate(tmp_path / "run", server, "--probe", "on", "--thinking", "on")
    assert said.code == 2
    assert "turn reasoning off with --thinking off, or raise --instruction.max-tokens" in said.last


def test_a_server_without_n_gets_one_sample_and_the_same_command_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with in_a_thread(served("without `n`")) as server:
        flags = ("--probe", "on", "--samples-per-prompt", "4", "--concurrency", "1")
        said = generate(run, server, *flags)
        assert said.code == 0, said.err
        assert said.err.count("--samples-per-prompt 1") == 1
        assert header(run)["samples_per_prompt"] == 1
        again = generate(run, server, *flags, count=6)
        assert again.code == 0, again.err
        assert not any("n" in body for body in list(bodies(server))[12:])
        other = generate(run, server, "--samples-per-prompt", "3", count=8)
    assert other.code == 2
    assert "--samples-per-prompt 1 (not 3)" in other.last


def schemas(server: FaultServer) -> list[str]:
    """The names of the schemas that were asked for."""
    wanted = (body.get("response_format") for body in bodies(server))
    return [one["json_schema"]["name"] for one in wanted if one is not None]


def test_answers_that_only_a_schema_makes_readable_are_asked_for_as_json_and_the_same_command_resumes(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    flags = ("--method", "self-instruct-chat", "--probe", "on")
    with in_a_thread(served("honours schemas")) as server:
        said = generate(run, server, *flags)
        assert said.code == 0, said.err
        assert said.err.count("read better as JSON than as text: --structured instruction\n") == 1
        assert header(run)["structured"] == "instruction"
        server.received.clear()
        again = generate(run, server, *flags, count=8)
        assert again.code == 0, again.err
        assert set(schemas(server)) == {"tasks"}
        other = generate(run, server, *flags, "--structured", "off", count=9)
    assert other.code == 2
    assert "--structured instruction (not off)" in other.last


def test_answers_that_can_be_read_as_text_are_not_asked_for_as_json(tmp_path: Path) -> None:
    with in_a_thread(served("honours schemas")) as server:
        assert generate(tmp_path / "run", server, "--probe", "on").code == 0
        assert not schemas(server)
    assert header(tmp_path / "run")["structured"] == "auto"


@pytest.mark.parametrize("given", ["on", "instruction,instance"])
def test_a_user_asks_for_json_of_every_step_that_has_a_form(given: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with in_a_thread(served("honours schemas")) as server:
        said = generate(run, server, "--structured", given, count=20)
        assert said.code == 0, said.err
        assert set(schemas(server)) == {"tasks", "examples"}
    kept = [commit for commit in commits(run) if commit.step != "classification"]
    assert all(commit.completion.text.startswith("\x1e") for commit in kept)
    assert fastgen("refilter", "--run-dir", run, "--output", tmp_path / "again").code == 0
    assert fastgen("export", "--run-dir", run, "--format", "alpaca", "--output", tmp_path / "rows.jsonl").code == 0
    assert "\\u001e" not in (tmp_path / "rows.jsonl").read_text()
    assert "\\u001f" not in (tmp_path / "rows.jsonl").read_text()


def test_a_server_that_refuses_schemas_is_asked_for_text(tmp_path: Path) -> None:
    with in_a_thread(served("refuses schemas")) as server:
        said = generate(tmp_path / "run", server, "--structured", "on")
    assert said.code == 0, said.err
    assert (
        "the server refuses JSON by a schema, so instruction, instance is asked for text: --structured off" in said.err
    )
    assert header(tmp_path / "run")["structured"] == "off"


def test_a_server_that_ignores_schemas_is_read_as_text(tmp_path: Path) -> None:
    with in_a_thread(served("plain chat")) as server:
        said = generate(tmp_path / "run", server, "--structured", "on")
    assert said.code == 0, said.err
    assert not any("\x1e" in commit.completion.text for commit in commits(tmp_path / "run"))


def test_a_run_whose_server_begins_to_refuse_schemas_names_the_remedy(tmp_path: Path) -> None:
    with in_a_thread(served("refuses schemas")) as server:
        said = generate(tmp_path / "run", server, "--structured", "on", "--probe", "off")
    assert said.code in (2, 3)
    assert "--structured off" in said.last


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (("--structured", "on", "--api", "completions"), "--structured on: no step of self-instruct asks for JSON"),
        (("--structured", "on", "--method", "magpie"), "--structured on: no step of magpie asks for JSON"),
        (("--structured", "on", "--preset", "paper"), "--structured on: no step of self-instruct asks for JSON"),
        (
            ("--structured", "yes", "--api", "chat"),
            "--structured: 'yes' is not one of on, off, auto, instruction, instance",
        ),
    ],
)
def test_structured_output_where_no_step_has_it_is_refused(flags: tuple[str, ...], wrong: str, tmp_path: Path) -> None:
    with in_a_thread(served("honours schemas")) as server:
        said = generate(tmp_path / "run", server, *flags)
    assert said.code == 2
    assert wrong in said.last
    assert not (tmp_path / "run" / "run.json").exists()


# -- what models come with ---------------------------------------------------------------------------------------------


Bodies = dict[str, list[dict[str, Any]]]


def sampled(run: Path, model: str, *more: str | Path, context: int = 1 << 17) -> tuple[Said, Bodies]:
    """The bodies of a run's requests by step, and what the run said."""
    with in_a_thread(FaultServer(model=model, max_model_len=context)) as server:
        said = generate(run, server, "--concurrency", "1", *more)
        sent = list(bodies(server))
    assert said.code == 0, said.err
    found: Bodies = {}
    for commit in {one.request: one for one in commits(run)}.values():
        found.setdefault(commit.step, []).append(sent[commit.request])
    return said, found


def figures(bodies: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("temperature", "top_p", "top_k", "max_tokens")
    return sorted({tuple(body.get(name) for name in names) for body in bodies}, key=str)


def test_answers_of_a_known_model_are_sampled_as_its_authors_recommend(tmp_path: Path) -> None:
    said, steps = sampled(tmp_path / "evol", "Qwen/Qwen3-8B", "--method", "evol")
    assert figures(steps["answer"]) == [(0.7, 0.8, 20, 2048)]
    assert figures(steps["compare"]) == [(0.0, 1.0, None, 16)]
    assert figures(steps["instruction"]) == [(1.0, 0.9, None, 1024)]
    assert (
        said.err.count("Qwen/Qwen3-8B answers as --model-preset qwen3 says: temperature 0.7, top-p 0.8, top-k 20") == 1
    )
    assert "https://huggingface.co/Qwen/Qwen3-8B#best-practices" in said.err
    _, steps = sampled(tmp_path / "default", "Qwen/Qwen3-8B", "--api", "chat")
    assert figures(steps["instance"]) == [(0.7, 0.8, 20, 2048)]
    assert figures(steps["classification"]) == [(0.0, 1.0, None, 16)]


def test_a_model_that_reasons_gets_room_for_it_within_its_context(tmp_path: Path) -> None:
    flags = ("--method", "evol", "--thinking", "on")
    _, steps = sampled(tmp_path / "long", "Qwen/Qwen3-8B", *flags)
    assert figures(steps["answer"]) == [(0.6, 0.95, 20, 32_768)]
    assert figures(steps["compare"]) == [(0.0, 1.0, None, 16 + 8192)]
    _, steps = sampled(tmp_path / "short", "Qwen/Qwen3-8B", *flags, context=8192)
    assert figures(steps["answer"]) == [(0.6, 0.95, 20, 4096)]
    assert figures(steps["compare"]) == [(0.0, 1.0, None, 4096)]
    _, steps = sampled(tmp_path / "effort", "gpt-oss-20b", "--method", "evol")
    assert figures(steps["compare"]) == [(0.0, 1.0, None, 16 + 1024)]


def test_figures_that_the_user_set_stay(tmp_path: Path) -> None:
    run, given = tmp_path / "evol", ("--method", "evol", "--step-sampling", "answer.temperature=0.25")
    _, steps = sampled(run, "Qwen/Qwen3-8B", *given)
    assert figures(steps["answer"]) == [(0.25, 0.8, 20, 2048)]
    with in_a_thread(FaultServer(model="Qwen/Qwen3-8B")) as server:  # the same command goes on, in both forms
        assert generate(run, server, *given, count=6).code == 0
        assert generate(run, server, count=8).code == 0
        other = generate(run, server, "--step-sampling", "answer.temperature=0.5", count=9)
    assert other.code == 2
    assert "--step-sampling" in other.last
    _, steps = sampled(tmp_path / "self", "Qwen/Qwen3-8B", "--instance-input-first.temperature", "0.25")
    assert {one[0] for one in figures(steps["instance"])} <= {0.25, 0.7}
    assert 0.25 in {one[0] for one in figures(steps["instance"])}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("some-chat-model", ()),
        ("Qwen/Qwen3-8B", ("--model-preset", "none")),
        ("Qwen/Qwen3-8B-Base", ("--api", "chat")),
        ("Qwen/Qwen3-8B", ("--api", "completions")),
    ],
)
def test_without_a_preset_nothing_changes(model: str, more: tuple[str, ...], tmp_path: Path) -> None:
    _, steps = sampled(tmp_path / "run", model, "--method", "evol", *more)
    assert figures(steps["answer"]) == [(1.0, 0.9, None, 2048)]
    assert "asked" not in header(tmp_path / "run")


def main() -> None:
    """Write the tables of docs/development/probe.md."""
    text = DOCS.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        tables = "\n".join(table(method, Path(folder)) for method in METHODS)
    before, mark, rest = text.partition("<!-- begin: ")
    first, newline, rest = rest.partition("\n")
    DOCS.write_text(f"{before}{mark}{first}{newline}\n{tables}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


if __name__ == "__main__":
    main()
