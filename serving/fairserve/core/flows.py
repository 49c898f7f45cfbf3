"""What waits: calls in flows, flows in tenants, and all of them in order of arrival.

The backlog knows who has what waiting, and holds for every flow, tenant and application what is remembered of
it. It decides nothing: orders, the throttle and the scheduler do. Calls are linked through their own tickets,
so that any of them leaves in O(1), and an idle flow holds no queue.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final

from fairserve.core.calls import Call
from fairserve.core.cost import Tariff
from fairserve.core.counters import CounterQueue, Member
from fairserve.core.interactions import Interaction
from fairserve.core.limits import Window
from fairserve.core.prediction import ApplicationState, BytesPerToken
from fairserve.core.settings import TenantSettings

#: Where a call is in its life.
WAITS: Final = 0
RUNS: Final = 1
GONE: Final = 2


class Ticket:
    """One known call: its place while it waits, its charge while it runs."""

    __slots__ = (
        "after",
        "application_weight",
        "arrived",
        "before",
        "body_bytes",
        "call",
        "call_id",
        "charged_output",
        "continues",
        "flow",
        "input_tokens",
        "interaction",
        "max_output_tokens",
        "number",
        "part",
        "rate",
        "stage",
        "system_tokens",
        "tariff",
        "tenant_weight",
        "timeline",
        "units",
    )

    # Written only when the call is dispatched; until then reading them is an error.
    tariff: Tariff  #: prices of tokens in force at dispatch, so that all its charges are one function
    rate: float  #: units for one priced token
    tenant_weight: float
    application_weight: float
    charged_output: int  #: output tokens charged so far: the prediction, then what exceeds it
    units: int  #: charged so far

    def __init__(
        self,
        call: Call,
        part: Part,
        timeline: Timeline,
        arrived: float,
        number: int,
        interaction: Interaction | None,
        continues: bool,
    ) -> None:
        self.call = call
        # Copies of what is read at dispatch and at the end: the call is out of the processor's cache by then.
        self.call_id = call.call_id
        self.input_tokens = call.input_tokens
        self.system_tokens = call.system_tokens
        self.max_output_tokens = call.max_output_tokens
        self.body_bytes = call.body_bytes
        self.part = part
        self.flow = part.flow
        self.timeline = timeline
        self.arrived = arrived  #: seconds, on the caller's clock
        self.number = number  #: its place in the order of arrival
        #: None where the client gave no id: the call is its own interaction.
        self.interaction = interaction
        self.continues = continues  #: whether it continues an admitted interaction
        self.stage = WAITS
        self.before: Ticket | None = None
        self.after: Ticket | None = None


class Timeline:
    """Calls that may wait equally long, in order of arrival: the first is the first to expire. Those that
    wait no longer are dropped when they come first, or all at once when they outnumber the others.
    """

    __slots__ = ("calls", "max_wait_s", "waiting")

    #: Calls that are gone are swept when they outnumber the waiting ones by this many.
    SLACK = 64

    def __init__(self, max_wait_s: float) -> None:
        self.max_wait_s = max_wait_s
        self.calls: deque[Ticket] = deque()
        self.waiting = 0

    def first(self) -> Ticket | None:
        """The call that has waited longest."""
        calls = self.calls
        while calls:
            if calls[0].stage == WAITS:
                return calls[0]
            calls.popleft()
        return None

    def put_back(self, ticket: Ticket) -> None:
        """A call waits again, at the place that its arrival gives it."""
        at = bisect_left(self.calls, ticket.number, key=_number)
        self.calls.insert(at, ticket)
        self.waiting += 1

    def sweep(self) -> None:
        """Drop calls that wait no longer."""
        self.calls = deque(ticket for ticket in self.calls if ticket.stage == WAITS)


class Part:
    """What is remembered of one flow in one application: its averages, its window, its interactions."""

    __slots__ = (
        "application",
        "flow",
        "input_tokens",
        "interactions",
        "output_tokens",
        "prune_at",
        "samples",
        "system_tokens",
        "window",
    )

    def __init__(self, flow: Flow, application: ApplicationState) -> None:
        self.flow = flow
        self.application = application
        #: Moving averages over completed calls, and how many there were.
        self.input_tokens = 0.0
        self.system_tokens = 0.0
        self.output_tokens = 0.0
        self.samples = 0
        #: Admissions under the application's limit for a user.
        self.window: Window | None = None
        #: Interactions that may be open, by the id that the client gave.
        self.interactions: dict[str, Interaction] | None = None
        #: How many of them are remembered before the closed ones are looked for.
        self.prune_at = 16


class Flow(Member):
    """One (tenant, user) pair: what it has waiting and how much service it has had."""

    __slots__ = (
        "bytes",
        "first",
        "first_continuing",
        "granted",
        "idle_since",
        "last",
        "last_continuing",
        "parts",
        "recent",
        "running",
        "tenant",
        "user",
        "waiting",
        "window",
    )

    def __init__(self, tenant: TenantQueue, user: str) -> None:
        super().__init__()
        self.tenant = tenant
        self.user = user
        #: First and last of the waiting calls that begin an interaction, and of those that continue one. They
        #: are linked by `before` and `after` in order of arrival.
        self.first: Ticket | None = None
        self.last: Ticket | None = None
        self.first_continuing: Ticket | None = None
        self.last_continuing: Ticket | None = None
        #: Calls that wait, and the bytes of their bodies.
        self.waiting = 0
        self.bytes = 0
        #: Calls in the engine.
        self.running = 0
        #: Up to where its counter may go in its turn, under round robin.
        self.granted = 0
        self.idle_since = 0.0
        #: Admissions under the tenant's limit for a user.
        self.window: Window | None = None
        #: By the name of the application, and the one used last, which is mostly the next.
        self.parts: dict[str, Part] = {}
        self.recent: Part | None = None

    def head(self, *, continuations_first: bool) -> Ticket | None:
        """The next call: continuations first where that is asked for, otherwise first come, first served."""
        begins = self.first
        if not self.continuing:
            return begins
        continues = self.first_continuing
        if continuations_first or begins is None or continues is None:
            return continues
        return continues if continues.number < begins.number else begins

    def unlink(self, ticket: Ticket) -> None:
        """Take a waiting call out from between its neighbours."""
        before, after = ticket.before, ticket.after
        if before is not None:
            before.after = after
        elif ticket.continues:
            self.first_continuing = after
        else:
            self.first = after
        if after is not None:
            after.before = before
        elif ticket.continues:
            self.last_continuing = before
        else:
            self.last = before
        ticket.before = ticket.after = None

    def link(self, ticket: Ticket) -> None:
        """Put a call back between its neighbours. It was first when it went, so that only calls that came
        before it and were put back as well are before it now.
        """
        before, after = None, self.first_continuing if ticket.continues else self.first
        while after is not None and after.number < ticket.number:
            before, after = after, after.after
        ticket.before, ticket.after = before, after
        if before is not None:
            before.after = ticket
        elif ticket.continues:
            self.first_continuing = ticket
        else:
            self.first = ticket
        if after is not None:
            after.before = ticket
        elif ticket.continues:
            self.last_continuing = ticket
        else:
            self.last = ticket

    def beginning(self) -> Iterator[Ticket]:
        """Waiting calls that begin an interaction, newest first."""
        ticket = self.last
        while ticket is not None:
            yield ticket
            ticket = ticket.before

    def continuations(self) -> Iterator[Ticket]:
        """Waiting calls that continue one, newest first."""
        ticket = self.last_continuing
        while ticket is not None:
            yield ticket
            ticket = ticket.before

    def part(self, application: ApplicationState) -> Part:
        """What is remembered of it in an application, new if nothing is."""
        part = self.parts.get(application.name)
        if part is None:
            part = self.parts[application.name] = Part(self, application)
        self.recent = part
        return part


class TenantQueue(Member):
    """One tenant: its flows, and how much service it has had."""

    __slots__ = (
        "bytes",
        "bytes_per_token",
        "flows",
        "held",
        "idle",
        "interactions",
        "max_bytes",
        "max_bytes_per_user",
        "max_requests",
        "max_requests_per_user",
        "name",
        "per_user",
        "queue",
        "queued",
        "running",
        "service",
        "settings",
        "timeline",
        "total",
        "weight",
        "window",
        "windows",
    )

    def __init__(self, name: str, settings: TenantSettings, head_start: int) -> None:
        super().__init__()
        self.name = name
        self.adopt(settings)
        self.flows: dict[str, Flow] = {}
        self.queue: CounterQueue[Flow] = CounterQueue(head_start)
        #: Flows with nothing waiting or running, least recently used first.
        self.idle: OrderedDict[str, Flow] = OrderedDict()
        self.queued = 0
        self.bytes = 0
        self.running = 0
        #: Units charged to it for calls of its own here, not divided by weights.
        self.service = 0
        #: Interactions that are remembered.
        self.interactions = 0
        #: Admissions under its limit in total, and under applications' limits for a tenant.
        self.window: Window | None = None
        self.windows: dict[str, Window] = {}
        #: By application: what its bodies were like.
        self.bytes_per_token: dict[str, BytesPerToken] = {}

    def adopt(self, settings: TenantSettings) -> None:
        """Take settings; what waits keeps the time it may wait."""
        self.settings = settings
        # Copies of what is read for every call: fewer objects to touch.
        self.weight, self.held = settings.weight, settings.held
        self.per_user, self.total = settings.per_user, settings.total
        queue = settings.queue
        self.max_requests, self.max_bytes = queue.max_requests, queue.max_bytes
        self.max_requests_per_user = queue.max_requests_per_user or queue.max_requests
        self.max_bytes_per_user = queue.max_bytes_per_user or queue.max_bytes
        #: Where its next call waits; None after a change.
        self.timeline: Timeline | None = None

    def flow(self, user: str) -> Flow:
        """The flow of a user, new if it is not known."""
        flow = self.flows.get(user)
        if flow is None:
            flow = self.flows[user] = Flow(self, user)
        return flow


class Backlog:
    """All tenants, and all calls that wait or run."""

    __slots__ = ("bytes", "calls", "number", "queued", "running", "tenants", "timelines")

    def __init__(self) -> None:
        self.tenants: dict[str, TenantQueue] = {}
        self.calls: dict[int, Ticket] = {}
        self.timelines: dict[float, Timeline] = {}
        self.queued = 0
        self.bytes = 0
        self.running = 0
        #: Calls that came so far.
        self.number = 0

    def add(
        self, call: Call, part: Part, now: float, interaction: Interaction | None, continues: bool
    ) -> None:
        """Let a call wait, behind its flow's others of its kind."""
        flow = part.flow
        tenant = flow.tenant
        timeline = tenant.timeline
        if timeline is None:
            timeline = tenant.timeline = self._timeline(tenant.settings.queue.max_wait_s)
        self.number = number = self.number + 1
        ticket = Ticket(call, part, timeline, now, number, interaction, continues)
        self.calls[ticket.call_id] = ticket
        timeline.calls.append(ticket)
        timeline.waiting += 1
        if continues:
            flow.continuing += 1
            tenant.continuing += 1
            last = flow.last_continuing
            flow.last_continuing = ticket
            if last is None:
                flow.first_continuing = ticket
            else:
                last.after = ticket
                ticket.before = last
        else:
            last = flow.last
            flow.last = ticket
            if last is None:
                flow.first = ticket
            else:
                last.after = ticket
                ticket.before = last
        body_bytes = ticket.body_bytes
        if body_bytes:
            flow.bytes += body_bytes
            tenant.bytes += body_bytes
            self.bytes += body_bytes
        flow.waiting += 1
        tenant.queued += 1
        self.queued += 1

    def take(self, ticket: Ticket, stage: int) -> None:
        """Take a call out of the queue. The caller drops it from `calls` if it is gone."""
        flow = ticket.flow
        tenant = flow.tenant
        if ticket.continues:
            flow.continuing -= 1
            tenant.continuing -= 1
        flow.unlink(ticket)
        ticket.stage = stage
        timeline = ticket.timeline
        timeline.waiting = waiting = timeline.waiting - 1
        if len(timeline.calls) > 2 * waiting + 64:
            timeline.sweep()
        body_bytes = ticket.body_bytes
        if body_bytes:
            flow.bytes -= body_bytes
            tenant.bytes -= body_bytes
            self.bytes -= body_bytes
        flow.waiting -= 1
        tenant.queued -= 1
        self.queued -= 1

    def put_back(self, gone: Ticket) -> Ticket:
        """Let a call that ran wait again, in its old place; its new ticket. The old one may still stand in
        its timeline, and is dropped there as one that is gone.
        """
        gone.stage = GONE
        timeline = self._timeline(gone.timeline.max_wait_s)
        ticket = Ticket(
            gone.call, gone.part, timeline, gone.arrived, gone.number, gone.interaction, gone.continues
        )
        self.calls[ticket.call_id] = ticket
        timeline.put_back(ticket)
        flow = ticket.flow
        tenant = flow.tenant
        if ticket.continues:
            flow.continuing += 1
            tenant.continuing += 1
        flow.link(ticket)
        flow.bytes += ticket.body_bytes
        tenant.bytes += ticket.body_bytes
        self.bytes += ticket.body_bytes
        flow.waiting += 1
        tenant.queued += 1
        self.queued += 1
        return ticket

    def drop_empty_timelines(self) -> None:
        """Forget waits that no tenant has any more."""
        used = {tenant.timeline for tenant in self.tenants.values()}
        for timeline in [line for line in self.timelines.values() if not line.waiting and line not in used]:
            del self.timelines[timeline.max_wait_s]

    def flows_in_order(self) -> list[Flow]:
        """Flows with something waiting, by their first call's arrival."""
        waiting = [ticket for ticket in self.calls.values() if ticket.stage == WAITS]
        waiting.sort(key=lambda ticket: ticket.number)
        return list(dict.fromkeys(ticket.flow for ticket in waiting))

    @property
    def oldest(self) -> Ticket | None:
        """The waiting call that came first."""
        heads = [head for line in self.timelines.values() if (head := line.first()) is not None]
        return min(heads, key=lambda ticket: ticket.number, default=None)

    def _timeline(self, max_wait_s: float) -> Timeline:
        timeline = self.timelines.get(max_wait_s)
        if timeline is None:
            timeline = self.timelines[max_wait_s] = Timeline(max_wait_s)
        return timeline


def _number(ticket: Ticket) -> int:
    return ticket.number
