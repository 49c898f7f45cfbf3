"""What happens to one request of the data port: who calls, may it wait, when does it go, what did it cost.

Calls that cost tokens are identified, scheduled, forwarded and accounted for. `/metrics` is answered with
the engine's numbers and ours. Everything else goes to the engine untouched, whoever asks.
"""

from __future__ import annotations

import random
import time
import urllib.parse
from collections.abc import Callable
from typing import Protocol

import httptools

from fairserve.core.calls import Call, Dispatched, Outcome, Refusal, Usage
from fairserve.engine.requests import CompletionRequest, read_completion
from fairserve.engine.usage import EventStream, body_usage
from fairserve.sidecar.accounting import Pace, engine_answer
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.forwarding import Forwarding
from fairserve.sidecar.identity import Caller, IdentityTable
from fairserve.sidecar.messages import Request, ResponseHead, engine_head, own_response
from fairserve.sidecar.metrics import CONTENT_TYPE, Metrics
from fairserve.sidecar.refusals import (
    Problem,
    Unavailable,
    problem_response,
    refusal_response,
    unavailable_response,
)
from fairserve.sidecar.server import Connection, Work
from fairserve.sidecar.upstream import Failure, UpstreamPool

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
METRICS = "/metrics"
#: The raw request targets that need no further look.
_PLAIN = {path.encode(): path for path in (CHAT, COMPLETIONS, METRICS)}

#: As much of the end of an answer as is kept to find its usage in.
_KEPT_TAIL = 65_536
_NOTHING: frozenset[bytes] = frozenset()


class Identities(Protocol):
    """Where the identity table of the running configuration is found."""

    @property
    def table(self) -> IdentityTable | None:
        """None before the first configuration."""


class Proxy:
    """Decides what happens to each request. The server's handler."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        pool: UpstreamPool,
        identities: Identities,
        metrics: Metrics,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dispatcher = dispatcher
        self.pool = pool
        self.metrics = metrics
        self.rng = rng
        self.clock = clock
        self.pace = Pace()
        self.draining = False
        self._identities = identities

    def handle(self, connection: Connection, request: Request) -> Work | None:
        """Begin to answer."""
        if self.draining:
            request.keep_alive = False
        route = _PLAIN.get(request.target) or _route(request.target)
        if request.method == b"POST" and route in (CHAT, COMPLETIONS):
            return self._schedule(connection, request, chat=route == CHAT)
        forwarding: Forwarding
        if request.method == b"GET" and route == METRICS:
            forwarding = MetricsAnswer(connection, request, self)
            # The plain format can be appended to; what else the client accepts doesn't matter.
            headers = [(b"accept", b"text/plain;version=0.0.4"), (b"host", b"engine")]
            request = Request(b"GET", request.target, headers, b"")
        else:
            forwarding = Forwarding(connection, request, self.unavailable)
        forwarding.send(self.pool, self.engine_request(connection, request, request.body))
        return forwarding

    def engine_request(self, connection: Connection, request: Request, body: bytes) -> bytes:
        """The bytes of a request for the engine."""
        table = self._identities.table
        without = _NOTHING
        if table is not None and not self._trusts(connection, table):
            without = table.header_names
        return engine_head(request, without=without, length=len(body)) + body

    def unavailable(self, request: Request, reason: Unavailable = Unavailable.ENGINE_UNAVAILABLE) -> bytes:
        """A 503 of our own."""
        return unavailable_response(request, reason, self.rng, reuse=request.keep_alive)

    def _schedule(self, connection: Connection, request: Request, *, chat: bool) -> Work | None:
        table = self._identities.table
        if table is None or self.draining:
            reason = Unavailable.SHUTTING_DOWN if table is not None else Unavailable.NOT_READY
            connection.write(self.unavailable(request, reason))
            connection.finished(reuse=request.keep_alive)
            return None
        asked = read_completion(request.body)
        caller = table.identify(request.headers, asked.user, trusted=self._trusts(connection, table))
        if isinstance(caller, Problem):
            self.metrics.denied(caller.code)
            connection.write(problem_response(request, caller, reuse=request.keep_alive))
            connection.finished(reuse=request.keep_alive)
            return None
        work = ScheduledCall(
            connection, request, self, self._call(caller, asked, len(request.body)), asked, chat=chat
        )
        refusal = self.dispatcher.submit(work)
        if refusal is None:
            return work
        work.evicted(refusal)
        return None

    def _call(self, caller: Caller, asked: CompletionRequest, body_bytes: int) -> Call:
        scheduler = self.dispatcher.scheduler
        profile = scheduler.application_settings(caller.application).profile
        input_tokens = scheduler.estimate_input(caller.application, body_bytes)
        return Call(
            call_id=self.dispatcher.next_id(),
            tenant=caller.tenant,
            user=caller.user,
            application=caller.application,
            input_tokens=input_tokens,
            system_tokens=min(int(profile.system_tokens), input_tokens),
            max_output_tokens=asked.max_output_tokens,
            interaction=caller.interaction,
            body_bytes=body_bytes,
        )

    def _trusts(self, connection: Connection, table: IdentityTable) -> bool:
        if connection.trust is not table:
            connection.trust, connection.trusted = table, table.trusts(connection.peer)
        return connection.trusted


class ScheduledCall(Forwarding):
    """A call that waits for its turn, is forwarded and pays for what the engine computed."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        proxy: Proxy,
        call: Call,
        asked: CompletionRequest,
        *,
        chat: bool,
    ) -> None:
        super().__init__(connection, request, proxy.unavailable)
        self.call = call
        self._proxy = proxy
        self._asked = asked
        #: Events of a chat stream that begin an answer and hold no token.
        self._tokenless_events = asked.sequences if chat else 0
        self._dispatched_at: float | None = None
        self._status = 0
        self._events: EventStream | None = None
        self._tail = b""

    # -- from the dispatcher ------------------------------------------------------------------------

    def go(self, dispatched: Dispatched) -> None:
        """Send the call to the engine."""
        self._dispatched_at = self._proxy.clock()
        self.send(
            self._proxy.pool, self._proxy.engine_request(self.connection, self.request, self._asked.payload)
        )

    def evicted(self, refusal: Refusal) -> None:
        """Answer with the refusal."""
        call, reuse = self.call, self.request.keep_alive
        self.connection.write(
            refusal_response(
                self.request, refusal, call.tenant, call.application, self._proxy.rng, reuse=reuse
            )
        )
        self.connection.finished(reuse=reuse)

    def output_so_far(self, now: float) -> int:
        """Tokens counted from the stream; without one, what the time would have yielded."""
        if self._events is not None:
            return max(0, self._events.events - self._tokenless_events)
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
            self._events = EventStream(strips=self._asked.strips_usage)
            return self._asked.strips_usage
        return False

    def passing(self, data: bytes, *, ended: bool) -> bytes:
        """Count a stream's events and take our usage out of it; keep the end of any other answer."""
        if self._events is not None:
            passed = self._events.feed(data)
            return passed + self._events.end() if ended else passed
        self._tail = (self._tail + data)[-_KEPT_TAIL:] if self._tail else data
        return data

    def ended(self) -> None:
        """Settle by the engine's own usage."""
        seconds = self._seconds()
        usage = body_usage(self._tail) if self._events is None else self._events.usage()
        counted = 0 if self._events is None else self.output_so_far(self._proxy.clock())
        outcome, charged = engine_answer(self._status, usage, self.call.input_tokens, counted)
        if outcome is Outcome.COMPLETED:
            self._proxy.pace.observe(charged.output_tokens // self._asked.sequences, seconds)
        self._proxy.dispatcher.finish(self, charged, outcome)

    def broke(self, failure: Failure) -> None:
        """Settle what the engine did before it failed; without an engine let the others wait."""
        if failure is Failure.UNREACHABLE:
            self._proxy.dispatcher.hold()
            self._proxy.dispatcher.finish(self, Usage(0, 0), Outcome.FAILED)
        else:
            self._proxy.dispatcher.finish(self, self._computed(), Outcome.FAILED)

    def left(self) -> None:
        """The client left: from the queue for nothing, from the engine for what was computed."""
        if self._dispatched_at is None:
            self._proxy.dispatcher.cancel(self)
        else:
            self._proxy.dispatcher.finish(self, self._computed(), Outcome.CANCELLED)

    def _computed(self) -> Usage:
        reported = None if self._events is None else self._events.usage()
        return reported or Usage(self.call.input_tokens, self.output_so_far(self._proxy.clock()))

    def _seconds(self) -> float:
        return 0.0 if self._dispatched_at is None else self._proxy.clock() - self._dispatched_at


class MetricsAnswer(Forwarding):
    """The engine's metrics with ours behind them; ours alone if the engine has none."""

    def __init__(self, connection: Connection, request: Request, proxy: Proxy) -> None:
        super().__init__(connection, request, proxy.unavailable)
        self._proxy = proxy
        self._status = 0
        self._text: list[bytes] = []

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

    def _answer(self, engine_text: bytes) -> None:
        if engine_text and not engine_text.endswith(b"\n"):
            engine_text += b"\n"
        reuse = self.request.keep_alive
        headers = [(b"content-type", CONTENT_TYPE.encode())]
        body = engine_text + self._proxy.metrics.exposition()
        self.connection.write(own_response(self.request, 200, b"OK", headers, body, reuse=reuse))
        self.connection.finished(reuse=reuse)


def _route(target: bytes) -> str:
    """Which path the engine will see: without query, scheme and host, and percent-decoded; cut down to a
    scheduled one where the engine mounts it under a prefix. Otherwise another spelling of a scheduled path
    would be a way around the queue.
    """
    try:
        raw = httptools.parse_url(target).path or b""
    except httptools.HttpParserInvalidURLError:
        raw = target.partition(b"?")[0]
    path = urllib.parse.unquote_to_bytes(raw).decode("latin-1")
    for scheduled in (CHAT, COMPLETIONS):
        if path.endswith(scheduled):
            return scheduled
    return path
