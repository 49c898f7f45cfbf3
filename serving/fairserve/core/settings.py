"""What the scheduler is told: weights, profiles, limits, policy. Frozen; replaced whole by `configure`.

The configuration file (`fairserve.config`) is validated and then turned into these values. `validate` holds
the line for whoever builds them otherwise: it refuses what would corrupt a counter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import compress
from operator import is_not
from types import MappingProxyType
from typing import Any, Final

from fairserve.core.calls import Policy, ThrottlingMode
from fairserve.core.errors import SettingsError

#: Names no Kubernetes object can have, so that they never collide with one.
DEFAULT_TENANT: Final = "_default"
DEFAULT_APPLICATION: Final = "_default"

#: A counter counts billionths of a typical call divided by a weight: within these it rounds nothing away.
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6
#: More tokens, requests, bytes or seconds than anyone means.
MOST: Final = 10**15


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Price of one token of each kind, relative to one uncached input token."""

    input: float = 1.0  #: α
    cached: float = 0.1  #: κ
    system: float = 1.0  #: β
    output: float = 2.0  #: γ


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` admitted interactions in any `window_s` seconds."""

    count: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A typical call of an application, in tokens. `input_tokens` includes `system_tokens`."""

    input_tokens: float
    output_tokens: float
    system_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Learning:
    """How an application's profile follows its traffic (`mode: Learned`); see `learning`."""

    #: Completed calls before the profile moves at all.
    min_samples: int = 50
    #: Each of the profile's terms changes at most by this factor an hour, up or down.
    max_factor_per_hour: float = 4.0


@dataclass(frozen=True, slots=True)
class InteractionRules:
    """When an admitted interaction stops being open: the next call then begins a new one."""

    idle_timeout_s: float = 300.0
    max_calls: int = 100
    max_duration_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How much one tenant may have waiting, and each of its users. Bytes are those of the calls' bodies."""

    max_requests: int = 10_000
    max_wait_s: float = 600.0
    max_bytes: int = 2**30
    #: Of one user; None bounds a user by its tenant's bound alone.
    max_requests_per_user: int | None = None
    max_bytes_per_user: int | None = None


@dataclass(frozen=True, slots=True)
class TotalBounds:
    """How much may wait in all."""

    max_requests: int = 1_000_000
    max_bytes: int = 8 * 2**30


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """A tenant: its share weight ω_t, its interaction limits, and whether it may begin anything."""

    name: str
    weight: float = 1.0
    per_user: Limit | None = None
    total: Limit | None = None
    queue: QueueBounds = QueueBounds()
    #: Calls that begin an interaction are refused, overloaded or not, in every throttling mode.
    held: bool = False


@dataclass(frozen=True, slots=True)
class ApplicationSettings:
    """An application: its profile, its weight ω_a inside a tenant's own share, its limits."""

    name: str
    profile: Profile
    weight: float = 1.0
    per_user: Limit | None = None
    per_tenant: Limit | None = None
    interaction: InteractionRules = InteractionRules()
    #: Of all tenants together. When it is exhausted only those above an equal share of it are refused.
    total: Limit | None = None
    #: None: the profile stays as given. Otherwise it is where learning starts.
    learning: Learning | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the scheduler decides by.

    `default_tenant` is what callers nobody claims are charged to; None means that they are turned away before
    they get here. A call of an application that is not listed is treated as `default_application`.
    """

    policy: Policy = Policy.FAIRSERVE
    mode: ThrottlingMode = ThrottlingMode.ENFORCE
    normalisation: float = 0.8  #: λ in [0, 1]: 1 is FairServe, 0 the plain token counter
    tokens: TokenWeights = TokenWeights()
    #: Δ: how far a continuation may run ahead of another flow's turn, in typical calls (normalised cost).
    continuation_head_start: float = 1.0
    tenants: Mapping[str, TenantSettings] = field(default_factory=lambda: MappingProxyType({}))
    applications: Mapping[str, ApplicationSettings] = field(default_factory=lambda: MappingProxyType({}))
    default_tenant: TenantSettings | None = None
    default_application: ApplicationSettings = ApplicationSettings(
        name=DEFAULT_APPLICATION, profile=Profile(input_tokens=512.0, output_tokens=256.0)
    )
    queue: TotalBounds = TotalBounds()


def changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Names under which there is another object than before, or a new one. Of ten thousand that stay nearly
    all, so that they are compared by identity, and not one by one in Python.
    """
    if now is before:
        return []
    return list(compress(now, map(is_not, now.values(), map(before.get, now))))


def validate(settings: Settings, valid: Settings | None = None) -> None:
    """Raise SettingsError, which names object and field, for numbers that can't be scheduled by. Tenants and
    applications that are the same objects in `valid` are not looked at again.
    """
    for problem in _problems(settings, valid or Settings()):
        raise SettingsError(problem)


def _problems(settings: Settings, valid: Settings) -> Iterator[str]:
    yield from _outside("normalisation", settings.normalisation, 0.0, 1.0)
    yield from _outside("continuation_head_start", settings.continuation_head_start, 0.0, 1e6)
    for kind in fields(TokenWeights):
        lowest = 0.0 if kind.name == "cached" else MIN_WEIGHT
        price = getattr(settings.tokens, kind.name)
        yield from _outside(f"tokens.{kind.name}", price, lowest, MAX_WEIGHT)
    yield from _outside("queue.max_requests", settings.queue.max_requests, 1, MOST)
    yield from _outside("queue.max_bytes", settings.queue.max_bytes, 1, MOST)
    for name in changed(settings.tenants, valid.tenants):
        yield from _tenant(f"tenant {settings.tenants[name].name}", settings.tenants[name])
    if settings.default_tenant is not None:
        yield from _tenant("default tenant", settings.default_tenant)
    new = (settings.applications[name] for name in changed(settings.applications, valid.applications))
    for application in (*new, settings.default_application):
        yield from _application(f"application {application.name}", application)


def _tenant(name: str, tenant: TenantSettings) -> Iterator[str]:
    yield from _outside(f"{name}: weight", tenant.weight, MIN_WEIGHT, MAX_WEIGHT)
    yield from _limit(f"{name}: per_user", tenant.per_user)
    yield from _limit(f"{name}: total", tenant.total)
    queue = tenant.queue
    yield from _outside(f"{name}: queue.max_wait_s", queue.max_wait_s, 1e-3, MOST)
    for bound in ("max_requests", "max_bytes", "max_requests_per_user", "max_bytes_per_user"):
        value = getattr(queue, bound)
        if value is not None:
            yield from _outside(f"{name}: queue.{bound}", value, 1, MOST)


def _application(name: str, application: ApplicationSettings) -> Iterator[str]:
    yield from _outside(f"{name}: weight", application.weight, MIN_WEIGHT, MAX_WEIGHT)
    for term in fields(Profile):
        yield from _outside(f"{name}: profile.{term.name}", getattr(application.profile, term.name), 0, 1e12)
    yield from _limit(f"{name}: per_user", application.per_user)
    yield from _limit(f"{name}: per_tenant", application.per_tenant)
    yield from _limit(f"{name}: total", application.total)
    for rule in fields(InteractionRules):
        value = getattr(application.interaction, rule.name)
        yield from _outside(f"{name}: interaction.{rule.name}", value, 0, MOST)
    if application.learning is not None:
        yield from _outside(f"{name}: learning.min_samples", application.learning.min_samples, 1, MOST)
        factor = application.learning.max_factor_per_hour
        yield from _outside(f"{name}: learning.max_factor_per_hour", factor, 1.0, 1e9)


def _limit(name: str, limit: Limit | None) -> Iterator[str]:
    if limit is not None:
        yield from _outside(f"{name}.count", limit.count, 1, 10**9)
        yield from _outside(f"{name}.window_s", limit.window_s, 1e-3, MOST)


def _outside(name: str, value: int | float, lowest: float, highest: float) -> Iterator[str]:
    # Written so that NaN, which compares to nothing, is outside; no float, because some integers fit in none.
    if not lowest <= value <= highest:
        yield f"{name} is {value}, must be within {lowest:g}..{highest:g}"
