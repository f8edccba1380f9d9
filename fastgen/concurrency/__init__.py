"""How many completions a server should be asked for at once: pure state machines, and the task that feeds them.

`ConcurrencyController` steers one server; `fastgen.concurrency.governor` runs one for each. Knows nothing of
Self-Instruct, of prompts or of HTTP.
"""

from fastgen.concurrency.controller import ConcurrencyController
from fastgen.concurrency.governor import Governor, GovernorStatistics, ServerLimit
from fastgen.concurrency.signals import Observation, Reason

__all__ = [
    "ConcurrencyController",
    "Governor",
    "GovernorStatistics",
    "Observation",
    "Reason",
    "ServerLimit",
]
