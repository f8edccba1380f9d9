"""What limits a run: one answer for every look, and the right one for each kind of run."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.telemetry.figures import Limit, Sample, ServerSample, limit_of

SERVER = ServerSample("http://one/v1", completed=500, running=250, waiting=6, kv_cache_usage=0.6)
ROOMY = replace(SERVER, running=64, waiting=0, kv_cache_usage=0.2)
STEADY = Sample(
    window_s=5.0,
    session_s=100.0,
    target=10_000,
    complete=500,
    kept=620,
    pending=100,
    completions=4000,
    completions_per_s=80.0,
    generated_tokens_per_s=9000.0,
    in_flight=255.0,
    concurrency=256.0,
    yield_window_full=True,
    novelty=4.0,
    best_novelty=5.0,
    commits_share=0.2,
    judge_share=0.1,
    judge_cpu_share=0.09,
    append_share=0.02,
    loop_lag_mean_ms=0.4,
    loop_cpu_share=0.1,
    process_cores=0.2,
    cores=8,
    servers=(SERVER,),
)
BACKLOG = {"queued_answers": 400.0, "commits_share": 0.99}

CASES: list[tuple[str, dict[str, Any], Limit, str]] = [
    ("a server with a queue", {}, Limit.SERVER, "250 running, 6 waiting there, KV cache 60%"),
    ("one without figures", {"servers": (ServerSample("http://x/v1", completed=9),)}, Limit.SERVER, "no figures"),
    ("a stop in progress", {"stopping": True, "in_flight": 3.0}, Limit.DRAIN, "3 still in flight"),
    (
        "all servers down",
        {"servers": (replace(SERVER, healthy=False),), "waiting_retries": 7},
        Limit.NO_SERVER,
        "none of 1 answers; 7 requests wait",
    ),
    (
        "nothing but faults",
        {"completions_per_s": 0.0, "faults_in_window": 30, "faults": {"http_500": 30}, "waiting_retries": 300},
        Limit.NO_SERVER,
        "30 faults (http_500) in 5 s",
    ),
    ("before the first answer", {"servers": (replace(SERVER, completed=0),)}, Limit.RAMP_UP, "nothing answered yet"),
    (
        "before the filter is ready",
        {"completions": 0, **BACKLOG},
        Limit.RAMP_UP,
        "until the similarity filter is ready",
    ),
    (
        "a limit that fell below what is in flight",
        {"in_flight": 48.0, "concurrency": 17.0},
        Limit.SERVER,
        "48 in flight, the limit fell to 17",
    ),
    ("the first seconds", {"session_s": 2.0, "in_flight": 40.0}, Limit.RAMP_UP, "began 2 s ago"),
    (
        "a pool that is smaller than what may be in flight",
        {"in_flight": 40.0, "asked_for_nothing": True, "kept": 31, "complete": 2},
        Limit.RAMP_UP,
        "the pool has 31 instructions",
    ),
    (
        "a slow disk",
        {**BACKLOG, "append_share": 0.8, "sync_share": 0.3},
        Limit.DISK,
        "writing commits takes 80% of the time, with syncing 110%",
    ),
    (
        "a judging thread that has a core for itself",
        {**BACKLOG, "judge_share": 0.95, "judge_cpu_share": 0.93},
        Limit.FILTER,
        "400 answers wait to be judged, judging takes 95% of the time",
    ),
    (
        "a judge that waits for the interpreter lock",
        {**BACKLOG, "judge_share": 0.95, "judge_cpu_share": 0.3, "loop_cpu_share": 0.7},
        Limit.CLIENT_CPU,
        "the judging thread gets 0.30 of a core; the event loop fills 70% of a core",
    ),
    (
        "a judging thread that waits for the processor",
        {**BACKLOG, "judge_share": 0.3, "judge_cpu_share": 0.29},
        Limit.CLIENT_CPU,
        "400 answers wait",
    ),
    ("a full loop", {"loop_cpu_share": 0.95, "process_cores": 1.1}, Limit.CLIENT_CPU, "fills 95% of a core"),
    ("all cores full", {"process_cores": 7.8}, Limit.CLIENT_CPU, "fastgen 7.8 of 8"),
    ("an event loop that does not get its core", {"loop_lag_mean_ms": 60.0}, Limit.CLIENT_CPU, "late by 60 ms"),
    (
        "a rate limit",
        {"rate_limited_share": 0.9, "rate_limit": "--requests-per-minute", "in_flight": 4.0},
        Limit.USER,
        "--requests-per-minute holds requests back for 90% of the time",
    ),
    ("a server that refuses", {"faults_in_window": 60, "refusals_in_window": 50}, Limit.SERVER, "50 requests refused"),
    ("slots lost to faults", {"in_flight": 100.0, "waiting_retries": 150}, Limit.SERVER, "150 requests wait"),
    (
        "the end of a run",
        {"in_flight": 12.0, "asked_for_nothing": True, "complete": 9_980, "kept": 9_999, "pending": 15},
        Limit.YIELD,
        "20 to go, 15 on the way, 12 of 256 slots",
    ),
    (
        "a pause for answers far from the end",
        {"asked_for_nothing": True, "target": 2000, "in_flight": 190.0, "pending": 105},
        Limit.RAMP_UP,
        "until more answers come: 105 on the way, 190 of 256 slots",
    ),
    ("decayed novelty", {"novelty": 2.0}, Limit.YIELD, "2.00 kept per 1,000 instruction tokens, it was 5.00"),
    (
        "decay before the window is full",
        {"novelty": 2.0, "yield_window_full": False},
        Limit.SERVER,
        "250 running",
    ),
    (
        "a fixed concurrency and room",
        {"concurrency_set_by": "--concurrency 64", "servers": (ROOMY,)},
        Limit.USER,
        "--concurrency 64: all are in flight, the servers have room",
    ),
    (
        "a fixed concurrency that fills the server",
        {"concurrency_set_by": "--concurrency 256"},
        Limit.SERVER,
        "6 waiting there",
    ),
    (
        "a fixed concurrency that fills the cache",
        {"concurrency_set_by": "--concurrency 256", "servers": (replace(ROOMY, kv_cache_usage=0.97),)},
        Limit.SERVER,
        "KV cache 97%",
    ),
    (
        "a fixed concurrency and nothing known",
        {"concurrency_set_by": "--concurrency 8", "servers": (ServerSample("http://x/v1", completed=9),)},
        Limit.USER,
        "no figures; try more",
    ),
    (
        "a steering at its maximum",
        {"servers": (replace(ROOMY, limit=4096, reason="at --max-concurrency"),)},
        Limit.USER,
        "--max-concurrency: 255 are in flight",
    ),
    (
        "a steering that still fills",
        {"servers": (replace(ROOMY, limit=64, reason="filling: the server's queue is empty"),)},
        Limit.RAMP_UP,
        "1 servers have room",
    ),
    (
        "a steering that has filled",
        {"servers": (replace(SERVER, limit=260, reason="the server is full"),)},
        Limit.SERVER,
        "255 of 256 in flight",
    ),
]


@pytest.mark.parametrize(("change", "limit", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_kind_of_run_gets_its_limit_and_the_numbers_that_say_so(
    change: dict[str, Any], limit: Limit, said: str
) -> None:
    found, reason = limit_of(replace(STEADY, **change))
    assert found is limit, reason
    assert said in reason


def test_every_limit_has_a_case() -> None:
    assert {case[2] for case in CASES} == set(Limit)


_NUMBERS = {
    field.name: st.floats(0, 1e4) if field.type == "float" else st.integers(0, 10_000)
    for field in fields(Sample)
    if field.type in ("float", "int")
}


@given(figures=st.fixed_dictionaries(_NUMBERS), flags=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_whatever_is_measured_there_is_one_answer_in_one_line(
    figures: dict[str, Any], flags: tuple[bool, bool, bool]
) -> None:
    full, nothing, stopping = flags
    seen = Sample(
        **figures, yield_window_full=full, asked_for_nothing=nothing, stopping=stopping, servers=(SERVER, ROOMY)
    )
    limit, reason = limit_of(seen)
    assert isinstance(limit, Limit)
    assert reason
    assert "\n" not in reason
