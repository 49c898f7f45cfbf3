"""Carries one answer from the engine to one client, and watches both ends while it does.

Bytes leave as they arrive, in one write per read. A client that doesn't keep up stops the reading from the
engine; one that leaves ends the engine's work at once.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from fairserve.sidecar.messages import LAST_CHUNK, Request, ResponseHead, chunk, client_head
from fairserve.sidecar.refusals import broken_engine_response
from fairserve.sidecar.server import Connection
from fairserve.sidecar.upstream import Exchange, Failure, UpstreamPool

_BODILESS = frozenset({HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value})


class Forwarding:
    """A request that goes to the engine as it is. `ScheduledCall` adds waiting, accounting and stripping."""

    def __init__(
        self, connection: Connection, request: Request, unavailable: Callable[[Request], bytes]
    ) -> None:
        self.connection = connection
        self.request = request
        self._unavailable = unavailable
        self._exchange: Exchange | None = None
        self._chunked = False
        self._reuse = False
        self._begun = False  #: the head has been written to the client

    def send(self, pool: UpstreamPool, data: bytes) -> None:
        """Send the request to the engine."""
        self._exchange = pool.send(data, self, head_only=self.request.method == b"HEAD")
        if self.connection.paused:
            self._exchange.pause()

    # -- from the engine ----------------------------------------------------------------------------

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """Pass on what arrived."""
        parts = []
        if head is not None:
            parts.append(self._begin(head))
        data = self.passing(data, ended=ended)
        if data:
            parts.append(chunk(data) if self._chunked else data)
        if ended:
            self._exchange = None
            if self._chunked:
                parts.append(LAST_CHUNK)
        if parts:
            self.connection.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if ended:
            self.ended()
            self.connection.finished(reuse=self._reuse)

    def failed(self, failure: Failure) -> None:
        """The engine is unreachable or broke off: say so if nothing has been said, else break off as well."""
        self._exchange = None
        self.broke(failure)
        if self._begun:
            self.connection.abort()
            return
        if failure is Failure.UNREACHABLE:
            self.connection.write(self._unavailable(self.request))
        else:
            self.connection.write(broken_engine_response(self.request, reuse=self.request.keep_alive))
        self.connection.finished(reuse=self.request.keep_alive)

    # -- from the client ----------------------------------------------------------------------------

    def client_left(self) -> None:
        """Stop the engine's work."""
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        self.left()

    def client_slow(self) -> None:
        """Stop reading."""
        if self._exchange is not None:
            self._exchange.pause()

    def client_ready(self) -> None:
        """Read on."""
        if self._exchange is not None:
            self._exchange.resume()

    # -- what a scheduled call adds -----------------------------------------------------------------

    def begins(self, head: ResponseHead) -> bool:
        """The answer begins. Whether its length may change on the way."""
        return False

    def passing(self, data: bytes, *, ended: bool) -> bytes:
        """What of the body to pass on."""
        return data

    def ended(self) -> None:
        """The answer was complete."""

    def broke(self, failure: Failure) -> None:
        """The engine failed."""

    def left(self) -> None:
        """The client left before the end."""

    # -- inside -------------------------------------------------------------------------------------

    def _begin(self, head: ResponseHead) -> bytes:
        self._begun = True
        changes = self.begins(head)
        length = None if changes else head.length
        bodiless = head.status in _BODILESS or self.request.method == b"HEAD"
        unframed = length is None and not bodiless
        self._chunked = unframed and not self.request.old_version
        self._reuse = self.request.keep_alive and (not unframed or self._chunked)
        return client_head(head, self.request, chunked=self._chunked, length=length, reuse=self._reuse)
