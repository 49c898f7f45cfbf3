"""HTTP/1.1 towards clients: from bytes to whole requests, and back-pressure on the answers.

It reads requests with httptools' strict parser and refuses what could be read in two ways, so that
nothing reaches the engine that we understood differently. Pipelined requests are answered in order, one at
a time. It knows nothing of tenants, scheduling or the engine: a `Handler` is given each request and writes
the answer to the connection.
"""

from __future__ import annotations

import asyncio
import logging
import select
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, Protocol, cast

import httptools

from fairserve.sidecar.messages import Headers, Request
from fairserve.sidecar.options import Address, Limits
from fairserve.sidecar.refusals import INTERNAL, Problem, problem_response

_LOG: Final = logging.getLogger(__name__)

#: How long what a refused client still sends is read and thrown away.
_LINGER_S: Final = 2.0
#: While the server stops, a connection whose last answer did not say that it ends has this long for one more
#: request. Closed at once it would meet that request on its way, and the client would see a reset connection.
_LAST_CALL_S: Final = 1.0
_SWEEP_S: Final = 1.0
#: A body's pieces are joined when there are so many.
_MOST_PIECES: Final = 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Work(Protocol):
    """What goes on for one request. The connection tells it about its client."""

    def client_left(self) -> None:
        """The client is gone; nothing may be written any more."""

    def cut_short(self) -> None:
        """The server stops: end the answer now, and say so where that is possible."""

    def client_slow(self) -> None:
        """Unsent bytes pile up; send no more until `client_ready`."""

    def client_ready(self) -> None:
        """The client takes bytes again."""


class Handler(Protocol):
    """Answers requests."""

    def handle(self, connection: Connection, request: Request) -> Work | None:
        """Begin to answer; None if the answer has been written already."""

    def turned_away(self, connection: Connection, request: Request) -> bytes | None:
        """The whole answer to a request with a long body, whose head is here, if that is enough to turn it
        away; None to read on.
        """


class _Stage(Enum):
    """How far the parser is."""

    IDLE = auto()  #: between requests
    HEAD = auto()  #: a request's head is arriving
    BODY = auto()  #: its body is


class _RejectedError(Exception):
    """Stops the parser inside a callback; the problem is already noted, and `Connection._rejected` set."""


class Connection:
    """One client connection. An asyncio protocol in all but its base, from which a compiled class could not
    inherit.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._stage = _Stage.IDLE
        self._timed: _Stage | None = None  #: the stage that `deadline` was set for
        self._busy = False  #: an answer is being made; what arrives meanwhile waits
        self._closing = False  #: nothing is read any more; what is written still goes out
        #: Bytes are a whole answer, after which nothing more is read.
        self._requests: deque[Request | Problem | bytes] = deque()
        self._work: Work | None = None
        self._unread = b""  #: arrived while an answer is being made
        self._reading_paused = False
        self._advancing = False
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._head_arrived = 0
        self._body: list[bytes] = []
        self._joined = 0  #: pieces of the body that were made of many
        self._body_bytes = 0
        self._most_bytes = 0  #: of the body, before something must be decided
        self._declared: int | None = None
        self._in_body = False
        self._expects = False
        self._awaited = False  #: the client waits to be told to go on, once its request's turn has come
        self._rejected = False  #: a callback has stopped the parser
        self.paused = False  #: the client doesn't keep up with what is written
        self.peer = ""  #: the other side's address, without port
        self.memory: object = None  #: the handler's: what it knows of this connection
        #: When the sweeper calls `timed_out`, on the server's clock; None: never.
        self.deadline: float | None = None

    # -- events of the transport --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.max_buffered_bytes)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self.deadline = self._server.clock() + self._limits.keep_alive_s
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later while an answer is being made."""
        if self._closing:
            return
        if self._busy or self.paused:
            self._unread += data
            if len(self._unread) > self._limits.max_head_bytes:
                self._pause_reading()
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        """The client has closed its side: as with vLLM's own server, that ends the connection."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever works for this client."""
        self._server.forget(self)
        self._closing = True
        self._transport = None
        self.deadline = None
        self._requests.clear()
        self._unread = b""
        self._body = []
        work, self._work = self._work, None
        if work is not None:
            work.client_left()

    def pause_writing(self) -> None:
        """The client doesn't keep up."""
        self.paused = True
        self.deadline = self._server.clock() + self._limits.stall_timeout_s
        if self._work is not None:
            self._work.client_slow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        if self._closing:
            return
        self.deadline = None if self._busy else self._next_deadline()
        if self._work is not None:
            self._work.client_ready()
        else:
            self._advance()

    # -- events of the parser -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._stage = _Stage.HEAD
        self._timed = None
        self._target = b""
        self._headers = []
        self._head_bytes = 0
        self._head_arrived = 0
        self._body = []
        self._joined = 0
        self._body_bytes = 0
        self._most_bytes = self._server.unasked_body_bytes
        self._declared = None
        self._in_body = False
        self._expects = False

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers come here as well and are dropped: nobody expects them."""
        self._head_bytes += len(name) + len(value) + 4
        if self._in_body:
            if self._head_bytes > self._limits.max_head_bytes:
                self._reject_head()
            return
        name = name.lower()
        if name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                self._reject(400, "bad_request", "Transfer-Encoding must be chunked, alone.")
        elif name == b"content-length":
            self._declared = int(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                self._reject(417, "expectation_failed", "Expect may only be 100-continue.")
            self._expects = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: refuse what need not be read, and let a hesitant client go on."""
        self._in_body = True
        self._stage = _Stage.BODY
        if self._head_bytes > self._limits.max_head_bytes:
            self._reject_head()
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._reject(505, "unsupported_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self._headers):
            self._reject(400, "bad_request", "HTTP/1.0 has no Transfer-Encoding.")
        if self._declared is not None and self._declared > self._most_bytes:
            self._judge_body(self._declared)
        if self._expects and version == "1.1":
            self._awaited = True
            if not self._requests and not self._busy:
                self._let_go_on()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._most_bytes:
            self._judge_body(self._body_bytes)
        self._awaited = False
        self._body.append(data)
        if len(self._body) - self._joined >= _MOST_PIECES:
            # Each piece has a head of its own in memory: 64 MiB that come by two bytes would take gigabytes.
            self._body[self._joined :] = [b"".join(self._body[self._joined :])]
            self._joined += 1

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._awaited = False
        keep_alive = self._parser.should_keep_alive()
        if self._parser.should_upgrade():
            # The parser stops here and leaves a body, if there is one, unread.
            keep_alive = False
            if self._declared or any(name == b"transfer-encoding" for name, _ in self._headers):
                self._reject(400, "bad_request", "A request with a body can't ask for an upgrade.")
            if self._parser.get_method() == b"CONNECT":
                self._reject(405, "method_not_allowed", "CONNECT is not spoken here.")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._requests.append(
            Request(
                method=self._parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=body,
                old_version=self._parser.get_http_version() == "1.0",
                keep_alive=keep_alive,
            )
        )
        self._stage = _Stage.IDLE

    # -- for the handler ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send a part of the answer."""
        if self._transport is not None:
            self._transport.write(data)

    def finished(self, *, reuse: bool) -> None:
        """The answer to the current request has been written."""
        self._work = None
        self._busy = False
        if self._transport is None:
            return
        if not reuse:
            self._close(linger=False)
            return
        self.deadline = self._next_deadline()
        self._advance()

    def abort(self) -> None:
        """Break the connection, so that the client sees a truncated answer."""
        self._work = None
        if self._transport is not None:
            self._closing = True
            self._transport.abort()

    def switch(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Let `protocol` take the client's bytes from here on, and tell this one of everything else. The
        transport, and what has arrived already.
        """
        assert self._transport is not None
        self._resume_reading()
        unread, self._unread = self._unread, b""
        self._transport.set_protocol(protocol)
        return self._transport, unread

    def expect(self, seconds: float) -> None:
        """Close if nothing is expected again for that long."""
        self.deadline = self._server.clock() + seconds

    # -- for the server -----------------------------------------------------------------------------

    def cut(self) -> None:
        """End what goes on here, and close."""
        if self._work is not None:
            self._work.cut_short()
        if not self._closing:
            self._close(linger=False)

    def look_after_client(self) -> None:
        """Break off if the client has gone while nothing is read, when no event would tell."""
        if not self._reading_paused or self._transport is None:
            return
        connected = self._transport.get_extra_info("socket")
        if connected is not None:
            watch = select.poll()
            watch.register(connected.fileno(), select.POLLRDHUP)
            if watch.poll(0):
                self._break()

    def timed_out(self) -> None:
        """The deadline has passed: what that means depends on what was waited for."""
        self.deadline = None
        if self._closing or self.paused:
            self._break()
        elif self._stage is _Stage.IDLE:
            self._close(linger=False)
        else:
            self._requests.append(Problem(408, "request_timeout", "The request did not arrive in time."))
            self._advance()

    @property
    def stays(self) -> bool:
        """Whether it may be used again."""
        return not self._server.stopping

    @property
    def in_use(self) -> bool:
        """Whether an answer is being made or a request arrives."""
        return not self._closing and (self._busy or self._stage is not _Stage.IDLE)

    def last_call(self) -> None:
        """The server stops: a client that waits with its next request must not wait long."""
        if not self.in_use and not self._closing:
            self.deadline = self._next_deadline()

    # -- inside -------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        known = len(self._requests)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._unread = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError:
            if not self._rejected:
                raise
        except httptools.HttpParserError as error:
            self._requests.append(Problem(400, "bad_request", f"The request can't be read: {error}."))
        if self._stage is _Stage.HEAD:
            if len(self._requests) == known:  # else some of it belongs to the request before
                self._head_arrived += len(data)
            # A header that never ends reaches no callback.
            if self._head_arrived > self._limits.max_head_bytes:
                self._requests.append(self._head_problem())
        if self._stage is not _Stage.IDLE and self._stage is not self._timed:
            self._timed = self._stage
            self.deadline = self._next_deadline()
        self._advance()

    def _advance(self) -> None:
        """Answer what has arrived, in order, while nothing is being answered."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not (self._busy or self.paused or self._closing):
                if self._requests:
                    self._answer(self._requests.popleft())
                elif self._unread:
                    unread, self._unread = self._unread, b""
                    self._feed(unread)
                else:
                    self._let_go_on()
                    break
            if not self._unread:
                self._resume_reading()
        finally:
            self._advancing = False

    def _let_go_on(self) -> None:
        """Tell a client that has asked first to send its body."""
        if self._awaited:
            self._awaited = False
            self.write(_CONTINUE)

    def _answer(self, request: Request | Problem | bytes) -> None:
        if not isinstance(request, Request):
            if isinstance(request, Problem):
                request = problem_response(None, request, reuse=False, target=self._target)
            self.write(request)
            self._close(linger=True)
            return
        self._busy = True
        self.deadline = None
        try:
            work = self._server.handler.handle(self, request)
        except Exception:  # noqa: BLE001 - one request that can't be handled is no reason to drop others
            _LOG.exception("a request could not be handled")
            self.write(problem_response(request, INTERNAL, reuse=False))
            self._close(linger=True)
            return
        if self._busy:
            self._work = work

    def _next_deadline(self) -> float:
        limits = self._limits
        if self.paused:
            seconds = limits.stall_timeout_s
        elif self._stage is _Stage.IDLE:
            seconds = min(limits.keep_alive_s, _LAST_CALL_S) if self._server.stopping else limits.keep_alive_s
        else:
            seconds = limits.head_timeout_s if self._stage is _Stage.HEAD else limits.body_timeout_s
        return self._server.clock() + seconds

    def _close(self, *, linger: bool) -> None:
        """Send what is written, then close. A client that may still be sending is heard out for a moment,
        so that it sees its refusal and not a reset connection.
        """
        self._closing = True
        self._requests.clear()
        self._unread = b""
        if self._transport is None:
            return
        self._resume_reading()
        if linger and self._transport.can_write_eof():
            self._transport.write_eof()
            self.deadline = self._server.clock() + _LINGER_S
        else:
            self._transport.close()
            self.deadline = self._server.clock() + self._limits.stall_timeout_s

    def _break(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _reject_head(self) -> None:
        self._stop_parsing(self._head_problem())

    def _head_problem(self) -> Problem:
        return Problem(
            431, "headers_too_large", f"Request line and headers exceed {self._limits.max_head_bytes} bytes."
        )

    def _judge_body(self, size: int) -> None:
        """A body is long: refuse it if it is too long, or if whoever sends it is turned away anyhow."""
        self._most_bytes = most = self._limits.max_body_bytes
        if size > most:
            self._reject(413, "body_too_large", f"The body exceeds {most} bytes.")
        head = Request(self._parser.get_method(), self._target, self._headers, b"", keep_alive=False)
        answer = self._server.handler.turned_away(self, head)
        if answer is not None:
            self._stop_parsing(answer)

    def _reject(self, status: int, code: str, message: str) -> None:
        self._stop_parsing(Problem(status, code, message))

    def _stop_parsing(self, answer: Problem | bytes) -> None:
        self._requests.append(answer)
        self._rejected = True
        raise _RejectedError

    def _pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()


class Server:
    """The data port: accepts connections and sweeps over them for what takes too long."""

    def __init__(self, handler: Handler, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.handler = handler
        self.limits = limits
        self.unasked_body_bytes = min(limits.unasked_body_bytes, limits.max_body_bytes)
        self.clock = clock
        self.connections: set[Connection] = set()
        self.stopping = False  #: no connection is promised to outlive the answer that begins now
        self._emptied = asyncio.Event()
        self._server: Any = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, address: Address) -> Address:
        """Listen; the address that was bound. Raises OSError."""
        loop = asyncio.get_running_loop()
        # uvloop's server is none of asyncio's, nor are its sockets a tuple.
        server: Any = await loop.create_server(
            self._protocol, address.host, address.port, backlog=2048, reuse_address=True
        )
        self._server = server
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        bound = server.sockets[0].getsockname()
        return Address(bound[0], bound[1])

    def _protocol(self) -> Any:
        return Connection(self)

    def stop_accepting(self) -> None:
        """Close the listening socket, and in a moment the connections on which nothing goes on."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self.connections):
            connection.last_call()

    def cut(self) -> None:
        """End every answer now."""
        self.stop_accepting()
        for connection in tuple(self.connections):
            connection.cut()

    def abort(self) -> None:
        """Break every connection."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self.connections):
            connection.abort()

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self._emptied.set()

    async def emptied(self) -> None:
        """Wait, after `stop_accepting`, until no connection is left."""
        if self.connections:
            await self._emptied.wait()

    def _sweep(self) -> None:
        now = self.clock()
        for connection in tuple(self.connections):
            if connection.deadline is not None and connection.deadline <= now:
                connection.timed_out()
            else:
                connection.look_after_client()
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
