"""Clients of OpenAI-compatible servers, and the vLLM servers that fastgen starts.

The clients: one endpoint, a router over several endpoints, one router per step.
It turns every network fault into one of the errors of `fastgen.errors`.
"""

PUBLIC = ("choose", "embedded", "endpoint", "fleet", "openai", "router", "spec", "staged")
"""Modules that other rooms may import."""
