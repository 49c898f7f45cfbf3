"""What a credential stands for, whichever kind it is."""

from __future__ import annotations

from dataclasses import dataclass

from fairserve.sidecar.naming import UserOrder


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose a call is. `application` and `user` are pinned unless None. All else is the tenant's own."""

    tenant: str
    application: str | None = None
    user: str | None = None
    cache_salt: str | None = None
    #: Applications whose calls it may make, besides calls of none. None: all.
    applications: frozenset[str] | None = None
    users: UserOrder | None = None  #: where a user is named; None: in the usual places
