"""How fast the control flow of the original is: a re-implementation of its loop, compared with `fastgen generate`.

``python -m benchmarks.original_loop --base-url URL [--instructions 100]``

It reproduces how Self-Instruct's released code works, none of its lines:

- three programs one after the other: all instructions, then all classifications, then all instances;
- one request at a time with 5 prompts in it; nothing else happens while it is answered;
- for each new instruction a new pool of 4 processes scores it with ``rouge_score`` against all seeds and all
  instructions kept so far.

Everything else is fastgen's (prompts, sampling, parsers, rules), so both keep the same. The connection is kept alive,
which favours the original. The pool is small here. The original's check costs more the more it has kept, so its real
factor is worse than the measured one.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import multiprocessing
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from benchmarks.harness import finish, print_table
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.filters import check_instruction
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks
from fastgen.types import Completion, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUEST_BATCH = 5
POOL_PROCESSES = 4
SEED_DEMONSTRATIONS, MACHINE_DEMONSTRATIONS = 6, 2
THRESHOLD = 0.7
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """What the three programs made and took."""

    kept: int
    complete: int
    instructions_s: float
    classification_s: float
    instances_s: float
    checks_s: float  # of the first, in process pools

    @property
    def wall_s(self) -> float:
        """All three."""
        return self.instructions_s + self.classification_s + self.instances_s

    @property
    def complete_per_minute(self) -> float:
        """Kept instructions with at least one instance."""
        return self.complete / self.wall_s * 60


class BlockingClient:
    """One request at a time, on one connection."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._path = parts.path
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
        self._model: str = self._ask("GET", "/models", None)["data"][0]["id"]

    def complete(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """One request with several prompts; waits for all of them."""
        body = {
            "model": self._model,
            "prompt": list(prompts),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
        }
        choices = self._ask("POST", "/completions", body)["choices"]
        return [Completion(one["text"], one["finish_reason"]) for one in sorted(choices, key=lambda c: c["index"])]

    def _ask(self, method: str, route: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401 - JSON
        sent = None if body is None else orjson.dumps(body)
        self._connection.request(method, self._path + route, sent, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the server answered {answer.status}: {said[:200]!r}")
        return orjson.loads(said)


def rouge_l(text: str, other: str) -> float:
    """ROUGE-L F1 by the package that the original uses; runs in the pool's processes."""
    return float(_scorer().score(other, text)["rougeL"].fmeasure)


def _scorer() -> Any:  # noqa: ANN401 - rouge_score has no types
    global _SCORER  # noqa: PLW0603 - one a process, as in the original
    if _SCORER is None:
        from rouge_score.rouge_scorer import RougeScorer

        _SCORER = RougeScorer(["rougeL"], use_stemmer=False)
    return _SCORER


_SCORER: Any = None


class OriginalLoop:
    """The three programs on one server."""

    def __init__(
        self,
        client: BlockingClient,
        *,
        seed: int = 0,
        request_batch: int = REQUEST_BATCH,
        pool_processes: int = POOL_PROCESSES,
    ) -> None:
        self._client = client
        self._request_batch = request_batch
        self._pool_processes = pool_processes
        self._random = random.Random(seed)
        self._rules = PRESETS["default"]
        self._sampling = SAMPLING_PRESETS["default"]
        self._prompts = load_prompts("completions")
        self._seeds = [task.instruction for task in load_seed_tasks(default_seed_path())]
        self._checks_s = 0.0

    def run(self, instructions: int) -> LoopFigures:
        """Write at least ``instructions`` instructions, then classify them and write their instances."""
        _scorer()  # loaded once, before the time counts and before pools fork
        marks_s = [time.perf_counter()]
        kept = self._write_instructions(instructions)
        marks_s.append(time.perf_counter())
        are_classification = self._classify(kept)
        marks_s.append(time.perf_counter())
        complete = self._write_instances(kept, are_classification)
        marks_s.append(time.perf_counter())
        first_s, second_s, third_s = (after - before for before, after in itertools.pairwise(marks_s))
        return LoopFigures(len(kept), complete, first_s, second_s, third_s, self._checks_s)

    def _write_instructions(self, wanted: int) -> list[str]:
        kept: list[str] = []
        while len(kept) < wanted:
            prompts = [self._instruction_prompt(kept) for _ in range(self._request_batch)]
            for completion in self._client.complete(prompts, self._sampling["instruction"]):
                for item in instruction.parse(completion, self._rules, first_number=9):
                    accepted = item.rule is None and check_instruction(item.text, self._rules) is None
                    if accepted and self._is_novel(item.text, [*self._seeds, *kept]):
                        kept.append(item.text)
        return kept

    def _instruction_prompt(self, kept: list[str]) -> str:
        machine = self._random.sample(kept, min(MACHINE_DEMONSTRATIONS, len(kept)))
        seeds = self._random.sample(self._seeds, SEED_DEMONSTRATIONS + MACHINE_DEMONSTRATIONS - len(machine))
        demonstrations = [*seeds, *machine]
        self._random.shuffle(demonstrations)
        return _text(instruction.build_prompt(demonstrations, self._prompts, classification_only=False))

    def _is_novel(self, text: str, pool: list[str]) -> bool:
        began_s = time.perf_counter()
        with multiprocessing.Pool(self._pool_processes) as processes:
            best = max(processes.map(partial(rouge_l, text), pool))
        self._checks_s += time.perf_counter() - began_s
        return best <= THRESHOLD

    def _classify(self, kept: list[str]) -> list[bool]:
        prompts = [_text(classification.build_prompt(text, self._prompts)) for text in kept]
        answers = self._ask_all(prompts, self._sampling["classification"])
        return [classification.parse(answer, self._rules).value is True for answer in answers]

    def _write_instances(self, kept: list[str], are_classification: list[bool]) -> int:
        complete = 0
        for is_classification in (True, False):
            texts = [text for text, is_one in zip(kept, are_classification, strict=True) if is_one is is_classification]
            key = "instance_output_first" if is_classification else "instance_input_first"
            prompts = [_text(instance.build_prompt(text, is_classification, self._prompts)) for text in texts]
            for answer in self._ask_all(prompts, self._sampling[key]):
                complete += bool(instance.parse(answer, is_classification, self._rules).instances)
        return complete

    def _ask_all(self, prompts: list[str], sampling: Sampling) -> Iterator[Completion]:
        for at in range(0, len(prompts), self._request_batch):
            yield from self._client.complete(prompts[at : at + self._request_batch], sampling)


def _text(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise TypeError("completion prompts are texts")
    return prompt


def row(figures: LoopFigures) -> tuple[object, ...]:
    """One line of the table."""
    spans_s = (figures.instructions_s, figures.checks_s, figures.classification_s, figures.instances_s)
    return (figures.complete, *spans_s, figures.complete_per_minute)


COLUMNS = ("complete", "instructions s", "of it checks s", "classification s", "instances s", "complete/min")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--instructions", type=int, default=100)
    parser.add_argument(
        "--request-batch", type=int, default=REQUEST_BATCH, help="(default: the original's %(default)s)"
    )
    parser.add_argument("--pool-processes", type=int, default=POOL_PROCESSES, help="(default: %(default)s)")
    given = parser.parse_args()
    loop = OriginalLoop(
        BlockingClient(given.base_url), request_batch=given.request_batch, pool_processes=given.pool_processes
    )
    figures = loop.run(given.instructions)
    print_table(COLUMNS, [row(figures)])
    measured = asdict(figures) | {"complete_per_minute": figures.complete_per_minute}
    finish("original_loop", measured | {"settings": vars(given)})


if __name__ == "__main__":
    main()
