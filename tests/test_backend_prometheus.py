"""A server's own figures from its metrics page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastgen.backends.prometheus import ServerMetrics, parse_metrics

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
