"""What the comparison with vLLM's own load generator sends, and how it reads what comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest
import uvloop

from benchmarks.harness import test_server as started_server
from benchmarks.real_server import Contest, Prompt, Recorded, Target, VllmBench, record, replay, shortened, vllm_bench
from fastgen.types import Sampling

SAMPLING = Sampling(0.7, 0.5, 1)
PROMPTS = [Prompt(f"Number {number}\n9.", 5 + number) for number in range(12)]
_COMMAND = """
import json, sys
flags = dict(zip(sys.argv, sys.argv[1:]))
lines = [json.loads(line) for line in open(flags["--dataset-path"])]
assert flags["--num-prompts"] == str(len(lines)) and flags["--custom-output-len"] == "-1"
assert {"--ignore-eos", "--disable-shuffle", "--skip-chat-template", "--no-oversample"} <= set(sys.argv)
tokens = sum(line["output_tokens"] for line in lines)
said = {"completed": len(lines) - int(flags["--model"] == "lossy"), "total_output_tokens": tokens, "duration": 2.0}
json.dump(said, open(flags["--result-dir"] + "/" + flags["--result-filename"], "w"))
"""


def stand_in(folder: Path) -> VllmBench:
    """The command's own place in an environment without vLLM: checks its flags, claims two seconds."""
    package = folder / "beside" / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(_COMMAND, encoding="utf-8")
    return VllmBench(sys.executable, "tokenizer", folder, str(folder / "beside"))


def test_the_client_asks_every_prompt_once_for_its_number_of_tokens() -> None:
    source = Recorded(PROMPTS, SAMPLING)
    asked = []
    while (request := source.next()) is not None:
        asked.append(request)
    assert [(one.prompt, one.sampling.max_tokens) for one in asked] == [(p.text, p.tokens) for p in PROMPTS]
    assert {one.sequences for one in asked} == {1}
    with pytest.raises(RuntimeError, match="request 3"):
        source.give_back(asked[3])


@pytest.mark.parametrize("concurrency", [4, "auto"])
def test_all_prompts_are_answered_at_any_concurrency(concurrency: int) -> None:
    with started_server() as server:
        found = uvloop.run(replay(server.base_url, "test-model-base", PROMPTS, SAMPLING, concurrency))
        assert server.ask("/faults")["answered"] == len(PROMPTS)
    assert found.completions == len(PROMPTS)
    assert found.tokens > 0
    assert found.tokens_per_s == found.tokens / found.wall_s


def test_a_recorded_run_has_a_prompt_for_every_completion_and_no_answer_beyond_its_bound() -> None:
    with started_server() as server:
        recording = uvloop.run(record(server.base_url, 12, shortened(300), 8))
    prompts = recording.all()
    assert recording.complete >= 12
    assert recording.figures().completions == len(prompts) >= 3 * 12 / 8
    assert all(prompt.text and 1 <= prompt.tokens <= 300 for prompt in prompts)


def test_the_command_gets_the_prompts_and_their_lengths(tmp_path: Path) -> None:
    found = stand_in(tmp_path).run("http://127.0.0.1:1/v1", "model", PROMPTS, 4, ("--temperature", "0.7"))
    assert (found.tokens, found.wall_s, found.completed) == (sum(p.tokens for p in PROMPTS), 2.0, len(PROMPTS))
    sent = [orjson.loads(line) for line in (tmp_path / "prompts.jsonl").read_bytes().splitlines()]
    assert [(one["prompt"], one["output_tokens"]) for one in sent] == [(p.text, p.tokens) for p in PROMPTS]


def test_a_benchmark_that_lost_requests_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="completed 11 of 12"):
        stand_in(tmp_path).run("http://127.0.0.1:1/v1", "lossy", PROMPTS, 4, ())


def test_a_failing_command_is_reported_with_its_last_output(tmp_path: Path) -> None:
    bench = VllmBench(sys.executable, "tokenizer", tmp_path, str(tmp_path))
    with pytest.raises(RuntimeError, match="No module named"):
        bench.run("http://127.0.0.1:1/v1", "model", PROMPTS, 4, ())


def test_the_best_concurrency_is_the_one_with_the_most_tokens_a_second(tmp_path: Path) -> None:
    class Faster(Contest):
        async def bench(self, concurrency: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - as in the base
            found = await super().bench(concurrency)
            return type(found)(found.tokens * (100 - abs(concurrency - 64)), found.wall_s, found.completed)

    contest = Faster(Target("http://127.0.0.1:1/v1", "model"), stand_in(tmp_path), PROMPTS)
    best, rates = uvloop.run(contest.best_of([32, 64, 128]))
    assert (best, list(rates)) == (64, [32, 64, 128])


def test_metadata_is_added_for_an_environment_that_lacks_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c ""\n', encoding="utf-8")  # has all that is asked for
    python.chmod(0o755)
    with vllm_bench(str(python), "tokenizer", "1.2.3") as bench:
        assert "Version: 1.2.3" in (Path(bench.path) / "vllm-1.2.3.dist-info" / "METADATA").read_text(encoding="utf-8")
    assert not bench.folder.exists()
