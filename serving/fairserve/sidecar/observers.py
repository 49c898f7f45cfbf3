"""What is told of a call when it has ended, and to whom. Nobody is told unless something that asks is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fairserve.core.calls import Call, Outcome, Usage
from fairserve.sidecar.messages import Request


@dataclass(frozen=True, slots=True)
class CallTimes:
    """Seconds since the call arrived. None: it did not come so far."""

    wait_s: float | None  #: until it went to the engine, the last time if it was turned away
    first_token_s: float | None  #: until the first token passed; without a stream, the first byte
    duration_s: float


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A call and what became of it."""

    call: Call
    request: Request
    times: CallTimes
    usage: Usage
    outcome: Outcome
    status: int  #: of the answer; 0: its client got none
    reason: str  #: why it was not served; "": there is nothing to say
    waiting: bool  #: it ended in the queue, or before it


class CallObserver(Protocol):
    """Who wants to know."""

    def ended(self, ended: EndedCall) -> None:
        """A call has ended. Returns at once: the event loop waits."""
