"""What to ask next, so that the target is reached and little is made beyond it.

- `Plan.next` gives the next request. Downstream work comes first (instances, then classification). New instructions
  fill the rest: as many as the target still needs at the yield observed so far, and no more than the pool can feed with
  demonstrations (`Plan._instructions_allowed`). All steps share the same slots.
- `Plan.judge` turns answers into commits. It reads the state and does not change it.
- `Plan.apply` applies a commit to the state and queues the work that has become possible. `Plan.resume` does the same
  with a whole log.

Random draws are keyed by (run seed, request number), so there is no generator state to save. Only the plan knows which
requests are in flight: a choice that failed or was lost is asked again.

No I/O, no clock, no asyncio. `judge` may run in a worker thread while `next` runs in the event loop. `apply` may not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from fastgen.methods.base import Labelled, Commit, Created
from fastgen.methods.self_instruct import classification, instance, instruction
from fastgen.methods.self_instruct.admission import Admission
from fastgen.methods.self_instruct.prompts import PromptSet
from fastgen.methods.self_instruct.rules import Method
from fastgen.methods.self_instruct.state import RunState, State, subject_of
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.types import Answer, Failure, Message, Request, SeedTask

FIRST_INSTRUCTIONS = 5
"""Instruction completions in flight while the pool is small: the batch size of the original's loop."""
MAX_BATCHED_TOKENS = 32  # longer answers get a request each: a long one would delay the others of its batch
MAX_REFUSED_BATCHES = 3  # in a row; after that every request has one prompt
_WAITS_FOR = {
    State.KEPT: "classification",
    State.GENERATION: "instance",
    State.CLASSIFICATION: "instance",
}


class Plan:
    """A run's state and the work that is ready. See the module's docstring.

    ``clock`` gives the Unix time of commits (s). ``forbidden`` holds texts that no instruction may resemble.
    ``classification_batch`` is the most subjects of one classification request.
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
        self._split_up: set[int] = set()  # subjects of refused batches: each gets a request without others
        self._ready: dict[str, deque[int]] = {"classification": deque(), "instance": deque()}
        self._next_request = 0
        self._instructions_out = 0

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.state.done

    # -- asking --------------------------------------------------------------------------------------------------------

    def next(self, without: Collection[str] = ()) -> Request | None:
        """The next request, or ``None`` while only answers in flight can create more work.

        ``without`` are the stages whose servers have no capacity now.
        """
        if self.done:
            return None
        if self._ready["instance"] and "instance" not in without:
            return self._ask_for_instances(self._ready["instance"].popleft())
        if self._ready["classification"] and "classification" not in without:
            return self._ask_to_classify(self._take_batch(), self._take_number())
        if "instruction" in without or self._instructions_out >= self._instructions_allowed():
            return None
        missing = self._missing()
        return self._ask_for_instructions(missing) if missing > 0 else None

    def give_back(self, request: Request) -> None:
        """Return a request from `next` that will not be answered, so that its work can be asked again."""
        if request.step == "instruction":
            self._instructions_out -= request.n
        else:
            self._ready[request.step].extendleft(reversed(request.subjects))

    def shrink(self, request: Request) -> Request | None:
        """A shorter request in place of one that was too long, or ``None`` if there is none.

        A request about several subjects keeps the first. From now on each of them gets a request without others. An
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
        self._ready[request.step].extendleft(reversed(others))
        self._refused_batches += 1
        if self._refused_batches >= MAX_REFUSED_BATCHES:
            self._classification_batch = 1
        return self._ask_to_classify([first], request.number)

    def _missing(self) -> float:
        """The complete instructions that the target needs beyond those expected from the work in flight."""
        state = self.state
        on_the_way = len(state.pool) - state.settled + self._instructions_out * state.kept_per_completion.value
        return state.target - state.complete - on_the_way * state.complete_share.value

    def _instructions_allowed(self) -> float:
        """The most instruction completions in flight: the size of the pool, but at least a few.

        A prompt shows instructions from the pool, so a request that is sent before its predecessors are judged cannot
        use what they brought. A completion brings about six instructions. The limit therefore grows about sevenfold in
        the time of one answer, and exceeds the slots of any server after a few answers.
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
            stage="instruction",
            prompt=self._instruction_prompt(demonstrations),
            sampling=method.sampling["instruction"],
            demonstrations=demonstrations,
            n=n,
        )

    def _samples(self, missing: float) -> int:
        """Completions to ask of one prompt: the method's number, or fewer near the target."""
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
        return Request(self._take_number(), "instance", prompt, self.method.sampling[key], (subject,))

    def _take_batch(self) -> list[int]:
        """Subjects that are ready to be classified, at most one request's worth. It does not wait for more."""
        ready = self._ready["classification"]
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
        return Request(number, "classification", prompt, sampling, tuple(subjects))

    # -- answers -------------------------------------------------------------------------------------------------------

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """See `Admission.judge`."""
        return self._admission.judge(answers)

    def apply(self, commit: Commit) -> None:
        """Apply a commit of the batch that was judged last, and queue the work that it makes possible."""
        self.state.apply(commit)
        self._next_request = max(self._next_request, self.state.requests)
        if commit.step == "instruction":
            self._instructions_out -= 1
        elif commit.subject is not None:
            self._split_up.discard(commit.subject)  # after a failure, the state's `alone` has it
        match commit.outcome:
            case Created(kept, _):
                self._ready["classification"].extend(one.number for one in kept)
            case Labelled():
                self._ready["instance"].append(subject_of(commit))
                if commit.choice:
                    self._refused_batches = 0
            case Failure(_, _, settles) if commit.subject is not None and not settles:
                self._ready[commit.step].append(commit.subject)

    def resume(self, commits: Iterable[Commit]) -> None:
        """Replay ``commits``: a whole log, or the part after the checkpoint that the state was restored from."""
        self.state.replay(commits)
        self._next_request = max(self._next_request, self.state.requests)
        for queue in self._ready.values():
            queue.clear()
        for number, state in self.state.pool.unsettled():
            self._ready[_WAITS_FOR[state]].append(number)
