"""An order that nobody can have: it knows beforehand who is well-behaved, and serves those first.

It stands beside FairServe in `make paper` to show what an order could reach at all. It is no policy: in
traffic nobody is marked, and a heavy user under it may wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairserve.core import (
    Allowance,
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Queued,
    Refused,
    Scheduler,
    Settings,
    Settled,
    Usage,
)
from fairserve.core.catalogue import SchedulerLike
from fairserve.core.disciplines import Discipline
from fairserve.core.flows import Ticket


class WellBehavedFirst:
    """Two schedulers that throttle nobody: one of well-behaved users, and one of the others that dispatches
    only while the first has nothing waiting. What runs is not preempted.
    """

    def __init__(self, settings: Settings, good: Callable[[str], bool], discipline: Discipline) -> None:
        self.settings = settings
        self.armed = False
        self._good = good
        self._first = Scheduler(settings, discipline=discipline)
        self._second = Scheduler(settings, discipline=discipline)
        self._both = (self._first, self._second)
        self._of: dict[int, SchedulerLike] = {}  #: which one has a call that waits or runs

    def _one(self, call_id: int) -> SchedulerLike:
        return self._of.get(call_id, self._first)

    @property
    def queued(self) -> int:
        return self._first.queued + self._second.queued

    @property
    def running(self) -> int:
        return self._first.running + self._second.running

    @property
    def inflight_tokens(self) -> int:
        return self._first.inflight_tokens + self._second.inflight_tokens

    def enqueue(self, call: Call, now: float) -> Queued | Refused:
        one = self._first if self._good(call.user) else self._second
        decision = one.enqueue(call, now)
        if isinstance(decision, Queued):
            self._of[call.call_id] = one
        return decision

    def dispatch(self, now: float) -> Dispatched | None:
        """A well-behaved user's call if one waits."""
        return (self._first if self._first.queued else self._second).dispatch(now)

    def progress(self, call_id: int, output_tokens: int) -> None:
        self._one(call_id).progress(call_id, output_tokens)

    def finish(self, call_id: int, usage: Usage, outcome: Outcome, now: float) -> Settled:
        return self._of.pop(call_id, self._first).finish(call_id, usage, outcome, now)

    def cancel(self, call_id: int, now: float) -> bool:
        return self._of.pop(call_id, self._first).cancel(call_id, now)

    def expire(self, now: float) -> tuple[Evicted, ...]:
        return self._first.expire(now) + self._second.expire(now)

    def configure(self, settings: Settings) -> None:
        self.settings = settings
        for one in self._both:
            one.configure(settings)

    def set_armed(self, armed: bool) -> None:
        self.armed = armed

    def oldest_wait(self, now: float) -> float:
        return max(one.oldest_wait(now) for one in self._both)

    def estimate_input(self, tenant: str, application: str, body_bytes: int) -> int:
        return self._first.estimate_input(tenant, application, body_bytes)

    def allowance(self, tenant: str, user: str, application: str, now: float) -> Allowance | None:
        return None

    def snapshot(self, now: float) -> dict[str, Any]:
        return {"first": self._first.snapshot(now), "second": self._second.snapshot(now)}

    def restore(self, data: dict[str, Any], now: float) -> None:
        self._first.restore(data["first"], now)
        self._second.restore(data["second"], now)

    def dump(self, now: float) -> dict[str, Any]:
        return {"first": self._first.dump(now), "second": self._second.dump(now)}

    def check(self) -> None:
        for one in self._both:
            one.check()

    def running_calls(self) -> dict[int, Ticket]:
        return self._first.running_calls() | self._second.running_calls()
