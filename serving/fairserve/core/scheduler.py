"""The scheduler: events in, decisions out. It owns the order of calls, their charges and their refusals.

It does no I/O and reads no clock: time is an argument, in seconds, on any clock that the caller keeps to.
One writer calls it: the sidecar's event loop, or the simulator's.

A call's life: `enqueue` → (`cancel` | `expire` | `dispatch` → `progress`* → `finish`). From the engine
`requeue` takes it back to where `enqueue` had put it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from fairserve.core import state, throttle
from fairserve.core.calls import (
    UNIT,
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
from fairserve.core.cost import MOST_TOKENS, TrafficMean, plain_price, price, sane, unit_rate
from fairserve.core.disciplines import OFFERED, Discipline, Throttling
from fairserve.core.errors import CallError, SnapshotError, TimeError, UnknownCallError
from fairserve.core.flows import GONE, RUNS, WAITS, Backlog, Flow, Part, TenantQueue, Ticket
from fairserve.core.interactions import Interaction
from fairserve.core.memory import Memory
from fairserve.core.orders import LeastServed, Order, head_start, order_of
from fairserve.core.overflow import Overflow
from fairserve.core.prediction import ApplicationState, input_tokens
from fairserve.core.settings import (
    ApplicationSettings,
    Profile,
    Settings,
    TenantSettings,
    changed,
    validate,
)

_QUEUE_FULL: Final = Refusal(RefusalReason.QUEUE_FULL, retry_after_s=None)
_QUEUE_TIMEOUT: Final = Refusal(RefusalReason.QUEUE_TIMEOUT, retry_after_s=None)
_TENANT_HELD: Final = Refusal(RefusalReason.TENANT_HELD, retry_after_s=None)
_FOREVER: Final = math.inf
#: A time that is older than the newest by this many seconds at most was read before it was told.
_LATE_S: Final = 1.0
_COMPLETED: Final = Outcome.COMPLETED
_NOTHING: Final = Usage(0, 0)


class Scheduler:
    """All decisions of one pod. Raises SettingsError for settings that can't be scheduled by."""

    def __init__(self, settings: Settings, discipline: Discipline | None = None) -> None:
        validate(settings)
        self.settings = settings
        self.armed = False  #: whether OIT refuses
        self.backlog = Backlog()
        #: Those that are configured; all others are `other_application`.
        self.applications: dict[str, ApplicationState] = {}
        default = settings.default_application
        self.other_application = ApplicationState(default.name, default, settings.tokens)
        #: Also those that were configured once: flows remember what they did in them.
        self._states: dict[str, ApplicationState] = {}
        self.overflow = Overflow(self.backlog)
        self.memory = Memory(self.backlog)
        #: A fixed discipline; None follows the settings' policy.
        self._fixed = discipline
        self._inflight_tokens = 0
        #: The newest time that was told, and how far the scheduler's own time is ahead of the caller's clock.
        self._told = -_FOREVER
        self._ahead = 0.0
        #: When applications came or went last: an open interaction may have moved to another one then.
        self._moved_at = -_FOREVER
        self._came: set[str] = set()
        self._follow(discipline or OFFERED[settings.policy], settings)
        self.order: Order = order_of(self.discipline, settings, self.backlog)
        self._adopt(settings, settings)
        self.traffic = TrafficMean(_initial_mean(self))

    # -- being told -------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Replace weights, limits, profiles and policy. It holds from the next decision on; whatever is
        queued or runs stays. Calls of a tenant or application that is gone go on under their last settings
        where they run, under the default's where they wait. Raises SettingsError, and nothing has changed.
        """
        validate(settings, self.settings)
        discipline = self._fixed or OFFERED[settings.policy]
        if settings.applications.keys() != self.applications.keys():
            self._came = settings.applications.keys() - self.applications.keys()
            self._moved_at = self._told + self._ahead
        before, self.settings = self.settings, settings
        self._adopt(settings, before)
        self.overflow.forget()
        ordering = self.discipline.ordering
        self._follow(discipline, settings)
        if discipline.ordering is not ordering:
            # One order has no regard for what another gave: it is nobody's debt.
            self._forgive()
            self.order = order_of(discipline, settings, self.backlog)
        elif isinstance(self.order, LeastServed):
            first = discipline.continuations_first
            self.order.change(head_start(discipline, settings), continuations_first=first)

    def set_armed(self, armed: bool) -> None:
        """Switch OIT on or off."""
        self.armed = armed

    def absorb(self, flow: tuple[str, str], cost: float) -> None:
        """Count service that a (tenant, user) had elsewhere: `cost` is its normalised cost, undivided by
        weights. Raises CallError for one that is negative or not finite.
        """
        if not 0.0 <= cost <= MOST_TOKENS:
            raise CallError(f"absorbed cost is {cost}, must be within 0..{MOST_TOKENS:g}")
        self._add(self.tenant(flow[0]).flow(flow[1]), cost * UNIT, 1.0)

    def charge(self, call: Call, usage: Usage) -> int:
        """Charge a (tenant, user) for what was computed here for a call that was never dispatched, like a
        session's: its cost, in units, which it may have several of. Numbers that can't be count as nothing.
        """
        application = self._application(call.application)
        flow = self.tenant(call.tenant).flow(call.user)
        rate = unit_rate(application.typical, self.traffic.value, self._share)
        units = int(price(sane(usage), call.system_tokens, self.settings.tokens) * rate)
        self._add(flow, units, application.weight)
        flow.tenant.service += units
        return units

    # -- the life of a call -----------------------------------------------------------------------

    def enqueue(self, call: Call, now: float) -> Queued | Refused:
        """Let a call wait, or refuse it. Raises CallError for an id that is already known or a size that
        can't be, TimeError for a time that is none; nothing has changed then.
        """
        backlog = self.backlog
        self._demand_sane(call)
        now = self._time(now)
        tenant = backlog.tenants.get(call.tenant) or self.tenant(call.tenant)
        application = self.applications.get(call.application, self.other_application)
        flow = tenant.flows.get(call.user) or tenant.flow(call.user)
        part = flow.recent
        if part is None or part.application is not application:
            part = flow.part(application)
        identity = call.interaction
        interaction = None if identity is None else self._continued(part, call.application, identity, now)
        begins = interaction is None
        if begins and tenant.held:
            return self._refused(call, flow, None, _TENANT_HELD, now)
        limited = self._limits_calls or (begins and self._limits_beginnings)
        refusal = None
        if limited and (self.armed or self._limits_always):
            refusal = throttle.refusal(part, now, users_only=self._limits_always)
            if refusal is not None and self.settings.mode is ThrottlingMode.ENFORCE:
                return self._refused(call, flow, interaction, refusal, now)
        evicted: tuple[Evicted, ...] = ()
        if self._is_full(flow, call.body_bytes):
            going = self._make_room(call, part, begins, now)
            if going is None:
                return self._refused(call, flow, interaction, _QUEUE_FULL, now)
            evicted = going
        if limited and refusal is None:
            throttle.admit(part, now)
        if identity is not None:
            interaction = self._join(part, identity, interaction, now)
        if not flow.waiting and not flow.running:
            self.memory.wakes(flow)
        backlog.add(call, part, now, interaction, not begins)
        if flow.waiting == 1 or (flow.continuing == 1 and not begins):
            self.order.joined(flow)
        if self.overflow.active:
            self.overflow.note(flow, self.settings.queue)
        return Queued(call.call_id, begins, refusal, evicted)

    def dispatch(self, now: float) -> Dispatched | None:
        """Take the next call out of the queue and charge its predicted cost; None if nothing waits. Raises
        TimeError.
        """
        now = self._time(now)
        ticket = self.order.next()
        if ticket is None:
            return None
        flow, part = ticket.flow, ticket.part
        tenant, application = flow.tenant, part.application
        backlog, tariff = self.backlog, self.settings.tokens
        backlog.take(ticket, RUNS)
        if not flow.waiting:
            self.order.left(flow)
        predicted = application.predict(ticket) if self._predicts else 0
        ticket.tariff = tariff
        ticket.rate = rate = unit_rate(application.typical, self.traffic.value, self._share)
        ticket.tenant_weight = tenant_weight = tenant.weight
        ticket.application_weight = application_weight = application.weight
        ticket.charged_output = predicted
        ticket.units = units = int(
            plain_price(ticket.input_tokens, ticket.system_tokens, predicted, tariff) * rate
        )
        tenant.service += units
        tenant.counter += int(units / tenant_weight)
        flow.counter += int(units / application_weight)
        flow.running += 1
        tenant.running += 1
        backlog.running += 1
        self._inflight_tokens += ticket.input_tokens + predicted
        wait_s = now - ticket.arrived
        if wait_s < 0.0:
            wait_s = 0.0
        return Dispatched(ticket.call_id, wait_s, units, predicted, self.order.priority(ticket))

    def progress(self, call_id: int, output_tokens: int) -> None:
        """A running call has produced `output_tokens` so far: charge what exceeds its prediction. Raises
        UnknownCallError for a call that does not run.
        """
        ticket = self.backlog.calls.get(call_id)
        if ticket is None or ticket.stage != RUNS:
            raise UnknownCallError(f"call {call_id} does not run")
        if ticket.charged_output < output_tokens <= MOST_TOKENS:
            output_tokens = int(output_tokens)
            self._inflight_tokens += output_tokens - ticket.charged_output
            ticket.charged_output = output_tokens
            self._charge(ticket, Usage(ticket.input_tokens, output_tokens))

    def finish(self, call_id: int, usage: Usage, outcome: Outcome, now: float) -> Settled:
        """A dispatched call has ended: replace its charge by its actual cost. `usage` is what the engine
        computed, also for a cancelled or failed call; numbers that can't be count as nothing. Raises
        UnknownCallError for a call that does not run, TimeError; nothing has changed then.
        """
        backlog = self.backlog
        ticket = backlog.calls.get(call_id)
        if ticket is None or ticket.stage != RUNS:
            raise UnknownCallError(f"call {call_id} does not run")
        now = self._time(now)
        usage = sane(usage)
        del backlog.calls[call_id]
        ticket.stage = GONE
        call, flow, part = ticket.call, ticket.flow, ticket.part
        tenant = flow.tenant
        self._charge(ticket, usage)
        self._inflight_tokens -= ticket.input_tokens + ticket.charged_output
        flow.running -= 1
        tenant.running -= 1
        backlog.running -= 1
        if outcome is _COMPLETED:
            part.application.observe(ticket, usage)
            self.traffic.observe(ticket.units / ticket.rate)
        interaction = ticket.interaction
        if interaction is not None:
            self._left(interaction, now, usage.input_tokens + usage.output_tokens)
        if not flow.waiting and not flow.running:
            self.memory.idles(flow, now)
        return Settled(call_id, call.tenant, call.application, outcome, ticket.units, usage)

    def requeue(self, call_id: int, now: float) -> None:
        """The engine turned a dispatched call away before it computed anything: the call waits again, in the
        place that its arrival gives it, and its charge is undone. Bounds of queues don't stop it: it was
        admitted. Raises UnknownCallError for a call that does not run, TimeError; nothing has changed then.
        """
        backlog = self.backlog
        gone = backlog.calls.get(call_id)
        if gone is None or gone.stage != RUNS:
            raise UnknownCallError(f"call {call_id} does not run")
        self._time(now)
        flow = gone.flow
        self._charge(gone, _NOTHING)
        self._inflight_tokens -= gone.input_tokens + gone.charged_output
        flow.running -= 1
        flow.tenant.running -= 1
        backlog.running -= 1
        ticket = backlog.put_back(gone)
        if flow.waiting == 1 or (flow.continuing == 1 and ticket.continues):
            self.order.returned(flow)
        if self.overflow.active:
            self.overflow.note(flow, self.settings.queue)

    def cancel(self, call_id: int, now: float) -> bool:
        """Take a waiting call out because its client left. False if it does not wait. Raises TimeError."""
        now = self._time(now)
        ticket = self.backlog.calls.get(call_id)
        if ticket is None or ticket.stage != WAITS:
            return False
        self._take_out(ticket, now)
        return True

    def expire(self, now: float, most_s: float = _FOREVER) -> tuple[Evicted, ...]:
        """Evict calls that waited too long, let learned profiles move, and forget what no longer matters.
        Call it about each second. Nothing waits longer than `most_s` seconds either, whatever its settings
        say. Raises TimeError.
        """
        now = self._time(now)
        evicted = []
        for timeline in self.backlog.timelines.values():
            most = min(timeline.max_wait_s, most_s)
            while (ticket := timeline.first()) is not None and ticket.arrived + most <= now:
                evicted.append(self._evict(ticket, _QUEUE_TIMEOUT, now))
        self.backlog.drop_empty_timelines()
        for application in self.known_applications():
            if application.learner is not None and application.learner.move(now):
                application.adopt(application.learner.profile, self.settings.tokens)
        self.memory.sweep(now, self.order, self.settings.tenants)
        return tuple(evicted)

    # -- being asked ------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Calls that wait."""
        return self.backlog.queued

    @property
    def running(self) -> int:
        """Calls in the engine."""
        return self.backlog.running

    @property
    def inflight_tokens(self) -> int:
        """Tokens that the calls in the engine will probably hold in its KV pool."""
        return self._inflight_tokens

    def oldest_wait(self, now: float) -> float:
        """Seconds that the oldest waiting call has waited; 0 if none waits."""
        oldest = self.backlog.oldest
        return 0.0 if oldest is None else max(0.0, self._asked(now) - oldest.arrived)

    def estimate_input(self, tenant: str, application: str, body_bytes: int) -> int:
        """Prompt tokens to expect of a body of that size. No other tenant's calls have a say in it."""
        known = self.backlog.tenants.get(tenant)
        learned = None if known is None else known.bytes_per_token.get(self._application(application).name)
        return input_tokens(learned, body_bytes)

    def profile(self, application: str) -> Profile:
        """The profile in force: as configured, or as learned."""
        return self._application(application).profile

    def allowance(self, tenant: str, user: str, application: str, now: float) -> Allowance | None:
        """The caller's tightest interaction limit; None if none applies."""
        known = self.backlog.tenants.get(tenant) or self._new_tenant(tenant)
        flow = known.flows.get(user) or Flow(known, user)
        state_ = self._application(application)
        return throttle.allowance(flow.parts.get(state_.name) or Part(flow, state_), self._asked(now))

    def tenant_settings(self, name: str) -> TenantSettings:
        """A tenant's settings; the default tenant's for one that is not, or no longer, configured."""
        settings = self.settings.tenants.get(name) or self.settings.default_tenant
        return settings if settings is not None else TenantSettings(name)

    def application_settings(self, name: str) -> ApplicationSettings:
        """An application's settings; the default application's for one that is not configured."""
        return self.settings.applications.get(name) or self.settings.default_application

    def snapshot(self, now: float) -> dict[str, Any]:
        """Counters, averages, profiles, windows and open interactions, as JSON; times are ages. Waiting and
        running calls are not part of it: their connections die with the process.
        """
        return state.snapshot(self, self._asked(now))

    def restore(self, data: dict[str, Any], now: float) -> None:
        """Take over a snapshot, before the first call. Raises SnapshotError for one that can't be read and
        where calls are known, and nothing has changed then; TimeError.
        """
        if self.backlog.calls:
            raise SnapshotError(
                f"{len(self.backlog.calls)} calls are queued or running: restore before the first"
            )
        state.restore(self, data, self._time(now))

    def dump(self, now: float) -> dict[str, Any]:
        """What people want to see, as JSON."""
        return state.dump(self, now)

    def check(self) -> None:
        """Assert every invariant."""
        state.check(self)

    def running_calls(self) -> dict[int, Ticket]:
        """Calls in the engine by id, with their charges."""
        return {call_id: ticket for call_id, ticket in self.backlog.calls.items() if ticket.stage == RUNS}

    def known_applications(self) -> tuple[ApplicationState, ...]:
        """Configured applications, and what stands for all others."""
        return (*self.applications.values(), self.other_application)

    def tenant(self, name: str) -> TenantQueue:
        """What is known of a tenant, new if nothing is."""
        tenant = self.backlog.tenants.get(name)
        if tenant is None:
            tenant = self.backlog.tenants[name] = self._new_tenant(name)
        return tenant

    # -- inside -----------------------------------------------------------------------------------

    def _time(self, now: float) -> float:
        """The scheduler's own time, which never goes back: where the caller's clock does by more than it may
        be read late, ours goes on from where it was.
        """
        if not -_FOREVER < now < _FOREVER:
            raise TimeError(f"now is {now}, must be finite")
        told = self._told
        if now < told:
            if told - now <= _LATE_S:
                return told + self._ahead
            self._ahead += told - now
        self._told = now
        return now + self._ahead

    def _asked(self, now: float) -> float:
        """The same for a question, which changes nothing."""
        if not -_FOREVER < now < _FOREVER:
            raise TimeError(f"now is {now}, must be finite")
        return max(now, self._told) + self._ahead

    def _demand_sane(self, call: Call) -> None:
        if call.call_id in self.backlog.calls:
            raise CallError(f"call {call.call_id} is already queued or running")
        told: Any = call  # what its sender says need not be what it should
        prompt, system, body = told.input_tokens, told.system_tokens, told.body_bytes
        if not (
            isinstance(prompt, int)
            and isinstance(system, int)
            and isinstance(body, int)
            and 0 <= prompt <= MOST_TOKENS
            and 0 <= system <= MOST_TOKENS
            and 0 <= body <= MOST_TOKENS
        ):
            raise CallError(
                f"call {call.call_id}: a size is negative, beyond {MOST_TOKENS} or no whole number"
            )
        most, identity = told.max_output_tokens, told.interaction
        if not (
            (most is None or isinstance(most, int))
            and (identity is None or isinstance(identity, str))
            and isinstance(told.tenant, str)
            and isinstance(told.user, str)
            and isinstance(told.application, str)
        ):
            raise CallError(f"call {call.call_id}: a name is no text, or max_output_tokens no whole number")

    def _continued(self, part: Part, application: str, identity: str, now: float) -> Interaction | None:
        """The open interaction that a call with this id continues."""
        if part.interactions is not None:
            found = _open_interaction(part, part.interactions, identity, now)
            if found is not None:
                return found
        if self._moved_at == -_FOREVER:
            return None
        return self._moved_interaction(part, application, identity, now)

    def _moved_interaction(
        self, part: Part, application: str, identity: str, now: float
    ) -> Interaction | None:
        """An interaction that was admitted when its application was not configured yet, or still was: it goes
        on under the settings that hold now.
        """
        name = self.other_application.name if application in self._came else application
        before = part.flow.parts.get(name)
        if before is None or before is part or before.interactions is None:
            return None
        interaction = _open_interaction(before, before.interactions, identity, now)
        if interaction is None or interaction.opened > self._moved_at:
            return None
        del before.interactions[identity]
        if part.interactions is None:
            part.interactions = {}
        part.interactions[identity] = interaction
        return interaction

    def _is_full(self, flow: Flow, body_bytes: int) -> bool:
        """Whether one more call of that size is too much for its user, its tenant or the whole queue."""
        tenant, backlog, bounds = flow.tenant, self.backlog, self.settings.queue
        return (
            tenant.queued >= tenant.max_requests
            or tenant.bytes + body_bytes > tenant.max_bytes
            or flow.waiting >= tenant.max_requests_per_user
            or flow.bytes + body_bytes > tenant.max_bytes_per_user
            or backlog.queued >= bounds.max_requests
            or backlog.bytes + body_bytes > bounds.max_bytes
        )

    def _make_room(self, call: Call, part: Part, begins: bool, now: float) -> tuple[Evicted, ...] | None:
        """Evict who must go for the call to fit; None if it must go itself."""
        going = self.overflow.room_for(call, part, self.settings.queue, begins=begins)
        if going is None:
            return None
        return tuple([self._evict(ticket, _QUEUE_FULL, now) for ticket in going])

    def _join(
        self, part: Part, identity: str, interaction: Interaction | None, now: float
    ) -> Interaction | None:
        """Count a call to the interaction that it continues, or begins; None where none can be remembered."""
        if interaction is None:
            interaction = self.memory.open_interaction(part, identity, now)
        if interaction is not None:
            interaction.calls += 1
            interaction.active += 1
            if now > interaction.touched:
                interaction.touched = now
        return interaction

    def _charge(self, ticket: Ticket, usage: Usage) -> None:
        """Make the cost of `usage` the call's whole charge. The tenant pays it by its weight, its user by the
        application's, so that no choice of application changes a tenant's share against others.
        """
        units = int(price(usage, ticket.system_tokens, ticket.tariff) * ticket.rate)
        before = ticket.units
        if units == before:
            return
        flow = ticket.flow
        tenant = flow.tenant
        # Each counter holds the same function of the units charged: what is taken back is what was added.
        weight = ticket.tenant_weight
        tenant.counter += int(units / weight) - int(before / weight)
        weight = ticket.application_weight
        flow.counter += int(units / weight) - int(before / weight)
        tenant.service += units - before
        ticket.units = units
        if units < before:
            self.order.fell(flow)

    def _add(self, flow: Flow, units: float, application_weight: float) -> None:
        """Put on a flow's counter and its tenant's what no ticket stands for."""
        tenant = flow.tenant
        # Who is idle would be lifted above what is added to an old counter.
        self.order.lift(flow)
        flow.counter += int(units / application_weight)
        tenant.counter += int(units / tenant.weight)
        if not flow.waiting and not flow.running:
            self.memory.idles(flow, flow.idle_since)

    def _refused(
        self, call: Call, flow: Flow, interaction: Interaction | None, refusal: Refusal, now: float
    ) -> Refused:
        if not flow.waiting and not flow.running:
            self.memory.idles(flow, now)
        return Refused(call.call_id, refusal, interaction.tokens if interaction is not None else 0)

    def _evict(self, ticket: Ticket, refusal: Refusal, now: float) -> Evicted:
        wasted = ticket.interaction.tokens if ticket.interaction is not None else 0
        self._take_out(ticket, now)
        return Evicted(ticket.call_id, refusal, wasted)

    def _take_out(self, ticket: Ticket, now: float) -> None:
        """A waiting call is gone undispatched."""
        flow = ticket.flow
        self.backlog.take(ticket, GONE)
        del self.backlog.calls[ticket.call_id]
        if not flow.waiting:
            self.order.left(flow)
        if ticket.interaction is not None:
            self._left(ticket.interaction, now, 0)
        if not flow.waiting and not flow.running:
            self.memory.idles(flow, now)

    def _left(self, interaction: Interaction, now: float, tokens: int) -> None:
        """A call is gone: tell its interaction. It stays open even if it never got anything: it was admitted
        and counted, and its client may try again.
        """
        interaction.active -= 1
        interaction.tokens += tokens
        if now > interaction.touched:
            interaction.touched = now

    def _new_tenant(self, name: str) -> TenantQueue:
        return TenantQueue(name, self.tenant_settings(name), head_start(self.discipline, self.settings))

    def _application(self, name: str) -> ApplicationState:
        return self.applications.get(name, self.other_application)

    def _adopt(self, settings: Settings, before: Settings) -> None:
        """Give every tenant and application its settings. What is the same object as before is in force."""
        tenants = self.backlog.tenants
        if settings.default_tenant == before.default_tenant:
            names = [*changed(settings.tenants, before.tenants), *_gone(settings.tenants, before.tenants)]
        else:
            names = list(tenants)
        for name in names:
            tenant = tenants.get(name)
            if tenant is not None:
                tenant.adopt(self.tenant_settings(name))
        # An application that is gone goes on under the default's settings where its calls wait.
        for name, state_ in self._states.items():
            if name not in settings.applications:
                state_.configure(settings.default_application, settings.tokens)
        for name, wanted in settings.applications.items():
            known = self._states.get(name)
            if known is None:
                self._states[name] = ApplicationState(name, wanted, settings.tokens)
            else:
                known.configure(wanted, settings.tokens)
        self.applications = {name: self._states[name] for name in settings.applications}
        self.other_application.configure(settings.default_application, settings.tokens)

    def _follow(self, discipline: Discipline, settings: Settings) -> None:
        """Read the choices once, not for every call."""
        self.discipline = discipline
        throttling = discipline.throttling
        self._limits_calls = throttling.counts_calls
        self._limits_always = throttling is Throttling.CALLS_ALWAYS
        self._limits_beginnings = throttling is Throttling.INTERACTIONS_WHILE_OVERLOADED
        self._predicts = discipline.predicts
        self._share = settings.normalisation if discipline.relative_cost else 0.0

    def _forgive(self) -> None:
        for tenant in self.backlog.tenants.values():
            tenant.counter = 0
            for flow in tenant.flows.values():
                flow.counter = flow.granted = 0
        # What runs was charged to counters that are gone: what it still costs or gets back moves none.
        for ticket in self.running_calls().values():
            ticket.tenant_weight = ticket.application_weight = math.inf


def _gone(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return [] if now is before else [name for name in before if name not in now]


def _open_interaction(
    part: Part, known: dict[str, Interaction], identity: str, now: float
) -> Interaction | None:
    interaction = known.get(identity)
    rules = part.application.settings.interaction
    return interaction if interaction is not None and interaction.is_open(rules, now) else None


def _initial_mean(scheduler: Scheduler) -> float:
    """w̄ before there is traffic: the plain mean over the applications."""
    known = tuple(scheduler.applications.values()) or (scheduler.other_application,)
    return sum(application.typical for application in known) / len(known)
