"""A test server that speaks vLLM's HTTP API: it fails on command or behaves like a GPU under load.

`python -m fastgen.simulator --help` runs it. Tests and benchmarks use `FaultServer` and `SimulatedEngine`.
"""

from fastgen.simulator.answers import Writer
from fastgen.simulator.batching import ENGINES, Batch, EngineModel, EngineSequence, Lengths, ideal_tokens_per_s
from fastgen.simulator.chat import TEMPLATES, AnswerForm, ChatFormat, Schemas, ServedModel
from fastgen.simulator.engine import Clock, Load, LoopClock, SimulatedEngine, SlotEngine, VirtualClock, Work
from fastgen.simulator.faults import USUAL_FAULTS, Change, Event, Fault, FaultPlan, Reply
from fastgen.simulator.server import FaultServer, ServerCounters, in_a_thread

__all__ = [
    "ENGINES",
    "TEMPLATES",
    "USUAL_FAULTS",
    "AnswerForm",
    "Batch",
    "Change",
    "ChatFormat",
    "Clock",
    "EngineModel",
    "EngineSequence",
    "Event",
    "Fault",
    "FaultPlan",
    "FaultServer",
    "Lengths",
    "Load",
    "LoopClock",
    "Reply",
    "Schemas",
    "ServedModel",
    "ServerCounters",
    "SimulatedEngine",
    "SlotEngine",
    "VirtualClock",
    "Work",
    "Writer",
    "ideal_tokens_per_s",
    "in_a_thread",
]
