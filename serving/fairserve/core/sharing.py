"""An application's limit over all tenants, shared so that the innocent don't pay for the greedy.

While fewer than `count` interactions of the window are admitted, anybody may begin one. When the limit is
exhausted it is divided by water-filling: equally, and what somebody leaves of an equal share is divided among
the others. First between tenants, then between a tenant's users, so that a tenant with a thousand names has
one tenant's share. Refused are only those who are above their share on both levels. Someone who is below
is admitted even then; the shares of those above shrink by it, so the total returns to the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from itertools import islice

from fairserve.core.limits import until
from fairserve.core.settings import Limit


class WaterLevel:
    """Counts by key, and the level L up to which `capacity` fills them: the largest with Σ min(count, L) ≤
    capacity. Keeps how many keys have at least k, for each k, so that the level moves with the counts in
    small steps.
    """

    __slots__ = ("_at_least", "_below", "_level", "counts", "total")

    def __init__(self) -> None:
        self.counts: dict[Hashable, int] = {}
        self.total = 0
        #: How many keys have a count of at least k, at k; index 0 is unused.
        self._at_least: list[int] = [0]
        self._level = 0
        #: Σ min(count, level).
        self._below = 0

    def add(self, key: Hashable) -> None:
        """Count one more."""
        count = self.counts.get(key, 0) + 1
        self.counts[key] = count
        self.total += 1
        if count == len(self._at_least):
            self._at_least.append(0)
        self._at_least[count] += 1
        if count <= self._level:
            self._below += 1

    def remove(self, key: Hashable) -> None:
        """Count one less. The key must have been counted."""
        count = self.counts[key]
        if count == 1:
            del self.counts[key]
        else:
            self.counts[key] = count - 1
        self.total -= 1
        self._at_least[count] -= 1
        if count <= self._level:
            self._below -= 1
        if not self._at_least[-1] and len(self._at_least) > 1:
            self._at_least.pop()
            self._level = min(self._level, len(self._at_least) - 1)

    def level(self, capacity: int) -> int:
        """L for a capacity; at most the largest count."""
        at_least = self._at_least
        while self._below > capacity:
            self._below -= at_least[self._level]
            self._level -= 1
        while self._level + 1 < len(at_least) and self._below + at_least[self._level + 1] <= capacity:
            self._level += 1
            self._below += at_least[self._level]
        return self._level

    def is_above(self, key: Hashable, capacity: int) -> bool:
        """Whether one more of this key would put it above its share of the capacity."""
        self.add(key)
        above = self.counts[key] > self.level(capacity)
        self.remove(key)
        return above


class SharedWindow:
    """Admissions of one application, newest last."""

    #: Admissions are remembered up to this many times the limit: without overload nobody is refused, so
    #: there may be any number in a window.
    MEMORY = 2
    #: A refusal names its caller's time exactly where that is within this many departures, which bounds
    #: what a refusal costs. Beyond, it may name a later time than needed: when enough of the caller's own
    #: have left, looked for among `LOOK`, or when there is room for anybody.
    EXACT = 128
    LOOK = 512

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._log: deque[tuple[float, str, str]] = deque()
        self._tenants = WaterLevel()
        self._users: dict[str, WaterLevel] = {}

    def under(self, limit: Limit) -> SharedWindow:
        """The same admissions under another limit."""
        if limit == self.limit:
            return self
        other = SharedWindow(limit)
        for at, tenant, user in self._log:
            other.admit(tenant, user, at)
        return other

    def admit(self, tenant: str, user: str, now: float) -> None:
        """Count one interaction. A clock that went back counts it at the newest time known."""
        log = self._log
        log.append((max(now, log[-1][0]) if log else now, tenant, user))
        self._add(tenant, user)
        while len(log) > self.MEMORY * self.limit.count:
            self._drop_oldest()

    def retry_after(self, tenant: str, user: str, now: float) -> float:
        """Seconds until this user may begin an interaction if nobody else does meanwhile; 0 if it may now.
        Exact up to `EXACT` departures ahead, an upper bound beyond.
        """
        if self.may_begin(tenant, user, now):
            return 0.0
        departures = self._enough(tenant, user, self._tenants.total - self.limit.count)
        departures = self._fewest(tenant, user, min(departures, self.EXACT)) or departures
        return until(self._log[departures - 1][0] + self.limit.window_s, now)

    def may_begin(self, tenant: str, user: str, now: float) -> bool:
        """Whether this user may begin an interaction now."""
        self.forget(now)
        return self._lets_in(tenant, user)

    def remaining(self, now: float) -> int:
        """Interactions that may begin before the limit is exhausted."""
        self.forget(now)
        return max(0, self.limit.count - self._tenants.total)

    def reset_s(self, now: float) -> float:
        """Seconds until the oldest counted interaction leaves the window; 0 if none is counted."""
        self.forget(now)
        return self._log[0][0] + self.limit.window_s - now if self._log else 0.0

    def forget(self, now: float) -> None:
        """Drop what has left the window."""
        while self._log and self._log[0][0] + self.limit.window_s <= now:
            self._drop_oldest()

    def log(self, now: float) -> list[list[float | str]]:
        """Age, tenant and user of each remembered admission, oldest first."""
        return [[now - at, tenant, user] for at, tenant, user in self._log]

    def check(self) -> None:
        """Assert that the counts are those of the log."""
        assert self._tenants.total == len(self._log), "an application's admissions are off"
        for tenant, users in self._users.items():
            assert users.total == self._tenants.counts[tenant], f"{tenant}: admissions by user are off"

    def _lets_in(self, tenant: str, user: str) -> bool:
        return self._tenants.total < self.limit.count or not self._is_above_share(tenant, user)

    def _is_above_share(self, tenant: str, user: str) -> bool:
        if not self._tenants.is_above(tenant, self.limit.count):
            return False
        users = self._users.get(tenant)
        return users is None or users.is_above(user, self._tenants.level(self.limit.count))

    def _enough(self, tenant: str, user: str, excess: int) -> int:
        """After how many departures this user is let in at the latest: when there is room for anybody, or
        enough of its tenant's or of its own have left. Others' raise the shares, and may let it in before.
        """
        allowed = self._tenants.level(self.limit.count)
        of_tenant = max(1, self._tenants.counts.get(tenant, 0) + 1 - allowed)
        users = self._users.get(tenant)
        of_user = 1
        if users is not None:
            of_user = max(1, users.counts.get(user, 0) + 1 - users.level(allowed))
        for number, (_, whose, who) in enumerate(islice(self._log, min(excess, self.LOOK)), 1):
            if whose == tenant:
                of_tenant -= 1
                of_user -= who == user
                if not of_tenant or not of_user:
                    return number
        return excess + 1

    def _fewest(self, tenant: str, user: str, most: int) -> int:
        """After how many departures this user may begin; 0 if more than `most` are needed. The oldest leave
        the counts one by one and come back, so that the rule that admits is the one that is asked.
        """
        going = list(islice(self._log, most))
        left = 0
        let_in = False
        for _, whose, who in going:
            self._remove(whose, who)
            left += 1
            let_in = self._lets_in(tenant, user)
            if let_in:
                break
        for _, whose, who in going[:left]:
            self._add(whose, who)
        return left if let_in else 0

    def _drop_oldest(self) -> None:
        _, tenant, user = self._log.popleft()
        self._remove(tenant, user)

    def _add(self, tenant: str, user: str) -> None:
        self._tenants.add(tenant)
        users = self._users.get(tenant)
        if users is None:
            users = self._users[tenant] = WaterLevel()
        users.add(user)

    def _remove(self, tenant: str, user: str) -> None:
        self._tenants.remove(tenant)
        users = self._users[tenant]
        users.remove(user)
        if not users.total:
            del self._users[tenant]
