"""The event loop of the simulation: clients, load balancer, overload and faults around the pods.

Time is the time of the event that is being handled. Events at the same time are handled in the order in
which they were made, and every random choice comes from a generator that is seeded for its purpose, so a
scenario, a scheduler and a seed determine the run to the last bit.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fairserve.core import Call, Refusal, Settings
from fairserve.core.catalogue import SchedulerLike
from fairserve.overload.machine import OverloadMachine
from fairserve.overload.saturation import saturation
from fairserve.overload.settings import Sample
from fairserve.sim.pod import Pod
from fairserve.sim.recording import CallRecord, Fate, InteractionRecord, Recording, Transition
from fairserve.sim.scenario import Balancing, Scenario, Signal
from fairserve.sim.workload import CallPlan, Client, InteractionIds, InteractionPlan, Retry, Workload

#: Makes a scheduler from settings.
SchedulerFactory = Callable[[Settings], SchedulerLike]

#: Between two looks for calls that waited too long, and two reports of progress.
_EXPIRY_S = 1.0
#: A client that honours Retry-After comes back within this long after it.
_RETURN_S = 0.5


def simulate(
    scenario: Scenario,
    policy: str,
    factory: SchedulerFactory,
    seed: int,
    on_progress: Callable[[float], None] | None = None,
) -> Recording:
    """Run a scenario. `on_progress` hears the share of the planned interactions that have ended, 0 to 1."""
    return World(scenario, policy, factory, seed, scenario.draw(seed)).run(on_progress)


class World:
    """One run."""

    def __init__(
        self, scenario: Scenario, policy: str, factory: SchedulerFactory, seed: int, workload: Workload
    ) -> None:
        self.now = 0.0
        self.recording = Recording(scenario.name, policy, seed)
        self._scenario = scenario
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = 0
        self._plans = workload.plans
        self._next_plan = 0
        #: Interactions that have not ended, and those of closed loops that are yet to begin.
        self._live = 0
        self._clients = scenario.generator(seed, "clients")
        self._balancer = scenario.generator(seed, "balancer")
        self._turn = 0
        faults = scenario.faults
        self.pods = [
            Pod(
                index,
                scenario.engines,
                lambda: factory(scenario.settings),
                self,
                faults.slowdowns,
                faults.sensor_lag_s,
            )
            for index in range(scenario.engines.count)
        ]
        overload = scenario.overload
        self._machine = OverloadMachine(overload.settings) if overload is not None else None
        self._readings: deque[tuple[float, dict[str, float]]] = deque()
        #: By the number of the restart that goes on from it: two of one pod may be taken before either.
        self._snapshots: dict[int, dict[str, Any]] = {}
        self._on_progress: Callable[[float], None] | None = None

    def at(self, when_s: float, act: Callable[[Any], None], what: Any) -> None:
        """Call `act(what)` at a time."""
        self._numbers += 1
        heapq.heappush(self._events, (when_s, self._numbers, act, what))

    def run(self, on_progress: Callable[[float], None] | None = None) -> Recording:
        """Run until everything has ended, or the horizon."""
        self._on_progress = on_progress
        self._schedule_faults()
        self._plan_next()
        self._every(self._scenario.engines.sampling_s, self._sample)
        self._every(_EXPIRY_S, self._expire)
        if self._scenario.overload is not None:
            self._every(self._scenario.overload.interval_s, self._evaluate)
        events, horizon_s = self._events, self._scenario.horizon_s
        while events:
            when_s, _, act, what = heapq.heappop(events)
            if when_s > horizon_s:
                break
            self.now = when_s
            act(what)
        recording = self.recording
        # What ends last is a tick, unless the horizon came first.
        ends = [i.ended_s for i in recording.interactions]
        recording.ended_s = self.now if self._live > 0 else max(ends, default=0.0)
        for pod in self.pods:
            pod.close()
        recording.dispatched = [pod.order for pod in self.pods]
        recording.preemptions = sum(pod.preemptions + pod.engine.preemptions for pod in self.pods)
        recording.computed_tokens = sum(pod.computed_tokens + pod.engine.computed_tokens for pod in self.pods)
        return recording

    # -- clients --------------------------------------------------------------------------------------

    def _plan_next(self) -> None:
        if self._next_plan < len(self._plans):
            plan = self._plans[self._next_plan]
            self._next_plan += 1
            self.at(plan.start_s, self._begin_planned, plan)

    def _begin_planned(self, plan: InteractionPlan) -> None:
        self._live += 1
        self._plan_next()
        self._begin(plan)

    def _begin(self, plan: InteractionPlan) -> None:
        client = plan.client
        client_ids = client.behaviour.interaction_ids
        client.interactions += 1
        identity: str | None = f"{client.user}/{client.interactions}"
        if client_ids is InteractionIds.NONE:
            identity = None
        elif client_ids is InteractionIds.ENDLESS:
            identity = f"{client.user}/all"
        interaction = InteractionRecord(client, plan, identity, begun_s=self.now)
        self.recording.interactions.append(interaction)
        self._send_next(interaction)

    def _send_next(self, interaction: InteractionRecord) -> None:
        """Make the interaction's next call."""
        plan = self._fitting(interaction.plan.calls[interaction.served])
        record = CallRecord(len(self.recording.calls) + 1, plan, interaction, self.now, self.now)
        self.recording.calls.append(record)
        engines = self._scenario.engines
        cached = int(plan.system_tokens * engines.prefix_cache_share)
        cached -= cached % engines.limits.block_tokens
        record.cached_tokens = min(cached, plan.input_tokens - 1)
        record.target_tokens = plan.output_tokens
        behaviour = interaction.client.behaviour
        if behaviour.cancel_share > 0.0 and interaction.client.rng.random() < behaviour.cancel_share:
            record.target_tokens = max(1, math.ceil(plan.output_tokens * behaviour.cancel_at))
        self._send(record)
        if behaviour.patience_s is not None and record.fate is Fate.OPEN:
            self.at(self.now + behaviour.patience_s, self._lose_patience, record)

    def _fitting(self, plan: CallPlan) -> CallPlan:
        """The call as the engine can take it: clients cut prompts, outputs end at the model's length."""
        most = self._scenario.engines.limits.max_model_len
        if plan.input_tokens + plan.output_tokens <= most:
            return plan
        input_tokens = min(plan.input_tokens, most - 1)
        output_tokens = min(plan.output_tokens, most - input_tokens)
        return replace(plan, input_tokens=input_tokens, output_tokens=output_tokens)

    def _send(self, record: CallRecord) -> None:
        """Send a call, for the first time or again."""
        if record.fate is not Fate.OPEN:
            return
        record.sent_s = self.now
        client, plan = record.interaction.client, record.plan
        identity = record.interaction.identity
        if client.behaviour.interaction_ids is InteractionIds.FORGED:
            identity = f"forged-{record.call_id}-{record.refusals}"
        call = Call(
            call_id=record.call_id,
            tenant=client.tenant,
            user=client.user,
            application=client.behaviour.labelled_as or plan.application,
            input_tokens=plan.input_tokens,
            system_tokens=plan.system_tokens,
            interaction=identity,
        )
        self._choose(client).submit(record, call)

    def _lose_patience(self, record: CallRecord) -> None:
        if record.fate is not Fate.OPEN or record.first_token_s == record.first_token_s:
            return
        if record.pod >= 0 and not self.pods[record.pod].drop(record):
            waits_at_home = record.call_id not in self.pods[record.pod].running
            if not waits_at_home:
                return
        if record.fate is Fate.OPEN:
            record.fate, record.ended_s = Fate.CANCELLED, self.now
            self._drop_interaction(record.interaction)

    def began(self, record: CallRecord) -> None:
        """A call has its first token."""

    def ended(self, record: CallRecord) -> None:
        """A call has ended in the engine: make the interaction's next one after a gap, or end it."""
        interaction = record.interaction
        interaction.tokens += record.input_tokens + record.output_tokens
        if record.fate is not Fate.SERVED:
            self._drop_interaction(interaction)
            return
        interaction.served += 1
        if interaction.complete:
            self._end_interaction(interaction)
        else:
            gap_s = interaction.plan.gaps_s[interaction.served - 1]
            self.at(self.now + gap_s, self._send_next, interaction)

    def turned_away(self, record: CallRecord, refusal: Refusal | None, fate: Fate) -> None:
        """A call was refused, evicted or lost with its pod: its client comes back, or gives up."""
        self.recording.refused_attempts += 1
        interaction = record.interaction
        behaviour = interaction.client.behaviour
        record.refusals += 1
        interaction.refusals += 1
        # A pod that died has given some of it away already: none of that reaches the client.
        record.dispatched_s = record.first_token_s = math.nan
        if behaviour.retry is Retry.GIVE_UP or record.refusals > behaviour.max_retries:
            record.fate, record.ended_s = fate, self.now
            interaction.lost = True
            self._end_interaction(interaction)
            return
        delay_s = behaviour.retry_delay_s
        if behaviour.retry is Retry.HONOUR and refusal is not None and refusal.retry_after_s is not None:
            delay_s = refusal.retry_after_s + self._clients.uniform(0.0, _RETURN_S)
        self.at(self.now + delay_s, self._send, record)

    def _drop_interaction(self, interaction: InteractionRecord) -> None:
        interaction.dropped = True
        self._end_interaction(interaction)

    def _end_interaction(self, interaction: InteractionRecord) -> None:
        interaction.ended_s = self.now
        self._live -= 1
        client = interaction.client
        if client.loop is not None:
            plan = client.loop.next(client, self.now)
            if plan is not None:
                self._live += 1
                self.at(plan.start_s, self._begin, plan)

    def _choose(self, client: Client) -> Pod:
        pods = self.pods
        if len(pods) == 1:
            return pods[0]
        match self._scenario.engines.balancing:
            case Balancing.ROUND_ROBIN:
                self._turn = (self._turn + 1) % len(pods)
                return pods[self._turn]
            case Balancing.RANDOM:
                return self._balancer.choice(pods)
            case Balancing.LEAST_CALLS:
                return min(pods, key=lambda pod: pod.scheduler.queued + pod.scheduler.running)
            case Balancing.STICKY:
                return pods[random.Random(f"{client.tenant}/{client.user}").randrange(len(pods))]

    # -- ticks ----------------------------------------------------------------------------------------

    def _every(self, interval_s: float, act: Callable[[], None]) -> None:
        def tick(count: int) -> None:
            act()
            if self._live > 0 or self._next_plan < len(self._plans):
                self.at((count + 1) * interval_s, tick, count + 1)

        self.at(interval_s, tick, 1)

    def _sample(self) -> None:
        for pod in self.pods:
            pod.sample()

    def _expire(self) -> None:
        for pod in self.pods:
            pod.expire()
        if self._on_progress is not None and self._plans:
            ended = len(self.recording.interactions) - self._live
            self._on_progress(min(1.0, max(0, ended) / len(self._plans)))

    def _evaluate(self) -> None:
        """What the operator does each interval: read the signals, move the state, tell the pods."""
        assert self._machine is not None, "ticks only where there is a machine"
        self._readings.append((self.now, self._signals()))
        lag_s, seen = self._scenario.faults.sensor_lag_s, None
        while self._readings and self._readings[0][0] <= self.now - lag_s:
            seen = self._readings.popleft()[1]
        samples = []
        if seen is not None and not any(span.holds(self.now) for span in self._scenario.faults.blind):
            samples = [Sample(name, value) for name, value in seen.items()]
        verdict = self._machine.observe(samples, self.now)
        if verdict.changed:
            self.recording.transitions.append(Transition(self.now, verdict.armed, verdict.message))
        for pod in self.pods:
            pod.scheduler.set_armed(verdict.armed)

    def _signals(self) -> dict[str, float]:
        pods, now = self.pods, self.now
        waits = [pod.scheduler.oldest_wait(now) for pod in pods]
        kv_uses = [pod.engine.kv_use for pod in pods]
        waiting = [float(pod.engine.waiting) for pod in pods]
        fullness = [
            saturation(kv, wait, queue) for kv, wait, queue in zip(kv_uses, waits, waiting, strict=True)
        ]
        return {
            Signal.QUEUE_WAIT.value: max(waits),
            Signal.SATURATION.value: sum(fullness) / len(pods),
            Signal.KV_CACHE_USE.value: sum(kv_uses) / len(pods),
            Signal.ENGINE_WAITING.value: sum(waiting),
        }

    # -- faults ---------------------------------------------------------------------------------------

    def _schedule_faults(self) -> None:
        faults = self._scenario.faults
        for slow in faults.slowdowns:
            for when_s in (slow.span.start_s, slow.span.stop_s):
                self.at(when_s, self._change_pace, None)
        for number, restart in enumerate(faults.restarts):
            taken_s = max(0.0, restart.at_s - restart.snapshot_age_s)
            self.at(taken_s, self._take_snapshot, (number, restart.pod))
            self.at(restart.at_s, self._restart, (number, restart.pod))

    def _take_snapshot(self, restart: tuple[int, int]) -> None:
        number, pod = restart
        self._snapshots[number] = self.pods[pod].scheduler.snapshot(self.now)

    def _restart(self, restart: tuple[int, int]) -> None:
        number, pod = restart
        self.pods[pod].restart(self._snapshots.pop(number))

    def _change_pace(self, _: None) -> None:
        for pod in self.pods:
            pod.settle_steps()
