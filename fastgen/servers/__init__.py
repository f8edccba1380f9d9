"""Clients of OpenAI-compatible servers, for one endpoint or several, and the vLLM servers that fastgen starts.

Every network fault becomes one of the errors of `fastgen.errors`.
"""

PUBLIC = ("choose", "describe", "embedded", "endpoint", "fleet", "openai", "router", "spec")
"""Modules that other rooms may import."""
