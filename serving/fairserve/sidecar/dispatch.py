"""Drives the scheduler: the only writer of its state, and the only place that asks it for the next call.

A decision is carried out in the same turn of the event loop that made it possible: a call that arrives
while the engine has room goes at once, and a call that ends lets the next one go. Calls wait here as
`Waiter`s; no task and no future belongs to a waiting call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from fairserve.core.calls import (
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Refusal,
    Refused,
    Settled,
    ThrottlingMode,
    Usage,
)
from fairserve.core.scheduler import Scheduler
from fairserve.core.window import DispatchWindow, EngineSample
from fairserve.sidecar.metrics import Metrics


class Waiter(Protocol):
    """A call on its way."""

    call: Call

    def go(self, dispatched: Dispatched) -> None:
        """It is this call's turn: send it to the engine."""

    def evicted(self, refusal: Refusal) -> None:
        """It has lost its place in the queue."""

    def output_so_far(self, now: float) -> int:
        """Output tokens that the engine has produced for it, as far as can be told."""


class Dispatcher:
    """Queue, window and engine of one pod."""

    def __init__(
        self,
        scheduler: Scheduler,
        window: DispatchWindow,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.window = window
        self._metrics = metrics
        self._clock = clock
        self._waiting: dict[int, Waiter] = {}
        self._running: dict[int, Waiter] = {}
        self._last_id = 0
        self._held = False
        self._pumping = False

    def next_id(self) -> int:
        """An id for a call."""
        self._last_id += 1
        return self._last_id

    def submit(self, waiter: Waiter) -> Refusal | None:
        """Let a call wait, and go if the engine has room. The refusal if it may not even wait."""
        call = waiter.call
        now = self._clock()
        started = time.perf_counter()
        decision = self.scheduler.enqueue(call, now)
        counts = self._metrics.calls(call.tenant, call.application)
        if isinstance(decision, Refused):
            self._metrics.decision.observe(time.perf_counter() - started)
            self._metrics.wasted_tokens += decision.wasted_tokens
            counts.ended(Outcome.REFUSED)
            counts.refused(decision.refusal.reason, ThrottlingMode.ENFORCE)
            return decision.refusal
        if decision.would_refuse is not None:
            counts.refused(decision.would_refuse.reason, ThrottlingMode.SHADOW)
        self._waiting[call.call_id] = waiter
        self._evict(decision.evicted)
        self._pump(now)
        self._metrics.decision.observe(time.perf_counter() - started)
        return None

    def cancel(self, waiter: Waiter) -> None:
        """A waiting call's client left."""
        call = waiter.call
        if self._waiting.pop(call.call_id, None) is not None:
            self.scheduler.cancel(call.call_id, self._clock())
            self._metrics.calls(call.tenant, call.application).ended(Outcome.CANCELLED)

    def finish(self, waiter: Waiter, usage: Usage, outcome: Outcome) -> Settled:
        """A dispatched call has ended. Lets the next one go."""
        now = self._clock()
        del self._running[waiter.call.call_id]
        settled = self.scheduler.finish(waiter.call.call_id, usage, outcome, now)
        self._metrics.calls(settled.tenant, settled.application).ended(outcome, usage)
        self._metrics.serve(settled.tenant, settled.service)
        self._pump(now)
        return settled

    def hold(self) -> None:
        """The engine is unreachable: let calls wait."""
        self._held = True

    def release(self) -> None:
        """The engine answers again."""
        if self._held:
            self._held = False
            self._pump(self._clock())

    @property
    def held(self) -> bool:
        """Whether calls wait for an engine that is unreachable."""
        return self._held

    def observe(self, sample: EngineSample) -> None:
        """The engine has told how it is."""
        self.window.observe(sample, self.scheduler.running)
        self._pump(self._clock())

    def charge_progress(self) -> None:
        """Charge running calls for what they have produced beyond their prediction."""
        now = self._clock()
        for call_id, waiter in self._running.items():
            self.scheduler.progress(call_id, waiter.output_so_far(now))

    def expire(self) -> None:
        """Evict calls that waited too long."""
        self._evict(self.scheduler.expire(self._clock()))

    def _evict(self, evicted: tuple[Evicted, ...]) -> None:
        for lost in evicted:
            waiter = self._waiting.pop(lost.call_id)
            counts = self._metrics.calls(waiter.call.tenant, waiter.call.application)
            counts.ended(Outcome.EVICTED)
            counts.refused(lost.refusal.reason, ThrottlingMode.ENFORCE)
            self._metrics.wasted_tokens += lost.wasted_tokens
            waiter.evicted(lost.refusal)

    def _pump(self, now: float) -> None:
        """Dispatch while the engine has room. What happens inside may end a call and pump again: the loop
        that is running sees the room it makes.
        """
        if self._pumping or self._held:
            return
        scheduler, window = self.scheduler, self.window
        self._pumping = True
        try:
            while scheduler.queued and window.admits(scheduler.running, scheduler.inflight_tokens):
                dispatched = scheduler.dispatch(now)
                if dispatched is None:
                    break
                self._metrics.queue_wait.observe(dispatched.wait_s)
                waiter = self._waiting.pop(dispatched.call_id)
                self._running[dispatched.call_id] = waiter
                waiter.go(dispatched)
        finally:
            self._pumping = False
