"""The configuration that the operator (or `fairserve up`) writes and the sidecar reads.

One document per pool: JSON, validated whole, unknown fields refused, frozen. API keys and hop tokens travel
as HMAC-SHA256 digests under the document's own salt, and issuers' keys are public; a tenant's `cache_salt` is
the one value that others should not learn, so a problem never shows its input. `generation` orders documents
of one pool; `content_hash` is the SHA-256 of everything but `generation`, in canonical JSON, so that two
compilations of the same objects are equal byte for byte.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from fairserve.core import settings as core
from fairserve.core.calls import Policy, ThrottlingMode
from fairserve.overload.settings import OnStale

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1, le=core.MOST)]


#: In lower case, as names are inside.
_HEADER_NAME = r"[a-z0-9!#$%&'*+.^_`|~-]+"

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _is_none(value: object) -> bool:
    """For a field that came later: a document without it is, with its hash, what it was before."""
    return value is None


def _is_false(value: object) -> bool:
    """The same for one that is false where it is unset."""
    return value is False


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class LimitConfig(_Document):
    """At most `count` admitted interactions in any `window_s` seconds."""

    count: Annotated[int, Field(ge=1)]
    window_s: Seconds

    def settings(self) -> core.Limit:
        """The core's value of it."""
        return core.Limit(self.count, self.window_s)


#: What a call's user is read from, as a tenant's `user_sources` names it.
_USER_SOURCE = re.compile(rf"header:{_HEADER_NAME}|body:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class TenantConfig(_Document):
    """One tenant. Weights divide the pool's service between tenants."""

    name: str
    weight: PositiveFloat = 1.0
    per_user: LimitConfig | None = None
    total: LimitConfig | None = None
    max_queued_requests: Annotated[int, Field(ge=1)] = 10_000
    #: Of the waiting calls' bodies.
    max_queued_bytes: Bytes = 2**30
    #: Of one user. None: the tenant's bound alone.
    max_queued_requests_per_user: Annotated[int, Field(ge=1)] | None = None
    max_queued_bytes_per_user: Bytes | None = None
    max_wait_s: Seconds = 600.0
    #: Goes into every body for an endpoint that knows it, so that only tenants of one salt share cached
    #: prefixes. vLLM's own rule for it. None: nothing is added.
    cache_salt: Annotated[str, Field(pattern=r"^[^@/\\\x00]{1,128}$")] | None = None
    #: Calls that begin an interaction are refused, overloaded or not; what was admitted goes on.
    held: bool = Field(False, exclude_if=_is_false)
    #: Applications whose calls it may make, besides calls of none. None: all.
    applications: tuple[str, ...] | None = Field(None, exclude_if=_is_none)
    #: Where a call's user is looked for, first match wins: `header:<name>` in lower case, or `body:` and the
    #: path of a field. None: in the usual places.
    user_sources: tuple[str, ...] | None = Field(None, exclude_if=_is_none)

    @field_validator("user_sources")
    @classmethod
    def _are_sources(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for source in value or ():
            if not _USER_SOURCE.fullmatch(source):
                raise ValueError(f"{source!r} is neither header:<lower-case name> nor body:<path>")
        _unique("user_sources", list(value or ()))
        return value

    @field_validator("applications")
    @classmethod
    def _are_different(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        _unique("applications", list(value or ()))
        return value

    def settings(self) -> core.TenantSettings:
        """The core's value of it."""
        return core.TenantSettings(
            name=self.name,
            weight=self.weight,
            per_user=_limit(self.per_user),
            total=_limit(self.total),
            queue=core.QueueBounds(
                max_requests=self.max_queued_requests,
                max_wait_s=self.max_wait_s,
                max_bytes=self.max_queued_bytes,
                max_requests_per_user=self.max_queued_requests_per_user,
                max_bytes_per_user=self.max_queued_bytes_per_user,
            ),
            held=self.held,
        )


#: Where an interaction's identity may stand, in the order of a look-up that nobody has changed.
INTERACTION_SOURCES = (
    "header:x-fairserve-interaction-id",
    "header:x-claude-code-session-id",
    "header:x-session-affinity",
    "header:session-id",
    "header:session_id",
    "header:x-litellm-trace-id",
    "header:x-dynamo-session-id",
    "header:x-session-id",
    "body:previous_response_id",
    "body:conversation",
    "body:session_id",
    "body:vllm_xargs.session_id",
    "body:metadata.session_id",
    "body:metadata.user_id",
    "traceparent",
)
_BODY_SOURCES = frozenset(source for source in INTERACTION_SOURCES if source.startswith("body:"))
_HEADER_SOURCE = re.compile(rf"header:{_HEADER_NAME}")


class LearningConfig(_Document):
    """How an application's profile follows its traffic."""

    min_samples: Annotated[int, Field(ge=1)] = 50  #: completed calls before it moves at all
    #: Most that each of its terms changes in an hour, up or down.
    max_factor_per_hour: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0


class MatchConfig(_Document):
    """Calls that are an application's although they name none: those that have one of `models` in their body,
    one of `paths` and all of `headers`, as far as each is given.
    """

    models: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  #: without query, percent-decoded
    headers: dict[Annotated[str, Field(pattern=rf"^{_HEADER_NAME}$")], str] = {}

    @model_validator(mode="after")
    def _matches_something(self) -> Self:
        if not (self.models or self.paths or self.headers):
            raise ValueError("at least one of models, paths and headers is needed")
        return self


class ApplicationConfig(_Document):
    """One application: the profile that normalises cost, and its own limits."""

    name: str
    weight: PositiveFloat = 1.0
    input_tokens: PositiveFloat
    system_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    output_tokens: PositiveFloat
    per_user: LimitConfig | None = None
    per_tenant: LimitConfig | None = None
    #: Of all tenants together.
    total: LimitConfig | None = None
    #: None: the profile stays as given. Otherwise it begins as given.
    learning: LearningConfig | None = None
    idle_timeout_s: Seconds = 300.0
    max_calls: Annotated[int, Field(ge=1)] = 100
    max_duration_s: Seconds = 3600.0
    #: Where a call's interaction is looked for, first match wins: `header:<name>`, a `body:` field of
    #: `INTERACTION_SOURCES`, `traceparent`. Empty: each call is an interaction of its own.
    interaction_sources: tuple[str, ...] = INTERACTION_SOURCES
    #: None: it has only calls that name it.
    match: MatchConfig | None = Field(None, exclude_if=_is_none)

    @field_validator("interaction_sources")
    @classmethod
    def _are_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            known = source in _BODY_SOURCES or source == "traceparent" or _HEADER_SOURCE.fullmatch(source)
            if not known:
                raise ValueError(
                    f"{source!r} is neither header:<lower-case name>, traceparent nor one of "
                    f"{', '.join(sorted(_BODY_SOURCES))}"
                )
        _unique("interaction_sources", list(value))
        return value

    @model_validator(mode="after")
    def _system_is_part_of_input(self) -> Self:
        if self.system_tokens > self.input_tokens:
            raise ValueError(f"application {self.name}: system_tokens exceeds input_tokens, its whole")
        return self

    def settings(self) -> core.ApplicationSettings:
        """The core's value of it."""
        return core.ApplicationSettings(
            name=self.name,
            profile=core.Profile(self.input_tokens, self.output_tokens, self.system_tokens),
            weight=self.weight,
            per_user=_limit(self.per_user),
            per_tenant=_limit(self.per_tenant),
            total=_limit(self.total),
            learning=None
            if self.learning is None
            else core.Learning(self.learning.min_samples, self.learning.max_factor_per_hour),
            interaction=core.InteractionRules(self.idle_timeout_s, self.max_calls, self.max_duration_s),
        )


class ApiKeyConfig(_Document):
    """Whoever presents the key with this digest is `tenant`, and calls `application` where one is pinned."""

    digest: Digest
    tenant: str
    application: str | None = None


class HeaderIdentityConfig(_Document):
    """A header with this value, from a trusted proxy, is `tenant`. `name` is lower case."""

    name: Annotated[str, Field(pattern=rf"^{_HEADER_NAME}$")]
    value: str
    tenant: str


Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip
#: Names from the top of a token's claims down to a string: `("realm", "team")` is `{"realm": {"team": ...}}`.
#: A name may hold dots, as `kubernetes.io` does.
ClaimPath = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
_RSA: frozenset[Algorithm] = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: dict[str, Algorithm] = {
    "P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"
}  # fmt: skip
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
#: The private members of a JSON Web Key, asymmetric or not (RFC 7518 §6, RFC 8037 §2).
PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_KUBERNETES_TENANT: ClaimPath = ("kubernetes.io", "namespace")


class TokenIssuerConfig(_Document):
    """Whoever presents a JSON Web Token that this issuer signed is the tenant, user and application that the
    token says. A token counts only with `exp`, with one of `audiences` in `aud`, and with a `kid` of `keys`.

    `kubernetes` reads a cluster's ServiceAccount tokens: the tenant is the namespace and the user the
    account, `system:serviceaccount:<namespace>:<name>`. `tenants`, where it is given, has accounts by that
    name and namespaces; the account counts first.
    """

    issuer: Annotated[str, Field(min_length=1)]  #: `iss`, exactly
    audiences: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)]
    #: The `keys` of the issuer's JWKS, public ones alone. Members that say nothing about use are let be, as
    #: RFC 7517 §4 has it.
    keys: Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1)]
    kubernetes: bool = False
    #: All its callers are this tenant. Exactly one of `tenant`, `tenant_claim` and `kubernetes` is given.
    tenant: str | None = None
    tenant_claim: ClaimPath | None = None
    #: Where the operator has the keys from: a change means that those it had are no longer good. The sidecar
    #: fetches nothing.
    source: str | None = None
    #: From a claim's value to a tenant's name. None: the value is the name.
    tenants: dict[str, str] | None = None
    #: The user. None: whom the request names. Unset: `sub`.
    user_claim: ClaimPath | None = ("sub",)
    #: The application, pinned. None: the one that the request names.
    application_claim: ClaimPath | None = None
    #: How far the issuer's clock may be off, seconds.
    leeway_s: Annotated[int, Field(ge=0, le=300)] = 30

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.tenant is not None) + (self.tenant_claim is not None) + self.kubernetes != 1:
            raise ValueError("exactly one of tenant, tenant_claim and kubernetes says whose a token is")
        if self.tenant is not None and self.tenants is not None:
            raise ValueError("tenants maps a claim, and tenant needs none")
        _unique("keys", [_key_id(key) for key in self.keys])
        for key in self.keys:
            if not self.algorithms_of(key):
                raise ValueError(f"keys: {_key_id(key)!r} is for none of the algorithms")
        return self

    @property
    def tenant_path(self) -> ClaimPath | None:
        """Where a token says its tenant; None where all are one tenant's."""
        return _KUBERNETES_TENANT if self.kubernetes else self.tenant_claim

    def algorithms_of(self, key: dict[str, JsonValue]) -> tuple[Algorithm, ...]:
        """Which of the algorithms a key of this issuer may be used with."""
        return tuple(a for a in self.algorithms if a in algorithms_of(key))


class IdentityConfig(_Document):
    """How callers are told apart. `salt` keys the digests; it is no secret worth stealing but is kept in a
    Secret all the same, because it allows guessing weak keys offline.
    """

    salt: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){16,}$")]
    api_keys: tuple[ApiKeyConfig, ...] = ()
    headers: tuple[HeaderIdentityConfig, ...] = ()
    token_issuers: tuple[TokenIssuerConfig, ...] = ()
    #: CIDR blocks of the hops whose identity headers are believed.
    trusted_proxies: tuple[str, ...] = ()
    #: Digests of the tokens by which a hop at any address is believed (`x-fairserve-hop-token`).
    hop_tokens: tuple[Digest, ...] = ()

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for block in value:
            ipaddress.ip_network(block)
        return value


class TokenWeightsConfig(_Document):
    """Price of one token of each kind, relative to one uncached input token."""

    input: PositiveFloat = 1.0
    cached: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    system: PositiveFloat = 1.0
    output: PositiveFloat = 2.0


class SchedulerConfigSection(_Document):
    """Order of calls and what they cost."""

    policy: Policy = Policy.FAIRSERVE
    #: λ: 1 is FairServe, 0 the plain token counter.
    normalisation: Annotated[float, Field(ge=0, le=1)] = 0.8
    token_weights: TokenWeightsConfig = TokenWeightsConfig()
    continuation_head_start: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class QueueConfig(_Document):
    """How much may wait in one pod, of all tenants together."""

    max_requests: Annotated[int, Field(ge=1)] = 1_000_000
    max_bytes: Bytes = 8 * 2**30  #: of the waiting calls' bodies


class OverloadConfig(_Document):
    """What the sidecar does with the operator's verdict, and without one."""

    stale_after_s: Seconds = 30.0
    on_stale: OnStale = OnStale.HOLD
    #: Whether this pod's own saturation arms OIT as well: see `fairserve.overload.saturation.arming`.
    arm_locally: bool = False
    #: How long it stays armed by itself after its saturation has cleared.
    hold_down_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0


class SchedulerConfig(_Document):
    """The whole document."""

    #: Another number when older sidecars can't read the document: see `format_needed`.
    format: Literal[1, 2] = 1
    pool: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]  #: "namespace/name"
    generation: Annotated[int, Field(ge=0)] = 0
    mode: ThrottlingMode = ThrottlingMode.ENFORCE
    scheduler: SchedulerConfigSection = SchedulerConfigSection()
    overload: OverloadConfig = OverloadConfig()
    queue: QueueConfig = QueueConfig()
    identity: IdentityConfig
    #: None: callers nobody claims get 401.
    default_tenant: TenantConfig | None = None
    tenants: tuple[TenantConfig, ...] = ()
    applications: tuple[ApplicationConfig, ...] = ()

    @model_validator(mode="after")
    def _references_resolve(self) -> Self:
        tenants = _unique("tenants", [t.name for t in self.tenants])
        applications = _unique("applications", [a.name for a in self.applications])
        _unique("identity.api_keys", [k.digest for k in self.identity.api_keys])
        _unique("identity.headers", [f"{h.name}: {h.value}" for h in self.identity.headers])
        for one in self.tenants:
            for application in one.applications or ():
                if application not in applications:
                    raise ValueError(f"tenants: {one.name}: unknown application {application!r}")
        for key in self.identity.api_keys:
            if key.tenant not in tenants:
                raise ValueError(f"identity.api_keys: unknown tenant {key.tenant!r}")
            if key.application is not None and key.application not in applications:
                raise ValueError(f"identity.api_keys: unknown application {key.application!r}")
        for header in self.identity.headers:
            if header.tenant not in tenants:
                raise ValueError(f"identity.headers: unknown tenant {header.tenant!r}")
        _unique("identity.token_issuers", [i.issuer for i in self.identity.token_issuers])
        for issuer in self.identity.token_issuers:
            named = [issuer.tenant] if issuer.tenant is not None else (issuer.tenants or {}).values()
            for tenant in named:
                if tenant not in tenants:
                    raise ValueError(f"identity.token_issuers: unknown tenant {tenant!r}")
        # What the scheduler would refuse is refused here, before anything else changes.
        core.validate(self.settings())
        return self

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON of everything but `generation`."""
        content = self.model_dump(mode="json", exclude={"generation"})
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def to_bytes(self) -> bytes:
        """The document as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a document. Raises pydantic's ValidationError, which names every wrong field."""
        return cls.model_validate_json(data)

    def settings(self) -> core.Settings:
        """What the core decides by."""
        weights = self.scheduler.token_weights
        return core.Settings(
            policy=self.scheduler.policy,
            mode=self.mode,
            normalisation=self.scheduler.normalisation,
            tokens=core.TokenWeights(weights.input, weights.cached, weights.system, weights.output),
            continuation_head_start=self.scheduler.continuation_head_start,
            tenants=MappingProxyType({t.name: t.settings() for t in self.tenants}),
            applications=MappingProxyType({a.name: a.settings() for a in self.applications}),
            default_tenant=None if self.default_tenant is None else self.default_tenant.settings(),
            queue=core.TotalBounds(self.queue.max_requests, self.queue.max_bytes),
        )


def format_needed(
    tenants: Iterable[TenantConfig], applications: Iterable[ApplicationConfig]
) -> Literal[1, 2]:
    """The oldest format that has all that these say, so that sidecars of before read what they can. 2 came
    with a tenant's `held`, `applications` and `user_sources` and an application's `match`.
    """
    new = any(t.held or t.applications is not None or t.user_sources is not None for t in tenants)
    return 2 if new or any(a.match is not None for a in applications) else 1


def algorithms_of(key: Mapping[str, JsonValue]) -> frozenset[Algorithm]:
    """Which algorithms a public JSON Web Key is for, by its own word."""
    if key.get("use", "sig") != "sig":
        return frozenset()
    curve = key.get("crv")
    its = _CURVES.get(curve) if isinstance(curve, str) else None
    fitting = _RSA if key.get("kty") == "RSA" else frozenset(() if its is None else (its,))
    return frozenset(a for a in fitting if key.get("alg", a) == a)


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return _CANONICAL.encode(value).encode()


def key_digest(salt: str, key: str) -> str:
    """HMAC-SHA256 (hex) of an API key under the document's salt (hex)."""
    return hmac.new(bytes.fromhex(salt), key.encode(), hashlib.sha256).hexdigest()


def _key_id(key: dict[str, JsonValue]) -> str:
    """A JSON Web Key's name. Raises ValueError for a key without one, and for one that isn't public."""
    kid = key.get("kid")
    if not isinstance(kid, str) or not kid:
        raise ValueError("keys: a key has no kid")
    if not PRIVATE_MEMBERS.isdisjoint(key):
        raise ValueError(f"keys: {kid!r} is a private key; only public keys belong here")
    return kid


def _unique(where: str, names: list[str]) -> frozenset[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: {name!r} appears twice")
        seen.add(name)
    return frozenset(seen)


def _limit(limit: LimitConfig | None) -> core.Limit | None:
    return None if limit is None else limit.settings()
