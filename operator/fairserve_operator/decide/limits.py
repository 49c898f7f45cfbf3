"""Limits that can never bind, because another object's is always reached first.

The strictest limit counts, so that a loose one is no fault: it is told and nothing is refused. A user's
interactions of one Application are among all that it begins as its tenant's user, so that an Application's
`perUser` never binds where every tenant's is stricter; its `perTenant` likewise where every `total` is. The
other way round nothing can be said: a tenant's callers also call what is no Application.

Each limit of an Application is compared with the most that any tenant is allowed, in the shortest window of
any, and not with each tenant's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain

from fairserve_operator.api.v1alpha1 import (
    ApplicationSpec,
    InteractionLimit,
    ServingPoolSpec,
    TenantInteractionLimits,
    TenantSpec,
    duration_s,
)
from fairserve_operator.decide.resources import ObjectKey, Parsed, Resource, remembered

NEVER_BINDS = "LimitNeverBinds"


@dataclass(frozen=True, slots=True)
class _Limit:
    count: int
    window_s: float
    words: str

    @classmethod
    def of(cls, limit: InteractionLimit | None) -> _Limit | None:
        if limit is None:
            return None
        return cls(limit.count, duration_s(limit.window), f"{limit.count} in {limit.window}")


#: A tenant's `perUser` and `total`.
_Bounds = tuple[_Limit | None, _Limit | None]


@dataclass(frozen=True, slots=True)
class _Loosest:
    """What no tenant exceeds. `words` and `key` are those of the one that allows most."""

    count: int
    window_s: float
    key: ObjectKey
    path: str
    words: str

    def is_always_first(self, limit: _Limit) -> bool:
        """Whether it is reached before the limit is, by everybody."""
        if self.count > limit.count or self.window_s < limit.window_s:
            return False
        return self.count < limit.count or self.window_s > limit.window_s


def never_binding(
    tenants: Iterable[Parsed[TenantSpec]],
    pools: Iterable[Parsed[ServingPoolSpec]],
    applications: Iterable[Parsed[ApplicationSpec]],
) -> dict[ObjectKey, list[str]]:
    """What both objects are told, of each limit that never binds. Objects that are ill-formed count for
    nothing; a pool's default tenant is a tenant like the others.
    """
    limited = [
        (each.resource.key, each.spec.interaction_limits)
        for each in applications
        if each.spec and each.spec.interaction_limits
    ]
    if not limited:
        return {}
    per_user, total = _loosest(tenants, pools)
    told: dict[ObjectKey, list[str]] = {}
    for key, limits in limited:
        for field, limit, bounds in (
            ("perUser", _Limit.of(limits.per_user), (per_user, total)),
            ("perTenant", _Limit.of(limits.per_tenant), (total,)),
        ):
            first = next((b for b in bounds if b and limit and b.is_always_first(limit)), None)
            if first is not None and limit is not None:
                _tell(told, key, f"spec.interactionLimits.{field}", limit.words, first)
    return told


def _tell(told: dict[ObjectKey, list[str]], key: ObjectKey, path: str, words: str, first: _Loosest) -> None:
    told.setdefault(key, []).append(
        f"{path}: {words} never binds: no tenant may begin so much; of all, {first.path} of {first.key} is "
        f"the loosest, {first.words}"
    )
    told.setdefault(first.key, []).append(
        f"{first.path}: {first.words} is the loosest of all tenants, so that {path} of {key}, {words}, never "
        "binds"
    )


def _tenants(tenants: Iterable[Parsed[TenantSpec]]) -> Iterable[tuple[ObjectKey, str, _Bounds]]:
    for each in tenants:
        if each.spec is not None:
            bounds = _remembered(each.resource, each.spec.interaction_limits)
            yield each.resource.key, "spec.interactionLimits", bounds


def _default_tenants(
    pools: Iterable[Parsed[ServingPoolSpec]],
) -> Iterable[tuple[ObjectKey, str, _Bounds]]:
    for each in pools:
        default = each.spec.default_tenant if each.spec else None
        if default is not None and default.mode == "Admit":
            bounds = _remembered(each.resource, default.interaction_limits)
            yield each.resource.key, "spec.defaultTenant.interactionLimits", bounds


class _Most:
    """What no holder of one field exceeds, found in one pass."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._window_s = 0.0
        self._most: tuple[_Limit, ObjectKey, str] | None = None
        self.exists = True  #: until somebody has no such limit

    def add(self, limit: _Limit | None, key: ObjectKey, path: str) -> None:
        if limit is None:
            self.exists = False
            return
        if self._most is None:
            self._most, self._window_s = (limit, key, path), limit.window_s
            return
        if limit.window_s < self._window_s:
            self._window_s = limit.window_s
        most = self._most[0]
        if limit.count > most.count or (limit.count == most.count and limit.window_s < most.window_s):
            self._most = limit, key, path

    def found(self) -> _Loosest | None:
        """None where there is no tenant, or one without this limit."""
        if self._most is None or not self.exists:
            return None
        most, key, path = self._most
        return _Loosest(most.count, self._window_s, key, f"{path}.{self._field}", most.words)


def _loosest(
    tenants: Iterable[Parsed[TenantSpec]], pools: Iterable[Parsed[ServingPoolSpec]]
) -> tuple[_Loosest | None, _Loosest | None]:
    """Of `perUser` and of `total`. The first tenants without either end the search, and mostly do."""
    per_user, total = _Most("perUser"), _Most("total")
    for key, path, bounds in chain(_default_tenants(pools), _tenants(tenants)):
        per_user.add(bounds[0], key, path)
        total.add(bounds[1], key, path)
        if not (per_user.exists or total.exists):
            break
    return per_user.found(), total.found()


def _remembered(resource: Resource, limits: TenantInteractionLimits | None) -> _Bounds:
    return remembered(resource, "bounds", partial(_bounds, limits))


def _bounds(limits: TenantInteractionLimits | None) -> _Bounds:
    return (_Limit.of(limits.per_user), _Limit.of(limits.total)) if limits else (None, None)
