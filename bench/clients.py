"""Clients that benchmarks send calls with: as cheap as can be, because they share a core with others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast

import httptools

from bench.dummy_engine import ANSWER, DONE

CHAT = b"/v1/chat/completions"


def request(path: bytes, body: bytes, key: int = 7) -> bytes:
    """A call with the API key of tenant number `key`."""
    return (
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-%d\r\nContent-Type: application/json\r\n"
        b"User-Agent: bench\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n%b"
    ) % (path, key, len(body), body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one call; times in seconds since it was sent."""

    status: int
    body: bytes
    first_s: float  #: to the first byte of the body
    total_s: float


class Caller(asyncio.Protocol):
    """One connection: `call` sends a call and waits for its answer, whatever that is."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[Answer] | None = None
        self._began = self._first_s = 0.0
        self.received = 0  #: bytes of the present answer's body

    @classmethod
    async def connect(cls, port: int) -> Caller:
        """Connect to a port of this machine."""
        return (await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port))[1]

    async def call(self, sent: bytes) -> Answer:
        """Send a call. Raises ConnectionError if the connection ends before the answer."""
        if self.transport.is_closing():
            raise ConnectionError("the connection was closed before the call")
        self._answer = asyncio.get_running_loop().create_future()
        self._body, self._first_s, self.received = [], 0.0, 0
        self._began = time.perf_counter()
        self.transport.write(sent)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the connection ended within an answer: {error!r}"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        if not self._body:
            self._first_s = time.perf_counter() - self._began
        self._body.append(data)
        self.received += len(data)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            total_s = time.perf_counter() - self._began
            status = self._parser.get_status_code()
            self._answer.set_result(Answer(status, b"".join(self._body), self._first_s, total_s))
        # A parser of httptools reads one message after another by itself.


class Repeating(asyncio.Protocol):
    """Sends a call, and the next when the dummy engine's answer has come: the cheapest client there is."""

    def __init__(self, sent: bytes, times: list[float]) -> None:
        self.sent, self.times = sent, times
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if ANSWER in self.received:
            if not self.received.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"unexpected answer: {self.received[:200]!r}")
            self.times.append(time.perf_counter() - self.began)
            self.received = b""
            self.send()


class Stalled(asyncio.Protocol):
    """Asks for a stream and reads none of it."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()
        self.transport.write(self.sent)


class Leaving(asyncio.Protocol):
    """Asks for a stream and leaves when told to."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent
        self.received = 0  #: bytes
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if b'"content":"word ' in data and not self.begun.done():
            self.begun.set_result(None)

    def leave(self) -> float:
        """When, on the machine's monotonic clock."""
        now = time.monotonic()
        self.transport.abort()
        return now


class Streaming(asyncio.Protocol):
    """Reads one stream of the dummy engine's to its end."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent
        self.tokens = 0
        self.tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.tokens += data.count(b'"content":"word ')
        self.tail = (self.tail + data)[-64:]
        if DONE in self.tail and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"the stream broke after {self.tokens} tokens"))
