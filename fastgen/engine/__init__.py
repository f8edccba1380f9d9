"""Keeps N requests in flight.

Scheduling, retries, outages, rate limits, concurrency control and the health of each step.
It knows the `Backend` protocol only, not where servers come from or what is asked of them.
"""

PUBLIC = ("backend", "concurrency", "health", "rate_limits", "requests", "scheduler")
"""Modules that other rooms may import."""
