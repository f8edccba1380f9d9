"""The servers that fit this machine: vLLM on NVIDIA GPUs, else the embedded one on the CPU, and the flags for each.

All flags are here, each with its reason, and the same flag in ``--server-args`` replaces it. They are meant for
throughput: the latency of a single answer does not matter.

GPUs are counted as CUDA does it. An outer ``CUDA_VISIBLE_DEVICES`` is obeyed, whether it has indexes, UUIDs or MIG
names: groups of GPUs are made of its names, and an empty one means no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import InputError, how_to_install
from fastgen.servers.spec import Flag, Layout, ServerSpec, flag_value, merge_flags, parse_server_args

if TYPE_CHECKING:
    from fastgen.servers.embedded import EmbeddedServerSpec


DEFAULT_GPU_MODEL = "Qwen/Qwen3-4B-Base"
"""Apache-2.0, no licence gate, a base model (the method's own way), about 8 GB of weights."""
_DEFAULT_MODEL_CONTEXT: Flag = ("--max-model-len", "8192")  # its 32,768 would ask a small GPU for 4.8 GB of cache

_GPU_FLAGS: tuple[Flag, ...] = (
    # Long few-shot prompts prefill in one step (vLLM's server default is 2,048 below 70 GiB). Not more: with the prefix
    # cached a step seldom fills it, A100s lose throughput at 16,384 (vLLM's pull request 17885), and small GPUs memory.
    ("--max-num-batched-tokens", "8192"),
    ("--enable-prefix-caching", None),  # every prompt of a stage begins with the same few-shot text
    ("--disable-uvicorn-access-log", None),  # else one log line a request: gigabytes in a long run
)
"""On every GPU. Requests themselves are not logged since vLLM 0.10 unless asked for (``--enable-log-requests``)."""
_LARGE_GPU_BYTES = 70 << 30  # as vLLM draws the line
_MAX_NUM_SEQS = "512"  # vLLM's 256 leaves a GPU idle on prompts that share their prefix; the rest waits inside
_MAX_NUM_SEQS_LARGE = "1024"  # vLLM's own default on H100 and above: below it decoding is bound by weights, not by work
_CPU_CONTEXT = 4096  # the longest few-shot prompt and its answer, without paying for the embedded model's 8,192
_CPU_FLAGS: tuple[Flag, ...] = (
    ("--max-model-len", str(_CPU_CONTEXT)),  # or the model's own, where that is shorter
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
_CPU_SERVER_BYTES = 4_500_000_000  # of memory: 3.5 GB at the start and a filled cache
_ONE_SERVER = Layout()
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device by its name for ``CUDA_VISIBLE_DEVICES``. ``memory_bytes`` is ``None`` where it is not known."""

    device: str
    memory_bytes: int | None = None


def visible_gpus(
    visible: str | None = None, *, driver_folder: Path = DRIVER_FOLDER, nvidia_smi: str | None = "nvidia-smi"
) -> tuple[Gpu, ...]:
    """The GPUs that a server started here would see, in CUDA's order. None where there is no NVIDIA driver.

    ``visible`` is the value of ``CUDA_VISIBLE_DEVICES`` (default: the environment's).
    """
    physical = _ask_nvidia_smi(nvidia_smi) or _list_driver_folder(driver_folder)
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(Gpu(index, memory_bytes) for index, _, memory_bytes in physical)
    found: dict[str, Gpu] = {}
    for part in visible.split(",") if physical else ():  # CUDA stops at the first name that it does not know
        name = part.strip()
        gpu = _find(name, physical)
        if gpu is None or name in found:
            break
        found[name] = gpu
    return tuple(found.values())


_Physical = tuple[str, str, int | None]
"""Index, UUID (empty where it is not known) and bytes of memory."""


def _find(name: str, physical: Sequence[_Physical]) -> Gpu | None:
    """The device of an index, of a UUID or the beginning of one, or of a MIG name."""
    if name.startswith("MIG-"):
        return Gpu(name)
    is_index, is_uuid = name.isascii() and name.isdigit(), name.startswith("GPU-")
    for index, uuid, memory_bytes in physical:
        if (is_index and index == name) or (is_uuid and (uuid.startswith(name) or not uuid)):
            return Gpu(name, memory_bytes)
    return None


def _ask_nvidia_smi(nvidia_smi: str | None) -> list[_Physical]:
    program = shutil.which(nvidia_smi) if nvidia_smi else None
    if program is None:
        return []
    query = (program, "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603  # on the PATH
    except (OSError, subprocess.SubprocessError):
        return []
    found: list[_Physical] = []
    for line in listing.stdout.splitlines():
        match [cell.strip() for cell in line.split(",")]:
            case [index, uuid, size] if index.isdigit():  # MiB; [N/A] where CPU and GPU share one memory
                found.append((index, uuid, int(size) << 20 if size.isdigit() else None))
    return found


def _list_driver_folder(folder: Path) -> list[_Physical]:
    """Where there is no nvidia-smi (some containers): one folder for each GPU, in the order of the bus."""
    try:
        return [(str(index), "", None) for index in range(len(list(folder.iterdir())))]
    except OSError:
        return []


def group_gpus(gpus: Sequence[Gpu], groups: int, size: int) -> tuple[str, ...]:
    """The values of ``CUDA_VISIBLE_DEVICES`` for ``groups`` servers of ``size`` GPUs each.

    :raises InputError: there are too few.
    """
    need = groups * size
    if need > len(gpus):
        wish = f"--num-servers {groups}" if groups > 1 else "one server"
        each = f" ({size} a server: --tensor-parallel-size times --data-parallel-size)" if size > 1 else ""
        named = ", ".join(gpu.device for gpu in gpus[:8])
        raise InputError(f"{wish}: needs {need} GPUs{each}, but {len(gpus)} can be used here ({named}); ask for less")
    return tuple(",".join(gpu.device for gpu in gpus[at : at + size]) for at in range(0, need, size))


def default_model(gpus: Callable[[], Sequence[Gpu]] = visible_gpus) -> str:
    """The model that `choose_servers` serves on this machine by default."""
    from fastgen.servers.embedded import EMBEDDED_MODEL

    return DEFAULT_GPU_MODEL if gpus() else EMBEDDED_MODEL


async def choose_servers(
    model: str | None,
    server_args: str,
    layout: Layout = _ONE_SERVER,
    *,
    cache_dir: Path,
    report: Callable[[str], None],
    gpus: Callable[[], Sequence[Gpu]] = visible_gpus,
    has_vllm: Callable[[], bool] | None = None,
) -> tuple[ServerSpec, ...]:
    """The servers to start on this machine. Sets the embedded one up first if it is needed and not there yet.

    Cancelling this stops a set-up and leaves nothing half-built behind.

    :raises InputError: this machine cannot serve, not this model, or not as many servers; the message has a remedy.
    :raises ServerError: the set-up failed.
    """
    from fastgen.servers.embedded import EMBEDDED_MODEL, ensure_embedded

    parse_server_args(server_args)
    if found := gpus():
        if not (has_vllm or (lambda: importlib.util.find_spec("vllm") is not None))():
            raise InputError(
                f"this machine has an NVIDIA GPU but no vLLM: run {how_to_install('vllm')}, or name a server with "
                "--base-url"
            )
        return gpu_server_specs(model or DEFAULT_GPU_MODEL, found, server_args, layout, report=report)
    folder = None if model in (None, EMBEDDED_MODEL) else _model_folder(str(model))
    _check_cpu_layout(layout)
    embedded = await ensure_embedded(cache_dir, report=report)
    if folder is not None:  # served under the name that was given, as vLLM on a GPU does
        embedded = replace(embedded, model_dir=folder, model=str(model))
    return embedded_server_specs(embedded, server_args, num_servers=layout.num_servers)


def gpu_server_specs(
    model: str,
    gpus: Sequence[Gpu],
    server_args: str = "",
    layout: Layout = _ONE_SERVER,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[ServerSpec, ...]:
    """``vllm serve MODEL`` in the environment that fastgen runs in, for each server of the layout.

    Each of several servers gets a group of GPUs. A single server sees all of them and takes the first ones.

    :raises InputError: ``server_args`` cannot be used, or there are too few GPUs.
    """
    command = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model)
    ours: list[Flag] = []
    if layout.tensor_parallel_size > 1:
        ours.append(("--tensor-parallel-size", str(layout.tensor_parallel_size)))
    if layout.data_parallel_size > 1:
        ours.append(("--data-parallel-size", str(layout.data_parallel_size)))
    if layout.api_server_count is not None:  # vLLM's default is one for each data-parallel rank
        ours.append(("--api-server-count", str(layout.api_server_count)))
    is_large = bool(gpus) and all((gpu.memory_bytes or 0) >= _LARGE_GPU_BYTES for gpu in gpus)  # not known: small
    ours += [("--max-num-seqs", _MAX_NUM_SEQS_LARGE if is_large else _MAX_NUM_SEQS), *_GPU_FLAGS]
    if model == DEFAULT_GPU_MODEL:
        ours.append(_DEFAULT_MODEL_CONTEXT)
    spec = _spec(command, ours, server_args, model, f"vLLM with {model}", _QUIET_ENV)
    sizes = (("--tensor-parallel-size", "-tp"), ("--pipeline-parallel-size", "-pp"), ("--data-parallel-size", "-dp"))
    size = math.prod(flag_value(spec.command, *names) or 1 for names in sizes)
    if layout.num_servers == 1:
        if layout.gpus_per_server > 1:
            group_gpus(gpus, 1, size)
        if len(gpus) >= 2 * size:
            report(f"{len(gpus) - size} of {len(gpus)} GPUs stay idle; --num-servers {len(gpus) // size} uses them")
        return (spec,)
    groups = group_gpus(gpus, layout.num_servers, size)
    return tuple(
        replace(
            _one_of(spec, place, len(groups), f" on GPU {devices}"),
            env={**spec.env, "CUDA_VISIBLE_DEVICES": devices},
        )
        for place, devices in enumerate(groups)
    )


def embedded_server_specs(
    embedded: EmbeddedServerSpec, server_args: str = "", *, num_servers: int = 1, max_num_seqs: int = 32
) -> tuple[ServerSpec, ...]:
    """The embedded CPU servers, each on its share of the processors that this process may use, at most 8.

    :raises InputError: ``server_args`` cannot be used.
    """
    own = {"--max-num-seqs": str(max_num_seqs), "--max-model-len": str(_cpu_context(embedded.model_dir))}
    ours = tuple((name, own.get(name, value)) for name, value in _CPU_FLAGS)
    python = str(embedded.python)
    # vllm serve looks for a distribution called vllm, which the build for CPUs is not
    command = (python, "-I", "-m", "vllm.entrypoints.openai.api_server")
    what = ("--model", str(embedded.model_dir), "--served-model-name", embedded.model)
    spec = _spec((*command, *what), ours, server_args, embedded.model, "the embedded CPU server", _CPU_ENV)
    bound = [{"VLLM_CPU_OMP_THREADS_BIND": one} for one in _processor_groups(num_servers)]
    if num_servers == 1:
        return (replace(spec, env={**spec.env, **bound[0]}),)
    return tuple(
        replace(_one_of(spec, place, num_servers), env={**spec.env, **bound[place]}) for place in range(num_servers)
    )


def _model_folder(model: str) -> Path:
    """The folder of a model to serve on the CPU.

    :raises InputError: there is no such folder, or it holds no whole model.
    """
    from fastgen.servers.embedded import EMBEDDED_MODEL

    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"--model {model}: without an NVIDIA GPU fastgen itself serves only {EMBEDDED_MODEL} and model folders; "
            "leave --model out, or name a server that has it with --base-url"
        )
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"--model {model}: no whole model is there (config.json and weights as safetensors); where 'fastgen tune' "
            "was stopped, the same command finishes it"
        )
    return folder.absolute()


def _cpu_context(model_dir: Path) -> int:
    """Tokens of a prompt and its answer: what fastgen needs, or the model's own limit."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
        longest = int(config.get("max_position_embeddings", _CPU_CONTEXT))
    except (OSError, ValueError, TypeError, AttributeError):
        longest = _CPU_CONTEXT  # the server reports what is wrong with the model
    return min(_CPU_CONTEXT, longest)


def _one_of(spec: ServerSpec, place: int, count: int, where: str = "") -> ServerSpec:
    """The same server as one of several, with its own port."""
    port = None if spec.port is None else spec.port + place
    return replace(spec, port=port, description=f"server {place + 1} of {count} ({spec.description}{where})")


def _check_cpu_layout(layout: Layout) -> None:
    """Refuse a layout that needs GPUs, or more memory than is free.

    :raises InputError: the layout is refused.
    """
    if layout.gpus_per_server > 1 or layout.api_server_count is not None:
        raise InputError(
            "--tensor-parallel-size, --data-parallel-size, --api-server-count: need NVIDIA GPUs, and none can be used "
            "here; leave them out"
        )
    if layout.num_servers == 1 or (free := _free_memory_bytes()) is None:
        return
    if layout.num_servers * _CPU_SERVER_BYTES > free:
        raise InputError(
            f"--num-servers {layout.num_servers}: each embedded CPU server takes {_CPU_SERVER_BYTES / 1e9:.1f} GB of "
            f"memory, and {free / 1e9:.1f} GB are free; ask for fewer"
        )


def _free_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """The memory that is free without swapping, or ``None`` where it is not known."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _processor_groups(count: int) -> list[str]:
    """Processors for each of ``count`` servers, in OpenMP's form. Shared where there are fewer than servers."""
    usable = sorted(os.sched_getaffinity(0))
    size = min(max(1, len(usable) // count), _MOST_CPU_THREADS)
    return [",".join(str(usable[(at * size + i) % len(usable)]) for i in range(size)) for at in range(count)]


def _spec(
    command: tuple[str, ...],
    ours: Sequence[Flag],
    server_args: str,
    model: str,
    description: str,
    env: dict[str, str],
) -> ServerSpec:
    arguments = merge_flags(ours, parse_server_args(server_args))
    port = flag_value(arguments, "--port")
    sequences = flag_value(arguments, "--max-num-seqs")
    assert sequences is not None, "every set of flags has it"  # noqa: S101  # an invariant of this file
    engines = flag_value(arguments, "--data-parallel-size", "-dp") or 1
    return ServerSpec((*command, *arguments), model, description, sequences * engines, env, port)
