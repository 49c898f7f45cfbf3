"""Whose callers are whose: identities of all Tenants of a namespace, resolved against each other.

An identity that does not resolve is left out and its Tenant stays with the others it has. An identity that
two Tenants claim belongs to the older one; both are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

from fairserve.config import ApiKeyConfig, HeaderIdentityConfig
from fairserve_operator.api.v1alpha1 import ApiKey, HeaderIdentity, SecretKeyRef, TenantSpec
from fairserve_operator.decide.resources import (
    APPLICATION,
    ObjectKey,
    Resource,
    SecretProblem,
    SecretRef,
    remembered,
)

DUPLICATE = "DuplicateIdentity"

Digests: TypeAlias = Mapping[SecretRef, "str | SecretProblem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an identity is left out."""

    reason: str
    message: str


@dataclass(slots=True)
class Claims:
    """What each Tenant has got, what it has not, and against whom."""

    api_keys: dict[ObjectKey, list[ApiKeyConfig]] = field(default_factory=dict)
    headers: dict[ObjectKey, list[HeaderIdentityConfig]] = field(default_factory=dict)
    problems: dict[ObjectKey, list[Problem]] = field(default_factory=dict)
    conflicts: dict[ObjectKey, list[str]] = field(default_factory=dict)


class _Holder(NamedTuple):
    tenant: ObjectKey
    path: str


def secret_ref(tenant: Resource, ref: SecretKeyRef) -> SecretRef:
    """The Secret entry that a Tenant means: one of its own namespace."""
    return SecretRef(tenant.key.namespace, ref.name, ref.key)


def resolve(
    tenants: Iterable[tuple[Resource, TenantSpec]],
    applications: Mapping[str, bool],
    digests: Digests,
) -> Claims:
    """Resolve the identities of well-formed Tenants, given oldest first.

    `applications` has the namespace's Applications by name, and whether each is accepted.
    """
    claims = Claims()
    holders: dict[str, _Holder] = {}
    for tenant, spec in tenants:
        for index, identity in enumerate(spec.identity):
            path = f"spec.identity[{index}]"
            if identity.api_key is not None:
                _claim_key(claims, holders, tenant, f"{path}.apiKey", identity.api_key, applications, digests)
            elif identity.header is not None:
                _claim_header(claims, holders, tenant, f"{path}.header", identity.header)
    return claims


def _claim_key(
    claims: Claims,
    holders: dict[str, _Holder],
    tenant: Resource,
    path: str,
    key: ApiKey,
    applications: Mapping[str, bool],
    digests: Digests,
) -> None:
    digest = digests.get(secret_ref(tenant, key.secret_ref), SecretProblem.SECRET_MISSING)
    problem = _application_problem(path, key.application, applications)
    if isinstance(digest, SecretProblem):
        problem = _secret_problem(path, key.secret_ref, digest)
    if problem is not None:
        claims.problems.setdefault(tenant.key, []).append(problem)
    elif not isinstance(digest, SecretProblem) and _holds(
        claims, holders, digest, tenant.key, path, "API key"
    ):
        made = partial(ApiKeyConfig, digest=digest, tenant=tenant.key.name, application=key.application)
        config = remembered(tenant, ("apiKey", digest, key.application), made)
        claims.api_keys.setdefault(tenant.key, []).append(config)


def _claim_header(
    claims: Claims, holders: dict[str, _Holder], tenant: Resource, path: str, header: HeaderIdentity
) -> None:
    name = header.name.lower()
    if _holds(claims, holders, f"{name}: {header.value}", tenant.key, path, "header"):
        made = partial(HeaderIdentityConfig, name=name, value=header.value, tenant=tenant.key.name)
        config = remembered(tenant, ("header", name, header.value), made)
        claims.headers.setdefault(tenant.key, []).append(config)


def _holds(
    claims: Claims, holders: dict[str, _Holder], claim: str, tenant: ObjectKey, path: str, what: str
) -> bool:
    """Whether the tenant is the first to claim it. If not, both are told."""
    mine = _Holder(tenant, path)
    holder = holders.setdefault(claim, mine)
    if holder is mine:
        return True
    if holder.tenant == tenant:
        message = f"{path}: the same {what} as {holder.path}"
    else:
        verdict = f"have the same {what}; {holder.tenant} keeps it"
        message = f"{path}: {tenant} and {holder.tenant} ({holder.path}) {verdict}"
        theirs = f"{holder.path}: {holder.tenant} and {tenant} ({path}) {verdict}"
        claims.conflicts.setdefault(tenant, []).append(message)
        claims.conflicts.setdefault(holder.tenant, []).append(theirs)
    claims.problems.setdefault(tenant, []).append(Problem(DUPLICATE, message))
    return False


def _application_problem(path: str, name: str | None, applications: Mapping[str, bool]) -> Problem | None:
    if name is None or applications.get(name):
        return None
    what = "is not accepted" if name in applications else "not found"
    reason = "ApplicationNotAccepted" if name in applications else "ApplicationMissing"
    return Problem(reason, f'{path}.application: {APPLICATION} "{name}" {what}')


def _secret_problem(path: str, ref: SecretKeyRef, problem: SecretProblem) -> Problem:
    what = {
        SecretProblem.SECRET_MISSING: f'Secret "{ref.name}" not found',
        SecretProblem.KEY_MISSING: f'Secret "{ref.name}" has no key "{ref.key}"',
        SecretProblem.EMPTY: f'key "{ref.key}" of Secret "{ref.name}" is empty',
    }[problem]
    return Problem(problem.value, f"{path}.secretRef: {what}")


def first_reason(problems: Sequence[Problem]) -> str:
    """The reason that stands for all: conditions have room for one."""
    return problems[0].reason
