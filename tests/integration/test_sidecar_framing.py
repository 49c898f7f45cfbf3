"""Requests that could be read in two ways, are too large or too slow: refused, and never in the engine."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from fairserve.sidecar.options import Limits
from tests.fakes.engine import FakeEngine
from tests.integration.sidecars import CHAT, KEY_A, Client, ask, document, eventually, metric, running_sidecar

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY_A}\r\n".encode()
LIMITS = Limits(max_head_bytes=4096, max_body_bytes=10_000, head_timeout_s=0.3, body_timeout_s=0.3)


@pytest.fixture
async def engine():
    async with FakeEngine() as engine:
        yield engine


@pytest.fixture
async def sidecar(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document(), limits=LIMITS) as sidecar:
        yield sidecar


async def raw(sidecar, data: bytes):
    """The first answer to raw bytes; the connection must then be closed."""
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(data)
        answer = await client.answer()
        assert answer.header("connection") == "close"
        assert await client.reader.read() == b""
        return answer


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"Content-Length: +2\r\n\r\n{}",
        b"Content-Length: 2, 2\r\n\r\n{}",
        b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        b"X-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        b"X-Bare: a\nContent-Length: 2\r\n\r\n{}",
        b"X-Nul: a\0b\r\nContent-Length: 2\r\n\r\n{}",
        b"X-Space : a\r\nContent-Length: 2\r\n\r\n{}",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_ambiguous_framing_is_400(engine, sidecar, rest):
    assert (await raw(sidecar, HEAD + rest)).status == 400
    assert engine.seen == []


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_chunked_is_for_1_1_only(engine, sidecar, version):
    data = HEAD.replace(b"HTTP/1.1", version) + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(data)
        status = (await client.answer()).status
    assert status == (400 if version == b"HTTP/1.0" else 200)
    assert [seen.body for seen in engine.seen] == ([] if version == b"HTTP/1.0" else [b"{}"])


async def test_trailers_are_dropped(engine, sidecar):
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Fairserve-User: u\r\nX-T: 1\r\n\r\n"
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(data)
        assert (await client.answer()).status == 200
    assert engine.seen[0].header("x-t") is None


async def test_old_version_gets_an_unchunked_stream_and_a_closed_connection(engine, sidecar):
    body = b'{"stream": true, "max_tokens": 2}'
    expected = await ask(engine.port, KEY_A, body)
    async with await Client.connect(sidecar.data_address) as client:
        head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
        client.writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = await client.answer()
    assert answer.header("transfer-encoding") is None
    assert answer.body == expected.body


@pytest.mark.parametrize(
    "head", [b"X-Long: " + b"x" * 5000 + b"\r\n\r\n", b"X-Long: " + b"x" * 9000, b"A: b\r\n" * 900]
)
async def test_large_head_is_431(engine, sidecar, head):
    assert (await raw(sidecar, HEAD + head)).status == 431
    assert engine.seen == []


async def test_long_target_is_431(engine, sidecar):
    assert (await raw(sidecar, b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n")).status == 431


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 10001\r\n\r\n",
        b"Content-Length: 10001\r\nExpect: 100-continue\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n" + b"1388\r\n" + b"x" * 5000 + b"\r\n1389\r\n" + b"x" * 5001,
    ],
)
async def test_large_body_is_413(engine, sidecar, rest):
    assert (await raw(sidecar, HEAD + rest)).status == 413
    assert engine.seen == []


async def test_refused_client_that_goes_on_sending_still_sees_why(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(HEAD + b"Content-Length: 50000000\r\n\r\n")
        for _ in range(50):
            client.writer.write(b"x" * 65_536)
        assert (await client.answer()).status == 413


UNASKED = Limits(unasked_body_bytes=4_000, body_timeout_s=5.0)
LONG = 1_000_000
FRAMED = {
    "declared": b"Content-Length: %d\r\n\r\n" % LONG,
    "hesitant": b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % LONG,
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % LONG + b"x" * 4_001,
}


@asynccontextmanager
async def unasked_for_more(tmp_path, engine, config):
    async with running_sidecar(tmp_path, engine, config, limits=UNASKED) as sidecar:
        yield sidecar
    assert engine.seen == []


@pytest.mark.parametrize("rest", FRAMED.values(), ids=FRAMED)
async def test_strangers_long_body_is_not_waited_for(tmp_path, engine, rest):
    stranger = HEAD.replace(KEY_A.encode(), b"nobodys")
    async with unasked_for_more(tmp_path, engine, document()) as sidecar:
        answer = await raw(sidecar, stranger + rest)
        assert (answer.status, answer.fields["error"]["code"]) == (401, "invalid_api_key")
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_denied_requests_total", code="invalid_api_key") == 1


@pytest.mark.parametrize("rest", FRAMED.values(), ids=FRAMED)
async def test_long_body_is_not_waited_for_before_there_is_a_configuration(tmp_path, engine, rest):
    async with unasked_for_more(tmp_path, engine, None) as sidecar:
        answer = await raw(sidecar, HEAD + rest)
        assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, "not_ready")
        assert answer.header("retry-after") is not None


async def test_callers_long_bodies_arrive_whole_and_so_do_those_that_cost_nothing(tmp_path, engine):
    body = b"{" + b" " * 8_998 + b"}"
    chunks = [b"bb8\r\n%b\r\n" % body[at : at + 3_000] for at in (0, 3_000, 6_000)]
    chunked = b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"
    free = HEAD.replace(CHAT.encode(), b"/tokenize").replace(KEY_A.encode(), b"nobodys")
    async with running_sidecar(tmp_path, engine, document(), limits=UNASKED) as sidecar:
        for data in (HEAD + chunked, free + chunked, HEAD + b"Content-Length: 9000\r\n\r\n" + body):
            async with await Client.connect(sidecar.data_address) as client:
                client.writer.write(data)
                assert (await client.answer()).status == 200
    assert [seen.body for seen in engine.seen] == [body] * 3


async def test_calls_before_a_strangers_long_body_are_answered(tmp_path, engine):
    stranger = HEAD.replace(KEY_A.encode(), b"nobodys")
    async with (
        running_sidecar(tmp_path, engine, document(), limits=UNASKED) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        client.writer.write((HEAD + b"Content-Length: 2\r\n\r\n{}") * 2 + stranger + FRAMED["declared"])
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 401]
        assert await client.reader.read() == b""
    assert len(engine.completions) == 2


async def test_hesitant_client_is_told_to_continue(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.head()).status == 100
        client.writer.write(b"{}")
        assert (await client.answer()).status == 200
    assert engine.seen[0].header("expect") is None


async def test_hesitant_client_is_told_to_continue_when_its_turn_has_come(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        hesitant = HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        client.writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}" + hesitant)
        assert (await client.answer()).status == 200
        assert (await client.head()).status == 100
        client.writer.write(b"{}")
        assert (await client.answer()).status == 200


async def test_client_that_hesitates_before_nothing_is_not_told_afterwards(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        nothing = HEAD + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n"
        client.writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}" + nothing)
        assert [(await client.answer()).status for _ in range(2)] == [200, 400], "no body is no JSON"
        client.writer.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
        assert (await client.answer()).status == 200


async def test_a_body_in_tiny_pieces_takes_little_more_than_its_size(tmp_path, engine):
    pieces = 50_000
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        client.writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\n  \r\n" * pieces)
        await eventually(
            lambda: any(c._body_bytes == 2 * pieces for c in sidecar._server.connections), "all have come"
        )
        [body] = [connection._body for connection in sidecar._server.connections]
        assert len(body) < 1024 + pieces / 1000
        client.writer.write(b"2\r\n{}\r\n0\r\n\r\n")
        assert (await client.answer()).status == 200
    assert engine.completions[0].body == b"  " * pieces + b"{}"


@pytest.mark.parametrize("data", [HEAD, HEAD + b"Content-Length: 2\r\n\r\n{"])
async def test_slow_sender_is_408(engine, sidecar, data):
    assert (await raw(sidecar, data)).status == 408
    assert engine.seen == []


async def test_pipelined_requests_before_a_bad_one_are_answered(engine, sidecar):
    good = HEAD + b"Content-Length: 2\r\n\r\n{}"
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write(good + good + b"NONSENSE\r\n\r\n")
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.reader.read() == b""
    assert len(engine.completions) == 2


async def test_flood_of_pipelined_requests_is_held_back(engine, sidecar):
    release = asyncio.Event()

    async def wait(seen, reply):
        await release.wait()
        await reply.whole(200, b"{}")

    engine.behaviour = wait
    async with await Client.connect(sidecar.data_address) as client:
        client.writer.write((HEAD + b"Content-Length: 2\r\n\r\n{}") * 20_000)
        await eventually(lambda: engine.completions, "the first is answered")
        (connection,) = sidecar._server.connections
        await eventually(lambda: connection._reading_paused, "reading is paused")
        assert len(connection._unread) < 1_000_000
        assert len(connection._requests) < 10_000
        release.set()
        assert (await client.answer()).status == 200


async def test_byte_by_byte_request_is_understood(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        for byte in HEAD + b"Content-Length: 2\r\n\r\n{}":
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert (await client.answer()).status == 200
    assert engine.seen[0].body == b"{}"


async def test_head_request_has_no_body(engine, sidecar):
    async with await Client.connect(sidecar.data_address) as client:
        client.send("HEAD", "/v1/models")
        head = await client.head()
        assert head.header("content-length") == str(len(b'{"target": "/v1/models"}'))
        client.call(KEY_A, {})
        assert (await client.answer()).status == 200


async def test_connect_and_unknown_versions_are_refused(engine, sidecar):
    assert (await raw(sidecar, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")).status == 405
    assert (await raw(sidecar, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n")).status == 505
    assert (await raw(sidecar, HEAD + b"Expect: tea\r\nContent-Length: 2\r\n\r\n{}")).status == 417
    assert engine.seen == []
