"""What to ask next, what an answer means, what it changes: Self-Instruct's bootstrapping as a state machine.

- `Plan.next` says what to ask now. Downstream work first (instances, then classification), new instructions in what
  is left, and only as many as the target still needs at the yield seen so far: all stages share the same slots.
- `Plan.judge` turns answers into commits. It reads; it changes nothing.
- `Plan.apply` is the only mutator, live and on resume: a resumed plan is the fold of the log.

Each request's random draws are keyed by (run seed, request number), so there is no generator state to save.
No I/O, no clock of its own, no asyncio. `judge` may run in a worker thread while `next` runs in the loop; `apply` may
not.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from fastgen.commits import ClassificationOutcome, Commit, InstanceOutcome, InstructionOutcome, Kept, Outcome, Rejection
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

SIMILAR = "similar"  # the rule's name in the ledger
CONTAMINATED = "contaminated"  # too similar to a forbidden text; the neighbour is that text's place in their list
NEAREST_RECORDED = 1  # neighbours of a kept instruction that the log keeps: more would not fit its budget a line
MAX_SUBJECT_FAILURES = 3  # requests that may fail for good before an instruction is settled without instances
RESUME_BATCH = 4096  # texts that the similarity filter takes in at once on resume
REFUSALS = frozenset({"rejected", "prompt_too_long"})  # failures that say something about what was asked
_NO_COMPLETION = Completion("", None)


@dataclass(frozen=True, slots=True)
class Method:
    """Everything that decides what a run means, apart from the seeds, the prompts and the similarity filter."""

    rules: Rules
    sampling: Mapping[str, Sampling]
    seed: int = 0
    num_prompt_instructions: int = 8
    num_machine_instructions: int = 2
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
        self._drawable_seeds = [i for i, s in enumerate(seeds) if s.is_classification or not method.classification_only]
        self._ready: dict[Stage, deque[int]] = {Stage.CLASSIFICATION: deque(), Stage.INSTANCE: deque()}
        self._failures: dict[int, int] = {}
        self._next_request = 0
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

    def next(self) -> Request | None:
        """The request to send now, or ``None`` while only answers on their way can create more work."""
        if self.done:
            return None
        for stage in (Stage.INSTANCE, Stage.CLASSIFICATION):
            if self._ready[stage]:
                return self._ask_about(stage, self._ready[stage].popleft())
        return self._ask_for_instructions() if self._missing() > 0 else None

    def give_back(self, request: Request) -> None:
        """A request from `next` will not be answered (cancelled): its work may be asked again."""
        if request.subject is None:
            self._instructions_out -= request.n
        else:
            self._ready[request.stage].appendleft(request.subject)

    def shrink(self, request: Request) -> Request | None:
        """The request with half the demonstrations, for a prompt that was too long; ``None`` if nothing is left."""
        fewer = request.demonstrations[: len(request.demonstrations) // 2]
        if not fewer:
            return None
        return replace(request, prompt=self._instruction_prompt(fewer), demonstrations=fewer)

    def _missing(self) -> float:
        """How many complete instructions the work under way is not expected to bring."""
        on_the_way = len(self.pool) - self.settled + self._instructions_out * self._kept_per_completion.value
        return self.target - self.complete - on_the_way * self._complete_share.value

    def _take_number(self) -> int:
        self._next_request += 1
        return self._next_request - 1

    def _ask_for_instructions(self) -> Request:
        number = self._take_number()
        demonstrations = self._draw(random.Random(f"{self.method.seed}/{number}"))
        self._instructions_out += 1
        return Request(
            number=number,
            stage=Stage.INSTRUCTION,
            prompt=self._instruction_prompt(demonstrations),
            sampling=self.method.sampling["instruction"],
            demonstrations=demonstrations,
        )

    def _draw(self, rng: random.Random) -> tuple[int, ...]:
        """Pool indexes of the demonstrations: machine instructions as the pool allows, seeds for the rest, shuffled."""
        machine = min(self.method.num_machine_instructions, len(self.pool))
        human = min(self.method.num_prompt_instructions - machine, len(self._drawable_seeds))
        drawn = rng.sample(self._drawable_seeds, human)
        drawn += [len(self.seeds) + number for number in rng.sample(range(len(self.pool)), machine)]
        rng.shuffle(drawn)
        return tuple(drawn)

    def _instruction_prompt(self, demonstrations: Iterable[int]) -> str | tuple[Message, ...]:
        texts = [self.pool_text(index) for index in demonstrations]
        return instruction.build_prompt(texts, self._prompts, classification_only=self.method.classification_only)

    def pool_text(self, index: int) -> str:
        """The instruction at a pool index, seed or machine."""
        seeds = len(self.seeds)
        return self.seeds[index].instruction if index < seeds else self.pool.text(index - seeds)

    def _ask_about(self, stage: Stage, subject: int) -> Request:
        text = self.pool.text(subject)
        if stage is Stage.CLASSIFICATION:
            prompt, key = classification.build_prompt(text, self._prompts), "classification"
        else:
            is_classification = self.pool.state(subject) is State.CLASSIFICATION
            prompt = instance.build_prompt(text, is_classification, self._prompts)
            key = "instance_output_first" if is_classification else "instance_input_first"
        return Request(self._take_number(), stage, prompt, self.method.sampling[key], subject)

    # -- judging -------------------------------------------------------------------------------------------------------

    def judge(self, answers: Sequence[Answer]) -> list[Commit]:
        """Commits for the answers, in their order; ends with the one that reaches the target, if one does.

        Admission is sequential: an instruction kept earlier counts for those after it, also within the batch.
        """
        now = self._clock()
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
            return self._failure(answer.request, answer.result)
        match answer.request.stage:
            case Stage.INSTRUCTION:
                return _admit(items, iter(verdicts), number)
            case Stage.CLASSIFICATION:
                return ClassificationOutcome(classification.parse(answer.result, self.method.rules))
            case Stage.INSTANCE:
                return self._instances(answer.request, answer.result)

    def _failure(self, request: Request, failure: Failure) -> Failure:
        gives_up = request.subject is not None and self._failures.get(request.subject, 0) + 1 >= MAX_SUBJECT_FAILURES
        return replace(failure, settles=gives_up)

    def _instances(self, request: Request, completion: Completion) -> InstanceOutcome:
        is_classification = self.pool.state(_subject(request)) is State.CLASSIFICATION
        parsed = instance.parse(completion, is_classification, self.method.rules)
        rules = [rejected.rule for rejected in parsed.rejected]
        if parsed.discarded is not None and parsed.discarded not in rules:
            rules.append(parsed.discarded)
        return InstanceOutcome(tuple((i.input, i.output) for i in parsed.instances), tuple(rules))

    # -- changing ------------------------------------------------------------------------------------------------------

    def resume(self, commits: Iterable[Commit]) -> None:
        """Take up a run where its log ends."""
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
        waiting = {
            State.KEPT: Stage.CLASSIFICATION,
            State.GENERATION: Stage.INSTANCE,
            State.CLASSIFICATION: Stage.INSTANCE,
        }
        for queue in self._ready.values():
            queue.clear()
        for number in range(len(self.pool)):
            if stage := waiting.get(self.pool.state(number)):
                self._ready[stage].append(number)

    def apply(self, commit: Commit) -> None:
        """Make a commit's consequences the plan's state."""
        texts: list[str] = []
        self._apply(commit, texts)
        if texts:
            self._novelty.add(texts)

    def _apply(self, commit: Commit, kept_texts: list[str]) -> None:
        """All but the similarity filter's part: what it has to learn is appended to ``kept_texts``."""
        self._next_request = max(self._next_request, commit.request + 1)
        if commit.stage is Stage.INSTRUCTION:
            self._instructions_out -= 1
        self._note_refusal(commit.outcome)
        match commit.outcome:
            case InstructionOutcome(kept, _):
                self._apply_kept(commit.completion.text, kept, kept_texts)
            case ClassificationOutcome(is_classification):
                self._apply_classification(commit, is_classification=is_classification)
            case InstanceOutcome(instances, _):
                self._settle(commit, State.COMPLETE if instances else State.EMPTY)
            case Failure(_, _, settles):
                self._apply_failure(commit, settles=settles)

    def _note_refusal(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure) and outcome.kind in REFUSALS:
            self.refused += 1
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
        self.pool.set_state(subject, State.CLASSIFICATION if is_classification else State.GENERATION)
        self._ready[Stage.INSTANCE].append(subject)

    def _apply_failure(self, commit: Commit, *, settles: bool) -> None:
        if commit.subject is None:
            return
        if settles:
            self._settle(commit, State.EMPTY)
        else:
            self._failures[commit.subject] = self._failures.get(commit.subject, 0) + 1
            self._ready[commit.stage].append(commit.subject)

    def _settle(self, commit: Commit, state: State) -> None:
        self.pool.set_state(_subject(commit), state)
        self._failures.pop(_subject(commit), None)
        self.settled += 1
        self.complete += state is State.COMPLETE
        self._complete_share.see(state is State.COMPLETE)


def _subject(work: Request | Commit) -> int:
    if work.subject is None:
        raise ValueError(f"a {work.stage} request without a subject")
    return work.subject


def _commit(answer: Answer, outcome: Outcome, now: float) -> Commit:
    request = answer.request
    completion = _NO_COMPLETION if isinstance(answer.result, Failure) else answer.result
    return Commit(
        request.number, answer.choice, request.stage, request.subject, request.demonstrations, completion, outcome, now
    )


def _admit(items: Sequence[_Item], verdicts: Iterable[Verdict], number: int) -> InstructionOutcome:
    kept: list[Kept] = []
    rejected: list[Rejection] = []
    remaining = iter(verdicts)
    for item in items:
        if item.rule is not None:
            rejected.append(Rejection(item.span, item.rule, item.neighbour))
            continue
        verdict = next(remaining)
        if verdict.novel:
            checked = verdict.nearest_checked[:NEAREST_RECORDED]
            kept.append(Kept(item.span, number + len(kept), verdict.nearest_seed, checked))
        else:
            neighbour = None if verdict.neighbour is None else (verdict.neighbour, verdict.score)
            rejected.append(Rejection(item.span, SIMILAR, neighbour))
    return InstructionOutcome(tuple(kept), tuple(rejected))
