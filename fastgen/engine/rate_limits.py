"""Requests and tokens a minute, for services that count them: a bucket for each, and nobody sleeps in a slot.

Guarantees: in no 60 seconds do more requests begin than allowed, and they begin evenly, not in bursts at the edges of
minutes; a request waits here before it is taken from its source, so it holds no slot and its prompt is built late.
Tokens are charged by estimate when a request begins and corrected when its answer tells the truth; the estimate learns
from that. The law is the leaky bucket as a meter, which lets `BURST_S` of the rate through at once (ITU-T I.371's
generic cell rate algorithm). Pure: every call is told the time, in seconds of any one monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fastgen.types import Completion, Request

BURST_S = 0.05  # above the resolution of timers, so that a late one costs no throughput
_RESOLUTION_S = 1e-6  # rounding must not ask for a timer that a clock cannot tell from now
_LEARNING = 0.05  # weight of one answer in the estimates
_CHARACTERS_PER_TOKEN = 4.0  # of English; the first answers correct it


class Bucket:
    """Fills with ``per_minute`` evenly; a charge may overdraw it, and then nothing begins until it is made good."""

    def __init__(self, per_minute: float) -> None:
        self._depth = max(1.0, per_minute / 60.0 * BURST_S)
        # What is in the bucket at the start of 60 seconds and what runs in meanwhile are together what is allowed.
        self._per_s = (per_minute - (self._depth - 1.0)) / 60.0
        self._level = self._depth
        self._at_s: float | None = None

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until ``amount`` is there, or, where that is more than the bucket holds, until it is full."""
        self._run_in(now_s)
        wait_s = (min(amount, self._depth) - self._level) / self._per_s
        return wait_s if wait_s > _RESOLUTION_S else 0.0

    def take(self, now_s: float, amount: float) -> None:
        """Charge ``amount``, or give back where it is below 0."""
        self._run_in(now_s)
        self._level = min(self._depth, self._level - amount)

    def _run_in(self, now_s: float) -> None:
        if self._at_s is not None:
            self._level = min(self._depth, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s


@dataclass(slots=True)
class _Estimate:
    """What a request is likely to cost, learnt from those that were answered."""

    tokens_per_character: float = 1.0 / _CHARACTERS_PER_TOKEN
    used_share: float = 1.0
    """Of max_tokens."""

    def tokens(self, request: Request) -> float:
        """Tokens, prompts and answers, that the request will take."""
        generated = self.used_share * request.sampling.max_tokens * request.sequences
        return self.tokens_per_character * _characters(request) + generated

    def learn(self, request: Request, prompt_tokens: int, generated_tokens: int) -> None:
        """Take what a request really took into the estimate; 0 prompt tokens: the server did not say."""
        if prompt_tokens:
            self.tokens_per_character += _LEARNING * (prompt_tokens / _characters(request) - self.tokens_per_character)
        share = generated_tokens / (request.sampling.max_tokens * request.sequences)
        self.used_share += _LEARNING * (share - self.used_share)


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """``binding`` is the flag that holds requests back now, ``None`` while none does; ``held_s`` how long, in all."""

    binding: str | None = None
    held_s: float = 0.0


class RateLimits:
    """Both limits of a run; ``None`` means no such limit."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests = Bucket(requests_per_minute) if requests_per_minute is not None else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute is not None else None
        self._estimate = _Estimate()
        self._charged: dict[int, float] = {}  # by number of the request in flight
        self._binding: str | None = None
        self._held_since_s: float | None = None
        self._held_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next request may begin; 0 if it may now. To be asked when a slot is free for it."""
        waits = {
            "--requests-per-minute": 0.0 if self._requests is None else self._requests.wait_s(now_s, 1.0),
            "--tokens-per-minute": 0.0 if self._tokens is None else self._tokens.wait_s(now_s, 1.0),
        }
        self._binding = max(waits, key=lambda flag: waits[flag])
        wait_s = waits[self._binding]
        if wait_s <= 0:
            self._let_go(now_s)
        elif self._held_since_s is None:
            self._held_since_s = now_s
        return wait_s

    def began(self, now_s: float, request: Request) -> None:
        """Charge a request that is sent now."""
        if self._requests is not None:
            self._requests.take(now_s, 1.0)
        if self._tokens is not None:
            self._charged[request.number] = charge = self._estimate.tokens(request)
            self._tokens.take(now_s, charge)

    def ended(self, now_s: float, request: Request, completions: tuple[Completion, ...] | None) -> None:
        """Correct the charge of a request: to what was used; to nothing where it was refused (``None``).

        Without usage figures, or where nobody knows what became of it (no completions), the estimate stands.
        """
        charged = self._charged.pop(request.number, None)
        if self._tokens is None or charged is None:
            return
        if completions is None:
            self._tokens.take(now_s, -charged)
            return
        prompt_tokens = sum(one.prompt_tokens for one in completions)
        generated_tokens = sum(one.completion_tokens for one in completions)
        if prompt_tokens + generated_tokens:
            self._tokens.take(now_s, prompt_tokens + generated_tokens - charged)
            self._estimate.learn(request, prompt_tokens, generated_tokens)

    def statistics(self, now_s: float) -> RateStatistics:
        """What holds requests back now."""
        if self._held_since_s is None:
            return RateStatistics(None, self._held_s)
        return RateStatistics(self._binding, self._held_s + now_s - self._held_since_s)

    def _let_go(self, now_s: float) -> None:
        if self._held_since_s is not None:
            self._held_s += now_s - self._held_since_s
            self._held_since_s = None


def _characters(request: Request) -> int:
    """Of the prompt or prompts, at least 1."""
    if isinstance(request.prompt, str):
        return max(1, len(request.prompt))
    return max(1, sum(len(part if isinstance(part, str) else part.content) for part in request.prompt))


class RateGate:
    """Without ``rates`` it is always open; ``opened`` is called when requests that found it shut may try again."""

    def __init__(self, rates: RateLimits | None, opened: Callable[[], None]) -> None:
        self._rates = rates
        self._tell = opened
        self._timer: asyncio.TimerHandle | None = None

    @property
    def will_open(self) -> bool:
        """Whether a timer runs that will open it."""
        return self._timer is not None

    def is_shut(self) -> bool:
        """Whether the next request has to wait; then a timer opens the gate."""
        if self._rates is None:
            return False
        loop = asyncio.get_running_loop()
        if (wait_s := self._rates.wait_s(loop.time())) <= 0:
            return False
        if self._timer is None:
            self._timer = loop.call_later(wait_s, self._open)
        return True

    def _open(self) -> None:
        self._timer = None
        self._tell()

    def leave(self) -> None:
        """Nobody will try again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def began(self, request: Request) -> None:
        """See `RateLimits.began`."""
        if self._rates is not None:
            self._rates.began(asyncio.get_running_loop().time(), request)

    def ended(self, request: Request, completions: tuple[Completion, ...] | None) -> None:
        """See `RateLimits.ended`."""
        if self._rates is not None:
            self._rates.ended(asyncio.get_running_loop().time(), request, completions)

    def statistics(self) -> RateStatistics:
        """See `RateLimits.statistics`."""
        if self._rates is None:
            return RateStatistics()
        return self._rates.statistics(asyncio.get_running_loop().time())
