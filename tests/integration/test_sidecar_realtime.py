"""WebSockets to /v1/realtime: who may open one, what passes, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from fairserve.core.calls import UNIT, Usage
from fairserve.core.cost import price, typical_cost, unit_rate
from fairserve.sidecar.options import Limits
from fairserve.sidecar.realtime import BYTES_PER_TOKEN
from tests.fakes.engine import PROMPT_TOKENS, Reply, Seen
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    Client,
    ask,
    control,
    document,
    eventually,
    metric,
    running_sidecar,
)

REALTIME = "/v1/realtime"
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Extensions": "permessage-deflate",
}
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def echo(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
    """Switches, and sends back what it gets."""
    await reply.send(SWITCHING + b"hello,")
    while data := await reader.read(65_536):
        await reply.send(data)
    raise ConnectionResetError


@pytest.fixture
def engine(engine):
    engine.realtime = echo
    return engine


def handshake(client: Client, key: str | None, **more: str) -> None:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    known = {} if key is None else {"Authorization": f"Bearer {key}"}
    client.send("GET", REALTIME, {**HANDSHAKE, **known, **named})


@asynccontextmanager
async def session(sidecar, key: str = KEY_A, **headers: str):
    """An open session of a client."""
    async with await Client.connect(sidecar.data_address) as client:
        handshake(client, key, **headers)
        answer = await client.head()
        assert answer.status == 101
        assert await client.reader.readexactly(6) == b"hello,"
        yield client


def exposed(sidecar, name: str, **labels: str) -> float | None:
    return metric(sidecar.metrics.exposition().decode(), name, **labels)


async def arm(sidecar) -> None:
    word = json.dumps({"armed": True, "lease_s": 60}).encode()
    assert (await control(sidecar, "PUT", "/overload", word)).status == 200


async def test_bytes_pass_both_ways_as_they_come(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        handshake(
            client,
            KEY_A,
            x_fairserve_user="u",
            x_team="bee",
            traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        )
        client.writer.write(b"early ")
        answer = await client.head()
        assert (answer.status, answer.header("upgrade"), answer.header("connection")) == (
            101,
            "websocket",
            "Upgrade",
        )
        assert answer.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert await client.reader.readexactly(12) == b"hello,early "
        for part in (b"\x81\x00", bytes(range(256)) * 2_000):
            client.writer.write(part)
            assert await client.reader.readexactly(len(part)) == part
    (seen,) = engine.seen
    assert (seen.header("upgrade"), seen.header("connection")) == ("websocket", "Upgrade")
    assert seen.header("sec-websocket-key") == HANDSHAKE["Sec-WebSocket-Key"]
    assert seen.header("traceparent") == "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    for stripped in ("x-fairserve-user", "x-team", "sec-websocket-extensions"):
        assert seen.header(stripped) is None


async def test_libraries_on_both_ends_understand_each_other(tmp_path):
    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=0.1)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket

    application = web.Application()
    application.router.add_get(REALTIME, serve)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with running_sidecar(tmp_path, port, document()) as sidecar, aiohttp.ClientSession() as client:
            url = f"http://{sidecar.data_address}{REALTIME}"
            async with client.ws_connect(url, headers={"Authorization": f"Bearer {KEY_A}"}) as socket:
                for text in ("a", "b" * 1_000_000):
                    await socket.send_str(text)
                    assert (await socket.receive_str()) == text.upper()
                await socket.close(code=1000)
                assert socket.close_code == 1000
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_who_is_not_known_gets_401(engine, sidecar, key):
    async with await Client.connect(sidecar.data_address) as client:
        handshake(client, key)
        answer = await client.answer()
        assert (answer.status, answer.fields["error"]["code"]) == (401, "invalid_api_key")
        assert await client.reader.read() == b"", "the connection is closed"
    assert engine.seen == []


async def test_without_configuration_it_is_503(tmp_path, engine):
    async with (
        running_sidecar(tmp_path, engine, None) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        handshake(client, KEY_A)
        answer = await client.answer()
        assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, "not_ready")


async def test_a_session_begins_an_interaction(engine, sidecar):
    await arm(sidecar)
    mine = {"x_fairserve_user": "u", "x_fairserve_interaction_id": "mine"}
    async with session(sidecar, KEY_B, **mine), session(sidecar, KEY_B, x_fairserve_user="u"):
        async with await Client.connect(sidecar.data_address) as client:
            handshake(client, KEY_B, x_fairserve_user="u")
            refused = await client.answer()
            assert (refused.status, refused.header("x-fairserve-refused-reason")) == (
                429,
                "user_interaction_limit",
            )
            assert int(refused.header("retry-after")) >= 1
        async with session(sidecar, KEY_B, **mine):
            assert exposed(sidecar, "fairserve_realtime_sessions") == 3
    assert len(engine.seen) == 3
    labels = {"tenant": "b", "reason": "user_interaction_limit", "mode": "Enforce"}
    assert exposed(sidecar, "fairserve_refused_interactions_total", **labels) == 1


async def test_what_is_sent_is_charged_by_its_size(sidecar):
    sent = 40 * BYTES_PER_TOKEN
    async with session(sidecar, x_fairserve_application="chat") as client:
        client.writer.write(bytes(sent))
        await client.reader.readexactly(sent)
        assert 0 < exposed(sidecar, "fairserve_tokens_total", tenant="a", kind="input") <= 40
        assert sidecar.scheduler.tenant("a").counter > 0
    await eventually(lambda: not sidecar.proxy.sessions, "the session has ended")
    for kind in ("input", "output"):
        assert exposed(sidecar, "fairserve_tokens_total", tenant="a", kind=kind) == 40
    # A typical call has 10 tokens in and 3 out, at twice the price.
    assert exposed(sidecar, "fairserve_service_total", tenant="a") > 5
    assert exposed(sidecar, "fairserve_requests_total", tenant="a", outcome="completed") == 1
    assert sidecar.scheduler.tenant("b").counter == 0


async def test_the_account_holds_sessions_and_calls_alike(sidecar):
    """What a tenant was charged is what its usage costs, no more and no less."""
    settings, sent = sidecar.scheduler.settings, 40 * BYTES_PER_TOKEN
    typical = typical_cost(sidecar.scheduler.profile("chat"), settings.tokens)
    rate = unit_rate(typical, sidecar.scheduler.traffic.value, settings.normalisation)
    async with session(sidecar, x_fairserve_application="chat") as client:
        client.writer.write(bytes(sent))
        await client.reader.readexactly(sent)
        open_now = (await control(sidecar, "GET", "/state")).fields
        assert open_now["realtime_sessions"] == 1
        assert account(sidecar, open_now) > 0
    await eventually(lambda: not sidecar.proxy.sessions, "the session has ended")
    call = {"max_tokens": 7}
    assert (await ask(sidecar.data_address, KEY_A, call, x_fairserve_application="chat")).status == 200
    ended = (await control(sidecar, "GET", "/state")).fields
    assert ended["realtime_sessions"] == 0
    usage = Usage(40 + PROMPT_TOKENS, 40 + 7)
    for kind, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
        assert exposed(sidecar, "fairserve_tokens_total", tenant="a", kind=kind) == count
    assert account(sidecar, ended) == pytest.approx(price(usage, 0, settings.tokens) * rate / UNIT)


def account(sidecar, state: dict) -> float:
    """What tenant a was charged by /state, which its metric says as well."""
    (service,) = [tenant["service"] for tenant in state["tenants"] if tenant["name"] == "a"]
    assert exposed(sidecar, "fairserve_service_total", tenant="a") == pytest.approx(service)
    return service


async def test_a_client_that_leaves_ends_the_engines_side(engine, sidecar):
    gone = asyncio.Event()

    async def wait(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        await reply.send(SWITCHING + b"hello,")
        assert await reader.read() == b"last words"
        gone.set()

    engine.realtime = wait
    async with session(sidecar) as client:
        client.writer.write(b"last words")
        await client.writer.drain()
        client.writer.write_eof()
        await asyncio.wait_for(gone.wait(), 10)
    await eventually(lambda: not sidecar.proxy.sessions, "the session has ended")


async def test_an_engine_that_leaves_ends_the_clients_side(engine, sidecar):
    async def part(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        await reply.send(SWITCHING + b"hello," + b"x" * 1_000_000)
        raise ConnectionResetError

    engine.realtime = part
    async with session(sidecar) as client:
        assert await client.reader.read() == b"x" * 1_000_000, "what it said still arrives"
    await eventually(lambda: not sidecar.proxy.sessions, "the session has ended")


async def test_an_engine_without_the_door_answers_for_itself(engine, sidecar):
    async def refuse(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        await reply.whole(403, b'{"no": "realtime"}')

    engine.realtime = refuse
    async with await Client.connect(sidecar.data_address) as client:
        handshake(client, KEY_A)
        answer = await client.answer()
        assert (answer.status, answer.body, answer.header("x-engine")) == (403, b'{"no": "realtime"}', "fake")
        assert await client.reader.read() == b""
    assert exposed(sidecar, "fairserve_requests_total", tenant="a", outcome="failed") == 1


@pytest.mark.parametrize(
    "said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + bytes(99_999)]
)
async def test_an_engine_that_breaks_off_is_502(engine, sidecar, said):
    async def break_off(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        await reply.send(said)
        raise ConnectionResetError

    engine.realtime = break_off
    async with await Client.connect(sidecar.data_address) as client:
        handshake(client, KEY_A)
        assert (await client.answer()).status == 502
    assert not sidecar.proxy.sessions


async def test_an_engine_that_is_gone_is_503(tmp_path, engine):
    limits = Limits(connect_timeout_s=0.2)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        await engine.close()
        async with await Client.connect(sidecar.data_address) as client:
            handshake(client, KEY_A)
            answer = await client.answer()
            assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, "engine_unavailable")
        await engine.listen(0)


async def test_an_idle_session_is_closed(tmp_path, engine):
    limits = Limits(idle_session_s=0.1)
    async with (
        running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar,
        session(sidecar) as client,
    ):
        assert await asyncio.wait_for(client.reader.read(), 10) == b""
        await eventually(lambda: not sidecar.proxy.sessions, "the session has ended")


@pytest.mark.parametrize("slow", ["engine", "client"])
async def test_a_side_that_does_not_read_stops_the_other(tmp_path, engine, slow):
    stop = asyncio.Event()
    taken = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        while not stop.is_set():
            writer.write(bytes(65_536))
            await writer.drain()
            taken += 65_536

    async def engine_side(seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        await reply.send(SWITCHING + b"hello,")
        await (stop.wait() if slow == "engine" else flood(reply.writer))
        raise ConnectionResetError

    engine.realtime = engine_side
    async with running_sidecar(tmp_path, engine, document()) as sidecar, session(sidecar) as client:
        work = asyncio.create_task(flood(client.writer) if slow == "engine" else stop.wait())
        before = -1
        while taken != before:  # until it stands still: kernel buffers are full, and ours
            before = taken
            await asyncio.sleep(0.5)
        (held,) = sidecar.proxy.sessions
        sides = held._engine, held._client
        assert max(side.get_write_buffer_size() for side in sides) < 1_000_000
        assert taken < 40_000_000
        stop.set()
        work.cancel()


async def test_other_upgrades_are_plain_requests(engine, sidecar):
    engine.realtime = None
    for target, upgrade in (("/v1/models", "websocket"), (REALTIME, "h2c")):
        async with await Client.connect(sidecar.data_address) as client:
            client.send("GET", target, {**HANDSHAKE, "Upgrade": upgrade})
            assert (await client.answer()).status == 200
    assert [seen.header("upgrade") for seen in engine.seen] == [None, None]


async def test_stopping_ends_sessions_after_the_grace(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document()) as sidecar, session(sidecar) as client:
        stopping = asyncio.create_task(sidecar.stop(grace_s=0.2))
        client.writer.write(b"still here")
        assert await client.reader.readexactly(10) == b"still here"
        await stopping
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.reader.readexactly(1)


async def test_no_session_is_opened_while_the_pod_stops(tmp_path, engine):
    """A call over an open connection is served then, but a session has no end that the pod could wait for."""
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        client.send("GET", "/version")
        await client.answer()
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        await eventually(lambda: sidecar.proxy.draining, "it stops")
        handshake(client, KEY_A)
        answer = await client.answer()
        assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, "shutting_down")
        assert int(answer.header("retry-after") or 0) >= 1
        await stopping
    assert not any(seen.target == REALTIME for seen in engine.seen)
