"""The page at ``--metrics-port``: a run's counters and gauges for Prometheus, all named ``fastgen_…``.

Threads serve it from the newest samples of a hub, so that a scrape costs the run's loop nothing. The figures are as of
the last second. Connections are at most `MOST_CONNECTIONS`, each for one request that must come within `PATIENCE_S`, so
that the page cannot use up the run's open files. Labels hold no secrets: servers are named without credentials.
Counters start anew with each session, except for those of the ledger, which continue.

A page that listens on the loopback answers only requests whose Host header names this machine. A browser sends the name
that it used for the server, so a site whose own name points at 127.0.0.1 is refused ("DNS rebinding").
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fastgen.errors import InputError
from fastgen.telemetry.figures import Limit, Sample, ServerSample
from fastgen.telemetry.instruments import BOUNDS_S, Instruments
from fastgen.text import printable

if TYPE_CHECKING:
    from fastgen.telemetry.monitor import MetricsHub


MOST_CONNECTIONS: Final = 16
PATIENCE_S: Final = 5.0
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


@contextmanager
def metrics_page(hub: MetricsHub, host: str, port: int, *, patience_s: float = PATIENCE_S) -> Iterator[int]:
    """The page at ``http://host:port/metrics`` until the block ends. Yields the port (0 asks for any that is free).

    :raises InputError: it is not possible to listen there.
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
    """A thread for each of a few connections. Any further one is closed at once."""

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
        """Ignore a connection that broke."""


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


_COUNTERS: Final = {
    "completions": "Completions committed.",
    "prompt_tokens": "Tokens read by the servers, as they state them.",
    "generated_tokens": "Tokens generated, as the servers state them.",
    "kept": "Instructions that passed every filter.",
    "complete": "Kept instructions with at least one valid instance.",
}
_SESSION_COUNTERS: Final = {
    "rate_limited_s": ("rate_limited_seconds", "Seconds for which rate limits held requests back."),
    "process_cpu_s": ("process_cpu_seconds", "CPU seconds of fastgen's process."),
    "server_s": ("server_seconds", "Seconds of servers in use, together."),
    "batches": ("batches", "Batches of answers committed."),
}
_GAUGES: Final = {
    "target": ("target", "Complete instructions asked for."),
    "pending": ("pending", "Kept instructions whose instances are still to come."),
    "in_flight": ("in_flight", "Completions in flight."),
    "concurrency": ("concurrency", "Limit of completions in flight."),
    "waiting_retries": ("waiting_retries", "Requests that wait for another attempt."),
    "queued_answers": ("queued", "Answers that wait to be judged."),
    "rss_mb": ("rss_mb", "Memory in RAM, in MB."),
    "session_s": ("session_seconds", "Age of this session, since its servers answered."),
}
_WINDOW_GAUGES: Final = {
    "loop_lag_mean_ms": "How late the event loop's timers were, on average over the last sample, in ms.",
    "loop_lag_max_ms": "The same, the latest of them.",
    "kept_per_1000_tokens": "Kept instructions per 1,000 generated tokens over the yield window.",
    "complete_per_1000_tokens": "Complete instructions per 1,000 generated tokens over the yield window.",
    "novelty": "Kept instructions per 1,000 tokens of the instruction stage over the yield window.",
}
_RATES: Final = {
    "complete_per_min": "Complete instructions a minute, as the live line shows them.",
    "generated_tokens_per_s": "Generated tokens a second, as the live line shows them.",
    "kept_per_server_s": "Kept instructions per second of a server, as the live line shows them.",
}
_SERVER_GAUGES: Final = {
    "healthy": "1 while the server is in use.",
    "in_flight": "Completions in flight at the server.",
    "limit": "How many completions it is meant to have in flight.",
    "running": "Sequences that the server runs, as the server states.",
    "waiting": "Sequences in the server's queue, as the server states.",
    "kv_cache_usage": "Share of the server's KV cache in use, 0..1.",
}
_COMMIT_PARTS: Final = ("judge", "append", "apply", "sync")


class RunCollector(Collector):
    """Turns a hub's newest figures into metric families. There are none before the first."""

    def __init__(self, hub: MetricsHub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """All families. Called by a scrape, in its thread."""
        if (now := self._hub.reading) is not None:
            yield from _run_families(now)
            yield from _session_families(now.counters or Instruments())
            yield from _server_families(now.servers)
            for name, text in _RATES.items():
                yield GaugeMetricFamily(f"fastgen_{name}", text, value=getattr(self._hub.rates, name))
            if (eta_s := self._hub.rates.eta_s) is not None:
                text = "Seconds until the target is reached, at the rate of complete instructions."
                yield GaugeMetricFamily("fastgen_eta_seconds", text, value=eta_s)
        if (window := self._hub.latest) is not None:
            yield from _window_families(window)


def _run_families(now: Sample) -> Iterator[Metric]:
    for field, text in _COUNTERS.items():
        yield CounterMetricFamily(f"fastgen_{field}", text, value=getattr(now, field))
    for field, (name, text) in _GAUGES.items():
        yield GaugeMetricFamily(f"fastgen_{name}", text, value=getattr(now, field))
    if now.method:
        family = GaugeMetricFamily("fastgen_run", "1, with the name of the run's method.", labels=["method"])
        family.add_metric([printable(now.method)], 1.0)
        yield family
    if written := now.kept + sum(now.rejected.values()):
        text = "Kept share of the instructions written, since the start of the run."
        yield GaugeMetricFamily("fastgen_acceptance", text, value=now.kept / written)
    yield _by_label("rejected", "Instructions rejected, by rule.", "rule", now.rejected)
    yield _by_label("faults", "Faults of requests, by kind.", "kind", now.faults)


def _session_families(counters: Instruments) -> Iterator[Metric]:
    for field, (name, text) in _SESSION_COUNTERS.items():
        yield CounterMetricFamily(f"fastgen_{name}", text, value=getattr(counters, field))
    threads = {"loop": counters.loop_cpu_s, "judge": counters.judge_cpu_s}
    yield _by_label("thread_cpu_seconds", "CPU seconds of a thread.", "thread", threads)
    parts = {part: getattr(counters, f"{part}_s") for part in _COMMIT_PARTS}
    yield _by_label("commit_seconds", "Seconds of committing, by part.", "part", parts)
    text = "Seconds from sending a request to the last byte of a good answer, by step."
    latencies = HistogramMetricFamily("fastgen_request_seconds", text, labels=["stage"])
    for step, latency in counters.latencies.items():
        if any(latency.counts):
            bounds = (*map(str, BOUNDS_S), "+Inf")
            buckets = [*zip(bounds, map(float, accumulate(latency.counts)), strict=True)]
            latencies.add_metric([step], buckets, latency.total_s)
    yield latencies


def _by_label(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"fastgen_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([printable(key)], value)
    return family


def _server_families(servers: Sequence[ServerSample]) -> Iterator[Metric]:
    for name, text in _SERVER_GAUGES.items():
        family = GaugeMetricFamily(f"fastgen_server_{name}", text, labels=["server", "number"])
        for number, server in enumerate(servers):
            if (value := getattr(server, name)) is not None:
                family.add_metric([printable(server.url), str(number)], float(value))
        yield family
    labels = ["server", "number", "result"]
    counted = CounterMetricFamily("fastgen_server_requests", "Requests, by how they ended.", labels=labels)
    for number, server in enumerate(servers):
        counted.add_metric([printable(server.url), str(number), "completed"], server.completed)
        counted.add_metric([printable(server.url), str(number), "failed"], server.failed)
    yield counted


def _window_families(window: Sample) -> Iterator[Metric]:
    for name, text in _WINDOW_GAUGES.items():
        yield GaugeMetricFamily(f"fastgen_{name}", text, value=getattr(window, name))
    limits = GaugeMetricFamily("fastgen_limited_by", "1 for what limits the run now, 0 for the rest.", labels=["limit"])
    for limit in Limit:
        limits.add_metric([limit.value], float(limit is window.limit))
    yield limits
