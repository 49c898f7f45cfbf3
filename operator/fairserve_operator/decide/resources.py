"""Objects as the API server or a folder gave them, before anybody believes what they say.

These are the inputs of every decision: raw specs with just enough metadata to order and name them. `Parsed`
is one of which that has been judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from fairserve.config import key_digest

Made = TypeVar("Made")
Spec = TypeVar("Spec", bound=BaseModel)

TENANT = "Tenant"
APPLICATION = "Application"
SERVING_POOL = "ServingPool"


class ObjectKey(NamedTuple):
    """Which object: unique at one time, reused after deletion (the uid is not).

    A tuple, because tables of 10,000 of them are looked through for every change.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.kind} "{self.name}"'


@dataclass(frozen=True, slots=True)
class Resource:
    """One object. `created` is its creation time as RFC 3339, or empty; the older of two wins a conflict.

    `spec` is raw: whatever the API server stored or a file said. `labels` are kept of Applications, by which
    Tenants select them; nobody looks at others'.
    """

    key: ObjectKey
    uid: str
    generation: int
    created: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    #: What pure functions made of this very object, each under a key of its own, so that ten thousand others
    #: are not read again when one changes. `remembered` fills it.
    memo: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


def remembered(resource: Resource, key: object, make: Callable[[], Made]) -> Made:
    """What `make` makes of the resource, made once. It must depend on nothing but the resource and `key`."""
    made: Made | None = resource.memo.get(key)
    if made is None:
        made = resource.memo[key] = make()
    return made


@dataclass(frozen=True, slots=True)
class Parsed(Generic[Spec]):
    """A resource with its spec, or with what is wrong with it: what `specs.parse` makes of it."""

    resource: Resource
    spec: Spec | None
    error: str = ""


class SecretRef(NamedTuple):
    """One entry of one Secret."""

    namespace: str
    name: str
    key: str


class SecretProblem(StrEnum):
    """Why there is no digest for a SecretRef."""

    SECRET_MISSING = "SecretMissing"  # noqa: S105 (a reason, not a secret)
    KEY_MISSING = "SecretKeyMissing"
    EMPTY = "SecretEmpty"
    MALFORMED = "SecretMalformed"

    def of(self, name: str, key: str) -> str:
        """The problem with an entry, in words."""
        match self:
            case SecretProblem.SECRET_MISSING:
                return f'Secret "{name}" not found'
            case SecretProblem.KEY_MISSING:
                return f'Secret "{name}" has no key "{key}"'
            case SecretProblem.EMPTY:
                return f'key "{key}" of Secret "{name}" is empty'
            case SecretProblem.MALFORMED:
                return (
                    f'key "{key}" of Secret "{name}" is nothing that a caller can send in a header: '
                    f"not printable ASCII, or longer than {LONGEST_CREDENTIAL} characters"
                )


#: A longer header is refused by most that stand between a caller and its sidecar.
LONGEST_CREDENTIAL = 8192


def credential_digest(credential: str | SecretProblem, salt: str) -> str | SecretProblem:
    """The keyed digest by which a caller's credential is known, or why there is none."""
    if isinstance(credential, SecretProblem):
        return credential
    return key_digest(salt, credential) if can_be_sent(credential) else SecretProblem.MALFORMED


def can_be_sent(credential: str) -> bool:
    """Whether a client can put it into a header as it is."""
    return len(credential) <= LONGEST_CREDENTIAL and credential.isascii() and credential.isprintable()
