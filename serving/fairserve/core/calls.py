"""What goes into the scheduler and what comes out: calls, usage and decisions.

Everything here is a value that nobody changes. The five that are made for every call spell out how: compiled,
that is quicker than what `dataclass` writes, and than any tuple. Expected results are decisions, not
exceptions; the sidecar turns them into HTTP and metrics, the simulator into statistics. The enums are the
label values of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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
    TENANT_HELD = "tenant_held"  #: its tenant begins nothing until somebody says otherwise


class Outcome(StrEnum):
    """How a call ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  #: its client left
    FAILED = "failed"  #: the engine refused it or broke
    REFUSED = "refused"  #: never queued
    EVICTED = "evicted"  #: left the queue without being dispatched


@dataclass(init=False)
class Call:
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
    system_tokens: int
    max_output_tokens: int | None
    interaction: str | None
    body_bytes: int

    def __init__(
        self,
        call_id: int,
        tenant: str,
        user: str,
        application: str,
        input_tokens: int,
        system_tokens: int = 0,
        max_output_tokens: int | None = None,
        interaction: str | None = None,
        body_bytes: int = 0,
    ) -> None:
        self.call_id = call_id
        self.tenant = tenant
        self.user = user
        self.application = application
        self.input_tokens = input_tokens
        self.system_tokens = system_tokens
        self.max_output_tokens = max_output_tokens
        self.interaction = interaction
        self.body_bytes = body_bytes


@dataclass(init=False)
class Usage:
    """What the engine computed for a call, in tokens. `input_tokens` includes `cached_tokens`."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int

    def __init__(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
    ) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens


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


@dataclass(init=False)
class Queued:
    """The call waits. `would_refuse` is set in Shadow mode, where it would have been refused.

    `begins_interaction` is the server's word: a call that claims to continue what is not open begins.
    `evicted` names the calls that left the queue to make room, each with its reason.
    """

    call_id: int
    begins_interaction: bool
    would_refuse: Refusal | None
    evicted: tuple[Evicted, ...]

    def __init__(
        self,
        call_id: int,
        begins_interaction: bool,
        would_refuse: Refusal | None = None,
        evicted: tuple[Evicted, ...] = (),
    ) -> None:
        self.call_id = call_id
        self.begins_interaction = begins_interaction
        self.would_refuse = would_refuse
        self.evicted = evicted


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


@dataclass(init=False)
class Dispatched:
    """The call goes to the engine now. `units` is its predicted cost, which is charged already.

    `wait_s` is its time in the queue. `priority` is for engines that schedule by priority: smaller goes
    first, as in the scheduler's own order.
    """

    call_id: int
    wait_s: float
    units: int
    predicted_output_tokens: int
    priority: int

    def __init__(
        self,
        call_id: int,
        wait_s: float,
        units: int,
        predicted_output_tokens: int,
        priority: int,
    ) -> None:
        self.call_id = call_id
        self.wait_s = wait_s
        self.units = units
        self.predicted_output_tokens = predicted_output_tokens
        self.priority = priority

    @property
    def charged(self) -> float:
        """The predicted normalised cost: 1.0 is one typical call."""
        return self.units / UNIT


@dataclass(init=False)
class Settled:
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

    def __init__(
        self,
        call_id: int,
        tenant: str,
        application: str,
        outcome: Outcome,
        units: int,
        usage: Usage,
    ) -> None:
        self.call_id = call_id
        self.tenant = tenant
        self.application = application
        self.outcome = outcome
        self.units = units
        self.usage = usage

    @property
    def service(self) -> float:
        """The normalised cost: 1.0 is one typical call."""
        return self.units / UNIT
