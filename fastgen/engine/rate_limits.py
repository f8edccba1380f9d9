"""Requests and tokens a minute, for services that count them: a leaky bucket for each.

Guarantees: in no 60 seconds do more requests begin than allowed, and they begin evenly, not in bursts at the edges of
minutes. A request waits before it is taken from its source, so it holds no slot and its prompt is built late. Tokens
are charged by estimate when a request begins and corrected when its answer states what was used. The estimate learns
from that. The law is the leaky bucket as a meter, which lets `BURST_S` of the rate through at once (ITU-T I.371's
generic cell rate algorithm). Every method is given the time, in seconds of any one monotonic clock.
"""

from __future__ import annotations

from typing import Final

from fastgen.types import Completion, Request

BURST_S: Final = 0.05  # above the resolution of timers, so that a late one costs no throughput
_RESOLUTION_S: Final = 1e-6  # a wait that rounding makes and no clock can measure
_LEARNING: Final = 0.05  # weight of one answer in the estimates
_CHARACTERS_PER_TOKEN: Final = 4.0  # of English; the first answers correct it


class Bucket:
    """Fills evenly with ``per_minute``. A charge may overdraw it. Nothing begins until it is positive again."""

    def __init__(self, per_minute: float) -> None:
        self._depth = max(1.0, per_minute / 60.0 * BURST_S)
        # What is in the bucket at the start of 60 seconds and what flows in meanwhile are together what is allowed.
        self._per_s = (per_minute - (self._depth - 1.0)) / 60.0
        self._level = self._depth
        self._at_s: float | None = None

    def wait_s(self, now_s: float, amount: float) -> float:
        """Seconds until it holds ``amount``, or until it is full if that is less."""
        self._fill(now_s)
        wait_s = (min(amount, self._depth) - self._level) / self._per_s
        return wait_s if wait_s > _RESOLUTION_S else 0.0

    def take(self, now_s: float, amount: float) -> None:
        """Charge ``amount``. A negative one is given back."""
        self._fill(now_s)
        self._level = min(self._depth, self._level - amount)

    def _fill(self, now_s: float) -> None:
        if self._at_s is not None:
            self._level = min(self._depth, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s


class RateLimits:
    """Both limits of a run. ``None`` means no such limit."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests = Bucket(requests_per_minute) if requests_per_minute is not None else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute is not None else None
        self._charged: dict[int, float] = {}  # by number of the request in flight
        self._tokens_per_character = 1.0 / _CHARACTERS_PER_TOKEN
        self._used_share = 1.0  # of max_tokens
        self._binding: str | None = None
        self._held_since_s: float | None = None
        self._held_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next request may begin. 0 if it may now. Ask when a slot is free for it."""
        waits = {
            "--requests-per-minute": 0.0 if self._requests is None else self._requests.wait_s(now_s, 1.0),
            "--tokens-per-minute": 0.0 if self._tokens is None else self._tokens.wait_s(now_s, 1.0),
        }
        self._binding = max(waits, key=lambda flag: waits[flag])
        wait_s = waits[self._binding]
        if wait_s > 0:
            self._held_since_s = now_s if self._held_since_s is None else self._held_since_s
        elif self._held_since_s is not None:
            self._held_s += now_s - self._held_since_s
            self._held_since_s = None
        return wait_s

    def began(self, now_s: float, request: Request) -> None:
        """Charge a request that is sent now."""
        if self._requests is not None:
            self._requests.take(now_s, 1.0)
        if self._tokens is not None:
            generated = self._used_share * request.sampling.max_tokens * request.sequences
            charge = self._tokens_per_character * _characters(request) + generated
            self._charged[request.number] = charge
            self._tokens.take(now_s, charge)

    def ended(self, now_s: float, request: Request, completions: tuple[Completion, ...] | None) -> None:
        """Correct the charge of a request: to what it used, or to nothing if it was refused (``None``).

        Without usage figures, or if its fate is unknown (no completions), the estimate stays.
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
            self._learn(request, prompt_tokens, generated_tokens)

    def _learn(self, request: Request, prompt_tokens: int, generated_tokens: int) -> None:
        if prompt_tokens:
            seen = prompt_tokens / _characters(request)
            self._tokens_per_character += _LEARNING * (seen - self._tokens_per_character)
        share = generated_tokens / (request.sampling.max_tokens * request.sequences)
        self._used_share += _LEARNING * (share - self._used_share)

    def held(self, now_s: float) -> tuple[str | None, float]:
        """The flag that holds requests back now, ``None`` while none does, and for how many seconds any did so far."""
        if self._held_since_s is None:
            return None, self._held_s
        return self._binding, self._held_s + now_s - self._held_since_s


def _characters(request: Request) -> int:
    """Of the prompt or prompts, at least 1."""
    if isinstance(request.prompt, str):
        return max(1, len(request.prompt))
    return max(1, sum(len(part if isinstance(part, str) else part.content) for part in request.prompt))
