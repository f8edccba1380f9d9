"""What a run will cost, from a small one: tokens, hours, disk and money for N instructions. Pure arithmetic.

The small run is a real one in a folder that is thrown away: the same prompts, model, rules and concurrency.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.errors import InputError
from fastgen.ledger import Ledger

PROBE_INSTRUCTIONS = 16
"""Complete instructions that a dry run makes before it says anything."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per million tokens, read and generated, in whatever currency the user thinks in."""

    per_million_in: float
    per_million_out: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What ``target`` complete instructions are expected to take."""

    target: int
    probed: int
    requests: int
    tokens_in: int
    tokens_out: int
    hours: float
    disk_bytes: int
    money: float | None


def estimate(ledger: Ledger, log_bytes: int, elapsed_s: float, target: int, prices: Prices | None) -> Estimate:
    """Scale a probe's figures to ``target``. ``elapsed_s`` is from its first request to its last commit.

    :raises InputError: the probe completed nothing.
    """
    if ledger.complete == 0:
        raise InputError(
            f"--dry-run: the probe ended with {ledger.kept} instructions kept and none complete, so there is nothing "
            "to scale up; leave out what ends it early (--stop-when-yield-below), or try other seeds or another model"
        )
    factor = target / ledger.complete
    tokens_in, tokens_out = ledger.prompt_tokens.total() * factor, ledger.generated_tokens * factor
    money = None
    if prices is not None:
        money = (tokens_in * prices.per_million_in + tokens_out * prices.per_million_out) / 1e6
    return Estimate(
        target=target,
        probed=ledger.complete,
        requests=round(ledger.completions.total() * factor),
        tokens_in=round(tokens_in),
        tokens_out=round(tokens_out),
        hours=elapsed_s * factor / 3600,
        disk_bytes=round(log_bytes * factor),
        money=money,
    )


def render(expected: Estimate, *, in_flight: int, hit_rate: float | None) -> str:
    """The estimate for people, with what is uncertain about it."""
    money = "" if expected.money is None else f"\n  money        {expected.money:,.2f}, every token at full price"
    cached = "" if hit_rate is None else f", {hit_rate:.0%} of them from the server's prefix cache"
    return f"""\
{expected.target:,} instructions, from a probe of {expected.probed}:
  requests     {expected.requests:,}
  tokens       {expected.tokens_out:,} generated, {expected.tokens_in:,} read{cached}
  time         {expected.hours:,.2f} hours at the probe's pace
  disk         {expected.disk_bytes / 1e6:,.1f} MB of log, about a quarter of that once compressed{money}
uncertain: the probe's pace includes its start and its end, where fewer than {in_flight} requests were in flight, so \
a long run is faster; the share of new instructions falls as the pool grows, so a long run needs more tokens for each; \
{expected.probed} instructions are a small sample (expect 20 to 50 % either way)"""
