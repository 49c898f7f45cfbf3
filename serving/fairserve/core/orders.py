"""Which waiting call is next. An order is told when a flow's standing changes, and asked for the next call.

`LeastServed` follows the counters (FairServe, VTC); `Arrival` is first come, first served, and what a
fairness test must be able to tell from the others; `RoundRobin` lets flows take turns (DRR).
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Final, assert_never

from fairserve.core.calls import UNIT
from fairserve.core.counters import CounterQueue
from fairserve.core.disciplines import Discipline, Ordering
from fairserve.core.flows import Backlog, Flow, TenantQueue, Ticket
from fairserve.core.settings import Settings

#: Units of a counter in one step of an engine's priority: a thousandth of a typical call.
_PRIORITY_STEP: Final = UNIT // 1000


class Order:
    """One order over the backlog. What it does not care about it is told in vain."""

    def joined(self, flow: Flow) -> None:
        """A flow has a call waiting, its first, or its first that continues an interaction."""

    def returned(self, flow: Flow) -> None:
        """The same, of a call that the engine turned away."""
        self.joined(flow)

    def lift(self, flow: Flow) -> None:
        """A flow is about to be charged though it may be idle."""

    def left(self, flow: Flow) -> None:
        """A flow has no call waiting any more."""

    def fell(self, flow: Flow) -> None:
        """A flow's counter and its tenant's fell, or may have."""

    def next(self) -> Ticket | None:
        """The call whose turn it is; None if none waits."""
        raise NotImplementedError

    def owes(self, flow: Flow) -> bool:
        """Whether an idle flow would come back to a better place if it were forgotten."""
        return False

    def tenant_owes(self, tenant: TenantQueue) -> bool:
        """The same of a tenant."""
        return False

    def priority(self, ticket: Ticket) -> int:
        """For an engine that schedules by priority, smaller first: the same order, as far as it is known."""
        return ticket.number


class LeastServed(Order):
    """The tenant with the smallest counter, then its user with the smallest, then that flow's head."""

    def __init__(self, backlog: Backlog, head_start: int, *, continuations_first: bool) -> None:
        self._backlog = backlog
        self.head_start = head_start
        self._continuations_first = continuations_first
        self.tenants: CounterQueue[TenantQueue] = CounterQueue(head_start)
        for tenant in backlog.tenants.values():
            tenant.entry = tenant.low_entry = 0
            tenant.queue = CounterQueue(head_start)
            for flow in tenant.flows.values():
                flow.entry = flow.low_entry = 0
        for flow in backlog.flows_in_order():
            self.joined(flow)

    def joined(self, flow: Flow) -> None:
        """Lift it and its tenant where they were idle; move them forward where they have a head start now."""
        tenant = flow.tenant
        if not flow.entry:
            tenant.queue.enter(flow)
        else:
            tenant.queue.lower(flow)
        if not tenant.entry:
            self.tenants.enter(tenant)
        else:
            self.tenants.lower(tenant)

    def returned(self, flow: Flow) -> None:
        """Put it and its tenant back where they were: nothing was given to them, and they did not idle."""
        tenant = flow.tenant
        if not flow.entry:
            tenant.queue.come_back(flow)
        else:
            tenant.queue.lower(flow)
        if not tenant.entry:
            self.tenants.come_back(tenant)
        else:
            self.tenants.lower(tenant)

    def lift(self, flow: Flow) -> None:
        """Raise the counters of an idle flow, and of an idle tenant, to where they would begin."""
        tenant = flow.tenant
        if not flow.entry:
            flow.counter = max(flow.counter, tenant.queue.floor())
        if not tenant.entry:
            tenant.counter = max(tenant.counter, self.tenants.floor())

    def left(self, flow: Flow) -> None:
        """Take it out, and its tenant with its last flow."""
        tenant = flow.tenant
        tenant.queue.leave(flow)
        if not tenant.queued:
            self.tenants.leave(tenant)

    def fell(self, flow: Flow) -> None:
        """Move it and its tenant forward."""
        tenant = flow.tenant
        if flow.entry:
            tenant.queue.lower(flow)
        if tenant.entry:
            self.tenants.lower(tenant)

    def next(self) -> Ticket | None:
        """The head of the least served flow of the least served tenant."""
        tenant = self.tenants.first()
        if tenant is None:
            return None
        flow = tenant.queue.first()
        assert flow is not None, f"tenant {tenant.name} waits without a waiting flow"
        return flow.head(continuations_first=self._continuations_first)

    def owes(self, flow: Flow) -> bool:
        """Whether its counter is above where lift would put it."""
        return flow.counter > flow.tenant.queue.floor()

    def tenant_owes(self, tenant: TenantQueue) -> bool:
        """The same of a tenant."""
        return tenant.counter > self.tenants.floor()

    def priority(self, ticket: Ticket) -> int:
        """The tenant's counter."""
        return ticket.flow.tenant.counter // _PRIORITY_STEP

    def change(self, head_start: int, *, continuations_first: bool) -> None:
        """Order what waits by another head start; counters and floors stay."""
        self._continuations_first = continuations_first
        if head_start == self.head_start:
            return
        self.head_start = head_start
        self.tenants.reset(head_start)
        for tenant in self._backlog.tenants.values():
            tenant.queue.reset(head_start)


class Arrival(Order):
    """First come, first served, whoever it is."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog

    def next(self) -> Ticket | None:
        """The oldest call."""
        return self._backlog.oldest


class RoundRobin(Order):
    """Deficit round robin over flows: each turn of a flow adds a quantum to what it may spend, times its
    tenant's weight, and it goes while it has any left. Costs are known only afterwards, so a flow may
    overspend, and waits out what it owes.
    """

    #: What one turn adds: a typical call.
    QUANTUM: ClassVar[int] = UNIT

    def __init__(self, backlog: Backlog) -> None:
        self._ring = deque(backlog.flows_in_order())
        self._known = set(self._ring)
        #: The flow whose turn it is, which has its quantum already.
        self._turn: Flow | None = None

    def joined(self, flow: Flow) -> None:
        """Behind the others, unless it is in the ring still: a flow leaves it only when its turn comes."""
        if flow not in self._known:
            self._known.add(flow)
            self._ring.append(flow)

    def next(self) -> Ticket | None:
        """The next call of the flow whose turn it is."""
        ring, turns = self._ring, 0
        while ring:
            flow = ring[0]
            if not flow.waiting:
                ring.popleft()
                self._known.discard(flow)
                # What is left of a turn is lost, what was overspent is not.
                flow.granted = min(flow.granted, flow.counter)
                continue
            if self._turn is not flow:
                if turns > len(ring):
                    self._skip_rounds()
                    turns = 0
                flow.granted += self._quantum(flow)
                self._turn = flow
            if flow.granted > flow.counter:
                return flow.head(continuations_first=False)
            ring.rotate(-1)
            self._turn = None
            turns += 1
        return None

    def owes(self, flow: Flow) -> bool:
        """Whether it has overspent while others take turns."""
        return flow.granted < flow.counter and len(self._ring) > 0

    def _quantum(self, flow: Flow) -> int:
        return int(self.QUANTUM * flow.tenant.settings.weight)

    def _skip_rounds(self) -> None:
        """Do at once the rounds in which everybody who waits still owes."""
        waiting = [flow for flow in self._ring if flow.waiting]
        rounds = min((flow.counter - flow.granted) // self._quantum(flow) for flow in waiting)
        for flow in waiting:
            flow.granted += rounds * self._quantum(flow)


def order_of(discipline: Discipline, settings: Settings, backlog: Backlog) -> Order:
    """A new order over what waits now."""
    match discipline.ordering:
        case Ordering.COUNTERS:
            first = discipline.continuations_first
            return LeastServed(backlog, head_start(discipline, settings), continuations_first=first)
        case Ordering.ARRIVAL:
            return Arrival(backlog)
        case Ordering.ROUND_ROBIN:
            return RoundRobin(backlog)
        case other:
            assert_never(other)


def head_start(discipline: Discipline, settings: Settings) -> int:
    """Δ in units."""
    return round(UNIT * settings.continuation_head_start) if discipline.continuations_first else 0
