"""Which questions a judge is asked: every vote on every instance, and once more what it answered unreadably.

Guarantees: a question has the same number and code in every session; texts are read from the run's log as they are
needed, so memory does not grow with the run. Knows nothing of servers and files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from fastgen.asking.asker import Question, Reply
from fastgen.backends.endpoint import Api
from fastgen.exporting.entries import entries
from fastgen.exporting.options import ChoiceOptions
from fastgen.judging.prompts import build_prompt, code_of
from fastgen.judging.slots import MAX_INSTANCES, Slot
from fastgen.judging.verdicts import Fault, read_vote
from fastgen.records import Sampling
from fastgen.runs import OpenRun

_FRESH_TEMPERATURE = 0.7  # of a second attempt, which would be the same again at 0


@dataclass(frozen=True, slots=True)
class Examination:
    """What is asked of every instance: by which API, how sampled, how often; ``salt`` keys the codes."""

    api: Api
    sampling: Sampling
    votes: int
    salt: str

    def ask(self, run: OpenRun, choice: ChoiceOptions, answered: set[int], unread: set[int]) -> Iterator[Question]:
        """What has no readable answer yet, instance by instance.

        ``answered`` are the numbers with an answer, and ``unread`` those of them that deserve a second attempt.
        """
        for entry in entries(run, choice, None):
            if entry.settled is None:
                continue
            for one in entry.instances[:MAX_INSTANCES]:
                slots = list(self._open_slots(entry.settled.number, one.index, answered, unread))
                if slots:
                    code = code_of(self.salt, entry.settled.number, one.index)
                    prompt = build_prompt(self.api, entry.instruction, one.instance, code)
                    yield from (Question(slot.pack(), prompt, self._sampling(slot)) for slot in slots)

    def _open_slots(self, number: int, index: int, answered: set[int], unread: set[int]) -> Iterator[Slot]:
        for vote in range(self.votes):
            slot = Slot(number, index, vote, 0)
            packed = slot.pack()
            if packed in unread:
                yield slot._replace(attempt=1)
            elif packed not in answered:
                yield slot

    def _sampling(self, slot: Slot) -> Sampling:
        if not slot.attempt:
            return self.sampling
        return replace(self.sampling, temperature=max(self.sampling.temperature, _FRESH_TEMPERATURE))

    def again(self, question: Question, reply: Reply) -> Question | None:
        """The second attempt, where the first one gave an answer that cannot be read."""
        slot = Slot.unpack(question.number)
        if slot.attempt or reply.failure is not None or not is_unreadable(reply, self.salt):
            return None
        second = slot._replace(attempt=1)
        return Question(second.pack(), question.prompt, self._sampling(second))


def is_unreadable(reply: Reply, salt: str) -> bool:
    """Whether an answer is no vote."""
    slot = Slot.unpack(reply.number)
    return isinstance(read_vote(reply.text, code_of(salt, slot.number, slot.instance), reply.finish_reason), Fault)


def unread_numbers(replies: Iterable[Reply], salt: str) -> set[int]:
    """The first attempts that could not be read and have no second one yet."""
    found: set[int] = set()
    for reply in replies:
        if reply.failure is not None:
            continue
        slot = Slot.unpack(reply.number)
        if slot.attempt:
            found.discard(slot._replace(attempt=0).pack())
        elif is_unreadable(reply, salt):
            found.add(reply.number)
    return found
