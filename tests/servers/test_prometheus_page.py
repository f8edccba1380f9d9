"""A server's own figures from its metrics page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastgen.engine.backend import MAX_COUNT, MAX_SEQUENCES, ServerMetrics, ServerState, parse_metrics
from fastgen.engine.concurrency import ConcurrencyController

LABELS = '{engine="0",model_name="org/model {7b}"}'
OTHER = '{engine="1",model_name="org/model {7b}"}'
PAGE = f"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{LABELS} 30.0
vllm:num_requests_running{OTHER} 12.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{LABELS} 5.0
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 100.0
vllm:kv_cache_usage_perc{LABELS} 0.25
vllm:kv_cache_usage_perc{OTHER} 0.75
vllm:prefix_cache_queries_total{LABELS} 1.2e+06
vllm:prefix_cache_queries_created{LABELS} 1.7e+09
vllm:prefix_cache_hits_total{LABELS} 600000.0
vllm:num_preemptions_total{LABELS} 3.0
vllm:prompt_tokens_total{LABELS} 5000.0
vllm:generation_tokens_total{LABELS} 700.0
vllm:time_to_first_token_seconds_bucket{{le="0.1"}} 17.0
vllm:request_prompt_tokens_sum{LABELS} 9.0
process_cpu_seconds_total 1.0
"""


def test_engines_are_summed_and_the_fullest_cache_counts() -> None:
    assert parse_metrics(PAGE.encode()) == ServerMetrics(
        running=42,
        waiting=5,
        kv_cache_usage=0.75,
        prefix_queries_tokens=1_200_000,
        prefix_hits_tokens=600_000,
        preemptions=3,
        prompt_tokens=5000,
        generation_tokens=700,
    )


def test_the_older_names_are_understood() -> None:
    page = b"vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_hits_total 4\n"
    figures = parse_metrics(page)
    assert figures is not None
    assert (figures.kv_cache_usage, figures.prefix_hits_tokens) == (0.5, 4)


def test_values_that_are_no_number_count_nothing() -> None:
    figures = parse_metrics(
        b"vllm:num_requests_running 2\nvllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc +Inf\n"
    )
    assert figures == ServerMetrics(running=2)


def test_another_servers_page_is_none() -> None:
    assert parse_metrics(b"sglang:num_running_reqs 3\n") is None
    assert parse_metrics(b"<html></html>") is None
    assert parse_metrics(b"") is None


@given(st.binary())
def test_any_page_is_read_or_none(page: bytes) -> None:
    parse_metrics(page)
    figures = parse_metrics(b"vllm:num_requests_running 1\n" + page)
    assert figures is not None
    assert figures.running >= 1 or b"vllm:num_requests_running" in page


HOSTILE = st.sampled_from([b"1e308", b"-1e308", b"-5", b"inf", b"+Inf", b"-Inf", b"NaN", b"nan", b"1e22", b"7", b"0.5"])
STEERING = [b"num_requests_running", b"num_requests_waiting", b"kv_cache_usage_perc", b"num_preemptions_total"]
STEERING += [b"generation_tokens_total", b"prompt_tokens_total", b"prefix_cache_queries_total"]


@given(st.lists(st.lists(st.tuples(st.sampled_from(STEERING), HOSTILE), max_size=9), max_size=40))
def test_no_figure_of_a_server_stops_the_concurrency_control(pages: list[list[tuple[bytes, bytes]]]) -> None:
    controller = ConcurrencyController(64, 512)
    for at, lines in enumerate(pages):
        page = b"vllm:num_requests_running 1\n" + b"".join(b"vllm:%s %s\n" % line for line in lines)
        metrics = parse_metrics(page)
        seen = ServerState(at_s=at / 4, sequences=controller.limit, completions=9 * at, metrics=metrics)
        assert 1 <= controller.observe(seen) <= 512


def test_figures_that_cannot_be_are_cut() -> None:
    page = b"vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308\nvllm:kv_cache_usage_perc 7\n"
    figures = parse_metrics(page + b"vllm:num_requests_waiting -3\nvllm:generation_tokens_total 1e300\n")
    assert figures == ServerMetrics(MAX_SEQUENCES, 0, 1.0, generation_tokens=MAX_COUNT)
