"""Steps that bring nothing: the warning, the stop, the message, and what is finished first."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.engine.health import FIRST, QUESTION_LIMIT, Raw, Step, StepHealth
from fastgen.generate.health import steps_of_run
from fastgen.methods.base import Answered, Commit, Labelled
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS
from fastgen.methods.self_instruct.seeds import default_seed_path
from fastgen.simulator.answers import Writer
from fastgen.simulator.server import FaultServer, in_a_thread
from fastgen.store.ledger import Ledger, answer_kind
from fastgen.store.records import decode, encode
from fastgen.store.run_folder import RunFolder
from fastgen.telemetry.figures import Limit, Sample, ServerSample, limit_of
from fastgen.text import AnswerKind, quoted, unread_kind
from fastgen.types import Completion
from tests.command_help import Said, fastgen
from tests.evaluation_help import call as evaluate
from tests.evaluation_help import served, superni
from tests.export_help import make_run, numbered
from tests.judge_help import figures, judge, judging_server

Write = Callable[[str, int], str | None]
GOOD = Writer(similar_share=0.0).answer
CHAT_ABOUT_THE_WEATHER = "What a\x1b[31m lovely day."


def stage_of(prompt: str) -> str:
    """Which step a prompt belongs to, by what the writer makes of it."""
    said = GOOD(prompt)
    if said in (" Yes", " No"):
        return "classification"
    return "instance" if "Output:" in said or "Class label:" in said else "instruction"


def but_at(stage: str, said: str | None) -> Write:
    """A model that is good at everything but one step, where it always says the same."""
    return lambda prompt, choice: said if stage_of(prompt) == stage else GOOD(prompt, choice)


def generate(run: Path, server: FaultServer, count: int, *more: str) -> Said:
    """``fastgen generate`` with few in flight; a quarter of ``--max-fruitless`` is 40."""
    flags = ("--base-url", server.base_url, "--num-instructions", str(count), "--concurrency", "4")
    return fastgen("generate", "--run-dir", run, *flags, "--max-fruitless", "160", "--probe", "off", *more)


def commits(run: Path) -> list[Commit]:
    return list(RunFolder(run).whole_commits())


def status(run: Path) -> dict[str, Any]:
    said = fastgen("status", "--run-dir", run, "--json")
    assert said.code == 0, said.err
    found: dict[str, Any] = orjson.loads(said.out)
    return found


def warnings(said: Said) -> list[str]:
    return [line for line in said.err.splitlines() if line.startswith("warning: ")]


# generate


def test_instance_answers_that_never_parse_stop_the_run_with_a_sample_and_a_remedy(tmp_path: Path) -> None:
    with in_a_thread(FaultServer(write=but_at("instance", CHAT_ABOUT_THE_WEATHER))) as server:
        said = generate(tmp_path / "run", server, 1000)
    assert said.code == 3, said.err
    (warning,) = warnings(said)
    for told in (warning, said.last):
        assert "instance: 0 of the last" in told
        assert r"One of them: 'What a\x1b[31m lovely day.' (finish reason 'stop'" in told
        assert "try --api chat or another --model or other --prompts (in a new run)" in told
    assert re.match(r"fastgen: instance: 0 of the last [45]\d answers", said.last)
    answers = status(tmp_path / "run")["answers"]
    assert 40 <= answers["instance.unreadable"] < 60
    assert fastgen("status", "--run-dir", tmp_path / "run").out.count("instance         unreadable") == 1


@pytest.mark.parametrize("stage", ["instruction", "classification", "instance"])
def test_a_reasoning_model_without_content_stops_the_run_and_is_named(tmp_path: Path, stage: str) -> None:
    with in_a_thread(FaultServer(write=but_at(stage, None))) as server:
        said = generate(tmp_path / "run", server, 1000, "--api", "chat")
    assert said.code == 3, said.err
    assert any(stage in warning for warning in warnings(said))
    assert f"fastgen: {stage}: 0 of the last" in said.last
    assert "a reasoning model uses up its tokens" in said.last
    assert "turn reasoning off with --thinking off, or raise" in said.last
    assert "max-tokens" in said.last
    assert 40 <= status(tmp_path / "run")["answers"][f"{stage}.empty"] < 60


def test_an_unread_classification_answer_counts_as_a_no_and_is_marked_and_reported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with in_a_thread(FaultServer(write=but_at("classification", None))) as server:
        said = generate(run, server, 3, "--api", "chat")
    assert said.code == 0, said.err
    (warning,) = warnings(said)
    assert "classification: 0 of the last" in warning
    outcomes = {one.outcome for one in commits(run) if isinstance(one.outcome, Labelled)}
    assert outcomes == {Labelled(False, "empty")}
    lines = (run / "log" / "000000.jsonl").read_bytes().splitlines()
    assert all((b'"unread":"empty"' in line) == (b'"is_classification":false' in line) for line in lines)


def test_thinking_that_never_ends_stops_the_run_and_is_named(tmp_path: Path) -> None:
    said_by_model = "<think>The user wants tasks. Let me think about " + "tasks and " * 40
    with in_a_thread(FaultServer(write=but_at("instruction", said_by_model))) as server:
        said = generate(tmp_path / "run", server, 10)
    assert said.code == 3, said.err
    assert "instruction: 0 of the last" in said.last
    assert "turn reasoning off with --api chat and --thinking off" in said.last
    assert 40 <= status(tmp_path / "run")["answers"]["instruction.thinking"] < 60


def test_what_is_kept_is_finished_before_the_stop_and_a_resume_gets_a_new_chance(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", []

    def runs_dry(prompt: str, choice: int) -> str:
        if stage_of(prompt) != "instruction":
            return GOOD(prompt, choice)
        asked.append(prompt)
        return GOOD(prompt, choice) if len(asked) <= 10 or len(asked) > 140 else " Name a river.\n"

    with in_a_thread(FaultServer(write=runs_dry)) as server:
        flags = ("--num-instructions", "199", "--max-fruitless", "20", "--base-url", server.base_url)
        seen = []
        for _ in range(2):
            said = fastgen("generate", "--run-dir", run, "--concurrency", "4", *flags)
            assert said.code == 3, said.err
            figures = status(run)
            assert figures["pending"] == 0
            assert figures["complete"] == figures["kept"] - figures["empty"] > 20
            assert "'fastgen status' lists the rules that rejected them" in said.last
            seen.append(len(asked))
        assert 20 <= seen[1] - seen[0] <= 40
        asked.extend([""] * 140)
        said = fastgen("generate", "--run-dir", run, "--concurrency", "4", *flags)
    assert said.code == 0, said.err
    assert status(run)["complete"] == 199


def test_a_healthy_run_reports_no_step(tmp_path: Path) -> None:
    with in_a_thread(FaultServer(write=GOOD)) as server:
        said = generate(tmp_path / "run", server, 60)
    assert said.code == 0, said.err
    assert warnings(said) == []
    assert not any(b'"unread"' in path.read_bytes() for path in (tmp_path / "run" / "log").iterdir())


def test_classification_only_without_classification_seeds_is_refused_before_any_request(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    rows = [orjson.loads(line) for line in default_seed_path().read_bytes().splitlines()]
    seeds.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows if not row["is_classification"]))
    with in_a_thread(FaultServer()) as server:
        said = generate(tmp_path / "run", server, 5, "--classification-only", "--seed-tasks", str(seeds))
        assert server.counters.requests == 0
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("fastgen: --classification-only: none of the ")
    assert not (tmp_path / "run" / "run.json").exists()


def test_counts_saved_without_the_answers_are_made_again_from_the_log(tmp_path: Path) -> None:
    class Older(Ledger):
        def as_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().as_dict().items() if name != "answers"}

    run = tmp_path / "run"
    with in_a_thread(FaultServer()) as server:
        assert generate(run, server, 5).code == 0
    before, folder = status(run), RunFolder(run)
    older = Older(seeds=175)
    for commit in commits(run):
        older.apply(commit)
    saved = folder.saved_counts()
    folder.save_counts(replace(saved, ledger=older), folder.header().run_id)
    assert status(run)["answers"] == before["answers"]


# judge, evaluate, refilter


def test_a_judge_that_cannot_be_read_is_stopped_early(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(200))
    with judging_server(lambda *_: "Looks good to me!") as server:
        said = judge(run, server, "--concurrency", "4")
        assert said.code == 3, said.err
        assert QUESTION_LIMIT <= server.counters.answered < QUESTION_LIMIT + 80
    (warning,) = warnings(said)
    assert "judge: 0 of the last" in warning
    assert said.last.startswith("fastgen: judge: 0 of the last 1")
    assert "'Looks good to me!'" in said.last
    assert "another judge (--model)" in said.last


def test_a_short_judging_without_a_readable_answer_is_no_success_however_often_it_is_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", numbered(3))
    with judging_server(lambda *_: "Looks good to me!") as server:
        for _ in range(2):
            said = judge(run, server)
            assert said.code == 3, said.err
            assert "judge: 0 of the last 12 answers could be read" in said.last
    assert figures(run)["judges"][0]["judged"] == 0


def test_an_evaluation_in_which_every_answer_is_empty_has_no_result(tmp_path: Path) -> None:
    with served(lambda *_: "\n") as server:
        flags = ("--data", superni(tmp_path), "--output", tmp_path / "out", "--base-url", server.base_url)
        for _ in range(2):
            said = evaluate(*flags)
            assert said.code == 3, said.err
            assert "evaluate: 0 of the last 8 answers could be read (8 empty)" in said.last
    assert not (tmp_path / "out" / "scores.json").exists()


def source_of(tmp_path: Path, write: Write) -> Path:
    run = tmp_path / "source"
    with in_a_thread(FaultServer(write=write)) as server:
        assert generate(run, server, 20).code == 0
    return run


def test_rules_that_keep_nothing_leave_no_run_behind(tmp_path: Path) -> None:
    run, output = source_of(tmp_path, GOOD), tmp_path / "strict"
    said = fastgen("refilter", "--run-dir", run, "--output", output, "--min-words", "140")
    assert said.code == 2, said.err
    (warning,) = warnings(said)
    assert "instruction: 0 of the last" in warning
    assert "One of them: ' " in warning
    assert "these rules keep no instruction (rejected: too_short" in said.last
    assert not RunFolder(output).exists()


def test_rules_under_which_no_instance_is_read_leave_no_run_behind(tmp_path: Path) -> None:
    run, output = source_of(tmp_path, but_at("instance", "**Input**: a\n**Output**: b")), tmp_path / "strict"
    said = fastgen("refilter", "--run-dir", run, "--output", output, "--instance-style", "paper")
    assert said.code == 2, said.err
    assert any("instance: 0 of the last" in warning for warning in warnings(said))
    assert "these rules keep no instance (rejected: no_instance" in said.last
    assert not RunFolder(output).exists()


# the figures


def seen(step: Step, kinds: Iterable[AnswerKind], text: str = "text") -> tuple[StepHealth, int | None]:
    """The health of a step after these answers, and after how many of them there was a verdict."""
    health, stopped = StepHealth(step), None
    for number, kind in enumerate(kinds, 1):
        health.see(kind, Raw(text, "stop", 3))
        if stopped is None and health.verdict() is not None:
            stopped = number
    return health, stopped


METHOD = self_instruct(PRESETS["default"], [], load_prompts("completions"), {})
STEPS = steps_of_run(METHOD, max_fruitless=1000, api="completions")


def test_steps_with_few_usable_answers_never_stop() -> None:
    draw = random.Random(1)
    instances = [AnswerKind.EMPTY if draw.random() < 0.13 else AnswerKind.READ for _ in range(20_000)]
    health, stopped = seen(STEPS["instance"], instances)
    assert stopped is None
    assert health.warning() is None
    instructions = [AnswerKind.REJECTED if draw.random() < 0.6 else AnswerKind.READ for _ in range(20_000)]
    health, stopped = seen(STEPS["instruction"], instructions)
    assert stopped is None
    assert health.warning() is None
    assert seen(STEPS["instance"], [AnswerKind.READ] + [AnswerKind.UNREADABLE] * 20)[0].warning() is None


@pytest.mark.parametrize(
    ("stage", "kind", "limit"),
    [
        ("instruction", AnswerKind.REJECTED, 1000),
        ("instruction", AnswerKind.EMPTY, 250),
        ("classification", AnswerKind.UNREADABLE, 250),
        ("instance", AnswerKind.REJECTED, 250),
    ],
)
def test_each_step_has_a_separate_limit(stage: str, kind: AnswerKind, limit: int) -> None:
    assert seen(STEPS[stage], [AnswerKind.READ] * 5 + [kind] * 2000)[1] == limit + 5


def test_a_warning_comes_at_once_when_the_first_answers_are_unread_and_only_once() -> None:
    health, _ = seen(STEPS["instance"], [AnswerKind.CUT] * (FIRST - 1))
    assert health.warning() is None
    health.see(AnswerKind.EMPTY, Raw("", "stop", 0))
    warning = health.warning()
    assert warning is not None
    assert "instance: 0 of the last 8 answers could be read (7 cut, 1 empty)" in warning
    assert "raise --instance-input-first.max-tokens and --instance-output-first.max-tokens (in a new run)" in warning
    assert health.warning() is None


def test_mostly_empty_answers_are_reported_as_the_limit_of_the_run() -> None:
    health, stopped = seen(
        STEPS["instance"], [AnswerKind.READ, AnswerKind.EMPTY, AnswerKind.EMPTY, AnswerKind.EMPTY] * 100
    )
    assert stopped is None
    assert "16 of the last 64 answers could be read (48 empty)" in health.trouble()
    servers = (ServerSample("a", completed=9),)
    sample = Sample(session_s=60, in_flight=8, concurrency=8, completions=9, servers=servers)
    assert limit_of(sample)[0] is Limit.SERVER
    assert limit_of(replace(sample, trouble=health.trouble())) == (Limit.YIELD, health.trouble())


def test_a_sample_is_short_and_holds_no_control_characters() -> None:
    shown = quoted("\x1b]0;title\x07\n\u202e" + "字" * 500, 200)
    assert shown.isprintable()
    assert "字" in shown
    assert len(shown) < 260


def test_a_log_line_without_a_reason_is_read_as_before() -> None:
    commit = Commit(1, 0, "classification", 0, (), Completion("No", "stop", 5, 1), Labelled(False), 1.0)
    assert "unread" not in encode(commit)
    assert decode(encode(commit)) == commit
    with_reason = commit._replace(outcome=Labelled(False, "no_answer"))
    assert encode(with_reason) == encode(commit) | {"unread": "no_answer"}


@pytest.mark.parametrize("text", ["<think>a</think>\n<think>b", "\u200b<think>b", "[THINK] x"])
def test_thinking_without_an_end_is_named_whatever_ended_the_text(text: str) -> None:
    for finish_reason in ("stop", "length"):
        assert unread_kind(text, finish_reason) is AnswerKind.THINKING


def test_reasoning_that_was_sent_apart_makes_an_empty_answer_thinking() -> None:
    assert unread_kind("", "stop", "Let me see.") is AnswerKind.THINKING
    assert unread_kind(" \n", "length", " \n") is AnswerKind.EMPTY
    assert unread_kind("Some text", "stop", "Let me see.") is AnswerKind.UNREADABLE
    completion = Completion("", "length", 5, 300, "Let me see.")
    commit = Commit(1, 0, "instance", 0, (), completion, Answered((), ("no_instance",)), 1.0)
    assert answer_kind(commit) is AnswerKind.THINKING
    assert answer_kind(commit._replace(completion=Completion("", "length", 5, 300))) is AnswerKind.EMPTY


def test_reasoning_without_an_answer_inside_the_text_is_thinking() -> None:
    assert unread_kind("<think>hm</think>\n<|im_end|>", "stop") is AnswerKind.THINKING
    assert unread_kind("<think></think>\n", "stop") is AnswerKind.UNREADABLE


def test_a_remedy_does_not_name_the_flag_that_is_given_already() -> None:
    raw = Raw("Let me see.", "length", 300)
    step = Step("answer", api="chat", tokens_flag="--answer.max-tokens")
    assert "--thinking off" in step.remedy(AnswerKind.THINKING, raw)
    off = replace(step, is_thinking_off=True)
    for kind in (AnswerKind.THINKING, AnswerKind.EMPTY):
        assert "--thinking" not in off.remedy(kind, raw)
    assert "--answer.max-tokens" in off.remedy(AnswerKind.THINKING, raw)
