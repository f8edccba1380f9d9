"""What to ask a model next and what its answers mean.

Methods are pure: no files (apart from shipped prompts and seeds), no network, no asyncio.
"""

PUBLIC = (
    "base",
    "self_instruct.admission",
    "self_instruct.demonstrations",
    "self_instruct.instruction",
    "self_instruct.plan",
    "self_instruct.prompts",
    "self_instruct.rules",
    "self_instruct.seeds",
    "self_instruct.state",
)
"""Modules that other rooms may import."""
