"""Full queues: which call goes when one more does not fit.

The newest beginning call of the flow that is furthest over its share of the queue, and never a continuation
while a beginning call can go instead. A flow's share is measured by the larger of its part of the requests
and its part of the bytes; a tenant's part is divided by its weight. The new call is itself a candidate, so a
flooder's calls are refused at the door.

Nothing is ranked while everything fits. The first overflow ranks the flows (O(n)); from then on each call
that comes moves its flow (O(log n)), until the queue is half empty again.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

from fairserve.core.calls import Call
from fairserve.core.flows import Backlog, Flow, Part, TenantQueue, Ticket
from fairserve.core.settings import TotalBounds

_Who = Flow | TenantQueue


class _Plan:
    """Calls that will go, and what their flows and tenants then have left. Nothing has happened yet."""

    def __init__(self, bounds: TotalBounds) -> None:
        self.tickets: list[Ticket] = []
        self._bounds = bounds
        self._requests: dict[_Who, int] = {}
        self._bytes: dict[_Who, int] = {}
        #: Of flows that give something, the newest beginning call that stays.
        self._newest: dict[Flow, Ticket | None] = {}
        #: Bytes that go in all.
        self.freed = 0

    def add(self, ticket: Ticket) -> None:
        """Let a flow's newest beginning call go."""
        self.tickets.append(ticket)
        self._newest[ticket.flow] = ticket.before
        self.freed += ticket.body_bytes
        for who in (ticket.flow, ticket.flow.tenant):
            self._requests[who] = self._requests.get(who, 0) + 1
            self._bytes[who] = self._bytes.get(who, 0) + ticket.body_bytes

    def newest(self, flow: Flow) -> Ticket | None:
        """The flow's newest beginning call that stays so far."""
        return self._newest.get(flow, flow.last)

    def requests(self, who: _Who) -> int:
        waiting = who.waiting if isinstance(who, Flow) else who.queued
        return waiting - self._requests.get(who, 0)

    def bytes(self, who: _Who) -> int:
        return who.bytes - self._bytes.get(who, 0)

    def excess(self, who: _Who, extra: Call | None = None) -> float:
        """How much of the queue it has, relative to its share. `extra` comes on top."""
        requests, size = self.requests(who), self.bytes(who)
        if extra is not None:
            requests, size = requests + 1, size + extra.body_bytes
        if isinstance(who, Flow):
            bounds = who.tenant.settings.queue
            return max(requests / bounds.max_requests, size / bounds.max_bytes)
        part = max(requests / self._bounds.max_requests, size / self._bounds.max_bytes)
        return part / who.settings.weight

    def can_give(self, who: _Who) -> bool:
        return self.requests(who) > who.continuing


class _Ranking:
    """Flows or tenants by excess, largest first. Entries are upper bounds, moved when they reach the top."""

    def __init__(self, members: Iterable[_Who], plan: _Plan) -> None:
        self._count = 0
        self._heap: list[tuple[float, int, _Who]] = []
        for who in members:
            if plan.can_give(who):
                self._count += 1
                self._heap.append((-plan.excess(who), self._count, who))
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, who: _Who, plan: _Plan) -> None:
        """It has more waiting than before."""
        self._count += 1
        heappush(self._heap, (-plan.excess(who), self._count, who))

    def first(self, plan: _Plan, touched: set[_Who]) -> _Who | None:
        """Who is furthest over its share and has a beginning call to give. Whose entries were lowered on the
        strength of the plan is noted in `touched`.
        """
        heap = self._heap
        while heap:
            known, number, who = heap[0]
            if not plan.can_give(who):
                heappop(heap)
                touched.add(who)
                continue
            excess = plan.excess(who)
            if excess >= -known:
                return who
            heapreplace(heap, (-excess, number, who))
            touched.add(who)
        return None


class Overflow:
    """The bounds of the queues."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._tenants: _Ranking | None = None
        self._flows: dict[TenantQueue, _Ranking] = {}
        #: Whether calls that come must be noted.
        self.active = False

    def room_for(self, call: Call, part: Part, bounds: TotalBounds, *, begins: bool) -> list[Ticket] | None:
        """Who goes so that the call fits: nobody, or some calls; None if the call itself must go. Changes
        nothing but rankings.
        """
        plan = _Plan(bounds)
        flow = part.flow
        tenant = flow.tenant
        queue = tenant.settings.queue
        most = queue.max_requests_per_user
        most_bytes = queue.max_bytes_per_user
        while (most is not None and plan.requests(flow) >= most) or (
            most_bytes is not None and plan.bytes(flow) + call.body_bytes > most_bytes
        ):
            ticket = None if begins or not plan.can_give(flow) else plan.newest(flow)
            if ticket is None:
                return None
            plan.add(ticket)
        touched: set[_Who] = set()
        try:
            while (
                plan.requests(tenant) >= queue.max_requests
                or plan.bytes(tenant) + call.body_bytes > queue.max_bytes
            ):
                if not self._take_of(tenant, plan, call, flow, touched, begins=begins):
                    return None
            while (
                self._backlog.queued - len(plan.tickets) >= bounds.max_requests
                or self._backlog.bytes - plan.freed + call.body_bytes > bounds.max_bytes
            ):
                furthest = self._furthest_tenant(plan, touched)
                if begins and (furthest is None or plan.excess(tenant, call) >= plan.excess(furthest)):
                    furthest = tenant
                if not isinstance(furthest, TenantQueue) or not self._take_of(
                    furthest, plan, call, flow, touched, begins=begins
                ):
                    return None
        finally:
            self._restore(touched, bounds)
        return plan.tickets

    def note(self, flow: Flow, bounds: TotalBounds) -> None:
        """A call of this flow has come while queues were full."""
        plan = _Plan(bounds)
        tenant = flow.tenant
        flows = self._flows.get(tenant)
        if flows is not None:
            if (
                self._is_relaxed(tenant.queued, tenant.bytes, *_bounds_of(tenant))
                or len(flows) > 2 * len(tenant.flows) + 64
            ):
                del self._flows[tenant]
            else:
                flows.push(flow, plan)
        if self._tenants is not None:
            backlog = self._backlog
            relaxed = self._is_relaxed(backlog.queued, backlog.bytes, bounds.max_requests, bounds.max_bytes)
            if relaxed or len(self._tenants) > 2 * len(backlog.tenants) + 64:
                self._tenants = None
            else:
                self._tenants.push(tenant, plan)
        self.active = self._tenants is not None or bool(self._flows)

    def forget(self) -> None:
        """Rank anew at the next overflow: bounds or weights have changed."""
        self._tenants, self.active = None, False
        self._flows.clear()

    def _take_of(
        self,
        victim: TenantQueue,
        plan: _Plan,
        call: Call,
        own: Flow,
        touched: set[_Who],
        *,
        begins: bool,
    ) -> bool:
        """Plan that one call of a tenant goes; False if the new call is the one that must."""
        ranking = self._flows.get(victim)
        if ranking is None:
            ranking = self._flows[victim] = _Ranking(victim.flows.values(), plan)
            touched.update(victim.flows.values() if plan.tickets else ())
            self.active = True
        flow = ranking.first(plan, touched)
        if not isinstance(flow, Flow):
            return False
        if begins and own.tenant is victim and plan.excess(own, call) >= plan.excess(flow):
            return False
        ticket = plan.newest(flow)
        assert ticket is not None, "a flow that can give has a beginning call"
        plan.add(ticket)
        return True

    def _furthest_tenant(self, plan: _Plan, touched: set[_Who]) -> _Who | None:
        if self._tenants is None:
            self._tenants = _Ranking(self._backlog.tenants.values(), plan)
            touched.update(self._backlog.tenants.values() if plan.tickets else ())
            self.active = True
        return self._tenants.first(plan, touched)

    def _restore(self, touched: set[_Who], bounds: TotalBounds) -> None:
        """Entries are upper bounds again, whether or not the plan is carried out."""
        now = _Plan(bounds)
        for who in touched:
            if not now.can_give(who):
                continue
            ranking = self._flows.get(who.tenant) if isinstance(who, Flow) else self._tenants
            if ranking is not None:
                ranking.push(who, now)

    @staticmethod
    def _is_relaxed(requests: int, size: int, max_requests: int, max_bytes: int) -> bool:
        return 2 * requests < max_requests and 2 * size < max_bytes


def _bounds_of(tenant: TenantQueue) -> tuple[int, int]:
    return tenant.settings.queue.max_requests, tenant.settings.queue.max_bytes
