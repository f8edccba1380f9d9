"""The GPUs that this process may use, as CUDA counts them, and their division into groups of one server each.

An outer ``CUDA_VISIBLE_DEVICES`` is obeyed, whatever it names its devices by (index, UUID, MIG): the groups are made of
its names, and an empty one means no GPU. Knows nothing of vLLM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgen.errors import InputError

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
