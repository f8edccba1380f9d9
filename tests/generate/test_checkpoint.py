"""A plan from a checkpoint and the log's end is that of the whole log; a checkpoint that does not fit is not used."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.errors import DamagedLogError, DiskError
from fastgen.generate import checkpoint
from fastgen.generate.checkpoint import (
    Checkpoint,
    CheckpointEnd,
    Checkpointer,
    capture,
    load_checkpoint,
    make_copy_memory,
    write_checkpoint,
)
from fastgen.methods.base import Commit
from fastgen.methods.plan import Plan
from fastgen.methods.self_instruct.method import self_instruct
from fastgen.methods.self_instruct.prompts import load_prompts
from fastgen.methods.self_instruct.rules import PRESETS, SAMPLING_PRESETS
from fastgen.methods.state import InstructionPool, RunState
from fastgen.similarity import jit
from fastgen.similarity.novelty import IndexKind, NoveltyFilter
from fastgen.simulator.answers import Writer as Model
from fastgen.store.log import Digest, LogWriter
from fastgen.store.run_folder import RunFolder, Store
from fastgen.types import Answer, Completion, Failure, Instance, Request, SeedTask

PROMPTS = load_prompts("completions")
SEEDS = [
    SeedTask(
        f"seed_{n}", f"s{n}", f"{verb} the {thing} of case number {n} in some detail.", (Instance("", "x"),), n < 3
    )
    for n, (verb, thing) in enumerate(
        (verb, thing) for verb in ("Describe", "Compare", "Rank") for thing in ("rivers", "stones", "violins", "comets")
    )
]
METHOD = self_instruct(
    *(PRESETS["default"], SEEDS, PROMPTS, SAMPLING_PRESETS["default"]), demonstrations="least-used", samples=2, seed=5
)


def fresh(index: IndexKind = "exhaustive", *, target: int = 100_000) -> Plan:
    novelty = NoveltyFilter(index=index)
    return Plan(METHOD, novelty, target=target, clock=lambda: 7.0, batch=3)


@dataclass
class Live:
    """A run in progress: some requests in flight, answered in any order, some of them badly."""

    store: Store
    plan: Plan
    draw: random.Random
    in_flight: list[Request] = field(default_factory=list)

    def step(self) -> None:
        """Ask for up to eight in flight; answer up to three; commit as the loop does."""
        while len(self.in_flight) < 8 and (request := self.plan.next()) is not None:
            self.in_flight.append(request)
        self.draw.shuffle(self.in_flight)
        count = self.draw.randint(1, 3)
        answers = [answer for request in self.in_flight[:count] for answer in self._answers(request)]
        del self.in_flight[:count]
        commits = self.plan.judge(answers)
        self.store.append(commits)
        for commit in commits:
            self.plan.apply(commit)
            self.store.ledger.apply(commit)

    def _answers(self, request: Request) -> list[Answer]:
        luck = self.draw.random()
        if luck < 0.06:
            return [Answer(request, 0, Failure("rejected", "no such sampling"))]
        if luck < 0.12:
            return [Answer(request, 0, Failure("http_500", "down"))]
        if luck < 0.2:
            return [Answer(request, choice, Completion(" nothing", "stop")) for choice in range(request.sequences)]
        return [Answer(request, choice, self._completion(request, choice)) for choice in range(request.sequences)]

    def _completion(self, request: Request, choice: int) -> Completion:
        prompt = request.prompt[choice // request.n] if isinstance(request.prompt, tuple) else request.prompt
        assert isinstance(prompt, str)
        reason = "abort" if self.draw.random() < 0.05 else "stop"
        return Completion(Model(0, 0.3).answer(prompt, choice), reason, 10, 20)

    def save(self, *, with_index: bool = True) -> None:
        write(self.store, self.plan.state, with_index=with_index)


def write(store: Store, run: RunState, *, with_index: bool = True) -> None:
    write_checkpoint(store, capture(run, store, with_index=with_index), [])


def begin(path: Path, seed: int = 0, index: IndexKind = "exhaustive") -> Live:
    store, plan = Store(RunFolder(path)), fresh(index)
    store.begin({"model": "m", "seed": 5}, {}, "0")
    plan.resume(store.replay())
    return Live(store, plan, random.Random(seed))


def start(path: Path, index: IndexKind = "exhaustive") -> tuple[CheckpointEnd | None, Live]:
    store, plan = Store(RunFolder(path)), fresh(index)
    try:
        return load_checkpoint(store, plan), Live(store, plan, random.Random(1))
    except BaseException:
        store.close()
        raise


def replayed(path: Path, index: IndexKind = "exhaustive") -> Live:
    """The same run without its checkpoint, in a copy of its folder."""
    copy = path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy, ignore=lambda *_: {"checkpoint.npz"})
    used, live = start(copy, index)
    assert used is None
    return live


def logged(path: Path) -> list[Commit]:
    return list(RunFolder(path).whole_commits())


def assert_same(one: Live, other: Live, steps: int = 6) -> None:
    """Now, and in all that the two do from here on."""
    for _ in range(steps):
        assert one.plan.state.folded() == other.plan.state.folded()
        assert one.plan.state.shown_counts() == other.plan.state.shown_counts()
        assert [bytes(c.data) for c in one.plan.state.pool.columns()] == [
            bytes(c.data) for c in other.plan.state.pool.columns()
        ]
        assert one.store.ledger == other.store.ledger
        assert one.store.position == other.store.position
        one.step()
        other.step()
        assert one.in_flight == other.in_flight
    one.store.close()
    other.store.close()
    assert logged(one.store.folder.path) == logged(other.store.folder.path)


@given(
    st.integers(0, 10_000),
    st.integers(0, 25),
    st.integers(0, 12),
    st.sampled_from([("lsh", True), ("exact", True), ("exhaustive", True), ("exact", False)]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_from_a_checkpoint_and_the_rest_of_the_log_as_from_the_whole_log(
    tmp_path_factory: pytest.TempPathFactory, seed: int, before: int, after: int, how: tuple[IndexKind, bool]
) -> None:
    path, (index, with_index) = tmp_path_factory.mktemp("run") / "run", how
    live = begin(path, seed, index)
    for _ in range(before):
        live.step()
    live.save(with_index=with_index)
    at = live.store.position
    for _ in range(after):
        live.step()
    live.store.close()
    used, resumed = start(path, index)
    assert used is not None
    assert used.position == at
    assert_same(resumed, replayed(path, index))


def ran(path: Path, *, before: int = 12, after: int = 3) -> Live:
    live = begin(path)
    for _ in range(before):
        live.step()
    live.save()
    for _ in range(after):
        live.step()
    live.store.close()
    return live


def test_a_start_from_a_checkpoint_reads_no_line_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = ran(tmp_path / "run")
    whole = len(logged(tmp_path / "run"))
    seen: list[Commit] = []
    resume = Plan.resume

    def noting(plan: Plan, commits: Iterable[Commit]) -> None:
        seen.extend(commits)
        resume(plan, seen)

    monkeypatch.setattr(Plan, "resume", noting)
    used, resumed = start(tmp_path / "run")
    resumed.store.close()
    assert used is not None
    assert 0 < len(seen) < whole / 2
    assert used.instructions <= len(live.plan.state.pool) == len(resumed.plan.state.pool)


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "nonsense", "a folder"])
def test_a_damaged_checkpoint_is_one_line_and_the_log_is_read(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    ran(path)
    file = path / "checkpoint.npz"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[content.index(b"pool/texts.npy") + 200] ^= 1
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        wrong = {"cut": bytes(content[:-1]), "emptied": b"", "nonsense": b"{}\n", "flipped": bytes(content)}[damage]
        file.write_bytes(wrong)
    used, resumed = start(path)
    assert used is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "not used, since it" in caplog.text
    assert_same(resumed, replayed(path))


def test_a_flipped_bit_of_a_checkpoint_does_not_change_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    ran(path)
    expected = replayed(path)
    file = path / "checkpoint.npz"
    whole, draw = file.read_bytes(), random.Random(3)
    for _ in range(40):
        place = draw.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        _, resumed = start(path)
        assert resumed.plan.state.folded() == expected.plan.state.folded()
        arrays, expected_arrays = resumed.plan.state.save_index(), expected.plan.state.save_index()
        assert arrays.keys() == expected_arrays.keys()
        assert [name for name, values in arrays.items() if not np.array_equal(values, expected_arrays[name])] == []
        resumed.store.close()
    expected.store.close()


def test_a_checkpoint_of_another_run_version_or_configuration_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran(tmp_path / "run")
    ran(tmp_path / "other")
    whole = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    shutil.copy(tmp_path / "other" / "checkpoint.npz", tmp_path / "run" / "checkpoint.npz")
    used, resumed = start(tmp_path / "run")
    resumed.store.close()
    assert used is None
    assert "it is of another run" in caplog.text
    (tmp_path / "run" / "checkpoint.npz").write_bytes(whole)
    monkeypatch.setattr(checkpoint, "__version__", "99.0")
    used, resumed = start(tmp_path / "run")
    resumed.store.close()
    assert used is None
    assert "it was made by fastgen" in caplog.text
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "run")
    header = folder.header()
    folder.write_header(type(header)(header.run_id, header.version, {"model": "m", "seed": 6}, {}))
    used, resumed = start(tmp_path / "run")
    resumed.store.close()
    assert used is None
    assert "it is of a run with other options" in caplog.text


def test_damage_in_the_log_before_the_checkpoint_is_found_and_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    ran(path)
    segment = path / "log" / "000000.jsonl"
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b'"tokens":[10,20]', b'"tokens":[10,21]', 1))
    with pytest.raises(DamagedLogError, match=r"000000\.jsonl:\d+: the line does not match its checksum"):
        start(path)
    segment.write_bytes(content)
    used, resumed = start(path)
    resumed.store.close()
    assert used is not None


def test_a_checkpoint_that_is_ahead_of_the_log_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run"
    ran(path, after=0)
    segment = path / "log" / "000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:-2]))
    used, resumed = start(path)
    assert used is None
    assert "is shorter than when it was last read" in caplog.text
    assert resumed.store.lost_bytes == sum(map(len, lines[-2:]))
    assert_same(resumed, replayed(path))


def test_over_closed_and_compressed_segments_a_checkpoint_works_and_a_missing_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LogWriter.__init__.__kwdefaults__ or {}, "segment_bytes", 4000)
    path = tmp_path / "run"
    live = begin(path)
    closed: list[Digest] = []
    for step in range(30):
        live.step()
        if step % 5 == 0:
            live.store.compress_closed()
            write_checkpoint(live.store, capture(live.plan.state, live.store), closed)
    assert len(closed) > 3, "digests of closed segments are kept"
    live.store.close()
    assert len(list((path / "log").glob("*.zst"))) > 3
    used, resumed = start(path)
    assert used is not None
    assert used.position.segment > 3
    assert_same(resumed, replayed(path))
    next((path / "log").glob("000001*")).unlink()
    with pytest.raises(DamagedLogError, match="segment 000001 is missing"):
        start(path)


def test_an_index_saved_by_other_code_or_that_contradicts_itself_is_built_again_from_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    ran(path)
    monkeypatch.setattr(jit, "source_checksum", lambda: "another")
    used, resumed = start(path)
    assert used is not None
    assert "saved by other code; it is built again" in caplog.text
    assert_same(resumed, replayed(path), steps=0)
    monkeypatch.undo()
    save = RunState.save_index
    monkeypatch.setattr(RunState, "save_index", lambda run: save(run) | {"place": save(run)["place"][::-1].copy()})
    ran(tmp_path / "other")
    monkeypatch.undo()
    used, resumed = start(tmp_path / "other")
    assert used is not None
    assert "its index is not used (the pool's texts contradict each other); it is built again" in caplog.text
    assert_same(resumed, replayed(tmp_path / "other"))


def test_a_checkpoint_of_an_earlier_version_is_not_read_and_removed_when_one_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    ran(path)
    (path / "checkpoint.npz").unlink()
    (path / "snapshot.bin").write_bytes(b'{"crc":"00000000","format":1}\n')
    (path / ".snapshot.bin.tmp").write_bytes(b"half")
    used, resumed = start(path)
    assert used is None
    assert caplog.text == ""
    assert (path / "snapshot.bin").exists()
    resumed.save()
    resumed.store.close()
    assert not [p.name for p in path.iterdir() if "snapshot" in p.name]
    assert (path / "checkpoint.npz").exists()


def test_a_pool_grows_also_while_its_memory_is_held() -> None:
    for held in range(1, 16):  # any of the four columns
        pool = InstructionPool()
        pool.append("Name a river.")
        views = [column.data for at, column in enumerate(pool.columns()) if held & 1 << at]
        before = [bytes(view) for view in views]
        pool.append("Name a stone \ud800.")
        pool.append("Name a comet.")
        assert [bytes(view) for view in views] == before
        assert [pool.text(n) for n in range(len(pool))] == ["Name a river.", "Name a stone \ud800.", "Name a comet."]
        again = InstructionPool.from_columns(*(bytearray(column.data) for column in pool.columns()))
        assert [*again.unsettled()] == [(n, 0) for n in range(3)]
    with pytest.raises(ValueError, match="do not fit together"):
        InstructionPool.from_columns(bytearray(b"abc"), bytearray(8), bytearray(1), bytearray(1))


def test_a_copy_is_not_changed_by_what_the_run_does_next(tmp_path: Path) -> None:
    live = begin(tmp_path / "run", index="exact")
    for _ in range(10):
        live.step()
    seen = capture(live.plan.state, live.store)
    copied, content = seen.copy_into(make_copy_memory(seen.size)), [bytes(values) for values in seen.arrays.values()]
    assert copied is not None
    assert seen.copy_into(make_copy_memory(seen.size // 2)) is None
    position = live.store.position
    del seen
    for _ in range(10):
        live.step()
    assert [bytes(values) for values in copied.arrays.values()] == content
    write_checkpoint(live.store, copied, [])
    live.store.close()
    used, resumed = start(tmp_path / "run", "exact")
    assert used is not None
    assert used.position == position
    assert_same(resumed, replayed(tmp_path / "run", "exact"))


# -- when it is saved --------------------------------------------------------------------------------------------------


def drive(live: Live, main: Callable[[Checkpointer], Awaitable[None]], **options: Any) -> None:
    """``main`` with a checkpointer, in an event loop."""

    async def run() -> None:
        with ExitStack() as stack:
            judge = stack.enter_context(ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge"))
            checkpointer = Checkpointer(live.store, live.plan.state, judge, **options)
            await main(stack.enter_context(checkpointer))

    asyncio.run(run())


async def until_idle(checkpointer: Checkpointer) -> None:
    """What the checkpoint's own thread was given so far is done."""
    await asyncio.wrap_future(checkpointer._thread.submit(lambda: None))


def test_it_saves_whenever_the_pool_has_grown_by_its_share_and_at_the_end(tmp_path: Path) -> None:
    live = begin(tmp_path / "run")
    file = live.store.folder.checkpoint_path
    saved: list[tuple[int, int]] = []

    async def main(checkpointer: Checkpointer) -> None:
        for _ in range(120):
            live.step()
            before = file.stat().st_ino if file.exists() else 0
            await checkpointer()
            await until_idle(checkpointer)
            if file.exists() and file.stat().st_ino != before:
                saved.append((len(live.plan.state.pool), live.store.position.offset))
        await checkpointer.finish()

    drive(live, main, growth=0.5, least_growth=10)
    live.store.close()
    sizes = [size for size, _ in saved]
    assert 3 <= len(sizes) <= 10
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(sizes))
    used, resumed = start(tmp_path / "run")
    assert used == CheckpointEnd(live.store.position, len(live.plan.state.pool))
    assert_same(resumed, replayed(tmp_path / "run"))


def test_the_end_waits_for_a_copy_of_the_same_state_that_is_being_written(tmp_path: Path) -> None:
    live, release = begin(tmp_path / "run"), threading.Event()

    async def main(checkpointer: Checkpointer) -> None:
        while checkpointer._making is None:
            live.step()
            await checkpointer()
        await until_idle(checkpointer)
        checkpointer._thread.submit(release.wait)
        await checkpointer()
        finishing = asyncio.create_task(checkpointer.finish())
        await asyncio.sleep(0)
        assert not finishing.done()
        release.set()
        await finishing

    drive(live, main, growth=0.5, least_growth=10)
    live.store.close()
    used, _ = start(tmp_path / "run")
    assert used == CheckpointEnd(live.store.position, len(live.plan.state.pool))


def test_a_small_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    live = begin(tmp_path / "run")

    async def main(checkpointer: Checkpointer) -> None:
        for _ in range(5):
            live.step()
            await checkpointer()
        await checkpointer.finish()

    drive(live, main)
    live.store.close()
    assert not live.store.folder.checkpoint_path.exists()


def test_the_copy_is_made_by_the_thread_that_decides_and_the_file_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = begin(tmp_path / "run")
    threads: dict[str, str] = {}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            threads[name] = threading.current_thread().name
            return function(*given, **named)

        return noted

    monkeypatch.setattr(checkpoint, "capture", noting("copy", capture))
    monkeypatch.setattr(checkpoint, "write_checkpoint", noting("write", write_checkpoint))

    async def main(checkpointer: Checkpointer) -> None:
        for _ in range(30):
            live.step()
            await checkpointer()
            await until_idle(checkpointer)

    drive(live, main, growth=0.5, least_growth=10)
    live.store.close()
    assert threads["copy"].startswith("judge")
    assert threads["write"].startswith("checkpoint")


def test_an_index_too_large_to_copy_is_left_out_during_the_run_and_saved_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = begin(tmp_path / "run", index="lsh")
    indexes: list[bool] = []

    def write(store: Store, captured: Checkpoint, *given: Any, **named: Any) -> int:
        indexes.append(captured.facts["index"] is not None)
        return write_checkpoint(store, captured, *given, **named)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write)

    async def main(checkpointer: Checkpointer) -> None:
        for _ in range(60):
            live.step()
            await checkpointer()
            await until_idle(checkpointer)
        await checkpointer.finish()

    drive(live, main, growth=0.5, least_growth=10, most_copied_bytes=20_000)
    live.store.close()
    assert len(indexes) > 2
    assert indexes == [False] * (len(indexes) - 1) + [True]
    assert_same(start(tmp_path / "run", "lsh")[1], replayed(tmp_path / "run", "lsh"))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), DiskError("x: cannot be written"), MemoryError()]
)
def test_too_little_disk_or_memory_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    live = begin(tmp_path / "run")

    def refuse(*_: object, **__: object) -> int:
        raise error

    if isinstance(error, MemoryError):
        monkeypatch.setattr(checkpoint, "make_copy_memory", refuse)
    else:
        monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)

    async def main(checkpointer: Checkpointer) -> None:
        for _ in range(40):
            live.step()
            await checkpointer()
            await until_idle(checkpointer)

    with caplog.at_level(logging.WARNING):
        drive(live, main, growth=0.2, least_growth=5)
    live.store.close()
    assert [record.message.count("the run continues") for record in caplog.records] == [1]
    assert not live.store.folder.checkpoint_path.exists()


def test_ending_at_once_gives_up_the_file_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = begin(tmp_path / "run")
    for _ in range(20):
        live.step()
    begun, resumed = threading.Event(), threading.Event()

    def sync() -> None:
        begun.set()
        assert resumed.wait(20)

    monkeypatch.setattr(live.store, "sync", sync)

    async def main(checkpointer: Checkpointer) -> None:
        finishing = asyncio.create_task(checkpointer.finish())
        await asyncio.to_thread(begun.wait, 20)
        finishing.cancel()
        await asyncio.gather(finishing, return_exceptions=True)
        checkpointer._abandoned.set()
        resumed.set()

    drive(live, main, least_growth=1)
    monkeypatch.undo()
    live.store.close()
    assert [p.name for p in live.store.folder.path.iterdir() if "checkpoint" in p.name] == []
