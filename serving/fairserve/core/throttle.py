"""OIT: overload- and interaction-driven throttling (scheduling.md §4).

A call is refused only if the pool is overloaded, the call would begin an interaction, and its user,
tenant or application is over an interaction limit. Everything else is queued, whatever the rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from fairserve.core.calls import Allowance, Refusal, RefusalReason
from fairserve.core.limits import Subject, Windows
from fairserve.core.settings import ApplicationSettings, Limit, TenantSettings

#: One limit that applies to a caller: why it would refuse, whom it counts, the limit.
Applied = tuple[RefusalReason, Subject, Limit]


class Throttle:
    """The limits' memory. Knows nothing of queues or costs."""

    def __init__(self) -> None:
        self.windows = Windows()

    def refusal(
        self,
        tenant: TenantSettings,
        user: str,
        application: ApplicationSettings,
        now: float,
        *,
        users_only: bool = False,
    ) -> Refusal | None:
        """Why this caller may not begin an interaction now; None if it may. Of several limits that are
        reached the one that stays reached longest is named, so a retry after it meets none of the others.
        """
        worst: Refusal | None = None
        for reason, subject, limit in _applied(tenant, user, application):
            if users_only and reason is not RefusalReason.USER_LIMIT:
                continue
            retry_after_s = self.windows.get(subject, limit).retry_after(now)
            if retry_after_s > (worst.retry_after_s or 0.0 if worst else 0.0):
                worst = Refusal(reason, retry_after_s, limit.count, limit.window_s)
        return worst

    def admit(self, tenant: TenantSettings, user: str, application: ApplicationSettings, now: float) -> None:
        """Count an interaction that begins, overloaded or not: a limit looks back over its whole window."""
        for _, subject, limit in _applied(tenant, user, application):
            self.windows.admit(subject, limit, now)

    def allowance(
        self, tenant: TenantSettings, user: str, application: ApplicationSettings, now: float
    ) -> Allowance | None:
        """The tightest limit of this caller; None if none applies."""
        allowances = []
        for _, subject, limit in _applied(tenant, user, application):
            window = self.windows.get(subject, limit)
            allowances.append(Allowance(limit.count, window.remaining(now), window.reset_s(now)))
        return min(allowances, key=lambda a: (a.remaining, -a.reset_s), default=None)


def _applied(tenant: TenantSettings, user: str, application: ApplicationSettings) -> Iterator[Applied]:
    if tenant.per_user is not None:
        yield RefusalReason.USER_LIMIT, ("tenant-user", tenant.name, user), tenant.per_user
    if application.per_user is not None:
        whose = ("application-user", application.name, tenant.name, user)
        yield RefusalReason.USER_LIMIT, whose, application.per_user
    if tenant.total is not None:
        yield RefusalReason.TENANT_LIMIT, ("tenant", tenant.name), tenant.total
    if application.per_tenant is not None:
        per_tenant = ("application-tenant", application.name, tenant.name)
        yield RefusalReason.APPLICATION_LIMIT, per_tenant, application.per_tenant
