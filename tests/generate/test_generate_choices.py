"""`generate` with several choices a request: a real server over sockets, its faults, and logs cut off between lines."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.errors import InputError
from fastgen.generate.options import (
    JobOptions,
    MethodOptions,
    Options,
    ServerOptions,
    SpeedOptions,
    check_same_configuration,
    run_configuration,
)
from fastgen.generate.run import Outcome, Place, generate
from fastgen.generate.runtime import Stopper
from fastgen.methods.base import Answered, Commit, Labelled
from fastgen.simulator.faults import Event, Fault, FaultPlan, Reply
from fastgen.simulator.server import FaultServer
from fastgen.store.records import decode
from fastgen.telemetry.progress import QuietReporter
from fastgen.types import Failure

TARGET = 40
GUARD_S = 60.0
REFUSED = Reply(400, orjson.dumps({"error": {"message": "prompt must be a string", "type": "BadRequestError"}}))


def options(server: FaultServer, *, batch: int = 8, samples: int = 4, concurrency: int = 6, **method: Any) -> Options:
    return Options(
        job=JobOptions(num_instructions=TARGET),
        server=ServerOptions(base_url=(server.base_url,)),
        speed=SpeedOptions(concurrency=concurrency, classification_batch=batch),
        method=MethodOptions(samples_per_prompt=samples, **method),
    )


async def carry_out(folder: Path, chosen: Options) -> Outcome:
    reporter = QuietReporter()
    async with asyncio.timeout(GUARD_S):
        return await generate(Place(folder, folder.parent), chosen, reporter, Stopper(reporter))


def run(folder: Path, script: Sequence[Event] = (), faults: FaultPlan | None = None, **settings: Any) -> list[Any]:
    """One run to its end; the bodies that the server got."""

    async def main() -> list[Any]:
        async with FaultServer(script=script, faults=faults) as server:
            outcome = await carry_out(folder, options(server, **settings))
            assert outcome.complete == TARGET
            return [orjson.loads(received.body) for received in server.received]

    return asyncio.run(main())


def segment(folder: Path) -> Path:
    (path,) = (folder / "log").iterdir()
    return path


def commits(folder: Path) -> list[Commit]:
    lines = [orjson.loads(line) for line in segment(folder).read_bytes().splitlines()]
    return [decode(line) for line in lines if "req" in line]


def check(folder: Path) -> list[Commit]:
    """Nothing lost, nothing doubled: every choice once, every subject classified and settled once."""
    log = commits(folder)
    assert set(Counter((one.request, one.choice) for one in log).values()) == {1}
    classified = Counter(one.subject for one in log if isinstance(one.outcome, Labelled))
    settled = Counter(one.subject for one in log if isinstance(one.outcome, Answered))
    assert set(classified.values()) == set(settled.values()) == {1}
    assert settled.keys() <= classified.keys()
    assert sum(isinstance(one.outcome, Answered) and bool(one.outcome.instances) for one in log) == TARGET
    return log


def test_samples_and_batches_are_what_the_server_is_asked_for(tmp_path: Path) -> None:
    bodies = run(tmp_path / "run")
    assert max(body.get("n", 1) for body in bodies) == 4
    assert max(len(body["prompt"]) for body in bodies if isinstance(body["prompt"], list)) == 8
    assert all(body["max_tokens"] == 3 for body in bodies if isinstance(body["prompt"], list))
    log = check(tmp_path / "run")
    assert max(one.choice for one in log if one.step == "instruction") == 3
    assert len(bodies) < len(log)


def test_one_of_each_is_asked_for_when_told_so(tmp_path: Path) -> None:
    bodies = run(tmp_path / "run", batch=1, samples=1)
    assert all(isinstance(body["prompt"], str) and "n" not in body for body in bodies)
    assert {one.choice for one in check(tmp_path / "run")} == {0}


def test_faults_of_every_kind_lose_and_double_nothing(tmp_path: Path) -> None:
    kinds = (Fault.MISSING_CHOICE, Fault.ABORTED, Fault.INVALID_JSON, Fault.EXTRA_CHOICE, Fault.RESET)
    faults = FaultPlan([None, Fault.MISSING_CHOICE, Fault.MISSING_CHOICE], rate=0.2, kinds=kinds)
    run(tmp_path / "run", faults=faults)
    log = check(tmp_path / "run")
    assert {"lost_choice"} == {one.outcome.kind for one in log if isinstance(one.outcome, Failure)}


def test_a_refused_batch_is_asked_one_by_one(tmp_path: Path) -> None:
    bodies = run(tmp_path / "run", [None, REFUSED], concurrency=1, samples=1)
    refused = bodies[1]["prompt"]
    assert len(refused) > 1
    assert set(refused) <= {body["prompt"] for body in bodies[2:] if isinstance(body["prompt"], str)}
    log = check(tmp_path / "run")
    assert not any(isinstance(one.outcome, Failure) for one in log), "no prompt is blamed"


def test_a_run_from_before_these_options_resumes_with_its_own_values() -> None:
    now = run_configuration(Options(), model="m", contents={"seed_tasks": "s", "prompts": "p"})
    old = {name: value for name, value in now.items() if name not in {"samples_per_prompt", "demonstrations"}}
    check_same_configuration(old, now, Path("run"))
    for changed in ({"samples_per_prompt": 2}, {"demonstrations": "diverse"}):
        with pytest.raises(InputError, match=r"--(samples-per-prompt 1|demonstrations uniform) "):
            check_same_configuration(old, now | changed, Path("run"))


@pytest.mark.parametrize("inside_a_line", [False, True])
def test_a_log_cut_off_between_the_choices_of_a_request_is_resumed(tmp_path: Path, *, inside_a_line: bool) -> None:
    run(tmp_path / "whole", demonstrations="least-used")
    lines = segment(tmp_path / "whole").read_bytes().splitlines(keepends=True)
    numbers = [orjson.loads(line).get("req") for line in lines]
    between = [at for at in range(1, len(lines)) if numbers[at - 1] is not None and numbers[at] == numbers[at - 1]]
    assert len(between) > 20
    for at in between[:: len(between) // 4]:
        folder = tmp_path / f"cut-{at}"
        shutil.copytree(
            tmp_path / "whole", folder, ignore=shutil.ignore_patterns("ledger.json", "lock", "*checkpoint*")
        )
        segment(folder).write_bytes(b"".join(lines[:at]) + (lines[at][:-20] if inside_a_line else b""))
        before = commits_of(lines[:at])
        run(folder, demonstrations="least-used")
        assert check(folder)[: len(before)] == before


def commits_of(lines: Sequence[bytes]) -> list[Commit]:
    return [decode(fields) for line in lines if "req" in (fields := orjson.loads(line))]
