"""One pod of the simulation: the scheduler and dispatch window of a sidecar before an engine model.

What the sidecar does between its sockets and the engine is done here between the world's events: calls are
queued, dispatched while the window admits, charged while they run and settled when they end. An engine step
that has begun is carried through; whoever arrives meanwhile is taken in by the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from fairserve.core import (
    UNIT,
    Call,
    DispatchWindow,
    EngineSample,
    Outcome,
    Queued,
    Refusal,
    Refused,
    Usage,
)
from fairserve.core.catalogue import SchedulerLike
from fairserve.sim.recording import CallRecord, Fate
from fairserve.sim.scenario import Engines, Slowdown
from fairserve.sim.steps import EngineModel, Leap

#: Makes a pod's scheduler; again when the pod is restarted.
Build = Callable[[], SchedulerLike]


class Surroundings(Protocol):
    """What a pod needs of the world around it."""

    now: float

    def at(self, when_s: float, act: Callable[[int], None], what: int) -> None:
        """Call `act(what)` at a time."""

    def began(self, record: CallRecord) -> None:
        """A call has its first token."""

    def ended(self, record: CallRecord) -> None:
        """A call has ended in the engine."""

    def turned_away(self, record: CallRecord, refusal: Refusal | None, fate: Fate) -> None:
        """A call was refused, evicted or lost with its pod."""


class Pod:
    """Scheduler, window and engine."""

    def __init__(
        self,
        index: int,
        engines: Engines,
        build: Build,
        world: Surroundings,
        slowdowns: tuple[Slowdown, ...] = (),
        sensor_lag_s: float = 0.0,
    ) -> None:
        self.index = index
        self._engines = engines
        self._build = build
        self._world = world
        self._slowdowns = tuple(s for s in slowdowns if s.pod is None or s.pod == index)
        self._lag_s = sensor_lag_s
        self._arrivals = 0
        self.order: list[CallRecord] = []  #: calls in order of dispatch
        self.preemptions = 0  #: of engines that died
        self.computed_tokens = 0  #: by engines that died
        self._start(build())

    def _start(self, scheduler: SchedulerLike) -> None:
        self.scheduler = scheduler
        self.engine = EngineModel(self._engines.limits, self._engines.cost)
        window = self._engines.max_window
        self.window = DispatchWindow(maximum=window, initial=min(8, window))
        self.waiting: dict[int, CallRecord] = {}
        self.running: dict[int, CallRecord] = {}
        self._samples: deque[tuple[float, EngineSample]] = deque()
        self._busy = False
        self._leap: Leap | None = None
        self._leap_began_s = 0.0
        self._began: tuple[int, ...] = ()
        self._finished: tuple[int, ...] = ()
        #: Told to each event of a step's end; a step that was cut short has a newer one.
        self._epoch = getattr(self, "_epoch", 0) + 1

    # -- calls ----------------------------------------------------------------------------------------

    def submit(self, record: CallRecord, call: Call) -> None:
        """Let a call wait, or turn it away."""
        now = self._world.now
        decision = self.scheduler.enqueue(call, now)
        if isinstance(decision, Refused):
            self._world.turned_away(record, decision.refusal, Fate.REFUSED)
            return
        self._arrivals += 1
        record.pod, record.arrival, record.queued_s = self.index, self._arrivals, now
        self.waiting[call.call_id] = record
        self._evict(decision)
        self.pump()

    def drop(self, record: CallRecord) -> bool:
        """The client hangs up. False if it is too late."""
        now = self._world.now
        if self.waiting.pop(record.call_id, None) is not None:
            self.scheduler.cancel(record.call_id, now)
            return True
        if record.call_id not in self.running or record.call_id in self._finished:
            return False
        self.settle_steps()
        if record.call_id in self._finished:
            return False
        started = self.engine.started(record.call_id)
        usage = Usage(
            record.plan.input_tokens if started else 0,
            self.engine.output_tokens(record.call_id),
            record.cached_tokens if started else 0,
        )
        self.engine.abort(record.call_id)
        self._began = tuple(call_id for call_id in self._began if call_id != record.call_id)
        self._end(record, usage, Outcome.CANCELLED)
        self.pump()
        return True

    def pump(self) -> None:
        """Dispatch while the window admits."""
        scheduler, window, now = self.scheduler, self.window, self._world.now
        sent = False
        while scheduler.queued and window.admits(scheduler.running, scheduler.inflight_tokens):
            decision = scheduler.dispatch(now)
            if decision is None:
                break
            record = self.waiting.pop(decision.call_id)
            self.running[decision.call_id] = record
            record.dispatched_s = now
            record.behind = scheduler.queued
            record.predicted_tokens = decision.predicted_output_tokens
            self.order.append(record)
            self.engine.add(
                record.call_id, record.plan.input_tokens, record.target_tokens, record.cached_tokens
            )
            sent = True
        if sent or not self._busy:
            self._run()

    def expire(self) -> None:
        """Evict calls that waited too long."""
        for lost in self.scheduler.expire(self._world.now):
            self._world.turned_away(self.waiting.pop(lost.call_id), lost.refusal, Fate.EVICTED)

    def sample(self) -> None:
        """Read the engine's metrics, as the sidecar does now and then, and charge what runs."""
        self.settle_steps()
        now = self._world.now
        for call_id, record in self.running.items():
            if call_id not in self._finished:
                produced = self.engine.output_tokens(call_id)
                if produced > record.predicted_tokens:
                    self.scheduler.progress(call_id, produced)
        self._samples.append((now, self.reading()))
        seen = None
        while self._samples and self._samples[0][0] <= now - self._lag_s:
            seen = self._samples.popleft()[1]
        if seen is not None:
            self.window.observe(seen, self.scheduler.running)
            self.pump()

    def reading(self) -> EngineSample:
        """The engine's metrics as they are."""
        limits = self.engine.limits
        return EngineSample(
            running=self.engine.running,
            waiting=self.engine.waiting,
            kv_use=self.engine.kv_use,
            preemptions=float(self.engine.preemptions),
            kv_tokens=limits.blocks * limits.block_tokens,
        )

    def restart(self, snapshot: dict[str, object]) -> None:
        """Die and start again from a snapshot. Every call is lost to its client."""
        lost = [*self.running.values(), *self.waiting.values()]
        self.preemptions += self.engine.preemptions
        self.computed_tokens += self.engine.computed_tokens
        armed = self.scheduler.armed
        self._start(self._build())
        self.scheduler.restore(snapshot, self._world.now)
        self.scheduler.set_armed(armed)
        for record in lost:
            self._world.turned_away(record, None, Fate.FAILED)

    # -- steps ----------------------------------------------------------------------------------------

    def settle_steps(self) -> None:
        """Cut a leap short after the step that is being computed, so that the engine's state is known."""
        leap = self._leap
        if leap is not None:
            steps = leap.steps_until(self._world.now - self._leap_began_s)
            self._finish_leap(steps)
            self._schedule(self._leap_began_s + leap.duration_s(steps))

    def _run(self) -> None:
        """Take in what is new with the next step."""
        if self._busy:
            self.settle_steps()
            return
        engine, now = self.engine, self._world.now
        if engine.idle:
            return
        self._busy = True
        factor = self._factor(now)
        leap = engine.horizon()
        if leap is None:
            step = engine.change()
            self._began, self._finished = step.began, step.finished
            self._schedule(now + step.duration_s * factor)
        else:
            self._leap = Leap(leap.steps, leap.first_s * factor, leap.growth_s * factor)
            self._leap_began_s = now
            self._schedule(now + self._leap.duration_s(leap.steps))

    def _finish_leap(self, steps: int) -> None:
        self._leap = None
        self._began, self._finished = (), self.engine.leap(steps)

    def _schedule(self, when_s: float) -> None:
        self._epoch += 1
        self._world.at(when_s, self._step_ends, self._epoch)

    def _step_ends(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        if self._leap is not None:
            self._finish_leap(self._leap.steps)
        now, running = self._world.now, self.running
        began, finished = self._began, self._finished
        self._busy, self._began, self._finished = False, (), ()
        for call_id in began:
            record = running[call_id]
            record.first_token_s = now
            self._world.began(record)
        for call_id in finished:
            record = running[call_id]
            plan = record.plan
            cut = record.target_tokens < plan.output_tokens
            usage = Usage(plan.input_tokens, record.target_tokens, record.cached_tokens)
            self._end(record, usage, Outcome.CANCELLED if cut else Outcome.COMPLETED)
        self.pump()

    def _end(self, record: CallRecord, usage: Usage, outcome: Outcome) -> None:
        now = self._world.now
        del self.running[record.call_id]
        settled = self.scheduler.finish(record.call_id, usage, outcome, now)
        record.ended_s, record.charged = now, settled.service
        record.input_tokens, record.output_tokens = usage.input_tokens, usage.output_tokens
        record.fate = Fate.SERVED if outcome is Outcome.COMPLETED else Fate.CANCELLED
        self._world.ended(record)

    def close(self) -> None:
        """The run is over: note what calls that run have been given and charged so far."""
        self.settle_steps()
        for call_id, ticket in self.scheduler.running_calls().items():
            record = self.running[call_id]
            record.charged, record.counted_s = ticket.units / UNIT, self._world.now
            if call_id in self._finished:
                record.input_tokens, record.output_tokens = record.plan.input_tokens, record.target_tokens
            elif self.engine.started(call_id):
                record.input_tokens = record.plan.input_tokens
                record.output_tokens = self.engine.output_tokens(call_id)

    def _evict(self, decision: Queued) -> None:
        for lost in decision.evicted:
            self._world.turned_away(self.waiting.pop(lost.call_id), lost.refusal, Fate.EVICTED)

    def _factor(self, now: float) -> float:
        factor = 1.0
        for slow in self._slowdowns:
            if slow.span.holds(now):
                factor *= slow.factor
        return factor
