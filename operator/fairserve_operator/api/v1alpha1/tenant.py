"""Tenant: who shares a pool."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fairserve_operator.api.v1alpha1.fields import (
    OWN_HEADER_PREFIX,
    CommonStatus,
    Count,
    Duration,
    HeaderValue,
    InteractionLimit,
    MatchLabels,
    Model,
    Name,
    SecretKeyRef,
    Size,
    UserHeader,
    Weight,
    are_different,
    binds_rule,
    cel,
    never_binds,
    one_of_rule,
    size_bytes,
)

#: Headers that already mean something else on the way to the engine.
RESERVED_HEADERS = (
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
)

_HEADER_MESSAGE = "is a header with a meaning of its own; choose another"
_KINDS = ("apiKey", "header", "jwt", "serviceAccount")
_ONE_KIND = f"exactly one of {', '.join(_KINDS)} is allowed"
_ONE_SOURCE = one_of_rule("jwksUri", "jwksSecretRef")
_CLAIM_AND_VALUE = "claim and value go together"
_USER_BELOW_TENANT = binds_rule("perUser", "total")
_USER_REQUESTS = "maxRequestsPerUser must not exceed maxRequests"
_USER_BYTES = "maxBytesPerUser must not exceed maxBytes"
_NAMES_XOR_SELECTOR = one_of_rule("names", "selector")
_HEADER_XOR_FIELD = one_of_rule("header", "bodyField")
_SAID_TWICE = "an entry is there twice"
_PINNED_IS_LISTED = "the application of an apiKey in identity must be among applications.names"


#: Where `maxRequests` and `maxBytes` are unset.
DEFAULT_MAX_REQUESTS = 10_000
DEFAULT_MAX_BYTES = "1Gi"

Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
#: A word of the users' own; it is no secret.
CacheGroup = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$", max_length=63)]


class ApiKey(Model):
    """Callers who present this key are the tenant."""

    secret_ref: SecretKeyRef = Field(
        description="Where the key is. Only a salted hash of it leaves the operator; a changed Secret "
        "takes effect at once, and one that is gone takes the key back. Two tenants can't have the same key: "
        "the older Tenant keeps it."
    )
    application: Name | None = Field(
        None,
        description="Every call with this key belongs to this Application, and a call that names another is "
        "refused. Unset: callers name the application by the header `x-fairserve-application`.",
    )


class HeaderIdentity(Model):
    """Callers whose request carries this header are the tenant."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$",
            max_length=128,
            json_schema_extra=cel(
                (
                    f"!(self.lowerAscii() in {list(RESERVED_HEADERS)!r}) "
                    f"&& !self.lowerAscii().startsWith('{OWN_HEADER_PREFIX}')",
                    _HEADER_MESSAGE,
                )
            ),
        ),
    ] = Field(description="Name of the header, in any case.")
    value: HeaderValue = Field(description="The exact value of the header, in visible ASCII.")

    @model_validator(mode="after")
    def _is_free(self) -> Self:
        name = self.name.lower()
        if name in RESERVED_HEADERS or name.startswith(OWN_HEADER_PREFIX):
            raise ValueError(f"name: {self.name} {_HEADER_MESSAGE}")
        return self


ClaimPath = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
    Field(min_length=1, max_length=8),
]


class JwtIdentity(
    Model,
    json_schema_extra=cel(
        _ONE_SOURCE,
        ("has(self.claim) == has(self.value)", _CLAIM_AND_VALUE),
    ),
):
    """Callers with a JSON Web Token of this issuer are the tenant."""

    issuer: Annotated[str, Field(pattern=r"^[!-~]+$", max_length=512)] = Field(
        description="The token's `iss`, exactly. All Tenants of the namespace that name an issuer agree on "
        "everything but `value`: the oldest of them decides, and who differs is told."
    )
    jwks_uri: Annotated[str, Field(pattern=r"^https?://[!-.0-?A-~]+(/[!-~]*)?$", max_length=1024)] | None = (
        Field(
            None,
            description="Where the issuer publishes its public keys. The operator fetches them every 5 "
            "minutes and keeps the last ones while that fails; sidecars fetch nothing. No user and password "
            "in it, no redirects, at most 256 KiB. http:// only where the operator is started with "
            "`--allow-http-jwks`. Unset: `jwksSecretRef` has them.",
        )
    )
    jwks_secret_ref: SecretKeyRef | None = Field(
        None,
        description="An entry of a Secret that holds the issuer's JWKS as JSON, public keys only. "
        "Unset: they are at `jwksUri`.",
    )
    audience: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="Must be in the token's `aud`."
    )
    claim: ClaimPath | None = Field(
        None,
        description="Which claim tells whose a token is: names from the top of the token down to a string, "
        "such as [org, team]. Unset: all tokens of the issuer are this tenant's.",
    )
    value: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None,
        description="The claim's exact value in this tenant's tokens. Unset: as `claim`, and only with it.",
    )
    user_claim: ClaimPath | None = Field(
        None, description="Which claim names the user, who can't choose another name then. Default: [sub]."
    )
    application_claim: ClaimPath | None = Field(
        None,
        description="Which claim names the Application, as a key's `application` does. Unset: callers name "
        "it by the header `x-fairserve-application`.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.jwks_uri is None) == (self.jwks_secret_ref is None):
            raise ValueError(_ONE_SOURCE[1])
        if (self.claim is None) != (self.value is None):
            raise ValueError(_CLAIM_AND_VALUE)
        return self


class ServiceAccountIdentity(Model):
    """Callers with the token of a ServiceAccount of this cluster are the tenant."""

    namespace: Namespace = Field(description="The ServiceAccount's namespace.")
    name: Name | None = Field(
        None,
        description="The ServiceAccount. Where another Tenant has the whole namespace, this one has the "
        "account. Unset: every ServiceAccount of the namespace.",
    )


class Identity(
    Model,
    json_schema_extra=cel(
        (f"[{', '.join(f'has(self.{kind})' for kind in _KINDS)}].filter(x, x).size() == 1", _ONE_KIND)
    ),
):
    """One way to recognise the tenant's callers. Exactly one of the fields is set."""

    api_key: ApiKey | None = Field(
        None, description="An API key, sent as `Authorization: Bearer KEY` or `x-api-key: KEY`."
    )
    header: HeaderIdentity | None = Field(
        None,
        description="A header set by a proxy. It counts only on connections from the ServingPool's "
        "`trustedProxies`; from anybody else it is ignored and removed.",
    )

    jwt: JwtIdentity | None = Field(
        None, description="A signed token of an identity provider, sent as `Authorization: Bearer TOKEN`."
    )
    service_account: ServiceAccountIdentity | None = Field(
        None,
        description="A ServiceAccount of this cluster, by a token for the ServingPool's "
        "`serviceAccountAudience`, sent as `Authorization: Bearer TOKEN`. The account is the user.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = (self.api_key, self.header, self.jwt, self.service_account)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError(_ONE_KIND)
        return self


class TenantInteractionLimits(Model, json_schema_extra=cel(_USER_BELOW_TENANT)):
    """Limits on beginning interactions. They apply only while the pool is overloaded."""

    per_user: InteractionLimit | None = Field(
        None, description="For each user of the tenant. Unset: no limit."
    )
    total: InteractionLimit | None = Field(None, description="For the whole tenant. Unset: no limit.")

    @model_validator(mode="after")
    def _each_can_apply(self) -> Self:
        if never_binds(self.per_user, self.total):
            raise ValueError(_USER_BELOW_TENANT[1])
        return self


class Queue(
    Model,
    json_schema_extra=cel(
        (
            "!has(self.maxRequestsPerUser) || "
            "self.maxRequestsPerUser <= (has(self.maxRequests) ? self.maxRequests : 10000)",
            _USER_REQUESTS,
        ),
        (
            "!has(self.maxBytesPerUser) || quantity(self.maxBytesPerUser)"
            ".compareTo(quantity(has(self.maxBytes) ? self.maxBytes : '1Gi')) <= 0",
            _USER_BYTES,
        ),
    ),
):
    """How much the tenant may have waiting, in each pod."""

    max_requests: Count | None = Field(
        None,
        description="Most calls that wait at one time in one pod. What overflows is refused. Default: 10000.",
    )
    max_wait: Duration | None = Field(
        None, description="A call that has waited this long is refused. Default: 10m."
    )
    max_bytes: Size | None = Field(
        None,
        description="Most that the bodies of its waiting calls hold, such as 512Ki, 64Mi or 1Gi. "
        "Default: 1Gi.",
    )
    max_requests_per_user: Count | None = Field(
        None, description="As `maxRequests`, for each of its users. Unset: only `maxRequests` bounds them."
    )
    max_bytes_per_user: Size | None = Field(
        None, description="As `maxBytes`, for each of its users. Unset: only `maxBytes` bounds them."
    )

    @model_validator(mode="after")
    def _users_fit(self) -> Self:
        most = DEFAULT_MAX_REQUESTS if self.max_requests is None else self.max_requests
        if self.max_requests_per_user is not None and self.max_requests_per_user > most:
            raise ValueError(_USER_REQUESTS)
        most_bytes = size_bytes(self.max_bytes or DEFAULT_MAX_BYTES)
        if self.max_bytes_per_user is not None and size_bytes(self.max_bytes_per_user) > most_bytes:
            raise ValueError(_USER_BYTES)
        return self


class ApplicationSelector(Model):
    """Which Applications, by their labels."""

    match_labels: MatchLabels = Field(
        description="Labels that an Application has, all of them. Those that come later are among them too."
    )


class TenantApplications(Model, json_schema_extra=cel(_NAMES_XOR_SELECTOR)):
    """Which Applications, by name or by label."""

    names: (
        Annotated[
            tuple[Name, ...],
            Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
            AfterValidator(are_different),
        ]
        | None
    ) = Field(
        None,
        description="Names of Applications of the namespace. One that is not there is told in "
        "`ResolvedRefs`, and the others count. Empty: none. Unset: by `selector`.",
    )
    selector: ApplicationSelector | None = Field(
        None, description="Applications of the namespace by their labels. Unset: by `names`."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.names is None) == (self.selector is None):
            raise ValueError(_NAMES_XOR_SELECTOR[1])
        return self


class UserSource(Model, json_schema_extra=cel(_HEADER_XOR_FIELD)):
    """One place in which a call may name its user. Exactly one of the fields is set."""

    header: UserHeader | None = Field(
        None,
        description="A header, in lower case. Only from a trusted proxy does it count more than the user "
        "whom a token names. Two different values of it are refused. Unset: by `bodyField`.",
    )
    body_field: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){0,7}$", max_length=128)] | None
    ) = Field(
        None,
        description="A field of the body that holds a text: names from the top down with dots between, such "
        "as `metadata.end_user`. Of a form only its own fields. Unset: by `header`.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.header is None) == (self.body_field is None):
            raise ValueError(_HEADER_XOR_FIELD[1])
        return self


def _are_different_sources(sources: tuple[UserSource, ...]) -> tuple[UserSource, ...]:
    if len(set(sources)) < len(sources):
        raise ValueError(_SAID_TWICE)
    return sources


class Users(Model):
    """How the tenant's users are told apart."""

    from_: Annotated[
        tuple[UserSource, ...],
        Field(
            max_length=16,
            json_schema_extra=cel(("self.all(one, self.exists_one(other, other == one))", _SAID_TWICE)),
        ),
        AfterValidator(_are_different_sources),
    ] = Field(
        alias="from",
        description="Where a call's user is named: the first place that says something counts, and nothing "
        "else does. Whom a token names (`identity[].jwt.userClaim`) comes before all of them. Empty: by "
        "tokens alone.",
    )


class TenantSpec(
    Model,
    json_schema_extra=cel(
        (
            "!has(self.applications) || !has(self.applications.names) || !has(self.identity) || "
            "self.identity.all(one, !has(one.apiKey) || !has(one.apiKey.application) || "
            "one.apiKey.application in self.applications.names)",
            _PINNED_IS_LISTED,
        )
    ),
):
    """Who shares: a team or a customer. Applies to every ServingPool of its namespace."""

    weight: Weight = Field(
        1.0,
        description="Share of a pool's service relative to other tenants that have work waiting: a tenant of "
        "weight 3 gets three times the service of one of weight 1. More than 0, at most 1000000. Default: 1.",
    )
    identity: Annotated[tuple[Identity, ...], Field(max_length=256)] = Field(
        (),
        description="How the tenant's callers are recognised; any one entry is enough. Unset: only by the "
        "header `x-fairserve-tenant` with the Tenant's name, from a trusted proxy.",
    )
    interaction_limits: TenantInteractionLimits | None = Field(
        None,
        description="How many interactions may begin while the pool is overloaded. Unset: no limit. "
        "Without overload nobody is refused, and an interaction that has begun is never cut.",
    )
    queue: Queue | None = Field(None, description="Bounds of the queue. Unset: the defaults of its fields.")
    prefix_cache_group: CacheGroup | None = Field(
        None,
        description="Only Tenants of the same group share cached prefixes in vLLM, so that nobody else "
        "learns from the time of an answer what they asked. Unset: it shares with all without a group.",
    )
    stop_policy: Literal["None", "Hold"] = Field(
        "None",
        description="Hold: the tenant begins nothing new. A call that would begin an interaction gets 403 "
        "with `x-fairserve-refused-reason: tenant_held`, overloaded or not, also where a ServingPool's "
        "throttling is Shadow. What was admitted goes on: calls that wait are served, and an interaction "
        "that has begun may be continued until it ends by its Application's rules. None: it works as usual. "
        "Default: None.",
    )
    applications: TenantApplications | None = Field(
        None,
        description="Which Applications the tenant may use; a call of any other is refused with 403. Calls "
        "of no Application are always served. Unset: all.",
    )
    users: Users | None = Field(
        None,
        description="How the tenant's users are told apart. Unset: by the header `x-fairserve-user`, else by "
        "the body's `user`, `safety_identifier` or `metadata.user_id`.",
    )

    @model_validator(mode="after")
    def _pinned_is_listed(self) -> Self:
        listed = None if self.applications is None else self.applications.names
        pinned = {each.api_key.application for each in self.identity if each.api_key} - {None}
        if listed is not None and not pinned <= set(listed):
            raise ValueError(_PINNED_IS_LISTED)
        return self


Percent = Annotated[int, Field(ge=0, le=100)]


class Share(Model):
    """A part of the service of all pools of the namespace, in whole percents."""

    configured_percent: Percent | None = Field(
        None, description="Its weight in all weights: its part while everybody has work waiting."
    )
    achieved_percent: Percent | None = Field(
        None,
        description="Its part of the service of the last five minutes. Shown anew when it has moved by two "
        "points. Unset: nobody had any.",
    )


class TenantStatus(CommonStatus):
    """What is known of a Tenant."""

    weight: float | None = Field(None, description="The weight in force, the default included.")
    programmed: str | None = Field(
        None,
        description="How many pods, of all pools of the namespace, have acknowledged this generation: `2/3`.",
    )
    share: Share | None = Field(
        None, description="Its part of the service. Looked at about each 30s, as are the fields below."
    )
    refused_interactions_last_hour: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Interactions that a limit or `stopPolicy` refused in the last hour, to two digits: 1234 "
        "is 1200. "
        "Those of pods that are gone are not in it.",
    )
    active_users: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Users seen in the last ten minutes, to two digits. One who was seen by two pods counts "
        "twice.",
    )
