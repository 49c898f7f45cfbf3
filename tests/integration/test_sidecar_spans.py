"""Spans of waits as an OpenTelemetry collector gets them, and what a bad collector costs: only spans."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes.collector import FakeCollector, values
from tests.fakes.engine import FULL, answers_after, refuses
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    Client,
    ask,
    control,
    document,
    eventually,
    running_sidecar,
)
from tests.parts.process import free_port

TRACE, PARENT = "ab" * 16, "cd" * 8
BODY = {"max_tokens": 4, "messages": [{"role": "user", "content": "a secret prompt"}]}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Spans are sent soon, and not through anybody's proxy."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def collector():
    async with FakeCollector() as collector:
        yield collector


@pytest.fixture
async def sidecar(tmp_path, engine, collector):
    tenants = [
        {"name": "a", "max_queued_requests": 1, "max_wait_s": 0.5},
        {"name": "b", "per_user": {"count": 1, "window_s": 60}},
    ]
    config = document(tenants=tenants)
    options = {"otlp_endpoint": collector.url, "call_log": tmp_path / "calls", "max_window": 1}
    async with running_sidecar(tmp_path, engine, config, **options) as sidecar:
        yield sidecar


def traceparent(flags: str = "01") -> str:
    return f"00-{TRACE}-{PARENT}-{flags}"


async def arrived(collector: FakeCollector, count: int) -> list[Span]:
    """So many spans, and no more."""
    await eventually(lambda: len(collector.spans) >= count, f"{count} spans")
    assert len(collector.spans) == count
    return collector.spans


def sending() -> bool:
    return any(thread.name.startswith("OtelBatchSpan") for thread in threading.enumerate())


async def test_a_wait_is_a_child_of_the_callers_span(sidecar, collector, engine):
    named = {"x_fairserve_user": "some-person", "x_fairserve_interaction_id": "some-session"}
    named |= {"x_fairserve_application": "chat", "tracestate": "vendor=1"}
    await ask(sidecar.data_address, KEY_A, BODY, traceparent=traceparent(), **named)
    (span,) = await arrived(collector, 1)
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("fairserve.wait", TRACE, PARENT)
    assert span.trace_state == "vendor=1"
    assert engine.completions[0].header("traceparent") == traceparent(), "the engine sees the caller's own"
    told = values(span.attributes)
    wait_s = told.pop("fairserve.queue_wait_s")
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(wait_s * 1e9, abs=2)
    assert told.pop("fairserve.input_tokens_estimate") > 0
    assert told == {
        "fairserve.tenant": "a",
        "fairserve.application": "chat",
        "fairserve.outcome": "dispatched",
    }
    assert collector.resource["service.name"] == "fairserve-sidecar"
    for secret in (KEY_A, "secret prompt", "some-person", "some-session"):
        assert secret.encode() not in collector.told


async def test_a_callers_word_on_sampling_counts(sidecar, collector):
    await ask(sidecar.data_address, KEY_A, BODY, traceparent=traceparent(flags="00"))
    await ask(sidecar.data_address, KEY_A, BODY)
    (span,) = await arrived(collector, 1)
    assert span.parent_span_id == b"", "the one that belongs to no trace"


async def test_each_end_of_a_wait_is_told_to_spans_and_call_log(tmp_path, engine, sidecar, collector):
    go_on = asyncio.Event()

    await ask(sidecar.data_address, "nobody's key", {})
    word = json.dumps({"armed": True, "lease_s": 60}).encode()
    assert (await control(sidecar, "PUT", "/overload", word)).status == 200
    engine.behaviour = answers_after(go_on)
    running = asyncio.create_task(ask(sidecar.data_address, KEY_B, {}))
    await eventually(lambda: sidecar.scheduler.running == 1, "one runs")
    await ask(sidecar.data_address, KEY_B, {})
    late = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
    await eventually(lambda: sidecar.scheduler.queued == 1, "one waits")
    await ask(sidecar.data_address, KEY_A, {})
    await late
    async with await Client.connect(sidecar.data_address) as impatient:
        impatient.call(KEY_A, {})
        await eventually(lambda: sidecar.scheduler.queued == 1, "one waits")
    await eventually(lambda: sidecar.scheduler.queued == 0, "it has left")
    go_on.set()
    await running
    told = [values(span.attributes) for span in await arrived(collector, 5)]
    assert [(each["fairserve.outcome"], each.get("fairserve.refusal_reason")) for each in told] == [
        ("refused", "user_interaction_limit"),
        ("refused", "queue_full"),
        ("evicted", "queue_timeout"),
        ("cancelled", None),
        ("dispatched", None),
    ]
    assert told[2]["fairserve.queue_wait_s"] >= 0.5, "what was evicted waited until then"
    log = tmp_path / "calls"
    await eventually(lambda: len(log.read_text().splitlines()) == 6, "a line for each, and the stranger's")


async def test_a_call_that_the_engine_turned_away_has_one_span_until_it_went_for_good(
    engine, sidecar, collector
):
    sidecar.proxy.first_pause_s = 0.3
    engine.behaviour = refuses(1, FULL)
    assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
    (span,) = await arrived(collector, 1)
    told = values(span.attributes)
    assert told["fairserve.outcome"] == "dispatched"
    assert told["fairserve.queue_wait_s"] >= 0.3 * 0.5, "the pause, less its jitter, is waiting too"


async def test_a_call_that_meets_no_engine(tmp_path, collector):
    options = {"otlp_endpoint": collector.url, "engine_wait_s": 0.2}
    async with running_sidecar(tmp_path, free_port(), document(), **options) as sidecar:
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 503
        (span,) = await arrived(collector, 1)
    told = values(span.attributes)
    reason = told["fairserve.refusal_reason"]
    assert (told["fairserve.outcome"], reason) == ("evicted", "engine_unavailable")


async def test_what_is_left_is_sent_when_it_stops(tmp_path, engine, collector, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    async with running_sidecar(tmp_path, engine, document(), otlp_endpoint=collector.url) as sidecar:
        for _ in range(3):
            await ask(sidecar.data_address, KEY_A, {})
        assert collector.spans == []
        await sidecar.stop()
        assert len(collector.spans) == 3


async def test_a_collector_that_hangs_holds_neither_calls_nor_the_end(
    tmp_path, engine, collector, monkeypatch, caplog
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    collector.answers.clear()
    async with running_sidecar(tmp_path, engine, document(), otlp_endpoint=collector.url) as sidecar:
        await ask(sidecar.data_address, KEY_A, {})
        await eventually(lambda: collector.asked, "it is asked")
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
        # The library alone would wait for thirty seconds.
        async with asyncio.timeout(20):
            await sidecar.stop()
    assert "the last spans are lost" in caplog.text
    collector.answers.set()
    await eventually(lambda: not sending(), "the thread that hung has ended")


async def test_a_collector_that_is_not_there_costs_a_line_now_and_then(tmp_path, engine, caplog):
    options = {"otlp_endpoint": f"http://127.0.0.1:{free_port()}"}
    async with running_sidecar(tmp_path, engine, document(), **options) as sidecar:
        for _ in range(5):
            assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
        await eventually(lambda: "Connection refused" in caplog.text, "it is said")
    await eventually(lambda: not sending(), "it tries no more")
    # The library alone tells of each try, and of each thing that it gives up at the end.
    assert sum(record.name.startswith("opentelemetry") for record in caplog.records) == 1
