"""How every kernel of the similarity filter is compiled, and its machine code on disk.

Guarantees: floats behave as Python's do (no fast-math), so a score computed in a kernel is rouge_score's float. Kernels
release the GIL.

The cache on disk is numba's, in the folder of the module or, from a read-only installation, in the user's cache folder
(``NUMBA_CACHE_DIR`` overrides both), but it never stops a run and is only a gain in time. A file that is not whole is
removed and made again. Where nothing can be written, each process compiles the kernels. Both are one line in the log.
Machine code that was compiled from other source of this package, by another numba, or that was damaged on disk is never
loaded.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
import zlib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable


log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
PACKAGE = "fastgen.similarity"
_DIGEST_BYTES = 32
_SLOW = "so every start compiles for up to a minute"


class _KernelCache(FunctionCache):
    """The cache of one function: ``dispatcher._cache``.

    ``source``: names the source of everything that the function may call, which numba does not look at.

    :raises RuntimeError: numba found no folder that can be written.
    """

    def __init__(self, function: Callable[..., Any], source: str) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]  # numba has no types here
        what = repr((numba.__version__, self._impl.locator.get_source_stamp(), source))
        stamp = hashlib.sha256(what.encode()).digest()
        name = self._impl.filename_base
        self._cache_file = _CacheFile(self._cache_path, name, stamp)  # type: ignore[no-untyped-call]  # as above

    def save_overload(self, sig: Any, data: Any) -> None:  # noqa: ANN401 - numba's
        """Write one compiled signature, if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # as above
        except OSError as error:
            reason = error.strerror or error
            _warn_once(self._cache_path, f"kernels cannot be written here ({reason}), {_SLOW}; set NUMBA_CACHE_DIR")


class _CacheFile(IndexDataCacheFile):
    """Numba's pair of files for a function, each with a digest at its end, which numba itself would ignore.

    The digest of a data file also covers the source. Numba names data files by number, so one that an interrupted write
    left behind could otherwise be taken for a newer one.
    """

    def _load_index(self) -> dict[Any, Any]:
        try:
            stamp, overloads = self._read(self._index_path, b"")
        except OSError:
            return {}
        return pickle.loads(overloads) if stamp == self._source_stamp else {}  # noqa: S301 - as below

    def _save_index(self, overloads: dict[Any, Any]) -> None:
        packed = self._dump(overloads)  # type: ignore[no-untyped-call]  # as above
        self._write(self._index_path, (self._source_stamp, packed), b"")

    def _load_data(self, name: str) -> Any:  # noqa: ANN401 - numba's
        path = self._data_path(name)  # type: ignore[no-untyped-call]  # as above
        return self._read(path, self._source_stamp)

    def _save_data(self, name: str, data: Any) -> None:  # noqa: ANN401 - numba's
        path = self._data_path(name)  # type: ignore[no-untyped-call]  # as above
        self._write(path, data, self._source_stamp)

    def _read(self, name: str, key: bytes) -> Any:  # noqa: ANN401 - what was written
        """:raises OSError: it cannot be read, or was not whole and is removed."""
        path = Path(name)
        content = path.read_bytes()
        payload, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if digest != _digest(payload, key):
            _warn_once(self._cache_path, "damaged or outdated kernels are removed and compiled again")
            path.unlink(missing_ok=True)
            raise OSError(f"{path} is not whole")
        return pickle.loads(payload)  # noqa: S301 - who can write this file can write the package

    def _write(self, name: str, content: Any, key: bytes) -> None:  # noqa: ANN401 - what numba wants kept
        payload = self._dump(content)  # type: ignore[no-untyped-call]  # as above
        with self._open_for_write(name) as file:
            file.write(payload + _digest(payload, key))


def _digest(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=key).digest()


@functools.cache
def _warn_once(folder: str, message: str) -> None:
    """Log one line for each kind of trouble and folder, however many kernels have it."""
    log.warning("%s: %s", folder, message)


@functools.cache
def source_checksum() -> str:
    """Checksum of this package's source (8 hex digits): equal for equal kernels."""
    sources = sorted(
        (source.name, source.read_bytes()) for source in files(PACKAGE).iterdir() if source.name.endswith(".py")
    )
    crc = 0
    for name, content in sources:
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` on its first call (nopython, ``nogil``, cached on disk where a disk can be written)."""
    compile_with = functools.partial(numba.njit, nogil=True, _nrt=False, error_model="numpy", boundscheck=False)
    dispatcher: Any = compile_with()(function)
    try:
        dispatcher._cache = _KernelCache(function, source_checksum())  # noqa: SLF001 - as cache=True does
    except RuntimeError:
        file = function.__code__.co_filename
        _warn_once(file, f"no folder for compiled kernels can be written, {_SLOW}; set NUMBA_CACHE_DIR")
    return cast("Callable[P, R]", dispatcher)


@kernel
def signed(value: Any) -> int:  # noqa: ANN401 - any integer type
    """Convert to a signed 64-bit integer. Kernels must never mix signed and unsigned ones, whose sum is a float."""
    return int(np.int64(value))


def _make_prefetch(_typing: Any, array: Any, index: Any) -> Any:  # noqa: ANN401, ARG001 - numba's protocol and types
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401 - as above
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        number = cgutils.int32_t
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]  # numba has no types here
        read, keep_close, data_cache = number(0), number(3), number(1)
        builder.call(function, [place, read, keep_close, data_cache])
        return context.get_dummy_value()

    return numba.types.void(array, numba.types.int64), generate


prefetch = cast("Callable[[Any, int], None]", intrinsic(_make_prefetch))
"""In a kernel, ``prefetch(array, index)`` asks the processor to fetch a place of a flat array into its cache.

A hint without any other effect, whatever the index.
"""
