"""Connections to the engine that end between two requests, at the level of the sockets themselves."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from fairserve.sidecar.messages import ResponseHead
from fairserve.sidecar.options import Address
from fairserve.sidecar.upstream import Failure, UpstreamPool

REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: engine\r\ncontent-length: 4\r\n\r\nbody"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
WITHIN_S = 10.0


class Collected:
    """What came of one request."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[bytes | Failure] = asyncio.get_running_loop().create_future()
        self._body = b""

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        self._body += data
        if ended:
            self.outcome.set_result(self._body)

    def failed(self, failure: Failure) -> None:
        self.outcome.set_result(failure)

    async def __call__(self) -> bytes | Failure:
        return await asyncio.wait_for(self.outcome, WITHIN_S)


class Engine:
    """An engine that reads and closes only when a test says so."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.connected: list[socket.socket] = []
        host, port = self._listener.getsockname()
        self.pool = UpstreamPool(Address(host, port), 5.0)

    def send(self, data: bytes = REQUEST) -> Collected:
        """Let the pool send a request."""
        collected = Collected()
        self.pool.send(data, collected)
        return collected

    async def accept(self) -> None:
        """Take the next connection."""
        loop = asyncio.get_running_loop()
        connected, _ = await asyncio.wait_for(loop.sock_accept(self._listener), WITHIN_S)
        connected.setblocking(False)
        self.connected.append(connected)

    async def read(self, expected: bytes = REQUEST) -> None:
        """Read a whole request from the newest connection."""
        loop = asyncio.get_running_loop()
        read = b""
        while len(read) < len(expected):
            piece = await asyncio.wait_for(loop.sock_recv(self.connected[-1], 65_536), WITHIN_S)
            assert piece, "the connection ended before the request was whole"
            read += piece
        assert read == expected

    async def answer(self, expected: bytes = REQUEST) -> None:
        """Read a request from the newest connection and answer it."""
        await self.read(expected)
        await asyncio.get_running_loop().sock_sendall(self.connected[-1], ANSWER)

    async def serve_one(self) -> None:
        """Serve a request, after which its connection is kept."""
        first = self.send()
        await self.accept()
        await self.answer()
        assert await first() == b"ok"

    async def close(self) -> None:
        """Leave nothing open."""
        self.pool.close()
        await asyncio.sleep(0.01)
        for opened in (*self.connected, self._listener):
            opened.close()


@pytest.fixture
async def engine():
    engine = Engine()
    yield engine
    await engine.close()


async def until_unread(connected: socket.socket) -> None:
    """Until a request lies in the kernel, where the engine has not read it."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if connected.recv(1, socket.MSG_PEEK):
                    return
            except BlockingIOError:
                await asyncio.sleep(0.001)


async def test_a_request_that_the_engine_closed_on_unread_goes_on_a_new_connection(engine):
    await engine.serve_one()
    second = engine.send()
    await until_unread(engine.connected[0])
    engine.connected[0].close()
    await engine.accept()
    await engine.answer()
    assert await second() == b"ok"


async def test_a_request_that_comes_after_the_engines_end_goes_on_a_new_connection(engine):
    await engine.serve_one()
    engine.connected[0].close()
    second = engine.send()  # before the loop has heard of the end
    await engine.accept()
    await engine.answer()
    assert await second() == b"ok"


async def test_a_request_that_was_read_is_not_sent_again(engine):
    """The negative control: the engine may have computed it."""
    await engine.serve_one()
    second = engine.send()
    await engine.read()
    engine.connected[0].close()
    assert await second() is Failure.BROKEN
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_accept(engine._listener), 0.2)


async def test_a_request_of_whose_answer_something_came_is_not_sent_again(engine):
    await engine.serve_one()
    second = engine.send()
    await until_unread(engine.connected[0])
    engine.connected[0].send(ANSWER[:20])
    engine.connected[0].close()
    assert await second() is Failure.BROKEN


async def test_a_first_request_that_is_closed_on_unread_is_not_sent_again(engine):
    """An engine that does this to a new connection does it to the next one too."""
    first = engine.send()
    await engine.accept()
    await until_unread(engine.connected[0])
    engine.connected[0].close()
    assert await first() is Failure.BROKEN


async def test_it_is_sent_again_once_however_often_the_engine_closes(engine):
    await engine.serve_one()
    second = engine.send()
    await until_unread(engine.connected[0])
    engine.connected[0].close()
    await engine.accept()
    await until_unread(engine.connected[1])
    engine.connected[1].close()
    assert await second() is Failure.BROKEN


async def test_a_large_request_takes_a_new_connection(engine):
    """It would be held until its answer comes, in case the kept one is closed."""
    await engine.serve_one()
    large = REQUEST.replace(b": 4", b": 65536") + bytes(65_532)
    second = engine.send(large)
    await engine.accept()
    await engine.answer(large)
    assert await second() == b"ok"
    assert len(engine.connected) == 2


async def test_who_left_is_not_served_again(engine):
    await engine.serve_one()
    collected = Collected()
    exchange = engine.pool.send(REQUEST, collected)
    await until_unread(engine.connected[0])
    exchange.cancel()
    engine.connected[0].close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_accept(engine._listener), 0.2)
    assert not collected.outcome.done()


async def test_a_reset_that_comes_long_after_is_no_sign_that_nothing_was_read(engine):
    """A balancer between us and the engine resets what has been silent for minutes."""
    await engine.serve_one()
    second = engine.send()
    await engine.read()
    minutes_later = engine.pool.clock() + 120.0
    engine.pool.clock = lambda: minutes_later
    engine.connected[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    engine.connected[0].close()
    assert await second() is Failure.BROKEN
