"""A test server that speaks vLLM's HTTP API: it fails on command or behaves like a GPU under load.

`python -m fastgen.simulator --help` runs it; tests and benchmarks use `FaultServer`, `SimulatedEngine` and
`Simulation`.
"""

from fastgen.simulator.answers import Writer
from fastgen.simulator.batching import ENGINES, Batch, EngineModel, Lengths, ServedSequence, ideal_tokens_per_s
from fastgen.simulator.engine import Clock, Engine, EngineFigures, Load, LoopClock, SlotEngine, VirtualClock, Work
from fastgen.simulator.faults import USUAL_FAULTS, Change, Event, Fault, FaultPlan, Reply, Timed
from fastgen.simulator.server import FaultServer, Received, ServerCounters, in_a_thread
from fastgen.simulator.simulated import SimulatedEngine, Simulation

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
    "ServedSequence",
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
