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
from fairserve_operator.api.v1alpha1 import (
    ApiKey,
    HeaderIdentity,
    JwtIdentity,
    SecretKeyRef,
    ServiceAccountIdentity,
    ServingPoolSpec,
    TenantSpec,
)
from fairserve_operator.decide.issuers import CLUSTER_TERMS, Issuer, Terms, account_value, jwt_terms
from fairserve_operator.decide.jwks import CLUSTER, PENDING, Keys, KeysProblem
from fairserve_operator.decide.resources import (
    APPLICATION,
    ObjectKey,
    Resource,
    SecretProblem,
    SecretRef,
    remembered,
)

DUPLICATE = "DuplicateIdentity"
ISSUER = "IssuerConflict"

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
    issuers: dict[str, Issuer] = field(default_factory=dict)
    problems: dict[ObjectKey, list[Problem]] = field(default_factory=dict)
    conflicts: dict[ObjectKey, list[Problem]] = field(default_factory=dict)
    #: What a Tenant should know although nothing is left out.
    notes: dict[ObjectKey, list[Problem]] = field(default_factory=dict)


class _Holder(NamedTuple):
    tenant: ObjectKey
    path: str


def secret_ref(owner: Resource, ref: SecretKeyRef) -> SecretRef:
    """The Secret entry that an object means: one of its own namespace."""
    return SecretRef(owner.key.namespace, ref.name, ref.key)


def resolve(
    tenants: Iterable[tuple[Resource, TenantSpec]],
    applications: Mapping[str, bool],
    digests: Digests,
    keys: Keys,
) -> Claims:
    """Resolve the identities of well-formed Tenants, given oldest first.

    `keys` has what is known of each source of keys, `applications` the namespace's Applications by name
    and whether each is accepted.
    """
    claims = Claims()
    holders: dict[str, _Holder] = {}
    tokens = _Tokens(claims, keys)
    for tenant, spec in tenants:
        for index, identity in enumerate(spec.identity):
            path = f"spec.identity[{index}]"
            if identity.api_key is not None:
                _claim_key(claims, holders, tenant, f"{path}.apiKey", identity.api_key, applications, digests)
            elif identity.header is not None:
                _claim_header(claims, holders, tenant, f"{path}.header", identity.header)
            elif identity.jwt is not None:
                tokens.claim_jwt(tenant.key, f"{path}.jwt", identity.jwt)
            elif identity.service_account is not None:
                tokens.claim_account(tenant.key, f"{path}.serviceAccount", identity.service_account)
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
        problem = _secret_problem(f"{path}.secretRef", key.secret_ref, digest)
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
        claims.problems.setdefault(tenant, []).append(Problem(DUPLICATE, message))
    else:
        verdict = f"have the same {what}; {holder.tenant} keeps it"
        _lose(claims, _Holder(tenant, path), holder, DUPLICATE, verdict)
    return False


def _lose(claims: Claims, loser: _Holder, winner: _Holder, reason: str, verdict: str) -> None:
    """Leave the loser's identity out, and tell both."""
    lost = Problem(reason, f"{loser.path}: {loser.tenant} and {winner.tenant} ({winner.path}) {verdict}")
    kept = Problem(reason, f"{winner.path}: {winner.tenant} and {loser.tenant} ({loser.path}) {verdict}")
    claims.conflicts.setdefault(loser.tenant, []).append(lost)
    claims.conflicts.setdefault(winner.tenant, []).append(kept)
    claims.problems.setdefault(loser.tenant, []).append(lost)


class _Tokens:
    """The identities by token."""

    def __init__(self, claims: Claims, keys: Keys) -> None:
        self._claims = claims
        self._keys = keys
        self._terms: dict[str, tuple[Terms, _Holder]] = {}
        self._values: dict[str, _Holder] = {}

    def claim_jwt(self, tenant: ObjectKey, path: str, jwt: JwtIdentity) -> None:
        terms = jwt_terms(tenant, jwt)
        self._claim(tenant, path, jwt.issuer, terms, jwt.value)

    def claim_account(self, tenant: ObjectKey, path: str, account: ServiceAccountIdentity) -> None:
        keys = self._keys.get(CLUSTER, PENDING)
        if isinstance(keys, KeysProblem):
            self._tell(tenant, path, keys)
        else:
            self._claim(tenant, path, keys.issuer, CLUSTER_TERMS, account_value(account))

    def _claim(self, tenant: ObjectKey, path: str, issuer: str, terms: Terms, value: str | None) -> None:
        mine = _Holder(tenant, path)
        first, holder = self._terms.setdefault(issuer, (terms, mine))
        if first != terms:
            self._disagree(mine, holder, issuer, terms.differing(first))
            return
        if not _holds(self._claims, self._values, f"{value is None} {issuer} {value}", tenant, path, "token"):
            return
        keys = self._keys.get(terms.source, PENDING)
        if isinstance(keys, KeysProblem):
            self._tell(tenant, path, keys)
            return
        if keys.problem:
            note = Problem("KeysNotRefreshed", f"{path}: the last good keys are kept: {keys.problem}")
            self._claims.notes.setdefault(tenant, []).append(note)
        known = self._claims.issuers.setdefault(issuer, Issuer(issuer, terms, keys))
        known.tenants[value] = tenant.name

    def _disagree(self, mine: _Holder, holder: _Holder, issuer: str, fields: str) -> None:
        if holder.tenant == mine.tenant:
            message = f"{mine.path}: {fields} of issuer {issuer} differ from {holder.path}"
            self._claims.problems.setdefault(mine.tenant, []).append(Problem(ISSUER, message))
        else:
            verdict = f"differ in {fields} of issuer {issuer}; what {holder.tenant} says counts"
            _lose(self._claims, mine, holder, ISSUER, verdict)

    def _tell(self, tenant: ObjectKey, path: str, problem: KeysProblem) -> None:
        told = Problem(problem.reason, f"{path}: {problem.message}")
        self._claims.problems.setdefault(tenant, []).append(told)


def hop_tokens(pool: Resource, spec: ServingPoolSpec, digests: Digests) -> tuple[list[str], list[Problem]]:
    """The digests of a pool's hop tokens, sorted, and what is wrong with the others."""
    good: set[str] = set()
    problems: list[Problem] = []
    for index, ref in enumerate(spec.hop_tokens):
        digest = digests.get(secret_ref(pool, ref), SecretProblem.SECRET_MISSING)
        if isinstance(digest, SecretProblem):
            problems.append(_secret_problem(f"spec.hopTokens[{index}]", ref, digest))
        else:
            good.add(digest)
    return sorted(good), problems


def _application_problem(path: str, name: str | None, applications: Mapping[str, bool]) -> Problem | None:
    if name is None or applications.get(name):
        return None
    what = "is not accepted" if name in applications else "not found"
    reason = "ApplicationNotAccepted" if name in applications else "ApplicationMissing"
    return Problem(reason, f'{path}.application: {APPLICATION} "{name}" {what}')


def _secret_problem(path: str, ref: SecretKeyRef, problem: SecretProblem) -> Problem:
    return Problem(problem.value, f"{path}: {problem.of(ref.name, ref.key)}")


def first_reason(problems: Sequence[Problem]) -> str:
    """The reason that stands for all: conditions have room for one."""
    return problems[0].reason
