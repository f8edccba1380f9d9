"""Servers started for real: small programs that behave well, die, hang, or refuse to go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.errors import DiskError, InputError, ServerError, how_to_install
from fastgen.servers.choose import (
    DEFAULT_GPU_MODEL,
    Gpu,
    choose_servers,
    embedded_server_specs,
    gpu_server_specs,
    group_gpus,
    visible_gpus,
)
from fastgen.servers.embedded import EmbeddedServerSpec
from fastgen.servers.fleet import GRACE_S, ManagedServer, start_server
from fastgen.servers.process import error_line, free_port, free_ports
from fastgen.servers.spec import Layout, ServerSpec, flag_value, merge_flags, parse_server_args, redact

GONE_WITHIN_S = 30.0

SERVER = textwrap.dedent(
    """
    import http.server, json, os, signal, subprocess, sys

    port, modes = int(sys.argv[sys.argv.index("--port") + 1]), sys.argv[1].split(",")
    if "die" in modes:
        print("(EngineCore pid=7) ERROR 11-21 04:17:24 [core.py:12] ValueError: the model is made of cheese")
        print("RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}")
        sys.exit(3)
    if "once" in modes:
        if os.path.exists(sys.argv[0] + ".started"):
            sys.exit("RuntimeError: not again")
        open(sys.argv[0] + ".started", "w").close()
    if "stubborn" in modes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tree = []
    if "tree" in modes:
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
        for own_session in (False, True):
            child = subprocess.Popen(
                [sys.executable, "-c", deaf], start_new_session=own_session, stdout=subprocess.PIPE
            )
            child.stdout.readline()
            tree.append(child.pid)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/die":
                print("MemoryError: out of cheese", flush=True)
                os._exit(9)
            if self.path == "/health":
                self.answer(503 if "never" in modes else 200, {})
            elif self.path == "/v1/models":
                self.answer(200, {"data": [{"id": "cheese"}]})
            elif self.path == "/about":
                self.answer(200, {"tree": [os.getpid(), *tree], "env": os.environ.get("FLAVOUR")})

        def answer(self, status, body):
            body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    print("booting", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
    """
)


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., ServerSpec]:
    """A server program in a mode, as something to start."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    def make(mode: str = "fine", **more: Any) -> ServerSpec:
        command = (sys.executable, "-I", "-S", str(script), mode)
        return ServerSpec(command, "cheese", "the cheese server", concurrency=4, **more)

    return make


def get(base_url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + path, timeout=10) as answer:  # noqa: S310 - loopback
        body: dict[str, Any] = json.loads(answer.read())
        return body


def assert_gone(pids: list[int]) -> None:
    """Every process ends (or has ended) within the limit; waits on the kernel's word, not on a clock."""
    for pid in pids:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                assert select.select([handle], [], [], GONE_WITHIN_S)[0], f"process {pid} is still there"
            finally:
                os.close(handle)


def run_server(
    spec: ServerSpec,
    log_path: Path,
    use: Callable[[ManagedServer], Any] = lambda _: None,
    timeout_s: float = 60.0,
    grace_s: float = GRACE_S,
) -> tuple[Any, list[str]]:
    """What ``use`` made of the running server, and what was reported."""
    said: list[str] = []

    async def main() -> Any:
        running = start_server(spec, log_path, timeout_s=timeout_s, report=said.append, grace_s=grace_s)
        async with running as server:
            return await asyncio.to_thread(use, server)

    return asyncio.run(main()), said


def test_a_started_server_answers_under_its_base_url_and_model(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    def use(server: ManagedServer) -> tuple[str, str, int | None]:
        return get(server.base_url, "/v1/models")["data"][0]["id"], server.model, server.returncode

    used, said = run_server(spec(), tmp_path / "server.log", use)
    assert used == ("cheese", "cheese", None)
    assert said[-1].startswith("the cheese server serves cheese after ")


def test_the_environment_of_a_spec_reaches_the_server(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    env = {"FLAVOUR": "brie = soft"}
    used, _ = run_server(spec(env=env), tmp_path / "server.log", lambda server: get(server.base_url, "/about")["env"])
    assert used == "brie = soft"


def test_a_port_that_the_user_insists_on_is_used(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    port = free_port()
    used, _ = run_server(spec(port=port), tmp_path / "server.log", lambda server: server.base_url)
    assert used == f"http://127.0.0.1:{port}/v1"


def test_the_log_keeps_every_start_with_secrets_removed(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    log_path = tmp_path / "deep" / "server.log"
    for _ in range(2):
        server = spec()
        run_server(ServerSpec((*server.command, "--hf-token", "hunter2"), "cheese", "it", concurrency=1), log_path)
    text = log_path.read_text()
    assert text.count("booting") == text.count("--hf-token ***") == 2
    assert "hunter2" not in text


def test_a_server_that_dies_at_the_start_is_named_with_its_root_cause(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    with pytest.raises(ServerError) as caught:
        run_server(spec("die"), tmp_path / "server.log")
    assert str(caught.value) == (
        "the cheese server did not start (exit code 3): ValueError: the model is made of cheese "
        f"(log: {tmp_path / 'server.log'})"
    )


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    spec = ServerSpec((str(tmp_path / "nothing"),), "m", "the server", concurrency=1)
    with pytest.raises(ServerError, match=r"exit code 127\): cannot start .*nothing: No such file or directory"):
        run_server(spec, tmp_path / "server.log")


def test_a_server_that_never_serves_is_given_up_and_gone(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"did not serve within 1.5 s \(--server-timeout\); its last line: "):
        run_server(spec("never"), tmp_path / "server.log", timeout_s=1.5)


def test_a_server_that_stops_answering_is_noticed(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def main() -> None:
        running = start_server(spec(), tmp_path / "server.log", timeout_s=60, report=lambda _: None, grace_s=0.1)
        async with running as server:
            (pid,) = (await asyncio.to_thread(get, server.base_url, "/about"))["tree"]
            os.kill(pid, signal.SIGSTOP)
            await server.watch(silent_s=0.1, check_every_s=0.05)

    with pytest.raises(ServerError, match=r"the cheese server has not answered for 0.1 s; its last line: booting"):
        asyncio.run(main())


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_the_death_of_a_running_server_is_noticed_with_its_last_output(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    async def main() -> None:
        async with start_server(spec(), tmp_path / "server.log", timeout_s=60, report=lambda _: None) as server:
            watching = asyncio.create_task(server.watch())
            with suppress(OSError):
                await asyncio.to_thread(get, server.base_url, "/die")
            await watching

    with pytest.raises(
        ServerError, match=r"the cheese server died \(exit code 9\): MemoryError: out of cheese \(log: "
    ):
        asyncio.run(main())


def test_a_log_that_cannot_be_written_is_a_disk_error(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="the server's log cannot be written"):
        run_server(spec(), tmp_path / "file" / "server.log")


def test_stopping_takes_the_whole_tree_along_even_what_left_its_group(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    pids, _ = run_server(spec("tree"), tmp_path / "server.log", lambda server: get(server.base_url, "/about")["tree"])
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    use = lambda server: get(server.base_url, "/about")["tree"]  # noqa: E731 - one expression
    pids, _ = run_server(spec("stubborn,tree"), tmp_path / "server.log", use, grace_s=0.2)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_cancelled_start_leaves_no_server(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def start() -> None:
            async with start_server(
                spec("never"), tmp_path / "server.log", timeout_s=60, report=lambda _: started.set()
            ):
                pytest.fail("it never serves")

        task = asyncio.create_task(start())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    script = str(tmp_path / "server.py")
    assert [p for p in Path("/proc").glob("[0-9]*/cmdline") if script.encode() in read(p)] == []


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


PARENT = textwrap.dedent(
    """
    import asyncio, json, sys, urllib.request
    from pathlib import Path
    from fastgen.servers.fleet import start_server
    from fastgen.servers.spec import ServerSpec

    async def main():
        spec = ServerSpec(tuple(sys.argv[2:]), "cheese", "the cheese server", concurrency=1)
        async with start_server(spec, Path(sys.argv[1]), timeout_s=60, report=lambda _: None) as server:
            about = urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/about").read()
            print(json.dumps(json.loads(about)["tree"] + [server.pid]), flush=True)
            await server.watch()

    asyncio.run(main())
    """
)


def parent(spec: ServerSpec, log_path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that holds a server, and the process ids of the server's tree with the launcher's last."""
    command = [sys.executable, "-c", PARENT, str(log_path), *spec.command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def test_a_server_does_not_outlive_a_parent_that_is_killed(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    process, pids = parent(spec("tree"), tmp_path / "server.log")
    with process:
        process.send_signal(signal.SIGKILL)
    assert_gone(pids)


def test_a_server_does_not_outlive_its_launcher_and_its_parent_killed_together(
    spec: Callable[..., ServerSpec], tmp_path: Path
) -> None:
    process, pids = parent(spec(), tmp_path / "server.log")
    with process:
        process.send_signal(signal.SIGSTOP)
        os.kill(pids[-1], signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
    assert_gone(pids)


FLAGS = [("--max-num-seqs", "32"), ("--enable-prefix-caching", None), ("--block-size", "32")]


def test_a_log_that_is_a_link_is_not_written_through(spec: Callable[..., ServerSpec], tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "server.log").symlink_to(tmp_path / "victim")
    with pytest.raises(DiskError, match="it is a symbolic link, remove it"):
        run_server(spec(), tmp_path / "server.log", lambda server: server)
    assert (tmp_path / "victim").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("theirs", "merged"),
    [
        ("", "--max-num-seqs 32 --enable-prefix-caching --block-size 32"),
        ("--max-num-seqs 8", "--enable-prefix-caching --block-size 32 --max-num-seqs 8"),
        ("--max_num_seqs=8", "--enable-prefix-caching --block-size 32 --max_num_seqs=8"),
        ("--no-enable-prefix-caching", "--max-num-seqs 32 --block-size 32 --no-enable-prefix-caching"),
        ("-tp 2", "--max-num-seqs 32 --enable-prefix-caching --block-size 32 -tp 2"),
    ],
)
def test_a_flag_of_the_user_replaces_ours(theirs: str, merged: str) -> None:
    assert " ".join(merge_flags(FLAGS, theirs.split())) == merged


@given(st.lists(st.sampled_from(["--max-num-seqs=7", "--block_size", "9", "--seed", "-tp", "--dtype=half"])))
def test_merging_keeps_the_users_arguments_whole_and_repeats_no_flag_of_ours(theirs: list[str]) -> None:
    merged = merge_flags(FLAGS, theirs)
    ours = merged[: len(merged) - len(theirs)]
    assert merged[len(ours) :] == theirs
    named = {argument.partition("=")[0].replace("_", "-") for argument in theirs}
    assert named.isdisjoint(ours)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("--chat-template 'x", "cannot be split into arguments"),
        ("--api-key secret", "would lock fastgen out"),
        ("--host 0.0.0.0", "always 127.0.0.1"),
    ],
)
def test_server_args_that_cannot_work_are_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        parse_server_args(text)
    assert str(caught.value).startswith("--server-args: ")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_last_value_of_a_flag_counts_and_must_be_a_number() -> None:
    assert flag_value(["--max-num-seqs", "8", "--max_num_seqs=16"], "--max-num-seqs") == 16
    assert flag_value(["--block-size", "8"], "--max-num-seqs") is None
    assert flag_value(["--tensor-parallel-size", "2", "-tp", "4"], "--tensor-parallel-size", "-tp") == 4
    with pytest.raises(InputError, match="--max-num-seqs needs a whole number above 0, not 'many'"):
        flag_value(["--max-num-seqs", "many"], "--max-num-seqs")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("--hf-token s3 --seed 1", "--hf-token *** --seed 1"),
        ("--api-key s3 s4 --seed 1", "--api-key *** *** --seed 1"),
        ("--ssl-keyfile-password=s3", "--ssl-keyfile-password=***"),
        ("--hf_token=s3", "--hf_token=***"),
        ("--openai-api-key s3 --s3-secret s4", "--openai-api-key *** --s3-secret ***"),
        ("--long-prefill-token-threshold 2048", "--long-prefill-token-threshold 2048"),
        ("--dbo-decode-token-threshold=8 --ssl-keyfile k.pem", "--dbo-decode-token-threshold=8 --ssl-keyfile k.pem"),
        (
            '--kv.extra.secret_key s3 --model-loader-extra-config={"api_key":1}',
            "--kv.extra.secret_key *** --model-loader-extra-config=***",
        ),
        ("--tokenizer some/where --max-num-batched-tokens 5", "--tokenizer some/where --max-num-batched-tokens 5"),
    ],
)
def test_secrets_are_removed_and_nothing_else_is(command: str, shown: str) -> None:
    assert redact(command.split()) == shown


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it wrote nothing"),
        ("one\n\ntwo  words\n\n", "two words"),
        (
            "api_server.py: error: unrecognized arguments: --foo\n",
            "api_server.py: error: unrecognized arguments: --foo",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, no\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, no",
        ),
        (
            (
                "(Worker pid=5) ERROR 11-21 04:17:24 [w.py:1] torch.OutOfMemoryError: CUDA out of memory.\n"
                "(EngineCore pid=5) ERROR 11-21 04:17:24 [w.py:1] Exception: Worker failed. See stack trace.\n"
                "(APIServer pid=4) INFO 11-21 04:17:25 [a.py:1] shutting down\n"
            ),
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
    ],
)
def test_the_last_output_shown_is_the_line_that_says_why(log: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("ValueError: of an earlier start\n" + log)
    assert error_line(path, len("ValueError: of an earlier start\n")) == words


SMALL = tuple(Gpu(str(index), 24 << 30) for index in range(8))
LARGE = tuple(Gpu(str(index), 80 << 30) for index in range(8))
ONE = Layout()


def choose(
    model: str | None = None,
    server_args: str = "",
    layout: Layout = ONE,
    *,
    gpus: tuple[Gpu, ...] = (),
    vllm: bool = True,
    said: Callable[[str], None] = lambda _: None,
) -> tuple[ServerSpec, ...]:
    return asyncio.run(
        choose_servers(
            *(model, server_args, layout),
            cache_dir=Path("/nonexistent"),
            report=said,
            gpus=lambda: gpus,
            has_vllm=lambda: vllm,
        )
    )


def value_of(spec: ServerSpec, flag: str) -> str | None:
    """The value of a flag in a command, if it is there once."""
    places = [i for i, part in enumerate(spec.command) if part == flag]
    assert len(places) <= 1
    return spec.command[places[0] + 1] if places else None


def test_a_gpu_with_vllm_serves_the_default_model_with_throughput_flags() -> None:
    (spec,) = choose(gpus=SMALL[:1])
    assert (spec.model, spec.concurrency) == (DEFAULT_GPU_MODEL, 512)
    assert spec.command[:5] == (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", DEFAULT_GPU_MODEL)
    assert "--max-model-len" in spec.command
    assert "CUDA_VISIBLE_DEVICES" not in spec.env, "vLLM itself takes the first"


def test_large_gpus_get_larger_batches_unless_a_small_one_is_among_them() -> None:
    assert choose(gpus=LARGE[:1])[0].concurrency == 1024
    assert choose(gpus=(LARGE[0], SMALL[1]))[0].concurrency == 512
    assert choose(gpus=(Gpu("0"),))[0].concurrency == 512


def test_a_gpu_serves_the_users_model_with_the_users_flags() -> None:
    (spec,) = choose("org/other", "--max-num-seqs 64 --port 9123 --tensor-parallel-size 2", gpus=SMALL)
    assert (spec.model, spec.concurrency, spec.port) == ("org/other", 64, 9123)
    assert "--max-model-len" not in spec.command
    assert spec.command[-6:] == ("--max-num-seqs", "64", "--port", "9123", "--tensor-parallel-size", "2")


def test_several_servers_get_separate_groups_of_gpus_and_ports() -> None:
    layout = Layout(num_servers=2, tensor_parallel_size=2)
    first, second = choose("org/m", "--port 9000", layout, gpus=SMALL)
    assert [spec.env["CUDA_VISIBLE_DEVICES"] for spec in (first, second)] == ["0,1", "2,3"]
    assert (first.port, second.port) == (9000, 9001)
    assert value_of(first, "--tensor-parallel-size") == "2"
    assert first.description == "server 1 of 2 (vLLM with org/m on GPU 0,1)"


def test_vllms_own_ways_to_be_large_are_flags_that_a_user_can_replace() -> None:
    layout = Layout(tensor_parallel_size=2, data_parallel_size=4, api_server_count=3)
    (spec,) = choose("org/m", "", layout, gpus=SMALL)
    sizes = [value_of(spec, f"--{name}") for name in ("tensor-parallel-size", "data-parallel-size", "api-server-count")]
    assert sizes == ["2", "4", "3"]
    assert spec.concurrency == 4 * 512
    (spec,) = choose("org/m", "--data-parallel-size 2", layout, gpus=SMALL)
    assert (value_of(spec, "--data-parallel-size"), spec.concurrency) == ("2", 1024)


@pytest.mark.parametrize(
    ("layout", "server_args", "complaint"),
    [
        (Layout(num_servers=9), "", "--num-servers 9: needs 9 GPUs, but 8 can be used here (0, 1, 2, 3, 4, 5, 6, 7)"),
        (Layout(num_servers=3, tensor_parallel_size=4), "", "--num-servers 3: needs 12 GPUs (4 a server: "),
        (Layout(num_servers=3), "-tp 2 -pp 2", "--num-servers 3: needs 12 GPUs (4 a server: "),
        (Layout(data_parallel_size=16), "", "one server: needs 16 GPUs (16 a server: "),
    ],
)
def test_too_few_gpus_are_one_line(layout: Layout, server_args: str, complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        choose("org/m", server_args, layout, gpus=SMALL)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_idle_gpus_are_reported_with_the_flag_that_uses_them() -> None:
    said: list[str] = []
    choose("org/m", "", Layout(tensor_parallel_size=2), gpus=SMALL, said=said.append)
    assert said == ["6 of 8 GPUs stay idle; --num-servers 4 uses them"]


def test_a_gpu_without_vllm_gets_one_line_that_names_the_extra() -> None:
    with pytest.raises(InputError, match=re.escape(how_to_install("vllm")) + ".*--base-url"):
        choose(gpus=SMALL, vllm=False)


def test_a_model_of_the_users_needs_a_gpu_or_a_base_url() -> None:
    with pytest.raises(InputError, match=r"--model org/other: .*only smollm2-135m-instruct.*--base-url"):
        choose("org/other")


def test_bad_server_args_are_refused_before_anything_is_set_up() -> None:
    with pytest.raises(InputError, match="--server-args"):
        choose(None, "'")


@pytest.mark.parametrize("layout", [Layout(tensor_parallel_size=2), Layout(api_server_count=2)])
def test_what_only_gpus_can_do_is_refused_without_one(layout: Layout) -> None:
    with pytest.raises(InputError, match="--api-server-count: need NVIDIA GPUs"):
        choose(None, "", layout)


def test_more_cpu_servers_than_memory_holds_are_refused() -> None:
    with pytest.raises(InputError, match=r"--num-servers 9999: each embedded CPU server takes 4.5 GB of memory, and "):
        choose(None, "", Layout(num_servers=9999))


EMBEDDED = EmbeddedServerSpec(Path("/cache/venv/bin/python"), Path("/cache/model"))


def test_the_embedded_server_runs_offline_from_its_own_python() -> None:
    (spec,) = embedded_server_specs(EMBEDDED, "--max-model-len 2048", max_num_seqs=8)
    assert spec.command[0] == "/cache/venv/bin/python"
    assert spec.env["HF_HUB_OFFLINE"] == "1"
    assert spec.concurrency == 8
    assert value_of(spec, "--max-model-len") == "2048"
    assert processors(spec) <= os.sched_getaffinity(0)


def processors(spec: ServerSpec) -> set[int]:
    return {int(number) for number in spec.env["VLLM_CPU_OMP_THREADS_BIND"].split(",")}


def test_several_embedded_servers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7, 8})
    assert [processors(spec) for spec in embedded_server_specs(EMBEDDED, num_servers=2)] == [{4, 5}, {6, 7}]
    assert [processors(spec) for spec in embedded_server_specs(EMBEDDED, num_servers=6)][5] == {4}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert [len(processors(spec)) for spec in embedded_server_specs(EMBEDDED, num_servers=3)] == [8, 8, 8]


LISTING = "0, GPU-aaaa-1, 81559\n1, GPU-bbbb-2, 81559\n2, GPU-bbcc-3, [N/A]\n"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [Gpu("0", 81559 * MIB), Gpu("1", 81559 * MIB), Gpu("2", None)]),
        ("", []),
        ("-1", []),
        ("1,0", [Gpu("1", 81559 * MIB), Gpu("0", 81559 * MIB)]),
        ("0, 7, 1", [Gpu("0", 81559 * MIB)]),
        ("0,-1,1", [Gpu("0", 81559 * MIB)]),
        ("GPU-bbbb,GPU-aaaa-1", [Gpu("GPU-bbbb", 81559 * MIB), Gpu("GPU-aaaa-1", 81559 * MIB)]),
        ("MIG-ab12/1/0,MIG-cd34", [Gpu("MIG-ab12/1/0"), Gpu("MIG-cd34")]),
        ("0,0", [Gpu("0", 81559 * MIB)]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    visible: str | None, seen: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing = program(tmp_path / "seeing", f"printf '{LISTING}'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert list(visible_gpus(visible, nvidia_smi=seeing)) == seen
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert list(visible_gpus(nvidia_smi=seeing)) == seen


def test_without_nvidia_smi_the_drivers_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nowhere, folder = tmp_path / "nowhere", tmp_path / "gpus"
    for bus in ("0000:41:00.0", "0000:01:00.0"):
        (folder / bus).mkdir(parents=True)
    blind = program(tmp_path / "blind", 'echo "No devices were found"; exit 6')
    assert visible_gpus(driver_folder=folder, nvidia_smi=None) == (Gpu("0"), Gpu("1"))
    assert visible_gpus("GPU-1,1", driver_folder=folder, nvidia_smi=None) == (Gpu("GPU-1"), Gpu("1"))
    assert visible_gpus(driver_folder=nowhere, nvidia_smi=blind) == ()
    assert visible_gpus(driver_folder=nowhere, nvidia_smi=str(nowhere)) == ()


def test_groups_are_made_of_the_names_that_the_outer_variable_uses() -> None:
    gpus = [Gpu("GPU-b"), Gpu("MIG-c"), Gpu("5"), Gpu("2")]
    assert group_gpus(gpus, 2, 2) == ("GPU-b,MIG-c", "5,2")


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_gpu_and_cpu_specs_refuse_the_same_server_args() -> None:
    with pytest.raises(InputError, match="--host"):
        gpu_server_specs("m", SMALL, "--host ::")
    with pytest.raises(InputError, match="--host"):
        embedded_server_specs(EMBEDDED, "--host ::")


def test_another_program_on_the_port_is_not_taken_for_the_server(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text(SERVER)
    port = free_port()
    with subprocess.Popen([sys.executable, "-u", script, "fine", "--port", str(port)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            silent = (sys.executable, "-c", "import signal; signal.pause()")
            spec = ServerSpec(silent, "cheese", "the cheese server", concurrency=4, port=port)
            with pytest.raises(ServerError, match=f"another program listens on port {port} too"):
                run_server(spec, tmp_path / "log")
        finally:
            other.kill()
