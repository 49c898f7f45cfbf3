"""Whose tokens are whose: what Tenants say of token issuers, resolved against each other.

A sidecar knows an issuer once, so all Tenants that name one must agree on how its tokens are read; the
oldest decides. That, and who has which value of the claim, goes by specs alone: an issuer whose keys can't be
had for a while changes hands no more than any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fairserve.config import ALGORITHMS, TokenIssuerConfig, canonical_json
from fairserve_operator.api.v1alpha1 import JwtIdentity, ServiceAccountIdentity, TenantSpec
from fairserve_operator.decide.jwks import CLUSTER, KeySet, KeySource
from fairserve_operator.decide.resources import ObjectKey, Resource, SecretRef

_SUBJECT = ("sub",)


@dataclass(frozen=True, slots=True)
class Terms:
    """How an issuer's tokens are read."""

    source: KeySource
    audience: str | None  #: None: the pool says it
    claim: tuple[str, ...] | None
    user_claim: tuple[str, ...]
    application_claim: tuple[str, ...] | None

    def differing(self, other: Terms) -> str:
        """The fields in which two differ, for people."""
        fields = {
            "keys": (self.source, other.source),
            "audience": (self.audience, other.audience),
            "claim": (self.claim, other.claim),
            "userClaim": (self.user_claim, other.user_claim),
            "applicationClaim": (self.application_claim, other.application_claim),
        }
        return ", ".join(name for name, (mine, theirs) in fields.items() if mine != theirs)


@dataclass(slots=True)
class Issuer:
    """What goes into the document of one issuer."""

    name: str
    terms: Terms
    keys: KeySet
    tenants: dict[str | None, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identifies everything of it but whose is which value."""
        content = [self.name, repr(self.terms), [dict(key) for key in self.keys.keys]]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def config(self, service_account_audience: str) -> TokenIssuerConfig:
        """The issuer in the document of a pool."""
        terms, audience = self.terms, self.terms.audience
        named = {value: tenant for value, tenant in self.tenants.items() if value is not None}
        return TokenIssuerConfig.model_validate(
            {
                "issuer": self.name,
                "audiences": (service_account_audience if audience is None else audience,),
                "algorithms": ALGORITHMS,
                "keys": tuple(dict(key) for key in self.keys.keys),
                "source": source_name(terms.source),
                "kubernetes": terms.source == CLUSTER,
                "tenant": self.tenants.get(None),
                "tenant_claim": terms.claim,
                "tenants": named or None,
                "user_claim": terms.user_claim,
                "application_claim": terms.application_claim,
            }
        )


def source_name(source: KeySource) -> str:
    """A source as the document has it."""
    return source if isinstance(source, str) else f"secret:{source.name}/{source.key}"


def key_source(tenant: ObjectKey, jwt: JwtIdentity) -> KeySource:
    """Where the keys of an issuer come from."""
    if jwt.jwks_secret_ref is not None:
        return SecretRef(tenant.namespace, jwt.jwks_secret_ref.name, jwt.jwks_secret_ref.key)
    return jwt.jwks_uri or ""


def sources(tenant: Resource, spec: TenantSpec) -> Iterator[KeySource]:
    """The sources of all keys that a Tenant needs."""
    for identity in spec.identity:
        if identity.jwt is not None:
            yield key_source(tenant.key, identity.jwt)
        elif identity.service_account is not None:
            yield CLUSTER


def jwt_terms(tenant: ObjectKey, jwt: JwtIdentity) -> Terms:
    """How a Tenant says that an issuer's tokens are read."""
    return Terms(
        source=key_source(tenant, jwt),
        audience=jwt.audience,
        claim=jwt.claim,
        user_claim=jwt.user_claim or _SUBJECT,
        application_claim=jwt.application_claim,
    )


CLUSTER_TERMS = Terms(CLUSTER, None, None, _SUBJECT, None)


def account_value(account: ServiceAccountIdentity) -> str:
    """A ServiceAccount, or a namespace of them, as the document names it."""
    if account.name is None:
        return account.namespace
    return f"system:serviceaccount:{account.namespace}:{account.name}"


def contributions(issuers: Mapping[str, Issuer]) -> Mapping[str, list[tuple[str, str]]]:
    """By Tenant's name, each value it has of an issuer with the issuer's digest."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for issuer in issuers.values():
        digest = issuer.digest
        for value, tenant in issuer.tenants.items():
            parts.setdefault(tenant, []).append((digest, value or ""))
    return parts


def issuers_keys(issuers: Iterable[TokenIssuerConfig]) -> dict[str, KeySet]:
    """The keys that a document holds, by where they were fetched."""
    return {
        issuer.source: KeySet(
            tuple({name: str(value) for name, value in key.items()} for key in issuer.keys), issuer.issuer
        )
        for issuer in issuers
        if issuer.source is not None
    }
