"""What to ask next, so that the target is reached and little is made beyond it: Self-Instruct's bootstrapping.

- `Plan.next` says what to ask now. Downstream work first (instances, then classification), new instructions in what
  is left: as many as the target still needs at the yield seen so far, and no more than the pool can feed with
  demonstrations (`Plan._instructions_allowed`). All stages share the same slots.
- `Plan.judge` turns answers into commits. It reads; it changes nothing (`fastgen.methods.self_instruct.admission`).
- `Plan.apply` takes what a commit changes into the run's state, live and on resume
(`fastgen.methods.self_instruct.state`), and
  follows it: what has become ready is asked next. A resumed plan is the fold of the log.

Each request's random draws are keyed by (run seed, request number), so there is no generator state to save. What is in
flight is known here and nowhere else: a choice that failed or never came is asked anew.

No I/O, no clock of its own, no asyncio. `judge` may run in a worker thread while `next` runs in the loop; `apply` may
not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from fastgen.methods.base import ClassificationOutcome, Commit, InstructionOutcome
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.admission import Admission
from fastgen.methods.self_instruct.prompts import PromptSet
from fastgen.methods.self_instruct.rules import Method
from fastgen.methods.self_instruct.state import RunState, State, subject_of
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.types import Answer, Failure, Message, Request, SeedTask, Stage

FIRST_INSTRUCTIONS = 5
"""Instruction completions in flight while the pool is small: the batch size of the original's loop."""
MAX_BATCHED_TOKENS = 32  # longer answers are asked singly: one that goes on would hold up the rest of its batch
MAX_REFUSED_BATCHES = 3  # in a row; then this server takes one prompt a request only
_WAITS_FOR = {
    State.KEPT: Stage.CLASSIFICATION,
    State.GENERATION: Stage.INSTANCE,
    State.CLASSIFICATION: Stage.INSTANCE,
}


class Plan:
    """A run's state and what it wants asked now; see the module's docstring.

    ``clock`` gives the Unix time of commits (s), ``forbidden`` holds the texts that nothing may resemble, and
    ``classification_batch`` is how many subjects one request may ask about.
    """

    def __init__(
        self,
        method: Method,
        seeds: Sequence[SeedTask],
        prompts: PromptSet,
        novelty: NoveltyFilter,
        *,
        target: int,
        clock: Callable[[], float],
        forbidden: NoveltyFilter | None = None,
        classification_batch: int = 1,
    ) -> None:
        self.method = method
        self.state = RunState(method, seeds, novelty, target=target)
        self._admission = Admission(method, self.state, novelty, clock=clock, forbidden=forbidden)
        self._prompts = prompts
        batched = prompts.api == "completions" and method.classification_tokens <= MAX_BATCHED_TOKENS
        self._classification_batch = classification_batch if batched else 1
        self._refused_batches = 0
        self._split_up: set[int] = set()  # subjects that a batch was refused with: asked by themselves
        self._ready: dict[Stage, deque[int]] = {Stage.CLASSIFICATION: deque(), Stage.INSTANCE: deque()}
        self._next_request = 0
        self._instructions_out = 0

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.state.done

    # -- asking --------------------------------------------------------------------------------------------------------

    def next(self, without: Collection[Stage] = ()) -> Request | None:
        """The request to send now, or ``None`` while only answers on their way can create more work.

        ``without`` are stages whose servers have no room now (see `fastgen.servers.staged`).
        """
        if self.done:
            return None
        if self._ready[Stage.INSTANCE] and Stage.INSTANCE not in without:
            return self._ask_for_instances(self._ready[Stage.INSTANCE].popleft())
        if self._ready[Stage.CLASSIFICATION] and Stage.CLASSIFICATION not in without:
            return self._ask_to_classify(self._take_batch(), self._take_number())
        if Stage.INSTRUCTION in without or self._instructions_out >= self._instructions_allowed():
            return None
        missing = self._missing()
        return self._ask_for_instructions(missing) if missing > 0 else None

    def give_back(self, request: Request) -> None:
        """A request from `next` will not be answered (cancelled): its work may be asked again."""
        if request.stage is Stage.INSTRUCTION:
            self._instructions_out -= request.n
        else:
            self._ready[request.stage].extendleft(reversed(request.subjects))

    def shrink(self, request: Request) -> Request | None:
        """A smaller request in place of one that was too long; ``None`` if nothing is left.

        Of several subjects it keeps the first, and all of them are asked by themselves from now on; a single
        instruction prompt loses half of its demonstrations.
        """
        if request.prompts > 1:
            return self._split(request)
        fewer = request.demonstrations[: len(request.demonstrations) // 2]
        if not fewer:
            return None
        return replace(request, prompt=self._instruction_prompt(fewer), demonstrations=fewer)

    def _split(self, request: Request) -> Request:
        first, *others = request.subjects
        self._split_up.update(request.subjects)
        self._ready[request.stage].extendleft(reversed(others))
        self._refused_batches += 1
        if self._refused_batches >= MAX_REFUSED_BATCHES:
            self._classification_batch = 1
        return self._ask_to_classify([first], request.number)

    def _missing(self) -> float:
        """How many complete instructions the work under way is not expected to bring."""
        state = self.state
        on_the_way = len(state.pool) - state.settled + self._instructions_out * state.kept_per_completion.value
        return state.target - state.complete - on_the_way * state.complete_share.value

    def _instructions_allowed(self) -> float:
        """How many instruction completions may be in flight: as many as the pool has instructions, at least a few.

        A prompt shows instructions of the pool, so a request that is sent before its predecessors are judged learns
        nothing from them. Each completion brings several instructions (six, typically), so the limit grows about
        sevenfold in the time of one answer and is above the slots of any server after a few of them.
        """
        if not self.method.num_machine_instructions:
            return math.inf
        return max(FIRST_INSTRUCTIONS, len(self.state.pool))

    def _take_number(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    def _ask_for_instructions(self, missing: float) -> Request:
        number, method = self._take_number(), self.method
        demonstrations = self.state.demonstrations.draw(
            number,
            count=method.num_prompt_instructions,
            machine=method.num_machine_instructions,
            made=len(self.state.pool),
        )
        n = self._samples(missing)
        self._instructions_out += n
        return Request(
            number=number,
            stage=Stage.INSTRUCTION,
            prompt=self._instruction_prompt(demonstrations),
            sampling=method.sampling["instruction"],
            demonstrations=demonstrations,
            n=n,
        )

    def _samples(self, missing: float) -> int:
        """Completions of one prompt: as many as the method says, fewer when the target needs fewer."""
        expected = self.state.kept_per_completion.value * self.state.complete_share.value
        if missing >= expected * self.method.samples_per_prompt:
            return self.method.samples_per_prompt
        return max(1, math.ceil(missing / expected))

    def _instruction_prompt(self, demonstrations: Iterable[int]) -> str | tuple[Message, ...]:
        texts = [self.state.pool_text(index) for index in demonstrations]
        return instruction.build_prompt(texts, self._prompts, classification_only=self.method.classification_only)

    def _ask_for_instances(self, subject: int) -> Request:
        pool = self.state.pool
        is_classification = pool.state(subject) is State.CLASSIFICATION
        prompt = instance.build_prompt(pool.text(subject), is_classification, self._prompts)
        key = "instance_output_first" if is_classification else "instance_input_first"
        return Request(self._take_number(), Stage.INSTANCE, prompt, self.method.sampling[key], (subject,))

    def _take_batch(self) -> list[int]:
        """Subjects that are ready to be classified, as many as go into one request; nothing waits for more."""
        ready = self._ready[Stage.CLASSIFICATION]
        batch = [ready.popleft()]
        if not self._goes_alone(batch[0]):
            while ready and len(batch) < self._classification_batch and not self._goes_alone(ready[0]):
                batch.append(ready.popleft())
        return batch

    def _goes_alone(self, subject: int) -> bool:
        return subject in self._split_up or subject in self.state.alone

    def _ask_to_classify(self, subjects: Sequence[int], number: int) -> Request:
        prompt = classification.build_prompts([self.state.pool.text(subject) for subject in subjects], self._prompts)
        sampling = self.method.sampling["classification"]
        return Request(number, Stage.CLASSIFICATION, prompt, sampling, tuple(subjects))

    # -- answers and what follows --------------------------------------------------------------------------------------

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """See `Admission.judge`."""
        return self._admission.judge(answers)

    def apply(self, commit: Commit) -> None:
        """Make a commit's consequences the run's state, and what it made ready the next to be asked."""
        self.state.apply(commit)
        self._next_request = max(self._next_request, self.state.requests)
        if commit.stage is Stage.INSTRUCTION:
            self._instructions_out -= 1
        elif commit.subject is not None:
            self._split_up.discard(commit.subject)  # if it failed, the state knows that it goes alone
        match commit.outcome:
            case InstructionOutcome(kept, _):
                self._ready[Stage.CLASSIFICATION].extend(one.number for one in kept)
            case ClassificationOutcome():
                self._ready[Stage.INSTANCE].append(subject_of(commit))
                if commit.choice:
                    self._refused_batches = 0
            case Failure(_, _, settles) if commit.subject is not None and not settles:
                self._ready[commit.stage].append(commit.subject)

    def resume(self, commits: Iterable[Commit]) -> None:
        """Go on where a log ends; ``commits`` are all of it, or those after what the state was restored to."""
        self.state.replay(commits)
        self._next_request = max(self._next_request, self.state.requests)
        for queue in self._ready.values():
            queue.clear()
        for number, state in self.state.pool.unsettled():
            self._ready[_WAITS_FOR[state]].append(number)
