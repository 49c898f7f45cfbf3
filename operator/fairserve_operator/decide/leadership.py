"""Which of several operators acts: pure, over a Lease that all of them read and write.

Only one clock counts for each of them, its own: a Lease that has not changed for as long as its holder
promised is up for grabs, whatever times are written in it. Who writes does so at the version it has read,
so that of two who bid one fails. Who holds it stops acting `margin_s` before the others may take it, counted
from before it asked for the renewal that was granted last. A Lease that went back to an earlier term, as
after a restore of etcd, may name a holder of old, be it us: the holder of the later term may still act.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. With these a dead holder is followed within `look_s + lease_s + look_s`, plus two calls."""

    lease_s: int = 10  #: how long a renewal is good for
    renew_s: float = 2.0  #: time between two renewals
    look_s: float = 1.0  #: time between two looks of whoever waits
    margin_s: float = 3.0  #: how long before the end the holder stops acting
    call_s: float = 2.0  #: how long one call for the Lease may take


TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Lease:
    """What the API server holds."""

    version: str  #: resource version
    holder: str  #: empty: nobody
    lease_s: float
    transitions: int


@dataclass(frozen=True, slots=True)
class Bid:
    """What to write: ourselves as holder."""

    version: str | None  #: at which resource version; None: create it
    transitions: int
    renewal: bool  #: whether we hold it already


class Election:
    """One candidate's view. `identity` is no other candidate's. Times are of one monotonic clock, seconds."""

    def __init__(self, identity: str, terms: Terms) -> None:
        self._identity = identity
        self._terms = terms
        self._lease: Lease | None = None
        self._unchanged_since = 0.0
        self._term = -1  #: the highest number of transitions that was seen
        self._went_back = False  #: whether the Lease is of an earlier term than one that was seen
        #: Until when we may act; minus infinity: we may not.
        self.acts_until = -math.inf

    @property
    def known(self) -> Lease | None:
        """The Lease as it was seen last."""
        return self._lease

    @property
    def holds(self) -> bool:
        """Whether the Lease names us, be it that we may act or that we no longer may."""
        return self._lease is not None and self._lease.holder == self._identity

    def saw(self, lease: Lease | None, now: float) -> None:
        """Take what a look found."""
        if lease is None or self._lease is None or lease.version != self._lease.version:
            self._unchanged_since = now
        self._lease = lease
        self._went_back = lease is not None and lease.transitions < self._term
        self._term = max(self._term, -1 if lease is None else lease.transitions)
        if not self.holds or self._went_back:
            self.acts_until = -math.inf

    def bid(self, now: float) -> Bid | None:
        """What to write now that the Lease was looked at; None: somebody else holds it."""
        lease = self._lease
        if lease is None:
            return Bid(None, 0, renewal=False)
        if self.holds and not self._went_back:
            return Bid(lease.version, lease.transitions, renewal=True)
        if self._went_back:  # To a promise of old, whose length counts for nothing.
            free_at = self._unchanged_since + max(lease.lease_s, self._terms.lease_s)
        else:
            free_at = self._unchanged_since + (lease.lease_s if lease.holder else 0.0)
        if now >= free_at:
            return Bid(lease.version, max(lease.transitions, self._term) + 1, renewal=False)
        return None

    def won(self, lease: Lease, asked_at: float) -> None:
        """Take what our bid, begun at `asked_at`, has made of the Lease."""
        self._lease, self._unchanged_since = lease, asked_at
        self._term, self._went_back = max(self._term, lease.transitions), False
        self.acts_until = asked_at + self._terms.lease_s - self._terms.margin_s

    def resign(self) -> Bid | None:
        """Act no more; what to write so that others needn't wait, None where we hold nothing."""
        self.acts_until = -math.inf
        if self._lease is None or not self.holds:
            return None
        return Bid(self._lease.version, self._lease.transitions, renewal=True)
