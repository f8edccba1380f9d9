"""From the speed options to what carries them out: the scheduler's limits, its rates, and what steers it."""

from __future__ import annotations

from fastgen.concurrency import Governor
from fastgen.options import SpeedOptions
from fastgen.scheduling.limits import Limits
from fastgen.scheduling.rate_limits import RateLimits
from fastgen.scheduling.scheduler import Scheduler
from fastgen.serving import Serving


def limits_of(speed: SpeedOptions, serving: Serving) -> Limits:
    """How much at once, and how hard to try; with ``auto`` where it begins, and the most that a governor may set.

    Never more than this process can have connections for.
    """
    auto, most = speed.concurrency == "auto", serving.most_in_flight
    return Limits(
        concurrency=min(most, sum(serving.sizes) if speed.concurrency == "auto" else speed.concurrency),
        max_concurrency=min(most, speed.max_concurrency * len(serving.sizes)) if auto else None,
        max_attempts=speed.max_attempts,
        outage_timeout_s=speed.outage_timeout,
        drain_timeout_s=speed.drain_timeout,
    )


def rates_of(speed: SpeedOptions) -> RateLimits | None:
    """The limits a minute; ``None`` where there are none."""
    allowed = speed.requests_per_minute, speed.tokens_per_minute
    return RateLimits(*allowed) if any(allowed) else None


def governor_of(speed: SpeedOptions, serving: Serving, scheduler: Scheduler) -> Governor | None:
    """What steers the limits; ``None`` where the user fixed them."""
    if speed.concurrency != "auto":
        return None
    set_total = scheduler.set_concurrency
    maximum = min(serving.most_in_flight, speed.max_concurrency)
    return Governor(serving.backend, set_total, initial=serving.sizes, maximum=maximum)
