"""When a call that the engine turned away is sent again, and how it is found out that it was.

A call is sent again only where nothing can have been computed (`engine.admission`), a bounded number of times
with growing pauses. After that the engine's own answer goes to the client.
"""

from __future__ import annotations

from typing import Protocol

from fairserve.engine.admission import MAX_BODY, turned_away
from fairserve.sidecar.messages import ResponseHead
from fairserve.sidecar.upstream import Exchange, Failure

#: How often a call is sent again at most.
MOST_TRIES = 5
#: Seconds that nothing is sent to the engine after it turned a call away; doubled with each try of the call.
FIRST_PAUSE_S = 0.25
#: The engine's Retry-After counts up to this many seconds.
MOST_PAUSE_S = 10.0


def pause_s(tries: int, retry_after: bytes | None, first_s: float = FIRST_PAUSE_S) -> float:
    """Seconds to let the engine be after it turned a call away for the `tries`-th time. Of Retry-After only
    whole seconds are understood.
    """
    pause = first_s * 2.0 ** (tries - 1)
    if retry_after is not None and retry_after.strip().isdigit():
        pause = max(pause, float(retry_after))
    return min(pause, MOST_PAUSE_S)


class Withholder(Protocol):
    """Whose answer is withheld."""

    def turned_away(self, retry_after: bytes | None) -> None:
        """Nothing was computed."""

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """The answer is its client's."""

    def failed(self, failure: Failure) -> None:
        """There will be no answer."""


class WithheldAnswer:
    """Receives an answer that may be a refusal, until that is known."""

    def __init__(self, work: Withholder, exchange: Exchange, head: ResponseHead) -> None:
        self._work = work
        self._exchange = exchange
        self._head = head
        self._body = b""

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """Collect, and judge the whole; what is too long for a refusal is none."""
        self._body += data
        if not ended and len(self._body) <= MAX_BODY:
            return
        if ended and turned_away(self._body):
            self._work.turned_away(self._head.header(b"retry-after"))
            return
        if not ended:
            self._exchange.receiver = self._work
        self._work.received(self._head, self._body, ended=ended)

    def failed(self, failure: Failure) -> None:
        """The engine broke off."""
        self._work.failed(failure)
