"""What to ask next, what an answer means, what it changes: Self-Instruct's bootstrapping as a state machine.

- `Plan.next` says what to ask now. Downstream work first (instances, then classification), new instructions in what
  is left, and only as many as the target still needs at the yield seen so far: all stages share the same slots.
- `Plan.judge` turns answers into commits. It reads; it changes nothing.
- `Plan.apply` is the only mutator, live and on resume: a resumed plan is the fold of the log.

Each request's random draws are keyed by (run seed, request number), so there is no generator state to save.

A request may have several choices: samples of one instruction prompt, or one classification prompt per subject. Each is
judged and committed by itself; one that never came is a failure of its own, and what it was to bring is asked anew.
No I/O, no clock of its own, no asyncio. `judge` may run in a worker thread while `next` runs in the loop; `apply` may
not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome, Kept, Outcome, Rejection
from fastgen.demonstrations import Demonstrations, Policy
from fastgen.filters import check_instruction
from fastgen.novelty import NoveltyFilter, Verdict
from fastgen.pool import InstructionPool, State
from fastgen.records import (
    Answer,
    Completion,
    Failure,
    Message,
    Neighbour,
    Request,
    Sampling,
    SeedTask,
    Span,
    Stage,
)
from fastgen.rules import Rules
from fastgen.stages import classification, instance, instruction
from fastgen.stages.instruction import ParsedItem
from fastgen.stages.prompts import PromptSet

if TYPE_CHECKING:
    from fastgen.index import CandidateIndex
    from fastgen.index.saved import SavedIndex
    from fastgen.novelty import IndexSource

SIMILAR = "similar"  # the rule's name in the ledger
CONTAMINATED = "contaminated"  # too similar to a forbidden text; the neighbour is that text's place in their list
NEAREST_RECORDED = 1  # neighbours of a kept instruction that the log keeps, unless --record-top-k asks for more
MAX_SUBJECT_FAILURES = 3  # requests that may fail for good before an instruction is settled without instances
MAX_BATCHED_TOKENS = 32  # longer answers are asked singly: one that goes on would hold up the rest of its batch
MAX_REFUSED_BATCHES = 3  # in a row; then this server takes one prompt a request only
RESUME_BATCH = 4096  # texts that the similarity filter takes in at once on resume
REFUSALS = frozenset({"rejected", "prompt_too_long"})  # failures that say something about what was asked
_NO_COMPLETION = Completion("", None)
_WAITS_FOR = {
    State.KEPT: Stage.CLASSIFICATION,
    State.GENERATION: Stage.INSTANCE,
    State.CLASSIFICATION: Stage.INSTANCE,
}
_FOLDED = ("complete", "settled", "fruitless", "refused", "last_refusal")


@dataclass(frozen=True, slots=True)
class Method:
    """Everything that decides what a run means, apart from the seeds, the prompts and the similarity filter."""

    rules: Rules
    sampling: Mapping[str, Sampling]
    seed: int = 0
    num_prompt_instructions: int = 8
    num_machine_instructions: int = 2
    demonstrations: Policy = "uniform"
    samples_per_prompt: int = 1
    classification_only: bool = False


@dataclass(frozen=True, slots=True)
class _Item:
    """An instruction as parsed, with the rule that rejects it before the similarity check, if one does."""

    span: Span
    text: str
    rule: str | None
    neighbour: Neighbour | None = None


class RunningMean:
    """The mean of what was seen: from a guess that counts as three observations to a memory of the last hundred."""

    def __init__(self, guess: float) -> None:
        self.value = guess
        self._seen = 3

    def see(self, value: float) -> None:
        """Take in one observation."""
        self._seen += 1
        self.value += (value - self.value) / min(self._seen, 100)

    @property
    def observed(self) -> tuple[float, int]:
        """All that there is to it; settable."""
        return self.value, self._seen

    @observed.setter
    def observed(self, observed: Sequence[Any]) -> None:
        self.value, self._seen = observed


class Plan:
    """The state of a run and its rules of motion; see the module's docstring."""

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
        self.seeds = seeds
        self.pool = InstructionPool()
        self.target = target
        self.complete = 0
        self.settled = 0
        self.fruitless = 0  # instruction completions in a row that brought nothing new
        self.refused = 0  # requests in a row that the server refused for good
        self.last_refusal = ""
        self._prompts = prompts
        self._novelty = novelty
        self._forbidden = forbidden
        self._clock = clock
        self._demonstrations = Demonstrations(
            method.demonstrations,
            seeds=[i for i, s in enumerate(seeds) if s.is_classification or not method.classification_only],
            first_machine=len(seeds),
            text=self.pool_text,
            run_seed=method.seed,
        )
        batched = prompts.api == "completions" and _classification_tokens(method) <= MAX_BATCHED_TOKENS
        self._classification_batch = classification_batch if batched else 1
        self._refused_batches = 0
        self._alone: set[int] = set()  # subjects that a batch was refused with, or that failed: asked by themselves
        self._ready: dict[Stage, deque[int]] = {Stage.CLASSIFICATION: deque(), Stage.INSTANCE: deque()}
        self._failures: dict[int, int] = {}
        self._next_request = 0
        self._committed_requests = 0  # the number after the highest committed one: where a resumed plan goes on
        self._instructions_out = 0
        # High guesses: asking a little later costs less than making what nobody asked for.
        self._kept_per_completion = RunningMean(6.0)
        self._complete_share = RunningMean(0.9)
        novelty.add_seeds([seed.instruction for seed in seeds])

    # -- asking --------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return self.complete >= self.target

    def next(self, without: Collection[Stage] = ()) -> Request | None:
        """The request to send now, or ``None`` while only answers on their way can create more work.

        ``without`` are stages whose servers have no room now (see `fastgen.backends.staged`).
        """
        if self.done:
            return None
        if self._ready[Stage.INSTANCE] and Stage.INSTANCE not in without:
            return self._ask_about(Stage.INSTANCE, self._ready[Stage.INSTANCE].popleft())
        if self._ready[Stage.CLASSIFICATION] and Stage.CLASSIFICATION not in without:
            return self._ask_to_classify(self._take_batch(), self._take_number())
        missing = 0.0 if Stage.INSTRUCTION in without else self._missing()
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
        self._alone.update(request.subjects)
        self._ready[request.stage].extendleft(reversed(others))
        self._refused_batches += 1
        if self._refused_batches >= MAX_REFUSED_BATCHES:
            self._classification_batch = 1
        return self._ask_to_classify([first], request.number)

    def _missing(self) -> float:
        """How many complete instructions the work under way is not expected to bring."""
        on_the_way = len(self.pool) - self.settled + self._instructions_out * self._kept_per_completion.value
        return self.target - self.complete - on_the_way * self._complete_share.value

    def _take_number(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    def _ask_for_instructions(self, missing: float) -> Request:
        number, method = self._take_number(), self.method
        demonstrations = self._demonstrations.draw(
            number,
            count=method.num_prompt_instructions,
            machine=method.num_machine_instructions,
            made=len(self.pool),
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
        expected = self._kept_per_completion.value * self._complete_share.value
        if missing >= expected * self.method.samples_per_prompt:
            return self.method.samples_per_prompt
        return max(1, math.ceil(missing / expected))

    def _instruction_prompt(self, demonstrations: Iterable[int]) -> str | tuple[Message, ...]:
        texts = [self.pool_text(index) for index in demonstrations]
        return instruction.build_prompt(texts, self._prompts, classification_only=self.method.classification_only)

    def memory_bytes(self) -> int:
        """What grows with the pool: its texts and states, and the similarity index over them."""
        return self.pool.memory_bytes() + self._novelty.memory_bytes()

    def pool_text(self, index: int) -> str:
        """The instruction at a pool index, seed or machine."""
        seeds = len(self.seeds)
        return self.seeds[index].instruction if index < seeds else self.pool.text(index - seeds)

    def _ask_about(self, stage: Stage, subject: int) -> Request:
        is_classification = self.pool.state(subject) is State.CLASSIFICATION
        prompt = instance.build_prompt(self.pool.text(subject), is_classification, self._prompts)
        key = "instance_output_first" if is_classification else "instance_input_first"
        return Request(self._take_number(), stage, prompt, self.method.sampling[key], (subject,))

    def _take_batch(self) -> list[int]:
        """Subjects that are ready to be classified, as many as go into one request; nothing waits for more."""
        ready = self._ready[Stage.CLASSIFICATION]
        batch = [ready.popleft()]
        if batch[0] not in self._alone:
            while ready and len(batch) < self._classification_batch and ready[0] not in self._alone:
                batch.append(ready.popleft())
        return batch

    def _ask_to_classify(self, subjects: Sequence[int], number: int) -> Request:
        prompt = classification.build_prompts([self.pool.text(subject) for subject in subjects], self._prompts)
        sampling = self.method.sampling["classification"]
        return Request(number, Stage.CLASSIFICATION, prompt, sampling, tuple(subjects))

    # -- judging -------------------------------------------------------------------------------------------------------

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """A commit for every choice answered, in their order; ends with the one that reaches the target, if one does.

        Admission is sequential: an instruction kept earlier counts for those after it, also within the batch.
        """
        now = self._clock()
        answers = [one for answer in answers for one in _by_choice(answer)]
        parsed = [self._parse_instructions(answer) for answer in answers]
        verdicts = iter(self._novelty.decide([item.text for items in parsed for item in items if item.rule is None]))
        commits, number, complete = [], len(self.pool), self.complete
        for answer, items in zip(answers, parsed, strict=True):
            outcome = self._outcome(answer, items, verdicts, number)
            if isinstance(outcome, InstructionOutcome):
                number += len(outcome.kept)
            complete += isinstance(outcome, InstanceOutcome) and bool(outcome.instances)
            commits.append(_commit(answer, outcome, now))
            if complete >= self.target:
                break
        return commits

    def _parse_instructions(self, answer: Answer) -> list[_Item]:
        """The items of an instruction completion, those that a rule other than similarity rejects marked with it."""
        if answer.request.stage is not Stage.INSTRUCTION or isinstance(answer.result, Failure):
            return []
        rules = self.method.rules
        first = len(answer.request.demonstrations) + 1
        items = instruction.parse(answer.result, rules, first_number=first)
        checked = (i if i.rule else replace(i, rule=check_instruction(i.text, rules)) for i in items)
        return [self._check_contamination(item) for item in checked]

    def _check_contamination(self, item: ParsedItem) -> _Item:
        if item.rule is not None or self._forbidden is None:
            return _Item(item.span, item.text, item.rule)
        verdict = self._forbidden.look_up([item.text])[0]
        if verdict.novel or verdict.neighbour is None:
            return _Item(item.span, item.text, None)
        return _Item(item.span, item.text, CONTAMINATED, (verdict.neighbour, verdict.score))

    def _outcome(self, answer: Answer, items: list[_Item], verdicts: Iterable[Verdict], number: int) -> Outcome:
        if isinstance(answer.result, Failure):
            return self._failure(answer.subject, answer.result)
        stage = answer.request.stage
        match stage:
            case Stage.INSTRUCTION:
                recorded = max(NEAREST_RECORDED, self._novelty.record_top_k)
                return _admit(items, iter(verdicts), number, recorded)
            case Stage.CLASSIFICATION:
                return ClassificationOutcome(classification.parse(answer.result, self.method.rules))
            case Stage.INSTANCE:
                return self._instances(answer, answer.result)
            case Stage.QUESTION:
                raise ValueError("a plan asks no questions")

    def _failure(self, subject: int | None, failure: Failure) -> Failure:
        gives_up = subject is not None and self._failures.get(subject, 0) + 1 >= MAX_SUBJECT_FAILURES
        return replace(failure, settles=gives_up)

    def _instances(self, answer: Answer, completion: Completion) -> InstanceOutcome:
        is_classification = self.pool.state(_subject(answer)) is State.CLASSIFICATION
        parsed = instance.parse(completion, is_classification, self.method.rules)
        rules = [rejected.rule for rejected in parsed.rejected]
        if parsed.discarded is not None and parsed.discarded not in rules:
            rules.append(parsed.discarded)
        return InstanceOutcome(tuple((i.input, i.output) for i in parsed.instances), tuple(rules))

    # -- changing ------------------------------------------------------------------------------------------------------

    def resume(self, commits: Iterable[Commit]) -> None:
        """Take up a run where its log ends; ``commits`` are all of it, or those after what `restore` was given."""
        texts: list[str] = []
        with ThreadPoolExecutor(max_workers=1) as indexing:  # kernels without the GIL, beside the parsing
            pending: Future[None] | None = None
            for commit in commits:
                self._instructions_out += commit.stage is Stage.INSTRUCTION
                self._apply(commit, texts)
                if len(texts) >= RESUME_BATCH:
                    if pending is not None:
                        pending.result()
                    pending, texts = indexing.submit(self._novelty.add, texts), []
            if pending is not None:
                pending.result()
        self._novelty.add(texts)
        for queue in self._ready.values():
            queue.clear()
        for number, state in self.pool.unsettled():
            self._ready[_WAITS_FOR[state]].append(number)

    def folded(self) -> dict[str, Any]:
        """What the commits so far have made of the plan, beside its pool and the similarity filter: JSON values.

        Nothing of what is in flight: this is the state that a replay of the same commits ends in.
        """
        plain = {name: getattr(self, name) for name in _FOLDED}
        return plain | {
            "requests": self._committed_requests,
            "failures": [*self._failures.items()],
            "alone": sorted(self._alone & self._failures.keys()),  # the others were never committed
            "kept_per_completion": self._kept_per_completion.observed,
            "complete_share": self._complete_share.observed,
        }

    def shown_counts(self) -> bytes:
        """How often each instruction was a demonstration, as `restore` takes it."""
        return self._demonstrations.counts()

    def save_index(self) -> SavedIndex:
        """The similarity filter's index, not copied. :raises Unsavable: it is of a make that cannot be saved."""
        return self._novelty.save()

    def load_index(self, saved: IndexSource) -> CandidateIndex:
        """An index for `restore`, with the content that `save_index` gave; the plan stays as it is."""
        return self._novelty.load(saved)

    def restore(
        self, folded: Mapping[str, Any], pool: InstructionPool, shown: bytes, index: CandidateIndex | None
    ) -> None:
        """Start from what `folded`, `shown_counts` and `save_index` gave instead of from nothing; then `resume`.

        Without an index it is built anew from the pool's texts.
        """
        for name in _FOLDED:
            setattr(self, name, folded[name])
        self.pool = pool
        self._committed_requests = self._next_request = folded["requests"]
        self._failures = dict(folded["failures"])
        self._alone = {*folded["alone"]}
        self._kept_per_completion.observed = folded["kept_per_completion"]
        self._complete_share.observed = folded["complete_share"]
        self._demonstrations.restore_counts(shown)
        if index is not None:
            self._novelty.take_over(index)
            return
        for begin in range(0, len(pool), RESUME_BATCH):
            self._novelty.add([pool.text(n) for n in range(begin, min(begin + RESUME_BATCH, len(pool)))])

    def apply(self, commit: Commit) -> None:
        """Make a commit's consequences the plan's state."""
        texts: list[str] = []
        self._apply(commit, texts)
        if texts:
            self._novelty.add(texts)

    def _apply(self, commit: Commit, kept_texts: list[str]) -> None:
        """All but the similarity filter's part: what it has to learn is appended to ``kept_texts``."""
        self._committed_requests = max(self._committed_requests, commit.request + 1)
        self._next_request = max(self._next_request, self._committed_requests)
        if commit.stage is Stage.INSTRUCTION:
            self._instructions_out -= 1
            self._demonstrations.see(commit.demonstrations)
        self._note_refusal(commit)
        match commit.outcome:
            case InstructionOutcome(kept, _):
                self._apply_kept(commit.completion.text, kept, kept_texts)
            case ClassificationOutcome(is_classification):
                self._apply_classification(commit, is_classification=is_classification)
            case InstanceOutcome(instances, _):
                self._settle(commit, State.COMPLETE if instances else State.EMPTY)
            case Failure(_, _, settles):
                self._apply_failure(commit, settles=settles)

    def _note_refusal(self, commit: Commit) -> None:
        outcome = commit.outcome
        if isinstance(outcome, Failure) and outcome.kind in REFUSALS:
            self.refused += commit.choice == 0  # requests are counted, not their choices
            self.last_refusal = outcome.detail
        else:
            self.refused = 0

    def _apply_kept(self, raw: str, kept: Sequence[Kept], kept_texts: list[str]) -> None:
        for k in kept:
            text = instruction.item_text(raw, k.span, self.method.rules)
            kept_texts.append(text)
            self.pool.append(text)
            self._ready[Stage.CLASSIFICATION].append(k.number)
        self._kept_per_completion.see(len(kept))
        self.fruitless = 0 if kept else self.fruitless + 1

    def _apply_classification(self, commit: Commit, *, is_classification: bool) -> None:
        subject = _subject(commit)
        self._alone.discard(subject)
        if commit.choice:
            self._refused_batches = 0
        self.pool.set_state(subject, State.CLASSIFICATION if is_classification else State.GENERATION)
        self._ready[Stage.INSTANCE].append(subject)

    def _apply_failure(self, commit: Commit, *, settles: bool) -> None:
        if commit.subject is None:
            return
        if settles:
            self._settle(commit, State.EMPTY)
        else:
            self._failures[commit.subject] = self._failures.get(commit.subject, 0) + 1
            self._alone.add(commit.subject)
            self._ready[commit.stage].append(commit.subject)

    def _settle(self, commit: Commit, state: State) -> None:
        self.pool.set_state(_subject(commit), state)
        self._failures.pop(_subject(commit), None)
        self._alone.discard(_subject(commit))
        self.settled += 1
        self.complete += state is State.COMPLETE
        self._complete_share.see(state is State.COMPLETE)


def _classification_tokens(method: Method) -> int:
    """Most tokens of a classification answer (0 in a method that does not sample)."""
    return method.sampling["classification"].max_tokens if "classification" in method.sampling else 0


def _subject(work: Answer | Commit) -> int:
    if work.subject is None:
        raise ValueError("a downstream answer or commit without a subject")
    return work.subject


def _by_choice(answer: Answer) -> list[Answer]:
    """One answer per choice: a failed request fails for each of them, a choice that was lost fails by itself."""
    result = answer.result
    if isinstance(result, Failure):
        return [replace(answer, choice=choice) for choice in range(answer.request.sequences)]
    if result.is_lost:
        return [replace(answer, result=Failure("lost_choice", _how_lost(answer, result)))]
    return [answer]


def _how_lost(answer: Answer, completion: Completion) -> str:
    which = f"choice {answer.choice} of {answer.request.sequences}"
    if completion.finish_reason == "missing":
        return f"{which} was not sent; if that goes on, ask for one a request (--samples-per-prompt 1, in a new run)"
    return f"{which} was broken off by the server (finish reason {completion.finish_reason})"


def _commit(answer: Answer, outcome: Outcome, now: float) -> Commit:
    request = answer.request
    completion = _NO_COMPLETION if isinstance(answer.result, Failure) else answer.result
    return Commit(
        request.number, answer.choice, request.stage, answer.subject, request.demonstrations, completion, outcome, now
    )


def _admit(items: Sequence[_Item], verdicts: Iterable[Verdict], number: int, recorded: int) -> InstructionOutcome:
    kept: list[Kept] = []
    rejected: list[Rejection] = []
    remaining = iter(verdicts)
    for item in items:
        if item.rule is not None:
            rejected.append(Rejection(item.span, item.rule, item.neighbour))
            continue
        verdict = next(remaining)
        if verdict.novel:
            checked = verdict.nearest_checked[:recorded]
            kept.append(Kept(item.span, number + len(kept), verdict.nearest_seed, checked))
        else:
            neighbour = None if verdict.neighbour is None else (verdict.neighbour, verdict.score)
            rejected.append(Rejection(item.span, SIMILAR, neighbour))
    return InstructionOutcome(tuple(kept), tuple(rejected))
