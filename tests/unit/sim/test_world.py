"""The simulation: nothing is lost, nothing is chance that the seed does not determine."""

from __future__ import annotations

import math

import pytest

from fairserve.core.catalogue import SCHEDULERS
from fairserve.overload.settings import OverloadSettings, SignalSettings
from fairserve.sim.costs import StepCost
from fairserve.sim.metrics import measure
from fairserve.sim.recording import Fate, Recording
from fairserve.sim.scenario import (
    Balancing,
    Engines,
    Faults,
    Overload,
    Restart,
    Scenario,
    Signal,
    Slowdown,
    Span,
)
from fairserve.sim.workload import Behaviour, InteractionIds, Retry
from fairserve.sim.world import World, simulate
from tests.unit.sim.worlds import SMALL, closed, scenario, users

EAGER = Overload(
    OverloadSettings(
        signals=(SignalSettings(Signal.QUEUE_WAIT.value, threshold=0.5, clear_threshold=0.2),),
        hold_down_s=2.0,
    ),
    interval_s=0.5,
)


def run(world: Scenario, policy: str = "FairServe", seed: int = 1) -> Recording:
    return simulate(world, policy, SCHEDULERS[policy], seed)


def trail(recording: Recording) -> list[tuple[float, ...]]:
    return [(c.call_id, c.first_sent_s, c.dispatched_s, c.first_token_s, c.ended_s) for c in recording.calls]


@pytest.mark.parametrize("policy", SCHEDULERS)
def test_every_call_is_served_with_exactly_its_tokens(policy):
    recording = run(scenario(users("a", 5, 0.8), closed("b", 3)), policy)
    assert len(recording.calls) > 50
    assert {call.fate for call in recording.calls} == {Fate.SERVED}
    for call in recording.calls:
        assert call.input_tokens == call.plan.input_tokens
        assert call.output_tokens == call.plan.output_tokens
        assert call.first_sent_s <= call.queued_s <= call.dispatched_s < call.first_token_s <= call.ended_s
    assert all(interaction.complete for interaction in recording.interactions)
    computed = sum(c.input_tokens + c.output_tokens - 1 for c in recording.calls)
    assert recording.computed_tokens >= computed
    assert recording.computed_tokens == computed or recording.preemptions > 0


def test_scheduler_engine_and_window_agree_at_all_times():
    world = World(
        scenario(users("a", 6, 1.5), closed("b", 3)), "FairServe", SCHEDULERS["FairServe"], 1,
        scenario(users("a", 6, 1.5), closed("b", 3)).draw(1),
    )  # fmt: skip
    pod, checked = world.pods[0], []
    sample = pod.sample

    def watch() -> None:
        sample()
        pod.scheduler.check()
        pod.engine.check()
        assert pod.scheduler.queued == len(pod.waiting)
        assert pod.scheduler.running == len(pod.running)
        checked.append(pod.scheduler.queued)

    pod.sample = watch  # type: ignore[method-assign]
    world.run()
    assert max(checked) > 0, "something waited"
    assert (pod.scheduler.queued, pod.scheduler.running, pod.engine.idle) == (0, 0, True)


def test_a_seed_determines_everything():
    world = scenario(users("a", 5, 1.5), closed("b", 3), overload=EAGER, limit=4)
    first, again, other = run(world), run(world), run(world, seed=2)
    assert trail(first) == trail(again)
    assert measure(world, first) == pytest.approx(measure(world, again), nan_ok=True) or str(
        measure(world, first)
    ) == str(measure(world, again))
    assert trail(first) != trail(other)


def test_every_scheduler_meets_the_same_clients():
    world = scenario(users("a", 5, 1.5))
    plans = [
        [(i.plan.start_s, i.plan.calls) for i in run(world, policy).interactions]
        for policy in ("FCFS", "VTC")
    ]
    assert plans[0] == plans[1]


def test_fcfs_dispatches_in_order_of_arrival_and_fairserve_does_not():
    world = scenario(users("a", 1, 12.0), users("b", 4, 1.0))
    fcfs, fair = (run(world, policy).dispatched[0] for policy in ("FCFS", "FairServe"))
    assert [call.arrival for call in fcfs] == sorted(call.arrival for call in fcfs)
    assert [call.arrival for call in fair] != sorted(call.arrival for call in fair)


def test_nobody_is_refused_without_overload():
    recording = run(scenario(users("a", 1, 3.0), limit=1))
    assert recording.refused_attempts == 0


def test_overload_refuses_only_those_over_their_limit_and_cuts_no_interaction():
    heavy = users("heavy", 1, 20.0, behaviour=Behaviour(retry=Retry.GIVE_UP), good=False)
    recording = run(scenario(heavy, users("light", 4, 0.2), overload=EAGER, limit=10))
    assert any(change.armed for change in recording.transitions)
    refused = [i for i in recording.interactions if i.lost]
    assert refused
    assert {i.client.group for i in refused} == {"heavy"}
    assert all(i.served == 0 for i in refused), "an admitted interaction is never cut"


def test_the_limit_on_calls_cuts_interactions_where_interactions_are_not_known():
    heavy = users("heavy", 1, 20.0, behaviour=Behaviour(retry=Retry.GIVE_UP), good=False)
    recording = run(scenario(heavy, overload=EAGER, limit=10), "RPM")
    assert any(i.lost and i.served for i in recording.interactions)
    assert measure(scenario(heavy, limit=10), recording).figures["token_waste"] > 0.0


def test_a_retry_after_retry_after_is_served():
    world = scenario(users("heavy", 1, 20.0), overload=EAGER, limit=20)
    recording = run(world)
    retried = [call for call in recording.calls if call.refusals]
    assert retried
    assert all(call.fate is Fate.SERVED for call in retried if call.refusals <= 3)


def test_a_canceller_is_charged_for_what_was_computed():
    impatient = users("a", 3, 1.0, behaviour=Behaviour(cancel_share=1.0, cancel_at=0.5))
    recording = run(scenario(impatient))
    cancelled = [c for c in recording.calls if c.fate is Fate.CANCELLED]
    assert cancelled
    for call in cancelled:
        assert call.output_tokens == max(1, math.ceil(call.plan.output_tokens / 2))
        assert call.charged > 0.0
    assert measure(scenario(impatient), recording).figures["token_waste"] == 0.0, "its client's own choice"


def test_a_call_that_runs_at_the_end_counts_with_what_it_has():
    recording = run(scenario(closed("a", 6), horizon_s=10.0))
    running = [c for c in recording.calls if c.fate is Fate.OPEN and not math.isnan(c.first_token_s)]
    assert running
    for call in running:
        assert call.input_tokens == call.plan.input_tokens
        assert 0 < call.output_tokens <= call.plan.output_tokens
    assert any(call.output_tokens < call.plan.output_tokens for call in running)


def test_patience_ends_waiting_calls_and_running_ones():
    hurried = users("a", 4, 6.0, behaviour=Behaviour(patience_s=0.3))
    world = scenario(hurried)
    recording = run(world)
    fates = {call.fate for call in recording.calls}
    assert fates == {Fate.SERVED, Fate.CANCELLED}
    for call in recording.calls:
        if call.fate is Fate.CANCELLED:
            assert call.ended_s == pytest.approx(call.first_sent_s + 0.3)
            assert math.isnan(call.first_token_s)


def test_a_forger_continues_nothing():
    forger = users(
        "a", 1, 20.0, calls=users("x", 1, 1.0).calls,
        behaviour=Behaviour(retry=Retry.GIVE_UP, interaction_ids=InteractionIds.FORGED),
    )  # fmt: skip
    honest = users("a", 1, 20.0, behaviour=Behaviour(retry=Retry.GIVE_UP))
    served = [
        sum(call.fate is Fate.SERVED for call in run(scenario(u, overload=EAGER, limit=5)).calls)
        for u in (forger, honest)
    ]
    assert served[0] <= served[1]


@pytest.mark.parametrize("balancing", list(Balancing))
def test_several_pods_serve_everything(balancing):
    engines = Engines(count=3, limits=SMALL, cost=StepCost(step_ms=5.0), balancing=balancing, max_window=8)
    recording = run(scenario(users("a", 6, 2.0), engines=engines))
    assert {call.fate for call in recording.calls} == {Fate.SERVED}
    assert {call.pod for call in recording.calls} == {0, 1, 2}
    if balancing is Balancing.STICKY:
        pods = {}
        for call in recording.calls:
            assert pods.setdefault(call.interaction.client.user, call.pod) == call.pod


def test_a_prefix_cache_saves_time():
    cost = StepCost(step_ms=0.1, scale=1.0)
    plain, cached = (
        run(scenario(users("a", 3, 0.5), engines=Engines(limits=SMALL, cost=cost, prefix_cache_share=share)))
        for share in (0.0, 1.0)
    )
    assert {c.cached_tokens for c in cached.calls} == {32}
    assert cached.computed_tokens < plain.computed_tokens


def test_a_slow_engine_takes_longer_while_it_is_slow():
    def spent(factor: float) -> tuple[float, float]:
        faults = Faults(slowdowns=(Slowdown(Span(5.0, 10.0), factor),))
        calls = run(scenario(users("a", 3, 1.5), faults=faults)).calls
        before = sum(call.ended_s - call.first_sent_s for call in calls if call.ended_s < 5.0)
        return before, sum(
            call.ended_s - call.first_sent_s for call in calls if 5.0 <= call.first_sent_s < 10.0
        )

    (before, plain), (same, slow) = spent(1.0), spent(3.0)
    assert before == pytest.approx(same)
    assert slow > 2.5 * plain


def test_a_lagging_sensor_arms_later():
    def armed_s(lag_s: float) -> float:
        faults = Faults(sensor_lag_s=lag_s)
        recording = run(scenario(users("a", 1, 20.0), overload=EAGER, faults=faults, limit=1000))
        return next(change.at_s for change in recording.transitions if change.armed)

    assert armed_s(4.0) == pytest.approx(armed_s(0.0) + 4.0, abs=0.6)


def test_a_blind_operator_does_not_arm():
    faults = Faults(blind=(Span(0.0, 1000.0),))
    recording = run(scenario(users("a", 1, 20.0), overload=EAGER, faults=faults, limit=1))
    assert recording.transitions == []


def test_calls_of_a_pod_that_dies_are_sent_again():
    faults = Faults(restarts=(Restart(at_s=8.0, pod=0, snapshot_age_s=1.0),))
    recording = run(scenario(users("a", 4, 2.0), faults=faults))
    assert {call.fate for call in recording.calls} == {Fate.SERVED}
    assert any(call.refusals for call in recording.calls), "some were lost with the pod"


class Dated:
    """A scheduler whose snapshots say when they were taken."""

    def __init__(self, scheduler, restored):
        self._scheduler, self._restored = scheduler, restored

    def __getattr__(self, name):
        return getattr(self._scheduler, name)

    def snapshot(self, now):
        return {"taken_s": now, "scheduler": self._scheduler.snapshot(now)}

    def restore(self, data, now):
        self._restored.append((data["taken_s"], now))
        self._scheduler.restore(data["scheduler"], now)


def test_restarts_of_one_pod_go_on_each_from_its_own_snapshot():
    restarts = (Restart(10.0, 0, 3.0), Restart(11.0, 0, 3.0), Restart(11.0, 0, 3.0), Restart(12.0, 0, 0.5))
    restored: list[tuple[float, float]] = []
    world = scenario(users("a", 4, 2.0), faults=Faults(restarts=restarts))
    recording = simulate(world, "FairServe", lambda given: Dated(SCHEDULERS["FairServe"](given), restored), 1)
    assert restored == [(7.0, 10.0), (8.0, 11.0), (8.0, 11.0), (11.5, 12.0)]
    assert {call.fate for call in recording.calls} == {Fate.SERVED}


def test_the_horizon_ends_a_run_that_would_not_end():
    recording = run(scenario(users("a", 2, 20.0), horizon_s=10.0))
    assert recording.ended_s <= 10.0
    assert any(call.fate is Fate.OPEN for call in recording.calls)


def test_generators_of_clients_do_not_share_chance():
    alone = scenario(users("a", 2, 1.0)).draw(3)
    beside = scenario(users("a", 2, 1.0), users("z", 5, 1.0)).draw(3)
    mine = [plan.calls for plan in beside.plans if plan.client.group == "a"]
    assert [plan.calls for plan in alone.plans] == mine
