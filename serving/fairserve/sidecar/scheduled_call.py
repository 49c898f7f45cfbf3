"""One call that costs tokens: it waits for its turn, is forwarded, and pays for what the engine computed.

`Proxy` decides what becomes a call; `Dispatcher` says when it goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fairserve.core.calls import Call, Dispatched, Outcome, Refusal, Usage
from fairserve.engine.admission import may_be_sent_again
from fairserve.engine.endpoints import Endpoint
from fairserve.engine.requests import EngineRequest
from fairserve.engine.usage import EventStream, KeptBody, header_usage, response_id
from fairserve.sidecar.accounting import engine_answer
from fairserve.sidecar.forwarding import Forwarding
from fairserve.sidecar.messages import Request, ResponseHead
from fairserve.sidecar.observers import CallObserver, CallTimes, EndedCall
from fairserve.sidecar.refusals import INTERNAL, Problem, problem_response, refusal_status
from fairserve.sidecar.retries import MOST_TRIES, WithheldAnswer, pause_s
from fairserve.sidecar.server import Connection
from fairserve.sidecar.stream_errors import error_events
from fairserve.sidecar.upstream import Failure

if TYPE_CHECKING:
    from fairserve.sidecar.proxy import Proxy

#: Bytes of an answer without usage that count as one token.
_BYTES_PER_OUTPUT_TOKEN: Final = 4
#: An answer's id is in its first bytes, as many as these.
_BEGINNING: Final = 1024


class ScheduledCall(Forwarding):
    """A call that waits for its turn, is forwarded and pays for what the engine computed."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        proxy: Proxy,
        call: Call,
        asked: EngineRequest,
        endpoint: Endpoint,
    ) -> None:
        super().__init__(connection, request, proxy.unavailable)
        self.call = call
        self._proxy = proxy
        self._asked = asked
        self._endpoint = endpoint
        self._dispatched_at: float | None = None
        self._status = 0
        self._tries = 0  #: how often the engine turned it away or could not be reached
        self._judged = False  #: its answer has been found to be no such refusal, or is looked at now
        #: How far the answer was, and when that was new, on the proxy's clock.
        self._heard = -1
        self._heard_at = 0.0
        self._events: EventStream | None = None
        self._kept = KeptBody(endpoint.usage)
        self._in_header: Usage | None = None  #: usage that came before the body
        #: The answer's first bytes, while its id is looked for in them.
        self._beginning: bytes | None = b"" if endpoint.makes_chains else None

    # -- from the dispatcher ------------------------------------------------------------------------

    def go(self, dispatched: Dispatched) -> None:
        """Send the call to the engine."""
        proxy, asked = self._proxy, self._asked
        self._dispatched_at = proxy.clock()
        if proxy.engine_priority:
            data = proxy.placed_request(
                self.connection, self.request, asked, self._endpoint, dispatched.priority
            )
        else:
            data = proxy.engine_request(self.connection, self.request, asked.payload)
        self.send(proxy.pool, data)

    def refused(self, refusal: Refusal) -> None:
        """It may not even wait."""
        self.evicted(refusal)

    def could_not_go(self) -> None:
        """Something of ours failed while it was sent: nothing was computed."""
        self.cancel()
        self.settle(Usage(0, 0), Outcome.FAILED)
        self.connection.write(problem_response(self.request, INTERNAL, reuse=False))
        self.connection.finished(reuse=False)

    def evicted(self, refusal: Refusal) -> None:
        """Answer with the refusal."""
        self._proxy.answer_refusal(self.connection, self.request, self.call, refusal)

    def engine_gone(self) -> None:
        """Answer that there is no engine."""
        self.connection.write(self._proxy.unavailable(self.request))
        self.connection.finished(reuse=self.request.keep_alive)

    def notice_silence(self, now: float, most_s: float, *, engine_answers: bool) -> None:
        """Give up an answer that has not moved for `most_s` seconds. One that has no events may take as long
        as the engine is there; a client that doesn't keep up is its own fault.
        """
        exchange = self._exchange
        heard = self._kept.length if self._events is None else self._events.events
        if (
            exchange is None
            or exchange.paused
            or heard != self._heard
            or (self._events is None and engine_answers)
        ):
            self._heard, self._heard_at = heard, now
        elif now - self._heard_at >= most_s:
            self.cancel()
            self.failed(Failure.SILENT)

    def output_so_far(self, now: float) -> int:
        """Tokens counted from the stream; without one, what the time would have yielded."""
        if self._events is not None:
            return max(0, self._events.events - self._endpoint.events_per_answer * self._asked.sequences)
        if self._dispatched_at is None:
            return 0
        produced = self._proxy.pace.tokens_in(now - self._dispatched_at) * self._asked.sequences
        cap = self._asked.max_output_tokens
        return produced if cap is None else min(produced, cap)

    # -- from the forwarding ------------------------------------------------------------------------

    def begins(self, head: ResponseHead) -> bool:
        """Look at what kind of answer it is."""
        self._status = head.status
        content_type = head.header(b"content-type") or b""
        if content_type.startswith(b"text/event-stream") and head.header(b"content-encoding") is None:
            self._events = EventStream(strips=self._asked.strips_usage, answers=self._asked.sequences)
            return self._asked.strips_usage
        metadata = None if self._endpoint.generates else head.header(b"metadata")
        if metadata is not None:
            self._in_header = header_usage(metadata)
        return False

    def withholds(self, head: ResponseHead, data: bytes, *, ended: bool) -> bool:
        """Whether the engine may have turned the call away, so that it can go again."""
        exchange = self._exchange
        if (
            self._judged
            or exchange is None
            or self._tries >= MOST_TRIES
            or not may_be_sent_again(self._endpoint, self._asked)
        ):
            return False
        self._judged = True
        exchange.receiver = withheld = WithheldAnswer(self, exchange, head)
        withheld.received(None, data, ended=ended)
        return True

    def turned_away(self, retry_after: bytes | None) -> None:
        """Wait again, and let the engine be for a while."""
        self._wait_again()
        self._judged = False
        pause = pause_s(self._tries, retry_after, self._proxy.first_pause_s)
        self._proxy.dispatcher.turned_away(self, pause)

    def failed(self, failure: Failure) -> None:
        """Nothing was sent to an engine that can't be reached: wait for it with the others."""
        if failure is Failure.UNREACHABLE and self._tries < MOST_TRIES:
            self._wait_again()
            self._proxy.dispatcher.hold()
            self._proxy.dispatcher.put_back(self)
        else:
            super().failed(failure)

    def last_words(self, problem: Problem) -> bytes | None:
        """An error in a stream's own format, behind the end of an event that was cut."""
        events = self._events
        if events is None:
            return None
        if events.done:
            return b""
        return events.cut() + error_events(self._endpoint.events, problem, events.events)

    def _wait_again(self) -> None:
        self._tries += 1
        self._exchange = None
        self._dispatched_at = None

    def passing(self, data: bytes, *, ended: bool) -> bytes:
        """Count a stream's events and take our usage out of it; keep the end of any other answer."""
        if self._beginning is not None:
            self._learn_id(data)
        if self._events is not None:
            passed = self._events.feed(data)
            return passed + self._events.end() if ended else passed
        self._kept.feed(data)
        return data

    def ended(self) -> None:
        """Settle by the engine's own usage."""
        seconds = self._seconds()
        if self._events is not None:
            usage, counted = self._events.usage(), self.output_so_far(self._proxy.clock())
        else:
            usage, counted = self._in_header or self._kept.usage(), self._output_by_size()
        outcome, charged = engine_answer(self._status, usage, self.call.input_tokens, counted)
        if outcome is Outcome.COMPLETED and usage is not None:
            self._proxy.pace.observe(charged.output_tokens // self._asked.sequences, seconds)
        self.settle(charged, outcome)
        if self._status >= 500:
            self._lost()

    def broke(self, failure: Failure) -> None:
        """Settle what the engine did before it failed; without an engine let the others wait."""
        if failure is Failure.UNREACHABLE:
            self._proxy.dispatcher.hold()
            self.settle(Usage(0, 0), Outcome.FAILED)
        else:
            self.settle(self._computed(), Outcome.FAILED)
        self._lost()

    def left(self) -> None:
        """The client left: from the queue for nothing, from the engine for what was computed."""
        if self._dispatched_at is None:
            self._proxy.dispatcher.cancel(self)
        else:
            self.settle(self._computed(), Outcome.CANCELLED)

    def cut_short(self) -> None:
        """The pod stops: a call that still waits may go elsewhere."""
        self.request.keep_alive = False
        if self._dispatched_at is None:
            self._proxy.dispatcher.cancel(self)
            self.connection.write(self._proxy.unavailable(self.request))
            self.connection.finished(reuse=False)
        else:
            super().cut_short()

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        """What the engine computed is known."""
        self._proxy.dispatcher.finish(self, usage, outcome)

    def _lost(self) -> None:
        """The engine broke over it: its user was not served in full."""
        self._proxy.metrics.experience.lost(self.call.tenant, self.call.user)

    def _computed(self) -> Usage:
        if self._unsent or (self._judged and not self._begun):
            return Usage(0, 0)  # It had not been sent, or was turned away as far as has been seen.
        counted = self.output_so_far(self._proxy.clock())
        if self._events is None:
            return Usage(self.call.input_tokens, counted)
        prompt = self._events.prompt_usage() or Usage(self.call.input_tokens, 0)
        return self._events.usage() or Usage(prompt.input_tokens, counted, prompt.cached_tokens)

    def _learn_id(self, data: bytes) -> None:
        assert self._beginning is not None
        self._beginning += data[:_BEGINNING]
        found = response_id(self._beginning) if self._status == 200 else None
        call = self.call
        if found is not None and call.interaction is not None:
            now = self._proxy.clock()
            self._proxy.chains.remember(call.tenant, call.user, found, call.interaction, now)
        if found is not None or len(self._beginning) >= _BEGINNING:
            self._beginning = None

    def _output_by_size(self) -> int:
        """Output tokens of a whole answer that gives no usage, as transcriptions do."""
        if self._status >= 400 or not self._endpoint.generates:
            return 0
        counted, cap = self._kept.length // _BYTES_PER_OUTPUT_TOKEN, self._asked.max_output_tokens
        return counted if cap is None else min(counted, cap)

    def _seconds(self) -> float:
        return 0.0 if self._dispatched_at is None else self._proxy.clock() - self._dispatched_at


#: What a client sees of each failure before its answer has begun, and its name in the log.
_FAILED: Final = {
    Failure.UNREACHABLE: (503, "engine_unavailable"),
    Failure.BROKEN: (502, "engine_broken"),
    Failure.SILENT: (504, "engine_silent"),
    Failure.STOPPED: (503, "shutting_down"),
}


class ObservedCall(ScheduledCall):
    """A call of whose end others are told."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        proxy: Proxy,
        call: Call,
        asked: EngineRequest,
        endpoint: Endpoint,
        observers: tuple[CallObserver, ...],
    ) -> None:
        super().__init__(connection, request, proxy, call, asked, endpoint)
        self._observers = observers
        self._arrived_at = proxy.clock()
        self._wait_s: float | None = None
        self._first_token_s: float | None = None
        self._unserved = Outcome.EVICTED
        self._reason = ""

    def go(self, dispatched: Dispatched) -> None:
        """Note how long it waited."""
        self._wait_s = dispatched.wait_s
        super().go(dispatched)

    def refused(self, refusal: Refusal) -> None:
        """Note that it never waited."""
        self._unserved = Outcome.REFUSED
        super().refused(refusal)

    def evicted(self, refusal: Refusal) -> None:
        """Note why."""
        super().evicted(refusal)
        self._reason = refusal.reason.value
        self._status = refusal_status(refusal)
        self._note(Usage(0, 0), self._unserved)

    def passing(self, data: bytes, *, ended: bool) -> bytes:
        """Note when the first token passes."""
        passed = super().passing(data, ended=ended)
        if self._first_token_s is None and (self._events is None or self.output_so_far(0.0)):
            self._first_token_s = self._proxy.clock() - self._arrived_at
        return passed

    def broke(self, failure: Failure) -> None:
        """Note what the client gets."""
        status, self._reason = _FAILED[failure]
        if not self._begun:
            self._status = status
        super().broke(failure)

    def engine_gone(self) -> None:
        """Note that there was no engine."""
        super().engine_gone()
        self._status, self._reason = _FAILED[Failure.UNREACHABLE]
        self._note(Usage(0, 0), Outcome.EVICTED)

    def cut_short(self) -> None:
        """Note that it waited for nothing."""
        waited = self._dispatched_at is None
        super().cut_short()
        if waited:
            self._status, self._reason = _FAILED[Failure.STOPPED]
            self._note(Usage(0, 0), Outcome.CANCELLED)

    def left(self) -> None:
        """Note that it waited for nothing."""
        self._reason = "client_left"
        super().left()
        if self._dispatched_at is None:
            self._note(Usage(0, 0), Outcome.CANCELLED)

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        """Note what it cost."""
        super().settle(usage, outcome)
        self._note(usage, outcome)

    def _note(self, usage: Usage, outcome: Outcome) -> None:
        times = CallTimes(self._wait_s, self._first_token_s, self._proxy.clock() - self._arrived_at)
        waiting = self._dispatched_at is None
        ended = EndedCall(self.call, self.request, times, usage, outcome, self._status, self._reason, waiting)
        for observer in self._observers:
            observer.ended(ended)
