"""What a credential stands for, whichever kind it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose a call is. `application` and `user` are pinned unless None. `cache_salt` is the tenant's own."""

    tenant: str
    application: str | None = None
    user: str | None = None
    cache_salt: str | None = None
