"""The control port's connections: how many there may be, who makes room, and how long each may take.

uvicorn serves a connection once it is there. It bounds only how long one is idle after an answer, and a TLS
handshake that goes on is none to it: so connections are accepted here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fairserve.sidecar.options import Address, Limits

_LOG = logging.getLogger(__name__)

#: How long nobody is accepted after that has failed, as for want of file descriptors.
_PAUSE_S = 1.0


class ControlConnection(HttpToolsProtocol):
    """Ends itself if a request is not over in time, or has a head without end."""

    def __init__(self, limits: Limits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.opened = False  #: the TLS handshake, if there is one, is over
        self.known = False  #: its client has shown the control token
        self.gone = asyncio.Event()
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client is there."""
        super().connection_made(transport)
        self.opened = True
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        # The application finds it under `request.state`.
        self.scope["state"]["connection"] = self
        self._in_head, self._head_bytes = True, 0
        self._restart_timer()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        super().on_headers_complete()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._limits.control_timeout_s, self.transport.abort)


class ControlConnections:
    """Accepts connections, TLS handshakes included, up to `Limits.control_connections` of them.

    For one more, the oldest whose client has not shown the control token makes room, whatever it does:
    strangers, however many, don't keep out who has the token, and cut none of its requests. Where all have
    shown it, the one more is closed.
    """

    def __init__(
        self, make: Callable[[], ControlConnection], context: ssl.SSLContext | None, limits: Limits
    ) -> None:
        self._make = make
        self._context = context
        self._limits = limits
        self._open: dict[asyncio.Task[None], ControlConnection] = {}  #: oldest first

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, listening: socket.socket) -> None:
        """Let in who comes, until cancelled; `listening` is closed then."""
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(listening)
                except OSError as error:
                    _LOG.error("the control port can't accept a connection: %s", error.strerror)
                    await asyncio.sleep(_PAUSE_S)
                    continue
                if self._make_room():
                    connection = self._make()
                    task = loop.create_task(self._serve(accepted, connection))
                    self._open[task] = connection
                    task.add_done_callback(lambda ended: self._open.pop(ended, None))
                else:
                    accepted.close()
                # In a crowd nobody waits for the next: calls, and who was just let in, have their turn.
                await asyncio.sleep(0)

    async def close(self) -> None:
        """End those that are still there."""
        tasks = tuple(self._open)
        for task in tasks:
            self._end(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> bool:
        if len(self._open) < self._limits.control_connections:
            return True
        oldest = next((task for task, connection in self._open.items() if not connection.known), None)
        if oldest is None:
            return False
        self._end(oldest)
        return True

    def _end(self, task: asyncio.Task[None]) -> None:
        connection = self._open.pop(task)
        if connection.opened:
            connection.transport.abort()
        else:
            task.cancel()

    async def _serve(self, accepted: socket.socket, connection: ControlConnection) -> None:
        loop, context = asyncio.get_running_loop(), self._context
        # What fails is the handshake, and nobody's business.
        with contextlib.suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else self._limits.control_timeout_s,
            )
            await connection.gone.wait()


def listen(address: Address) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(128)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
