"""Sliding windows of admitted interactions: the memory of OIT's limits.

A window is anchored at now and remembers the newest `count` admissions, which is all that decides: the
limit is reached while the oldest of them is younger than the window, and that is when a retry succeeds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from fairserve.core.settings import Limit


class Window:
    """Admissions under one limit of one subject."""

    __slots__ = ("_admitted", "limit")

    def __init__(self, limit: Limit, admitted: tuple[float, ...] = ()) -> None:
        self.limit = limit
        self._admitted: deque[float] = deque(admitted, maxlen=limit.count)

    def under(self, limit: Limit) -> Window:
        """The same admissions under another limit."""
        return Window(limit, tuple(self._admitted))

    def retry_after(self, now: float) -> float:
        """Seconds until one more interaction is within the limit; 0 where it is now."""
        if len(self._admitted) < self.limit.count:
            return 0.0
        return max(0.0, self._admitted[0] + self.limit.window_s - now)

    def remaining(self, now: float) -> int:
        """Interactions that may begin now."""
        return self.limit.count - sum(1 for at in self._admitted if at + self.limit.window_s > now)

    def reset_s(self, now: float) -> float:
        """Seconds until the oldest counted interaction leaves the window; 0 if none is counted."""
        oldest = next((at for at in self._admitted if at + self.limit.window_s > now), None)
        return 0.0 if oldest is None else oldest + self.limit.window_s - now

    def admit(self, now: float) -> None:
        """Count one interaction. A clock that went back counts it at the newest time known."""
        self._admitted.append(max(now, self._admitted[-1]) if self._admitted else now)

    def ages(self, now: float) -> tuple[float, ...]:
        """Seconds since each remembered admission, oldest first."""
        return tuple(now - at for at in self._admitted)

    def is_empty(self, now: float) -> bool:
        """Whether nothing is counted any more."""
        return not self._admitted or self._admitted[-1] + self.limit.window_s <= now


#: What a limit is counted over: a scope's name and who it is about.
Subject = tuple[str, ...]


class Windows:
    """All windows by subject. A window appears with the first admission; `forget` drops those that ran out,
    least recently used first.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[Subject, Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def get(self, subject: Subject, limit: Limit) -> Window:
        """The subject's window under `limit`; not remembered until something is admitted. A changed limit
        keeps the newest admissions.
        """
        window = self._windows.get(subject)
        if window is None:
            return Window(limit)
        if window.limit != limit:
            window = self._windows[subject] = window.under(limit)
        return window

    def admit(self, subject: Subject, limit: Limit, now: float) -> None:
        """Count one interaction of the subject."""
        window = self.get(subject, limit)
        window.admit(now)
        self._windows[subject] = window
        self._windows.move_to_end(subject)

    def forget(self, now: float, most: int) -> None:
        """Drop windows in which nothing is counted, looking at `most` at a time. The least recently used
        window may be a long one: it is moved back, so that it doesn't hide the others.
        """
        for _ in range(min(most, len(self._windows))):
            subject, window = next(iter(self._windows.items()))
            if window.is_empty(now):
                del self._windows[subject]
            else:
                self._windows.move_to_end(subject)

    def __iter__(self) -> Iterator[tuple[Subject, Window]]:
        """Every window, least recently used first."""
        yield from self._windows.items()

    def restore(self, subject: Subject, limit: Limit, ages: tuple[float, ...], now: float) -> None:
        """Put a window back, from the ages of its admissions."""
        self._windows[subject] = Window(limit, tuple(now - age for age in ages))
