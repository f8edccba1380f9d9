"""The GPUs that this process may use, as CUDA counts them, and their division into groups of one server each.

An outer ``CUDA_VISIBLE_DEVICES`` is obeyed, whatever it names its devices by (index, UUID, MIG): the groups are made of
its names, and an empty one means no GPU. Knows nothing of vLLM.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastgen.errors import InputError
from fastgen.servers.spec import Flag, Layout, ServerSpec, flag_value, merge_flags, parse_server_args

if TYPE_CHECKING:
    from fastgen.servers.embedded import EmbeddedServerSpec


DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
_QUERY = ("--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
_QUERY_FIELDS = 3


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device by its name for ``CUDA_VISIBLE_DEVICES``; ``memory_bytes`` is ``None`` where nothing tells."""

    device: str
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class _Physical:
    index: str
    uuid: str
    memory_bytes: int | None


def visible_gpus(
    visible: str | None = None, *, driver_folder: Path = DRIVER_FOLDER, nvidia_smi: str | None = "nvidia-smi"
) -> tuple[Gpu, ...]:
    """The GPUs that a server started here would see, in CUDA's order; none where there is no NVIDIA driver.

    ``visible`` is the value of ``CUDA_VISIBLE_DEVICES`` (default: the environment's; ``None`` there: not set).
    """
    physical = _ask_nvidia_smi(nvidia_smi) or _list_driver_folder(driver_folder)
    asked = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if not physical:
        return ()
    if asked is None:
        return tuple(Gpu(one.index, one.memory_bytes) for one in physical)
    return tuple(Gpu(name, _memory_of(name, physical)) for name in _names(asked, physical))


def group_gpus(gpus: Sequence[Gpu], groups: int, size: int) -> tuple[str, ...]:
    """The values of ``CUDA_VISIBLE_DEVICES`` for ``groups`` servers of ``size`` GPUs each.

    :raises InputError: there are not so many.
    """
    need = groups * size
    if need > len(gpus):
        wish = f"--num-servers {groups}" if groups > 1 else "one server"
        each = f" ({size} a server: --tensor-parallel-size times --data-parallel-size)" if size > 1 else ""
        named = ", ".join(gpu.device for gpu in gpus[:8])
        raise InputError(f"{wish}: needs {need} GPUs{each}, but {len(gpus)} can be used here ({named}); ask for less")
    return tuple(",".join(gpu.device for gpu in gpus[at : at + size]) for at in range(0, need, size))


def _names(visible: str, physical: Sequence[_Physical]) -> list[str]:
    """What CUDA makes of the variable: everything up to the first name that it does not know."""
    names: list[str] = []
    for part in visible.split(","):
        name = part.strip()
        known = name.startswith("MIG-") or _find(name, physical) is not None
        if not known or name in names:
            break
        names.append(name)
    return names


def _find(name: str, physical: Sequence[_Physical]) -> _Physical | None:
    """The device of an index, or of a UUID or the beginning of one."""
    if name.isascii() and name.isdigit():
        return next((one for one in physical if one.index == name), None)
    found = [one for one in physical if name.startswith("GPU-") and (one.uuid.startswith(name) or not one.uuid)]
    return found[0] if found else None


def _memory_of(name: str, physical: Sequence[_Physical]) -> int | None:
    one = None if name.startswith("MIG-") else _find(name, physical)
    return one.memory_bytes if one is not None else None


def _ask_nvidia_smi(nvidia_smi: str | None) -> list[_Physical]:
    program = shutil.which(nvidia_smi) if nvidia_smi else None
    if program is None:
        return []
    try:
        listing = subprocess.run(  # noqa: S603  # found on the user's own path
            [program, *_QUERY], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.stdout.splitlines()]
    whole = [row for row in rows if len(row) == _QUERY_FIELDS and row[0].isdigit()]
    return [] if listing.returncode else [_Physical(index, uuid, _mebibytes(size)) for index, uuid, size in whole]


def _mebibytes(text: str) -> int | None:
    """Bytes; ``None`` for ``[N/A]``, as machines with one memory for CPU and GPU say."""
    return int(text) << 20 if text.isdigit() else None


def _list_driver_folder(folder: Path) -> list[_Physical]:
    """Where there is no nvidia-smi (some containers): one folder a GPU, in the order of the bus."""
    try:
        places = sorted(folder.iterdir())
    except OSError:
        return []
    return [_Physical(str(index), "", None) for index, _ in enumerate(places)]


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
_MAX_NUM_SEQS = "512"  # vLLM's 256 leaves a GPU idle on prompts that share their prefix; what does not fit waits inside
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


def default_model(gpus: Callable[[], Sequence[Gpu]] = visible_gpus) -> str:
    """The model that `choose_servers` serves on this machine where none is named."""
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
    """The servers to start on this machine; sets the embedded one up if it is the one and is not there yet.

    Cancelling this stops a set-up that is under way and leaves nothing half-built behind.

    :raises InputError: nothing here can serve, not this model, or not so many; the message says what to do.
    :raises ServerError: the set-up failed.
    """
    from fastgen.servers.embedded import EMBEDDED_MODEL, ensure_embedded

    parse_server_args(server_args)
    if found := gpus():
        if not (has_vllm or _vllm_is_installed)():
            raise InputError(
                "this machine has an NVIDIA GPU but no vLLM: run pip install 'fastgen[vllm]', or name a server with "
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
    """``vllm serve MODEL`` from the environment that fastgen runs in, as often as the layout asks.

    Several servers get a group of GPUs each; one server sees all of them and takes the first ones, as vLLM does.

    :raises InputError: ``server_args`` cannot be used, or there are too few GPUs.
    """
    command = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model)
    flags = (*_layout_flags(layout), *_memory_flags(gpus), *_GPU_FLAGS)
    ours = (*flags, _DEFAULT_MODEL_CONTEXT) if model == DEFAULT_GPU_MODEL else flags
    spec = _spec(command, ours, server_args, model, f"vLLM with {model}", _QUIET_ENV)
    size = _gpus_of_one(spec.command)
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
    """The embedded CPU server, each on its share of the processors that this process may use, at most 8.

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
    """:raises InputError: without a GPU, a model that is no folder here, or a folder that holds no whole model."""
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
    """Tokens of a prompt and its answer: what fastgen needs, or all that the model can."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
        longest = int(config.get("max_position_embeddings", _CPU_CONTEXT))
    except (OSError, ValueError, TypeError, AttributeError):
        longest = _CPU_CONTEXT  # the server says what is wrong with the model
    return min(_CPU_CONTEXT, longest)


def _layout_flags(layout: Layout) -> tuple[Flag, ...]:
    """Flags for vLLM's own ways to use several GPUs and processes in one server; none where nothing is asked."""
    flags: list[Flag] = []
    if layout.tensor_parallel_size > 1:
        flags.append(("--tensor-parallel-size", str(layout.tensor_parallel_size)))
    if layout.data_parallel_size > 1:
        flags.append(("--data-parallel-size", str(layout.data_parallel_size)))
    if layout.api_server_count is not None:  # vLLM's default is one a data-parallel rank
        flags.append(("--api-server-count", str(layout.api_server_count)))
    return tuple(flags)


def _memory_flags(gpus: Sequence[Gpu]) -> tuple[Flag, ...]:
    """What depends on the smallest GPU; where its memory is unknown, it counts as small."""
    large = bool(gpus) and all((gpu.memory_bytes or 0) >= _LARGE_GPU_BYTES for gpu in gpus)
    return (("--max-num-seqs", _MAX_NUM_SEQS_LARGE if large else _MAX_NUM_SEQS),)


def _gpus_of_one(command: Sequence[str]) -> int:
    """GPUs that one server takes, by the flags that it really gets."""
    sizes = (
        flag_value(command, "--tensor-parallel-size", "-tp"),
        flag_value(command, "--pipeline-parallel-size", "-pp"),
        flag_value(command, "--data-parallel-size", "-dp"),
    )
    tensor, pipeline, data = (size or 1 for size in sizes)
    return tensor * pipeline * data


def _one_of(spec: ServerSpec, place: int, count: int, where: str = "") -> ServerSpec:
    """The same server as one of several, on a port of its own."""
    port = None if spec.port is None else spec.port + place
    return replace(spec, port=port, description=f"server {place + 1} of {count} ({spec.description}{where})")


def _check_cpu_layout(layout: Layout) -> None:
    """:raises InputError: more than this machine's memory holds, or what only GPUs can do."""
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
    """What can be had without swapping; ``None`` where nothing tells."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _processor_groups(count: int) -> list[str]:
    """Processors for each of ``count`` servers, as OpenMP lists them; shared where there are fewer than servers."""
    usable = sorted(os.sched_getaffinity(0))
    size = min(max(1, len(usable) // count), _MOST_CPU_THREADS)
    return [",".join(str(usable[(at * size + i) % len(usable)]) for i in range(size)) for at in range(count)]


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
    sequences = flag_value(arguments, "--max-num-seqs")
    assert sequences is not None, "every set of flags has it"  # noqa: S101  # an invariant of this file
    engines = flag_value(arguments, "--data-parallel-size", "-dp") or 1
    return ServerSpec((*command, *arguments), model, description, sequences * engines, env, port)
