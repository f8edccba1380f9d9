"""The novelty filter: candidates from an index, then exact ROUGE-L, then keep or reject.

Guarantees:

- Texts are decided in order, each against the whole pool and against the texts kept before it in the same call. The
  decisions are the same one at a time or in batches.
- Scores are the floats that rouge_score computes. A text without a token (empty, only punctuation, or another script
  under the ``rouge`` tokenizer) scores 0 against everything, as in rouge_score: it is novel and never a neighbour.
- Kernels release the GIL, so calls may run in a worker thread, one thread at a time.
"""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from fastgen.errors import InputError
from fastgen.similarity.rouge import RejectAt, Tokenizer, check_rule, tokenise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastgen.similarity.bands import Bands
    from fastgen.similarity.layout import Found, StoredArrays
    from fastgen.similarity.pool import CandidateIndex
    from fastgen.types import Neighbour


IndexKind = Literal["lsh", "exact", "exhaustive"]
INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
LSH_RECALL = 0.9998
MOST_RECORDED = 100


class Verdict(NamedTuple):
    """The decision on one text.

    ``neighbour``, ``score``: the most similar pool member that the check met and its ROUGE-L F1, 0..1; for a rejected
    text the reason, for a novel one possibly none (``None``, 0.0). ``nearest_seed``: (pool index, ROUGE-L F1) of the
    most similar seed, exact, for novel texts (``None`` for rejected ones and in a pool without seeds).
    ``nearest_checked``: up to five pool members whose score was computed, best first, lowest pool index among equals;
    with ``record_top_k``, for novel texts, the true nearest that many.
    """

    novel: bool
    neighbour: int | None = None
    score: float = 0.0
    nearest_seed: Neighbour | None = None
    nearest_checked: tuple[Neighbour, ...] = ()


class NoveltyFilter:
    """A pool of texts that a new text must differ from.

    ``threshold`` (0 < t <= 1) and ``reject_at`` are the rule: ``gt`` rejects above the threshold, ``ge`` at it too.
    ``index``: ``lsh`` (default; misses a true neighbour with probability ``1 - bands.recall``), ``exact`` (no miss),
    ``exhaustive`` (no miss, linear cost). ``lsh_recall`` chooses bands and rows unless both are given.
    ``record_top_k`` (0: off) finds for every novel text its nearest that many pool members by a full scan.

    One round is ``verdicts = decide(texts)``, then ``admit(kept)``. The next call forgets novel texts that were not
    admitted. ``filter`` decides and admits, ``look_up`` only compares, ``add`` appends without a decision.

    :raises InputError: a parameter is out of range or unknown.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.7,
        reject_at: RejectAt = "gt",
        tokenizer: Tokenizer = "unicode",
        index: IndexKind = "lsh",
        lsh_recall: float = LSH_RECALL,
        lsh_bands: int | None = None,
        lsh_rows: int | None = None,
        record_top_k: int = 0,
    ) -> None:
        check_rule(threshold, reject_at)
        tokenise("", tokenizer)
        if not 0 <= record_top_k <= MOST_RECORDED:
            raise InputError(f"record_top_k {record_top_k} is not in 0 .. {MOST_RECORDED}: 10 is the original's figure")
        self.record_top_k = record_top_k
        if index not in INDEX_KINDS:
            raise InputError(f"unknown index {index!r}: use one of {', '.join(INDEX_KINDS)}")
        self.threshold = threshold
        self.reject_at = reject_at
        self.tokenizer: Tokenizer = tokenizer
        self.bands: Bands | None = None
        """Bands and rows of an ``lsh`` index, with ``recall`` and ``at_bound`` to print."""
        if index == "lsh":
            self.bands = _banding(threshold, lsh_recall, lsh_bands, lsh_rows)
        self._kind: IndexKind = index
        self._make_index = partial(_make_index, index, threshold, reject_at, self.bands)
        self._built: CandidateIndex | None = None
        self._building = Lock()
        self._waiting_seeds: list[str] = []
        self._size = 0
        self._seeds = 0
        self._decided: list[str] = []  # novel texts of the last decision: in the index, not yet in the pool

    def __len__(self) -> int:
        """Texts in the pool, seeds included."""
        return self._size

    def add_seeds(self, texts: Sequence[str]) -> None:
        """Put the seeds in the pool. They are never filtered.

        :raises InputError: the pool already holds other texts.
        """
        self._forget_decision()
        if self._size != self._seeds:
            raise InputError("seeds were added to a pool that already holds other texts: add every seed first")
        with self._building:
            if self._built is None:
                self._waiting_seeds += texts
            else:
                self._built.add(self._encode(texts), seeds=True)
        self._size = self._seeds = self._size + len(texts)

    def add(self, texts: Sequence[str]) -> None:
        """Append texts without a check, as the replay of a run does."""
        if not texts:  # a new run replays nothing, and must not wait until the kernels are loaded
            return
        self._forget_decision()
        self._index.add(self._encode(texts))
        self._size = len(self._index)

    def decide(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in order. The pool stays as it is until :meth:`admit`.

        A novel text counts for those after it, under the pool index that it will get: ``len(self)`` plus the number of
        novel texts before it in the call.
        """
        self._forget_decision()
        verdicts = _verdicts(self._index.decide(self._encode(texts)))
        if self.record_top_k:
            verdicts = self._with_nearest(verdicts)
        self._decided = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.novel]
        return verdicts

    def look_up(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, each by itself against the pool as it is. Nothing is added (audit, decontamination)."""
        self._forget_decision()
        return _verdicts(self._index.look_up(self._encode(texts)))

    def admit(self, texts: Sequence[str] | None = None) -> None:
        """Append novel texts of the last :meth:`decide`: ``texts``, the next ones in order, or all that are left.

        :raises ValueError: ``texts`` are not the next novel ones of the last decision.
        """
        admitted = self._decided if texts is None else list(texts)
        if self._decided[: len(admitted)] != admitted:
            raise ValueError("only the next novel texts of the last decision can be admitted")
        self._decided = self._decided[len(admitted) :]
        self._size += len(admitted)

    def filter(self, texts: Sequence[str]) -> list[Verdict]:
        """Decide and admit in one pass."""
        verdicts = self.decide(texts)
        self.admit()
        return verdicts

    def save(self) -> dict[str, NDArray[Any]]:
        """The index's arrays, not copied, without the texts of a decision that were not admitted."""
        self._forget_decision()
        return self._index.arrays()

    def load(self, stored: StoredArrays) -> CandidateIndex:
        """A second index, with what :meth:`save` gave. Give it to :meth:`take_over`.

        :raises ValueError: the arrays do not fit this filter or contradict each other.
        """
        index = self._make_index()
        index.load(stored)
        return index

    def take_over(self, index: CandidateIndex) -> None:
        """Make a loaded index, with the same seeds, the pool."""
        with self._building:  # else `prepare`, in another thread, could put a new index in its place
            self._built, self._waiting_seeds = index, []
        self._decided = []
        self._size = len(index)

    def memory_bytes(self) -> int:
        """Bytes held by pool and index, room to grow included."""
        return 0 if self._built is None else self._built.memory_bytes()

    def prepare(self) -> None:
        """Load the kernels (:func:`warm_up`) and build the index, in any thread.

        Calls that need the index meanwhile wait. Without this, the first of them does the work.
        """
        with self._building:
            warm_up(self._kind)
            self._build()

    @property
    def _index(self) -> CandidateIndex:
        with self._building:
            return self._build()

    def _build(self) -> CandidateIndex:
        if self._built is None:
            index = self._make_index()
            index.add(self._encode(self._waiting_seeds), seeds=True)
            self._built, self._waiting_seeds = index, []
        return self._built

    def _with_nearest(self, verdicts: list[Verdict]) -> list[Verdict]:
        novel = [at for at, verdict in enumerate(verdicts) if verdict.novel]
        found = self._index.nearest_older(range(self._size, self._size + len(novel)), self.record_top_k)
        for at, entries, scores in zip(novel, found.entry.tolist(), found.score.tolist(), strict=True):
            checked = tuple([pair for pair in zip(entries, scores, strict=True) if pair[0] >= 0])
            neighbour, score = checked[0] if checked else (None, 0.0)
            verdicts[at] = verdicts[at]._replace(neighbour=neighbour, score=score, nearest_checked=checked)
        return verdicts

    def _forget_decision(self) -> None:
        self._decided = []
        if self._built is not None and len(self._built) > self._size:
            self._built.truncate(self._size)

    def _encode(self, texts: Sequence[str]) -> list[bytes]:
        return [
            text.encode() if text.isascii() else " ".join(tokenise(text, self.tokenizer)).encode() for text in texts
        ]


def _verdicts(found: Found) -> list[Verdict]:
    columns = (found.novel, found.entry, found.score, found.seed, found.seed_score)
    return [_verdict(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _verdict(novel: int, entries: list[int], scores: list[float], seed: int, seed_score: float) -> Verdict:
    checked = tuple([pair for pair in zip(entries, scores, strict=True) if pair[0] >= 0]) if entries[0] >= 0 else ()
    nearest_seed = (seed, seed_score) if seed >= 0 else None
    neighbour: int | None = entries[0] if checked else None
    score = scores[0]
    if seed >= 0 and (seed_score > score or (seed_score == score > 0 and seed < entries[0])):
        neighbour, score = seed, seed_score
    return Verdict(bool(novel), neighbour, score, nearest_seed, checked)


def _banding(threshold: float, recall: float, bands: int | None, rows: int | None) -> Bands:
    from fastgen.similarity.bands import Bands, choose_bands

    if bands is None and rows is None:
        return choose_bands(threshold, recall)
    if bands is None or rows is None:
        raise InputError("give both the number of LSH bands and of rows, or neither and a recall")
    if not (1 <= bands <= 1024 and 1 <= rows <= 16):  # noqa: PLR2004 - the ranges the message states
        raise InputError(f"LSH with {bands} bands of {rows} rows: bands must be 1 to 1024, rows 1 to 16")
    return Bands(bands, rows, threshold)


def _make_index(kind: IndexKind, threshold: float, reject_at: RejectAt, bands: Bands | None) -> CandidateIndex:
    if kind == "lsh" and bands is not None:
        from fastgen.similarity.lsh import LshIndex

        return LshIndex(threshold, reject_at, bands)
    if kind == "exact":
        from fastgen.similarity.exact import ExactIndex

        return ExactIndex(threshold, reject_at)
    if kind == "exhaustive":
        from fastgen.similarity.exhaustive import ExhaustiveIndex

        return ExhaustiveIndex(threshold, reject_at)
    raise ValueError(kind)


def warm_up(index: IndexKind = "lsh") -> None:
    """Load (the first time on a machine: compile) every kernel of an index, so that the first real batch is fast.

    About half a second from numba's disk cache, up to a minute where it has to compile.
    """
    novelty = NoveltyFilter(index=index)
    novelty.add_seeds(["Write a short poem about the sea."])
    novelty.decide(["List three uses of a paper clip.", "Write a short poem about the sea."])
    novelty.filter([f"Sort the words {' '.join(map(str, range(70)))}"])
