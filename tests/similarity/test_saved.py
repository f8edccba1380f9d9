"""An index taken apart and put together decides as the one it was taken from."""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.similarity import saved
from fastgen.similarity.layout import reserve_array
from fastgen.similarity.lsh import LshIndex
from fastgen.similarity.novelty import INDEX_KINDS, IndexKind, IndexSource, NoveltyFilter
from fastgen.similarity.saved import SavedIndex, Unsavable, make_of_index, take_apart

STEMS = ["river", "stone", "copper", "lantern", "meadow", "orchard", "harbor", "violin", "glacier", "walnut", "comet"]
WORDS = [f"{stem}{ending}" for stem in STEMS for ending in range(60)]
ADDED = 3000


def texts(count: int, seed: int = 0) -> list[str]:
    """Some alike, some not, some of a hundred words, a few without a token."""
    draw = random.Random(seed)
    made = [
        " ".join([*draw.choices(WORDS, k=draw.choice([0, 3, 7, 9, 12, 100])), str(draw.randrange(400))])
        for _ in range(count)
    ]
    return [draw.choice(made) + " again" if draw.random() < 0.2 else text for text in made]


def source(index: SavedIndex) -> IndexSource:
    """As a snapshot gives it: copies, so that nothing is shared with the index that was saved."""
    content = {path: array.tobytes() for path, array in index.arrays.items()}

    def read_into(path: str, target: memoryview) -> None:
        target[:] = content[path]

    return IndexSource(
        index.values, {path: (array.dtype.str, array.shape) for path, array in index.arrays.items()}, read_into
    )


def filled(kind: IndexKind) -> NoveltyFilter:
    novelty = NoveltyFilter(index=kind)
    novelty.add_seeds(texts(30, seed=9))
    novelty.add(texts(ADDED if kind != "exhaustive" else 300))
    return novelty


def again(novelty: NoveltyFilter, kind: IndexKind) -> NoveltyFilter:
    other = NoveltyFilter(index=kind)
    other.add_seeds(texts(30, seed=9))
    other.take_over(other.load(source(novelty.save())))
    return other


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_it_decides_and_grows_as_the_one_it_was_taken_from(kind: IndexKind) -> None:
    novelty = filled(kind)
    other = again(novelty, kind)
    assert len(other) == len(novelty)
    for seed in range(1, 9):
        batch = texts(200, seed)
        assert other.decide(batch) == novelty.decide(batch)
        if seed % 2:  # the others are forgotten, which takes entries out again
            other.admit()
            novelty.admit()
    assert again(other, kind).look_up(texts(200, 99)) == novelty.look_up(texts(200, 99))


@given(st.lists(st.lists(st.sampled_from("abcd é ."), max_size=30).map("".join), max_size=40), st.integers(0, 40))
@settings(max_examples=12, deadline=None)
def test_any_pool_cut_anywhere_goes_on_the_same(pool: list[str], cut: int) -> None:
    for kind in INDEX_KINDS:
        novelty = NoveltyFilter(index=kind)
        novelty.filter(pool[:cut])
        other = NoveltyFilter(index=kind)
        other.take_over(other.load(source(novelty.save())))
        assert other.filter(pool[cut:]) == novelty.filter(pool[cut:])


def test_a_decision_that_is_not_admitted_is_not_saved() -> None:
    novelty = filled("lsh")
    size = len(novelty)
    novelty.decide(["Something that nobody has said about copper lanterns before"])
    assert len(again(novelty, "lsh")) == size


def reserved(holder: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every array in reserved space, with the named tuple that holds it and its field."""
    fields: dict[str, Any] = holder._asdict() if hasattr(holder, "_asdict") else getattr(holder, "__dict__", {})
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            if saved._is_reserved(value):
                yield holder, name, value
        elif isinstance(value, tuple) or type(value).__module__.startswith("fastgen.similarity"):
            yield from reserved(value)


def pages_touched(array: Any, first_byte: int, size: int) -> int:
    """Pages from a byte of the array on that were ever written or read."""
    first = (array.ctypes.data + first_byte + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as pages:  # noqa: PTH123 - no path of ours
        pages.seek(8 * first)
        return int(np.count_nonzero(np.frombuffer(pages.read(8 * (size // mmap.PAGESIZE)), np.uint64) >> np.uint64(62)))


@pytest.mark.skipif(not os.access("/proc/self/pagemap", os.R_OK), reason="tells of pages on Linux only")
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_no_array_is_in_use_beyond_what_is_saved(kind: IndexKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or is scratch. Who changes an index so that this fails has to change the table in ``saved.py``."""
    monkeypatch.setattr(
        "fastgen.similarity.layout._SMALL_PAGES", 1 << 62
    )  # no huge pages, which are touched as a whole
    novelty = filled(kind)
    for seed in range(1, 4):
        novelty.filter(texts(200, seed))
    seen = 0
    for holder, name, array in reserved(novelty._index):
        rows = saved._rows_in_use(holder)[name]
        if not isinstance(rows, int):
            continue
        row_bytes = array.nbytes // len(array)
        slack = mmap.PAGESIZE * 16  # what was taken back, and the scratch at the end of a blob
        assert pages_touched(array, rows * row_bytes + slack, 64 << 20) == 0, f"{type(holder).__name__}.{name}"
        seen += 1
    assert seen >= 8


class Odd(NamedTuple):
    """Named tuples that no table knows."""

    unknown: Any


def with_extra(extra: object) -> LshIndex:
    novelty = filled("lsh")
    index = novelty._index
    assert isinstance(index, LshIndex)
    index.extra = extra  # type: ignore[attr-defined]
    return index


@pytest.mark.parametrize(
    "extra",
    [Odd(reserve_array(np.int32, 1 << 20)), reserve_array(np.int32, 1 << 20), object(), [1, 2], np.zeros(3, object)],
    ids=["unknown reserved", "bare reserved", "an object", "a list", "an array of objects"],
)
def test_an_index_with_anything_unknown_is_not_saved_at_all(extra: object) -> None:
    with pytest.raises(Unsavable):
        take_apart(with_extra(extra))


def test_one_array_in_two_places_is_not_saved() -> None:
    array = np.zeros(5)
    with pytest.raises(Unsavable, match="two places"):
        take_apart(with_extra(Odd2(array, array)))


class Odd2(NamedTuple):
    """Two fields."""

    one: Any
    two: Any


def test_an_index_of_another_layout_is_refused_before_anything_is_read() -> None:
    novelty = filled("lsh")
    whole = source(novelty.save())

    def no_reading(path: str, target: memoryview) -> None:
        raise AssertionError(path)

    path = next(path for path in whole.layout if path.endswith("/slab"))
    other_dtype = {**whole.layout, path: ("<i4", whole.layout[path][1])}
    more = {**whole.layout, "/other": ("<i4", (3,))}
    for layout in (other_dtype, more):
        with pytest.raises(Unsavable, match=r"another dtype|other fields"):
            NoveltyFilter(index="lsh").load(IndexSource(whole.values, layout, no_reading))
    with pytest.raises(Unsavable, match="other fields"):
        NoveltyFilter(index="exact").load(whole._replace(read_into=no_reading))
    with pytest.raises(Unsavable, match="other parameters"):
        NoveltyFilter(index="lsh", lsh_bands=4, lsh_rows=4).load(whole._replace(read_into=no_reading))


def test_a_pool_that_this_machine_has_no_address_space_for_is_refused() -> None:
    whole = source(filled("lsh").save())
    path = next(path for path in whole.layout if path.endswith("/slab"))
    layout = {**whole.layout, path: (whole.layout[path][0], (1 << 60,))}
    with pytest.raises(Unsavable, match="pool is full"):
        NoveltyFilter(index="lsh").load(whole._replace(layout=layout))


def changed(index: SavedIndex, draw: random.Random) -> SavedIndex:
    """One array with a few numbers, or its length, changed."""
    path = draw.choice(sorted(index.arrays))
    array = index.arrays[path].copy()
    if draw.random() < 0.3:
        array = array[: draw.randrange(len(array) + 1)] if draw.random() < 0.5 else np.concatenate([array, array])
    limits = np.iinfo(array.dtype)
    numbers = [0, 1, 7, -1, len(array), 1 << 20, 1 << 31, 1 << 36, 1 << 40, limits.min, limits.max, limits.max // 2]
    for _ in range(draw.choice([1, 1, 5, 100])):
        if array.size:
            number = draw.choice([*numbers, draw.randrange(limits.max)])
            array[draw.randrange(len(array))] = min(max(number, int(limits.min)), int(limits.max))
    return SavedIndex(index.values, {**index.arrays, path: array})


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_arrays_that_contradict_each_other_are_refused_or_do_no_harm(kind: IndexKind) -> None:
    """Kernels check no bounds: what is let through must neither crash them nor hang them, here in this process."""
    whole = filled(kind).save()
    batch = texts(60, 3)
    refused = 0
    for seed in range(150):
        novelty = NoveltyFilter(index=kind)
        novelty.add_seeds(texts(30, seed=9))
        try:
            novelty.take_over(novelty.load(source(changed(whole, random.Random(seed)))))
        except Unsavable:
            refused += 1
            continue
        novelty.filter(batch)
        novelty.decide(batch[::-1])
        novelty.filter(batch)
        assert len(novelty) > 0
    assert refused > 50


def test_a_free_block_that_is_also_in_use_or_a_circle_of_them_is_refused() -> None:
    whole = filled("exact").save()
    free = next(path for path in whole.arrays if path.endswith("/free"))
    slab = next(path for path in whole.arrays if path.endswith("/slab"))
    size = int(np.argmax(whole.arrays[free] >= 0))
    first = int(whole.arrays[free][size])
    assert first >= 0
    circle = whole.arrays[slab].copy()
    circle[first] = first + 1
    used = whole.arrays[free].copy()
    used[0] = int(whole.arrays[next(path for path in whole.arrays if path.endswith("/heads"))].max()) & ((1 << 36) - 1)
    for path, array in ((slab, circle), (free, used)):
        with pytest.raises(Unsavable, match="contradict"):
            NoveltyFilter(index="exact").load(source(SavedIndex(whole.values, {**whole.arrays, path: array})))


def test_the_make_is_the_same_in_every_process_and_names_the_byte_order() -> None:
    assert make_of_index() == make_of_index()
    assert make_of_index().startswith(sys.byteorder)
