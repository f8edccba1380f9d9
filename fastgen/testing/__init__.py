"""What tests and benchmarks need and users may: an OpenAI-compatible server that fails in every way on command.

``python -m fastgen.testing --help`` runs it as a process; `FaultServer` runs it inside a test. Everything it does
depends on its arguments, the prompts and the order in which requests arrive, so a test that passes once passes always.
"""

from fastgen.testing.answers import Writer
from fastgen.testing.counters import Received, ServerCounters
from fastgen.testing.engine import Engine, Load, SlotEngine, Work
from fastgen.testing.faults import USUAL_FAULTS, Event, Fault, FaultPlan, Reply
from fastgen.testing.server import FaultServer

__all__ = [
    "USUAL_FAULTS",
    "Engine",
    "Event",
    "Fault",
    "FaultPlan",
    "FaultServer",
    "Load",
    "Received",
    "Reply",
    "ServerCounters",
    "SlotEngine",
    "Work",
    "Writer",
]
