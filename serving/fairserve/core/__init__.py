"""The scheduling core: weighted service counters (WSC) and overload- and interaction-driven throttling (OIT).

After FairServe (arXiv 2411.15997) and the Virtual Token Counter (Sheng et al., OSDI '24).

**Order.** Every flow, a (tenant, user) pair, has a counter: the service it has had. The next call comes from
the tenant with the smallest counter and, inside it, from the user with the smallest. Inside a flow calls that
continue an admitted interaction go first, otherwise first come, first served. A call is charged its predicted
cost when it is dispatched, what exceeds the prediction while it runs, and its actual cost in their place when
it ends; so a user can't fill a batch before the first charge, and one who hangs up still pays.

**Cost.** `N(r) = λ·S(r)/w_a + (1 − λ)·S(r)/w̄`: see `cost`. A tenant's counter is charged `N(r)/ω_t`, its
user's `N(r)/ω_a`. The paper multiplies by a factor E whose larger values mean *lower* priority; we divide by
a weight.

**Lift.** A flow or tenant that becomes active again starts at least at V, the smallest counter among the
active ones: nobody saves up credit by idling.

**Bound.** Let f and g (flows of one tenant, or tenants) be backlogged throughout an interval. A dispatch goes
to the smallest counter, continuations ahead by at most Δ, so before each charge of f its counter is at most Δ
above g's. What f has in flight beyond its charge is at most
`U = max_a[max(α·L_in + β·L_sys, γ·M)/w_a]/ω_min` (L: longest input, M: tokens one engine holds). With f
and g exchanged: `|W_f − W_g| ≤ 2·U + Δ`.

**Throttling.** See `throttle`. **Memory.** A window remembers at most `count` admissions, an idle flow is
forgotten once its counter is at its tenant's floor.

Time is an argument and randomness a `random.Random`; nothing in here does I/O.
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
