"""The shuffle on disk: every row once, an order that only seed and content decide, bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.export.writers import Shuffle

ROWS = st.lists(st.binary(max_size=12), max_size=200)


def shuffled(rows: Sequence[bytes], seed: int = 0, loaded_bytes: int = 1 << 20) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        shuffle = Shuffle(Path(folder), seed, loaded_bytes=loaded_bytes)
        for row in rows:
            shuffle.add(row)
        return list(shuffle)


@settings(max_examples=40, deadline=None)  # files, which a busy disk may delay
@given(ROWS, st.integers())
def test_every_row_comes_out_once_in_an_order_that_does_not_depend_on_the_order_of_adding(
    rows: list[bytes], seed: int
) -> None:
    out = shuffled(rows, seed)
    assert sorted(out) == sorted(set(rows))
    assert shuffled(sorted(rows), seed) == out


@settings(max_examples=40, deadline=None)  # files, which a busy disk may delay
@given(ROWS, ROWS)
def test_rows_that_are_added_later_leave_the_others_in_their_order(rows: list[bytes], more: list[bytes]) -> None:
    known = set(rows)
    assert [row for row in shuffled(rows + more) if row in known] == shuffled(rows)


@pytest.mark.parametrize("loaded_bytes", [60, 500, 2000])
def test_rows_that_do_not_fit_into_memory_come_out_the_same(loaded_bytes: int) -> None:
    rows = [f"row {number % 500}".encode() for number in range(1000)]
    assert shuffled(rows, loaded_bytes=loaded_bytes) == shuffled(rows)


def test_one_row_a_million_times_over_is_one_row() -> None:
    assert shuffled([b"again"] * 20_000, loaded_bytes=100) == [b"again"]


def test_seeds_give_different_orders_and_every_place_to_every_row() -> None:
    rows = [bytes([n]) for n in range(5)]
    firsts = [shuffled(rows, seed)[0] for seed in range(300)]
    assert min(firsts.count(row) for row in rows) > 30, "60 expected of each"


def test_a_shuffle_that_is_given_up_can_be_closed_and_removed(tmp_path: Path) -> None:
    shuffle = Shuffle(tmp_path, 0)
    shuffle.add(b"row")
    shuffle.close()
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [23]


def test_a_row_larger_than_what_fits_into_memory_comes_out_all_the_same() -> None:
    assert {*shuffled([b"x" * 1000, b"y" * 1000], loaded_bytes=100)} == {b"x" * 1000, b"y" * 1000}
