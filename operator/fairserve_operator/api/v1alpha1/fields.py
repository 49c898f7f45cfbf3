"""Field types that the three kinds share, and the base of their models.

Numbers and booleans are strict, because the API server is: `weight: "3"` is an error in a cluster and
must be one in `fairserve up` as well. A rule that the schema language can't say is written twice, as a
validator here and as CEL beside it (`cel`), with the same message.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Frozen, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """`json_schema_extra` with CEL rules, each (expression, message)."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules],
    }


_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"([0-9]+)(h|ms|m|s)")

#: Go's notation without fractions and signs, as in Gateway API; CEL's duration() reads the same.
DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"


def duration_s(text: str) -> float:
    """Seconds in a duration such as 500ms, 30s or 1h30m that its model has accepted."""
    return sum(int(count) * _UNITS_S[unit] for count, unit in _DURATION_PART.findall(text))


_UNITS_BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

#: Kubernetes' notation of sizes, in those of its units that a queue is measured in.
SIZE_PATTERN = r"^[1-9][0-9]{0,8}(Ki|Mi|Gi)$"


def size_bytes(text: str) -> int:
    """Bytes in a size such as 512Ki, 64Mi or 1Gi that its model has accepted."""
    return int(text[:-2]) * _UNITS_BYTES[text[-2:]]


def never_binds(small: InteractionLimit | None, large: InteractionLimit | None) -> bool:
    """Whether the larger group's limit is reached first, always: one of the two is a mistake."""
    return (
        small is not None
        and large is not None
        and duration_s(small.window) == duration_s(large.window)
        and small.count > large.count
    )


def binds_rule(small: str, large: str) -> tuple[str, str]:
    """The same for two fields in CEL, with its message."""
    return (
        f"!has(self.{small}) || !has(self.{large}) "
        f"|| duration(self.{small}.window) != duration(self.{large}.window) "
        f"|| self.{small}.count <= self.{large}.count",
        f"{small} must not allow more than {large} in the same window, where it could never apply",
    )


def one_of_rule(one: str, other: str) -> tuple[str, str]:
    """Exactly one of two fields is set: in CEL, with its message."""
    return f"has(self.{one}) != has(self.{other})", f"exactly one of {one}, {other} is allowed"


def _is_positive(text: str) -> str:
    if duration_s(text) <= 0:
        raise ValueError("must be longer than 0s")
    return text


def _is_countable(text: str) -> str:
    if size_bytes(text) > 900_000 * 2**30:
        raise ValueError(_TOO_LARGE)
    return text


def _is_not_tiny(weight: float) -> float:
    if weight < MIN_WEIGHT:
        raise ValueError(f"must be at least {MIN_WEIGHT}")
    return weight


_TOO_LARGE = "must be at most 900000Gi"

#: Keeps counters (cost divided by weight) far from what a float can hold.
MIN_WEIGHT = 0.000001

Size = Annotated[
    str,
    Field(
        pattern=SIZE_PATTERN,
        max_length=11,
        json_schema_extra=cel(("quantity(self).compareTo(quantity('900000Gi')) <= 0", _TOO_LARGE)),
    ),
    AfterValidator(_is_countable),
]
DurationOrZero = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=24)]
Duration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=24,
        json_schema_extra=cel(("duration(self) > duration('0s')", "must be longer than 0s")),
    ),
    AfterValidator(_is_positive),
]
Weight = Annotated[
    float,
    Field(
        strict=True,
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        json_schema_extra=cel(("self >= 0.000001", "must be at least 0.000001")),
    ),
    AfterValidator(_is_not_tiny),
]
#: Of one token.
Price = Weight
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=100_000_000)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]


#: What Kubernetes allows in a label's key and value.
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"


def _are_label_keys(labels: dict[str, str]) -> dict[str, str]:
    """Check what a structural schema can't describe: the keys of an object."""
    for key in labels:
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key that a label can have")
    return labels


MatchLabels = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=317)],
        Annotated[str, StringConstraints(max_length=63, pattern=_LABEL_VALUE)],
    ],
    Field(min_length=1, max_length=32),
    AfterValidator(_are_label_keys),
]

#: Every header of fairserve's own starts with it.
OWN_HEADER_PREFIX = "x-fairserve-"
USER_HEADER = "x-fairserve-user"
#: Their values are secrets, which neither name a user nor belong in a spec.
_CREDENTIAL_HEADERS = ["api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"]
_OTHER_MEANING = "is a header with another meaning; choose another"


_PLAIN = f"!(self in {_CREDENTIAL_HEADERS!r}) && !self.startsWith('{OWN_HEADER_PREFIX}')"
_HEADER_NAME = r"^[a-z0-9!#$%&'*+.^_`|~-]+$"


def _is_plain(name: str) -> str:
    if name in _CREDENTIAL_HEADERS or name.startswith(OWN_HEADER_PREFIX):
        raise ValueError(f"{name} {_OTHER_MEANING}")
    return name


def _may_name_a_user(name: str) -> str:
    return name if name == USER_HEADER else _is_plain(name)


#: Names in lower case of headers that are neither credentials' nor ours.
PlainHeader = Annotated[
    str,
    Field(pattern=_HEADER_NAME, max_length=128, json_schema_extra=cel((_PLAIN, _OTHER_MEANING))),
    AfterValidator(_is_plain),
]
#: The same and the one of ours that names a user.
UserHeader = Annotated[
    str,
    Field(
        pattern=_HEADER_NAME,
        max_length=128,
        json_schema_extra=cel((f"self == '{USER_HEADER}' || ({_PLAIN})", _OTHER_MEANING)),
    ),
    AfterValidator(_may_name_a_user),
]
HeaderValue = Annotated[str, Field(pattern=r"^[!-~]([ -~]*[!-~])?$", max_length=256)]


def are_different(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Check what `x-kubernetes-list-type: set` says."""
    for entry in entries:
        if entries.count(entry) > 1:
            raise ValueError(f"{entry} is there twice")
    return entries


class InteractionLimit(Model):
    """At most `count` interactions may begin in any `window`."""

    count: Count = Field(
        description="How many interactions may begin in any `window`, at least 1. Each pod counts those that "
        "it admits itself."
    )
    window: Duration = Field(description="Length of the sliding window, such as 60s, 10m or 1h30m.")


class SecretKeyRef(Model):
    """One entry of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(
        description="Key in the Secret's data. White space around its value doesn't count."
    )


class StatusCondition(Model):
    """One condition, as everywhere in Kubernetes."""

    type: Annotated[str, Field(max_length=316)] = Field(
        description="Accepted, ResolvedRefs, Programmed, Ready; on a ServingPool Overloaded; "
        "Conflicted while another object claims the same; on a Tenant Held while `stopPolicy` is Hold."
    )
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})] = Field(
        description="True, False or Unknown."
    )
    reason: Annotated[str, Field(max_length=1024)] = Field(description="The cause in one CamelCase word.")
    message: Annotated[str, Field(max_length=32768)] = Field(
        description="The cause in a sentence that names object and field."
    )
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The metadata.generation that the condition is about."
    )
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When `status` changed last."
    )


Conditions = Annotated[
    tuple[StatusCondition, ...],
    Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]


class CommonStatus(Model):
    """What every kind's status has."""

    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The metadata.generation that this status is about."
    )
    conditions: Conditions = Field(
        (),
        description="Accepted: the spec is well formed. ResolvedRefs: what it refers to exists. "
        "Programmed: every pod's sidecar has acknowledged it. Ready: all of these.",
    )
