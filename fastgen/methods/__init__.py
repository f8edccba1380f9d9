"""What to ask a model next and what its answers mean.

Methods are pure: no files (apart from shipped prompts and seeds), no network, no asyncio.
"""

PUBLIC = (
    "admission",
    "backtranslate",
    "base",
    "catalogue",
    "chat_template",
    "demonstrations",
    "plan",
    "self_instruct.filters",
    "self_instruct.instruction",
    "self_instruct.method",
    "self_instruct.prompts",
    "self_instruct.rules",
    "self_instruct.seeds",
    "state",
)
"""Modules that other rooms may import."""
