"""When the webhook's certificate is renewed, and whom the API server must trust meanwhile: pure.

All replicas serve the certificate of one Secret. A new one that the same authority signed can be served at
once. A new authority comes with a new certificate, and both go into the Secret together. Each replica goes on
with the certificate that it has until the API server has trusted the new authority for `SETTLED_S`, and the
old one is trusted for `FORMER_S` after the new one was made, and for as long as whoever writes serves by it.
Times are seconds since the epoch, but for `Settling`, which counts by a clock that nobody sets.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from enum import StrEnum

from fairserve_operator.manifests.certificates import SERVING_S, Certificate
from fairserve_operator.manifests.webhook_secret import Keys

#: Renewed when so much of its time is left.
RENEWED_S = SERVING_S / 3
#: Less than this left, an authority is followed by another.
FOLLOWED_S = 365 * 86_400.0
#: For replicas that could not read the Secret all the while.
FORMER_S = 600.0
#: From `caBundle` in the API until every API server goes by it: it takes a fraction of a second.
SETTLED_S = 10.0
#: Authorities that are trusted at most, however often the Secret was deleted.
_MOST = 8


class Step(StrEnum):
    """What the Secret needs; also the words of the log."""

    KEEP = "nothing"
    CERTIFICATE = "a new certificate"
    AUTHORITY = "a new authority and certificate"


def step(keys: Keys | None, names: Collection[str], now: float) -> Step:
    """What must be made anew. `names` are those by which the API server calls."""
    if keys is None or keys.authority.certificate.expires_at - now < FOLLOWED_S:
        return Step.AUTHORITY
    serving = keys.serving
    if serving is None or not serving.certificate.names.issuperset(names):
        return Step.CERTIFICATE
    if serving.certificate.expires_at - now < RENEWED_S:
        return Step.CERTIFICATE
    return Step.KEEP


def names_of_next(keys: Keys | None, names: Collection[str], now: float) -> frozenset[str]:
    """Whom the next certificate is for. Of one that is not old all names stay, so that two replicas with
    different options, as while these are changed, don't take it from each other.
    """
    present = keys.serving.certificate if keys is not None and keys.serving is not None else None
    if present is None or present.expires_at - now < RENEWED_S:
        return frozenset(names)
    return present.names.union(names)


def former(
    newest: Certificate, others: Collection[Certificate], served: Certificate | None, now: float
) -> tuple[Certificate, ...]:
    """Which other authorities stay trusted. `served` is the one by which whoever asks serves now."""
    kept = [] if now - newest.made_at >= FORMER_S else list(others)
    if served is not None and served not in kept:
        kept.insert(0, served)
    return tuple(each for each in kept if each != newest and each.expires_at > now)[: _MOST - 1]


class Settling:
    """Since when the API server trusts whom. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._since: dict[bytes, float] = {}

    def saw(self, bundle: bytes, known: Collection[Certificate], now: float) -> None:
        """Take what `caBundle` is."""
        self._since = {
            each.pem: min(now, self._since.get(each.pem, math.inf)) for each in known if each.pem in bundle
        }

    def settled(self, authority: Certificate, now: float) -> bool:
        """Whether every API server goes by it."""
        return now - self._since.get(authority.pem, math.inf) >= SETTLED_S
