"""What happens to one request of the data port: who calls, may it wait, when does it go, what did it cost.

Calls that cost tokens are identified, scheduled, forwarded and accounted for. `/metrics` is answered with
the engine's numbers and ours. Everything else goes to the engine untouched, whoever asks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from fairserve.core.calls import Call, Outcome, Refusal, Usage
from fairserve.engine.endpoints import UNKNOWN, Endpoint, path_of, scheduled
from fairserve.engine.requests import MOST_VALUES, EngineRequest, with_priority
from fairserve.sidecar.accounting import Pace
from fairserve.sidecar.calllog import CallLog
from fairserve.sidecar.chains import ResponseChains
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.forwarding import Forwarding
from fairserve.sidecar.identity import PRIORITY_HEADER, Caller, IdentityTable, Memory
from fairserve.sidecar.messages import Request, engine_head, websocket_head
from fairserve.sidecar.metrics import Metrics
from fairserve.sidecar.metrics_page import MetricsAnswer, MetricsPage
from fairserve.sidecar.observers import CallObserver
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
    unavailable_response,
)
from fairserve.sidecar.retries import FIRST_PAUSE_S
from fairserve.sidecar.scheduled_call import ObservedCall, ScheduledCall
from fairserve.sidecar.server import Connection, Work
from fairserve.sidecar.upstream import UpstreamPool

METRICS: Final = "/metrics"
_NOTHING: Final[frozenset[bytes]] = frozenset()


#: Its answer comes before its work, so that nobody could say what it cost or when it ends.
_BACKGROUND: Final = Problem(
    400, "background_not_supported", "Responses are not made in the background here.", "background"
)


#: Another Python could read it, and the engine might then do what was not seen here.
_TOO_DEEP: Final = Problem(400, "body_too_deep", "The body is nested too deeply to be read.")
_TOO_MUCH: Final = Problem(413, "body_too_complex", f"The body has more than {MOST_VALUES:,} values.")


class Proxy:
    """Decides what happens to each request. The server's handler."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        pool: UpstreamPool,
        engine: Address,
        limits: Limits,
        metrics: Metrics,
        is_unknown: Callable[[str], bool],
        call_log: CallLog | None,
        observers: tuple[CallObserver, ...],
        rng: random.Random,
        engine_priority: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dispatcher = dispatcher
        self.pool = pool
        self.metrics = metrics
        self._is_unknown = is_unknown
        self.call_log = call_log  #: is told of calls that are denied; None: it is off
        self._observers = observers  #: are told of calls that were scheduled
        self.rng = rng
        self.clock = clock
        self.pace = Pace()
        self.chains = ResponseChains(rng)
        self.draining = False
        #: From when on, on its clock, one that drains begins no more calls; None while it doesn't drain.
        self.turns_away_at: float | None = None
        self.table: IdentityTable | None = None  #: of the running configuration; None before the first
        self.first_pause_s = FIRST_PAUSE_S  #: after an engine turned a call away
        self.engine_priority = engine_priority  #: the engine schedules by priority and is told ours
        #: Realtime sessions that are open or opening.
        self.sessions: set[RealtimeSession] = set()
        self._metrics_page = MetricsPage(metrics.exposition, lambda: dispatcher.scheduler.queued)
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
        endpoint = self._endpoint(request)
        if endpoint is not None:
            return self._schedule(connection, request, endpoint)
        forwarding: Forwarding
        path = path_of(request.target) if request.method == b"GET" else None
        if path == REALTIME and asks_for_websocket(request):
            return self._open_session(connection, request)
        if path == METRICS:
            forwarding = MetricsAnswer(connection, request, self.unavailable, self._metrics_page)
            # The plain format can be appended to; what else the client accepts doesn't matter.
            headers = [(b"accept", b"text/plain;version=0.0.4"), (b"host", b"engine")]
            request = Request(b"GET", request.target, headers, b"")
        else:
            forwarding = Forwarding(connection, request, self.unavailable)
        forwarding.send(self.pool, self.engine_request(connection, request, request.body))
        return forwarding

    def turned_away(self, connection: Connection, request: Request) -> bytes | None:
        """The whole answer to a call that its head alone turns away."""
        if self._endpoint(request) is None:
            return None
        known = self._authenticated(connection, request)
        return known if isinstance(known, bytes) else None

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
        placed = Request(request.method, request.target, headers, body)
        own = [(PRIORITY_HEADER, b"%d" % place)]
        return engine_head(placed, without=without, length=len(body), own=own) + body

    def unavailable(self, request: Request, reason: Unavailable | None = None) -> bytes:
        """A 503 of our own: by default for want of an engine, or because this pod stops."""
        if reason is None:
            reason = Unavailable.SHUTTING_DOWN if self.draining else Unavailable.ENGINE_UNAVAILABLE
        return unavailable_response(request, reason, self.rng, reuse=request.keep_alive)

    def answer_refusal(self, connection: Connection, request: Request, call: Call, refusal: Refusal) -> None:
        """Write the whole answer to a call that is refused or evicted."""
        reuse = request.keep_alive
        connection.write(
            refusal_response(request, refusal, call.tenant, call.application, self.rng, reuse=reuse)
        )
        connection.finished(reuse=reuse)

    def _authenticated(
        self, connection: Connection, request: Request
    ) -> tuple[IdentityTable, dict[bytes, bytes], Claim, bool] | bytes:
        """The table in force, the headers by name, whose the request is, and whether its hop is trusted; or
        the whole answer that turns it away.
        """
        table = self.table
        if table is None:
            return self._not_served(request, Unavailable.NOT_READY)
        if self.turns_away_at is not None and self.clock() >= self.turns_away_at:
            return self._not_served(request, Unavailable.SHUTTING_DOWN)
        trusted = self._trusts(connection, request, table)
        named = dict(request.headers)
        claim = table.authenticate(request.headers, named, self._memory(connection, table), trusted=trusted)
        if isinstance(claim, Problem):
            return self._denied(request, claim)
        return table, named, claim, trusted

    def _open_session(self, connection: Connection, request: Request) -> Work | None:
        if self.draining:
            # It has no end of its own: the pod would stay for it, and then cut it all the same.
            self._turn_away(connection, request, self._not_served(request, Unavailable.SHUTTING_DOWN))
            return None
        known = self._authenticated(connection, request)
        if isinstance(known, bytes):
            self._turn_away(connection, request, known)
            return None
        table, named, claim, trusted = known
        caller = table.identify(claim, named, EngineRequest(b""), trusted=trusted, target=request.target)
        if isinstance(caller, Problem):
            self._turn_away(connection, request, self._denied(request, caller))
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
            self.answer_refusal(connection, request, call, refusal)
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
        self.metrics.experience.seen(session.call.tenant, session.call.user)

    def _not_served(self, request: Request, reason: Unavailable) -> bytes:
        if self.call_log is not None:
            self.call_log.denied(path_of(request.target), 503, reason.value)
        return self.unavailable(request, reason)

    def _denied(self, request: Request, problem: Problem) -> bytes:
        self.metrics.denied(problem.code)
        if self.call_log is not None:
            self.call_log.denied(path_of(request.target), problem.status, problem.code)
        return problem_response(request, problem, reuse=request.keep_alive)

    def _turn_away(self, connection: Connection, request: Request, answer: bytes) -> None:
        connection.write(answer)
        connection.finished(reuse=request.keep_alive)

    def _endpoint(self, request: Request) -> Endpoint | None:
        """What a request spends tokens on; None for one that spends none."""
        endpoint = scheduled(request.method, request.target)
        if endpoint is None and request.method == b"POST" and self._is_unknown(path_of(request.target)):
            return UNKNOWN
        return endpoint

    def _schedule(self, connection: Connection, request: Request, endpoint: Endpoint) -> Work | None:
        known = self._authenticated(connection, request)
        if isinstance(known, bytes):
            self._turn_away(connection, request, known)
            return None
        table, named, claim, trusted = known
        asked = endpoint.read(
            request.body,
            request.headers,
            trusted=trusted,
            cache_salt=claim.cache_salt,
            wanted=table.wanted(claim),
        )
        caller = table.identify(claim, named, asked, trusted=trusted, target=request.target)
        if asked.background and not isinstance(caller, Problem):
            caller = _BACKGROUND
        if asked.too_deep:
            caller = _TOO_DEEP
        if asked.too_much:
            caller = _TOO_MUCH
        if isinstance(caller, Problem):
            self._turn_away(connection, request, self._denied(request, caller))
            return None
        call = self._call(caller, asked, endpoint, len(request.body))
        if self._observers:
            work: ScheduledCall = ObservedCall(
                connection, request, self, call, asked, endpoint, self._observers
            )
        else:
            work = ScheduledCall(connection, request, self, call, asked, endpoint)
        refusal = self.dispatcher.submit(work)
        if refusal is None:
            return work
        work.refused(refusal)
        return None

    def _call(self, caller: Caller, asked: EngineRequest, endpoint: Endpoint, body_bytes: int) -> Call:
        scheduler = self.dispatcher.scheduler
        profile = scheduler.application_settings(caller.application).profile
        if endpoint.bytes_per_token is None:
            input_tokens = scheduler.estimate_input(caller.tenant, caller.application, body_bytes)
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
        table = self.table
        return _NOTHING if table is None or self._trusts(connection, request, table) else table.header_names

    def _trusts(self, connection: Connection, request: Request, table: IdentityTable) -> bool:
        return self._memory(connection, table).trusted or table.trusts_token(request.headers)

    def _memory(self, connection: Connection, table: IdentityTable) -> Memory:
        memory = connection.memory
        if isinstance(memory, Memory) and memory.table is table:
            return memory
        connection.memory = memory = Memory(table, connection.peer)
        return memory
