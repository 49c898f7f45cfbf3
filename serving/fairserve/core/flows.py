"""What waits: calls in flows, flows in tenants, and all of them in order of arrival.

The backlog knows who has what waiting and whose counter is where. It decides nothing: policies read it.
Every operation costs O(log n) in tenants and users; nothing scans all flows.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fairserve.core.calls import Call
from fairserve.core.counters import Lanes, Member
from fairserve.core.interactions import Interaction


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting call and its place."""

    call: Call
    flow: Flow
    arrived: float  #: seconds, on the caller's clock
    deadline: float  #: when it leaves the queue undispatched
    continues: bool  #: whether it continues an admitted interaction
    interaction: Interaction | None  #: None where the client gave no id: the call is its own interaction


class Flow(Member):
    """One (tenant, user) pair: what it has waiting and how much service it has had."""

    __slots__ = (
        "beginning",
        "continuing",
        "deficit",
        "idle_since",
        "output_tokens",
        "running",
        "tenant",
        "user",
    )

    def __init__(self, tenant: TenantQueue, user: str) -> None:
        super().__init__()
        self.tenant = tenant
        self.user = user
        #: Waiting calls by id, in order of arrival.
        self.continuing: OrderedDict[int, Ticket] = OrderedDict()
        self.beginning: OrderedDict[int, Ticket] = OrderedDict()
        #: Calls in the engine.
        self.running = 0
        #: What is left of its turn, in normalised cost, under round robin.
        self.deficit = 0.0
        self.idle_since = 0.0
        #: Moving average of output tokens a call, by application, with the number of samples.
        self.output_tokens: dict[str, tuple[float, int]] = {}

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self.continuing) + len(self.beginning)

    @property
    def head(self) -> Ticket | None:
        """The next call: continuations first, otherwise first come, first served."""
        queue = self.continuing or self.beginning
        return next(iter(queue.values())) if queue else None


class DepthIndex:
    """Which flow of a tenant has most beginning calls waiting. O(1): a depth changes by one at a time."""

    def __init__(self) -> None:
        self._at_depth: dict[int, dict[Flow, None]] = {}
        self._deepest = 0

    def moved(self, flow: Flow, before: int, after: int) -> None:
        """Record that a flow's depth changed from `before` to `after`, which differ by one."""
        if before:
            self._at_depth[before].pop(flow)
            if not self._at_depth[before]:
                del self._at_depth[before]
        if after:
            self._at_depth.setdefault(after, {})[flow] = None
        if after > self._deepest or (before == self._deepest and before not in self._at_depth):
            self._deepest = after

    @property
    def deepest(self) -> Flow | None:
        """A flow with most beginning calls waiting; None if none has any."""
        return next(iter(self._at_depth[self._deepest])) if self._deepest else None


class TenantQueue(Member):
    """One tenant: its flows, and how much service it has had."""

    __slots__ = ("continuing", "depths", "flows", "lanes", "name", "queued", "running", "service")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.flows: dict[str, Flow] = {}
        self.lanes: Lanes[Flow] = Lanes()
        self.depths = DepthIndex()
        self.queued = 0
        #: How many of the queued calls continue an interaction.
        self.continuing = 0
        self.running = 0
        #: Normalised cost of everything charged to it, not divided by weights.
        self.service = 0.0

    def flow(self, user: str) -> Flow:
        """The flow of a user, new if it is not known."""
        flow = self.flows.get(user)
        if flow is None:
            flow = self.flows[user] = Flow(self, user)
        return flow


class Backlog:
    """All waiting calls."""

    def __init__(self) -> None:
        self.tenants: dict[str, TenantQueue] = {}
        self.lanes: Lanes[TenantQueue] = Lanes()
        #: Every waiting call by id, in order of arrival.
        self.arrivals: OrderedDict[int, Ticket] = OrderedDict()

    def __len__(self) -> int:
        return len(self.arrivals)

    def tenant(self, name: str) -> TenantQueue:
        """The queue of a tenant, new if it is not known."""
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = TenantQueue(name)
        return tenant

    def add(self, ticket: Ticket) -> None:
        """Let a call wait."""
        flow, tenant, call_id = ticket.flow, ticket.flow.tenant, ticket.call.call_id
        self.arrivals[call_id] = ticket
        tenant.queued += 1
        if ticket.continues:
            flow.continuing[call_id] = ticket
            tenant.continuing += 1
        else:
            flow.beginning[call_id] = ticket
            tenant.depths.moved(flow, len(flow.beginning) - 1, len(flow.beginning))
        self._place(flow)

    def remove(self, call_id: int) -> Ticket:
        """Take a call out. Raises KeyError if it does not wait."""
        ticket = self.arrivals.pop(call_id)
        flow, tenant = ticket.flow, ticket.flow.tenant
        tenant.queued -= 1
        if ticket.continues:
            del flow.continuing[call_id]
            tenant.continuing -= 1
        else:
            del flow.beginning[call_id]
            tenant.depths.moved(flow, len(flow.beginning) + 1, len(flow.beginning))
        self._place(flow)
        return ticket

    def _place(self, flow: Flow) -> None:
        tenant = flow.tenant
        tenant.lanes.place(flow, waiting=flow.waiting > 0, continues=bool(flow.continuing))
        self.lanes.place(tenant, waiting=tenant.queued > 0, continues=tenant.continuing > 0)
