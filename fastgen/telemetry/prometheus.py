"""What the pages for this machine share: their address, and the check of the Host header.

A browser sends the name that it used for the server. A page elsewhere that points a name of its own at 127.0.0.1 ("DNS
rebinding") is recognised by that name.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fastgen.errors import InputError
from fastgen.telemetry.figures import Limit, Sample
from fastgen.telemetry.instruments import BOUNDS_S
from fastgen.text import printable

if TYPE_CHECKING:
    from fastgen.telemetry.monitor import MetricsHub, Reading


LOOPBACK: Final = "127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_machine(host_header: str) -> bool:
    """Whether the value of a Host header names this machine, with or without a port."""
    try:
        return is_loopback(urlsplit(f"//{host_header}").hostname or "")
    except ValueError:
        return False


MOST_CONNECTIONS: Final = 16
PATIENCE_S: Final = 5.0
_COUNTERS = {
    "completions": "Completions committed.",
    "prompt_tokens": "Tokens read by the servers, as they state them.",
    "generated_tokens": "Tokens generated, as the servers state them.",
    "kept": "Instructions that passed every filter.",
    "complete": "Kept instructions with at least one valid instance.",
    "rate_limited_s": "Seconds for which rate limits held requests back.",
    "process_cpu_s": "CPU seconds of fastgen's process.",
    "server_s": "Seconds of servers in use, together.",
    "batches": "Batches of answers committed.",
}
_GAUGES = {
    "target": "Complete instructions asked for.",
    "pending": "Kept instructions whose instances are still to come.",
    "in_flight": "Completions in flight.",
    "concurrency": "Limit of completions in flight.",
    "waiting_retries": "Requests that wait for another attempt.",
    "queued": "Answers that wait for the committer.",
    "rss_mb": "Memory in RAM, in MB.",
}
_OF_THE_SAMPLE = {
    "loop_lag_mean_ms": "How late the event loop's timers were, on average over the last sample, in ms.",
    "loop_lag_max_ms": "The same, the latest of them.",
    "kept_per_1000_tokens": "Kept instructions per 1,000 generated tokens over the yield window.",
    "complete_per_1000_tokens": "Complete instructions per 1,000 generated tokens over the yield window.",
    "novelty": "Kept instructions per 1,000 tokens of the instruction stage over the yield window.",
}
_OF_THE_RATES = {
    "complete_per_min": "Complete instructions a minute, as the live line shows them.",
    "generated_tokens_per_s": "Generated tokens a second, as the live line shows them.",
    "kept_per_server_s": "Kept instructions per second of a server, as the live line shows them.",
}
_OF_SERVERS = {
    "healthy": "1 while the server is in use.",
    "in_flight": "Completions in flight at the server.",
    "limit": "How many completions it is meant to have in flight.",
    "running": "Sequences that the server runs, by its own word.",
    "waiting": "Sequences in the server's queue, by its own word.",
    "kv_cache_usage": "Share of the server's KV cache in use, 0..1.",
}
_COMMIT_PARTS = ("judge", "append", "apply", "sync")


class RunCollector(Collector):
    """Turns a hub's newest figures into metric families; nothing before there are any."""

    def __init__(self, hub: MetricsHub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """All families; called by a scrape, in its thread."""
        if (reading := self._hub.reading) is not None:
            yield from _of_reading(reading)
            yield from _of_servers(reading)
            for name, text in _OF_THE_RATES.items():
                yield GaugeMetricFamily(_named(name), text, value=getattr(self._hub.rates, name))
        if (sample := self._hub.latest) is not None:
            yield from _of_sample(sample)


@contextmanager
def metrics_page(hub: MetricsHub, host: str, port: int, *, patience_s: float = PATIENCE_S) -> Iterator[int]:
    """The page at ``http://host:port/metrics`` until the block ends; yields the port (0 asks for any that is free).

    :raises InputError: nobody can listen there.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(hub))
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _PageServer(family, address, registry, patience_s, only_local=is_loopback(host))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--metrics-port {port}: cannot listen on {host} ({why}); choose another port or --metrics-host"
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _PageServer(ThreadingHTTPServer):
    """A thread for each of a few connections; one more is closed at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self,
        family: int,
        address: Any,  # noqa: ANN401
        registry: CollectorRegistry,
        patience_s: float,
        *,
        only_local: bool,
    ) -> None:
        self.address_family = family
        self.registry = registry
        self.patience_s = patience_s
        self.only_local = only_local
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _PageHandler)

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = address = self.socket.getsockname()
        self.server_name, self.server_port = str(address[0]), int(address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Begin a thread, if there is one left."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A connection that broke is nobody's business."""


class _PageHandler(BaseHTTPRequestHandler):
    """One request on one connection (HTTP/1.0)."""

    server: _PageServer

    def setup(self) -> None:
        """Bound the time of every read and write."""
        self.request.settimeout(self.server.patience_s)
        super().setup()

    def do_GET(self) -> None:
        """The figures, whatever the path."""
        if self.server.only_local and not names_this_machine(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.FORBIDDEN, "this page is for this machine only")
            return
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encoder(self.server.registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        """Requests are not logged."""


def _of_reading(reading: Reading) -> Iterator[Metric]:
    for name, text in _COUNTERS.items():
        yield CounterMetricFamily(_named(name), text, value=getattr(reading, name))
    for name, text in _GAUGES.items():
        yield GaugeMetricFamily(_named(name), text, value=getattr(reading, name))
    if written := reading.kept + sum(reading.rejected.values()):
        text = "Kept share of the instructions written, since the start of the run."
        yield GaugeMetricFamily(_named("acceptance"), text, value=reading.kept / written)
    yield _by_label("rejected", "Instructions rejected, by rule.", "rule", reading.rejected)
    yield _by_label("faults", "Faults of requests, by kind.", "kind", reading.faults)
    threads = {"loop": reading.loop_cpu_s, "judge": reading.judge_cpu_s}
    yield _by_label("thread_cpu_seconds", "CPU seconds of a thread.", "thread", threads)
    parts = {part: getattr(reading, f"{part}_s") for part in _COMMIT_PARTS}
    yield _by_label("commit_seconds", "Seconds of committing, by part.", "part", parts)
    yield _latencies(reading)


def _by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_named(name), text, labels=[label])
    for key, value in values.items():
        family.add_metric([printable(key)], value)
    return family


def _latencies(reading: Reading) -> Metric:
    text = "Seconds from sending a request to the last byte of a good answer, by stage."
    family = HistogramMetricFamily("fastgen_request_seconds", text, labels=["stage"])
    for stage, (counts, total_s) in reading.latencies.items():
        seen, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
            seen += count
            buckets.append((bound, float(seen)))
        family.add_metric([stage], buckets, total_s)
    return family


def _of_servers(reading: Reading) -> Iterator[Metric]:
    for name, text in _OF_SERVERS.items():
        family = GaugeMetricFamily(f"fastgen_server_{name}", text, labels=["server", "number"])
        for number, server in enumerate(reading.servers):
            if (value := getattr(server, name)) is not None:
                family.add_metric([printable(server.url), str(number)], float(value))
        yield family
    counted = CounterMetricFamily(
        "fastgen_server_requests", "Requests, by how they ended.", labels=["server", "number", "result"]
    )
    for number, server in enumerate(reading.servers):
        counted.add_metric([printable(server.url), str(number), "completed"], server.completed)
        counted.add_metric([printable(server.url), str(number), "failed"], server.failed)
    yield counted


def _of_sample(sample: Sample) -> Iterator[Metric]:
    for name, text in _OF_THE_SAMPLE.items():
        if (value := getattr(sample, name)) is not None:
            yield GaugeMetricFamily(_named(name), text, value=value)
    limits = GaugeMetricFamily("fastgen_limited_by", "1 for what limits the run now, 0 for the rest.", labels=["limit"])
    for limit in Limit:
        limits.add_metric([limit.value], float(limit is sample.limit))
    yield limits


def _named(name: str) -> str:
    return "fastgen_" + (
        name.removesuffix("_s") + "_seconds" if name in {"rate_limited_s", "process_cpu_s", "server_s"} else name
    )
