"""Outages and retries: whose fault a fault is, how long a request waits, and which is asked again first."""

from __future__ import annotations

import random

import pytest

from fastgen.engine.requests import Limits, OutageWatch, Retries
from fastgen.errors import BackendUnavailable, TransientError
from tests.scripted import Rooms, at


def test_occasional_good_answers_prevent_an_outage() -> None:
    watch = OutageWatch(600.0)
    fault = TransientError("refused", kind="connection", reached_server=False)
    for now_s in (0.0, 500.0, 1000.0, 1500.0):
        watch.saw_fault(fault, now_s)
        watch.saw_answer(now_s)
    watch.saw_fault(fault, 1600.0)
    watch.saw_fault(fault, 2199.0)
    with pytest.raises(BackendUnavailable):
        watch.saw_fault(fault, 2200.0)


def test_a_process_that_slept_has_seen_no_outage() -> None:
    """The clock jumps by an hour between a first fault and the next, as when the process was stopped."""
    watch = OutageWatch(600.0)
    fault = TransientError("refused", kind="connection", reached_server=False)
    now_s = 1000.0
    watch.beat(now_s)
    watch.saw_fault(fault, now_s)
    for slept_s in (1.0, 3600.0, 1.0, 1.0):
        now_s += slept_s
        watch.beat(now_s)
        watch.saw_fault(fault, now_s)
    for _ in range(601):
        now_s += 1.0
        watch.beat(now_s)
    with pytest.raises(BackendUnavailable):
        watch.saw_fault(fault, now_s)


def test_faults_of_a_sleep_may_be_seen_before_the_late_beat() -> None:
    watch = OutageWatch(600.0)
    fault = TransientError("reset", kind="connection", reached_server=False)
    watch.beat(1000.0)
    watch.saw_fault(fault, 1000.5)
    watch.saw_fault(fault, 4600.0)
    watch.beat(4600.0)
    watch.saw_fault(fault, 4601.0)
    assert watch.faults == {"connection": 3}


def test_a_fault_counts_against_its_request_only_where_servers_work() -> None:
    watch = OutageWatch(600.0)
    erring = TransientError("boom", kind="http_500")
    killed = TransientError("reset", kind="connection", reached_server=False)
    nobody = TransientError("none answers", kind="all_down", reached_server=False)
    assert not watch.blames_request(erring, 0.0, 100.0), "nothing has worked yet"
    watch.saw_answer(100.0)
    assert watch.blames_request(erring, 0.0, 159.0)
    assert not watch.blames_request(erring, 0.0, 161.0)
    assert watch.blames_request(killed, 99.0, 500.0), "another was answered since it was last tried"
    assert not watch.blames_request(killed, 101.0, 102.0)
    assert not watch.blames_request(nobody, 99.0, 101.0)


def test_a_server_that_asks_for_patience_gets_it() -> None:
    watch = OutageWatch(600.0)
    for now_s in range(0, 10_000, 400):
        watch.saw_fault(TransientError("refused", kind="connection", reached_server=False), now_s)
        watch.saw_fault(TransientError("slow down", kind="http_429"), now_s + 100.0)
        watch.saw_fault(TransientError("busy", kind="http_503", retry_after_s=1.0), now_s + 200.0)
    assert watch.faults == {"connection": 25, "http_429": 25, "http_503": 25}


def test_a_dead_front_end_that_names_a_time_is_an_outage_all_the_same() -> None:
    watch = OutageWatch(600.0)
    fault = TransientError("no backend", kind="http_503", retry_after_s=30.0)
    for now_s in range(0, 630, 10):
        watch.saw_fault(fault, float(now_s))
    with pytest.raises(BackendUnavailable, match="for 630 s"):
        watch.saw_fault(fault, 630.0)


def test_a_time_that_was_named_counts_for_one_outage_only() -> None:
    watch = OutageWatch(600.0)
    watch.saw_fault(TransientError("busy", kind="http_503", retry_after_s=300.0), 0.0)
    watch.saw_answer(1.0)
    fault = TransientError("busy", kind="http_503")
    watch.saw_fault(fault, 2.0)
    with pytest.raises(BackendUnavailable):
        watch.saw_fault(fault, 602.0)


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


def test_retries_begin_in_the_order_in_which_they_became_ready_where_there_is_room() -> None:
    retries = Retries(Limits(concurrency=1), OutageWatch(600.0), random.Random(1), lambda: None)
    stages = ["instance", "instruction", "instance", "classification", "instruction"]
    for number, stage in enumerate(stages):
        retries.add(at(stage, number))
    rooms = Rooms(instance=1, instruction=0, classification=1)
    taken = [retries.take(rooms.reserve) for _ in range(3)]
    assert [one.number if one else None for one in taken] == [0, 3, None]
    rooms.places["instruction"] = 1
    assert [one.number for one in iter(lambda: retries.take(rooms.reserve), None)] == [1]
    assert retries.waiting == 2
    assert [one.number for one in iter(lambda: retries.take(lambda _: True), None)] == [2, 4]
    assert retries.waiting == 0
