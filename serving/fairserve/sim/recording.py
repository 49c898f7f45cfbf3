"""What happened in a run: one record a call, one an interaction, and what the pool's state was when.

Records are filled in while the run goes on; metrics read them afterwards. Times are simulated seconds,
`math.nan` where a thing has not happened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from fairserve.sim.workload import CallPlan, Client, InteractionPlan

NEVER = math.nan


class Fate(StrEnum):
    """How a call ended, as its client sees it."""

    OPEN = "open"  #: the run ended first
    SERVED = "served"
    CANCELLED = "cancelled"  #: by its own client
    REFUSED = "refused"  #: and given up
    EVICTED = "evicted"  #: and given up
    FAILED = "failed"  #: its pod died


@dataclass(slots=True, eq=False)
class InteractionRecord:
    """One interaction."""

    client: Client
    plan: InteractionPlan
    identity: str | None  #: the id that its client sends
    begun_s: float
    ended_s: float = NEVER
    served: int = 0  #: calls served so far
    refusals: int = 0  #: how often one of its calls was refused or evicted
    lost: bool = False  #: a call was refused, evicted or failed for good
    dropped: bool = False  #: its client dropped it
    tokens: int = 0  #: computed for it

    @property
    def complete(self) -> bool:
        """Whether every call was served."""
        return self.served == len(self.plan.calls)


@dataclass(slots=True, eq=False)
class CallRecord:
    """One call, over all its attempts."""

    call_id: int
    plan: CallPlan
    interaction: InteractionRecord
    first_sent_s: float
    sent_s: float  #: the last attempt
    cached_tokens: int = 0
    target_tokens: int = 0  #: output after which it ends: the plan's, or less where its client drops it
    refusals: int = 0
    pod: int = -1
    arrival: int = -1  #: place in the pod's order of arrival, of the attempt that was queued
    queued_s: float = NEVER
    dispatched_s: float = NEVER
    behind: int = -1  #: calls left waiting in the scheduler when it was dispatched
    predicted_tokens: int = 0
    first_token_s: float = NEVER
    ended_s: float = NEVER
    counted_s: float = NEVER  #: when its tokens were counted, if it still ran at the end of the run
    input_tokens: int = 0  #: computed, cached ones included
    output_tokens: int = 0
    charged: float = 0.0  #: normalised cost: settled, or so far of a call that runs at the end
    fate: Fate = Fate.OPEN

    @property
    def wait_s(self) -> float:
        """From the first time it was sent to dispatch, refusals and pauses between attempts included."""
        return self.dispatched_s - self.first_sent_s

    @property
    def ttft_s(self) -> float:
        """Time to first token, from the first time it was sent."""
        return self.first_token_s - self.first_sent_s


@dataclass(frozen=True, slots=True)
class Transition:
    """The pool became overloaded or clear."""

    at_s: float
    armed: bool
    reason: str


@dataclass(slots=True, eq=False)
class Recording:
    """One run."""

    scenario: str
    policy: str
    seed: int
    calls: list[CallRecord] = field(default_factory=list)
    interactions: list[InteractionRecord] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    #: By pod, calls in order of dispatch.
    dispatched: list[list[CallRecord]] = field(default_factory=list)
    ended_s: float = 0.0
    preemptions: int = 0
    computed_tokens: int = 0
    refused_attempts: int = 0
    would_refuse: int = 0
