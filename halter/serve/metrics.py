"""Counters of a server in Prometheus' text form, under vLLM's names with ``halter:`` for ``vllm:``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from halter.generation.streaming import Generation
from halter.serve.adapters.held import HeldAdapter
from halter.serve.records import Record

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
MOST_NAMES = 100
"""Adapters that have series of their own, the first by name: every series stays in memory here and at who scrapes."""
BASE, SEVERAL, OTHERS = "_base", "_several", "_others"
"""Of ``adapter`` where no adapter answers, several together, or one beyond MOST_NAMES; no adapter has such a name."""
REASONS = {"stop": "stop", "length": "length", "context": "length", "cancelled": "abort", "error": "error"}
"""vLLM's words for how an answer ended."""
WAITS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
GAPS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Upper bounds in seconds. vLLM's begin at 10 ms between tokens, which small models never reach."""


class Metrics:
    """What became of requests, counted. ``base`` and ``adapters``: the names of the start, the only ones that become
    values of labels. A registry of its own: several servers in one process do not mix. Safe in any thread."""

    def __init__(self, base: str, adapters: Iterable[str]) -> None:
        self._base, self._named = base, frozenset(sorted(adapters)[:MOST_NAMES])
        self._registry = CollectorRegistry()
        self._prompt = self._counter(
            "prompt_tokens", "Tokens of prompts that were answered; once, whatever n.", "adapter"
        )
        self._made = self._counter("generation_tokens", "Tokens of answers.", "adapter")
        self._queries = self._counter("prefix_cache_queries", "Tokens of prompts that might have been computed before.")
        self._hits = self._counter("prefix_cache_hits", "Tokens of prompts that had been computed before.")
        ended = "Answers that ended, by how: stop, length, abort (the client left, or the server stopped), error."
        self._ended = self._counter("request_success", ended, "adapter", "finished_reason")
        refused = "Requests that got an error, or left (499), by status and the error's code, or type without a code."
        self._refused = self._counter("request_errors", refused, "status", "code")
        unkept = "Records of requests that could not be kept, each attempt."
        self._unkept = self._counter("audit_failures", unkept)
        self._first = self._histogram("time_to_first_token", "From a request's body to its first piece of text.", WAITS)
        self._gap = self._histogram("inter_token_latency", "Between two pieces of an answer's text.", GAPS)
        each = "From a request's first piece to its end, for each token after the first of its longest answer."
        self._each = self._histogram("request_time_per_output_token", each, GAPS)
        self._whole = self._histogram("e2e_request_latency", "From a request to its end, of those answered.", WAITS)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"halter:{name}", help, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        seconds = f"halter:{name}_seconds"
        return Histogram(seconds, help, ("model_name",), registry=self._registry, buckets=buckets)

    def count(self, record: Record) -> None:
        """One more request that is over, now."""
        ended, name, base = time.time(), self._label(record), self._base
        if record.status >= 400:
            self._refused.labels(base, str(record.status), record.error).inc(record.times)
        for one in record.answers:
            self._ended.labels(base, name, REASONS[one.finish_reason]).inc()
        self._made.labels(base, name).inc(sum(len(one.tokens) for one in record.answers))
        if record.answers:
            given = sum(map(len, record.prompts))
            self._prompt.labels(base, name).inc(given)
            self._queries.labels(base).inc(given)
            self._hits.labels(base).inc(record.cached_tokens)
        if record.first is not None:
            self._first.labels(base).observe(max(0.0, record.first - record.received))
            self._paces(record.answers, max(0.0, ended - record.first))
        for gap in record.gaps:
            self._gap.labels(base).observe(gap)
        if record.status < 400:
            self._whole.labels(base).observe(max(0.0, ended - record.received))

    def unkept(self) -> None:
        """A record could not be kept."""
        self._unkept.labels(self._base).inc()

    def text(self, running: int, waiting: int, adapters: Iterable[HeldAdapter]) -> bytes:
        """All of it, with answers at work and waiting now, and the ``adapters`` that are in memory."""
        return generate_latest(_Now([self._registry, _Gauges(self._base, running, waiting, adapters)]))

    def _label(self, record: Record) -> str:
        names = [one["name"] for one in record.adapters]
        if len(names) > 1:
            return SEVERAL
        return BASE if not names else names[0] if names[0] in self._named else OTHERS

    def _paces(self, answers: Iterable[Generation], seconds: float) -> None:
        longest = max((len(one.tokens) for one in answers), default=0)
        if longest > 1:
            self._each.labels(self._base).observe(seconds / (longest - 1))


class _Gauges(Collector):
    """What is so now; made anew for each look, so that an adapter that went leaves no series behind."""

    def __init__(self, base: str, running: int, waiting: int, adapters: Iterable[HeldAdapter]) -> None:
        self._base, self._running, self._waiting, self._adapters = base, running, waiting, list(adapters)

    def collect(self) -> Iterator[Metric]:
        yield self._one("num_requests_running", "Answers at work.", self._running)
        yield self._one("num_requests_waiting", "Answers that wait for a slot.", self._waiting)
        size = self._each("adapter_bytes", "Memory of each adapter that is loaded.")
        pins = self._each("adapter_requests_running", "Requests that use each adapter that is loaded.")
        for one in self._adapters:
            size.add_metric([self._base, one.name], one.nbytes)
            pins.add_metric([self._base, one.name], one.pins)
        yield self._one("adapters_loaded", "Adapters that are loaded.", len(self._adapters))
        yield from (size, pins)

    def _one(self, name: str, help: str, value: int) -> Metric:
        family = GaugeMetricFamily(f"halter:{name}", help, labels=("model_name",))
        family.add_metric([self._base], value)
        return family

    def _each(self, name: str, help: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"halter:{name}", help, labels=("model_name", "adapter"))


class _Now(Collector):
    def __init__(self, parts: Iterable[Collector]) -> None:
        self._parts = list(parts)

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            yield from part.collect()
