"""Which waiting call is next, and which share of its cost is relative to its application.

FairServe and VTC follow the counters; FCFS follows arrival, and is what a fairness test must be able to tell
from the other two; round robin lets flows take turns.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import assert_never

from fairserve.core.disciplines import Discipline, Ordering
from fairserve.core.flows import Backlog, Flow, Ticket
from fairserve.core.settings import Settings


class RoundRobin:
    """Whose turn it is under deficit round robin: a flow goes while it has not spent its quantum."""

    #: What a flow may spend in one turn, in normalised cost.
    QUANTUM = 1.0

    def __init__(self) -> None:
        self._ring: OrderedDict[Flow, None] = OrderedDict()

    def next(self, backlog: Backlog) -> Ticket | None:
        """The next call of the flow whose turn it is."""
        if not backlog.arrivals:
            return None
        if not self._ring:
            for ticket in backlog.arrivals.values():
                self._ring[ticket.flow] = None
        while True:
            if not self._ring:
                return self.next(backlog)
            flow = next(iter(self._ring))
            if flow.head is None:
                del self._ring[flow]
                flow.deficit = min(flow.deficit, 0.0)
            elif flow.deficit > 0.0:
                return flow.head
            else:
                flow.deficit += self.QUANTUM
                if flow.deficit <= 0.0:
                    self._ring.move_to_end(flow)


def next_ticket(
    backlog: Backlog, settings: Settings, discipline: Discipline, ring: RoundRobin
) -> Ticket | None:
    """The call to dispatch next; None if nothing waits."""
    match discipline.ordering:
        case Ordering.COUNTERS:
            head_start = settings.continuation_head_start if discipline.continuations_first else 0.0
            return _least_served(backlog, head_start)
        case Ordering.ARRIVAL:
            return next(iter(backlog.arrivals.values()), None)
        case Ordering.ROUND_ROBIN:
            return ring.next(backlog)
        case other:
            assert_never(other)


def normalised_share(settings: Settings, discipline: Discipline) -> float:
    """λ: the share of a call's cost that is relative to its application."""
    return settings.normalisation if discipline.relative_cost else 0.0


def _least_served(backlog: Backlog, head_start: float) -> Ticket | None:
    """The tenant with the smallest counter, then its user with the smallest, then that flow's head."""
    tenant = backlog.lanes.first(head_start)
    if tenant is None:
        return None
    flow = tenant.lanes.first(head_start)
    assert flow is not None, f"tenant {tenant.name} waits without a waiting flow"
    return flow.head
