"""Self-Instruct itself: what to ask, what an answer means, what it changes. No I/O, no asyncio."""
