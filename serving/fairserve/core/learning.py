"""Profiles that follow their traffic (`mode: Learned`), and that no user can shape alone.

Each user's calls make moving averages; a tenant's word is the median of its recent users', and the
application's target the median of the tenants' words. So a user with many calls counts once, and a tenant
with many users counts once. The profile moves towards the target by a bounded factor an hour, and only after
a minimum of samples. Whoever still shapes a profile gains at most 1/(1 − λ): see `cost`.
"""

from __future__ import annotations

from collections import OrderedDict
from statistics import median
from typing import TYPE_CHECKING, Final

from fairserve.core.settings import Learning, Profile

if TYPE_CHECKING:
    from fairserve.core.flows import Part

#: Whose averages are asked: this many tenants, each by this many users, those seen last.
_TENANTS: Final = 64
_USERS: Final = 16
#: A profile moves at most once in so many seconds.
_INTERVAL_S: Final = 10.0


class Learner:
    """One application's profile in force and whose traffic it follows."""

    __slots__ = ("_moved_at", "_recent", "_stale", "profile", "samples", "settings")

    def __init__(self, profile: Profile, settings: Learning) -> None:
        self.profile = profile
        self.settings = settings
        self.samples = 0
        self._recent: OrderedDict[str, OrderedDict[str, Part]] = OrderedDict()
        self._moved_at: float | None = None
        #: Whether there were samples since the profile moved.
        self._stale = False

    def observe(self, part: Part) -> None:
        """A call of this flow has completed; its averages are up to date."""
        self.samples += 1
        self._stale = True
        tenant, user = part.flow.tenant.name, part.flow.user
        users = self._recent.get(tenant)
        if users is None:
            users = self._recent[tenant] = OrderedDict()
            if len(self._recent) > _TENANTS:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(tenant)
        users[user] = part
        users.move_to_end(user)
        if len(users) > _USERS:
            users.popitem(last=False)

    def move(self, now: float) -> bool:
        """Move the profile towards its target if it is time; whether it moved."""
        if self._moved_at is None or now < self._moved_at:
            self._moved_at = now
        elapsed_s = now - self._moved_at
        if elapsed_s < _INTERVAL_S or not self._stale or self.samples < self.settings.min_samples:
            return False
        # However long nothing was learned, an hour's change is the most at once.
        factor = self.settings.max_factor_per_hour ** (min(elapsed_s, 3600.0) / 3600.0)
        self._moved_at, self._stale = now, False
        target = self.target()
        before, self.profile = (
            self.profile,
            Profile(
                input_tokens=_bounded(self.profile.input_tokens, target.input_tokens, factor),
                output_tokens=_bounded(self.profile.output_tokens, target.output_tokens, factor),
                system_tokens=_bounded(self.profile.system_tokens, target.system_tokens, factor),
            ),
        )
        return self.profile != before

    def target(self) -> Profile:
        """What the recent traffic says."""
        words = [
            (
                median(part.input_tokens for part in users.values()),
                median(part.output_tokens for part in users.values()),
                median(part.system_tokens for part in users.values()),
            )
            for users in self._recent.values()
        ]
        if not words:
            return self.profile
        inputs, outputs, systems = zip(*words, strict=True)
        return Profile(median(inputs), median(outputs), median(systems))


def _bounded(value: float, target: float, factor: float) -> float:
    # From nothing a term can only grow in steps of a token: a factor of zero stays zero.
    start = max(value, 1.0)
    return min(max(target, start / factor if value >= 1.0 else 0.0), start * factor)
