"""Sections of the sidecar's configuration out of well-formed specs, one function a section.

The defaults that users read in the API reference take effect here or in the models; a test compares
them with the defaults of `fairserve.config`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from fairserve.config import (
    ApplicationConfig,
    IdentityConfig,
    LimitConfig,
    OverloadConfig,
    SchedulerConfig,
    SchedulerConfigSection,
    TenantConfig,
    TokenWeightsConfig,
)
from fairserve_operator.api.v1alpha1 import (
    ApplicationSpec,
    DefaultTenant,
    InteractionLimit,
    Queue,
    Scheduler,
    ServingPoolSpec,
    TenantInteractionLimits,
    TenantSpec,
    duration_s,
)
from fairserve_operator.decide.claims import Claims
from fairserve_operator.decide.resources import ObjectKey

#: What sidecars call the callers that no Tenant claims. No Kubernetes object can have this name.
DEFAULT_TENANT = "_default"

DEFAULT_WEIGHT = 1.0
DEFAULT_MAX_REQUESTS = 10_000
DEFAULT_MAX_WAIT = "10m"
DEFAULT_IDLE_TIMEOUT = "5m"
DEFAULT_MAX_CALLS = 100
DEFAULT_MAX_DURATION = "1h"
DEFAULT_NORMALISATION = 0.8
DEFAULT_CONTINUATION_HEAD_START = 1.0


def tenant_config(name: str, spec: TenantSpec) -> TenantConfig:
    """A Tenant without its identities."""
    return _tenant(name, spec.weight, spec.interaction_limits, spec.queue)


def application_config(name: str, spec: ApplicationSpec) -> ApplicationConfig:
    """An Application."""
    limits, interaction = spec.interaction_limits, spec.interaction
    return ApplicationConfig(
        name=name,
        weight=spec.weight,
        input_tokens=spec.profile.input_tokens,
        system_tokens=spec.profile.system_tokens,
        output_tokens=spec.profile.output_tokens,
        per_user=_limit(limits.per_user if limits else None),
        per_tenant=_limit(limits.per_tenant if limits else None),
        idle_timeout_s=duration_s((interaction and interaction.idle_timeout) or DEFAULT_IDLE_TIMEOUT),
        max_calls=(interaction and interaction.max_calls) or DEFAULT_MAX_CALLS,
        max_duration_s=duration_s((interaction and interaction.max_duration) or DEFAULT_MAX_DURATION),
    )


def pool_config(
    key: ObjectKey,
    spec: ServingPoolSpec,
    tenants: Iterable[TenantConfig],
    applications: Iterable[ApplicationConfig],
    claims: Claims,
    salt: str,
) -> SchedulerConfig:
    """The whole document at generation 0, every list sorted.

    The parts are valid each by itself and the claims hold no identity twice, so that the whole is not
    validated anew: with 10,000 Tenants that would take longer than all the rest. A property test does.
    """
    bare = SchedulerConfig.model_validate(
        {
            "pool": f"{key.namespace}/{key.name}",
            "mode": spec.throttling.mode,
            "scheduler": _scheduler(spec.scheduler),
            "overload": OverloadConfig.model_validate(
                {
                    "stale_after_s": duration_s(spec.overload.stale_after),
                    "on_stale": spec.overload.on_stale,
                    "arm_locally": spec.overload.arm_locally,
                }
            ),
            "identity": IdentityConfig(salt=salt),
            "default_tenant": _default_tenant(spec.default_tenant),
        }
    )
    identity = IdentityConfig(
        salt=salt,
        api_keys=tuple(
            sorted((k for keys in claims.api_keys.values() for k in keys), key=lambda k: k.digest)
        ),
        headers=tuple(
            sorted((h for hs in claims.headers.values() for h in hs), key=lambda h: (h.name, h.value))
        ),
        trusted_proxies=tuple(sorted({str(ipaddress.ip_network(b)) for b in spec.trusted_proxies})),
    )
    return bare.model_copy(
        update={
            "identity": identity,
            "tenants": tuple(sorted(tenants, key=lambda t: t.name)),
            "applications": tuple(sorted(applications, key=lambda a: a.name)),
        }
    )


def _scheduler(spec: Scheduler) -> SchedulerConfigSection:
    prices, head_start = spec.token_weights, spec.continuation_head_start
    return SchedulerConfigSection.model_validate(
        {
            "policy": spec.policy,
            "normalisation": DEFAULT_NORMALISATION if spec.normalisation is None else spec.normalisation,
            "token_weights": TokenWeightsConfig(
                input=prices.input, cached=prices.cached, system=prices.system, output=prices.output
            ),
            "continuation_head_start": DEFAULT_CONTINUATION_HEAD_START if head_start is None else head_start,
        }
    )


def _default_tenant(spec: DefaultTenant | None) -> TenantConfig | None:
    if spec is None or spec.mode == "Reject":
        return None
    weight = DEFAULT_WEIGHT if spec.weight is None else spec.weight
    return _tenant(DEFAULT_TENANT, weight, spec.interaction_limits, spec.queue)


def _tenant(
    name: str, weight: float, limits: TenantInteractionLimits | None, queue: Queue | None
) -> TenantConfig:
    bounds = queue or Queue()
    return TenantConfig(
        name=name,
        weight=weight,
        per_user=_limit(limits.per_user if limits else None),
        total=_limit(limits.total if limits else None),
        max_queued_requests=bounds.max_requests or DEFAULT_MAX_REQUESTS,
        max_wait_s=duration_s(bounds.max_wait or DEFAULT_MAX_WAIT),
    )


def _limit(limit: InteractionLimit | None) -> LimitConfig | None:
    return LimitConfig(count=limit.count, window_s=duration_s(limit.window)) if limit else None
