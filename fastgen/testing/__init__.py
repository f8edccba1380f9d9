"""What tests and benchmarks need and users may: an OpenAI-compatible server that fails in every way on command.

``python -m fastgen.testing --help`` runs it as a process; `FaultServer` runs it inside a test. Everything it does
depends on its arguments, the prompts and the order in which requests arrive, so a test that passes once passes always.
`SimulatedEngine` gives it the timing of a continuously batching GPU server.
"""

from fastgen.testing.answers import Writer
from fastgen.testing.batching import Batch
from fastgen.testing.clock import Clock, LoopClock, VirtualClock
from fastgen.testing.counters import Received, ServerCounters
from fastgen.testing.engine import Engine, EngineFigures, Load, SlotEngine, Work
from fastgen.testing.faults import USUAL_FAULTS, Event, Fault, FaultPlan, Reply
from fastgen.testing.ideal import Lengths, ideal_tokens_per_s
from fastgen.testing.script import Change, Timed
from fastgen.testing.sequence import Sequence
from fastgen.testing.server import FaultServer, in_a_thread
from fastgen.testing.simulated import SimulatedEngine
from fastgen.testing.simulation import Simulation
from fastgen.testing.timing import ENGINES, EngineModel

__all__ = [
    "ENGINES",
    "USUAL_FAULTS",
    "Batch",
    "Change",
    "Clock",
    "Engine",
    "EngineFigures",
    "EngineModel",
    "Event",
    "Fault",
    "FaultPlan",
    "FaultServer",
    "Lengths",
    "Load",
    "LoopClock",
    "Received",
    "Reply",
    "Sequence",
    "ServerCounters",
    "SimulatedEngine",
    "Simulation",
    "SlotEngine",
    "Timed",
    "VirtualClock",
    "Work",
    "Writer",
    "ideal_tokens_per_s",
    "in_a_thread",
]
