"""Sliding windows of admitted interactions: the memory of OIT's limits.

A window is anchored at now and remembers the newest `count` admissions at most, which is all that decides:
the limit is reached while the oldest of them is younger than the window, and that is when a retry succeeds.
It holds no more of them than ever counted at one time, so that a generous limit costs what is used of it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

from fairserve.core.settings import Limit


class Window:
    """Admissions under one limit of one subject, as a ring of times: eight bytes each."""

    __slots__ = ("_count", "_newest", "_oldest", "_times", "limit")

    def __init__(self, limit: Limit, admitted: Iterable[float] = ()) -> None:
        self.limit = limit
        self._count = limit.count
        self._times = array("d", tuple(admitted)[-limit.count :])
        self._newest = self._times[-1] if self._times else -math.inf
        #: Where the oldest admission is.
        self._oldest = 0

    @property
    def admitted(self) -> tuple[float, ...]:
        """Remembered admissions, oldest first."""
        return (*self._times[self._oldest :], *self._times[: self._oldest])

    def under(self, limit: Limit) -> Window:
        """The same admissions under another limit; under a higher one, as many as the lower remembered."""
        return self if limit == self.limit else Window(limit, self.admitted)

    def retry_after(self, now: float) -> float:
        """Seconds until one more interaction is within the limit; 0 where it is now."""
        limit, times = self.limit, self._times
        if len(times) < limit.count:
            return 0.0
        return until(times[self._oldest] + limit.window_s, now)

    def remaining(self, now: float) -> int:
        """Interactions that may begin now."""
        return self.limit.count - sum(1 for at in self._times if at + self.limit.window_s > now)

    def reset_s(self, now: float) -> float:
        """Seconds until the oldest counted interaction leaves the window; 0 if none is counted."""
        oldest = next((at for at in self.admitted if at + self.limit.window_s > now), None)
        return 0.0 if oldest is None else oldest + self.limit.window_s - now

    def admit(self, now: float) -> None:
        """Count one interaction. A clock that went back counts it at the newest time known."""
        if now < self._newest:
            now = self._newest
        self._newest = now
        times, oldest = self._times, self._oldest
        known = len(times)
        if known < self._count and (not known or times[oldest] + self.limit.window_s > now):
            if oldest:
                self._times = times = times[oldest:] + times[:oldest]
                self._oldest = 0
            times.append(now)
        else:
            times[oldest] = now
            self._oldest = oldest + 1 if oldest + 1 < known else 0

    def ages(self, now: float) -> list[float]:
        """Seconds since each remembered admission, oldest first."""
        return [now - at for at in self.admitted]

    def is_empty(self, now: float) -> bool:
        """Whether nothing is counted any more."""
        return self._newest + self.limit.window_s <= now


def until(at: float, now: float) -> float:
    """Seconds from now to `at`, 0 if that is past: `now` plus it is never short of `at` by rounding."""
    if at <= now:
        return 0.0
    wait_s = at - now
    while now + wait_s < at:
        wait_s = math.nextafter(wait_s, math.inf)
    return wait_s
