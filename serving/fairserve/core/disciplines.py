"""What makes one scheduler differ from another: an order, a cost, and when calls are refused.

The first two are the core's seams, the third is the throttle's variant. Everything else (counters, windows,
interactions, prediction, bounds) is the same for all, so that a comparison compares like with like.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from fairserve.core.calls import Policy


class Ordering(Enum):
    """Which waiting call goes next."""

    ARRIVAL = "arrival"  #: first come, first served
    COUNTERS = "counters"  #: the tenant, then its user, that has had least service
    ROUND_ROBIN = "round robin"  #: flows take turns, each spending a quantum (deficit round robin)


class Throttling(Enum):
    """Which calls over a limit are refused."""

    NONE = "none"
    #: Any call of a user over its limit, overloaded or not. Limits count calls.
    CALLS_ALWAYS = "calls, always"
    #: Any call over any limit while overloaded: it may cut an interaction. Limits count calls.
    CALLS_WHILE_OVERLOADED = "calls, while overloaded"
    #: OIT: calls that begin an interaction, while overloaded. Limits count interactions.
    INTERACTIONS_WHILE_OVERLOADED = "interactions, while overloaded"

    @property
    def counts_calls(self) -> bool:
        """Whether limits count calls; otherwise they count interactions."""
        return self in (Throttling.CALLS_ALWAYS, Throttling.CALLS_WHILE_OVERLOADED)


@dataclass(frozen=True, slots=True)
class Discipline:
    """One scheduler, as choices at the seams."""

    ordering: Ordering = Ordering.COUNTERS
    #: Whether the next call of a flow, and between flows within Δ, is one that continues an interaction.
    continuations_first: bool = True
    #: Whether cost is relative to the application (λ of the settings) or plain tokens (λ = 0).
    relative_cost: bool = True
    #: Whether a dispatch is charged the output it will probably have; otherwise its prompt alone.
    predicts: bool = True
    throttling: Throttling = Throttling.INTERACTIONS_WHILE_OVERLOADED


#: What `scheduler.policy` offers. Throttling is the pool's other choice: OIT works with each of them.
OFFERED: Final = {
    Policy.FAIRSERVE: Discipline(),
    Policy.VTC: Discipline(continuations_first=False, relative_cost=False),
    Policy.FCFS: Discipline(ordering=Ordering.ARRIVAL, continuations_first=False),
}
