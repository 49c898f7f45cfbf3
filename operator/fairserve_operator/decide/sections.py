"""Sections of the sidecar's configuration out of well-formed specs, one function a section.

The defaults that users read in the API reference take effect here or in the models; a test compares
them with the defaults of `fairserve.config`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from fairserve.config import (
    INTERACTION_SOURCES,
    ApplicationConfig,
    IdentityConfig,
    LearningConfig,
    LimitConfig,
    OverloadConfig,
    QueueConfig,
    SchedulerConfig,
    SchedulerConfigSection,
    TenantConfig,
    TokenWeightsConfig,
    format_needed,
    key_digest,
)
from fairserve_operator.api.v1alpha1 import (
    ApplicationSpec,
    DefaultTenant,
    InteractionLimit,
    Learning,
    PoolQueue,
    Profile,
    Queue,
    Scheduler,
    ServingPoolSpec,
    TenantInteractionLimits,
    TenantSpec,
    Users,
    UserSource,
    duration_s,
    size_bytes,
)
from fairserve_operator.api.v1alpha1.tenant import DEFAULT_MAX_BYTES, DEFAULT_MAX_REQUESTS
from fairserve_operator.decide.applications import match_config
from fairserve_operator.decide.claims import Claims
from fairserve_operator.decide.resources import ObjectKey

#: What sidecars call the callers that no Tenant claims. No Kubernetes object can have this name.
DEFAULT_TENANT = "_default"

DEFAULT_WEIGHT = 1.0
DEFAULT_MAX_WAIT = "10m"
DEFAULT_IDLE_TIMEOUT = "5m"
DEFAULT_MAX_CALLS = 100
DEFAULT_MAX_DURATION = "1h"
DEFAULT_MIN_SAMPLES = 50
DEFAULT_MAX_FACTOR = 4.0
DEFAULT_POOL_MAX_REQUESTS = 1_000_000
DEFAULT_POOL_MAX_BYTES = "8Gi"
DEFAULT_NORMALISATION = 0.8
DEFAULT_CONTINUATION_HEAD_START = 1.0


def tenant_config(
    name: str, spec: TenantSpec, salt: str, applications: tuple[str, ...] | None = None
) -> TenantConfig:
    """A Tenant without its identities. `salt` is the document's, `applications` what it may use."""
    return _tenant(
        name,
        spec.weight,
        spec.interaction_limits,
        spec.queue,
        _cache_salt(salt, spec.prefix_cache_group),
        held=spec.stop_policy == "Hold",
        applications=applications,
        users=spec.users,
    )


def application_config(name: str, spec: ApplicationSpec, *, matches: bool = True) -> ApplicationConfig:
    """An Application. `matches`: whether its match is its own."""
    limits, interaction = spec.interaction_limits, spec.interaction
    return ApplicationConfig(
        name=name,
        weight=spec.weight,
        input_tokens=spec.profile.input_tokens,
        system_tokens=spec.profile.system_tokens,
        output_tokens=spec.profile.output_tokens,
        per_user=_limit(limits.per_user if limits else None),
        per_tenant=_limit(limits.per_tenant if limits else None),
        total=_limit(limits.total if limits else None),
        learning=_learning(spec.profile),
        idle_timeout_s=duration_s((interaction and interaction.idle_timeout) or DEFAULT_IDLE_TIMEOUT),
        max_calls=(interaction and interaction.max_calls) or DEFAULT_MAX_CALLS,
        max_duration_s=duration_s((interaction and interaction.max_duration) or DEFAULT_MAX_DURATION),
        interaction_sources=INTERACTION_SOURCES
        if interaction is None or interaction.id_sources is None
        else interaction.id_sources,
        match=match_config(spec.match) if spec.match is not None and matches else None,
    )


def pool_config(
    key: ObjectKey,
    spec: ServingPoolSpec,
    tenants: Iterable[TenantConfig],
    applications: Iterable[ApplicationConfig],
    claims: Claims,
    hop_tokens: Iterable[str],
    salt: str,
) -> SchedulerConfig:
    """The whole document at generation 0, every list sorted. `hop_tokens` are digests.

    The parts are valid each by itself and the claims hold no identity twice, so that the whole is not
    validated anew: with 10,000 Tenants that would take longer than all the rest. A property test does.
    """
    tenants, applications = list(tenants), list(applications)
    bare = SchedulerConfig.model_validate(
        {
            "format": format_needed(tenants, applications),
            "pool": f"{key.namespace}/{key.name}",
            "mode": spec.throttling.mode,
            "scheduler": _scheduler(spec.scheduler),
            "overload": OverloadConfig.model_validate(
                {
                    "stale_after_s": duration_s(spec.overload.stale_after),
                    "on_stale": spec.overload.on_stale,
                    "arm_locally": spec.overload.arm_locally,
                    "hold_down_s": duration_s(spec.overload.hold_down),
                }
            ),
            "identity": IdentityConfig(salt=salt),
            "queue": _pool_queue(spec.queue),
            "default_tenant": _default_tenant(spec.default_tenant, salt),
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
        token_issuers=tuple(
            issuer.config(spec.service_account_audience) for _, issuer in sorted(claims.issuers.items())
        ),
        hop_tokens=tuple(hop_tokens),
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


def _pool_queue(queue: PoolQueue) -> QueueConfig:
    return QueueConfig(
        max_requests=queue.max_requests or DEFAULT_POOL_MAX_REQUESTS,
        max_bytes=size_bytes(queue.max_bytes or DEFAULT_POOL_MAX_BYTES),
    )


def _learning(profile: Profile) -> LearningConfig | None:
    if profile.mode == "Static":
        return None
    learning = profile.learning or Learning()
    factor = learning.max_factor_per_hour
    return LearningConfig(
        min_samples=learning.min_samples or DEFAULT_MIN_SAMPLES,
        max_factor_per_hour=DEFAULT_MAX_FACTOR if factor is None else factor,
    )


def _cache_salt(salt: str, group: str | None) -> str | None:
    """The salt of a group. Who doesn't have this document can't guess it, so that names needn't be secret."""
    return None if group is None else key_digest(salt, f"prefix-cache-group {group}")


def _default_tenant(spec: DefaultTenant | None, salt: str) -> TenantConfig | None:
    if spec is None or spec.mode == "Reject":
        return None
    weight = DEFAULT_WEIGHT if spec.weight is None else spec.weight
    cache_salt = _cache_salt(salt, spec.prefix_cache_group)
    return _tenant(DEFAULT_TENANT, weight, spec.interaction_limits, spec.queue, cache_salt)


def _tenant(
    name: str,
    weight: float,
    limits: TenantInteractionLimits | None,
    queue: Queue | None,
    cache_salt: str | None,
    *,
    held: bool = False,
    applications: tuple[str, ...] | None = None,
    users: Users | None = None,
) -> TenantConfig:
    bounds = queue or Queue()
    return TenantConfig(
        name=name,
        weight=weight,
        per_user=_limit(limits.per_user if limits else None),
        total=_limit(limits.total if limits else None),
        max_queued_requests=bounds.max_requests or DEFAULT_MAX_REQUESTS,
        max_queued_bytes=size_bytes(bounds.max_bytes or DEFAULT_MAX_BYTES),
        max_queued_requests_per_user=bounds.max_requests_per_user,
        max_queued_bytes_per_user=size_bytes(bounds.max_bytes_per_user)
        if bounds.max_bytes_per_user
        else None,
        max_wait_s=duration_s(bounds.max_wait or DEFAULT_MAX_WAIT),
        cache_salt=cache_salt,
        held=held,
        applications=applications,
        user_sources=None if users is None else tuple(_user_source(one) for one in users.from_),
    )


def _user_source(source: UserSource) -> str:
    return f"body:{source.body_field}" if source.header is None else f"header:{source.header}"


def _limit(limit: InteractionLimit | None) -> LimitConfig | None:
    return LimitConfig(count=limit.count, window_s=duration_s(limit.window)) if limit else None
