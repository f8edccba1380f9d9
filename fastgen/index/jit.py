"""How every kernel of the similarity filter is compiled: machine code kept on disk, the GIL released, IEEE arithmetic.

Guarantees: floats behave as Python's do (no fast-math), so a score computed in a kernel is rouge_score's float. The
machine code is cached beside the module or, from a read-only installation, in the user's cache folder (numba's own
choice, which ``NUMBA_CACHE_DIR`` overrides); :mod:`fastgen.kernel_cache` says what happens where that fails. A change
of any file of this package makes the cache stale. Knows nothing of the kernels themselves.
"""

from __future__ import annotations

import functools
import zlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from fastgen.kernel_cache import KernelCache, warn_of_no_folder

P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = "fastgen.index"


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
        dispatcher._cache = KernelCache(function, source_checksum())  # noqa: SLF001 - as cache=True does
    except RuntimeError:
        warn_of_no_folder(function.__code__.co_filename)
    return cast("Callable[P, R]", dispatcher)


@kernel
def signed(value: Any) -> int:  # noqa: ANN401 - any integer type
    """Convert to a signed 64-bit integer; kernels must never mix signed and unsigned ones, whose sum is a float."""
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
