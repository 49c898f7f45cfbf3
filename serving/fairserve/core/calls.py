"""What goes into the scheduler and what comes out: calls, usage and decisions.

Everything here is an immutable value; the five made for every call are tuples, which are quicker to make
than frozen dataclasses. Expected results are decisions, not exceptions; the sidecar turns
them into HTTP and metrics, the simulator into statistics. The enums are the label values of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

#: Units of cost in one typical call. Charges are whole units, so that they add up exactly.
UNIT: Final = 1_000_000_000


class Policy(StrEnum):
    """Which call goes next, and what a call costs."""

    FAIRSERVE = "FairServe"  #: weighted service counters on application-normalised cost
    VTC = "VTC"  #: the plain token counter (Sheng et al., OSDI '24): λ = 0, no continuation head start
    FCFS = "FCFS"  #: arrival order, no fairness; the negative control


class ThrottlingMode(StrEnum):
    """What happens to a call that OIT would refuse."""

    ENFORCE = "Enforce"  #: it is refused
    SHADOW = "Shadow"  #: it is counted and queued


class RefusalReason(StrEnum):
    """Why a call was not queued, or left the queue undispatched. A closed list: clients may switch on it."""

    USER_LIMIT = "user_interaction_limit"
    TENANT_LIMIT = "tenant_interaction_limit"
    APPLICATION_LIMIT = "application_interaction_limit"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"


class Outcome(StrEnum):
    """How a call ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  #: its client left
    FAILED = "failed"  #: the engine refused it or broke
    REFUSED = "refused"  #: never queued
    EVICTED = "evicted"  #: left the queue without being dispatched


class Call(NamedTuple):
    """One HTTP call to the model, as the scheduler sees it.

    `interaction` is what the client claims to continue; whether it does is decided by the tracker.
    `input_tokens` counts the whole prompt including `system_tokens`; both may be estimates, the engine's
    usage corrects them at the end. `max_output_tokens` is the client's own cap, None where it gave none.
    """

    call_id: int
    tenant: str
    user: str
    application: str
    input_tokens: int
    system_tokens: int = 0
    max_output_tokens: int | None = None
    interaction: str | None = None
    body_bytes: int = 0


class Usage(NamedTuple):
    """What the engine computed for a call, in tokens. `input_tokens` includes `cached_tokens`."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is refused and what its client should know. Only the caller's own limit is named.

    `retry_after_s` is exact (a retry after it finds room in the window), before capping and jitter;
    None where no time can be given. `limit` and `window_s` describe the limit that refused it.
    """

    reason: RefusalReason
    retry_after_s: float | None
    limit: int | None = None
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tightest interaction limit that applies to a caller, for `x-ratelimit-*` headers."""

    limit: int
    remaining: int
    reset_s: float  #: seconds until one more interaction is admitted or a used one is given back; 0 if unused


class Queued(NamedTuple):
    """The call waits. `would_refuse` is set in Shadow mode, where it would have been refused.

    `begins_interaction` is the server's word: a call that claims to continue what is not open begins.
    `evicted` names the calls that left the queue to make room, each with its reason.
    """

    call_id: int
    begins_interaction: bool
    would_refuse: Refusal | None = None
    evicted: tuple[Evicted, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The call was never queued. `wasted_tokens` were computed for the interaction that lost it."""

    call_id: int
    refusal: Refusal
    wasted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Evicted:
    """The call left the queue without being dispatched. `wasted_tokens` as in `Refused`."""

    call_id: int
    refusal: Refusal
    wasted_tokens: int = 0


class Dispatched(NamedTuple):
    """The call goes to the engine now. `units` is its predicted cost, which is charged already.

    `wait_s` is its time in the queue. `priority` is for engines that schedule by priority: smaller goes
    first, as in the scheduler's own order.
    """

    call_id: int
    wait_s: float
    units: int
    predicted_output_tokens: int
    priority: int

    @property
    def charged(self) -> float:
        """The predicted normalised cost: 1.0 is one typical call."""
        return self.units / UNIT


class Settled(NamedTuple):
    """The call has ended and its charge is final.

    `units` is its normalised cost, before division by weights, in whole units of a billionth of a typical
    call: what a tenant is charged is their exact sum.
    """

    call_id: int
    tenant: str
    application: str
    outcome: Outcome
    units: int
    usage: Usage

    @property
    def service(self) -> float:
        """The normalised cost: 1.0 is one typical call."""
        return self.units / UNIT
