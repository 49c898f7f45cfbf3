"""Whose callers are whose: identities of all Tenants of a namespace, resolved against each other.

An identity that does not resolve is left out and its Tenant stays with the others it has. An identity that
two Tenants claim belongs to the older one; both are told. So it is with the Applications that a Tenant may
use, and with the match that two Applications have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

from fairserve.config import ApiKeyConfig, HeaderIdentityConfig
from fairserve_operator.api.v1alpha1 import (
    ApiKey,
    ApplicationSpec,
    HeaderIdentity,
    JwtIdentity,
    SecretKeyRef,
    ServiceAccountIdentity,
    ServingPoolSpec,
    TenantApplications,
    TenantSpec,
)
from fairserve_operator.decide.applications import Applications, match_text
from fairserve_operator.decide.issuers import CLUSTER_TERMS, Issuer, Terms, account_value, jwt_terms
from fairserve_operator.decide.jwks import CLUSTER, PENDING, Keys, KeysProblem
from fairserve_operator.decide.resources import (
    APPLICATION,
    ObjectKey,
    Parsed,
    Resource,
    SecretProblem,
    SecretRef,
    remembered,
)

DUPLICATE = "DuplicateIdentity"
SAME_MATCH = "DuplicateMatch"
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
    #: Names of the Applications that a Tenant may use, sorted; who may use all is not in it.
    applications: dict[ObjectKey, tuple[str, ...]] = field(default_factory=dict)
    #: Applications whose match is an older one's.
    matchless: set[ObjectKey] = field(default_factory=set)
    issuers: dict[str, Issuer] = field(default_factory=dict)
    problems: dict[ObjectKey, list[Problem]] = field(default_factory=dict)
    conflicts: dict[ObjectKey, list[Problem]] = field(default_factory=dict)
    #: What a Tenant should know although nothing is left out.
    notes: dict[ObjectKey, list[Problem]] = field(default_factory=dict)


class _Holder(NamedTuple):
    object: ObjectKey
    path: str


def secret_ref(owner: Resource, ref: SecretKeyRef) -> SecretRef:
    """The Secret entry that an object means: one of its own namespace."""
    return SecretRef(owner.key.namespace, ref.name, ref.key)


def resolve(
    tenants: Iterable[tuple[Resource, TenantSpec]],
    applications: Sequence[Parsed[ApplicationSpec]],
    digests: Digests,
    keys: Keys,
) -> Claims:
    """Resolve the identities of well-formed Tenants and the matches of Applications, both given oldest first.

    `keys` has what is known of each source of keys.
    """
    claims = Claims()
    _claim_matches(claims, applications)
    known = Applications(applications)
    holders: dict[str, _Holder] = {}
    tokens = _Tokens(claims, keys)
    for tenant, spec in tenants:
        if spec.applications is not None:
            claims.applications[tenant.key] = _usable(claims, tenant.key, spec.applications, known)
        for index, identity in enumerate(spec.identity):
            path = f"spec.identity[{index}]"
            if identity.api_key is not None:
                _claim_key(claims, holders, tenant, f"{path}.apiKey", identity.api_key, known, digests)
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
    applications: Applications,
    digests: Digests,
) -> None:
    digest = digests.get(secret_ref(tenant, key.secret_ref), SecretProblem.SECRET_MISSING)
    problem = _pin_problem(path, key.application, applications, claims.applications.get(tenant.key))
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
    claims: Claims,
    holders: dict[str, _Holder],
    claim: str,
    claimant: ObjectKey,
    path: str,
    what: str,
    reason: str = DUPLICATE,
) -> bool:
    """Whether the claimant is the first to claim it. If not, both are told."""
    mine = _Holder(claimant, path)
    holder = holders.setdefault(claim, mine)
    if holder is mine:
        return True
    if holder.object == claimant:
        message = f"{path}: the same {what} as {holder.path}"
        claims.problems.setdefault(claimant, []).append(Problem(reason, message))
    else:
        verdict = f"have the same {what}; {holder.object} keeps it"
        _lose(claims, mine, holder, reason, verdict)
    return False


def _lose(claims: Claims, loser: _Holder, winner: _Holder, reason: str, verdict: str) -> None:
    """Leave what the loser claims out, and tell both."""
    lost = Problem(reason, f"{loser.path}: {loser.object} and {winner.object} ({winner.path}) {verdict}")
    kept = Problem(reason, f"{winner.path}: {winner.object} and {loser.object} ({loser.path}) {verdict}")
    claims.conflicts.setdefault(loser.object, []).append(lost)
    claims.conflicts.setdefault(winner.object, []).append(kept)
    claims.problems.setdefault(loser.object, []).append(lost)


def _claim_matches(claims: Claims, applications: Iterable[Parsed[ApplicationSpec]]) -> None:
    holders: dict[str, _Holder] = {}
    for application in applications:
        if application.spec is None or application.spec.match is None:
            continue
        key = application.resource.key
        match = match_text(application.resource, application.spec.match)
        if not _holds(claims, holders, match, key, "spec.match", "match", SAME_MATCH):
            claims.matchless.add(key)


def _usable(
    claims: Claims, tenant: ObjectKey, wanted: TenantApplications, applications: Applications
) -> tuple[str, ...]:
    """Which of the Applications that a Tenant lists or selects there are; the others are told."""
    if wanted.selector is not None:
        selected = applications.selected(wanted.selector.match_labels)
        if not selected:
            message = "spec.applications.selector: no Application that is accepted has these labels"
            claims.notes.setdefault(tenant, []).append(Problem("NothingSelected", message))
        return selected
    usable: list[str] = []
    for index, name in enumerate(wanted.names or ()):
        lack = applications.lack(name)
        if lack is None:
            usable.append(name)
        else:
            what = "is not accepted" if lack == "ApplicationNotAccepted" else "is not found"
            message = (
                f'spec.applications.names[{index}]: {tenant} may use {APPLICATION} "{name}", which {what}'
            )
            claims.problems.setdefault(tenant, []).append(Problem(lack, message))
    return tuple(sorted(usable))


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
        if holder.object == mine.object:
            message = f"{mine.path}: {fields} of issuer {issuer} differ from {holder.path}"
            self._claims.problems.setdefault(mine.object, []).append(Problem(ISSUER, message))
        else:
            verdict = f"differ in {fields} of issuer {issuer}; what {holder.object} says counts"
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


def _pin_problem(
    path: str, name: str | None, applications: Applications, usable: tuple[str, ...] | None
) -> Problem | None:
    """What stands against a key's being for this Application alone. `usable`: None for all."""
    if name is None:
        return None
    lack = applications.lack(name)
    if lack is not None:
        what = "is not accepted" if lack == "ApplicationNotAccepted" else "not found"
        return Problem(lack, f'{path}.application: {APPLICATION} "{name}" {what}')
    if usable is not None and name not in usable:
        message = f'{path}.application: {APPLICATION} "{name}" is not among those of spec.applications'
        return Problem("ApplicationNotAllowed", message)
    return None


def _secret_problem(path: str, ref: SecretKeyRef, problem: SecretProblem) -> Problem:
    return Problem(problem.value, f"{path}: {problem.of(ref.name, ref.key)}")


def first_reason(problems: Sequence[Problem]) -> str:
    """The reason that stands for all: conditions have room for one."""
    return problems[0].reason
