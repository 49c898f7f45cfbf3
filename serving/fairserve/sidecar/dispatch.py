"""Drives the scheduler: the only writer of its state, and the only place that asks it for the next call.

A decision is carried out in the same turn of the event loop that made it possible: a call that arrives
while the engine has room goes at once, and a call that ends lets the next one go. Calls wait here as
`Waiter`s; no task and no future belongs to a waiting call.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

from fairserve.core.calls import (
    UNIT,
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Queued,
    Refusal,
    RefusalReason,
    Refused,
    Settled,
    ThrottlingMode,
    Usage,
)
from fairserve.core.scheduler import Scheduler
from fairserve.core.window import DispatchWindow, EngineSample
from fairserve.sidecar.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)


class Waiter(Protocol):
    """A call on its way."""

    call: Call

    def go(self, dispatched: Dispatched) -> None:
        """It is this call's turn: send it to the engine."""

    def could_not_go(self) -> None:
        """`go` has failed."""

    def evicted(self, refusal: Refusal) -> None:
        """It has lost its place in the queue."""

    def engine_gone(self) -> None:
        """It has waited for an engine for as long as it may."""

    def notice_silence(self, now: float, most_s: float, *, engine_answers: bool) -> None:
        """It runs: give up if the engine has said nothing for `most_s` seconds."""

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
        *,
        engine_wait_s: float = 30.0,
        engine_silence_s: float = 600.0,
    ) -> None:
        self.scheduler = scheduler
        self.window = window
        self._metrics = metrics
        self._clock = clock
        self._waiting: dict[int, Waiter] = {}
        self._running: dict[int, Waiter] = {}
        self._last_id = 0
        self.engine_wait_s = engine_wait_s  #: how long calls wait for an engine that is gone
        self._engine_silence_s = engine_silence_s
        self._held_since: float | None = None  #: since when the engine can't take calls
        self._paused_until: float | None = None  #: how long it is let be after it turned a call away
        self._stopped = False  #: either of both
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
        decision = self._enqueue(call, now)
        if isinstance(decision, Refusal):
            self._metrics.decision.observe(time.perf_counter() - started)
            return decision
        self._waiting[call.call_id] = waiter
        self._evict(decision.evicted)
        self._pump(now)
        self._metrics.decision.observe(time.perf_counter() - started)
        return None

    def admit(self, call: Call) -> Refusal | None:
        """Count the beginning of what goes on outside of the queue, or say why it may not begin: limits and
        queue bounds hold as for a call.
        """
        now = self._clock()
        decision = self._enqueue(call, now)
        if isinstance(decision, Refusal):
            return decision
        self.scheduler.cancel(call.call_id, now)
        self._evict(decision.evicted)
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
        self._metrics.serve(settled.tenant, settled.units / UNIT)
        self._metrics.experience.seen(settled.tenant, waiter.call.user)
        self._pump(now)
        return settled

    def put_back(self, waiter: Waiter) -> None:
        """A dispatched call of which nothing was computed waits again in its place, uncharged."""
        call_id = waiter.call.call_id
        del self._running[call_id]
        self.scheduler.requeue(call_id, self._clock())
        self._waiting[call_id] = waiter

    def turned_away(self, waiter: Waiter, pause_s: float) -> None:
        """The engine has no room for a call that it was sent: nothing goes for `pause_s` seconds, and less
        than it holds now for longer.
        """
        self.put_back(waiter)
        self._metrics.engine_refusals += 1
        self.window.refused(self.scheduler.running)
        self._paused_until = max(self._paused_until or 0.0, self._clock() + pause_s)
        self._stopped = True

    def charge(self, call: Call, usage: Usage) -> float:
        """Charge what was computed outside of the queue. Its normalised cost."""
        return self.scheduler.charge(call, usage) / UNIT

    def hold(self) -> None:
        """The engine is unreachable, dead or hung: let calls wait."""
        if self._held_since is None:
            self._held_since = self._clock()
            self._stopped = True

    def release(self) -> None:
        """The engine answers again."""
        if self._held_since is not None:
            self._held_since = None
            self._go_on()

    @property
    def held(self) -> bool:
        """Whether calls wait for an engine that does not answer."""
        return self._held_since is not None

    def observe(self, sample: EngineSample) -> None:
        """The engine has told how it is."""
        self.window.observe(sample, self.scheduler.running)
        self._pump(self._clock())

    def tick(self) -> None:
        """Charge running calls for what they have produced beyond their prediction, and go on after a pause.
        Call it a few times a second.
        """
        now = self._clock()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._go_on()
        for call_id, waiter in self._running.items():
            self.scheduler.progress(call_id, waiter.output_so_far(now))

    def expire(self) -> None:
        """Evict calls that waited too long, and give up those over which the engine fell silent. Call it
        about each second.
        """
        now = self._clock()
        held_since = self._held_since
        gone = held_since is not None and now - held_since >= self.engine_wait_s
        evicted = self.scheduler.expire(now, self.engine_wait_s if gone else math.inf)
        self._evict(evicted, engine_gone=gone)
        for waiter in tuple(self._running.values()):
            waiter.notice_silence(now, self._engine_silence_s, engine_answers=held_since is None)

    def _enqueue(self, call: Call, now: float) -> Queued | Refusal:
        """Ask the scheduler, and count what it refuses or would have."""
        decision = self.scheduler.enqueue(call, now)
        counts = self._metrics.calls(call.tenant, call.application)
        if isinstance(decision, Refused):
            self._metrics.wasted_tokens += decision.wasted_tokens
            counts.ended(Outcome.REFUSED)
            counts.refused(decision.refusal.reason, ThrottlingMode.ENFORCE)
            if decision.refusal.reason is not RefusalReason.TENANT_HELD:  # an admin's word, no bad service
                self._metrics.experience.lost(call.tenant, call.user)
            return decision.refusal
        if decision.would_refuse is not None:
            counts.refused(decision.would_refuse.reason, ThrottlingMode.SHADOW)
        return decision

    def _go_on(self) -> None:
        self._stopped = self._held_since is not None or self._paused_until is not None
        self._pump(self._clock())

    def _evict(self, evicted: tuple[Evicted, ...], *, engine_gone: bool = False) -> None:
        for lost in evicted:
            waiter = self._waiting.pop(lost.call_id)
            counts = self._metrics.calls(waiter.call.tenant, waiter.call.application)
            counts.ended(Outcome.EVICTED)
            self._metrics.experience.lost(waiter.call.tenant, waiter.call.user)
            self._metrics.wasted_tokens += lost.wasted_tokens
            if engine_gone:
                waiter.engine_gone()
            else:
                counts.refused(lost.refusal.reason, ThrottlingMode.ENFORCE)
                waiter.evicted(lost.refusal)

    def _go(self, waiter: Waiter, dispatched: Dispatched) -> None:
        """Whatever fails over one call, neither keeps its slot nor reaches another call's turn."""
        try:
            waiter.go(dispatched)
        except Exception:  # noqa: BLE001 - whatever it is, the others go on
            _LOG.exception("a call could not be sent")
            waiter.could_not_go()

    def _pump(self, now: float) -> None:
        """Dispatch while the engine has room. What happens inside may end a call and pump again: the loop
        that is running sees the room it makes.
        """
        if self._pumping or self._stopped:
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
                if dispatched.wait_s:
                    self._metrics.waited(waiter.call.tenant, dispatched.wait_s)
                self._running[dispatched.call_id] = waiter
                self._go(waiter, dispatched)
        finally:
            self._pumping = False
