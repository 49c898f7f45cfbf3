"""OIT: overload- and interaction-driven throttling (scheduling.md §4), and the variants it is compared with.

A call is refused only if the pool is overloaded, the call would begin an interaction, and its user,
tenant or application is over an interaction limit. Everything else is queued, whatever the rate.

The windows live with whom they count: a user's with its flow, a tenant's with the tenant, an application's
with the application. So what is forgotten with one is what was remembered of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fairserve.core.calls import Allowance, Refusal, RefusalReason
from fairserve.core.flows import Part, TenantQueue
from fairserve.core.limits import Window
from fairserve.core.settings import ApplicationSettings, Limit, TenantSettings
from fairserve.core.sharing import SharedWindow


class _Counts(Protocol):
    """What a limit's memory can tell of a caller."""

    def retry_after(self, now: float) -> float: ...
    def remaining(self, now: float) -> int: ...
    def reset_s(self, now: float) -> float: ...


class _Share:
    """One user's view of an application's limit over all tenants."""

    def __init__(self, shared: SharedWindow, tenant: str, user: str) -> None:
        self._shared, self._tenant, self._user = shared, tenant, user

    def retry_after(self, now: float) -> float:
        return self._shared.retry_after(self._tenant, self._user, now)

    def remaining(self, now: float) -> int:
        remaining = self._shared.remaining(now)
        return remaining or int(self._shared.may_begin(self._tenant, self._user, now))

    def reset_s(self, now: float) -> float:
        return self._shared.reset_s(now)


#: One limit that applies to a caller: why it would refuse, the limit, and what it counted.
_Applied = tuple[RefusalReason, Limit, _Counts]


def refusal(part: Part, now: float, *, users_only: bool = False) -> Refusal | None:
    """Why this caller may not begin an interaction now; None if it may. Of several limits that are
    reached the one that stays reached longest is named, so a retry after it meets none of the others.
    """
    worst: Refusal | None = None
    worst_s = 0.0
    for reason, limit, window in _applied(part):
        if users_only and reason is not RefusalReason.USER_LIMIT:
            continue
        retry_after_s = window.retry_after(now)
        if retry_after_s > worst_s:
            worst_s = retry_after_s
            worst = Refusal(reason, retry_after_s, limit.count, limit.window_s)
    return worst


def admit(part: Part, now: float) -> None:
    """Count an interaction that begins, overloaded or not: a limit looks back over its whole window."""
    flow, application = part.flow, part.application
    tenant, rules = flow.tenant, application.settings
    limit = tenant.per_user
    if limit is not None:
        window = flow.window
        if window is None or window.limit is not limit:
            window = flow.window = _under(window, limit)
        window.admit(now)
    limit = tenant.total
    if limit is not None:
        window = tenant.window
        if window is None or window.limit is not limit:
            window = tenant.window = _under(window, limit)
        window.admit(now)
    if rules.per_user is not None:
        window = part.window
        if window is None or window.limit is not rules.per_user:
            window = part.window = _under(window, rules.per_user)
        window.admit(now)
    if rules.per_tenant is not None:
        window = tenant.windows.get(application.name)
        if window is None or window.limit is not rules.per_tenant:
            window = tenant.windows[application.name] = _under(window, rules.per_tenant)
        window.admit(now)
    if rules.total is not None:
        shared = application.shared
        if shared is None:
            shared = SharedWindow(rules.total)
        application.shared = shared = shared.under(rules.total)
        shared.forget(now)
        shared.admit(tenant.name, flow.user, now)


def allowance(part: Part, now: float) -> Allowance | None:
    """The tightest limit of this caller; None if none applies."""
    allowances = (
        Allowance(limit.count, window.remaining(now), window.reset_s(now))
        for _, limit, window in _applied(part)
    )
    return min(allowances, key=lambda known: (known.remaining, -known.reset_s), default=None)


def _applied(part: Part) -> Iterator[_Applied]:
    flow, application = part.flow, part.application
    tenant = flow.tenant
    limits: TenantSettings = tenant.settings
    rules: ApplicationSettings = application.settings
    if limits.per_user is not None:
        yield RefusalReason.USER_LIMIT, limits.per_user, _under(flow.window, limits.per_user)
    if rules.per_user is not None:
        yield RefusalReason.USER_LIMIT, rules.per_user, _under(part.window, rules.per_user)
    if limits.total is not None:
        yield RefusalReason.TENANT_LIMIT, limits.total, _under(tenant.window, limits.total)
    if rules.per_tenant is not None:
        window = _under(tenant.windows.get(application.name), rules.per_tenant)
        yield RefusalReason.APPLICATION_LIMIT, rules.per_tenant, window
    if rules.total is not None and application.shared is not None:
        application.shared = shared = application.shared.under(rules.total)
        share = _Share(shared, tenant.name, flow.user)
        yield RefusalReason.APPLICATION_LIMIT, rules.total, share


def _under(window: Window | None, limit: Limit) -> Window:
    return Window(limit) if window is None else window.under(limit)


def is_quiet(tenant: TenantQueue, now: float) -> bool:
    """Whether none of a tenant's own windows counts anything any more."""
    windows = (tenant.window, *tenant.windows.values())
    return all(window is None or window.is_empty(now) for window in windows)
