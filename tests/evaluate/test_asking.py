"""Evaluating a model behind a server: prompts, resuming, refusing to mix models, inputs that are too long."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fastgen.evaluate.results import read_results
from fastgen.generate.batch import read_replies
from tests.evaluation_help import TASKS, call, knowing, served, superni


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_model_that_knows_everything_gets_everything(tmp_path: Path, api: str) -> None:
    with served() as server:
        flags = ("--base-url", server.base_url, "--data", superni(tmp_path), "--api", api)
        said = call(*flags, "--output", tmp_path / "out")
        bodies = [json.loads(received.body) for received in server.received if b'"m' in received.body]
    assert said.code == 0, said.err
    scores = json.loads((tmp_path / "out" / "scores.json").read_bytes())
    assert scores["model"] == "test-model-base"
    assert scores["overall"]["exact_match"]["mean"] == 100.0
    assert all(body["temperature"] == 0 and "seed" not in body for body in bodies)
    first = next(p for p in read_results(tmp_path / "out").predictions if p.id == "t1-0")
    assert first.text == "The gardener and his 0 trees"
    prompt = f"Write a title for the story.\n\nInput: {TASKS[0]['Instances'][0]['input']}\n\nOutput:"
    asked = [body.get("prompt") or body["messages"][0]["content"] for body in bodies]
    chat = f"Write a title for the story.\n\n{TASKS[0]['Instances'][0]['input']}"
    assert (prompt if api == "completions" else chat) in asked


def test_a_stopped_evaluation_resumes_and_asks_nothing_twice(tmp_path: Path) -> None:
    data, out = superni(tmp_path), tmp_path / "out"
    asked: list[str] = []

    def interrupting(prompt: str, choice: int) -> str:
        asked.append(prompt)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return knowing(prompt, choice)

    with served(interrupting) as server:
        flags = ("--base-url", server.base_url, "--data", data, "--output", out, "--concurrency", "1")
        stopped = call(*flags)
        answered = len(list(read_replies(out)))
        assert stopped.code == 130
        assert "the same command resumes" in stopped.err
        assert not (out / "scores.json").exists()
        assert 1 <= answered < 8
        finished = call(*flags)
    assert finished.code == 0, finished.err
    assert f"resuming with {answered} answers" in finished.err
    assert len(asked) == len(set(asked)) == 8
    again = call("--base-url", "http://127.0.0.1:9/v1", "--data", data, "--output", out)
    assert again.code == 0, again.err
    assert call("--data", data, "--output", out).out == again.out == finished.out
    assert "all 8 questions are answered already; nothing is left to ask" in again.err


def test_answers_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    data, out = superni(tmp_path), tmp_path / "out"
    with served() as server:
        flags = ("--base-url", server.base_url, "--data", data, "--output", out)
        assert call(*flags, "--per-task", "2").code == 0
        other_model = call(*flags, "--per-task", "2", "--model", "other")
        other_questions = call(*flags, "--per-task", "3")
        given = call("--data", data, "--output", out, "--predictions", "x.jsonl")
    assert (other_model.code, other_questions.code, given.code) == (2, 2, 2)
    assert "holds answers of the model 'test-model-base', not of 'other'" in other_model.err
    assert "holds answers to other questions, with data" in other_questions.err
    assert "holds a model's answers" in given.err


def test_an_input_that_is_too_long_is_cut_at_its_end_and_counted(tmp_path: Path) -> None:
    tasks = json.loads(json.dumps(TASKS))
    tasks[0]["Instances"][0]["input"] = "Begin here. " + "and so on " * 600
    with served(lambda prompt, _: " yes" if "Begin here." in prompt else " no", max_model_len=500) as server:
        said = call("--base-url", server.base_url, "--data", superni(tmp_path, tasks), "--output", tmp_path / "out")
    assert said.code == 0, said.err
    assert "1 inputs were too long for the model; their end was cut" in said.out
    first = read_results(tmp_path / "out").predictions[0]
    assert (first.text, first.shortened, first.failure) == ("yes", True, None)


def test_a_definition_that_is_too_long_is_a_failure_that_counts_as_wrong(tmp_path: Path) -> None:
    with served(max_model_len=140) as server:
        tasks = json.loads(json.dumps(TASKS))
        tasks[0]["Definition"] = ["Write a title. " * 200]
        said = call("--base-url", server.base_url, "--data", superni(tmp_path, tasks), "--output", tmp_path / "out")
    assert said.code == 0, said.err
    assert "have no answer and count as empty" in said.out
    assert json.loads((tmp_path / "out" / "scores.json").read_bytes())["failed"] >= 5


def test_a_server_without_the_model_is_an_error(tmp_path: Path) -> None:
    with served() as server:
        flags = ("--base-url", server.base_url, "--data", superni(tmp_path), "--output", tmp_path / "out")
        said = call(*flags, "--model", "absent")
    assert said.code == 2
    assert "--model absent: the server does not have it" in said.err
