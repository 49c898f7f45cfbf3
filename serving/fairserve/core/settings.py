"""What the scheduler is told: weights, profiles, limits, policy. Frozen; replaced whole by `configure`.

The configuration file (`fairserve.config`) is validated and then turned into these values, so nothing
in here checks input again beyond what would corrupt a counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fairserve.core.calls import Policy, ThrottlingMode

#: Names no Kubernetes object can have, so that they never collide with one.
DEFAULT_TENANT = "_default"
DEFAULT_APPLICATION = "_default"


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
class InteractionRules:
    """When an admitted interaction stops being open: the next call then begins a new one."""

    idle_timeout_s: float = 300.0
    max_calls: int = 100
    max_duration_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How much one tenant may have waiting."""

    max_requests: int = 10_000
    max_wait_s: float = 600.0


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """A tenant: its share weight ω_t and its interaction limits."""

    name: str
    weight: float = 1.0
    per_user: Limit | None = None
    total: Limit | None = None
    queue: QueueBounds = QueueBounds()


@dataclass(frozen=True, slots=True)
class ApplicationSettings:
    """An application: its profile, its weight ω_a inside a tenant's own share, its limits."""

    name: str
    profile: Profile
    weight: float = 1.0
    per_user: Limit | None = None
    per_tenant: Limit | None = None
    interaction: InteractionRules = InteractionRules()


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
