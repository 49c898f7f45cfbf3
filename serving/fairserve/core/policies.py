"""Which waiting call is next, and which share of its cost is relative to its application.

A policy is two choices: an order over the backlog and λ. FairServe and VTC follow the counters; FCFS
follows arrival, and is what a fairness test must be able to tell from the other two.
"""

from __future__ import annotations

from typing import assert_never

from fairserve.core.calls import Policy
from fairserve.core.flows import Backlog, Ticket
from fairserve.core.settings import Settings


def next_ticket(backlog: Backlog, settings: Settings) -> Ticket | None:
    """The call to dispatch next; None if nothing waits."""
    match settings.policy:
        case Policy.FAIRSERVE:
            return _least_served(backlog, settings.continuation_head_start)
        case Policy.VTC:
            return _least_served(backlog, head_start=0.0)
        case Policy.FCFS:
            return next(iter(backlog.arrivals.values()), None)
        case other:
            assert_never(other)


def normalised_share(settings: Settings) -> float:
    """λ: the share of a call's cost that is relative to its application."""
    return 0.0 if settings.policy is Policy.VTC else settings.normalisation


def _least_served(backlog: Backlog, head_start: float) -> Ticket | None:
    """The tenant with the smallest counter, then its user with the smallest, then that flow's head."""
    tenant = backlog.lanes.first(head_start)
    if tenant is None:
        return None
    flow = tenant.lanes.first(head_start)
    assert flow is not None, f"tenant {tenant.name} waits without a waiting flow"
    return flow.head
