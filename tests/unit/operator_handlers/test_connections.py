"""Calls to control ports over connections that servers close, spoil or hold open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from fairserve_operator.clients.connections import AnswerError, Connections

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers each request with the next of `answers`; None: closes instead. `requests` is what came."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.accepted = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[tuple[Server, Callable[..., object]]]:
    server = Server(*answers)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    connections = Connections("test", connect_timeout_s=5.0)

    async def call(token: str = "t", body: bytes | None = b"{}") -> tuple[int, bytes]:
        return await connections.call("PUT", "127.0.0.1", server.port, "/config", {"Token": token}, body)

    try:
        yield server, call
    finally:
        connections.close()
        for writer in server.writers:
            writer.close()
        listening.close()


async def test_calls_one_after_the_other_share_a_connection() -> None:
    async with serving(OK, OK, OK) as (server, call):
        assert [await call() for _ in range(3)] == [(200, b"{}")] * 3
        assert server.accepted == 1
        expected = (
            f"PUT /config HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUser-Agent: test\r\nToken: t\r\n"
        )
        assert server.requests == [expected.encode() + b"Content-Length: 2\r\n\r\n{}"] * 3


async def test_calls_at_the_same_time_do_not_wait_for_each_other() -> None:
    async with serving(b"", OK) as (server, call):
        hangs = asyncio.ensure_future(call())
        while not server.requests:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await call() == (200, b"{}")
        hangs.cancel()
        assert server.accepted == 2


@pytest.mark.parametrize("answer", [None, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")])
async def test_kept_connection_that_was_closed_is_replaced(answer: bytes | None) -> None:
    async with serving(OK, answer, OK, OK) as (server, call):
        for _ in range(3):
            assert await call() == (200, b"{}")
        assert server.accepted == 2


async def test_answers_may_come_in_pieces_after_a_100_or_chunked() -> None:
    chunked = b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    async with serving(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, chunked) as (_, call):
        assert await call() == (200, b"{}")
        assert await call() == (409, b"{}")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    ],
)
async def test_what_is_no_answer_is_an_error(answer: bytes | None) -> None:
    async with serving(answer) as (_, call):
        with pytest.raises(AnswerError):
            await call()


async def test_half_an_answer_is_an_error_and_not_asked_again() -> None:
    async with serving(OK, OK[:-1]) as (server, call):
        await call()
        half = asyncio.ensure_future(call())
        while len(server.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await server.writers[0].drain()
        server.writers[0].close()
        with pytest.raises(AnswerError, match="within an answer"):
            await half
        assert len(server.requests) == 2


async def test_bytes_that_nobody_asked_for_spoil_the_connection() -> None:
    async with serving(OK + OK, OK) as (server, call):
        assert await call() == (200, b"{}")
        assert await call() == (200, b"{}")
        assert server.accepted == 2


async def test_abandoned_call_leaves_no_answer_for_the_next() -> None:
    async with serving(b"", OK) as (server, call):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(), 0.05)
        assert await call() == (200, b"{}")
        assert server.accepted == 2


@pytest.mark.parametrize("token", ["a\r\nInjected: b", "\x00", "\u20ac"])
async def test_no_header_is_smuggled(token: str) -> None:
    async with serving(OK) as (server, call):
        with pytest.raises(ValueError, match="no header can have"):
            await call(token)
        assert server.requests == []
