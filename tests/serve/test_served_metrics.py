"""Counters on the second port, against the requests that were made; the text is read by Prometheus' own parser."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest
import serving
from serving import TALK
from test_leaving import endless, until

parser = pytest.importorskip("prometheus_client.parser")
CHAT = "/v1/chat/completions"
GREEDY: dict[str, Any] = {"messages": TALK, "temperature": 0, "max_tokens": 6}


class Scraped:
    """The samples of one look at /metrics."""

    def __init__(self, file: Path) -> None:
        until(file.exists)
        told = json.loads(file.read_text())
        line = http.client.HTTPConnection(told["url"].removeprefix("http://"), timeout=serving.PATIENCE)
        line.request("GET", "/metrics", headers={"authorization": f"Bearer {told['key']}"})
        answer = line.getresponse()
        self.text, self.type = answer.read().decode(), answer.getheader("content-type")
        line.close()
        assert answer.status == 200
        self.families = list(parser.text_string_to_metric_families(self.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples of a name that have these labels."""
        found = [one for one in self.samples if one.name == f"halter:{name}"]
        return sum(one.value for one in found if labels.items() <= one.labels.items())

    def values(self, label: str) -> set[str]:
        return {one.labels[label] for one in self.samples if label in one.labels}


def test_counts_are_those_of_the_requests(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "admin.json"
    with world.server(admin=file) as server:
        before = Scraped(file)
        assert before.type == "text/plain; version=0.0.4; charset=utf-8" and before.sum("adapters_loaded") == 0
        whole = [server.ask(CHAT, {**GREEDY, "model": name})[2] for name in ("tiny", "lora", "lora", "ia3")]
        whole.append(server.ask(CHAT, {**GREEDY, "model": "tiny", "n": 2, "temperature": 1})[2])
        pair = {"adapters": [{"name": "lora", "weight": 0.5}, {"name": "dora", "weight": 0.5}]}
        whole.append(server.ask(CHAT, {**GREEDY, "model": "tiny", "halter": pair})[2])
        serving.events(server.raw(CHAT, {**GREEDY, "model": "lora", "stream": True}))
        usage = [one["usage"] for one in (*whole, whole[1])]  # the stream is the second one again
        for body in ({**GREEDY, "model": "nobody"}, {**GREEDY, "model": "x" * 64}, {**GREEDY, "model": "nobody-2"}):
            assert server.ask(CHAT, body)[0] == 404
        assert server.ask(CHAT, {"model": "tiny"})[0] == 400
        assert server.ask("/v1/models", host="evil.example")[0] == 403
        until(lambda: Scraped(file).sum("request_errors_total", status="403") == 1)
        after = Scraped(file)
        assert after.sum("prompt_tokens_total") == sum(one["prompt_tokens"] for one in usage)
        assert after.sum("generation_tokens_total") == sum(one["completion_tokens"] for one in usage)
        assert after.sum("generation_tokens_total", adapter="ia3") == usage[3]["completion_tokens"]
        assert after.sum("prefix_cache_queries_total") == after.sum("prompt_tokens_total")
        hits = sum(record["cached_tokens"] for record in server.records)
        assert after.sum("prefix_cache_hits_total") == hits > 0
        ended = [choice["finish_reason"] for one in (*whole, whole[1]) for choice in one["choices"]]
        for reason in ("stop", "length", "abort", "error"):
            assert after.sum("request_success_total", finished_reason=reason) == ended.count(reason)
        assert after.sum("request_success_total", adapter="_base") == 3
        assert after.sum("request_success_total", adapter="_several") == 1
        assert after.sum("request_errors_total", status="404", code="model_not_found") == 3
        assert after.sum("request_errors_total", status="400", code="invalid_request_error") == 1
        assert after.sum("request_errors_total", status="403") == 1 and after.sum("request_errors_total") == 5
        assert after.sum("time_to_first_token_seconds_count") == after.sum("e2e_request_latency_seconds_count") == 7
        whole_time, first_time = (
            after.sum("e2e_request_latency_seconds_sum"),
            after.sum("time_to_first_token_seconds_sum"),
        )
        assert whole_time >= first_time > 0
        assert 0 < after.sum("inter_token_latency_seconds_count") <= after.sum("generation_tokens_total")
        assert after.sum("request_time_per_output_token_seconds_count") == 7
        assert after.sum("num_requests_running") == after.sum("num_requests_waiting") == 0
        assert after.sum("adapters_loaded") == 3
        sizes = {row.name: row.nbytes for row in server.service.adapters.every}
        assert {name: after.sum("adapter_bytes", adapter=name) for name in sizes} == sizes
        # Nothing of a request becomes a label, and a second look tells the same.
        assert after.values("adapter") == {"lora", "ia3", "dora", "_base", "_several"} and after.values(
            "model_name"
        ) == {"tiny"}
        assert "nobody" not in after.text and "xxx" not in after.text and "evil" not in after.text
        assert Scraped(file).text == after.text


def test_what_runs_and_waits_now(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "admin.json"
    with world.server(admin=file, rows=1) as server:
        client, long = server.client(), {**endless(world), "model": "lora"}
        first = client.chat.completions.create(**long, stream=True)
        next(first)
        second = client.chat.completions.create(**long, stream=True)
        until(lambda: Scraped(file).sum("num_requests_waiting") == 1)
        now = Scraped(file)
        assert now.sum("num_requests_running") == 1 and now.sum("adapter_requests_running", adapter="lora") == 2
        second.close()
        first.close()
        until(lambda: Scraped(file).sum("request_errors_total", status="499") == 2)
        assert Scraped(file).sum("request_success_total", finished_reason="abort") == 2
        assert Scraped(file).sum("e2e_request_latency_seconds_count") == 0


def test_a_record_that_cannot_be_kept_is_counted(world: Any, tmp_path: Path) -> None:
    file = tmp_path / "admin.json"

    def full(record: Any) -> None:
        raise OSError("full")

    with world.server(admin=file, keep=full) as server:
        assert server.ask(CHAT, {**GREEDY, "model": "tiny"})[0] == 500
        assert Scraped(file).sum("audit_failures_total") == 1
        assert Scraped(file).sum("request_success_total") == 0


def test_names_beyond_the_first_share_one_series() -> None:
    from halter.serve.metrics import MOST_NAMES, OTHERS, Metrics
    from halter.serve.records import Record
    from halter.serve.trust.tenants import LOCAL

    names = [f"adapter-{number:04}" for number in range(300)]
    metrics = Metrics("tiny", reversed(names))
    for name in names:
        metrics.count(Record("1", CHAT, LOCAL, adapters=[{"name": name}]))
    families = parser.text_string_to_metric_families(metrics.text(0, 0, []).decode())
    labels = {one.labels.get("adapter") for family in families for one in family.samples} - {None}
    assert labels == {*names[:MOST_NAMES], OTHERS}
