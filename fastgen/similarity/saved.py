"""Takes an index apart into plain arrays and puts it together again, whatever kind of index it is.

An index is walked: objects of this package and named tuples by their fields, numpy arrays and plain values as leaves.
Plain values in named tuples and dataclasses are parameters, which must be equal; those of objects are state.
Of an array that lies in reserved address space only the rows in use are taken, which the table below tells by the named
tuple that holds it; what is scratch between two calls is not taken at all, and a fresh one takes its place.

Guarantees: what was put together decides as what was taken apart. Whatever the arrays hold, no kernel leaves their
memory or loops for ever: every size, offset and number is checked before the index is used. An index that holds
anything unknown (an array in reserved space that the table does not name, a thread, a list of growing length) is
`Unsavable`, never saved in part; one that does not fit (other names, dtypes, shapes) is `Unsavable` too, before
anything is read. Knows nothing of files: arrays are given out and asked for as flat memory.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgen.errors import StoppedError
from fastgen.similarity.jit import PACKAGE, source_checksum
from fastgen.similarity.layout import with_room
from fastgen.similarity.postings import bucket_count, slab_used

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from fastgen.similarity.layout import CandidateIndex


_SEEDS = "/_seeds/"  # the only arrays that are neither reserved nor of a fixed length
_MOST_ROWS = 1 << 40


class Unsavable(Exception):
    """The index cannot be saved, or what was saved does not fit it; ``str`` says why."""


class Scratch:
    """Marks an array whose content means nothing between two calls, or may be that of a fresh one."""


SCRATCH = Scratch()


class SavedIndex(NamedTuple):
    """``values``: plain values by path. ``arrays``: views of the rows in use by path, C order, not copied."""

    values: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def _rows_in_use(holder: Any) -> Mapping[str, int | Scratch]:  # noqa: ANN401 - any named tuple
    """Rows in use of the reserved arrays of one named tuple, and which of its arrays are scratch or made anew."""
    fields: dict[str, int | Scratch] = {}
    match type(holder).__name__:
        case "Symbols":
            count = int(holder.size[0])
            fields = dict.fromkeys(("hashes", "parent", "occurrence", "base"), count)
            fields |= {"start": count + 1, "blob": int(holder.start[count])}
            fields |= dict.fromkeys(("table", "slot", "work"), SCRATCH)
        case "Entries":
            fields = {"tokens": int(holder.size[1]), **dict.fromkeys(("sketch", "place"), int(holder.size[0]))}
        case "Postings":
            fields = {"heads": bucket_count(holder), "slab": slab_used(holder)}
        case "Order":
            fields = {"frequency": int(holder.known[0])}
        case "Exact":
            fields = {**dict.fromkeys(holder._fields, SCRATCH), "freezes": 1}
        case "Lsh" | "Nodes" | "Query" | "Rule" | "Permutations":
            fields = dict.fromkeys(holder._fields, SCRATCH)
    return fields


class _Leaf(NamedTuple):
    path: str
    value: Any
    rows: int | None  # of a reserved array: rows in use
    is_parameter: bool = False


def take_apart(index: object) -> SavedIndex:
    """Values and arrays of an index that no call is working on.

    :raises Unsavable: it holds something that cannot be saved.
    """
    values: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for leaf in _leaves(index, ""):
        if not isinstance(leaf.value, np.ndarray):
            values[leaf.path] = leaf.value
            continue
        array = leaf.value if leaf.rows is None else leaf.value[: leaf.rows]
        if not array.flags.c_contiguous or array.dtype.hasobject:
            raise Unsavable(f"{leaf.path} is no plain array")
        arrays[leaf.path] = array
    places = [array.ctypes.data for array in arrays.values() if array.size]
    if len({*places}) < len(places):
        raise Unsavable("one array is held in two places")  # they would be two when put together
    return SavedIndex(values, arrays)


def put_together(
    index: CandidateIndex,
    values: Mapping[str, Any],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    read_into: Callable[[str, memoryview], None],
) -> None:
    """Give a fresh index the content of a saved one.

    ``layout``: dtype (with byte order) and shape of every saved array by path. ``read_into`` fills the memory given
    with the array of that path; what it raises goes through, and the index is then good for nothing.

    :raises Unsavable: the saved index was of another make, and nothing was read; or its arrays contradict each other,
        and the index is good for nothing.
    """
    fresh = take_apart(index)
    if fresh.values.keys() != values.keys() or fresh.arrays.keys() != layout.keys():
        raise Unsavable("the index holds other fields")
    parameters = [leaf for leaf in _leaves(index, "") if leaf.is_parameter]
    if any(values[leaf.path] != leaf.value for leaf in parameters):
        raise Unsavable("the index was made with other parameters")
    for path, array in fresh.arrays.items():
        dtype, shape = layout[path]
        if not all(type(length) is int and length >= 0 for length in shape):
            raise Unsavable(f"{path} has no shape")
        if array.dtype.str != dtype or array.shape[1:] != tuple(shape[1:]) or array.ndim != len(shape):
            raise Unsavable(f"{path} has another dtype or shape")
        if not (_is_reserved(array) or _SEEDS in path or array.shape == tuple(shape)):
            raise Unsavable(f"{path} has another length")
    try:
        _rebuild(index, "", values, layout, read_into)
        for path, array in take_apart(index).arrays.items():
            if array.shape != tuple(layout[path][1]):
                raise Unsavable(f"{path} has another length than the index says")
        index.check_loaded()
    except (ValueError, IndexError, OverflowError, MemoryError, StoppedError) as error:
        raise Unsavable(str(error) or "it does not fit into this machine's memory") from None


def make_of_index() -> str:
    """What must be equal for a saved index to mean the same: the byte order and this package's source."""
    return f"{sys.byteorder} {source_checksum()}"


def _leaves(value: Any, path: str, holder: Any = None) -> Iterator[_Leaf]:  # noqa: ANN401 - anything an index may hold
    if isinstance(value, np.ndarray):
        rows = _rows_of(value, path, holder)
        if not isinstance(rows, Scratch):
            yield _Leaf(path, value, rows)
    elif isinstance(value, bool | int | float | str | None):
        yield _Leaf(path, value, None, is_parameter=isinstance(holder, tuple) or is_dataclass(holder))
    else:
        for name, child in _children(value, path).items():
            yield from _leaves(child, f"{path}/{name}", value)


def _rows_of(array: NDArray[Any], path: str, holder: Any) -> int | Scratch | None:  # noqa: ANN401 - as above
    """Rows in use of a reserved array, ``None`` for another one.

    :raises Unsavable: the table does not know the array.
    """
    known = _rows_in_use(holder) if isinstance(holder, tuple) else {}
    name = path.rpartition("/")[2]
    if not _is_reserved(array):
        return SCRATCH if known.get(name) is SCRATCH else None
    if name not in known:
        raise Unsavable(f"{path}: nothing tells how much of this array is in use")
    return known[name]


def _is_reserved(array: NDArray[Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def _children(value: Any, path: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if type(value).__module__.startswith(PACKAGE):
        if is_dataclass(value):
            return {name: getattr(value, name) for name in value.__dataclass_fields__}
        if hasattr(value, "__dict__"):
            return dict(vars(value))
    raise Unsavable(f"{path or 'the index'}: {type(value).__name__} is nothing that can be saved")


def _rebuild(
    value: Any,  # noqa: ANN401 - as above
    path: str,
    values: Mapping[str, Any],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    read_into: Callable[[str, memoryview], None],
) -> Any:  # noqa: ANN401 - as above
    """The value that takes this one's place: the same object where it can be changed."""
    if isinstance(value, np.ndarray):
        return _refill(value, path, layout[path][1], read_into) if path in layout else value
    if path in values:
        return value if value == values[path] else values[path]
    children = _children(value, path)
    new = {name: _rebuild(child, f"{path}/{name}", values, layout, read_into) for name, child in children.items()}
    changed = {name: child for name, child in new.items() if child is not children[name]}
    if not changed:
        return value
    if isinstance(value, tuple):
        return value._replace(**changed)  # type: ignore[attr-defined]  # a named tuple: nothing else has children
    for name, child in changed.items():
        setattr(value, name, child)
    return value


def _refill(
    array: NDArray[Any], path: str, shape: tuple[int, ...], read_into: Callable[[str, memoryview], None]
) -> NDArray[Any]:
    """The array with its saved content: in its own memory where that is reserved or of the right size."""
    if _is_reserved(array):
        whole = with_room(array, shape[0], 0, _MOST_ROWS)
        target = whole[: shape[0]]
    else:
        whole = target = array if array.shape == tuple(shape) else np.empty(shape, array.dtype)
    if target.size:
        read_into(path, target.reshape(-1).view(np.uint8).data)
    return whole
