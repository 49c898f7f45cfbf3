"""A sidecar's memory of the operator's last word on overload.

The word holds as long as its lease. A sidecar that is not told again follows `on_stale`, so that a dead
operator can't keep callers refused for ever (unless `Hold` was asked for). One that was never told waits
`stale_after_s` from its first look for the operator to find it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairserve.overload.settings import OnStale


class OverloadSource(StrEnum):
    """Who decided whether OIT is armed in a pod."""

    OPERATOR = "Operator"  #: a lease that is running
    LOCAL = "Local"  #: the pod's own saturation
    STALE = "Stale"  #: `on_stale`, because no lease is running
    NONE = "None"  #: nobody yet: not armed


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What holds at one time."""

    armed: bool
    source: OverloadSource
    reason: str  #: for people: the operator's own, or why `on_stale` decides
    remaining_s: float  #: of the lease, or until `on_stale` decides; 0 when it does


class OverloadLease:
    """The last word and how long it holds. Times are seconds on one clock that does not go back."""

    def __init__(self, stale_after_s: float, on_stale: OnStale) -> None:
        self._stale_after_s = stale_after_s
        self._on_stale = on_stale
        self._told = False
        self._armed = False
        self._reason = ""
        #: When `on_stale` begins to decide; None before the first look.
        self._ends_s: float | None = None
        self._started_s: float | None = None

    def configure(self, stale_after_s: float, on_stale: OnStale) -> None:
        """Change what happens without a word. A running lease keeps the length it was given."""
        self._stale_after_s, self._on_stale = stale_after_s, on_stale
        if not self._told and self._started_s is not None:
            self._ends_s = self._started_s + stale_after_s

    def renew(self, armed: bool, lease_s: float, now: float, reason: str = "") -> None:
        """Take the operator's word for `lease_s` seconds."""
        self._told, self._armed, self._reason = True, armed, reason
        self._ends_s = now + lease_s

    def armed(self, now: float) -> bool:
        """Whether OIT is armed as far as the operator is concerned."""
        return self.describe(now).armed

    def describe(self, now: float) -> LeaseState:
        """What holds now, and why."""
        if self._ends_s is None:
            self._started_s, self._ends_s = now, now + self._stale_after_s
        remaining_s = self._ends_s - now
        if remaining_s > 0:
            source = OverloadSource.OPERATOR if self._told else OverloadSource.NONE
            reason = self._reason if self._told else "the operator has not been heard yet"
            return LeaseState(self._armed, source, reason, remaining_s)
        what = "the operator's lease has ended" if self._told else "the operator has never been heard"
        reason = f"{what}; onStale is {self._on_stale.value}"
        return LeaseState(self._without_word(), OverloadSource.STALE, reason, 0.0)

    def _without_word(self) -> bool:
        match self._on_stale:
            case OnStale.HOLD:
                return self._armed
            case OnStale.ARM:
                return True
            case OnStale.DISARM:
                return False
