"""How much of a count fell into the last minutes: differences of totals in a ring of periods. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class Recent:
    """The last `periods` periods of `period_s` seconds, and the one that has begun.

    Totals are by name and only rise. Names whose total stands still cost nothing.
    """

    def __init__(self, period_s: float, periods: int) -> None:
        self._period_s = period_s
        self._past: deque[dict[str, float]] = deque(maxlen=periods)
        self._before: dict[str, float] = {}
        self._begun_at: float | None = None

    def due(self, now: float) -> bool:
        """Whether the period is over, so that `close` should be called."""
        return self._begun_at is None or now >= self._begun_at + self._period_s

    def close(self, totals: Mapping[str, float], now: float) -> None:
        """End the period with these totals and begin the next. After a pause there are periods of nothing."""
        if self._begun_at is not None:
            missed = int((now - self._begun_at) // self._period_s) - 1
            self._past.append(self._risen(totals))
            self._past.extend({} for _ in range(min(missed, self._past.maxlen or 0)))
        self._before, self._begun_at = dict(totals), now

    def sums(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What was added to each total lately; names without are left out."""
        found = self._risen(totals)
        for period in self._past:
            for name, added in period.items():
                found[name] = found.get(name, 0.0) + added
        return found

    def _risen(self, totals: Mapping[str, float]) -> dict[str, float]:
        before = self._before
        return {
            name: total - before.get(name, 0.0)
            for name, total in totals.items()
            if total > before.get(name, 0.0)
        }
