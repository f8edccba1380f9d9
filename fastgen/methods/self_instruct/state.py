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
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fastgen.methods.base import Labelled, Commit, Answered, Created, Kept
from fastgen.methods.self_instruct import instruction
from fastgen.methods.self_instruct.demonstrations import Demonstrations
from fastgen.methods.self_instruct.rules import Method
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.types import Failure, SeedTask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import StoredArrays
    from fastgen.similarity.pool import CandidateIndex


class State(IntEnum):
    """Where a kept instruction stands."""

    KEPT = 0  # not yet classified
    GENERATION = 1  # not a classification task; instances to come
    CLASSIFICATION = 2  # a classification task; instances to come
    COMPLETE = 3  # has instances
    EMPTY = 4  # finished without instances


_UNSETTLED = re.compile(rb"[\x00-\x02]")


class PoolColumn(NamedTuple):
    """One of the three arrays of a pool: its name, dtype in numpy's notation, and flat memory."""

    name: str
    dtype: str
    data: memoryview


class InstructionPool:
    """The kept machine instructions: append-only texts, packed end to end, and one state byte each.

    The index is the machine instruction number. A million instructions take about 100 MB, several times less than
    Python strings and objects would.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", [0])
        self._states = bytearray()

    def __len__(self) -> int:
        return len(self._states)

    def append(self, text: str) -> None:
        """Add one instruction in state KEPT. Lone surrogates survive."""
        encoded = text.encode("utf-8", "surrogatepass")
        try:
            self._bytes += encoded
            self._ends.append(len(self._bytes))
            self._states.append(State.KEPT)
        except BufferError:  # a caller still holds `columns`: it keeps the memory, the pool continues in a copy
            count = len(self._states)
            self._bytes = self._bytes[: self._ends[count]] + encoded
            self._ends = self._ends[: count + 1]
            self._ends.append(len(self._bytes))
            self._states = self._states[:count] + bytes([State.KEPT])

    def text(self, number: int) -> str:
        """The instruction's text.

        :raises IndexError: no such number.
        """
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

    def memory_bytes(self) -> int:
        """Bytes held, including room to grow."""
        return sum(map(sys.getsizeof, (self._bytes, self._ends, self._states)))

    def state(self, number: int) -> State:
        """The instruction's state."""
        return State(self._states[number])

    def set_state(self, number: int, state: State) -> None:
        """Set the instruction's state."""
        self._states[number] = state

    def unsettled(self) -> Iterator[tuple[int, State]]:
        """Number and state of every instruction that still needs a step, in ascending order."""
        return ((found.start(), State(self._states[found.start()])) for found in _UNSETTLED.finditer(self._states))

    def columns(self) -> tuple[PoolColumn, PoolColumn, PoolColumn]:
        """The pool as flat memory, not copied. While a caller holds it, the next `append` copies the pool."""
        wide = "<u8" if sys.byteorder == "little" else ">u8"
        return (
            PoolColumn("texts", "|u1", memoryview(self._bytes)),
            PoolColumn("ends", wide, memoryview(self._ends).cast("B")),
            PoolColumn("states", "|u1", memoryview(self._states)),
        )

    @classmethod
    def from_columns(cls, texts: bytearray, ends: bytearray, states: bytearray) -> Self:
        """The inverse of `columns`. :raises ValueError: the three do not fit together."""
        pool = cls()
        pool._bytes, pool._states, pool._ends = texts, states, array("Q")
        pool._ends.frombytes(ends)
        if len(pool._ends) != len(states) + 1 or pool._ends[-1] != len(texts):
            raise ValueError("the columns of a pool do not fit together")
        return pool


REPLAY_BATCH = 4096  # texts that the similarity filter takes in at once on resume
REFUSALS = frozenset({"rejected", "prompt_too_long"})  # failures that say something about what was asked
_PLAIN = ("complete", "settled", "refused", "last_refusal")


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

    ``novelty`` is the similarity filter over the same pool. Only this class adds to it.
    """

    def __init__(self, method: Method, seeds: Sequence[SeedTask], novelty: NoveltyFilter, *, target: int) -> None:
        self.seeds = seeds
        self.target = target
        self.pool = InstructionPool()
        self.complete = 0
        self.settled = 0
        self.refused = 0  # requests in a row that the server refused permanently
        self.last_refusal = ""
        self.requests = 0  # one more than the highest committed request number
        self.failures: dict[int, int] = {}  # requests that failed permanently, by subject
        self.alone: set[int] = set()  # subjects whose last request failed: each gets a request without others
        # High guesses: asking a little later costs less than making instructions beyond the target.
        self.kept_per_completion = RunningMean(6.0)
        self.complete_share = RunningMean(0.9)
        self.demonstrations = Demonstrations(
            method.demonstrations,
            seeds=[i for i, s in enumerate(seeds) if s.is_classification or not method.classification_only],
            first_machine=len(seeds),
            text=self.pool_text,
            run_seed=method.seed,
        )
        self._rules = method.rules
        self._novelty = novelty
        novelty.add_seeds([seed.instruction for seed in seeds])

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.complete >= self.target

    def pool_text(self, index: int) -> str:
        """The instruction at a pool index, seed or machine."""
        seeds = len(self.seeds)
        return self.seeds[index].instruction if index < seeds else self.pool.text(index - seeds)

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
        if commit.step == "instruction":
            self.demonstrations.see(commit.demonstrations)
        self._note_refusal(commit)
        match commit.outcome:
            case Created(kept, _):
                return self._keep(commit.completion.text, kept)
            case Labelled(is_classification):
                self._classify(subject_of(commit), is_classification=is_classification)
            case Answered(instances, _):
                self._settle(subject_of(commit), State.COMPLETE if instances else State.EMPTY)
            case Failure(_, _, settles) if commit.subject is not None:
                self._note_failure(commit.subject, settles=settles)
        return ()

    def _note_refusal(self, commit: Commit) -> None:
        outcome = commit.outcome
        if isinstance(outcome, Failure) and outcome.kind in REFUSALS:
            self.refused += commit.choice == 0  # counts requests, not choices
            self.last_refusal = outcome.detail
        else:
            self.refused = 0

    def _keep(self, raw: str, kept: Sequence[Kept]) -> list[str]:
        texts = [instruction.item_text(raw, one.span, self._rules) for one in kept]
        for text in texts:
            self.pool.append(text)
        self.kept_per_completion.see(len(kept))
        return texts

    def _classify(self, subject: int, *, is_classification: bool) -> None:
        self.alone.discard(subject)
        self.pool.set_state(subject, State.CLASSIFICATION if is_classification else State.GENERATION)

    def _note_failure(self, subject: int, *, settles: bool) -> None:
        if settles:
            self._settle(subject, State.EMPTY)
        else:
            self.failures[subject] = self.failures.get(subject, 0) + 1
            self.alone.add(subject)

    def _settle(self, subject: int, state: State) -> None:
        self.pool.set_state(subject, state)
        self.failures.pop(subject, None)
        self.alone.discard(subject)
        self.settled += 1
        self.complete += state is State.COMPLETE
        self.complete_share.see(state is State.COMPLETE)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def folded(self) -> dict[str, Any]:
        """The state without the pool, `shown_counts` and the index, as JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {
            "requests": self.requests,
            "failures": [*self.failures.items()],
            "alone": sorted(self.alone),
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
        self.kept_per_completion.observed = folded["kept_per_completion"]
        self.complete_share.observed = folded["complete_share"]
        self.demonstrations.restore_counts(shown)
        if index is not None:
            self._novelty.take_over(index)
            return
        for begin in range(0, len(pool), REPLAY_BATCH):
            self._novelty.add([pool.text(n) for n in range(begin, min(begin + REPLAY_BATCH, len(pool)))])


def subject_of(commit: Commit) -> int:
    """The subject of a downstream commit. :raises ValueError: it has none."""
    if commit.subject is None:
        raise ValueError("a downstream commit without a subject")
    return commit.subject
