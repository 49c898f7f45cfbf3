"""Calls through a real sidecar: what the client sees, what the engine sees, what is accounted."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from fairserve.sidecar.options import Limits
from tests.fakes.engine import (
    DONE,
    FakeEngine,
    Reply,
    Seen,
    answer_at_once,
    answers_after,
    event,
    token_event,
    usage_event,
)
from tests.integration.sidecars import (
    CHAT,
    KEY_A,
    KEY_B,
    KEY_PINNED,
    Client,
    ask,
    document,
    eventually,
    metric,
    running_sidecar,
)


async def test_answer_equals_the_engines(engine, sidecar):
    body = b'{ "model":"m",\n "messages":[], "max_tokens": 5}'
    direct = await ask(engine.port, KEY_A, body)
    proxied = await ask(sidecar.data_address, KEY_A, body)
    assert (proxied.status, proxied.headers, proxied.body) == (direct.status, direct.headers, direct.body)
    assert engine.seen[0].body == engine.seen[1].body == body


async def test_stream_equals_the_engines_and_our_usage_chunk_is_taken_out(engine, sidecar):
    asked = {"model": "m", "messages": [], "stream": True, "max_tokens": 4}
    direct = await ask(engine.port, KEY_A, asked)
    proxied = await ask(sidecar.data_address, KEY_A, asked)
    assert proxied.body == direct.body
    assert b"usage" not in proxied.body
    assert engine.seen[1].fields == {**asked, "stream_options": {"include_usage": True}}
    assert sidecar.scheduler.dump(0.0)["tenants"][0]["service"] > 0
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_tokens_total", tenant="a", kind="output") == 4
    assert metric(text, "fairserve_tokens_total", tenant="a", kind="input") == 10


async def test_usage_chunk_stays_when_the_client_asked_for_it(engine, sidecar):
    asked = {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(asked).encode()
    direct, proxied = await ask(engine.port, KEY_A, body), await ask(sidecar.data_address, KEY_A, body)
    assert proxied.body == direct.body
    assert b'"completion_tokens":3' in proxied.body
    assert engine.seen[1].body == body


async def test_usage_that_the_engine_gives_whoever_asks_stays(engine, sidecar):
    async def force(seen, reply):
        await reply.begin_events()
        for number in range(3):
            usage = {"prompt_tokens": 10, "completion_tokens": number}
            await reply.chunk(event({"choices": [{"index": 0, "delta": {}}], "usage": usage}))
        await reply.chunk(usage_event(10, 2) + DONE)
        await reply.end()

    engine.behaviour = force
    asked = {"messages": [], "stream": True}
    direct, proxied = await ask(engine.port, KEY_A, asked), await ask(sidecar.data_address, KEY_A, asked)
    assert proxied.body == direct.body
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_tokens_total", tenant="a", kind="output") == 2


async def test_stream_arrives_as_it_is_made(engine, sidecar):
    go_on = asyncio.Event()

    async def two_halves(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        await reply.chunk(token_event("first"))
        await go_on.wait()
        await reply.chunk(token_event("second") + usage_event(10, 2) + DONE)
        await reply.end()

    engine.behaviour = two_halves
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {"stream": True})
        assert (await client.head()).status == 200
        assert await client.chunk() == token_event("first")
        go_on.set()
        assert await client.chunk() == token_event("second") + DONE
        assert await client.chunk() == b""


async def test_keep_alive_and_pipelining_answer_in_order(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        for tokens in (1, 2, 3):
            client.call(KEY_A, {"max_tokens": tokens})
        client.send("GET", "/v1/models?x=1")
        answers = [await client.answer() for _ in range(4)]
    assert [a.fields["usage"]["completion_tokens"] for a in answers[:3]] == [1, 2, 3]
    assert answers[3].fields == {"target": "/v1/models?x=1"}


async def test_trace_context_reaches_the_engine_unchanged(engine, sidecar):
    trace = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01", "tracestate": "vendor=1,other=2"}
    await ask(sidecar.data_address, KEY_A, {}, **trace)
    (seen,) = engine.completions
    assert {name: seen.header(name) for name in trace} == trace


async def test_other_paths_pass_without_a_key(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        client.send("PUT", "/anything?a=b&c=%20", {"X-Mine": "1", "x-fairserve-user": "u"}, b"body")
        assert (await client.answer()).fields == {"target": "/anything?a=b&c=%20"}
        client.send("GET", "/health")
        assert (await client.answer()).status == 200
    seen = engine.seen[0]
    assert (seen.method, seen.body, seen.header("x-mine")) == ("PUT", b"body", "1")
    assert seen.header("x-fairserve-user") is None


async def test_engines_error_arrives_unchanged_and_costs_nothing(engine, sidecar):
    direct, proxied = (
        await ask(engine.port, KEY_A, b"{broken"),
        await ask(sidecar.data_address, KEY_A, b"{broken"),
    )
    assert (proxied.status, proxied.headers, proxied.body) == (400, direct.headers, direct.body)
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_requests_total", tenant="a", outcome="failed") == 1
    assert metric(text, "fairserve_service_total", tenant="a") == pytest.approx(0.0)


@pytest.mark.parametrize("key", ["", "wrong", KEY_A + "x"])
async def test_unknown_key_is_401_in_openais_shape(engine, sidecar, key):
    answer = await ask(sidecar.data_address, key, {})
    assert answer.status == 401
    error = answer.fields["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "invalid_api_key",
    )
    assert key == "" or key not in answer.body.decode()
    assert engine.seen == []


async def test_unknown_caller_is_the_default_tenant_where_there_is_one(tmp_path, engine):
    config = document(default_tenant={"name": "_default"})
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        assert (await ask(sidecar.data_address, "wrong", {})).status == 200
        text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_requests_total", tenant="_default", outcome="completed") == 1


@pytest.mark.parametrize("name", ["x-fairserve-tenant", "x-team"])
async def test_identity_header_counts_only_from_a_trusted_proxy(tmp_path, engine, name):
    headers = {name: "b" if name == "x-fairserve-tenant" else "bee"}
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        assert (await ask(sidecar.data_address, "none", {}, **headers)).status == 401
        assert (await ask(sidecar.data_address, KEY_A, {}, **headers)).status == 200
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_requests_total", tenant="a", outcome="completed") == 1
        assert engine.seen[-1].header(name) is None
        identity = document().identity.model_copy(update={"trusted_proxies": ("127.0.0.0/8",)})
        trusting = document(2, identity=identity.model_dump())
        from fairserve.sidecar.configuration import read_document

        sidecar.configure(read_document(trusting.to_bytes()))
        assert (await ask(sidecar.data_address, "none", {}, **headers)).status == 200
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_requests_total", tenant="b", outcome="completed") == 1


async def test_application_is_named_pinned_or_refused(engine, sidecar):
    unknown = await ask(sidecar.data_address, KEY_A, {}, x_fairserve_application="nope")
    assert (unknown.status, unknown.fields["error"]["code"]) == (400, "unknown_application")
    assert "nope" in unknown.fields["error"]["message"]
    assert (await ask(sidecar.data_address, KEY_A, {}, x_fairserve_application="agent")).status == 200
    other = await ask(sidecar.data_address, KEY_PINNED, {}, x_fairserve_application="agent")
    assert other.status == 403
    assert (await ask(sidecar.data_address, KEY_PINNED, {})).status == 200
    text = sidecar.metrics.exposition().decode()
    for application in ("agent", "chat"):
        assert metric(text, "fairserve_requests_total", application=application, outcome="completed") == 1
    assert metric(text, "fairserve_denied_requests_total", code="unknown_application") == 1


@pytest.mark.parametrize(
    "target", [CHAT + "?x=1", "/v1/chat/completion%73", "http://other/v1/chat/completions"]
)
async def test_other_spellings_of_a_path_are_no_way_around(engine, sidecar, target):
    assert (await ask(sidecar.data_address, "wrong", {}, target)).status == 401
    assert engine.seen == []


async def test_client_that_leaves_is_cancelled_in_the_engine_and_pays(engine, sidecar):
    async def endless(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for number in range(7):
            await reply.chunk(token_event(str(number)))
        await asyncio.Event().wait()

    engine.behaviour = endless
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {"stream": True}, target="/v1/completions")
        await client.head()
        received = b""
        while received.count(b"\n\n") < 7:
            received += await client.chunk()
    await eventually(lambda: engine.cut == 1, "the engine notices")
    await eventually(lambda: sidecar.scheduler.running == 0, "the call is settled")
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_requests_total", tenant="a", outcome="cancelled") == 1
    assert metric(text, "fairserve_tokens_total", tenant="a", kind="output") == 7
    assert metric(text, "fairserve_tokens_total", tenant="a", kind="input") > 0


@pytest.mark.parametrize("sends_ahead", [False, True])
async def test_client_that_leaves_the_queue_is_never_computed(tmp_path, engine, sends_ahead):
    """What it sends ahead stops the reading, so that no event tells that it is gone."""
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar:
        first = asyncio.create_task(ask(sidecar.data_address, KEY_A, {"n": 1}))
        await eventually(lambda: sidecar.scheduler.running == 1, "the first call runs")
        async with await Client.connect(sidecar.data_address) as leaver:
            leaver.call(KEY_B, {})
            await eventually(lambda: sidecar.scheduler.queued == 1, "the second call waits")
            if sends_ahead:
                leaver.call(KEY_B, {"messages": ["x" * 100_000]})
                connections = sidecar._server.connections
                await eventually(lambda: any(c._reading_paused for c in connections), "reading is paused")
        await eventually(lambda: sidecar.scheduler.queued == 0, "it has left")
        go_on.set()
        assert (await first).status == 200
    assert len(engine.completions) == 1


async def test_shares_follow_weights_and_a_flow_is_first_come_first_served(tmp_path, engine):
    gate = asyncio.Semaphore(0)
    order: list[tuple[str, int]] = []

    async def wait(seen: Seen, reply: Reply) -> None:
        order.append((seen.fields["who"], seen.fields["number"]))
        await gate.acquire()
        await answer_at_once(seen, reply)

    engine.behaviour = wait
    async with running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar:
        calls = [
            asyncio.create_task(
                ask(sidecar.data_address, KEY_A, {"who": "warm", "number": 0, "max_tokens": 3})
            )
        ]
        await eventually(lambda: len(order) == 1, "the engine is taken")
        for number in range(12):
            for who, key in (("b", KEY_B), ("a", KEY_A)):
                body = {"who": who, "number": number, "max_tokens": 3}
                calls.append(asyncio.create_task(ask(sidecar.data_address, key, body)))
                waiting = len(calls) - 1
                await eventually(lambda: sidecar.scheduler.queued == waiting, "the call waits")  # noqa: B023
        for _ in calls:
            gate.release()
        answers = await asyncio.gather(*calls)
    assert {answer.status for answer in answers} == {200}
    first = [who for who, _ in order[1:13]]
    assert 8 <= first.count("a") <= 10
    for who in ("a", "b"):
        assert [number for name, number in order if name == who] == list(range(12))


async def test_slow_client_holds_a_bounded_buffer_and_gets_everything(engine, sidecar):
    block = b"x" * 65_536
    sent = 0

    async def flood(seen: Seen, reply: Reply) -> None:
        nonlocal sent
        await reply.begin_events()
        for _ in range(400):
            await reply.chunk(block)
            sent += 1
        await reply.end()

    engine.behaviour = flood
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {"stream": True})
        await client.head()
        (connection,) = sidecar._server.connections
        await eventually(lambda: connection.paused, "the client is known to be slow")
        readings: list[int] = []

        def stalled() -> bool:
            readings.append(sent)
            return len(set(readings[-20:])) == 1 and len(readings) >= 20

        await eventually(stalled, "the engine is held up")
        assert sent < 400
        assert connection.paused
        assert connection._transport.get_write_buffer_size() < 1_000_000
        total = 0
        while chunk := await client.chunk():
            total += len(chunk)
    assert total == 400 * len(block)


async def test_unreachable_engine_lets_calls_wait_and_fails_one_with_retry_after(tmp_path):
    async with FakeEngine() as engine:
        port = engine.port
        await engine.close()
        limits = Limits(connect_timeout_s=0.2)
        wait_s = 0.5
        async with running_sidecar(
            tmp_path, port, document(), limits=limits, max_window=1, engine_wait_s=wait_s
        ) as sidecar:
            await eventually(lambda: sidecar.dispatcher.held, "the sidecar knows")
            waiting = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
            await eventually(lambda: sidecar.scheduler.queued == 1, "the call waits")
            sidecar.dispatcher.release()
            refused = await waiting
            assert refused.status == 503
            assert int(refused.header("retry-after") or 0) >= 1
            assert refused.header("x-fairserve-refused-reason") == "engine_unavailable"
            waiting = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
            await eventually(lambda: sidecar.scheduler.queued == 1, "the next call waits")
            await engine.listen(port)
            assert (await waiting).status == 200


async def test_metrics_are_the_engines_and_ours(engine, sidecar):
    await ask(sidecar.data_address, KEY_A, {})
    async with await Client.connect(sidecar.data_address) as client:
        client.send("GET", "/metrics")
        answer = await client.answer()
    text = answer.body.decode()
    assert (answer.header("content-type") or "").startswith("text/plain; version=0.0.4")
    assert metric(text, "vllm:kv_cache_usage_perc") == 0
    assert metric(text, "fairserve_pool_info", pool_namespace="default", pool="llm") == 1
    assert metric(text, "fairserve_requests_total", tenant="a", outcome="completed") == 1
    assert metric(text, "fairserve_queue_wait_seconds_count") == 1


async def scrape(sidecar) -> str:
    async with await Client.connect(sidecar.data_address) as client:
        client.send("GET", "/metrics")
        return (await client.answer()).body.decode()


async def test_calls_that_wait_here_show_in_the_engines_figure(tmp_path, engine):
    go_on, waiting, reason = (
        asyncio.Event(),
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting_by_reason",
    )
    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar:
        calls = [asyncio.create_task(ask(sidecar.data_address, KEY_A, {})) for _ in range(4)]
        await eventually(lambda: sidecar.scheduler.queued == 3, "three calls wait")
        engine.waiting, engine.running = 2, 1
        text = await scrape(sidecar)
        assert metric(text, waiting, engine="0", model_name="fake") == 5
        assert metric(text, reason, reason="capacity") == 5
        assert metric(text, reason, reason="deferred") == 0
        assert metric(text, "vllm:num_requests_running") == 1
        assert metric(text, "fairserve_engine_requests_waiting") == 2
        # The window goes by what the engine says, not by what we make of it.
        await eventually(lambda: sidecar.state()["engine"]["waiting"] == 2, "the sample")
        engine.waiting = 0
        go_on.set()
        await asyncio.gather(*calls)
        assert metric(await scrape(sidecar), waiting) == 0
        port = engine.port
        await engine.close()
        text = await scrape(sidecar)
        await engine.listen(port)
    assert "fairserve_queue_requests" in text
    assert "requests_waiting" not in text


async def test_window_follows_the_engine(tmp_path, engine):
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document(), max_window=32) as sidecar:
        calls = [asyncio.create_task(ask(sidecar.data_address, KEY_A, {})) for _ in range(20)]
        await eventually(lambda: len(engine.completions) == 20, "the window opens while nothing waits inside")
        go_on.set()
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\nvllm:half 1.0\n"])
async def test_engine_that_hangs_does_not_keep_our_metrics_back(tmp_path, said):
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await reader.read()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as hung:
        port = hung.sockets[0].getsockname()[1]
        async with running_sidecar(tmp_path, port, document()) as sidecar:
            sidecar.proxy._metrics_page.timeout_s = 0.05
            text = await asyncio.wait_for(scrape(sidecar), 10.0)
            assert metric(text, "fairserve_engine_up") == 0
            assert "vllm:half" not in text


async def test_who_leaves_before_the_call_was_sent_pays_nothing(tmp_path, engine):
    async with running_sidecar(
        tmp_path, engine, document(), limits=Limits(connect_timeout_s=60.0)
    ) as sidecar:
        await eventually(lambda: sidecar.watch.sample, "the engine is up")
        assert engine._server is not None
        engine._server.close()  # what is connected stays so, but a long call takes a new connection
        client = await Client.connect(sidecar.data_address)
        client.call(KEY_A, {"prompt": "x" * 70_000})
        await eventually(lambda: sidecar.scheduler.running == 1, "the call tries to connect")
        await client.leave()
        await eventually(lambda: sidecar.scheduler.running == 0, "the call is given up")
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_requests_total", tenant="a", outcome="cancelled") == 1
        assert metric(text, "fairserve_tokens_total", tenant="a", kind="input") == 0
        assert metric(text, "fairserve_service_total", tenant="a") == 0
