"""Carries one answer from the engine to one client, and watches both ends while it does.

Bytes leave as they arrive, in one write per read. A client that doesn't keep up stops the reading from the
engine; one that leaves ends the engine's work at once.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fairserve.engine.admission import STATUS
from fairserve.sidecar.messages import LAST_CHUNK, Request, ResponseHead, chunk, client_head
from fairserve.sidecar.refusals import ENGINE_BROKEN, ENGINE_SILENT, STOPPING, Problem, failed_engine_response
from fairserve.sidecar.server import Connection
from fairserve.sidecar.upstream import Exchange, Failure, UpstreamPool

#: What is said of each failure in an answer that has begun.
_PROBLEMS: Final = {Failure.SILENT: ENGINE_SILENT, Failure.STOPPED: STOPPING}
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value})


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
        self._unframed = False  #: the answer's length was not declared, so that more can be said at its end
        self._reuse = False
        self._begun = False  #: the head has been written to the client
        self._unsent = False  #: it was cancelled while nothing of it lay with the engine

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
            if head.status == STATUS and self.withholds(head, data, ended=ended):
                return
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
        """The engine is unreachable or broke off: say so if nothing has been said or it can be said at the
        end, else break off as well.
        """
        self._exchange = None
        problem = _PROBLEMS.get(failure, ENGINE_BROKEN)
        last = self.last_words(problem) if self._begun and self._unframed else None
        self.broke(failure)
        if last is not None:
            words = chunk(last) if last and self._chunked else last
            self.connection.write(words + LAST_CHUNK if self._chunked else words)
            self.connection.finished(reuse=self._reuse)
        elif self._begun:
            self.connection.abort()
        else:
            reuse = self.request.keep_alive
            if failure is Failure.UNREACHABLE or failure is Failure.STOPPED:
                self.connection.write(self._unavailable(self.request))
            else:
                self.connection.write(failed_engine_response(self.request, problem, reuse=reuse))
            self.connection.finished(reuse=reuse)

    # -- from the client ----------------------------------------------------------------------------

    def client_left(self) -> None:
        """Stop the engine's work."""
        self.cancel()
        self.left()

    def cut_short(self) -> None:
        """The pod stops: end the engine's work, and tell the client."""
        self.request.keep_alive = False
        self.cancel()
        self.failed(Failure.STOPPED)

    def cancel(self) -> None:
        """End the engine's work."""
        if self._exchange is not None:
            self._unsent = self._exchange.opening is not None
            self._exchange.cancel()
            self._exchange = None

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

    def withholds(self, head: ResponseHead, data: bytes, *, ended: bool) -> bool:
        """Whether somebody else takes care of this answer, of `STATUS`, whose head has just come."""
        return False

    def last_words(self, problem: Problem) -> bytes | None:
        """What ends an answer that broke off; None where it has no way to say so."""
        return None

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
        self._unframed = unframed = length is None and not bodiless
        self._chunked = unframed and not self.request.old_version
        stays = self.request.keep_alive and self.connection.stays
        self._reuse = stays and (not unframed or self._chunked)
        return client_head(head, self.request, chunked=self._chunked, length=length, reuse=self._reuse)
