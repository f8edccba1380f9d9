"""The estimate of ``--dry-run``: requests, tokens, hours, disk and money for N instructions.

It scales the figures of a probe: a small real run with the same prompts, model, rules and concurrency, in a temporary
folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastgen.errors import InputError
from fastgen.methods.base import CREATION
from fastgen.store.ledger import Ledger

PROBE_INSTRUCTIONS = 16
"""Complete instructions of the probe."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices per million tokens, read and generated, in any one currency."""

    per_million_in: float
    per_million_out: float

    def of(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.per_million_in + tokens_out * self.per_million_out) / 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """What ``target`` complete instructions are expected to cost."""

    target: int
    probed: int
    requests: int
    tokens_in: int
    tokens_out: int
    hours: float
    disk_bytes: int
    money: float | None


@dataclass(frozen=True, slots=True)
class Load:
    """The servers' load in the probe: mean seconds of a request, by step, and the most completions in flight."""

    request_s: Mapping[str, float] = field(default_factory=dict)
    in_flight: float = 0.0


def estimate(
    ledger: Ledger, log_bytes: int, elapsed_s: float, target: int, prices: Prices | None, load: Load | None = None
) -> Estimate:
    """Scale a probe's figures to ``target``. ``elapsed_s`` is from its first request to its last commit.

    The time assumes that as many completions are always in flight as the probe had at most. Without ``load`` it is
    scaled from the probe's whole time, start and end included.

    :raises InputError: the probe has no complete instruction.
    """
    if ledger.complete == 0:
        raise InputError(
            f"--dry-run: the probe ended with {ledger.kept} instructions kept and none complete, so there is nothing "
            "to scale up; leave out what ends it early (--stop-when-yield-below), or try other seeds or another model"
        )
    factor = target / ledger.complete
    tokens_in, tokens_out = ledger.prompt_tokens.total() * factor, ledger.generated_tokens * factor
    money = None if prices is None else prices.of(tokens_in, tokens_out)
    return Estimate(
        target=target,
        probed=ledger.complete,
        requests=round(ledger.completions.total() * factor),
        tokens_in=round(tokens_in),
        tokens_out=round(tokens_out),
        hours=target * _seconds_each(ledger, elapsed_s, load or Load()) / 3600,
        disk_bytes=round(log_bytes * factor),
        money=money,
    )


def _seconds_each(ledger: Ledger, elapsed_s: float, load: Load) -> float:
    """Seconds per complete instruction at a steady rate.

    Little's law: the seconds for which its requests occupy slots, divided by the occupied slots.
    """
    occupied_s = {step: count * load.request_s.get(step, 0.0) for step, count in ledger.completions.items()}
    if not any(occupied_s.values()):
        return elapsed_s / ledger.complete
    finished = ledger.complete + ledger.empty
    made = {CREATION: ledger.kept}
    each_s = sum(s / max(1, made.get(step, ledger.completions[step])) for step, s in occupied_s.items())
    each_s *= finished / ledger.complete
    return each_s / max(load.in_flight, sum(occupied_s.values()) / max(elapsed_s, 1e-9))


def render(expected: Estimate, *, in_flight: int, hit_rate: float | None) -> str:
    """The estimate as text, with its uncertainty."""
    money = "" if expected.money is None else f"\n  money        {expected.money:,.2f}, every token at full price"
    cached = "" if hit_rate is None else f", {hit_rate:.0%} of them from the server's prefix cache"
    return f"""\
{expected.target:,} instructions, from a probe of {expected.probed}:
  requests     {expected.requests:,}
  tokens       {expected.tokens_out:,} generated, {expected.tokens_in:,} read{cached}
  time         about {expected.hours:,.2f} hours at the probe's steady rate
  disk         {expected.disk_bytes / 1e6:,.1f} MB of log, about a quarter of that once compressed{money}
uncertain: the rate is that of the most requests that the probe had in flight, and a long run may have up to \
{in_flight}; the share of new instructions falls as the pool grows, so a long run needs more tokens for each; \
{expected.probed} instructions are a small sample (expect 20 to 50 % either way)"""
