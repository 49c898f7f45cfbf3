"""The scheduling core: weighted service counters (WSC) and overload- and interaction-driven throttling (OIT).

After FairServe (arXiv 2411.15997) and the Virtual Token Counter (VTC; Sheng et al., OSDI '24).

**Order.** Every flow, a (tenant, user) pair, has a counter: the service it has had. The next call comes
from the tenant with the smallest counter and, inside it, from the user with the smallest. Inside a flow
calls that continue an admitted interaction go first, otherwise first come, first served. A flow (and its
tenant) with a continuation waiting counts as if it had had Δ less: it may run ahead of its turn by that and
no more.

**Cost.** `N(r) = λ·S(r)/w_a + (1 − λ)·S(r)/w̄`: see `cost`. A call is charged its predicted cost when it is
dispatched, what exceeds the prediction while it runs, and its actual cost in their place when it ends. A
tenant's counter is charged `N(r)/ω_t`, its user's `N(r)/ω_a`. All charges are whole units, so they add up
exactly.

**Lift.** A flow or tenant that becomes active again starts at least at V, the smallest counter of those that
wait (of the last that left, if nobody does): nobody saves up credit by idling.

**Bound.** Let f and g (tenants, or users of one tenant) have calls waiting throughout an interval, and let
W be what is charged to them in it. Let U bound what all calls that an engine holds can cost in counter
units:

    U = γ·M · max_a[λ/w_a + (1 − λ)/w̄] / ω_min

where M is the most tokens it holds at a time, one call's at least, and γ the highest token weight (with λ =
1 that is VTC's `max(α·L_in + β·L_sys, γ·M)`, normalised). Take any time t and the last dispatch of f before
it. Just before, f was first in order: `C_f ≤ C_g + Δ_f`, where Δ_f is Δ if f continued an interaction and 0
if not. Since then C_f has risen only by calls that the engine held after that dispatch, and C_g has fallen
only by refunds to such calls; an engine holds at most U of both together. So `C_f − C_g ≤ U + Δ_f` at any
time, and with f and g exchanged, at both ends of the interval,

    |W_f − W_g| ≤ 2·U + Δ_f + Δ_g

which is 2·U + Δ for agents against single calls, the case that a head start could harm. Members who come
during the interval are lifted to V at least, so they take no more than that from f either: of n others none
is charged more than the bound while a call of f waits, which bounds its wait by n times as much service.

**What we changed, and why.** The paper multiplies cost by a factor E whose larger values mean *lower*
priority; we divide by a weight. The authors' released code charges when a call completes, so that one user
can fill a batch for free and cancelled calls cost nothing; we charge at dispatch and settle. One level of
counters pays for every name that a tenant calls itself; ours has two. The paper's cost is relative to the
application alone (λ = 1), so that a small call labelled heavy is nearly free; λ < 1 bounds what a label can
gain.

**Throttling.** See `throttle`; an application's limit over all tenants: `sharing`. **Full queues.** See
`overflow`. **Memory.** See `memory`: what is idle is forgotten, and what is remembered is bounded by
tenant.

Time is an argument, and where the caller's clock goes back the scheduler's goes on from where it was.
Nothing in here is left to chance or does I/O.
"""

from fairserve.core.calls import (
    UNIT,
    Allowance,
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Policy,
    Queued,
    Refusal,
    RefusalReason,
    Refused,
    Settled,
    ThrottlingMode,
    Usage,
)
from fairserve.core.errors import (
    CallError,
    SchedulerError,
    SettingsError,
    SnapshotError,
    TimeError,
    UnknownCallError,
)
from fairserve.core.scheduler import Scheduler
from fairserve.core.settings import (
    DEFAULT_APPLICATION,
    DEFAULT_TENANT,
    ApplicationSettings,
    InteractionRules,
    Learning,
    Limit,
    Profile,
    QueueBounds,
    Settings,
    TenantSettings,
    TokenWeights,
    TotalBounds,
)
from fairserve.core.window import DispatchWindow, EngineSample

__all__ = [
    "DEFAULT_APPLICATION",
    "DEFAULT_TENANT",
    "UNIT",
    "Allowance",
    "ApplicationSettings",
    "Call",
    "CallError",
    "DispatchWindow",
    "Dispatched",
    "EngineSample",
    "Evicted",
    "InteractionRules",
    "Learning",
    "Limit",
    "Outcome",
    "Policy",
    "Profile",
    "QueueBounds",
    "Queued",
    "Refusal",
    "RefusalReason",
    "Refused",
    "Scheduler",
    "SchedulerError",
    "Settings",
    "SettingsError",
    "Settled",
    "SnapshotError",
    "TenantSettings",
    "ThrottlingMode",
    "TimeError",
    "TokenWeights",
    "TotalBounds",
    "UnknownCallError",
    "Usage",
]
