"""Keeps N requests in flight.

Scheduling, retries, outages, rate limits, concurrency control and the health of each step.
Servers are behind the `Backend` protocol, and what is asked behind the `Source` protocol.
"""

PUBLIC = ("backend", "concurrency", "health", "rate_limits", "requests", "scheduler")
"""Modules that other rooms may import."""
