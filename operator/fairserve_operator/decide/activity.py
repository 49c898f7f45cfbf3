"""What sidecars tell of their work, made into what statuses say of it: pure and total.

Statuses are read by people and watched by machines, so a number is shown anew only where it has moved by more
than noise: `steady` keeps what was shown. Sidecars may say anything; what makes no sense counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairserve.config import SchedulerConfig
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT

#: A share is shown anew when it has moved by so many points.
_SHARE_POINTS = 2
#: Learned profiles and windows are shown anew when they have moved by this part.
_PART = 0.1


#: The fields of each kind's status that tell of work.
ACTIVITY: Mapping[str, tuple[str, ...]] = {
    TENANT: ("share", "refusedInteractionsLastHour", "activeUsers"),
    APPLICATION: ("learned",),
    SERVING_POOL: ("window",),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """An application's profile in force in one sidecar, learned from so many calls."""

    input_tokens: float
    system_tokens: float
    output_tokens: float
    samples: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one sidecar tells. Tenants without anything are left out."""

    service: Mapping[str, float] = field(default_factory=dict)  #: of the last five minutes, typical calls
    refused: Mapping[str, int] = field(default_factory=dict)  #: interactions of the last hour
    users: Mapping[str, int] = field(default_factory=dict)  #: seen in the last ten minutes
    profiles: Mapping[str, Profile] = field(default_factory=dict)  #: learned ones, by application
    window: int = 0  #: calls that the engine may hold


def read_report(state: Mapping[str, Any]) -> Report:
    """What a sidecar's `GET /state` tells."""
    recent = _mapping(state.get("recent"))
    return Report(
        service=_positive(_mapping(recent.get("service_5m")).items()),
        refused=_whole(_mapping(recent.get("refused_interactions_1h")).items()),
        users=_whole((row.get("name"), row.get("users")) for row in _rows(state.get("tenants"))),
        profiles={
            name: profile
            for row in _rows(state.get("applications"))
            if isinstance(name := row.get("name"), str) and (profile := _profile(row)) is not None
        },
        window=int(_number(_mapping(state.get("window")).get("size")) or 0),
    )


class Tally:
    """Sums of what sidecars tell."""

    def __init__(self) -> None:
        self._service: dict[str, float] = {}
        self._refused: dict[str, int] = {}
        self._users: dict[str, int] = {}
        self._profiles: dict[str, list[Profile]] = {}
        self._window = 0

    def add(self, report: Report) -> None:
        """Count what somebody tells."""
        for tenant, given in report.service.items():
            self._service[tenant] = self._service.get(tenant, 0.0) + given
        for tenant, count in report.refused.items():
            self._refused[tenant] = self._refused.get(tenant, 0) + count
        for tenant, count in report.users.items():
            self._users[tenant] = self._users.get(tenant, 0) + count
        for application, profile in report.profiles.items():
            self._profiles.setdefault(application, []).append(profile)
        self._window += report.window

    def report(self) -> Report:
        """All together. A profile is the mean, each sidecar's counting by its samples."""
        profiles = {name: _mean(each) for name, each in self._profiles.items()}
        return Report(self._service, self._refused, self._users, profiles, self._window)


def combined(reports: Iterable[Report]) -> Report:
    """Several reports in one."""
    tally = Tally()
    for report in reports:
        tally.add(report)
    return tally.report()


def configured_shares(config: SchedulerConfig) -> dict[str, float]:
    """Each Tenant's part of all weights, that of unclaimed callers included where they are admitted."""
    admitted = () if config.default_tenant is None else (config.default_tenant,)
    total = sum(tenant.weight for tenant in (*config.tenants, *admitted))
    return {tenant.name: tenant.weight / total for tenant in config.tenants}


def tenant_activity(
    tenant: str, configured: float | None, report: Report, shown: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a Tenant's status that tells of its work.

    `configured` is its part of all weights, from 0 to 1, None where it takes part in nothing; `shown` is the
    status so far.
    """
    share: dict[str, Any] = {}
    before = _mapping(shown.get("share"))
    if configured is not None:
        share["configuredPercent"] = _percent(configured)
    if total := sum(report.service.values()):
        achieved = _percent(report.service.get(tenant, 0.0) / total)
        share["achievedPercent"] = _steady(before.get("achievedPercent"), achieved, _SHARE_POINTS)
    told: dict[str, Any] = {"share": share} if share else {}
    return {
        **told,
        "refusedInteractionsLastHour": _two_digits(report.refused.get(tenant, 0)),
        "activeUsers": _two_digits(report.users.get(tenant, 0)),
    }


def application_activity(application: str, report: Report, shown: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an Application's status that tells of its work: a learned profile, where there is one."""
    profile = report.profiles.get(application)
    if profile is None:
        return {}
    before = _mapping(shown.get("learned"))
    values = {
        "inputTokens": profile.input_tokens,
        "systemTokens": profile.system_tokens,
        "outputTokens": profile.output_tokens,
    }
    learned = {name: _steady_part(before.get(name), round(value)) for name, value in values.items()}
    return {"learned": {**learned, "samples": _two_digits(profile.samples)}}


def pool_activity(report: Report, shown: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ServingPool's status that tells of its work."""
    return {"window": _steady_part(shown.get("window"), report.window)}


def _steady(shown: Any, value: int, by: int) -> int:
    """What was shown, unless the value has moved by `by`, or to or from nothing."""
    before: int = shown if isinstance(shown, int) else 0
    return before if abs(value - before) < by and (value == 0) == (before == 0) else value


def _steady_part(shown: Any, value: int) -> int:
    return _steady(shown, value, max(1, math.ceil(_PART * value)))


def _two_digits(count: int) -> int:
    """As precise as people want it: 1234 is 1200."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return count // unit * unit


def _percent(part: float) -> int:
    return round(100 * part)


def _mean(profiles: list[Profile]) -> Profile:
    samples = sum(profile.samples for profile in profiles)
    weights = [profile.samples / samples if samples else 1 / len(profiles) for profile in profiles]
    pairs = list(zip(weights, profiles, strict=True))
    return Profile(
        input_tokens=sum(weight * profile.input_tokens for weight, profile in pairs),
        system_tokens=sum(weight * profile.system_tokens for weight, profile in pairs),
        output_tokens=sum(weight * profile.output_tokens for weight, profile in pairs),
        samples=samples,
    )


#: Beyond this a sidecar lies; sums of what it says stay numbers.
_MOST = 1e15


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
        return None
    return float(value)


def _positive(pairs: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    return {name: number for name, value in pairs if isinstance(name, str) and (number := _number(value))}


def _whole(pairs: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    return {name: int(number) for name, number in _positive(pairs).items()}


def _profile(row: Mapping[str, Any]) -> Profile | None:
    """None for a profile that isn't learned."""
    numbers = [_number(row.get(name)) for name in ("input_tokens", "system_tokens", "output_tokens")]
    samples = _number(row.get("learned_from"))
    if samples is None or None in numbers:
        return None
    words = [number or 0.0 for number in numbers]
    return Profile(words[0], words[1], words[2], int(samples))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
