"""How much a training text overlaps with a benchmark: the part of a good score that may come from having seen the test.

Two measures:

- The ROUGE-L F1 of each test task's definition to its nearest training instruction, exact over all of them, without
  stemming, by the full scan of the similarity filter. For a run it is also given to the nearest seed task; Wang et al.
  (ACL 2023) report means of 0.21 for SuperNI and 0.34 for the user-oriented set.
- The instances whose input shares 8 or 13 words in a row with any training text: 13 as in Brown et al., "Language
  Models are Few-Shot Learners", 2020, appendix C, and 8 as in Chowdhery et al., "PaLM", 2022, section 8. Words are
  compared lower-cased and without punctuation, n-grams by 64-bit hashes over an exact vocabulary (a chance match is
  about as likely as 1 in 10^7 even for 10^12 compared pairs).

The training text is read once. Memory is bounded by batches of it and takes 8 bytes for each word of the benchmark and
each n. An exported JSON array is one value and is held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

from fastgen.errors import InputError
from fastgen.evaluate.tasks import EvaluationTask, Row, cases, read_rows
from fastgen.similarity.rouge import tokenise
from fastgen.store.reader import OpenRun, finished_instructions, open_run
from fastgen.store.tables import is_parquet, open_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

SIMILAR: Final = 0.7
"""The similarity filter's own threshold: above it an instruction counts as the same."""
LENGTHS: Final = (8, 13)
CHUNK_TEXTS: Final = 65_536
_BATCH_TEXTS: Final = 4096
_LOWEST: Final = 1e-9  # a threshold that any common word exceeds
_FACTOR: Final = 0x9E3779B97F4A7C15  # odd, so that every position of an n-gram counts
_TEXT_FIELDS: Final = ("instruction", "input", "output", "prompt", "completion")

TrainingRow = tuple[str, Sequence[str]]
"""An instruction (of a prompt or a chat: all that the user says) and every text that the model sees with it."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best ROUGE-L F1 (0..1) and the first text that has it, or ``None`` if no text shares a word."""

    rouge_l: float = 0.0
    text: str | None = None


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


@dataclass(frozen=True, slots=True)
class Leakage:
    """``nearest`` and ``nearest_seed`` are in the order of ``tasks`` (names). The latter is empty without seeds."""

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
        """The same to the nearest seed task, or ``None`` if the seeds are not known."""
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
        highest = max(nearest.rouge_l for nearest in self.nearest)
        scores = f"mean {self.mean_rouge_l:.3f}, highest {highest:.3f}"
        similar = f"above {SIMILAR}: {len(self.similar)} of {len(self.tasks)}"
        lines = [
            f"Leakage from {self.training_data} ({self.instructions:,} instructions):",
            f"- ROUGE-L of a test instruction to the nearest: {scores}; {similar}",
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
    rows, seeds = _open_training_data(training_data)
    definitions = [task.definition for task in tasks]
    ngrams = NgramIndex(("/".join(case.key), case.instance.input) for case in cases(tasks))
    instructions = 0

    def new_instructions() -> Iterator[str]:
        """One for each instruction, whose instances follow each other. All texts are matched on the way."""
        nonlocal instructions
        last: str | None = None
        batch: list[str] = []
        for instruction, texts in rows:
            batch += texts
            if len(batch) >= _BATCH_TEXTS:
                ngrams.match(batch)
                batch.clear()
            if instruction != last:
                last = instruction
                instructions += 1
                yield instruction
        ngrams.match(batch)

    nearest = nearest_texts(definitions, new_instructions())
    if not instructions:
        raise InputError(f"{training_data}: has no instruction with an instance yet, so nothing can be compared")
    return Leakage(
        training_data=str(training_data),
        instructions=instructions,
        tasks=tuple(task.name for task in tasks),
        nearest=nearest,
        nearest_seed=nearest_texts(definitions, seeds) if seeds else (),
        ngrams=ngrams.overlaps(),
    )


def nearest_texts(queries: Sequence[str], texts: Iterable[str], *, chunk: int = CHUNK_TEXTS) -> tuple[Nearest, ...]:
    """The most similar text for each query, exact. ``chunk`` texts are in memory at a time."""
    from fastgen.similarity.novelty import NoveltyFilter

    best = [Nearest() for _ in queries]
    texts = iter(texts)
    while some := list(islice(texts, chunk)):
        lowest = max(_LOWEST, min(one.rouge_l for one in best))
        scan = NoveltyFilter(threshold=lowest, index="exhaustive")
        scan.add(some)
        for place, verdict in enumerate(scan.look_up(queries)):
            if verdict.neighbour is not None and verdict.score > best[place].rouge_l:
                best[place] = Nearest(verdict.score, some[verdict.neighbour])
    return tuple(best)


class NgramIndex:
    """The n-grams of a benchmark's texts, and which of them the training texts have.

    ``texts``: (name, text); several of one name count as one.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], lengths: Sequence[int] = LENGTHS) -> None:
        import numpy as np

        self._vocabulary: dict[str, int] = {}
        named = [(name, _mixed(np.array(self._encode_new(text), np.uint64))) for name, text in texts]
        self._tables = [_NgramTable(n, named) for n in lengths]

    def match(self, texts: Iterable[str]) -> None:
        """Look at training texts. A run of words never spans two of them. Many at once are faster."""
        import numpy as np

        codes: list[int] = []
        for text in texts:
            codes += (self._vocabulary.get(word, 0) for word in tokenise(text))
            codes.append(0)  # no word of the benchmark
        if codes:
            words = _mixed(np.array(codes, np.uint64))
            for table in self._tables:
                table.match(words)

    def overlaps(self) -> tuple[NgramOverlap, ...]:
        """For each n, what was matched so far."""
        return tuple(table.overlap() for table in self._tables)

    def _encode_new(self, text: str) -> list[int]:
        known = self._vocabulary
        return [known.setdefault(word, len(known) + 1) for word in tokenise(text)]


class _NgramTable:
    """The n-grams of one length, sorted, and which of them were matched."""

    def __init__(self, n: int, named: Sequence[tuple[str, Words]]) -> None:
        import numpy as np

        self._n = n
        self._texts = [(name, hashes) for name, words in named if (hashes := _ngrams(words, n)).size]
        every = [hashes for _, hashes in self._texts]
        self._sorted = np.unique(np.concatenate(every)) if every else np.empty(0, np.uint64)
        self._matched = np.zeros(self._sorted.size, np.bool_)

    def match(self, words: Words) -> None:
        """Look for the n-grams in one text."""
        import numpy as np

        hashes = _ngrams(words, self._n)
        if hashes.size and self._sorted.size:
            places = np.minimum(np.searchsorted(self._sorted, hashes), self._sorted.size - 1)
            self._matched[places[self._sorted[places] == hashes]] = True

    def overlap(self) -> NgramOverlap:
        """See `NgramIndex.overlaps`."""
        shared = [name for name, hashes in self._texts if self._matched[self._sorted.searchsorted(hashes)].any()]
        return NgramOverlap(self._n, len({name for name, _ in self._texts}), tuple(dict.fromkeys(shared)))


def _mixed(codes: Words) -> Words:
    """Word numbers as well-mixed 64-bit values (the finaliser of splitmix64, Steele et al., 2014)."""
    import numpy as np

    mixed = (codes + np.uint64(1)) * np.uint64(_FACTOR)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _ngrams(words: Words, n: int) -> Words:
    """A hash for every n words in a row. Shape (max(0, words - n + 1),)."""
    import numpy as np

    count = max(0, words.size - n + 1)
    hashes = np.zeros(count, np.uint64)
    for place in range(n):
        hashes = hashes * np.uint64(_FACTOR) + words[place : place + count]
    return hashes


def _open_training_data(path: Path) -> tuple[Iterator[TrainingRow], Sequence[str]]:
    """The rows of a run or of a file in any format of `fastgen export`, and the instructions of a run's seed tasks.

    :raises InputError: neither of the two; while reading: a row without any text, damaged data.
    """
    if not path.is_dir():
        return _file_rows(path), ()
    if not (path / "run.json").exists():
        raise InputError(f"{path}: there is no run here; name a run folder or a file that 'fastgen export' writes")
    run = open_run(path)
    return _run_rows(run), [seed.instruction for seed in run.seeds]


def _run_rows(run: OpenRun) -> Iterator[TrainingRow]:
    commits = run.folder.whole_commits()
    for finished in finished_instructions(commits, run):
        if finished.instances:
            texts = [text for instance in finished.instances for text in (instance.input, instance.output)]
            texts += [text for turn in finished.turns[1:] for text in (turn.user, turn.assistant)]
            yield finished.instruction, [finished.instruction, *filter(None, texts)]


def _file_rows(path: Path) -> Iterator[TrainingRow]:
    for number, row in _parquet_rows(path) if is_parquet(path) else read_rows(path):
        where = f"{path}:{number}"
        yield _chat(row["messages"], where) if isinstance(row.get("messages"), list) else _texts(row, where)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for rows in open_table(path, "instruction").batches():
        yield from zip(rows.lines, rows.data.to_pylist(), strict=True)


def _texts(row: Row, where: str) -> TrainingRow:
    texts = [row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str)]
    instances = row.get("instances")
    for instance in instances if isinstance(instances, list) else ():
        if isinstance(instance, dict):
            texts += [instance[name] for name in ("input", "output") if isinstance(instance.get(name), str)]
    turns = row.get("turns")
    for turn in turns[1:] if isinstance(turns, list) else ():
        if isinstance(turn, dict):
            texts += [turn[name] for name in ("user", "assistant") if isinstance(turn.get(name), str)]
    if not texts or not texts[0].strip():
        raise InputError(f"{where}: no 'instruction', 'prompt' or 'messages'; name a file that 'fastgen export' writes")
    return texts[0], [text for text in texts if text]


def _chat(messages: list[Any], where: str) -> TrainingRow:
    told = [(m.get("role"), m.get("content")) for m in messages if isinstance(m, dict)]
    texts = [(role, text) for role, text in told if isinstance(text, str)]
    instruction = next((text for role, text in texts if role == "user"), None)
    if instruction is None:
        raise InputError(f"{where}: 'messages' has no text of the user; name a file that 'fastgen export' writes")
    return instruction, [text for _, text in texts]
