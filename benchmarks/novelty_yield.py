"""What raises the yield of the instruction stage: kept instructions per 1,000 generated tokens, by setting.

``python -m benchmarks.novelty_yield --base-url http://127.0.0.1:8000/v1 --output yield.jsonl [--tokens 12000]``
``python -m benchmarks.novelty_yield --analyse yield.jsonl``

Each setting is a separate run (plan, prompts, rules, ROUGE-L check, growing pool) against the same server. All run side
by side with about the same number of sequences in flight, until each has generated ``--tokens``. Only the instruction
stage asks the server. Classification and instances are answered here with the same text for all. Each completion is one
line of the output, so the figures can be computed again without a server.

Intervals are percentile bootstraps over requests (the samples of one prompt stay together) with 2,000 draws. A draw
takes each request's kept count as it was; it does not replay the order of admission. *Deep* judges the same text once
more, against the seeds and an equal number of instructions that other settings kept: it is the yield of a setting when
the pool is that deep from the start. No figure is a time, so the machine may be busy with other work.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from benchmarks.harness import finish, print_table
from fastgen.errors import TransientError
from fastgen.methods.admission import SIMILAR
from fastgen.methods.base import Created
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.instruction import item_text
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.self_instruct.seeds import default_seed_path, load_seed_tasks
from fastgen.servers.endpoint import Endpoint, TimeoutPolicy
from fastgen.servers.openai import OpenAIBackend
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.store.records import decode, encode
from fastgen.types import Answer, Completion, Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import BinaryIO

    from fastgen.methods.base import Commit, Method

BASE = "default"
DRAWS = 2000
PAUSE_S = 2.0  # after a fault of the server
UNLIMITED = 10**9
_DEFAULT = SAMPLING_PRESETS["default"]
_INSTRUCTION = _DEFAULT["instruction"]
_WITHOUT_THE_SERVER = {
    "classification": Completion(" No", "stop"),
    "instance": Completion("Output: Done.", "stop"),
}


def _method(sampling: Sampling = _INSTRUCTION, **changes: Any) -> Method:  # noqa: ANN401 - options of the method
    seeds, prompts = load_seed_tasks(default_seed_path()), load_prompts("completions")
    return self_instruct(PRESETS["default"], seeds, prompts, {**_DEFAULT, "instruction": sampling}, **changes)


SETTINGS = {
    BASE: _method(),
    "least-used": _method(demonstrations="least-used"),
    "diverse": _method(demonstrations="diverse"),
    "2 samples": _method(samples=2),
    "4 samples": _method(samples=4),
    "4 machine": _method(num_machine_instructions=4),
    "temperature 0.5": _method(replace(_INSTRUCTION, temperature=0.5)),
    "temperature 1": _method(replace(_INSTRUCTION, temperature=1.0)),
    "hot": _method(replace(_INSTRUCTION, temperature=1.0, top_p=0.9)),
    "no penalty": _method(replace(_INSTRUCTION, frequency_penalty=0.0)),
    "frequency 0.5": _method(replace(_INSTRUCTION, frequency_penalty=0.5)),
    "3 items": _method(replace(_INSTRUCTION, max_tokens=256, stop=("\n\n", "\n12."))),
    "15 items": _method(replace(_INSTRUCTION, max_tokens=1024, stop=("\n\n", "\n24."))),
}
"""By name: the default, and what differs from it in one thing."""


class Trial:
    """One setting's run: its plan and what it has generated."""

    def __init__(self, name: str, method: Method) -> None:
        self.name = name
        self.plan = Plan(method, NoveltyFilter(), target=UNLIMITED, clock=time.time)
        self.tokens = 0

    def next(self) -> Request:
        """The next instruction request; downstream work is answered on the way."""
        while (request := self.plan.next()) is not None and request.step != "instruction":
            self.commit(request, (_WITHOUT_THE_SERVER[request.step],))
        assert request is not None, "an endless target always wants more"
        return request

    def commit(self, request: Request, completions: Sequence[Completion]) -> list[Commit]:
        """Judge and apply; the commits."""
        commits = self.plan.judge([Answer(request, i, completion) for i, completion in enumerate(completions)])
        for commit in commits:
            self.plan.apply(commit)
            self.tokens += commit.completion.completion_tokens
        return commits


async def generate(
    base_url: str, model: str, trials: Sequence[Trial], *, tokens: int, slots: int, output: Path
) -> None:
    """Run the trials side by side until each has generated ``tokens``; append every completion to ``output``."""
    endpoint = Endpoint(base_url, model, timeout=TimeoutPolicy(total_s=3600.0))
    async with OpenAIBackend(endpoint) as backend:
        found = await backend.wait_until_answering(60.0, print)
    if not model:
        endpoint = replace(endpoint, model=found[0])
    async with OpenAIBackend(endpoint) as backend:
        with output.open("ab") as lines:
            await asyncio.gather(
                *(
                    _work(trial, backend, tokens, lines)
                    for trial in trials
                    for _ in range(max(1, slots // trial.plan.method.creation.samples))
                )
            )


async def _work(trial: Trial, backend: OpenAIBackend, tokens: int, lines: BinaryIO) -> None:
    while trial.tokens < tokens:
        request = trial.next()
        commits = trial.commit(request, await _complete(backend, request))
        lines.writelines(orjson.dumps({"setting": trial.name, **encode(commit)}) + b"\n" for commit in commits)
        lines.flush()


async def _complete(backend: OpenAIBackend, request: Request) -> tuple[Completion, ...]:
    while True:
        try:
            return await backend.complete(request)
        except TransientError as error:
            print(f"again: {error}")
            await asyncio.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True)
class Sample:
    """All completions of one request: tokens, items, items kept, the rules that rejected others, the novel texts."""

    tokens: int
    items: int
    kept: int
    rejected: Counter[str]
    texts: tuple[str, ...]
    """Items that only the similarity check judged, kept or not, in order."""
    kept_texts: tuple[str, ...]


def read(path: Path) -> dict[str, list[Sample]]:
    """Samples by setting, in the order of commitment."""
    by_request: dict[tuple[str, int], list[Commit]] = {}
    with path.open("rb") as lines:
        for line in lines:
            fields = orjson.loads(line)
            commit = decode(fields)
            if isinstance(commit.outcome, Created):
                by_request.setdefault((fields["setting"], commit.request), []).append(commit)
    samples: dict[str, list[Sample]] = {}
    for (setting, _), commits in by_request.items():
        samples.setdefault(setting, []).append(_sample(commits))
    return samples


def _sample(commits: Sequence[Commit]) -> Sample:
    rules = PRESETS["default"]
    kept: list[str] = []
    judged: list[tuple[tuple[int, int, int], str]] = []
    rejected: Counter[str] = Counter()
    for nth, commit in enumerate(commits):
        outcome, raw = commit.outcome, commit.completion.text
        assert isinstance(outcome, Created)
        kept += [item_text(raw, k.span, rules) for k in outcome.kept]
        rejected.update(r.rule for r in outcome.rejected)
        spans = [k.span for k in outcome.kept] + [r.span for r in outcome.rejected if r.rule == SIMILAR]
        judged += [((nth, *span), item_text(raw, span, rules)) for span in spans]
    tokens = sum(commit.completion.completion_tokens for commit in commits)
    texts = tuple(text for _, text in sorted(judged))
    return Sample(tokens, len(kept) + rejected.total(), len(kept), rejected, texts, tuple(kept))


def kept_when_deep(own: Sequence[Sample], background: Sequence[str], depth: int) -> list[int]:
    """How many texts of each sample are kept in a pool that begins with the seeds and ``depth`` of ``background``."""
    novelty = NoveltyFilter()
    novelty.add_seeds([seed.instruction for seed in load_seed_tasks(default_seed_path())])
    novelty.add(random.Random(0).sample(background, depth))
    return [sum(verdict.novel for verdict in novelty.filter(one.texts)) for one in own]


def backgrounds(samples: Mapping[str, Sequence[Sample]], more: Sequence[str]) -> dict[str, list[str]]:
    """By setting: what the other settings kept, and ``more``."""
    kept = {name: [text for one in own for text in one.kept_texts] for name, own in samples.items()}
    return {name: [*more, *(text for other in kept if other != name for text in kept[other])] for name in samples}


class Bootstrap:
    """Resamples of one setting's requests, the same for every figure of it."""

    def __init__(self, tokens: Sequence[int], seed: int) -> None:
        self._tokens = np.array(tokens, dtype=float)
        self._drawn = np.random.default_rng(seed).integers(0, len(tokens), size=(DRAWS, len(tokens)))

    def per_1000(self, counts: Sequence[int]) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
        """``counts`` per 1,000 tokens: as it is, and once for each resample."""
        given = np.array(counts, dtype=float)
        resampled = given[self._drawn].sum(axis=1) / self._tokens[self._drawn].sum(axis=1)
        return float(1000 * given.sum() / self._tokens.sum()), 1000 * resampled


def analyse(samples: Mapping[str, Sequence[Sample]], more: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures by setting, with 95 % intervals; ``versus`` is the ratio to the default's yield."""
    others = backgrounds(samples, more)
    depth = min(map(len, others.values()))
    figures: dict[str, dict[str, Any]] = {}
    draws: dict[tuple[str, str], Any] = {}
    for nth, (name, own) in enumerate(samples.items()):
        bootstrap = Bootstrap([one.tokens for one in own], nth)
        deep = kept_when_deep(own, others[name], depth)
        figures[name] = _counts(own) | {"depth": depth}
        for figure, counts in (("yield", [one.kept for one in own]), ("deep_yield", deep)):
            figures[name][figure], draws[name, figure] = bootstrap.per_1000(counts)
            figures[name][f"{figure}_95"] = _interval(draws[name, figure])
    for name in samples:
        for figure in ("yield", "deep_yield"):
            figures[name][f"{figure}_versus"] = figures[name][figure] / figures[BASE][figure]
            figures[name][f"{figure}_versus_95"] = _interval(draws[name, figure] / draws[BASE, figure])
    return figures


def decay(samples: Mapping[str, Sequence[Sample]], more: Sequence[str]) -> list[tuple[int, float]]:
    """(depth that the pool begins with, the default's yield there), the depths doubling."""
    own, background = samples[BASE], backgrounds(samples, more)[BASE]
    depths = [0]
    while depths[-1] < len(background):
        depths.append(min(max(500, 2 * depths[-1]), len(background)))
    tokens = sum(one.tokens for one in own)
    return [(depth, 1000 * sum(kept_when_deep(own, background, depth)) / tokens) for depth in depths]


def _interval(draws: Any) -> list[float]:  # noqa: ANN401 - an array of floats
    low, high = np.percentile(draws, (2.5, 97.5))
    return [float(low), float(high)]


def _counts(own: Sequence[Sample]) -> dict[str, Any]:
    rejected = sum((one.rejected for one in own), Counter[str]())
    items = sum(one.items for one in own)
    tokens = sum(one.tokens for one in own)
    return {
        "requests": len(own),
        "tokens": tokens,
        "kept": sum(one.kept for one in own),
        "tokens_per_item": tokens / items,
        "acceptance": sum(one.kept for one in own) / items,
        "rejected": dict(rejected.most_common()),
        "words_per_kept": float(np.mean([len(text.split()) for one in own for text in one.kept_texts])),
    }


def report(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """The table for people."""
    columns = ("setting", "tokens", "kept", "tokens/item", "accepted", "words", "yield", "versus", "deep", "versus")
    rows = [
        (
            *(name, row["tokens"], row["kept"], row["tokens_per_item"], row["acceptance"], row["words_per_kept"]),
            *(
                f"{row['yield']:.1f} ({_span(row['yield_95'])})",
                f"{row['yield_versus']:.2f} ({_span(row['yield_versus_95'], 2)})",
            ),
            *(f"{row['deep_yield']:.1f} ({_span(row['deep_yield_95'])})",),
            f"{row['deep_yield_versus']:.2f} ({_span(row['deep_yield_versus_95'], 2)})",
        )
        for name, row in figures.items()
    ]
    print_table(columns, rows)


def _span(interval: Sequence[float], digits: int = 1) -> str:
    return " to ".join(f"{value:.{digits}f}" for value in interval)


def main() -> None:
    """Generate, unless only the analysis is asked for, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="a server for /v1/completions")
    parser.add_argument("--model", default="", help="default: the server's first")
    parser.add_argument(
        "--settings", default=",".join(SETTINGS), help="names, separated by commas; 'default' is needed"
    )
    parser.add_argument("--tokens", type=int, default=12_000, help="to generate in each setting")
    parser.add_argument("--slots", type=int, default=4, help="sequences in flight in each setting")
    parser.add_argument("--seed", type=int, default=0, help="keys the demonstrations, the same for all settings")
    parser.add_argument("--output", type=Path, default=Path("yield.jsonl"), help="completions are appended here")
    parser.add_argument(
        "--background", type=Path, nargs="*", default=[], help="outputs whose kept texts deepen the pool"
    )
    parser.add_argument("--analyse", type=Path, help="print the figures of such a file and stop")
    given = parser.parse_args()
    path = given.analyse or given.output
    if given.analyse is None:
        methods = {name: replace(SETTINGS[name], seed=given.seed) for name in given.settings.split(",")}
        trials = [Trial(name, method) for name, method in methods.items()]
        asyncio.run(
            generate(given.base_url, given.model, trials, tokens=given.tokens, slots=given.slots, output=given.output)
        )
    samples = read(path)
    more = [
        text for other in given.background for own in read(other).values() for one in own for text in one.kept_texts
    ]
    figures = analyse(samples, more)
    report(figures)
    print()
    deeper = decay(samples, more)
    print_table(("pool at the start", "the default's yield"), deeper)
    finish("novelty_yield", {"settings": figures, "decay": deeper})


if __name__ == "__main__":
    main()
