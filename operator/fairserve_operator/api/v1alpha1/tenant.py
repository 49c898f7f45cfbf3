"""Tenant: who shares a pool."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fairserve_operator.api.v1alpha1.fields import (
    CommonStatus,
    Count,
    Duration,
    InteractionLimit,
    Model,
    Name,
    Weight,
    cel,
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
RESERVED_HEADER_PREFIX = "x-fairserve-"

_HEADER_MESSAGE = "is a header with a meaning of its own; choose another"
_ONE_KIND = "exactly one of apiKey, header is allowed"


class SecretKeyRef(Model):
    """One entry of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(
        description="Key in the Secret's data. Its value without surrounding white space is the API key."
    )


class ApiKey(Model):
    """Callers who present this key are the tenant."""

    secret_ref: SecretKeyRef = Field(
        description="Where the key is. Only a salted hash of it leaves the operator; a changed Secret "
        "takes effect at once. Two tenants can't have the same key: the older Tenant keeps it."
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
                    f"&& !self.lowerAscii().startsWith('{RESERVED_HEADER_PREFIX}')",
                    _HEADER_MESSAGE,
                )
            ),
        ),
    ] = Field(description="Name of the header, in any case.")
    value: Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=256)] = Field(
        description="The exact value of the header, in visible ASCII."
    )

    @model_validator(mode="after")
    def _is_free(self) -> Self:
        name = self.name.lower()
        if name in RESERVED_HEADERS or name.startswith(RESERVED_HEADER_PREFIX):
            raise ValueError(f"name: {self.name} {_HEADER_MESSAGE}")
        return self


class Identity(
    Model, json_schema_extra=cel(("[has(self.apiKey), has(self.header)].filter(x, x).size() == 1", _ONE_KIND))
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

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.api_key is None) == (self.header is None):
            raise ValueError(_ONE_KIND)
        return self


class TenantInteractionLimits(Model):
    """Limits on beginning interactions. They apply only while the pool is overloaded."""

    per_user: InteractionLimit | None = Field(
        None, description="For each user of the tenant. Unset: no limit."
    )
    total: InteractionLimit | None = Field(None, description="For the whole tenant. Unset: no limit.")


class Queue(Model):
    """How much the tenant may have waiting, in each pod."""

    max_requests: Count | None = Field(
        None,
        description="Most calls that wait at one time in one pod. What overflows is refused. Default: 10000.",
    )
    max_wait: Duration | None = Field(
        None, description="A call that has waited this long is refused. Default: 10m."
    )


class TenantSpec(Model):
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
        description="Interactions that a limit refused in the last hour, to two digits: 1234 is 1200. "
        "Those of pods that are gone are not in it.",
    )
    active_users: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Users seen in the last ten minutes, to two digits. One who was seen by two pods counts "
        "twice.",
    )
