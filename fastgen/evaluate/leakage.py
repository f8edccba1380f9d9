"""The most similar text of a large set for each of a few: exact, since every pair is a candidate.

ROUGE-L F1 without stemming, as in the similarity filter, whose full scan this uses: a pair is skipped only where the
lengths or the words leave no room for a score above the lowest best one so far. Memory is bounded by a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from fastgen.errors import InputError
from fastgen.evaluate.tasks import EvaluationTask, Row, cases, read_rows
from fastgen.similarity.rouge import tokenise
from fastgen.store.log import TornTail
from fastgen.store.reader import open_run, settled_instructions
from fastgen.store.tables import is_parquet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]


CHUNK_TEXTS = 65_536
_LOWEST = 1e-9  # a threshold that any common word exceeds


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best ROUGE-L F1 (0..1) and the first text that has it; ``None`` where no text shares a word."""

    rouge_l: float = 0.0
    text: str | None = None


class NearestSearch:
    """Finds for each query the nearest of all the texts that were given to `meet`."""

    def __init__(self, queries: Sequence[str]) -> None:
        self._queries = list(queries)
        self._best = [Nearest() for _ in queries]
        self._waiting: list[str] = []

    def meet(self, text: str) -> None:
        """Compare one more text (later, with others)."""
        self._waiting.append(text)
        if len(self._waiting) >= CHUNK_TEXTS:
            self._compare()

    def found(self) -> tuple[Nearest, ...]:
        """The nearest so far, in the order of the queries."""
        self._compare()
        return tuple(self._best)

    def _compare(self) -> None:
        from fastgen.similarity.novelty import NoveltyFilter

        texts, self._waiting = self._waiting, []
        if not texts or not self._queries:
            return
        lowest = max(_LOWEST, min(best.rouge_l for best in self._best))
        scan = NoveltyFilter(threshold=lowest, index="exhaustive")
        scan.add(texts)
        for place, verdict in enumerate(scan.look_up(self._queries)):
            if verdict.neighbour is not None and verdict.score > self._best[place].rouge_l:
                self._best[place] = Nearest(verdict.score, texts[verdict.neighbour])


LENGTHS = (8, 13)
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that every place of an n-gram counts
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class NgramOverlap:
    """For one n: instances whose input has at least n words, and the names of those that share n in a row."""

    n: int
    long_enough: int
    shared: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the instances that are long enough, 0..1."""
        return len(self.shared) / self.long_enough if self.long_enough else 0.0


class NgramSearch:
    """The n-grams of texts to protect; show it the training text with `meet`, then ask `found`.

    ``texts``: (name, text), several of one name count as one.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], lengths: Sequence[int] = LENGTHS) -> None:
        import numpy as np

        self._vocabulary: dict[str, int] = {}
        named = [(name, self._encode_new(text)) for name, text in texts]
        self._targets = [_Targets(n, named) for n in lengths]
        self._separator = np.zeros(1, np.uint64)

    def meet(self, texts: Iterable[str]) -> None:
        """Look at training texts; a run of words never spans two of them. Give many at once."""
        import numpy as np

        known = self._vocabulary
        parts: list[Words] = []
        for text in texts:
            codes = [known.get(word, 0) for word in tokenise(text)]
            parts += [np.array(codes, np.uint64), self._separator]
        if parts:
            words = _spread(np.concatenate(parts))
            for targets in self._targets:
                targets.meet(words)

    def found(self) -> tuple[NgramOverlap, ...]:
        """What was met so far, for each n."""
        return tuple(targets.overlap() for targets in self._targets)

    def _encode_new(self, text: str) -> Words:
        import numpy as np

        known = self._vocabulary
        return _spread(np.array([known.setdefault(word, len(known) + 1) for word in tokenise(text)], np.uint64))


class _Targets:
    """The n-grams of one length, sorted, and which of them were met."""

    def __init__(self, n: int, named: Sequence[tuple[str, Words]]) -> None:
        import numpy as np

        self._n = n
        grams = [(name, _ngrams(words, n)) for name, words in named]
        self._names = [name for name, hashes in grams if hashes.size]
        self._of = [hashes for _, hashes in grams if hashes.size]
        self._sorted = np.unique(np.concatenate(self._of)) if self._of else np.empty(0, np.uint64)
        self._met = np.zeros(self._sorted.size, np.bool_)

    def meet(self, words: Words) -> None:
        """Look for the n-grams in one text: word numbers, shape (words,)."""
        import numpy as np

        hashes = _ngrams(words, self._n)
        if hashes.size and self._sorted.size:
            places = np.minimum(np.searchsorted(self._sorted, hashes), self._sorted.size - 1)
            self._met[places[self._sorted[places] == hashes]] = True

    def overlap(self) -> NgramOverlap:
        """Which instances share an n-gram with what was met so far."""
        hit = [name for name, hashes in zip(self._names, self._of, strict=True) if self._has_met(hashes)]
        return NgramOverlap(self._n, len(set(self._names)), tuple(dict.fromkeys(hit)))

    def _has_met(self, hashes: Words) -> bool:
        return bool(self._met[self._sorted.searchsorted(hashes)].any())


def _spread(codes: Words) -> Words:
    """Word numbers as well-mixed 64-bit values (the finaliser of splitmix64, Steele et al., 2014)."""
    import numpy as np

    mixed = (codes + np.uint64(1)) * np.uint64(_FACTOR)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _ngrams(words: Words, n: int) -> Words:
    """A hash for every n words in a row; shape (max(0, words - n + 1),)."""
    import numpy as np

    count = max(0, words.size - n + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):
        hashes = hashes * np.uint64(_FACTOR) + words[place : place + count]
    return hashes


_TEXT_FIELDS = ("instruction", "input", "output", "prompt", "completion")


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """An instruction (of a prompt or a chat: all that the user says) and every text that the model sees with it."""

    instruction: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows to read once, and the instructions of the seed tasks behind them, where these are known."""

    name: str
    rows: Iterator[TrainingRow]
    seeds: tuple[str, ...] = ()


def open_training_data(path: Path) -> TrainingData:
    """The rows of a run folder, or of a file that `fastgen export` writes in any of its formats.

    :raises InputError: neither of the two; while reading: a row without any text, damaged data.
    """
    if path.is_dir():
        if not (path / "run.json").exists():
            raise InputError(f"{path}: there is no run here; name a run folder or a file that 'fastgen export' writes")
        run = open_run(path)
        return TrainingData(str(path), _run_rows(path), tuple(seed.instruction for seed in run.seeds))
    return TrainingData(str(path), _file_rows(path))


def _run_rows(path: Path) -> Iterator[TrainingRow]:
    run = open_run(path)
    commits = (item[0] for item in run.folder.commits() if not isinstance(item, TornTail))
    for settled in settled_instructions(commits, run.rules):
        if settled.instances:
            texts = [text for instance in settled.instances for text in (instance.input, instance.output)]
            yield TrainingRow(settled.instruction, (settled.instruction, *filter(None, texts)))


def _file_rows(path: Path) -> Iterator[TrainingRow]:
    rows = _parquet_rows(path) if is_parquet(path) else read_rows(path)
    for number, row in rows:
        yield _row(row, f"{path}:{number}")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    from fastgen.store.tables import open_table

    for rows in open_table(path, "instruction").batches():
        yield from zip(rows.lines, rows.data.to_pylist(), strict=True)


def _row(row: Row, where: str) -> TrainingRow:
    if isinstance(row.get("messages"), list):
        return _chat(row["messages"], where)
    texts = [row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str)]
    instances = row.get("instances")
    for instance in (one for one in instances if isinstance(one, dict)) if isinstance(instances, list) else ():
        texts += [instance[name] for name in ("input", "output") if isinstance(instance.get(name), str)]
    if not texts or not texts[0].strip():
        raise InputError(f"{where}: no 'instruction', 'prompt' or 'messages'; name a file that 'fastgen export' writes")
    return TrainingRow(texts[0], tuple(filter(None, texts)))


def _chat(messages: list[Any], where: str) -> TrainingRow:
    told = [(m.get("role"), m.get("content")) for m in messages if isinstance(m, dict)]
    texts = [(role, text) for role, text in told if isinstance(text, str)]
    instruction = next((text for role, text in texts if role == "user"), None)
    if instruction is None:
        raise InputError(f"{where}: 'messages' has no text of the user; name a file that 'fastgen export' writes")
    return TrainingRow(instruction, tuple(text for _, text in texts))


SIMILAR = 0.7
"""The similarity filter's own threshold: above it an instruction counts as the same."""
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Leakage:
    """``nearest`` and ``nearest_seed`` are in the order of ``tasks`` (names); the latter is empty without seeds."""

    training_data: str
    instructions: int
    tasks: tuple[str, ...]
    nearest: tuple[Nearest, ...]
    nearest_seed: tuple[Nearest, ...]
    ngrams: tuple[NgramOverlap, ...]

    @property
    def mean_rouge_l(self) -> float:
        """Mean over the tasks of the ROUGE-L F1 (0..1) to the nearest training instruction."""
        return fmean(nearest.rouge_l for nearest in self.nearest)

    @property
    def mean_seed_rouge_l(self) -> float | None:
        """The same to the nearest seed task; ``None`` where the seeds are not known."""
        return fmean(nearest.rouge_l for nearest in self.nearest_seed) if self.nearest_seed else None

    @property
    def similar(self) -> tuple[str, ...]:
        """Tasks with a training instruction above `SIMILAR`."""
        return tuple(task for task, near in zip(self.tasks, self.nearest, strict=True) if near.rouge_l > SIMILAR)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        scores = [nearest.rouge_l for nearest in self.nearest]
        return {
            "training_data": self.training_data,
            "instructions": self.instructions,
            "rouge_l": {"mean": self.mean_rouge_l, "median": median(scores), "max": max(scores)},
            "seed_rouge_l_mean": self.mean_seed_rouge_l,
            f"tasks_above_{SIMILAR}": list(self.similar),
            "ngrams": [
                {"n": g.n, "instances": g.long_enough, "shared": len(g.shared), "share": g.share, "ids": list(g.shared)}
                for g in self.ngrams
            ],
            "nearest": [
                {"task": task, "rouge_l": near.rouge_l, "instruction": near.text}
                for task, near in zip(self.tasks, self.nearest, strict=True)
            ],
        }

    def __str__(self) -> str:
        scores = [nearest.rouge_l for nearest in self.nearest]
        mean, highest = fmean(scores), max(scores)
        similar = f"above {SIMILAR}: {len(self.similar)} of {len(scores)}"
        lines = [
            f"Leakage from {self.training_data} ({self.instructions:,} instructions):",
            f"- ROUGE-L of a test instruction to the nearest: mean {mean:.3f}, highest {highest:.3f}; {similar}",
        ]
        if self.mean_seed_rouge_l is not None:
            lines.append(f"- to the nearest seed task: mean {self.mean_seed_rouge_l:.3f}")
        lines += [
            f"- {g.n} words in a row of the input found in the training text: {len(g.shared):,} of {g.long_enough:,} "
            f"instances that are long enough ({g.share:.1%})"
            for g in self.ngrams
        ]
        return "\n".join(lines)


def leakage(training_data: Path, tasks: Sequence[EvaluationTask]) -> Leakage:
    """Compare a run folder, or an exported file, with a benchmark's tasks (at least one).

    :raises InputError: the data cannot be read, or has no instruction.
    """
    data = open_training_data(training_data)
    found = _Comparison(tasks)
    for row in data.rows:
        found.add(row)
    return found.result(data)


class _Comparison:
    def __init__(self, tasks: Sequence[EvaluationTask]) -> None:
        self._tasks = tuple(task.name for task in tasks)
        self._definitions = [task.definition for task in tasks]
        self._nearest = NearestSearch(self._definitions)
        self._ngrams = NgramSearch(("/".join(case.key), case.instance.input) for case in cases(tasks))
        self._batch: list[str] = []
        self._last: str | None = None
        self._instructions = 0

    def add(self, row: TrainingRow) -> None:
        """Meet one more row; rows of one instruction follow each other."""
        texts: Iterable[str] = row.texts
        if row.instruction != self._last:  # instances of one instruction follow each other
            self._last = row.instruction
            self._instructions += 1
            self._nearest.meet(row.instruction)
        self._batch.extend(texts)
        if len(self._batch) >= _BATCH_ROWS:
            self._look_at_batch()

    def result(self, data: TrainingData) -> Leakage:
        """What was found in all rows. :raises InputError: there was none."""
        if not self._instructions:
            raise InputError(f"{data.name}: has no instruction with an instance yet, so nothing can be compared")
        self._look_at_batch()
        return Leakage(
            training_data=data.name,
            instructions=self._instructions,
            tasks=self._tasks,
            nearest=self._nearest.found(),
            nearest_seed=self._nearest_seeds(data.seeds),
            ngrams=self._ngrams.found(),
        )

    def _look_at_batch(self) -> None:
        self._ngrams.meet(self._batch)
        self._batch = []

    def _nearest_seeds(self, seeds: Sequence[str]) -> tuple[Nearest, ...]:
        if not seeds:
            return ()
        search = NearestSearch(self._definitions)
        for seed in seeds:
            search.meet(seed)
        return search.found()
