"""Ways of making data: what to ask a model next, and what its answers mean.

`base` has the contract of a method, `catalogue` lists the methods, and `plan` carries out any of them. They are pure:
no files (apart from shipped prompts and seeds, and a user's own method), no network, no asyncio.
"""

PUBLIC = (
    "admission",
    "backtranslate",
    "base",
    "catalogue",
    "chat_template",
    "demonstrations",
    "foreign",
    "plan",
    "self_instruct.filters",
    "self_instruct.instruction",
    "self_instruct.languages",
    "self_instruct.method",
    "self_instruct.prompts",
    "self_instruct.rules",
    "self_instruct.seeds",
    "state",
    "structured",
)
"""Modules that other rooms may import."""
