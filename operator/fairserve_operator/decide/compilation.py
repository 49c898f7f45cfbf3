"""From the objects of one namespace to the configuration of one pool, and to what each object is told.

Pure, total and canonical: any permutation of the inputs gives equal bytes, and an object that is broken
changes nothing but its own conditions. Conflicts are won by the oldest object, then by name.
Accepted=False means that the object is left out whole; ResolvedRefs=False that some of what it names is, or
the match that an older Application has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from fairserve.config import (
    ApiKeyConfig,
    ApplicationConfig,
    HeaderIdentityConfig,
    SchedulerConfig,
    TenantConfig,
    canonical_json,
)
from fairserve_operator.api.v1alpha1 import ApplicationSpec, ServingPoolSpec, TenantSpec
from fairserve_operator.decide.claims import (
    Claims,
    Digests,
    Problem,
    first_reason,
    hop_tokens,
    resolve,
    secret_ref,
)
from fairserve_operator.decide.conditions import ACCEPTED, CONFLICTED, HELD, RESOLVED_REFS, Condition
from fairserve_operator.decide.inference_pools import InferencePools, Selection, select
from fairserve_operator.decide.issuers import contributions, sources
from fairserve_operator.decide.jwks import Keys, KeySource
from fairserve_operator.decide.limits import NEVER_BINDS, never_binding
from fairserve_operator.decide.resources import (
    ObjectKey,
    Parsed,
    Resource,
    SecretProblem,
    SecretRef,
    remembered,
)
from fairserve_operator.decide.sections import application_config, pool_config, tenant_config
from fairserve_operator.decide.selectors import SelectorConflicts, selector_conflicts
from fairserve_operator.decide.signals import OverloadPlan, overload_plan, prometheus_refs
from fairserve_operator.decide.specs import joined, oldest_first, parse


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of one pool.

    `config` has generation 0 (see `generations.next_generation`) and is None where the pool is refused;
    `spec` and `overload` are None then as well. `conditions` holds Accepted, ResolvedRefs and, where two
    objects claim the same, Conflicted, for every object that took part; `observed` the metadata.generation
    they were made from. `parts` identifies what each Tenant and Application put into the configuration;
    those that are left out are not in it.
    """

    config: SchedulerConfig | None
    spec: ServingPoolSpec | None
    overload: OverloadPlan | None
    conditions: Mapping[ObjectKey, tuple[Condition, ...]]
    observed: Mapping[ObjectKey, int]
    parts: Mapping[ObjectKey, str]
    #: Which Pods it means; None where the pool is refused.
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class _Namespace:
    """The Tenants and Applications of a namespace, judged: the same for all of its pools."""

    tenants: list[Parsed[TenantSpec]]
    applications: list[Parsed[ApplicationSpec]]
    claims: Claims
    #: What objects are told of limits that never bind.
    idle_limits: Mapping[ObjectKey, list[str]]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a compilation wants to know of the world."""

    secrets: frozenset[SecretRef]  #: entries whose digests it wants
    keys: frozenset[KeySource]  #: where the keys of token issuers are


def needs(tenants: Iterable[Resource], pools: Iterable[Resource]) -> Needs:
    """What well-formed objects name outside themselves."""
    secrets: set[SecretRef] = set()
    keys: set[KeySource] = set()
    for tenant in tenants:
        refs, key_sources = remembered(tenant, "needs", partial(_tenant_needs, tenant))
        secrets.update(refs)
        keys.update(key_sources)
    for pool in pools:
        its = parse(pool, ServingPoolSpec).spec
        if its is not None:
            secrets.update(secret_ref(pool, ref) for ref in its.hop_tokens)
            secrets.update(prometheus_refs(pool.key.namespace, its).values())
    return Needs(frozenset(secrets), frozenset(keys))


def _tenant_needs(tenant: Resource) -> tuple[tuple[SecretRef, ...], tuple[KeySource, ...]]:
    spec = parse(tenant, TenantSpec).spec
    if spec is None:
        return (), ()
    api_keys = (identity.api_key for identity in spec.identity)
    refs = tuple(secret_ref(tenant, key.secret_ref) for key in api_keys if key is not None)
    return refs, tuple(sources(tenant, spec))


def compile_pool(
    pool: Resource,
    pools: Iterable[Resource],
    tenants: Iterable[Resource],
    applications: Iterable[Resource],
    digests: Digests,
    keys: Keys,
    salt: str,
    inference_pools: InferencePools = MappingProxyType({}),
) -> Compiled:
    """Compile one pool. Objects of other namespaces are not looked at.

    `pools` are the namespace's pools (this one among them or not). `digests` maps each of `needs().secrets`
    to `fairserve.config.key_digest(salt, key)` or to why there is none; a ref that is absent is a missing
    Secret. `keys` maps each of `needs().keys` to what `jwks.read_jwks` made of it, or to why it has none.
    `salt` is hex, at least 32 digits, and stays the same over a pool's life. `inference_pools` are those of
    the namespace: only pools with a `poolRef` need any.
    """
    rivals = [other for other in pools if other.key != pool.key]
    parsed = [parse(p, ServingPoolSpec) for p in oldest_first([*rivals, pool], pool.key.namespace)]
    namespace = _judge(pool.key.namespace, tenants, applications, digests, keys, parsed)
    conflicts = selector_conflicts(parsed, inference_pools)
    conditions = _namespace_conditions(namespace)
    conditions |= {
        p.resource.key: _noted(
            _pool_conditions(p, conflicts, digests, inference_pools),
            namespace.idle_limits.get(p.resource.key),
        )
        for p in parsed
    }
    resources = [p.resource for p in namespace.tenants]
    resources += [p.resource for p in namespace.applications] + [p.resource for p in parsed]
    observed = {resource.key: resource.generation for resource in resources}
    spec = next(p.spec for p in parsed if p.resource.key == pool.key)
    if spec is None or pool.key in conflicts.lost:
        return Compiled(None, None, None, conditions, observed, {})
    claims = namespace.claims
    tenant_configs = {
        p.resource.key: _tenant_config(p.resource, p.spec, salt, claims.applications.get(p.resource.key))
        for p in namespace.tenants
        if p.spec
    }
    app_configs = {
        p.resource.key: _application_config(p.resource, p.spec, p.resource.key not in claims.matchless)
        for p in namespace.applications
        if p.spec
    }
    tokens, _ = hop_tokens(pool, spec, digests)
    token_parts = contributions(claims.issuers)
    return Compiled(
        config=pool_config(
            pool.key, spec, tenant_configs.values(), app_configs.values(), claims, tokens, salt
        ),
        spec=spec,
        overload=overload_plan(pool.key.namespace, pool.key.name, spec),
        conditions=conditions,
        observed=observed,
        selection=select(pool.key, spec, inference_pools),
        parts={
            **{
                p.resource.key: _tenant_part(
                    p.resource,
                    salt,
                    tenant_configs[p.resource.key],
                    claims,
                    token_parts.get(p.resource.key.name, ()),
                )
                for p in namespace.tenants
                if p.spec
            },
            **{
                p.resource.key: _application_part(p.resource, app_configs[p.resource.key])
                for p in namespace.applications
                if p.spec
            },
        },
    )


def examine(
    tenants: Iterable[Resource], applications: Iterable[Resource], digests: Digests, keys: Keys
) -> Mapping[ObjectKey, tuple[Condition, ...]]:
    """The same conditions where there is no pool. The digests may be under any one salt."""
    tenants, applications = list(tenants), list(applications)
    conditions: dict[ObjectKey, tuple[Condition, ...]] = {}
    for namespace in {resource.key.namespace for resource in (*tenants, *applications)}:
        conditions |= _namespace_conditions(_judge(namespace, tenants, applications, digests, keys))
    return conditions


def _judge(
    namespace: str,
    tenants: Iterable[Resource],
    applications: Iterable[Resource],
    digests: Digests,
    keys: Keys,
    pools: Sequence[Parsed[ServingPoolSpec]] = (),
) -> _Namespace:
    parsed_tenants = [parse(t, TenantSpec) for t in oldest_first(tenants, namespace)]
    parsed_applications = [parse(a, ApplicationSpec) for a in oldest_first(applications, namespace)]
    claims = resolve(
        [(p.resource, p.spec) for p in parsed_tenants if p.spec],
        parsed_applications,
        digests,
        keys,
    )
    idle_limits = never_binding(parsed_tenants, pools, parsed_applications)
    return _Namespace(parsed_tenants, parsed_applications, claims, idle_limits)


def _namespace_conditions(namespace: _Namespace) -> dict[ObjectKey, tuple[Condition, ...]]:
    found: dict[ObjectKey, tuple[Condition, ...]] = {
        **{p.resource.key: _tenant_conditions(p, namespace.claims) for p in namespace.tenants},
        **{p.resource.key: _claim_conditions(p, namespace.claims) for p in namespace.applications},
    }
    for key, notes in namespace.idle_limits.items():
        if key in found:
            found[key] = _noted(found[key], notes)
    return found


def _noted(conditions: tuple[Condition, ...], notes: Sequence[str] | None) -> tuple[Condition, ...]:
    """The conditions of an object that is accepted, and has a limit that never binds or keeps one from it."""
    accepted, *others = conditions
    if not notes or accepted.status != "True":
        return conditions
    generation = accepted.observed_generation
    return Condition(ACCEPTED, "True", NEVER_BINDS, joined(notes), generation), *others


def _tenant_conditions(tenant: Parsed[TenantSpec], claims: Claims) -> tuple[Condition, ...]:
    conditions = _claim_conditions(tenant, claims)
    if tenant.spec is None or tenant.spec.stop_policy == "None":
        return conditions
    message = (
        "spec.stopPolicy: Hold: the tenant begins no new interactions where this is programmed; those that "
        "it has begun go on"
    )
    return *conditions, Condition(HELD, "True", "StopPolicy", message, tenant.resource.generation)


def _claim_conditions(
    member: Parsed[TenantSpec] | Parsed[ApplicationSpec], claims: Claims
) -> tuple[Condition, ...]:
    key, generation = member.resource.key, member.resource.generation
    own = accepted, resolved = _own_conditions(member)
    if problems := claims.problems.get(key):
        message = joined([problem.message for problem in problems])
        resolved = Condition(RESOLVED_REFS, "False", first_reason(problems), message, generation)
    elif notes := claims.notes.get(key):
        message = joined([note.message for note in notes])
        resolved = Condition(RESOLVED_REFS, "True", first_reason(notes), message, generation)
    if conflicts := claims.conflicts.get(key):
        messages = [conflict.message for conflict in conflicts]
        return accepted, resolved, _conflicted(first_reason(conflicts), messages, generation)
    return (accepted, resolved) if resolved is not own[1] else own


def _pool_conditions(
    pool: Parsed[ServingPoolSpec],
    conflicts: SelectorConflicts,
    digests: Digests,
    inference_pools: InferencePools,
) -> tuple[Condition, ...]:
    key, generation = pool.resource.key, pool.resource.generation
    if key in conflicts.lost:
        refused: Parsed[ServingPoolSpec] = Parsed(pool.resource, None, conflicts.lost[key])
        mine = _own_conditions(refused, reason="SelectorConflict")
    else:
        mine = _own_conditions(pool)
        selection = select(key, pool.spec, inference_pools) if pool.spec else None
        _, problems = hop_tokens(pool.resource, pool.spec, digests) if pool.spec else ((), [])
        problems += _prometheus_problems(pool, digests)
        if selection is not None and selection.problem is not None:
            problems.insert(0, selection.problem)
        if problems:
            message = joined([problem.message for problem in problems])
            mine = mine[0], Condition(RESOLVED_REFS, "False", first_reason(problems), message, generation)
        elif selection is not None and (note := selection.note) is not None:
            mine = mine[0], Condition(RESOLVED_REFS, "True", note.reason, note.message, generation)
    if messages := conflicts.messages.get(key):
        return *mine, _conflicted("SelectorConflict", messages, generation)
    return mine


def _prometheus_problems(pool: Parsed[ServingPoolSpec], digests: Digests) -> list[Problem]:
    """What of the credentials is not there. The pool goes on all the same: its signals have no value.

    Only the token is sent as it is: a certificate has many lines.
    """
    if pool.spec is None:
        return []
    refs = prometheus_refs(pool.resource.key.namespace, pool.spec)
    found = {path: (ref, digests.get(ref, SecretProblem.SECRET_MISSING)) for path, ref in refs.items()}
    return [
        Problem(digest.value, f"{path}: {digest.of(ref.name, ref.key)}")
        for path, (ref, digest) in found.items()
        if isinstance(digest, SecretProblem)
        and (digest is not SecretProblem.MALFORMED or path.endswith("bearerToken.secretRef"))
    ]


def _own_conditions(
    parsed: Parsed[TenantSpec] | Parsed[ApplicationSpec] | Parsed[ServingPoolSpec], reason: str = "Invalid"
) -> tuple[Condition, Condition]:
    """Accepted and ResolvedRefs of an object by itself. They are the same objects every time, which shows
    cheaply that nothing is new.
    """
    made = partial(_fresh_conditions, parsed, reason)
    return remembered(parsed.resource, ("conditions", parsed.error, reason), made)


def _fresh_conditions(
    parsed: Parsed[TenantSpec] | Parsed[ApplicationSpec] | Parsed[ServingPoolSpec], reason: str
) -> tuple[Condition, Condition]:
    generation = parsed.resource.generation
    if parsed.spec is None:
        return (
            Condition(ACCEPTED, "False", reason, parsed.error, generation),
            Condition(RESOLVED_REFS, "Unknown", "NotAccepted", "not looked at until accepted", generation),
        )
    return (
        Condition(ACCEPTED, "True", "Accepted", "the spec is well formed", generation),
        Condition(RESOLVED_REFS, "True", "Resolved", "everything that the spec names is there", generation),
    )


def _conflicted(reason: str, messages: list[str], generation: int) -> Condition:
    return Condition(CONFLICTED, "True", reason, joined(messages), generation)


def _tenant_config(
    tenant: Resource, spec: TenantSpec, salt: str, applications: tuple[str, ...] | None
) -> TenantConfig:
    place = ("config", salt)
    known: tuple[tuple[str, ...] | None, TenantConfig] | None = tenant.memo.get(place)
    if known is None or known[0] != applications:
        made = tenant_config(tenant.key.name, spec, salt, applications)
        known = tenant.memo[place] = applications, made
    return known[1]


def _application_config(application: Resource, spec: ApplicationSpec, matches: bool) -> ApplicationConfig:
    made = partial(application_config, application.key.name, spec, matches=matches)
    return remembered(application, ("config", matches), made)


def _application_part(application: Resource, config: ApplicationConfig) -> str:
    return remembered(application, ("part", config.match is None), partial(_part, config))


def _part(document: ApplicationConfig) -> str:
    return hashlib.sha256(canonical_json([document.model_dump(mode="json")])).hexdigest()


def _tenant_part(
    tenant: Resource,
    salt: str,
    config: TenantConfig,
    claims: Claims,
    tokens: Iterable[tuple[str, str]],
) -> str:
    key, place = tenant.key, ("part", salt)
    content = config, (*claims.api_keys.get(key, ()), *claims.headers.get(key, ())), tuple(sorted(tokens))
    known: tuple[object, str] | None = tenant.memo.get(place)
    if known is None or known[0] != content:
        known = tenant.memo[place] = content, _fresh_part(*content)
    return known[1]


def _fresh_part(
    config: TenantConfig,
    identities: tuple[ApiKeyConfig | HeaderIdentityConfig, ...],
    tokens: tuple[tuple[str, str], ...],
) -> str:
    content = [config.model_dump(mode="json"), *sorted(i.model_dump_json() for i in identities), *tokens]
    return hashlib.sha256(canonical_json(content)).hexdigest()
