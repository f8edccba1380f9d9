"""metrics.jsonl: what is written is read again, whatever was cut off, and a full disk harms nothing."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen.telemetry.figures import Limit, Sample, ServerSample, StageSample
from fastgen.telemetry.series import METRICS_FILE, MetricsFile, every_s, last_sample, limit_shares, read_metrics


def sample(time_s: float, **more: object) -> Sample:
    return Sample.from_dict({"time_s": time_s, "window_s": 5.0, **more})


FULL = Sample(
    time_s=1_800_000_000.25,
    window_s=5.0,
    rejected={"similar": 3},
    acceptance=None,
    faults={"http_500": 2},
    stages={"instance": StageSample(7, 0.5, 0.4, 1.5)},
    servers=(ServerSample("http://a/v1", running=3, waiting=0, kv_cache_usage=0.25), ServerSample("http://b/v1")),
    limit=Limit.CLIENT_CPU,
    limit_reason="the event loop fills 95% of a core",
)


def test_a_sample_survives_the_file(tmp_path: Path) -> None:
    MetricsFile(tmp_path).append(FULL)
    assert list(read_metrics(tmp_path)) == [FULL]
    assert last_sample(tmp_path) == FULL


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_torn_or_foreign_end_costs_only_itself(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    path = run / METRICS_FILE
    first, second = sample(1.0), sample(2.0)
    MetricsFile(run).append(first)
    torn = orjson.dumps(FULL.as_dict())[:cut]
    path.write_bytes(path.read_bytes() + torn + junk.replace(b"\n", b" ").replace(b"{", b"["))
    MetricsFile(run).append(second)
    read = list(read_metrics(run))
    assert read[0] == first
    assert read[-1] == last_sample(run) == second
    assert len(read) == 2


def test_lines_of_other_versions_are_read_by_what_they_have(tmp_path: Path) -> None:
    lines = [b'{"time_s": 1.5, "a_new_figure": 3}', b"{}", b'{"time_s": "x"}', b"[]", b'{"time_s": 2, "limit": "?"}']
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join(lines) + b"\n")
    assert [one.time_s for one in read_metrics(tmp_path)] == [1.5, 0.0]


def test_a_run_without_the_file_has_no_samples(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path)) == []
    assert last_sample(tmp_path) is None


def test_the_last_sample_is_found_in_a_long_file(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    for number in range(200):
        file.append(sample(float(number)))
    assert (tmp_path / METRICS_FILE).stat().st_size > 1 << 17
    assert last_sample(tmp_path) == sample(199.0)


def test_a_full_disk_is_reported_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    file = MetricsFile(tmp_path)
    with caplog.at_level(logging.WARNING):
        file.append(FULL)
        file.append(FULL)
    assert [record.getMessage().endswith("the run continues without") for record in caplog.records] == [True]


def test_after_a_write_that_failed_the_next_line_stands_by_itself(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    file = MetricsFile(tmp_path)
    file.append(sample(1.0))
    path.rename(tmp_path / "kept")
    path.mkdir()  # cannot be written
    file.append(sample(2.0))
    path.rmdir()
    path.write_bytes((tmp_path / "kept").read_bytes() + b'{"time_s": 2')
    file.append(sample(3.0))
    assert [one.time_s for one in read_metrics(tmp_path)] == [1.0, 3.0]


def test_a_week_of_lines_stays_modest() -> None:
    age_s, lines = 0.0, 0
    while age_s < 7 * 86_400:
        age_s += every_s(age_s)
        lines += 1
    assert every_s(0.0) == 5.0
    assert lines < 16_000
    assert lines * (len(orjson.dumps(FULL.as_dict())) + 200) < 40e6


def test_shares_of_limits_go_by_time(tmp_path: Path) -> None:
    assert limit_shares(tmp_path) == {}
    file = MetricsFile(tmp_path)
    file.append(sample(1.0, limit="ramp-up"))
    file.append(sample(2.0, limit="server"))
    with (tmp_path / METRICS_FILE).open("ab") as sink:
        sink.write(b'{"limit": "server", "window_s": 9')
    MetricsFile(tmp_path).append(sample(3.0, limit="server", window_s=10.0))
    assert limit_shares(tmp_path) == {"server": 0.75, "ramp-up": 0.25}


HUGE = Sample(
    time_s=1.0,
    window_s=math.inf,
    in_flight=math.nan,
    generated_tokens_per_s=1e308,
    servers=(ServerSample("http://a/v1", running=int(1e308), kv_cache_usage=math.inf),),
)


def test_figures_beyond_all_bounds_are_written_within_them(tmp_path: Path) -> None:
    MetricsFile(tmp_path).append(HUGE)
    (read,) = read_metrics(tmp_path)
    assert (read.window_s, read.in_flight, read.generated_tokens_per_s) == (0.0, 0.0, 1e15)
    assert read.servers[0].running == 10**15


@pytest.mark.parametrize(
    "hostile",
    [
        *({"time_s": 1e300}, {"time_s": -1}, {"time_s": None}, {"window_s": 1e300}, {"window_s": None}),
        *({"in_flight": "many"}, {"complete": 1.5}, {"complete": 1e16}, {"limit_reason": None}, {"cores": True}),
        *({"rejected": {"similar": 1e300}}, {"rejected": []}, {"stages": {"instance": {"p50_s": None}}}),
        *({"servers": [{"url": "a", "running": 1e300}]}, {"servers": [{"url": None}]}, {"servers": 5}),
        *({"recent": {"eta_s": 1e300}}, {"recent": {"complete_per_min": None}}, {"recent": []}, {"limit": 3}),
    ],
)
def test_a_line_that_is_no_figure_of_a_run_is_skipped(tmp_path: Path, hostile: dict[str, object]) -> None:
    MetricsFile(tmp_path).append(FULL)
    line = orjson.dumps(FULL.as_dict() | hostile)
    with (tmp_path / METRICS_FILE).open("ab") as sink:
        sink.write(line + b"\n")
    expected = [FULL, FULL] if hostile == {"recent": []} else [FULL]
    assert list(read_metrics(tmp_path)) == expected
    assert last_sample(tmp_path) == FULL


def test_shares_of_limits_leave_out_impossible_windows(tmp_path: Path) -> None:
    MetricsFile(tmp_path).append(sample(1.0, limit="server"))
    with (tmp_path / METRICS_FILE).open("ab") as sink:
        for window in (b"1e300", b"null", b"-5", b'"x"'):
            sink.write(b'{"limit": "disk", "window_s": ' + window + b"}\n")
        sink.write(b'{"limit": "\\u001b[2J", "window_s": 5}\n')
    assert limit_shares(tmp_path) == {"server": 1.0}
