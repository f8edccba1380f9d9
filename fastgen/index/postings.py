"""A hash multimap from 64-bit keys to postings, in flat arrays, that grows one bucket at a time.

A bucket is one head word: empty, a single posting in place, or the offset and length of a block of postings in a slab.
Buckets follow linear hashing (Litwin, "Linear hashing: a new tool for file and table addressing", 1980): whenever the
load passes :data:`LOAD` postings a bucket, the next bucket in turn is split, so no insertion ever rebuilds anything.
The key bits that a split needs are kept in the posting, where they also serve as a fingerprint of the key.

A posting is 63 bits: entry (31), key fingerprint (10), and 22 bits that the index chooses and that must not all be
zero. Guarantees: every posting put in under a key is found under that key; others with the same fingerprint may be
found too, and then always are, since those bits also decide the bucket. Knows nothing of texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastgen.index.arrays import check_room, reserve_array
from fastgen.index.jit import kernel, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

_U64 = np.uint64
_ZERO, _ONE = _U64(0), _U64(1)
ENTRY_MASK = _U64((1 << 31) - 1)
_PRINT_SHIFT = _U64(31)
_PRINT_BITS = 10
_PRINT_MASK = _U64((1 << _PRINT_BITS) - 1)
INFO_SHIFT = _U64(31 + _PRINT_BITS)
_BLOCK = _U64(1 << 63)
_COUNT_SHIFT = _U64(40)
_OFFSET_MASK = _U64((1 << 40) - 1)
_COUNT_MASK = _U64((1 << 23) - 1)
_COUNT_ONE = _U64(1 << 40)

LOAD = 8
_LINE = 8  # postings in a cache line
_TOUCHED = 64  # what a block has beyond this, the hardware prefetches
FIRST_LEVEL = 16  # 2**16 buckets at the start
_FIRST_MASK = _U64((1 << FIRST_LEVEL) - 1)
_FIRST_SHIFT = _U64(FIRST_LEVEL)
_LAST_LEVEL = FIRST_LEVEL + _PRINT_BITS
_CAPACITIES = np.array([4, *((2, 3)[i % 2] << (i // 2 + 2) for i in range(42))], np.int64)  # 4, 8, 12, 16, 24, 32 ...
_MOST_WORDS = 1 << 35  # address space only
_POSTINGS, _LEVEL, _SPLIT, _USED = 0, 1, 2, 3


class Postings(NamedTuple):
    """The arrays.

    ``heads``: one word per bucket. ``slab``: the blocks. ``free``: first free block of each size. ``state``: postings
    held, level, next bucket to split, slab words used. ``touched``: a sink for :func:`touch`.
    """

    heads: NDArray[np.uint64]
    slab: NDArray[np.uint64]
    free: NDArray[np.int64]
    state: NDArray[np.int64]
    touched: NDArray[np.uint64]


def make_postings() -> Postings:
    """Make an empty multimap."""
    state = np.zeros(4, np.int64)
    state[_LEVEL] = FIRST_LEVEL
    return Postings(
        heads=reserve_array(np.uint64, 1 << _LAST_LEVEL),
        slab=reserve_array(np.uint64, _MOST_WORDS),
        free=np.full(_CAPACITIES.size, -1, np.int64),
        state=state,
        touched=np.zeros(1, np.uint64),
    )


def check_postings(postings: Postings, more: int) -> None:
    """Make sure that ``more`` postings fit, each of them moving its block at worst.

    :raises StoppedError: they may not.
    """
    check_room(postings.slab, int(postings.state[_USED]) + more * 16)


def postings_bytes(postings: Postings) -> int:
    """Bytes in use."""
    buckets = (1 << int(postings.state[_LEVEL])) + int(postings.state[_SPLIT])
    return 8 * (buckets + int(postings.state[_USED]))


@kernel
def clear(postings: Postings) -> None:
    """Forget everything."""
    postings.heads[: (1 << postings.state[_LEVEL]) + postings.state[_SPLIT]] = _ZERO
    postings.free[:] = -1
    postings.state[:] = 0
    postings.state[_LEVEL] = FIRST_LEVEL


@kernel
def fingerprint(key: np.uint64) -> np.uint64:
    """Place the key's bits as they stand in a posting."""
    return ((key >> _FIRST_SHIFT) & _PRINT_MASK) << _PRINT_SHIFT


@kernel
def same_print(posting: np.uint64, key: np.uint64) -> bool:
    """Whether a posting may be this key's."""
    return bool(((posting >> _PRINT_SHIFT) ^ (key >> _FIRST_SHIFT)) & _PRINT_MASK == _ZERO)


@kernel
def bucket_of(postings: Postings, key: np.uint64) -> int:
    """Find the bucket of a key."""
    level = _U64(postings.state[_LEVEL])
    bucket = signed(key & ((_ONE << level) - _ONE))
    if bucket < postings.state[_SPLIT]:
        bucket = signed(key & ((_ONE << (level + _ONE)) - _ONE))
    return bucket


@kernel
def block_of(head: np.uint64) -> tuple[int, int]:
    """Offset and length of a bucket's block in the slab: (-1, 1) for a single posting in place, (0, 0) for none."""
    if head >= _BLOCK:
        return signed(head & _OFFSET_MASK), signed((head >> _COUNT_SHIFT) & _COUNT_MASK)
    if head == 0:
        return 0, 0
    return -1, 1


@kernel
def touch(postings: Postings, offset: int, count: int) -> np.uint64:
    """Load the first cache lines of a block ahead of its scan; returns its first posting."""
    slab = postings.slab
    for i in range(_LINE, min(count + _LINE - 1, _TOUCHED), _LINE):
        postings.touched[0] ^= slab[offset + min(i, count - 1)]
    return np.uint64(slab[offset])


@kernel
def _size_class(count: int) -> int:
    size = 0
    while _CAPACITIES[size] < count:
        size += 1
    return size


@kernel
def _allocate(postings: Postings, size: int) -> int:
    offset = postings.free[size]
    if offset >= 0:
        postings.free[size] = signed(postings.slab[offset]) - 1
        return signed(offset)
    offset = postings.state[_USED]
    postings.state[_USED] = offset + _CAPACITIES[size]
    return signed(offset)


@kernel
def _release(postings: Postings, offset: int, size: int) -> None:
    postings.slab[offset] = _U64(postings.free[size] + 1)
    postings.free[size] = offset


@kernel
def insert(postings: Postings, key: np.uint64, posting: np.uint64) -> None:
    """Add a posting under a key; ``posting`` carries the key's :func:`fingerprint`."""
    bucket = bucket_of(postings, key)
    _append(postings, bucket, posting)
    state = postings.state
    state[_POSTINGS] += 1
    if state[_POSTINGS] > LOAD * ((1 << state[_LEVEL]) + state[_SPLIT]) and state[_LEVEL] < _LAST_LEVEL:
        _split_next(postings)


@kernel
def _append(postings: Postings, bucket: int, posting: np.uint64) -> None:
    head = postings.heads[bucket]
    if head == 0:
        postings.heads[bucket] = posting
        return
    offset, count = block_of(head)
    if offset < 0:
        offset = _allocate(postings, 0)
        postings.slab[offset] = head
        postings.heads[bucket] = _BLOCK | (_U64(2) << _COUNT_SHIFT) | _U64(offset)
    else:
        size = _size_class(count)
        if count == _CAPACITIES[size]:
            wider = _allocate(postings, size + 1)
            for i in range(count):
                postings.slab[wider + i] = postings.slab[offset + i]
            _release(postings, offset, size)
            offset = wider
        postings.heads[bucket] = _BLOCK | (_U64(count + 1) << _COUNT_SHIFT) | _U64(offset)
    postings.slab[offset + count] = posting


@kernel
def _split_next(postings: Postings) -> None:
    """Deal the postings of one bucket out to it and to its new twin."""
    state = postings.state
    bucket = signed(state[_SPLIT])
    twin = bucket + (1 << signed(state[_LEVEL]))
    bit = _ONE << (_PRINT_SHIFT + _U64(state[_LEVEL] - FIRST_LEVEL))
    head = postings.heads[bucket]
    offset, count = block_of(head)
    postings.heads[bucket] = 0
    postings.heads[twin] = 0
    if offset < 0:
        postings.heads[twin if head & bit else bucket] = head
    elif count > 0:
        for i in range(count):
            posting = postings.slab[offset + i]
            _append(postings, twin if posting & bit else bucket, posting)
        _release(postings, offset, _size_class(count))
    state[_SPLIT] += 1
    if state[_SPLIT] == 1 << state[_LEVEL]:
        state[_SPLIT] = 0
        state[_LEVEL] += 1


@kernel
def remove(postings: Postings, key: np.uint64, entry: int) -> bool:
    """Take back an entry's posting under a key; false where there is none. The order in the bucket may change."""
    bucket = bucket_of(postings, key)
    head = postings.heads[bucket]
    offset, count = block_of(head)
    for i in range(count):
        posting = head if offset < 0 else postings.slab[offset + i]
        if signed(posting & ENTRY_MASK) == entry and same_print(posting, key):
            postings.state[_POSTINGS] -= 1
            if offset < 0:
                postings.heads[bucket] = _ZERO
            elif count == 1:
                postings.heads[bucket] = _ZERO
                _release(postings, offset, 0)
            else:
                postings.slab[offset + i] = postings.slab[offset + count - 1]
                postings.heads[bucket] = head - _COUNT_ONE
            return True
    return False
