"""A hash multimap from 64-bit keys to postings, in flat arrays, that grows one bucket at a time.

A bucket is one head word: the offset and length of a block of postings in a slab.
Buckets follow linear hashing (Litwin, "Linear hashing: a new tool for file and table addressing", 1980): whenever the
load passes :data:`LOAD` postings a bucket, the next bucket in turn is split, so no insertion ever rebuilds anything.
The key bits that a split needs are kept in the posting, where they also serve as a fingerprint of the key.

A posting is 63 bits: entry (31), key fingerprint (10), and 22 bits that the index chooses and that must not all be
zero. Guarantees: every posting put in under a key is found under that key. Others with the same fingerprint may be
found too, and then always are, since those bits also decide the bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastgen.errors import StoppedError
from fastgen.similarity.jit import kernel, prefetch, signed
from fastgen.similarity.layout import reserve_array, with_room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastgen.similarity.layout import StoredArrays


_U64 = np.uint64
_NOTHING, _ONE = _U64(0), _U64(1)
ENTRY_MASK = _U64((1 << 31) - 1)
_PRINT_SHIFT = _U64(31)
_PRINT_BITS = 10
_PRINT_MASK = _U64((1 << _PRINT_BITS) - 1)
INFO_SHIFT = _U64(31 + _PRINT_BITS)
_COUNT_SHIFT = _U64(36)
_OFFSET_MASK = _U64((1 << 36) - 1)
_COUNT_MASK = _U64((1 << 27) - 1)

LOAD = 8
_LINE = 8  # postings in a cache line
_AHEAD = 128  # what a block has beyond this, the hardware prefetches
_SPLITS_AHEAD = 16  # buckets: they are split in turn, so the next ones are known
CHUNK = 2048  # postings that are looked at in one go
FIRST_LEVEL = 16  # 2**16 buckets at the start
_FIRST_MASK = _U64((1 << FIRST_LEVEL) - 1)
_FIRST_SHIFT = _U64(FIRST_LEVEL)
_LAST_LEVEL = FIRST_LEVEL + _PRINT_BITS
_STEP = 8
_EVEN_STEPS = 8  # block sizes: 8, 16, 24 ... 64 postings, then each a quarter more than the last
_CAPACITIES = np.array(
    [*range(_STEP, _STEP * _EVEN_STEPS + 1, _STEP), *(int(64 * 1.25**i) // 4 * 4 for i in range(1, 72))], np.int64
)
_GRAIN = 4  # every capacity is a multiple of it, so every offset is
_MOST_WORDS = 1 << 35  # address space only
_MOST_BUCKETS = 1 << _LAST_LEVEL
_WORDS_A_POSTING = 16  # of the slab: its block moves at worst, and what it leaves is not reused at once
_SPARE, _MOST_SPARE = 1 << 17, 1 << 26  # words, for a crowded bucket that is split
_POSTINGS, _LEVEL, _SPLIT, _USED, _LOST = range(5)


class Postings(NamedTuple):
    """The arrays.

    ``heads``: one word per bucket. ``slab``: the blocks. ``free``: first free block of each size. ``state``: postings
    held, level, next bucket to split, slab words used, postings that found no room.
    """

    heads: NDArray[np.uint64]
    slab: NDArray[np.uint64]
    free: NDArray[np.int64]
    state: NDArray[np.int64]


def make_postings() -> Postings:
    """Make an empty multimap."""
    state = np.zeros(5, np.int64)
    state[_LEVEL] = FIRST_LEVEL
    return Postings(
        heads=reserve_array(np.uint64, _MOST_BUCKETS),
        slab=reserve_array(np.uint64, _MOST_WORDS),
        free=np.full(_CAPACITIES.size, -1, np.int64),
        state=state,
    )


def with_room_for(postings: Postings, more: int) -> Postings:
    """The multimap with room for ``more`` postings: itself, or one with larger arrays.

    :raises StoppedError: there is none, or an earlier posting found none and is lost.
    """
    check_whole(postings)
    used = int(postings.state[_USED])
    buckets = bucket_count(postings)
    heads = buckets + more // LOAD + _SPLITS_AHEAD + 1
    words = used + more * _WORDS_A_POSTING + min(used, _MOST_SPARE) + _SPARE
    if len(postings.heads) < min(heads, _MOST_BUCKETS) or len(postings.slab) < min(words, _MOST_WORDS):
        return postings._replace(
            heads=with_room(postings.heads, min(heads, _MOST_BUCKETS), buckets, _MOST_BUCKETS),
            slab=with_room(postings.slab, min(words, _MOST_WORDS), used, _MOST_WORDS),
        )
    return postings


def check_whole(postings: Postings) -> None:
    """Make sure that every posting found room.

    :raises StoppedError: one did not, so what is found from then on is not to be trusted.
    """
    if postings.state[_LOST]:
        raise StoppedError("the similarity index is full; run the same command again, which builds it anew")


def arrays_of(postings: Postings) -> dict[str, NDArray[Any]]:
    """Views of everything that :func:`load_postings` needs."""
    heads, slab = postings.heads[: bucket_count(postings)], postings.slab[: int(postings.state[_USED])]
    return {"heads": heads, "slab": slab, "free": postings.free, "state": postings.state}


def load_postings(postings: Postings, stored: StoredArrays) -> Postings:
    """Read what :func:`arrays_of` gave, in the memory of an empty multimap. :func:`check_loaded` checks it.

    :raises ValueError: the arrays have other lengths.
    """
    free, state = stored.read("free", np.int64), stored.read("state", np.int64)
    if free.shape != postings.free.shape or state.shape != postings.state.shape:
        raise ValueError("the index's arrays have other lengths")
    heads = stored.load("heads", postings.heads, _MOST_BUCKETS)
    return Postings(heads, stored.load("slab", postings.slab, _MOST_WORDS), free, state)


def check_loaded(postings: Postings, entries: int, other: int) -> None:
    """Check a multimap that was read from a file: of ``entries`` entries, and ``other``, which is none of them.

    :raises ValueError: its arrays contradict each other.
    """
    held, level, split, used, lost = (int(number) for number in postings.state)
    right = FIRST_LEVEL <= level <= _LAST_LEVEL and 0 <= split < 1 << level and min(held, used) >= 0 and lost == 0
    if not right or used % _GRAIN or not _is_sound(postings, entries, other, np.zeros(used // _GRAIN, np.bool_)):
        raise ValueError("the index's arrays contradict each other")


@kernel
def _is_sound(postings: Postings, entries: int, other: int, taken: NDArray[np.bool_]) -> bool:
    """Whether all blocks, in use or free, lie apart within the slab and hold entries only."""
    for bucket in range((1 << postings.state[_LEVEL]) + postings.state[_SPLIT]):
        offset, count = block_of(postings, bucket)
        if count > 0 and not _take(taken, offset, signed(_CAPACITIES[_size_class(count)])):
            return False
        for i in range(offset, offset + count):
            entry = signed(postings.slab[i] & ENTRY_MASK)
            if entry >= entries and entry != other:
                return False
    for size in range(postings.free.size):
        offset = signed(postings.free[size])
        while offset >= 0:
            if not _take(taken, offset, signed(_CAPACITIES[size])):
                return False
            offset = signed(postings.slab[offset]) - 1
    return True


@kernel
def _take(taken: NDArray[np.bool_], offset: int, words: int) -> bool:
    """Note a block as taken. False where it is not whole and free."""
    if offset % _GRAIN or offset + words > taken.size * _GRAIN:
        return False
    for i in range(offset // _GRAIN, (offset + words) // _GRAIN):
        if taken[i]:
            return False
        taken[i] = True
    return True


def bucket_count(postings: Postings) -> int:
    """Buckets in use."""
    return (1 << min(int(postings.state[_LEVEL]), _LAST_LEVEL)) + int(postings.state[_SPLIT])


def postings_bytes(postings: Postings) -> int:
    """Bytes in use."""
    return 8 * (bucket_count(postings) + int(postings.state[_USED]))


@kernel
def clear(postings: Postings) -> None:
    """Forget everything."""
    postings.heads[: (1 << postings.state[_LEVEL]) + postings.state[_SPLIT]] = _NOTHING
    postings.free[:] = -1
    postings.state[:_LOST] = 0
    postings.state[_LEVEL] = FIRST_LEVEL


@kernel
def fingerprint(key: np.uint64) -> np.uint64:
    """Place the key's bits as they stand in a posting."""
    return ((key >> _FIRST_SHIFT) & _PRINT_MASK) << _PRINT_SHIFT


@kernel
def same_print(posting: np.uint64, key: np.uint64) -> bool:
    """Whether a posting may be this key's."""
    return bool(((posting >> _PRINT_SHIFT) ^ (key >> _FIRST_SHIFT)) & _PRINT_MASK == _NOTHING)


@kernel
def bucket_of(postings: Postings, key: np.uint64) -> int:
    """Find the bucket of a key."""
    level = _U64(postings.state[_LEVEL])
    bucket = signed(key & ((_ONE << level) - _ONE))
    if bucket < postings.state[_SPLIT]:
        bucket = signed(key & ((_ONE << (level + _ONE)) - _ONE))
    return bucket


@kernel
def block_of(postings: Postings, bucket: int) -> tuple[int, int]:
    """Offset and length of a bucket's block in the slab. The length may be 0."""
    head = postings.heads[bucket]
    return signed(head & _OFFSET_MASK), signed(head >> _COUNT_SHIFT)


@kernel
def prefetch_head(postings: Postings, key: np.uint64) -> None:
    """Start to fetch what :func:`find_block` will read."""
    prefetch(postings.heads, bucket_of(postings, key))


@kernel
def find_block(postings: Postings, key: np.uint64) -> tuple[int, int]:
    """Offset and length of the block that holds a key's postings. Starts to fetch them."""
    return _fetch_block(postings, bucket_of(postings, key))


@kernel
def _fetch_block(postings: Postings, bucket: int) -> tuple[int, int]:
    offset, count = block_of(postings, bucket)
    for i in range(0, min(count, _AHEAD), _LINE):
        prefetch(postings.slab, offset + i)
    return offset, count


@kernel
def keep_flagged(chunk: NDArray[np.uint64], flags: NDArray[np.uint8], met: NDArray[np.int32], waiting: int) -> int:
    """Append the entries of the flagged (1, others 0) postings to ``met`` and return how many there are now."""
    for i in range(chunk.size):
        met[waiting] = signed(chunk[i] & ENTRY_MASK)  # written always, kept by the count: a branch would mispredict
        waiting += signed(flags[i])
    return waiting


@kernel
def _size_class(count: int) -> int:
    if count <= _STEP * _EVEN_STEPS:
        return (count + _STEP - 1) // _STEP - 1
    size = _EVEN_STEPS
    while _CAPACITIES[size] < count:
        size += 1
    return size


@kernel
def _allocate(postings: Postings, size: int) -> int:
    """Offset of a block; -1 where the slab is full."""
    offset, capacity = signed(postings.free[size]), signed(_CAPACITIES[size])
    if offset >= 0:
        postings.free[size] = signed(postings.slab[offset]) - 1
        return offset
    offset = signed(postings.state[_USED])
    if offset + capacity > postings.slab.size:
        return -1
    postings.state[_USED] = offset + capacity
    return offset


@kernel
def _release(postings: Postings, offset: int, size: int) -> None:
    postings.slab[offset] = _U64(postings.free[size] + 1)
    postings.free[size] = offset


@kernel
def _head_of(offset: int, count: int) -> np.uint64:
    return (_U64(count) << _COUNT_SHIFT) | _U64(offset)


@kernel
def _resize(postings: Postings, offset: int, count: int, wanted: int) -> int:
    """Move a block of ``count`` postings to one of the size for ``wanted``, unless it has that size. Return the offset.

    -1 where a larger block finds no room.
    """
    old, new = _size_class(count), _size_class(wanted)
    if old == new:
        return offset
    to = _allocate(postings, new) if wanted > 0 else 0
    if to < 0:
        return offset if wanted < count else -1
    for i in range(min(count, wanted)):
        postings.slab[to + i] = postings.slab[offset + i]
    if count > 0:
        _release(postings, offset, old)
    return to


@kernel
def insert(postings: Postings, key: np.uint64, posting: np.uint64) -> None:
    """Add a posting under a key. ``posting`` carries the key's :func:`fingerprint`."""
    bucket = bucket_of(postings, key)
    _append(postings, bucket, posting)
    state = postings.state
    state[_POSTINGS] += 1
    buckets = (1 << state[_LEVEL]) + state[_SPLIT]
    crowded = state[_POSTINGS] > LOAD * buckets
    if crowded and state[_LEVEL] < _LAST_LEVEL and buckets + _SPLITS_AHEAD < postings.heads.size:
        _split_next(postings)


@kernel
def _append(postings: Postings, bucket: int, posting: np.uint64) -> None:
    offset, count = block_of(postings, bucket)
    offset = _resize(postings, offset, count, count + 1)
    if offset < 0:
        postings.state[_LOST] += 1
        return
    postings.slab[offset + count] = posting
    postings.heads[bucket] = _head_of(offset, count + 1)


@kernel
def _split_next(postings: Postings) -> None:
    """Deal the postings of one bucket out to it and to its new twin."""
    state = postings.state
    bucket = signed(state[_SPLIT])
    twin = bucket + (1 << signed(state[_LEVEL]))
    bit = _ONE << (_PRINT_SHIFT + _U64(state[_LEVEL] - FIRST_LEVEL))
    _fetch_block(postings, bucket + _SPLITS_AHEAD)
    offset, count = block_of(postings, bucket)
    postings.heads[bucket] = _NOTHING
    postings.heads[twin] = _NOTHING
    for i in range(count):
        posting = postings.slab[offset + i]
        _append(postings, twin if posting & bit else bucket, posting)
    if count > 0:
        _release(postings, offset, _size_class(count))
    state[_SPLIT] += 1
    if state[_SPLIT] == 1 << state[_LEVEL]:
        state[_SPLIT] = 0
        state[_LEVEL] += 1


@kernel
def remove(postings: Postings, key: np.uint64, entry: int) -> bool:
    """Take back an entry's posting under a key. False where there is none. The order in the bucket may change."""
    bucket = bucket_of(postings, key)
    offset, count = block_of(postings, bucket)
    for i in range(count):
        posting = postings.slab[offset + i]
        if signed(posting & ENTRY_MASK) == entry and same_print(posting, key):
            postings.state[_POSTINGS] -= 1
            postings.slab[offset + i] = postings.slab[offset + count - 1]
            offset = _resize(postings, offset, count, count - 1)
            postings.heads[bucket] = _head_of(offset, count - 1)
            return True
    return False
