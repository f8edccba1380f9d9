"""The state of a run: its pool of kept instructions, how far each is, and the figures that the plan needs.

It is the fold of the run's commits. `RunState.apply` (a running session) and `RunState.replay` (a resume) are its only
mutators and give the same state for the same commits. Requests in flight are not part of it. `folded`, `shown_counts`,
`save_index` and the pool's columns are what a checkpoint stores, `restore` is their inverse.

No I/O, no clock, no asyncio.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from fastgen.methods.base import (
    CREATION,
    Answered,
    Commit,
    Continued,
    Created,
    Drawn,
    Kept,
    Labelled,
    Method,
    StepOutcome,
    Subject,
    Turn,
)
from fastgen.methods.demonstrations import Demonstrations
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.types import Failure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import StoredArrays
    from fastgen.similarity.pool import CandidateIndex

COMPLETE: Final = 0xFE
EMPTY: Final = 0xFF
"""States of instructions that have ended. Any lower one is the place of the step that an instruction waits for."""
_UNSETTLED: Final = re.compile(rb"[^\xfe\xff]")
_MOST_DEPTH: Final = 255


class PoolColumn(NamedTuple):
    """One of the arrays of a pool: its name, dtype in numpy's notation, and flat memory."""

    name: str
    dtype: str
    data: memoryview


class InstructionPool:
    """The kept machine instructions: append-only texts, packed end to end, one state byte and one depth byte each.

    The index is the machine instruction number. A million instructions take about 100 MB, several times less than
    Python strings and objects would.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        self._states = bytearray()
        self._depths = bytearray()

    def __len__(self) -> int:
        return len(self._states)

    def append(self, text: str, depth: int = 1) -> None:
        """Add one instruction that waits for the first step. Lone surrogates survive."""
        encoded = text.encode("utf-8", "surrogatepass")
        try:
            self._bytes += encoded
            self._ends.append(len(self._bytes))
            self._depths.append(depth)
            self._states.append(0)
        except BufferError:  # a caller still holds `columns`: it keeps the memory, the pool continues in a copy
            count = len(self._states)
            self._bytes = self._bytes[: self._ends[count]] + encoded
            self._ends = self._ends[: count + 1]
            self._ends.append(len(self._bytes))
            self._depths = self._depths[:count] + bytes([depth])
            self._states = self._states[:count] + bytes([0])

    def text(self, number: int) -> str:
        """The instruction's text.

        :raises IndexError: no such number.
        """
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def memory_bytes(self) -> int:
        """Bytes held, including room to grow."""
        return sum(map(sys.getsizeof, (self._bytes, self._ends, self._states, self._depths)))

    def depth(self, number: int) -> int:
        """How many creations lead to the instruction from a seed, 1 to 255."""
        return self._depths[number]

    def state(self, number: int) -> int:
        """`COMPLETE`, `EMPTY`, or the place of the step that the instruction waits for."""
        return self._states[number]

    def set_state(self, number: int, state: int) -> None:
        """Set the instruction's state."""
        self._states[number] = state

    def unsettled(self) -> Iterator[tuple[int, int]]:
        """Number and state of every instruction that still needs a step, in ascending order."""
        return ((found.start(), self._states[found.start()]) for found in _UNSETTLED.finditer(self._states))

    def columns(self) -> tuple[PoolColumn, ...]:
        """The pool as flat memory, not copied. While a caller holds it, the next `append` copies the pool."""
        wide = "<u8" if sys.byteorder == "little" else ">u8"
        return (
            PoolColumn("texts", "|u1", memoryview(self._bytes)),
            PoolColumn("ends", wide, memoryview(self._ends).cast("B")),
            PoolColumn("states", "|u1", memoryview(self._states)),
            PoolColumn("depths", "|u1", memoryview(self._depths)),
        )

    @classmethod
    def from_columns(cls, texts: bytearray, ends: bytearray, states: bytearray, depths: bytearray) -> Self:
        """The inverse of `columns`. :raises ValueError: they do not fit together."""
        pool = cls()
        pool._bytes, pool._states, pool._depths, pool._ends = texts, states, depths, array("Q")
        pool._ends.frombytes(ends)
        if len(pool._ends) != len(states) + 1 or pool._ends[-1] != len(texts) or len(depths) != len(states):
            raise ValueError("the columns of a pool do not fit together")
        return pool


@dataclass(slots=True)
class Notes:
    """What later steps need to know about an instruction on its way, apart from its text."""

    input: str = ""
    label: bool | int | str | None = None
    turns: list[Turn] = field(default_factory=list)
    message: str = ""
    sources: tuple[int, ...] = ()
    drawn: Drawn = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self) | {"turns": [tuple(turn) for turn in self.turns]}  # orjson takes no named tuples

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `values`."""
        notes = cls(**values)
        notes.turns, notes.sources = [Turn(*turn) for turn in notes.turns], tuple(notes.sources)
        return notes

    @staticmethod
    def is_form_of(values: Any) -> bool:  # noqa: ANN401 - any JSON value
        """Whether these are values that `from_values` takes."""
        return (
            isinstance(values, dict)
            and values.keys() == _NOTED
            and all(isinstance(values[name], str) for name in ("input", "message"))
            and (values["label"] is None or isinstance(values["label"], bool | int | str))
            and all(isinstance(turn, list) and [*map(type, turn)] == [str] * 3 for turn in values["turns"])
            and all(type(source) is int for source in values["sources"])
            and all(isinstance(text, str) for pair in values["drawn"].items() for text in pair)
        )


_NOTED: Final = frozenset(field.name for field in fields(Notes))
REPLAY_BATCH = 4096  # texts that the similarity filter takes in at once on resume
REFUSALS = frozenset({"rejected", "prompt_too_long"})  # failures that say something about what was asked
MAX_SUBJECT_FAILURES: Final = 3
"""Permanent failures after which an instruction, or a document, is finished without what is missing."""
_PLAIN = ("complete", "settled", "refused", "last_refusal", "next_source")


class RunningMean:
    """A mean that starts from a guess with the weight of three observations and remembers about the last hundred."""

    def __init__(self, guess: float) -> None:
        self.value = guess
        self._seen = 3

    def see(self, value: float) -> None:
        """Take in one observation."""
        self._seen += 1
        self.value += (value - self.value) / min(self._seen, 100)

    @property
    def observed(self) -> tuple[float, int]:
        """(mean, observations): the whole state; settable."""
        return self.value, self._seen

    @observed.setter
    def observed(self, observed: Sequence[Any]) -> None:
        self.value, self._seen = observed


class RunState:
    """The pool, the yield that was observed, and the target. See the module's docstring.

    ``novelty`` is the similarity filter over the same pool. Only this class adds to it. The state is the
    `fastgen.methods.base.Pool` of the method's draws.
    """

    def __init__(self, method: Method, novelty: NoveltyFilter, *, target: int) -> None:
        self.target = target
        self.pool = InstructionPool()
        self.complete = 0
        self.settled = 0
        self.refused = 0  # requests in a row that the server refused permanently
        self.last_refusal = ""
        self.requests = 0  # one more than the highest committed request number
        self.failures: dict[int, int] = {}  # requests that failed permanently, by subject
        self.alone: set[int] = set()  # subjects whose last request failed: each gets a request without others
        self.next_source = 0  # one more than the highest source (document) that was used
        self.unused_sources: set[int] = set()  # those below it that were not
        self.lost_sources: dict[int, int] = {}  # how often their requests were lost, by source
        # High guesses: asking a little later costs less than making instructions beyond the target.
        self.kept_per_completion = RunningMean(method.creation.expected)
        self.complete_share = RunningMean(0.9)
        self.method = method
        self.demonstrations = Demonstrations(
            method.demonstrations,
            seeds=range(len(method.seeds)) if method.shown_seeds is None else method.shown_seeds,
            first_machine=len(method.seeds),
            text=self.text,
            run_seed=method.seed,
        )
        self._notes: dict[int, Notes] = {}
        self._places = {step.name: place for place, step in enumerate(method.steps)}
        self._novelty = novelty
        novelty.add_seeds([seed.instruction for seed in method.seeds])

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.complete >= self.target

    @property
    def seeds(self) -> int:
        """How many seeds the pool begins with."""
        return len(self.method.seeds)

    @property
    def kept(self) -> int:
        """How many instructions were kept."""
        return len(self.pool)

    def text(self, index: int) -> str:
        """The instruction at a pool index, seed or machine."""
        seeds = self.method.seeds
        return seeds[index].instruction if index < len(seeds) else self.pool.text(index - len(seeds))

    def depth(self, index: int) -> int:
        """See `fastgen.methods.base.Pool.depth`."""
        return 0 if index < self.seeds else self.pool.depth(index - self.seeds)

    def subject(self, number: int) -> Subject:
        """The instruction as its next step sees it."""
        text = self.pool.text(number)
        if (notes := self._notes.get(number)) is None:
            return Subject(number, text)
        source_text = self._source_text(notes.sources[0]) if notes.sources else ""
        return Subject(
            *(number, text, notes.input, notes.label, tuple(notes.turns), notes.message),
            *(notes.sources, source_text, notes.drawn),
        )

    def _source_text(self, source: int) -> str:
        return self.method.documents[source] if self.method.documents else self.text(source)

    def memory_bytes(self) -> int:
        """Bytes of the pool's texts and states and of the similarity index."""
        return self.pool.memory_bytes() + self._novelty.memory_bytes()

    # -- commits -------------------------------------------------------------------------------------------------------

    def apply(self, commit: Commit) -> None:
        """Apply a commit of the batch that was judged last. Its kept instructions are admitted to the filter.

        Commits must come in the order in which they were judged.

        :raises ValueError: the filter did not just decide these instructions.
        """
        if texts := self._apply(commit):
            self._novelty.admit(texts)

    def replay(self, commits: Iterable[Commit]) -> None:
        """Apply commits that were read from a log. Their kept instructions are added without a decision.

        The filter indexes large batches in a second thread while the log is read.
        """
        texts: list[str] = []
        with ThreadPoolExecutor(max_workers=1) as indexing:  # kernels release the GIL, so parsing continues
            pending: Future[None] | None = None
            for commit in commits:
                texts += self._apply(commit)
                if len(texts) >= REPLAY_BATCH:
                    if pending is not None:
                        pending.result()
                    pending, texts = indexing.submit(self._novelty.add, texts), []
            if pending is not None:
                pending.result()
        self._novelty.add(texts)

    def _apply(self, commit: Commit) -> Sequence[str]:
        """Apply everything but the filter's part and return the texts that were kept."""
        self.requests = max(self.requests, commit.request + 1)
        self._note_refusal(commit)
        if commit.step == CREATION:
            self.demonstrations.see(commit.demonstrations)
            if self.method.documents:
                self._use_sources(commit)
            return self._keep(commit, commit.outcome.kept) if isinstance(commit.outcome, Created) else ()
        subject, outcome = subject_of(commit), commit.outcome
        if commit.ended:
            self._settle(subject, COMPLETE if commit.ended == "complete" else EMPTY)
        elif isinstance(outcome, Failure):
            self.failures[subject] = self.failures.get(subject, 0) + 1
            self.alone.add(subject)
        elif not isinstance(outcome, Created):
            self._advance(commit, subject, outcome)
        return ()

    def _note_refusal(self, commit: Commit) -> None:
        outcome = commit.outcome
        if isinstance(outcome, Failure) and outcome.kind in REFUSALS:
            if commit.ended != "complete":  # a conversation that ends sooner is no refusal of the run
                self.refused += commit.choice == 0  # counts requests, not choices
                self.last_refusal = outcome.detail
        else:
            self.refused = 0

    def _use_sources(self, commit: Commit) -> None:
        """Note that documents were used. One whose request got lost on the way is not, up to a number of times."""
        outcome = commit.outcome
        is_lost = isinstance(outcome, Failure) and outcome.kind not in REFUSALS
        for source in commit.demonstrations:
            self.unused_sources.update(range(self.next_source, source + 1))
            self.next_source = max(self.next_source, source + 1)
            if is_lost and source in self.unused_sources:
                lost = self.lost_sources.get(source, 0) + (commit.choice == 0)  # counts requests, not choices
                self.lost_sources[source] = lost
                if lost < MAX_SUBJECT_FAILURES:
                    continue
            self.unused_sources.discard(source)
            self.lost_sources.pop(source, None)

    def _keep(self, commit: Commit, kept: Sequence[Kept]) -> list[str]:
        raw, method = commit.completion.text, self.method
        sources = commit.demonstrations if method.creation.has_sources else ()
        depth = 1
        if sources and not method.documents:
            depth = min(1 + max(map(self.depth, sources)), _MOST_DEPTH)
        texts = [method.item_text(raw, one.span) for one in kept]
        for one, text in zip(kept, texts, strict=True):
            if sources or one.input is not None or commit.drawn:
                given = "" if one.input is None else raw[slice(*one.input)]
                self._notes[len(self.pool)] = Notes(given, sources=sources, drawn=commit.drawn or {})
            self.pool.append(text, depth)
        self.kept_per_completion.see(len(kept))
        return texts

    def _advance(self, commit: Commit, subject: int, outcome: StepOutcome) -> None:
        """The subject has passed a step that is not its last."""
        self.alone.discard(subject)
        self.pool.set_state(subject, self._places[commit.step] + 1)
        notes = self._notes.setdefault(subject, Notes())
        match outcome:
            case Labelled(value):
                notes.label = value
            case Answered(instances):
                (_, (start, end)), *_ = instances
                asked = notes.message or self.subject(subject).task
                notes.turns.append(Turn(asked, commit.completion.text[start:end]))
                notes.message = ""
            case Continued((start, end)):
                notes.message = commit.completion.text[start:end]

    def _settle(self, subject: int, state: int) -> None:
        self.pool.set_state(subject, state)
        self.failures.pop(subject, None)
        self.alone.discard(subject)
        self._notes.pop(subject, None)
        self.settled += 1
        self.complete += state == COMPLETE
        self.complete_share.see(state == COMPLETE)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def folded(self) -> dict[str, Any]:
        """The state without the pool, `shown_counts` and the index, as JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "requests": self.requests,
            "failures": [*self.failures.items()],
            "alone": sorted(self.alone),
            "unused_sources": sorted(self.unused_sources),
            "lost_sources": [*self.lost_sources.items()],
            "notes": [(number, notes.values()) for number, notes in self._notes.items()],
            "kept_per_completion": self.kept_per_completion.observed,
            "complete_share": self.complete_share.observed,
        }

    def shown_counts(self) -> bytes:
        """How often each instruction was a demonstration: 4 bytes each, by pool index."""
        return self.demonstrations.counts()

    def save_index(self) -> dict[str, NDArray[Any]]:
        """The arrays of the similarity filter's index, not copied."""
        return self._novelty.save()

    def load_index(self, stored: StoredArrays) -> CandidateIndex:
        """An index for `restore`, with the content that `save_index` gave. The state does not change.

        :raises ValueError: the arrays do not fit the filter or contradict each other.
        """
        return self._novelty.load(stored)

    def restore(
        self, folded: Mapping[str, Any], pool: InstructionPool, shown: bytes, index: CandidateIndex | None
    ) -> None:
        """Set the state of a fresh object from a checkpoint. Without an index, build it from the pool's texts."""
        for name in _PLAIN:
            setattr(self, name, folded[name])
        self.pool = pool
        self.requests = folded["requests"]
        self.failures = dict(folded["failures"])
        self.alone = {*folded["alone"]}
        self.unused_sources = {*folded["unused_sources"]}
        self.lost_sources = dict(folded["lost_sources"])
        self._notes = {number: Notes.from_values(values) for number, values in folded["notes"]}
        self.kept_per_completion.observed = folded["kept_per_completion"]
        self.complete_share.observed = folded["complete_share"]
        self.demonstrations.restore_counts(shown)
        if index is not None:
            self._novelty.take_over(index)
            return
        for begin in range(0, len(pool), REPLAY_BATCH):
            self._novelty.add([pool.text(n) for n in range(begin, min(begin + REPLAY_BATCH, len(pool)))])


def subject_of(commit: Commit) -> int:
    """The subject of a commit after the creation. :raises ValueError: it has none."""
    if commit.subject is None:
        raise ValueError("a commit of a later step without a subject")
    return commit.subject
