"""A realtime session: a WebSocket that a client opens through us, bytes both ways until one side ends it.

Who opens one is identified like any caller, and begins or continues an interaction. What the engine computes
in it can't be read from the bytes for certain, so it is charged by their number (docs/adr/0006-realtime.md);
compression is not agreed on, because it would hide that. A side that doesn't keep up stops the other's
reading, and a session on which nothing passes is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from fairserve.core.calls import Call, Outcome
from fairserve.sidecar.messages import Headers, Request, ResponseHead, client_head, switched_head
from fairserve.sidecar.options import Address, Limits
from fairserve.sidecar.server import Connection
from fairserve.sidecar.upstream import connect

#: The engine's door.
REALTIME = "/v1/realtime"
#: What the client offers here is not passed on.
EXTENSIONS = b"sec-websocket-extensions"
#: Bytes from the client for one token in and one out. vLLM takes 16 kHz PCM16 as base64 in JSON, 43 kB/s, and
#: its realtime models take a position every 80 ms and answer each with a token.
BYTES_PER_TOKEN = 3_400
#: How many tokens are charged at once.
_CHARGED_TOKENS = 16
_HANDSHAKE_TIMEOUT_S = 30.0
#: How long what was sent may take to leave after the other side has gone.
_LINGER_S = 5.0
#: An engine that doesn't switch says why, in as many bytes at most.
_MAX_ANSWER = 65_536


@dataclass(frozen=True, slots=True)
class SessionEvents:
    """Whom a session tells, and what it asks."""

    charge: Callable[[Call, int], None]  #: so many tokens in, and as many out
    ended: Callable[[RealtimeSession, Outcome], None]
    unavailable: Callable[[Request], bytes]  #: the whole answer while the engine can't be reached
    broken: Callable[[Request], bytes]  #: the whole answer where the engine breaks off the handshake


def asks_for_websocket(request: Request) -> bool:
    """Whether it is the beginning of a WebSocket handshake."""
    named = dict(request.headers)
    tokens = named.get(b"connection", b"").lower().split(b",")
    upgrade = named.get(b"upgrade", b"").strip().lower()
    return not request.old_version and upgrade == b"websocket" and b"upgrade" in map(bytes.strip, tokens)


class RealtimeSession:
    """One session. The work of its client's connection."""

    def __init__(
        self, connection: Connection, request: Request, call: Call, limits: Limits, events: SessionEvents
    ) -> None:
        self.call = call
        self._connection = connection
        self._request = request
        self._limits = limits
        self._events = events
        self._client: asyncio.Transport | None = None  #: once the engine has switched
        self._engine: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unpaid_bytes = 0
        self._over = False

    def open(self, engine: Address, handshake: bytes) -> None:
        """Connect to the engine and hand on the handshake."""
        self._opening = asyncio.get_running_loop().create_task(self._open(engine, handshake))

    # -- from the client ----------------------------------------------------------------------------

    def client_left(self) -> None:
        """End the engine's side; what the client sent last still goes out."""
        self._end(Outcome.COMPLETED if self._client is not None else Outcome.CANCELLED)

    def cut_short(self) -> None:
        """End the engine's side; there are no words for it here."""
        self.client_left()

    def client_slow(self) -> None:
        """Read no more from the engine."""
        if self._engine is not None and not self._engine.is_closing():
            self._engine.pause_reading()

    def client_ready(self) -> None:
        """Read on."""
        if self._engine is not None and not self._engine.is_closing():
            self._engine.resume_reading()
        self._touch()

    def from_client(self, data: bytes) -> None:
        """Pass on, and charge."""
        if self._engine is None:
            return
        self._touch()
        self._engine.write(data)
        self._unpaid_bytes += len(data)
        if self._unpaid_bytes >= _CHARGED_TOKENS * BYTES_PER_TOKEN:
            self._charge()

    # -- from the engine ----------------------------------------------------------------------------

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """The engine speaks WebSocket from here on, and so does the client."""
        if self._opening is not None:
            self._opening.cancel()
        self._client, unread = self._connection.switch(_ClientSide(self, self._connection))
        self._connection.write(switched_head(head) + data)
        self._touch()
        if unread:
            self.from_client(unread)

    def answered(self, head: ResponseHead, body: bytes) -> None:
        """The engine has answered, but does not switch."""
        length = b"%d" % len(body)
        answer = client_head(head, self._request, chunked=False, length=length, reuse=False) + body
        self._fail(answer)

    def from_engine(self, data: bytes) -> None:
        """Pass on."""
        self._touch()
        self._connection.write(data)

    def engine_left(self) -> None:
        """Its side is closed."""
        self._engine = None
        if self._client is None:
            self._fail(self._events.broken(self._request))
        elif not self._over:
            self._end(Outcome.COMPLETED)
            self._connection.finished(reuse=False)

    def engine_slow(self) -> None:
        """Read no more from the client."""
        if self._client is not None and not self._client.is_closing():
            self._client.pause_reading()

    def engine_ready(self) -> None:
        """Read on."""
        if self._client is not None and not self._client.is_closing():
            self._client.resume_reading()

    # -- inside -------------------------------------------------------------------------------------

    async def _open(self, engine: Address, handshake: bytes) -> None:
        side = _EngineSide(self, self._limits.max_buffered_bytes)
        clock = asyncio.get_running_loop().time
        connected = await connect(lambda: side, engine, self._limits.connect_timeout_s, clock)
        if connected is None:
            self._fail(self._events.unavailable(self._request))
            return
        transport = connected[0]
        self._engine = transport
        transport.write(handshake)
        await asyncio.sleep(_HANDSHAKE_TIMEOUT_S)
        if self._client is None:
            self._fail(self._events.broken(self._request))

    def _fail(self, answer: bytes) -> None:
        if not self._over:
            self._end(Outcome.FAILED)
            self._connection.write(answer)
            self._connection.finished(reuse=False)

    def _end(self, outcome: Outcome) -> None:
        if self._over:
            return
        self._over = True
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
            asyncio.get_running_loop().call_later(_LINGER_S, engine.abort)
        self._charge()
        self._events.ended(self, outcome)

    def _touch(self) -> None:
        """Something passes: the session is not idle. A client that is slow has another deadline."""
        if not self._connection.paused:
            self._connection.expect(self._limits.idle_session_s)

    def _charge(self) -> None:
        tokens, self._unpaid_bytes = divmod(self._unpaid_bytes, BYTES_PER_TOKEN)
        if tokens:
            self._events.charge(self.call, tokens)


class _ClientSide(asyncio.Protocol):
    """The client's connection after the handshake. All but its bytes is still the server's business."""

    def __init__(self, session: RealtimeSession, connection: Connection) -> None:
        self._session = session
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._session.from_client(data)

    def pause_writing(self) -> None:
        """The client doesn't keep up."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Also where the server has cut it, which tells no work."""
        self._connection.connection_lost(exc)
        self._session.client_left()


class _EngineSide(asyncio.Protocol):
    """The engine's connection: an HTTP answer, and after 101 bytes."""

    def __init__(self, session: RealtimeSession, max_buffered_bytes: int) -> None:
        self._session = session
        self._max_buffered_bytes = max_buffered_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._switched = False
        self._reason = b""
        self._headers: Headers = []
        self._head: ResponseHead | None = None
        self._body = b""
        self._whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The engine has accepted."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._max_buffered_bytes)

    def data_received(self, data: bytes) -> None:
        """Pass on, or parse the answer to the handshake."""
        if self._switched:
            self._session.from_engine(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._head is not None and self._head.status == 101:
                self._switched = True
                self._session.switched(self._head, data[upgrade.args[0] :])
                return
            self._close()
        except httptools.HttpParserError:
            self._close()
        if len(self._body) > _MAX_ANSWER:
            self._close()
        elif self._whole and self._head is not None:
            self._session.answered(self._head, self._body)

    def pause_writing(self) -> None:
        """The engine doesn't keep up."""
        self._session.engine_slow()

    def resume_writing(self) -> None:
        """The engine has caught up."""
        self._session.engine_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine has gone."""
        self._session.engine_left()

    def on_message_begin(self) -> None:
        """An answer's first byte."""
        self._reason = b""
        self._headers = []

    def on_status(self, status: bytes) -> None:
        """A part of the reason phrase."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; other interim answers than 101 are between the engine and us."""
        status = self._parser.get_status_code()
        if status == 101 or status >= 200:
            self._head = ResponseHead(status, self._reason, self._headers)

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._body += data

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._whole = self._head is not None

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
