"""A tiny model of continuous batching and of a client in a closed loop, for the controller's tests. No clock, no I/O.

Each engine step decodes one token of every running sequence and admits waiting ones as far as slots, KV cache and
prefill budget allow; the newest running sequence is pushed out where the cache does not suffice.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from fastgen.engine.backend import ServerMetrics, ServerState
from fastgen.engine.concurrency import ConcurrencyController


@dataclass(slots=True, eq=False)
class _Sequence:
    prompt: int
    output: int
    made: int = 0


@dataclass
class Batching:
    """A server: ``slots`` sequences at most, ``kv_tokens`` in all; figures like an 8B model's on one H100."""

    slots: int = 256
    kv_tokens: int = 10**9
    step_s: float = 0.02
    prefill_tokens_per_step: int = 8192
    prefill_s_per_token: float = 0.0
    prompt_tokens: int = 200
    mean_output_tokens: int = 120
    most_sequences: int | None = None
    seed: int = 1
    up: bool = True
    tells: bool = True
    running: list[_Sequence] = field(default_factory=list)
    waiting: deque[_Sequence] = field(default_factory=deque)
    preemptions: int = 0
    generated: int = 0
    busy_s: float = 0.0
    queue_s: float = 0.0
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def submit(self) -> bool:
        if self.most_sequences is not None and len(self.running) + len(self.waiting) >= self.most_sequences:
            return False
        length = int(self._draw.gammavariate(4.0, self.mean_output_tokens / 4.0)) + 1
        self.waiting.append(_Sequence(self.prompt_tokens, length))
        return True

    def step(self) -> tuple[int, float]:
        """One engine step; returns how many sequences ended in it, and how long it took."""
        self._make_room()
        step_s = self.step_s + self.prefill_s_per_token * self._admit()
        for one in self.running:
            one.made += 1
        self.generated += len(self.running)
        self.busy_s += len(self.running) * step_s
        self.queue_s += len(self.waiting) * step_s
        self.spent_s += step_s
        before = len(self.running)
        self.running = [one for one in self.running if one.made < one.output]
        return before - len(self.running), step_s

    def _held(self) -> int:
        return sum(one.prompt + one.made for one in self.running)

    def _make_room(self) -> None:
        while self.running and (len(self.running) > self.slots or self._held() + len(self.running) > self.kv_tokens):
            self.waiting.appendleft(self.running.pop())
            self.preemptions += 1

    def _admit(self) -> int:
        """Take in what fits; returns the tokens to prefill."""
        budget, held = self.prefill_tokens_per_step, self._held()
        while self.waiting and len(self.running) < self.slots and budget > 0:
            one = self.waiting[0]
            cost = one.prompt + one.made
            if held + cost + len(self.running) + 1 > self.kv_tokens:
                break
            self.running.append(self.waiting.popleft())
            held, budget = held + cost, budget - cost
        return self.prefill_tokens_per_step - budget

    def metrics(self) -> ServerMetrics | None:
        if not (self.up and self.tells):
            return None
        return ServerMetrics(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_cache_usage=min(1.0, self._held() / self.kv_tokens),
            preemptions=self.preemptions,
            generation_tokens=self.generated,
        )

    def restart(self) -> int:
        """Lose everything, counters too; returns how many requests were lost."""
        lost = len(self.running) + len(self.waiting)
        self.running, self.waiting = [], deque()
        self.preemptions = self.generated = 0
        return lost


@dataclass
class Loop:
    """A client that keeps the controller's limit in flight, ``work`` of it at most; requests travel for ``transit_s``.

    ``lag_s`` is how old the server's figures are when they arrive. ``limits`` records every look.
    """

    server: Batching
    controller: ConcurrencyController
    work: int = 10**9
    transit_s: float = 0.01
    lag_s: float = 0.0
    retry_s: float = 0.5
    now_s: float = 0.0
    in_flight: int = 0
    completed: int = 0
    refused: int = 0
    limits: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._on_the_way: deque[tuple[float, bool]] = deque()
        self._backing_off: deque[float] = deque()
        self._pages: deque[tuple[float, ServerMetrics | None]] = deque()
        self._tokens_lost = 0
        self._look_at_s = 0.0

    def run(self, span_s: float) -> Loop:
        """Let ``span_s`` pass; returns itself with the server's account of that span only."""
        server, until_s = self.server, self.now_s + span_s
        server.busy_s = server.queue_s = server.spent_s = 0.0
        while self.now_s < until_s:
            self._client()
            ended, step_s = server.step() if server.up else (0, server.step_s)
            self.now_s += step_s
            self._on_the_way.extend((self.now_s + self.transit_s, True) for _ in range(ended))
            self._look()
        return self

    @property
    def occupancy(self) -> float:
        """Of the last span, 0..1."""
        return self.server.busy_s / (self.server.slots * self.server.spent_s)

    @property
    def mean_running(self) -> float:
        return self.server.busy_s / self.server.spent_s

    @property
    def queue_share(self) -> float:
        """Mean queue over mean batch of the last span."""
        return self.server.queue_s / self.server.busy_s

    def kill(self) -> None:
        """The server dies with all that it held; the client notices at once."""
        self.in_flight -= self.server.restart()
        self.server.up = False

    def _client(self) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= self.now_s:
            _, is_answer = self._on_the_way.popleft()
            if is_answer:
                self.in_flight -= 1
                self.completed += 1
            elif not (self.server.up and self.server.submit()):
                self.in_flight -= 1
                self.refused += self.server.up
                self._backing_off.append(self.now_s + self.retry_s)
        while self._backing_off and self._backing_off[0] <= self.now_s:
            self._backing_off.popleft()
        wanted = min(self.controller.limit, self.work) if self.server.up else 0
        while self.in_flight < wanted and len(self._backing_off) < 2 * self.controller.limit:
            self.in_flight += 1
            self._on_the_way.append((self.now_s + self.transit_s, False))

    def _look(self) -> None:
        self._pages.append((self.now_s, self.server.metrics()))
        while len(self._pages) > 1 and self._pages[1][0] <= self.now_s - self.lag_s:
            self._pages.popleft()
        if self.now_s < self._look_at_s:
            return
        page = self._pages[0][1]
        self.controller.observe(
            ServerState(
                at_s=self.now_s,
                healthy=self.server.up,
                sequences=self.in_flight,
                completions=self.completed,
                refused=self.refused,
                generated_tokens=self.server.generated,
                metrics=page,
            )
        )
        self.limits.append((self.now_s, self.controller.limit))
        self._look_at_s = self.now_s + self.controller.pause_s
