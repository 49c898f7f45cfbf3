"""Profiles that follow their traffic (`mode: Learned`), and that no user can shape alone.

Each user's calls make moving averages; a tenant's word is the median of its recent users', and the
application's target the median of the tenants' words. So a user with many calls counts once, and a tenant
with many users counts once. Of an even number the middle one nearer to the profile in force decides: the
profile moves only in a direction that more than half agree on, and no further than all of these. It moves by
a bounded factor an hour, and only after a minimum of samples and of users.

The names inside a tenant are the tenant's own. A tenant counts once however many it has; but where it is the
only one that uses an application, who has most of the names that were seen last there shapes the profile.
Whoever does gains at most 1/(1 − λ): see `cost`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from fairserve.core.settings import Learning, Profile

if TYPE_CHECKING:
    from fairserve.core.flows import Part

#: Whose averages are asked: this many tenants, each by this many users, those seen last.
_TENANTS: Final = 64
_USERS: Final = 16
#: Users below which a profile stays: fewer have no majority against one of them.
_FEWEST_USERS: Final = 3
#: A profile moves at most once in so many seconds.
_INTERVAL_S: Final = 10.0
#: One move makes use of this much time at most: what was not learned in idle time is not caught up with.
_CATCH_UP_S: Final = 60.0
_HOUR_S: Final = 3600.0


class Learner:
    """One application's profile in force and whose traffic it follows."""

    __slots__ = ("_moved_at", "_recent", "_stale", "profile", "samples", "settings")

    def __init__(self, profile: Profile, settings: Learning) -> None:
        self.profile = profile
        self.settings = settings
        #: Completed calls since there is anybody in `_recent`.
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
        # The first move within an hour may make use of time before it, all of them together of so much.
        share = min(elapsed_s, _CATCH_UP_S) / (_HOUR_S + _CATCH_UP_S)
        factor = self.settings.max_factor_per_hour**share
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
        """What the recent traffic says; the profile in force while too few say anything."""
        now = self.profile
        tenants = [list(users.values()) for users in self._recent.values()]
        if sum([len(users) for users in tenants]) < _FEWEST_USERS:
            return now
        inputs, outputs, systems = now.input_tokens, now.output_tokens, now.system_tokens
        return Profile(
            _middle([_middle([part.input_tokens for part in users], inputs) for users in tenants], inputs),
            _middle([_middle([part.output_tokens for part in users], outputs) for users in tenants], outputs),
            _middle([_middle([part.system_tokens for part in users], systems) for users in tenants], systems),
        )


def _middle(words: list[float], now: float) -> float:
    """The median; of an even number what is nearest to `now` from the lower middle to the upper one."""
    words.sort()
    lower, upper = words[(len(words) - 1) // 2], words[len(words) // 2]
    return min(max(now, lower), upper)


def _bounded(value: float, target: float, factor: float) -> float:
    # From nothing a term can only grow in steps of a token: a factor of zero stays zero.
    start = max(value, 1.0)
    return min(max(target, start / factor if value >= 1.0 else 0.0), start * factor)
