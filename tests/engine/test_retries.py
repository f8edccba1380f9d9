"""Requests that are asked again: how long they wait, and which goes first."""

from __future__ import annotations

import random

from fastgen.engine.requests import Limits, OutageWatch, Retries
from fastgen.errors import TransientError
from fastgen.types import Stage
from tests.scripted import Rooms, at


def test_the_server_s_wish_is_obeyed_up_to_a_bound_and_back_off_grows_with_jitter() -> None:
    retries = Retries(Limits(concurrency=1), OutageWatch(600.0), random.Random(1), lambda: None)
    plain = TransientError("", kind="http_500")
    for tries, ceiling_s in ((1, 0.5), (2, 1.0), (5, 8.0), (50, 30.0)):
        delays = [retries.pause_s(tries, plain) for _ in range(200)]
        assert 0.1 * ceiling_s <= min(delays) < 0.3 * ceiling_s
        assert 0.8 * ceiling_s < max(delays) <= ceiling_s
    refused = TransientError("", kind="connection", reached_server=False)
    assert max(retries.pause_s(50, refused) for _ in range(50)) <= 5.0
    asked = TransientError("", kind="http_429", retry_after_s=7.0)
    assert retries.pause_s(1, asked) == 7.0
    asked = TransientError("", kind="http_429", retry_after_s=1e6)
    assert retries.pause_s(1, asked) == 300.0


def test_what_is_asked_again_goes_in_the_order_in_which_it_became_ready_where_there_is_room() -> None:
    retries = Retries(Limits(concurrency=1), OutageWatch(600.0), random.Random(1), lambda: None)
    stages = [Stage.INSTANCE, Stage.INSTRUCTION, Stage.INSTANCE, Stage.CLASSIFICATION, Stage.INSTRUCTION]
    for number, stage in enumerate(stages):
        retries.add(at(stage, number))
    rooms = Rooms(instance=1, instruction=0, classification=1)
    taken = [retries.take(rooms.reserve) for _ in range(3)]
    assert [one.number if one else None for one in taken] == [0, 3, None]
    rooms.places[Stage.INSTRUCTION] = 1
    assert [one.number for one in iter(lambda: retries.take(rooms.reserve), None)] == [1]
    assert retries.waiting == 2
    assert [one.number for one in iter(lambda: retries.take(lambda _: True), None)] == [2, 4]
    assert retries.waiting == 0
