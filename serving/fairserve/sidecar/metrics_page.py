"""`GET /metrics` of the data port: the engine's text with ours behind it, in one scrape.

Endpoint pickers read it twenty times a second, from each pod. Our text is written in the event loop that
carries the calls, and with a thousand tenants that takes ten milliseconds and more: one just written is
given again, until writing costs no more than a small share of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from fairserve.engine.waiting import with_waiting
from fairserve.sidecar.forwarding import Forwarding
from fairserve.sidecar.messages import Request, ResponseHead, own_response
from fairserve.sidecar.metrics import CONTENT_TYPE
from fairserve.sidecar.server import Connection
from fairserve.sidecar.upstream import Failure, UpstreamPool

#: Our text serves for so many times as long as it took to write,
_REUSE: Final = 20.0
#: and for so many seconds at most.
_OLDEST_S: Final = 1.0
#: An engine that hangs says nothing; ours is wanted most just then, and a scrape must not take ten seconds.
_ENGINE_TIMEOUT_S: Final = 2.0

_ENGINE_WAITING: Final = """\
# HELP fairserve_engine_requests_waiting Calls that wait inside the engine, by its own word.
# TYPE fairserve_engine_requests_waiting gauge
fairserve_engine_requests_waiting {waiting}
"""


class MetricsPage:
    """What to answer."""

    def __init__(
        self,
        ours: Callable[[], bytes],
        queued: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """`ours` writes our text, `queued` tells how many calls wait here, `spent` seconds of a core."""
        self._ours = ours
        self._queued = queued
        self._clock = clock
        self._spent = spent
        self.timeout_s = _ENGINE_TIMEOUT_S  #: how long the engine may take
        self._written = b""
        self._until: float | None = None

    def text(self, engine_text: bytes) -> bytes:
        """The whole page, where the engine says this; b"" where it says nothing."""
        if engine_text and not engine_text.endswith(b"\n"):
            engine_text += b"\n"
        merged, waiting = with_waiting(engine_text, self._queued())
        own = b"" if waiting is None else _ENGINE_WAITING.format(waiting=waiting).encode()
        return merged + own + self._own_text()

    def _own_text(self) -> bytes:
        if self._until is None or self._clock() >= self._until:
            began = self._spent()
            self._written = self._ours()
            self._until = self._clock() + min(_OLDEST_S, _REUSE * (self._spent() - began))
        return self._written


class MetricsAnswer(Forwarding):
    """The engine's metrics with ours behind them; ours alone if the engine has none, or not in time."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        unavailable: Callable[[Request], bytes],
        page: MetricsPage,
    ) -> None:
        super().__init__(connection, request, unavailable)
        self._page = page
        self._timer: asyncio.TimerHandle | None = None
        self._status = 0
        self._text: list[bytes] = []

    def send(self, pool: UpstreamPool, data: bytes) -> None:
        """Ask the engine, and don't wait for it for long."""
        self._timer = asyncio.get_running_loop().call_later(self._page.timeout_s, self._give_up)
        super().send(pool, data)

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """Collect."""
        if head is not None:
            self._status = head.status
        self._text.append(data)
        if ended:
            self._exchange = None
            self._answer(b"".join(self._text) if self._status == 200 else b"")

    def failed(self, failure: Failure) -> None:
        """The engine has nothing to say."""
        self._exchange = None
        self._answer(b"")

    def left(self) -> None:
        """Nobody wants to know."""
        self._forget_timer()

    def _give_up(self) -> None:
        self.cancel()
        self.failed(Failure.SILENT)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _answer(self, engine_text: bytes) -> None:
        self._forget_timer()
        reuse = self.request.keep_alive
        headers = [(b"content-type", CONTENT_TYPE.encode())]
        body = self._page.text(engine_text)
        self.connection.write(own_response(self.request, 200, b"OK", headers, body, reuse=reuse))
        self.connection.finished(reuse=reuse)
