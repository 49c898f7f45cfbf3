"""What happens to one request of the data port: who calls, may it wait, when does it go, what did it cost.

Calls that cost tokens are identified, scheduled, forwarded and accounted for. `/metrics` is answered with
the engine's numbers and ours. Everything else goes to the engine untouched, whoever asks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from fairserve.core.calls import Call, Dispatched, Outcome, Refusal, Usage
from fairserve.engine.admission import may_be_sent_again
from fairserve.engine.endpoints import Endpoint, path_of, scheduled
from fairserve.engine.requests import EngineRequest, with_priority
from fairserve.engine.usage import EventStream, KeptBody, header_usage, response_id
from fairserve.sidecar.accounting import Pace, engine_answer
from fairserve.sidecar.calllog import CallLog, CallTimes
from fairserve.sidecar.chains import ResponseChains
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.forwarding import Forwarding
from fairserve.sidecar.identity import PRIORITY_HEADER, Caller, IdentityTable
from fairserve.sidecar.messages import Request, ResponseHead, engine_head, own_response, websocket_head
from fairserve.sidecar.metrics import CONTENT_TYPE, Metrics
from fairserve.sidecar.options import Address, Limits
from fairserve.sidecar.realtime import (
    EXTENSIONS,
    REALTIME,
    RealtimeSession,
    SessionEvents,
    asks_for_websocket,
)
from fairserve.sidecar.refusals import (
    ENGINE_BROKEN,
    Problem,
    Unavailable,
    failed_engine_response,
    problem_response,
    refusal_response,
    refusal_status,
    unavailable_response,
)
from fairserve.sidecar.retries import FIRST_PAUSE_S, MOST_TRIES, WithheldAnswer, pause_s
from fairserve.sidecar.server import Connection, Work
from fairserve.sidecar.stream_errors import error_events
from fairserve.sidecar.upstream import Failure, UpstreamPool

METRICS = "/metrics"

#: Bytes of an answer without usage that count as one token.
_BYTES_PER_OUTPUT_TOKEN = 4
#: An answer's id is in its first bytes, as many as these.
_BEGINNING = 1024
_NOTHING: frozenset[bytes] = frozenset()


#: Its answer comes before its work, so that nobody could say what it cost or when it ends.
_BACKGROUND = Problem(
    400, "background_not_supported", "Responses are not made in the background here.", "background"
)


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
        engine: Address,
        limits: Limits,
        metrics: Metrics,
        call_log: CallLog | None,
        rng: random.Random,
        engine_priority: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dispatcher = dispatcher
        self.pool = pool
        self.metrics = metrics
        self.call_log = call_log  #: None: it is off
        self.rng = rng
        self.clock = clock
        self.pace = Pace()
        self.chains = ResponseChains(rng)
        self.draining = False
        self.first_pause_s = FIRST_PAUSE_S  #: after an engine turned a call away
        self.engine_priority = engine_priority  #: the engine schedules by priority and is told ours
        #: Realtime sessions that are open or opening.
        self.sessions: set[RealtimeSession] = set()
        self._identities = identities
        self._engine = engine
        self._limits = limits
        self._session_events = SessionEvents(
            charge=self._charge_session,
            ended=self._session_ended,
            unavailable=self.unavailable,
            broken=lambda request: failed_engine_response(request, ENGINE_BROKEN, reuse=False),
        )

    def handle(self, connection: Connection, request: Request) -> Work | None:
        """Begin to answer."""
        if self.draining:
            request.keep_alive = False
        endpoint = scheduled(request.method, request.target)
        if endpoint is not None:
            return self._schedule(connection, request, endpoint)
        forwarding: Forwarding
        path = path_of(request.target) if request.method == b"GET" else None
        if path == REALTIME and asks_for_websocket(request):
            return self._open_session(connection, request)
        if path == METRICS:
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
        return engine_head(request, without=self._withheld(connection, request), length=len(body)) + body

    def placed_request(
        self, connection: Connection, request: Request, asked: EngineRequest, endpoint: Endpoint, place: int
    ) -> bytes:
        """The same with the call's place in the engine's queue, in the body and in the header that wins over
        it. A trusted hop's own is replaced: places compare only if they come from one hand.
        """
        body = asked.payload
        if asked.readable and endpoint.takes_priority:
            body = with_priority(body, place)
        without = self._withheld(connection, request) - {PRIORITY_HEADER}
        headers = [header for header in request.headers if header[0] != PRIORITY_HEADER]
        headers.append((PRIORITY_HEADER, b"%d" % place))
        return engine_head(replace(request, headers=headers), without=without, length=len(body)) + body

    def unavailable(self, request: Request, reason: Unavailable = Unavailable.ENGINE_UNAVAILABLE) -> bytes:
        """A 503 of our own."""
        return unavailable_response(request, reason, self.rng, reuse=request.keep_alive)

    def _open_session(self, connection: Connection, request: Request) -> Work | None:
        table = self._identities.table
        if table is None or self.draining:
            self._turn_away(connection, request, table)
            return None
        trusted = self._trusts(connection, request, table)
        named = dict(request.headers)
        claim = table.authenticate(request.headers, named, trusted=trusted)
        if isinstance(claim, Problem):
            self._deny(connection, request, claim)
            return None
        caller = table.identify(claim, named, EngineRequest(b""), trusted=trusted)
        if isinstance(caller, Problem):
            self._deny(connection, request, caller)
            return None
        call = Call(
            call_id=self.dispatcher.next_id(),
            tenant=caller.tenant,
            user=caller.user,
            application=caller.application,
            input_tokens=0,
            system_tokens=0,
            interaction=caller.interaction,
        )
        refusal = self.dispatcher.admit(call)
        if refusal is not None:
            answer = refusal_response(
                request, refusal, call.tenant, call.application, self.rng, reuse=request.keep_alive
            )
            connection.write(answer)
            connection.finished(reuse=request.keep_alive)
            return None
        session = RealtimeSession(connection, request, call, self._limits, self._session_events)
        self.sessions.add(session)
        without = {EXTENSIONS} if trusted else {EXTENSIONS, *table.header_names}
        session.open(self._engine, websocket_head(request, without=without))
        return session

    def _charge_session(self, call: Call, tokens: int) -> None:
        usage = Usage(tokens, tokens)
        service = self.dispatcher.charge(call, usage)
        counts = self.metrics.calls(call.tenant, call.application)
        counts.input_tokens += tokens
        counts.output_tokens += tokens
        self.metrics.serve(call.tenant, service)

    def _session_ended(self, session: RealtimeSession, outcome: Outcome) -> None:
        self.sessions.discard(session)
        self.metrics.calls(session.call.tenant, session.call.application).ended(outcome)

    def _turn_away(self, connection: Connection, request: Request, table: IdentityTable | None) -> None:
        reason = Unavailable.SHUTTING_DOWN if table is not None else Unavailable.NOT_READY
        if self.call_log is not None:
            self.call_log.denied(path_of(request.target), 503, reason.value)
        connection.write(self.unavailable(request, reason))
        connection.finished(reuse=request.keep_alive)

    def _deny(self, connection: Connection, request: Request, problem: Problem) -> None:
        self.metrics.denied(problem.code)
        if self.call_log is not None:
            self.call_log.denied(path_of(request.target), problem.status, problem.code)
        connection.write(problem_response(request, problem, reuse=request.keep_alive))
        connection.finished(reuse=request.keep_alive)

    def _schedule(self, connection: Connection, request: Request, endpoint: Endpoint) -> Work | None:
        table = self._identities.table
        if table is None or self.draining:
            self._turn_away(connection, request, table)
            return None
        trusted = self._trusts(connection, request, table)
        named = dict(request.headers)
        claim = table.authenticate(request.headers, named, trusted=trusted)
        if isinstance(claim, Problem):
            self._deny(connection, request, claim)
            return None
        asked = endpoint.read(request.body, request.headers, trusted=trusted, cache_salt=claim.cache_salt)
        caller = table.identify(claim, named, asked, trusted=trusted)
        if asked.background and not isinstance(caller, Problem):
            caller = _BACKGROUND
        if isinstance(caller, Problem):
            self._deny(connection, request, caller)
            return None
        call = self._call(caller, asked, endpoint, len(request.body))
        if self.call_log is None:
            work = ScheduledCall(connection, request, self, call, asked, endpoint)
        else:
            work = LoggedCall(connection, request, self, call, asked, endpoint, self.call_log)
        refusal = self.dispatcher.submit(work)
        if refusal is None:
            return work
        work.refused(refusal)
        return None

    def _call(self, caller: Caller, asked: EngineRequest, endpoint: Endpoint, body_bytes: int) -> Call:
        scheduler = self.dispatcher.scheduler
        profile = scheduler.application_settings(caller.application).profile
        if endpoint.bytes_per_token is None:
            input_tokens = scheduler.estimate_input(caller.application, body_bytes)
        else:
            input_tokens = max(1, round(body_bytes / endpoint.bytes_per_token))
        interaction = caller.interaction
        if endpoint.makes_chains:
            if caller.previous_response is not None:
                known = self.chains.interaction(
                    caller.tenant, caller.user, caller.previous_response, self.clock()
                )
                interaction = known or interaction
            elif interaction is None:
                interaction = self.chains.begin()
        return Call(
            call_id=self.dispatcher.next_id(),
            tenant=caller.tenant,
            user=caller.user,
            application=caller.application,
            input_tokens=input_tokens,
            system_tokens=min(int(profile.system_tokens), input_tokens),
            max_output_tokens=asked.max_output_tokens,
            interaction=interaction,
            body_bytes=body_bytes,
        )

    def _withheld(self, connection: Connection, request: Request) -> frozenset[bytes]:
        """Headers of the client's that don't reach the engine."""
        table = self._identities.table
        return _NOTHING if table is None or self._trusts(connection, request, table) else table.header_names

    def _trusts(self, connection: Connection, request: Request, table: IdentityTable) -> bool:
        if connection.trust is not table:
            connection.trust, connection.trusted = table, table.trusts(connection.peer)
        return connection.trusted or table.trusts_token(request.headers)


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

    def evicted(self, refusal: Refusal) -> None:
        """Answer with the refusal."""
        call, reuse = self.call, self.request.keep_alive
        self.connection.write(
            refusal_response(
                self.request, refusal, call.tenant, call.application, self._proxy.rng, reuse=reuse
            )
        )
        self.connection.finished(reuse=reuse)

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
            exchange.cancel()
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

    def broke(self, failure: Failure) -> None:
        """Settle what the engine did before it failed; without an engine let the others wait."""
        if failure is Failure.UNREACHABLE:
            self._proxy.dispatcher.hold()
            self.settle(Usage(0, 0), Outcome.FAILED)
        else:
            self.settle(self._computed(), Outcome.FAILED)

    def left(self) -> None:
        """The client left: from the queue for nothing, from the engine for what was computed."""
        if self._dispatched_at is None:
            self._proxy.dispatcher.cancel(self)
        else:
            self.settle(self._computed(), Outcome.CANCELLED)

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        """What the engine computed is known."""
        self._proxy.dispatcher.finish(self, usage, outcome)

    def _computed(self) -> Usage:
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
_FAILED = {
    Failure.UNREACHABLE: (503, "engine_unavailable"),
    Failure.BROKEN: (502, "engine_broken"),
    Failure.SILENT: (504, "engine_silent"),
}


class LoggedCall(ScheduledCall):
    """A call of which a line is kept."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        proxy: Proxy,
        call: Call,
        asked: EngineRequest,
        endpoint: Endpoint,
        log: CallLog,
    ) -> None:
        super().__init__(connection, request, proxy, call, asked, endpoint)
        self._log = log
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
        path = path_of(self.request.target)
        self._log.ended(self.call, path, times, usage, outcome, self._status, self._reason)


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
