"""Making the plan while the servers start: its first error ends the wait, and nothing outlives the block."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from fastgen.errors import InputError
from fastgen.generate.inputs import Inputs, load_inputs, planned
from fastgen.generate.options import Options
from fastgen.similarity.novelty import NoveltyFilter
from fastgen.similarity.options import SimilarityOptions
from fastgen.store.run_folder import RunFolder


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return load_inputs(RunFolder(tmp_path / "run"), Options())


def known(options: Options, inputs: Inputs) -> asyncio.Future[tuple[Options, Inputs]]:
    future: asyncio.Future[tuple[Options, Inputs]] = asyncio.get_running_loop().create_future()
    future.set_result((options, inputs))
    return future


def wait_for_servers(options: Options, inputs: Inputs) -> None:
    async def main() -> None:
        async with planned(known(options, inputs), options, print):
            await asyncio.Event().wait()  # servers that do not answer

    asyncio.run(main())


def test_an_error_of_the_plan_ends_the_wait_for_servers(inputs: Inputs) -> None:
    similarity = SimilarityOptions()
    object.__setattr__(similarity, "lsh_recall", 2.0)  # past the check of the options
    with pytest.raises(InputError, match=r"LSH recall 2\.0"):
        wait_for_servers(Options(similarity=similarity), inputs)


def test_an_error_of_the_kernels_ends_the_wait_for_servers(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: NoveltyFilter) -> None:
        raise InputError("no kernels here")

    monkeypatch.setattr(NoveltyFilter, "prepare", fail)
    with pytest.raises(InputError, match="no kernels here"):
        wait_for_servers(Options(), inputs)


def test_a_block_that_ends_waits_for_no_compiler(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = threading.Event()
    monkeypatch.setattr(NoveltyFilter, "prepare", lambda _: compiled.wait())

    async def main() -> int:
        async with planned(known(Options(), inputs), Options(), print) as made:
            return (await made).state.target

    assert asyncio.run(main()) == 100
    compiled.set()
