"""Which server fits this machine: vLLM on an NVIDIA GPU, else the embedded one on the CPU; and the flags for each.

All flags are here, each with its reason, and each gives way to the same flag in ``--server-args``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import InputError
from fastgen.server.spec import Flag, ServerSpec, flag_value, merge_flags, parse_server_args

if TYPE_CHECKING:
    from fastgen.embedded import EmbeddedServerSpec

DEFAULT_GPU_MODEL = "Qwen/Qwen3-4B-Base"
"""Apache-2.0, no licence gate, a base model (the method's own way), about 8 GB of weights."""
_DEFAULT_MODEL_CONTEXT: Flag = ("--max-model-len", "8192")  # its 32,768 would ask a small GPU for 4.8 GB of cache

_GPU_FLAGS: tuple[Flag, ...] = (
    ("--max-num-seqs", "512"),  # the default of 256 leaves a large GPU idle on prompts that share their prefix
    ("--max-num-batched-tokens", "8192"),  # long few-shot prompts prefill in one step; more costs memory on small GPUs
    ("--enable-prefix-caching", None),  # every prompt of a stage begins with the same few-shot text
    ("--disable-uvicorn-access-log", None),  # else one log line a request: gigabytes in a long run
)
_CPU_FLAGS: tuple[Flag, ...] = (
    ("--max-model-len", "4096"),  # the longest few-shot prompt and its answer, without paying for the model's 8,192
    ("--dtype", "bfloat16"),
    ("--max-num-seqs", "32"),  # 64 gave 7 % more on 2 cores, and twice as much in flight when the target is reached
    ("--block-size", "32"),  # prefix caching works in whole blocks: the default of 128 would leave up to 127 tokens
    ("--enable-prefix-caching", None),
    ("--enforce-eager", None),  # torch.compile: same speed here, 45 s longer to start, and it needs a C++ compiler
    ("--disable-uvicorn-access-log", None),
)
_QUIET_ENV = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_CPU_ENV = {
    **_QUIET_ENV,
    "HF_HUB_OFFLINE": "1",  # the model is a local folder: nothing may be fetched behind the user's back
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB: 93,000 tokens, so 32 sequences of any length that fits need no preemption
    "GOMP_SPINCOUNT": "0",  # threads that spin for each other stall for seconds when other work wants the cores
    "TORCHDYNAMO_DISABLE": "1",  # the first request with logprobs would compile for 17 s, with a C++ compiler
}
_MOST_CPU_THREADS = 8  # a model of 135M parameters gains nothing from more


async def choose_server(
    model: str | None,
    server_args: str,
    *,
    cache_dir: Path,
    report: Callable[[str], None],
    has_gpu: Callable[[], bool] | None = None,
    has_vllm: Callable[[], bool] | None = None,
) -> ServerSpec:
    """The server to start on this machine; sets the embedded one up if it is the one and is not there yet.

    Cancelling this stops a set-up that is under way and leaves nothing half-built behind.

    :raises InputError: nothing here can serve, or not this model; the message says what to do.
    :raises ServerError: the set-up failed.
    """
    from fastgen.embedded import EMBEDDED_MODEL, ensure_embedded

    parse_server_args(server_args)
    if (has_gpu or has_nvidia_gpu)():
        if not (has_vllm or _vllm_is_installed)():
            raise InputError(
                "this machine has an NVIDIA GPU but no vLLM: run pip install 'fastgen[vllm]', or name a server with "
                "--base-url"
            )
        return gpu_server_spec(model or DEFAULT_GPU_MODEL, server_args)
    if model not in (None, EMBEDDED_MODEL):
        raise InputError(
            f"--model {model}: without an NVIDIA GPU fastgen itself serves only {EMBEDDED_MODEL}; leave --model out, "
            "or name a server that has it with --base-url"
        )
    return embedded_server_spec(await ensure_embedded(cache_dir, report=report), server_args)


def gpu_server_spec(model: str, server_args: str = "") -> ServerSpec:
    """``vllm serve MODEL`` from the environment that fastgen runs in.

    :raises InputError: ``server_args`` cannot be used.
    """
    ours = (*_GPU_FLAGS, _DEFAULT_MODEL_CONTEXT) if model == DEFAULT_GPU_MODEL else _GPU_FLAGS
    command = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model)
    return _spec(command, ours, server_args, model, f"vLLM with {model}", _QUIET_ENV)


def embedded_server_spec(embedded: EmbeddedServerSpec, server_args: str = "", *, max_num_seqs: int = 32) -> ServerSpec:
    """The embedded CPU server, on at most 8 of the processors that this process may use.

    :raises InputError: ``server_args`` cannot be used.
    """
    ours = tuple((name, str(max_num_seqs)) if name == "--max-num-seqs" else (name, value) for name, value in _CPU_FLAGS)
    python = str(embedded.python)
    # vllm serve looks for a distribution called vllm, which the build for CPUs is not
    command = (python, "-I", "-m", "vllm.entrypoints.openai.api_server")
    what = ("--model", str(embedded.model_dir), "--served-model-name", embedded.model)
    processors = sorted(os.sched_getaffinity(0))[:_MOST_CPU_THREADS]
    env = _CPU_ENV | {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors))}
    return _spec((*command, *what), ours, server_args, embedded.model, "the embedded CPU server", env)


def has_nvidia_gpu(
    driver_folder: Path = Path("/proc/driver/nvidia/gpus"), nvidia_smi: str | None = "nvidia-smi"
) -> bool:
    """Whether the NVIDIA driver sees a GPU (its folder; under WSL only ``nvidia-smi -L`` tells)."""
    if driver_folder.is_dir() and any(driver_folder.iterdir()):
        return True
    program = shutil.which(nvidia_smi) if nvidia_smi else None
    if program is None:
        return False
    try:
        listing = subprocess.run(  # noqa: S603  # found on the user's own path
            [program, "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU 0:" in listing.stdout


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _spec(
    command: tuple[str, ...],
    ours: tuple[Flag, ...],
    server_args: str,
    model: str,
    description: str,
    env: dict[str, str],
) -> ServerSpec:
    arguments = merge_flags(ours, parse_server_args(server_args))
    port = flag_value(arguments, "--port")
    concurrency = flag_value(arguments, "--max-num-seqs")
    assert concurrency is not None, "every set of flags has it"  # noqa: S101  # an invariant of this file
    return ServerSpec((*command, *arguments), model, description, concurrency, env, port)
