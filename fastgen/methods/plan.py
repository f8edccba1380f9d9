"""What to ask next, so that the target is reached and little is made beyond it.

- `Plan.next` gives the next request. Work on kept instructions comes first, the method's last step before the others.
  New instructions fill the rest: as many as the target still needs at the yield observed so far, and no more than the
  pool can feed with demonstrations (`Plan._creations_allowed`). All steps share the same slots.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fastgen.methods.admission import Admission
from fastgen.methods.base import CREATION, Commit, Created, Draw, Method, Step
from fastgen.methods.state import RunState
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.types import Answer, Failure, Request

FIRST_CREATIONS = 5
"""Creating completions in flight while the pool is small: the batch size of the original's loop."""
MAX_BATCHED_TOKENS = 32  # longer answers get a request each: a long one would delay the others of its batch
MAX_REFUSED_BATCHES = 3  # in a row; after that every request has one prompt


class Plan:
    """A run's state and the work that is ready. See the module's docstring.

    ``clock`` gives the Unix time of commits (s). ``forbidden`` holds texts that no instruction may resemble. ``batch``
    is the most subjects of one request of a batched step.
    """

    def __init__(
        self,
        method: Method,
        novelty: NoveltyFilter,
        *,
        target: int,
        clock: Callable[[], float],
        forbidden: NoveltyFilter | None = None,
        batch: int = 1,
    ) -> None:
        self.method = method
        self.state = RunState(method, novelty, target=target)
        self.is_exhausted = False
        """Whether the method has nothing new to ask for."""
        self._admission = Admission(method, self.state, novelty, clock=clock, forbidden=forbidden)
        self._batch = batch
        self._refused_batches = 0
        self._split_up: set[int] = set()  # subjects of refused batches: each gets a request without others
        self._ready: dict[str, deque[int]] = {step.name: deque() for step in method.steps}
        self._next_step = dict(zip(method.step_names, method.steps, strict=False))
        self._next_request = 0
        self._creations_out = 0
        self._sources_out: dict[int, int] = {}  # choices on their way, by document

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.state.done

    def waits_for(self, subject: int, step: str) -> bool:
        """Whether this step is the next one of the subject."""
        place = self.state.pool.state(subject)
        return place < len(self.method.steps) and self.method.steps[place].name == step

    # -- asking --------------------------------------------------------------------------------------------------------

    def next(self, is_full: Callable[[str], bool] = lambda _: False) -> Request | None:
        """The next request, or ``None`` while only answers in flight can create more work.

        ``is_full`` says whether the servers of a role take nothing now.
        """
        if self.done:
            return None
        for step in reversed(self.method.steps):
            if self._ready[step.name] and not is_full(step.role or step.name):
                return self._ask(step, self._take_batch(step), self._take_number())
        if is_full(self.method.creation.role) or self._creations_out >= self._creations_allowed():
            return None
        missing = self._missing()
        return self._ask_to_create(missing) if missing > 0 else None

    def sample_once(self) -> None:
        """Ask for one completion of each creating prompt from now on."""
        self.method = replace(self.method, creation=replace(self.method.creation, samples=1))

    def ask_for_json(self, steps: frozenset[str]) -> None:
        """Ask these steps for JSON, and the others for text, from now on."""
        self.method = replace(self.method, structured=steps)

    def give_back(self, request: Request) -> None:
        """Return a request from `next` that will not be answered, so that its work can be asked again."""
        if request.step == CREATION:
            self._creations_out -= request.n
            for source in request.demonstrations:
                self._sources_out.pop(source, None)
        else:
            self._ready[request.step].extendleft(reversed(request.subjects))

    def shrink(self, request: Request) -> Request | None:
        """A shorter request in place of one that was too long, or ``None`` if there is none.

        A request about several subjects keeps the first. From now on each of them gets a request without others. A
        creating prompt loses half of its demonstrations.
        """
        if request.prompts > 1:
            return self._split(request)
        return self.method.with_fewer_demonstrations(request, self.state)

    def _split(self, request: Request) -> Request:
        first, *others = request.subjects
        self._split_up.update(request.subjects)
        self._ready[request.step].extendleft(reversed(others))
        self._refused_batches += 1
        if self._refused_batches >= MAX_REFUSED_BATCHES:
            self._batch = 1
        step = next(step for step in self.method.steps if step.name == request.step)
        return self._ask(step, [first], request.number)

    def _missing(self) -> float:
        """The complete instructions that the target needs beyond those expected from the work in flight."""
        state = self.state
        on_the_way = len(state.pool) - state.settled + self._creations_out * state.kept_per_completion.value
        return state.target - state.complete - on_the_way * state.complete_share.value

    def _creations_allowed(self) -> float:
        """The most creating completions in flight: the size of the pool, but at least a few.

        A prompt shows instructions from the pool, so a request that is sent before its predecessors are judged cannot
        use what they brought. A completion brings about six instructions. The limit therefore grows about sevenfold in
        the time of one answer, and exceeds the slots of any server after a few answers.
        """
        if not self.method.creation.shows_pool:
            return math.inf
        return max(FIRST_CREATIONS, len(self.state.pool))

    def _take_number(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    def _ask_to_create(self, missing: float) -> Request | None:
        method, creation, number = self.method, self.method.creation, self._next_request
        ask = creation.ask(Draw(number, method.seed, self.state, self._demonstrations, self._unused_source))
        self.is_exhausted = ask is None
        if ask is None:
            return None
        n = self._samples(missing)
        self._creations_out += n
        if method.documents:
            self._sources_out.update(dict.fromkeys(ask.demonstrations, n))
        return method.request_to_create(self._take_number(), ask, n)

    def _demonstrations(self, count: int, machine: int) -> tuple[int, ...]:
        state = self.state
        return state.demonstrations.draw(self._next_request, count=count, machine=machine, made=len(state.pool))

    def _unused_source(self) -> int:
        out, state = self._sources_out, self.state
        free = state.unused_sources.difference(out)
        return min(free, default=max(state.next_source, max(out, default=-1) + 1))

    def _samples(self, missing: float) -> int:
        """Completions to ask of one prompt: the method's number, or fewer near the target."""
        expected = self.state.kept_per_completion.value * self.state.complete_share.value
        samples = self.method.creation.samples
        return samples if missing >= expected * samples else max(1, math.ceil(missing / expected))

    def _take_batch(self, step: Step) -> list[int]:
        """Subjects that are ready for the step, at most one request's worth. It does not wait for more."""
        ready = self._ready[step.name]
        batch = [ready.popleft()]
        if step.is_batched and step.sampling.max_tokens <= MAX_BATCHED_TOKENS and not self._goes_alone(batch[0]):
            while ready and len(batch) < self._batch and not self._goes_alone(ready[0]):
                batch.append(ready.popleft())
        return batch

    def _goes_alone(self, subject: int) -> bool:
        return subject in self._split_up or subject in self.state.alone

    def _ask(self, step: Step, subjects: Sequence[int], number: int) -> Request:
        return self.method.request_to_ask(number, step, [self.state.subject(subject) for subject in subjects])

    # -- answers -------------------------------------------------------------------------------------------------------

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """See `Admission.judge`."""
        return self._admission.judge(answers)

    def apply(self, commit: Commit) -> None:
        """Apply a commit of the batch that was judged last, and queue the work that it makes possible."""
        self.state.apply(commit)
        self._next_request = max(self._next_request, self.state.requests)
        outcome, subject = commit.outcome, commit.subject
        if subject is None:
            self._creations_out -= 1
            for source in commit.demonstrations:
                self._sources_out[source] = self._sources_out.get(source, 1) - 1
                if self._sources_out[source] < 1:
                    del self._sources_out[source]
            if isinstance(outcome, Created):
                self._ready[self.method.steps[0].name].extend(one.number for one in outcome.kept)
            return
        self._split_up.discard(subject)  # after a failure, the state's `alone` has it
        if isinstance(outcome, Failure):
            if not commit.ended:
                self._ready[commit.step].append(subject)
            return
        if commit.choice:
            self._refused_batches = 0
        if not commit.ended:
            self._ready[self._next_step[commit.step].name].append(subject)

    def resume(self, commits: Iterable[Commit]) -> None:
        """Replay ``commits``: a whole log, or the part after the checkpoint that the state was restored from."""
        self.state.replay(commits)
        self._next_request = max(self._next_request, self.state.requests)
        for queue in self._ready.values():
            queue.clear()
        for number, place in self.state.pool.unsettled():
            self._ready[self.method.steps[place].name].append(number)
