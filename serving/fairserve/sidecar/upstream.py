"""HTTP/1.1 towards the engine: a pool of kept connections, answers as they arrive, immediate cancellation.

A request is computed once at most. Connecting is tried again for a bounded time, because nothing has been
sent then. What was sent is sent again only if a kept connection turns out to be one that the engine closed
before it read the request; nothing else is repeated, because the engine may have computed it. It knows
nothing of tenants or scheduling: a `Receiver` is told what arrives.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, Protocol, cast

import httptools

from fairserve.sidecar.messages import Headers, ResponseHead, connection_names
from fairserve.sidecar.options import Address

#: vLLM's server drops an idle connection after 5 s; a shorter time here keeps calls off dying connections.
_IDLE_S: Final = 3.0
#: A longer request takes a new connection: what a kept one carries is held until it is answered.
_MOST_KEPT: Final = 65_536
#: A reset that comes later is rather that of a balancer in between, which forgets connections that are silent
#: for minutes, with the engine computing behind it.
_UNREAD_S: Final = 10.0
_RETRY_S: Final = 0.05
#: What one read may bring is what a stalled client can leave here; the kernel's own choice is megabytes.
_RECEIVE_BYTES: Final = 32_768


class Failure(Enum):
    """How an exchange failed."""

    UNREACHABLE = auto()  #: no connection; nothing was sent
    BROKEN = auto()  #: the engine closed or spoke nonsense after the request was sent
    SILENT = auto()  #: the engine said nothing for too long after the request was sent
    STOPPED = auto()  #: this pod stops, and could not wait any longer


class Receiver(Protocol):
    """Takes the answer to one request."""

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """What arrived at once: the head if it is new, a part of the body, and whether that was all."""

    def failed(self, failure: Failure) -> None:
        """There will be no more."""


class Exchange:
    """One request to the engine and the way to its answer."""

    __slots__ = ("connection", "data", "head_only", "opening", "paused", "receiver")

    def __init__(self, data: bytes, receiver: Receiver, *, head_only: bool) -> None:
        self.data = data
        self.head_only = head_only
        self.receiver: Receiver | None = receiver
        self.connection: UpstreamConnection | None = None
        self.opening: asyncio.Task[None] | None = None
        self.paused = False

    def cancel(self) -> None:
        """Nobody wants the answer: close the connection at once, which makes the engine stop."""
        self.receiver = None
        if self.opening is not None:
            self.opening.cancel()
        if self.connection is not None:
            self.connection.abort()

    def pause(self) -> None:
        """Stop reading the answer."""
        if not self.paused:
            self.paused = True
            if self.connection is not None:
                self.connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.paused:
            self.paused = False
            if self.connection is not None:
                self.connection.resume_reading()


class UpstreamConnection:
    """One connection to the engine. It carries one exchange at a time. An asyncio protocol in all but its
    base, from which a compiled class could not inherit.
    """

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._reason = b""
        self._headers: Headers = []
        self._named: list[bytes] = []  #: headers that concern this connection alone, by its own word
        self._length: bytes | None = None
        self._framed = False  #: the answer says where it ends
        self._head: ResponseHead | None = None
        self._begun = False  #: the head has been given to the receiver
        self._pieces: list[bytes] = []
        self._ended = False
        self._surplus = False
        self._unheard: bytes | None = None  #: what was sent on it, kept, as long as nothing came back
        self._sent_at = 0.0  #: when that was
        self._reusable = False  #: the engine keeps the connection after this answer
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether another exchange may start on it."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange, *, kept: bool) -> None:
        """Send a request. `kept`: the connection has carried another before."""
        assert self._transport is not None
        self._exchange = exchange
        exchange.connection = self
        self._begun = self._ended = self._reusable = False
        self._head = None
        self._unheard = exchange.data if kept else None
        if kept:
            self._sent_at = self._pool.clock()
        self._transport.write(exchange.data)
        exchange.data = b""
        if exchange.paused:
            self.pause_reading()

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._exchange = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Stop reading."""
        if self.usable and self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self.usable and self._transport is not None:
            self._transport.resume_reading()

    # -- events of the transport --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine has accepted."""
        self._transport = cast("asyncio.Transport", transport)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)

    def data_received(self, data: bytes) -> None:
        """Parse, and hand on everything that arrived in one piece."""
        exchange = self._exchange
        if exchange is None:
            self.abort()  # an answer that nobody asked for
            return
        self._unheard = None
        self._pieces = []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break()
            return
        head = None
        if not self._begun and self._head is not None:
            head, self._begun = self._head, True
        pieces = self._pieces
        if head is None and not pieces and not self._ended:
            return
        ended = self._ended
        if ended:
            self._exchange = None
            exchange.connection = None
            self._retire(exchange)
        if exchange.receiver is not None:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            exchange.receiver.received(head, body, ended=ended)

    def eof_received(self) -> bool:
        """The engine has closed its side, which ends the connection. If it had closed both before our request
        came, the kernel has refused that, and says so only when asked.
        """
        if self._unheard is not None and self._transport is not None:
            connected = self._transport.get_extra_info("socket")
            if connected is None or not connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._unheard = None
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine has closed: the end of an answer without framing, else a failure."""
        self._transport = None
        self._pool.forget(self)
        exchange = self._exchange
        if exchange is None:
            return
        if self._begun and not self._framed and exc is None:
            self._exchange = None
            exchange.connection = None
            if exchange.receiver is not None:
                exchange.receiver.received(None, b"", ended=True)
        elif (
            self._unheard is not None
            and (exc is None or isinstance(exc, ConnectionError))
            and self._pool.clock() - self._sent_at <= _UNREAD_S
        ):
            # A kernel resets a connection that is closed with bytes unread, or gets some after its end. An
            # engine that has read all of a request, even one that is killed, leaves the usual end instead.
            exchange.data, self._unheard = self._unheard, None
            self._exchange = None
            exchange.connection = None
            self._pool.send_anew(exchange)
        else:
            self._break()

    # -- events of the parser -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer's first byte; more than one answer to a request is none of ours."""
        self._surplus = self._ended
        self._reason = b""
        self._headers = []
        self._named = []
        self._length = None
        self._framed = False

    def on_status(self, status: bytes) -> None:
        """A part of the reason phrase."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self._head is not None:
            return  # a trailer
        if len(name) == 14 and name.lower() == b"content-length":
            self._length = value
            self._framed = True
        elif len(name) == 17 and name.lower() == b"transfer-encoding":
            self._framed = True
        elif len(name) == 10 and name.lower() == b"connection":
            self._named += connection_names(value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole. Interim answers (1xx) are between the engine and us."""
        status = self._parser.get_status_code()
        if status >= 200:
            headers = self._headers
            if self._named:
                headers = [pair for pair in headers if pair[0].lower() not in self._named]
            self._head = ResponseHead(status, self._reason, headers, self._length)
            if self._exchange is not None and self._exchange.head_only:
                self._ended = True

    def on_body(self, data: bytes) -> None:
        """A part of the body, without its framing."""
        if not self._ended:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._head is not None:
            self._ended = True
            self._reusable = self._parser.should_keep_alive() and not self._surplus

    # -- inside -------------------------------------------------------------------------------------

    def _retire(self, exchange: Exchange) -> None:
        """After a whole answer: keep the connection, unless its state is in doubt."""
        transport = self._transport
        if (
            transport is None
            or exchange.head_only
            or exchange.paused
            or not self._reusable
            or transport.get_write_buffer_size()
        ):
            self.abort()
        else:
            self._pool.keep(self)

    def _break(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._transport is not None:
            self._transport.abort()
        if exchange is not None:
            exchange.connection = None
            if exchange.receiver is not None:
                exchange.receiver.failed(Failure.BROKEN)


class UpstreamPool:
    """Connections to the engine."""

    def __init__(
        self, engine: Address, connect_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._connect_timeout_s = connect_timeout_s
        self.clock = clock
        self._idle: deque[UpstreamConnection] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, data: bytes, receiver: Receiver, *, head_only: bool = False) -> Exchange:
        """Send a request: at once on a kept connection, else on a new one. `head_only`: the answer to HEAD
        has no body, whatever it declares.
        """
        exchange = Exchange(data, receiver, head_only=head_only)
        connection = self._kept() if len(data) <= _MOST_KEPT else None
        if connection is not None:
            connection.start(exchange, kept=True)
        else:
            self.send_anew(exchange)
        return exchange

    def send_anew(self, exchange: Exchange) -> None:
        """Send a request on a new connection."""
        if exchange.receiver is None:
            return
        task = asyncio.get_running_loop().create_task(self._open(exchange))
        exchange.opening = task
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def keep(self, connection: UpstreamConnection) -> None:
        """A connection is free again."""
        connection.idle_since = self.clock()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is closed."""
        if connection.idle_since:
            connection.idle_since = 0.0
            self._idle.remove(connection)

    def reap(self) -> None:
        """Close connections that have been idle for too long. Call it about each second."""
        horizon = self.clock() - _IDLE_S
        while self._idle and self._idle[0].idle_since <= horizon:
            self._idle[0].abort()

    def close(self) -> None:
        """Close what is idle and give up connecting."""
        for task in tuple(self._opening):
            task.cancel()
        while self._idle:
            self._idle[0].abort()

    def _kept(self) -> UpstreamConnection | None:
        horizon = self.clock() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            fresh = connection.idle_since > horizon
            connection.idle_since = 0.0
            if fresh and connection.usable:
                return connection
            connection.abort()
        return None

    def _protocol(self) -> Any:
        return UpstreamConnection(self)

    async def _open(self, exchange: Exchange) -> None:
        connected = await connect(self._protocol, self._engine, self._connect_timeout_s, self.clock)
        exchange.opening = None
        connection = None if connected is None else cast("UpstreamConnection", connected[1])
        if connection is not None and connection.usable and exchange.receiver is not None:
            connection.start(exchange, kept=False)
            return
        if connection is not None:
            connection.abort()
        if exchange.receiver is not None:
            exchange.receiver.failed(Failure.UNREACHABLE)


async def connect(
    protocol: Callable[[], Any], engine: Address, timeout_s: float, clock: Callable[[], float]
) -> tuple[asyncio.Transport, Any] | None:
    """A connection to the engine, tried for again and again until `timeout_s` seconds are over; None then."""
    deadline = clock() + timeout_s
    connected = await _try_to_connect(protocol, engine, deadline - clock())
    while connected is None and clock() + _RETRY_S < deadline:
        await asyncio.sleep(_RETRY_S)
        connected = await _try_to_connect(protocol, engine, deadline - clock())
    return connected


async def _try_to_connect(
    protocol: Callable[[], Any], engine: Address, timeout_s: float
) -> tuple[asyncio.Transport, Any] | None:
    """Nothing is awaited in the handler: a compiled coroutine would leave its exception behind for others."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            return await loop.create_connection(protocol, engine.host, engine.port)
    except (OSError, TimeoutError):
        return None
