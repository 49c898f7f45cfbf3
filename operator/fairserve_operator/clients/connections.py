"""HTTP/1.1 to many small servers, for calls of which a thousand go out at once.

One connection per call in flight, kept for a while after it. A call costs a quarter of what it costs with
aiohttp (`make bench-operator` sends a thousand for every change): there are no redirects, cookies, proxies,
compression or streams here. Answers are read by httptools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, cast

import httptools

#: Connections that nobody used for so long are closed, in seconds.
_KEPT_S = 15.0
#: Bytes of an answer. The state of 10,000 tenants is a few MiB; whoever sends more is no sidecar.
_LONGEST_ANSWER: Final = 16 * 1024 * 1024


class AnswerError(Exception):
    """What came is no answer."""


class _ClosedUnusedError(AnswerError):
    """A connection that was kept had been closed by its server: nothing of an answer came."""


class _Connection(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self) -> None:
        self.reusable = True
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body: list[bytes] = []
        self._length = 0

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if self._transport is None or not self.reusable:
            raise _ClosedUnusedError("the connection was closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._parser, self._body, self._length = None, [], 0
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.close()  # Nobody asked.
            return
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._length += len(data)
        try:
            if self._length > _LONGEST_ANSWER:
                self._fail(AnswerError(f"an answer longer than {_LONGEST_ANSWER} bytes"))
            else:
                self._parser.feed_data(data)
        except httptools.HttpParserError as problem:
            self._fail(AnswerError(f"no HTTP answer: {problem}"))

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.get_status_code() >= 200:
            self.reusable = self.reusable and self._parser.should_keep_alive()
            self._succeed(self._parser.get_status_code())

    def connection_lost(self, problem: Exception | None) -> None:
        self.reusable = False
        if self._parser is None:
            self._fail(_ClosedUnusedError(str(problem or "the connection was closed without an answer")))
        else:
            self._fail(AnswerError(str(problem or "the connection was closed within an answer")))

    def _succeed(self, status: int) -> None:
        if self._answer is None or self._answer.done():
            self.reusable = False  # More than was asked for.
        else:
            self._answer.set_result((status, b"".join(self._body)))

    def _fail(self, problem: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(problem)
        self.close()


class Connections:
    """Connections to any number of servers. Make it and close it within one event loop."""

    def __init__(self, user_agent: str, connect_timeout_s: float) -> None:
        self._user_agent = user_agent
        self._connect_timeout_s = connect_timeout_s
        self._kept: dict[tuple[str, int], list[_Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def call(
        self, method: str, host: str, port: int, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises AnswerError, OSError, TimeoutError for a connection that takes too long, and ValueError for
        headers that can't be sent. A call that is cancelled costs its connection.
        """
        request = self._request(method, host, port, path, headers, body)
        place = host, port
        kept = self._kept.get(place)
        while kept:
            connection = kept.pop()
            try:
                return await self._ask(place, connection, request)
            except _ClosedUnusedError:
                continue
        async with asyncio.timeout(self._connect_timeout_s):
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        return await self._ask(place, connection, request)

    def close(self) -> None:
        """Drop all connections that are not in use."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()

    async def _ask(
        self, place: tuple[str, int], connection: _Connection, request: bytes
    ) -> tuple[int, bytes]:
        done = False
        try:
            answer = await connection.ask(request)
            done = True
        finally:
            if done and connection.reusable:
                self._keep(place, connection)
            else:
                connection.close()
        return answer

    def _keep(self, place: tuple[str, int], connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._kept.setdefault(place, []).append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(_KEPT_S, self._drop_old)

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - _KEPT_S
        for place, connections in list(self._kept.items()):
            for connection in connections:
                if connection.idle_since <= oldest:
                    connection.close()
            connections[:] = [each for each in connections if each.reusable]
            if not connections:
                del self._kept[place]
        self._sweep = loop.call_later(_KEPT_S, self._drop_old) if self._kept else None

    def _request(
        self, method: str, host: str, port: int, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: [{host}]:{port}" if ":" in host else f"Host: {host}:{port}",
            f"User-Agent: {self._user_agent}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if not all(line.isascii() and line.isprintable() for line in lines):
            raise ValueError("the token or another header has characters that no header can have")
        return "\r\n".join((*lines, "\r\n")).encode("ascii") + (body or b"")
