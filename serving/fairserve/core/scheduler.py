"""The scheduler: events in, decisions out. It owns the order of calls, their charges and their refusals.

It does no I/O and reads no clock: time is an argument, in seconds, on any clock that the caller keeps to.
One writer calls it: the sidecar's event loop, or the simulator's.

A call's life: `enqueue` → (`cancel` | `expire` | `dispatch` → `progress`* → `finish`).
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from fairserve.core import state
from fairserve.core.calls import (
    Allowance,
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Queued,
    Refusal,
    RefusalReason,
    Refused,
    Settled,
    ThrottlingMode,
    Usage,
)
from fairserve.core.cost import CostModel, TrafficMean, typical_cost
from fairserve.core.disciplines import OFFERED, Discipline, Throttling
from fairserve.core.flows import Backlog, Flow, TenantQueue, Ticket
from fairserve.core.interactions import Interaction, InteractionKey, Interactions
from fairserve.core.policies import RoundRobin, next_ticket, normalised_share
from fairserve.core.prediction import Predictor
from fairserve.core.settings import ApplicationSettings, Settings, TenantSettings
from fairserve.core.throttle import Throttle

#: How many idle flows, windows and interactions one `expire` looks at: it must stay short.
_SWEEP = 256
#: An idle flow is remembered this long, so that its averages survive a pause.
_IDLE_FLOW_S = 600.0


@dataclass(slots=True, eq=False)
class Running:
    """A call in the engine and what it has been charged."""

    ticket: Ticket
    cost: CostModel
    tenant_weight: float
    application_weight: float
    charged_output: int  #: output tokens charged so far: the prediction, then what exceeds it
    charged: float = 0.0  #: normalised cost charged so far


class Scheduler:
    """All decisions of one pod."""

    def __init__(self, settings: Settings, rng: random.Random, discipline: Discipline | None = None) -> None:
        self.settings = settings
        #: A fixed discipline; None follows the settings' policy.
        self._fixed = discipline
        self._round_robin = RoundRobin()
        self.armed = False  #: whether OIT refuses
        self.backlog = Backlog()
        self.throttle = Throttle()
        self.interactions = Interactions()
        self.predictor = Predictor()
        self.traffic = TrafficMean(_initial_mean(settings))
        self._rng = rng
        self._running: dict[int, Running] = {}
        self._inflight_tokens = 0
        self._deadlines: list[tuple[float, int]] = []
        #: Flows with nothing waiting or running, least recently used first.
        self._idle: OrderedDict[Flow, None] = OrderedDict()

    # -- being told -------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Replace weights, limits, profiles and policy. It holds from the next decision on; whatever is
        queued or runs stays. Calls of a tenant or application that is gone go on under their last settings
        where they run, under the default's where they wait.
        """
        self.settings = settings

    def set_armed(self, armed: bool) -> None:
        """Switch OIT on or off."""
        self.armed = armed

    # -- the life of a call -----------------------------------------------------------------------

    def enqueue(self, call: Call, now: float) -> Queued | Refused:
        """Let a call wait, or refuse it. Raises ValueError for an id that is already known."""
        if call.call_id in self.backlog.arrivals or call.call_id in self._running:
            raise ValueError(f"call {call.call_id} is already queued or running")
        tenant, application = self.tenant_settings(call.tenant), self.application_settings(call.application)
        interaction = self._open_interaction(call, application, now)
        throttling = self.discipline.throttling
        limited = throttling is not Throttling.NONE and (interaction is None or throttling.counts_calls)
        refusal = None
        if limited and (self.armed or throttling is Throttling.CALLS_ALWAYS):
            users_only = throttling is Throttling.CALLS_ALWAYS
            refusal = self.throttle.refusal(tenant, call.user, application, now, users_only=users_only)
            if refusal is not None and self.settings.mode is ThrottlingMode.ENFORCE:
                return Refused(call.call_id, refusal, interaction.tokens if interaction is not None else 0)
        victim = self._make_room(call, tenant, interaction, now)
        if isinstance(victim, Refused):
            return victim
        continues = interaction is not None
        if limited and refusal is None:
            self.throttle.admit(tenant, call.user, application, now)
        if interaction is None and call.interaction is not None:
            interaction = self.interactions.begin(_key(call), now)
        if interaction is not None:
            interaction.calls += 1
            interaction.active += 1
            self.interactions.touch(_key(call), interaction, now)
        first = continues and self.discipline.continuations_first
        self._queue(call, tenant, interaction, continues=first, now=now)
        identity = call.interaction if call.interaction is not None else f"call-{call.call_id}"
        return Queued(call.call_id, not continues, identity, refusal, (victim,) if victim else ())

    def dispatch(self, now: float) -> Dispatched | None:
        """Take the next call out of the queue and charge its predicted cost; None if nothing waits."""
        discipline = self.discipline
        ticket = next_ticket(self.backlog, self.settings, discipline, self._round_robin)
        if ticket is None:
            return None
        call, flow = ticket.call, ticket.flow
        application, tenant = self.application_settings(call.application), self.tenant_settings(call.tenant)
        self.backlog.remove(call.call_id)
        typical = typical_cost(application.profile, self.settings.tokens)
        self.traffic.observe(typical)
        predicted = self.predictor.output_tokens(call, flow, application) if discipline.predicts else 0
        share, tokens = normalised_share(self.settings, discipline), self.settings.tokens
        running = Running(
            ticket=ticket,
            cost=CostModel(tokens, call.system_tokens, typical, self.traffic.value, share),
            tenant_weight=tenant.weight,
            application_weight=application.weight,
            charged_output=predicted,
        )
        self._running[call.call_id] = running
        flow.running += 1
        flow.tenant.running += 1
        self._inflight_tokens += call.input_tokens + predicted
        self._charge(running, Usage(call.input_tokens, predicted))
        return Dispatched(
            call_id=call.call_id,
            wait_s=max(0.0, now - ticket.arrived),
            charged=running.charged,
            predicted_output_tokens=predicted,
            priority=round(1000.0 * flow.tenant.counter),
        )

    def progress(self, call_id: int, output_tokens: int) -> None:
        """A running call has produced `output_tokens` so far: charge what exceeds its prediction. Raises
        KeyError for a call that does not run.
        """
        running = self._running[call_id]
        if output_tokens > running.charged_output:
            self._inflight_tokens += output_tokens - running.charged_output
            running.charged_output = output_tokens
            self._charge(running, Usage(running.ticket.call.input_tokens, output_tokens))

    def finish(self, call_id: int, usage: Usage, outcome: Outcome, now: float) -> Settled:
        """A dispatched call has ended: replace its charge by its actual cost. `usage` is what the engine
        computed, also for a cancelled or failed call. Raises KeyError for a call that does not run.
        """
        running = self._running.pop(call_id)
        call, flow = running.ticket.call, running.ticket.flow
        self._charge(running, usage)
        self._inflight_tokens -= call.input_tokens + running.charged_output
        flow.running -= 1
        flow.tenant.running -= 1
        if outcome is Outcome.COMPLETED:
            self.predictor.observe(call, flow, usage)
        self._leave(running.ticket, now, tokens=usage.input_tokens + usage.output_tokens)
        return Settled(call_id, call.tenant, call.application, outcome, running.charged, usage)

    def cancel(self, call_id: int, now: float) -> bool:
        """Take a waiting call out because its client left. False if it does not wait."""
        if call_id not in self.backlog.arrivals:
            return False
        self._leave(self.backlog.remove(call_id), now)
        return True

    def expire(self, now: float) -> tuple[Evicted, ...]:
        """Evict calls that waited too long, and forget what no longer matters. Call it about each second."""
        evicted = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call_id = heapq.heappop(self._deadlines)
            ticket = self.backlog.arrivals.get(call_id)
            if ticket is not None and ticket.deadline <= now:
                refusal = Refusal(RefusalReason.QUEUE_TIMEOUT, retry_after_s=None)
                evicted.append(self._evict(ticket, refusal, now))
        self._forget(now)
        return tuple(evicted)

    # -- being asked ------------------------------------------------------------------------------

    @property
    def discipline(self) -> Discipline:
        """The choices it schedules by."""
        return self._fixed if self._fixed is not None else OFFERED[self.settings.policy]

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return len(self.backlog)

    @property
    def running(self) -> int:
        """Calls in the engine."""
        return len(self._running)

    @property
    def inflight_tokens(self) -> int:
        """Tokens that the calls in the engine will probably hold in its KV pool."""
        return self._inflight_tokens

    def oldest_wait(self, now: float) -> float:
        """Seconds that the oldest waiting call has waited; 0 if none waits."""
        oldest = next(iter(self.backlog.arrivals.values()), None)
        return 0.0 if oldest is None else max(0.0, now - oldest.arrived)

    def estimate_input(self, application: str, body_bytes: int) -> int:
        """Prompt tokens to expect of a body of that size."""
        return self.predictor.input_tokens(application, body_bytes)

    def allowance(self, tenant: str, user: str, application: str, now: float) -> Allowance | None:
        """The caller's tightest interaction limit; None if none applies."""
        return self.throttle.allowance(
            self.tenant_settings(tenant), user, self.application_settings(application), now
        )

    def tenant_settings(self, name: str) -> TenantSettings:
        """A tenant's settings; the default tenant's for one that is not, or no longer, configured."""
        settings = self.settings.tenants.get(name) or self.settings.default_tenant
        return settings if settings is not None else TenantSettings(name)

    def application_settings(self, name: str) -> ApplicationSettings:
        """An application's settings; the default application's for one that is not configured."""
        return self.settings.applications.get(name) or self.settings.default_application

    def snapshot(self, now: float) -> dict[str, Any]:
        """Counters, averages, windows and open interactions, as JSON; times are ages. Waiting and running
        calls are not part of it: their connections die with the process.
        """
        return state.snapshot(self, now)

    def restore(self, data: dict[str, Any], now: float) -> None:
        """Take over a snapshot. Raises ValueError for one that can't be read, and is then unchanged."""
        state.restore(self, data, now)

    def remember(self, tenant: TenantQueue, user: str, counter: float, now: float) -> None:
        """Put back what is known of a user who has nothing waiting or running."""
        flow = tenant.flow(user)
        flow.counter, flow.idle_since = counter, now
        self._idle[flow] = None

    def dump(self, now: float) -> dict[str, Any]:
        """What people want to see, as JSON."""
        return state.dump(self, now)

    def check(self) -> None:
        """Assert every invariant."""
        state.check(self)

    def running_calls(self) -> dict[int, Running]:
        """Calls in the engine by id. For `state`; not to be changed."""
        return self._running

    # -- inside -----------------------------------------------------------------------------------

    def _open_interaction(
        self, call: Call, application: ApplicationSettings, now: float
    ) -> Interaction | None:
        if call.interaction is None:
            return None
        return self.interactions.find(_key(call), application.interaction, now)

    def _queue(
        self,
        call: Call,
        tenant: TenantSettings,
        interaction: Interaction | None,
        *,
        continues: bool,
        now: float,
    ) -> None:
        flow = self.backlog.tenant(call.tenant).flow(call.user)
        self._idle.pop(flow, None)
        deadline = now + tenant.queue.max_wait_s
        ticket = Ticket(call, flow, now, deadline, continues, interaction)
        self.backlog.add(ticket)
        heapq.heappush(self._deadlines, (deadline, call.call_id))
        if len(self._deadlines) > 2 * self.queued + _SWEEP:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.backlog.arrivals]
            heapq.heapify(self._deadlines)

    def _make_room(
        self, call: Call, tenant: TenantSettings, interaction: Interaction | None, now: float
    ) -> Evicted | Refused | None:
        """Where the tenant's queue is full, let the newest beginning call of its deepest flow go: the new
        call itself if its own flow is as deep, or if only continuations wait.
        """
        queue = self.backlog.tenants.get(call.tenant)
        if queue is None or queue.queued < tenant.queue.max_requests:
            return None
        refusal = Refusal(RefusalReason.QUEUE_FULL, retry_after_s=None)
        deepest = queue.depths.deepest
        own = queue.flows.get(call.user)
        own_depth = len(own.beginning) if own is not None and interaction is None else 0
        if deepest is None or (interaction is None and own_depth + 1 >= len(deepest.beginning)):
            return Refused(call.call_id, refusal, interaction.tokens if interaction is not None else 0)
        newest = next(reversed(deepest.beginning.values()))
        return self._evict(newest, refusal, now)

    def _evict(self, ticket: Ticket, refusal: Refusal, now: float) -> Evicted:
        wasted = ticket.interaction.tokens if ticket.interaction is not None else 0
        self._leave(self.backlog.remove(ticket.call.call_id), now)
        return Evicted(ticket.call.call_id, refusal, wasted)

    def _charge(self, running: Running, usage: Usage) -> None:
        """Make the cost of `usage` the call's whole charge. The tenant pays it by its weight, its user by the
        application's, so that no choice of application changes a tenant's share against others.
        """
        service = running.cost.service(usage)
        difference = service - running.charged
        running.charged = service
        flow = running.ticket.flow
        flow.charge(difference / running.application_weight)
        flow.tenant.charge(difference / running.tenant_weight)
        flow.tenant.service += difference
        flow.deficit -= difference

    def _leave(self, ticket: Ticket, now: float, tokens: int = 0) -> None:
        """A call is gone: tell its interaction, and let its flow idle if it was the last."""
        interaction = ticket.interaction
        if interaction is not None:
            interaction.active -= 1
            interaction.tokens += tokens
            key = _key(ticket.call)
            self.interactions.touch(key, interaction, now)
            if interaction.tokens == 0 and interaction.active == 0 and not ticket.continues:
                self.interactions.close(key, interaction)
        flow = ticket.flow
        if flow.waiting == 0 and flow.running == 0:
            flow.idle_since = now
            self._idle[flow] = None

    def _forget(self, now: float) -> None:
        """Drop what is as good as unknown. An idle flow with a counter at or below its tenant's floor would
        be lifted to it anyway; one above it has debts and is remembered.
        """
        self.throttle.windows.forget(now, _SWEEP)
        for application in self.interactions.applications():
            rules = self.application_settings(application).interaction
            self.interactions.forget(application, rules, now, _SWEEP)
        for _ in range(min(_SWEEP, len(self._idle))):
            flow = next(iter(self._idle))
            if now - flow.idle_since < _IDLE_FLOW_S:
                return
            del self._idle[flow]
            if flow.counter > flow.tenant.lanes.floor():
                flow.idle_since = now
                self._idle[flow] = None
            else:
                del flow.tenant.flows[flow.user]


def _key(call: Call) -> InteractionKey:
    assert call.interaction is not None, "a call without an id has no open interaction"
    return call.tenant, call.user, call.application, call.interaction


def _initial_mean(settings: Settings) -> float:
    """w̄ before there is traffic: the plain mean over the applications."""
    applications = tuple(settings.applications.values()) or (settings.default_application,)
    costs = [typical_cost(application.profile, settings.tokens) for application in applications]
    return sum(costs) / len(costs)
