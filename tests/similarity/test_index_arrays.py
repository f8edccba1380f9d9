"""An index that loads the arrays of another decides as that one."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.similarity.layout import StoredArrays
from fastgen.similarity.novelty import INDEX_KINDS, IndexKind, NoveltyFilter

STEMS = ["river", "stone", "copper", "lantern", "meadow", "orchard", "harbor", "violin", "glacier", "walnut", "comet"]
WORDS = [f"{stem}{ending}" for stem in STEMS for ending in range(60)]
ADDED = 3000
Arrays = dict[str, Any]
SCRATCH = {"slot", "seen", "met", "moving", "sorted", "other"}
"""Reserved arrays whose content means nothing between two calls; so are the columns of `Nodes`."""


def texts(count: int, seed: int = 0) -> list[str]:
    """Some alike, some not, some of a hundred words, a few without a token."""
    draw = random.Random(seed)
    made = [
        " ".join([*draw.choices(WORDS, k=draw.choice([0, 3, 7, 9, 12, 100])), str(draw.randrange(400))])
        for _ in range(count)
    ]
    return [draw.choice(made) + " again" if draw.random() < 0.2 else text for text in made]


def stored(arrays: Arrays) -> StoredArrays:
    """As a checkpoint gives them: copies, so that nothing is shared with the index that was saved."""
    copies = {name: array.copy() for name, array in arrays.items()}

    def read_into(name: str, target: Any) -> None:
        if (target.dtype, target.shape) != (copies[name].dtype, copies[name].shape):
            raise ValueError(name)
        target[:] = copies[name]

    return StoredArrays({name: len(array) for name, array in arrays.items()}, read_into)


def filled(kind: IndexKind) -> NoveltyFilter:
    novelty = NoveltyFilter(index=kind)
    novelty.add_seeds(texts(30, seed=9))
    novelty.add(texts(ADDED if kind != "exhaustive" else 300))
    return novelty


def again(novelty: NoveltyFilter, kind: IndexKind) -> NoveltyFilter:
    other = NoveltyFilter(index=kind)
    other.add_seeds(texts(30, seed=9))
    other.take_over(other.load(stored(novelty.save())))
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
def test_any_pool_cut_anywhere_continues_the_same(pool: list[str], cut: int) -> None:
    for kind in INDEX_KINDS:
        novelty = NoveltyFilter(index=kind)
        novelty.filter(pool[:cut])
        other = NoveltyFilter(index=kind)
        other.take_over(other.load(stored(novelty.save())))
        assert other.filter(pool[cut:]) == novelty.filter(pool[cut:])


def test_a_decision_that_is_not_admitted_is_not_saved() -> None:
    novelty = filled("lsh")
    size = len(novelty)
    novelty.decide(["Something that was never said about copper lanterns before"])
    assert len(again(novelty, "lsh")) == size


def reserved(holder: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every array in reserved space, with the named tuple that holds it and its field."""
    fields: dict[str, Any] = holder._asdict() if hasattr(holder, "_asdict") else getattr(holder, "__dict__", {})
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            if is_reserved(value):
                yield holder, name, value
        elif isinstance(value, tuple) or type(value).__module__.startswith("fastgen.similarity"):
            yield from reserved(value)


def is_reserved(array: Any) -> bool:
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(getattr(base, "obj", base), mmap.mmap)


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
    saved = {array.ctypes.data: array for array in novelty._index.arrays().values() if is_reserved(array)}
    seen = 0
    for holder, name, array in reserved(novelty._index):
        used = saved.get(array.ctypes.data)
        if used is None:
            assert name in SCRATCH or type(holder).__name__ == "Nodes", f"{type(holder).__name__}.{name} is not saved"
            continue
        slack = mmap.PAGESIZE * 16  # what was taken back, and the scratch at the end of a blob
        assert pages_touched(array, used.nbytes + slack, 64 << 20) == 0, f"{type(holder).__name__}.{name}"
        seen += 1
    assert seen == len(saved) >= 8


def test_arrays_of_another_index_or_of_other_parameters_are_refused() -> None:
    arrays = filled("lsh").save()
    with pytest.raises(ValueError, match="other arrays"):
        NoveltyFilter(index="exact").load(stored(arrays))
    with pytest.raises(ValueError, match="other arrays"):
        NoveltyFilter(index="lsh").load(stored({**arrays, "more": np.zeros(3)}))
    with pytest.raises(ValueError, match="other parameters"):
        NoveltyFilter(index="lsh", lsh_bands=4, lsh_rows=4).load(stored(arrays))
    for other in (NoveltyFilter(index="lsh", reject_at="ge"), NoveltyFilter(index="exact", threshold=0.6)):
        with pytest.raises(ValueError, match="other parameters"):
            other.load(stored(filled(other._kind).save() if other._kind == "exact" else arrays))
    with pytest.raises(ValueError, match="slab"):
        NoveltyFilter(index="lsh").load(stored({**arrays, "slab": arrays["slab"].astype(np.int32)}))


def test_a_pool_that_this_machine_has_no_address_space_for_is_refused() -> None:
    whole = stored(filled("lsh").save())
    with pytest.raises(ValueError, match="pool is full"):
        NoveltyFilter(index="lsh").load(whole._replace(rows={**whole.rows, "slab": 1 << 60}))


def changed(arrays: Arrays, draw: random.Random) -> Arrays:
    """One array with a few numbers, or its length, changed."""
    path = draw.choice(sorted(arrays.keys() - {"rule", "bands"}))
    array = arrays[path].copy()
    if draw.random() < 0.3:
        array = array[: draw.randrange(len(array) + 1)] if draw.random() < 0.5 else np.concatenate([array, array])
    limits = np.iinfo(array.dtype)
    numbers = [0, 1, 7, -1, len(array), 1 << 20, 1 << 31, 1 << 36, 1 << 40, limits.min, limits.max, limits.max // 2]
    for _ in range(draw.choice([1, 1, 5, 100])):
        if array.size:
            number = draw.choice([*numbers, draw.randrange(limits.max)])
            array[draw.randrange(len(array))] = min(max(number, int(limits.min)), int(limits.max))
    return {**arrays, path: array}


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
            novelty.take_over(novelty.load(stored(changed(whole, random.Random(seed)))))
        except ValueError:
            refused += 1
            continue
        novelty.filter(batch)
        novelty.decide(batch[::-1])
        novelty.filter(batch)
        assert len(novelty) > 0
    assert refused > 50


def test_a_free_block_that_is_also_in_use_or_a_circle_of_them_is_refused() -> None:
    whole = filled("exact").save()
    size = int(np.argmax(whole["free"] >= 0))
    first = int(whole["free"][size])
    assert first >= 0
    circle, used = whole["slab"].copy(), whole["free"].copy()
    circle[first] = first + 1
    used[0] = int(whole["heads"].max()) & ((1 << 36) - 1)
    for name, array in (("slab", circle), ("free", used)):
        with pytest.raises(ValueError, match="contradict"):
            NoveltyFilter(index="exact").load(stored({**whole, name: array}))
