"""Many steps at once are the same as one by one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.sim.costs import VTC_A10G, StepCost, alone
from fairserve.sim.steps import EngineLimits, EngineModel, Leap

sequences = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(0, 30)), min_size=1, max_size=16
)
sizes = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 64),
    kv_tokens=st.sampled_from([128, 192, 512]),
    max_model_len=st.just(128),
    block_tokens=st.sampled_from([1, 4, 16]),
)


def add(engine: EngineModel, wanted: list[tuple[int, int, int]]) -> None:
    for number, (prompt, output, cached) in enumerate(wanted):
        engine.add(number, prompt, output, min(cached, prompt - 1))


def state(engine: EngineModel) -> tuple[float, ...]:
    engine.check()
    return (engine.kv_use, engine.running, engine.waiting, engine.generated_tokens, engine.computed_tokens)


@given(sequences, sizes, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_leap_is_its_steps(wanted, limits, seed):
    rng = random.Random(seed)
    leaping, stepping = EngineModel(limits, StepCost()), EngineModel(limits, StepCost())
    add(leaping, wanted)
    add(stepping, wanted)

    while not stepping.idle:
        horizon = leaping.horizon()
        if horizon is None:
            one, other = leaping.change(), stepping.step()
            assert (one.began, one.preempted, one.admitted) == (other.began, other.preempted, other.admitted)
            assert one.duration_s == pytest.approx(other.duration_s)
            assert one.finished == other.finished
        else:
            steps = rng.randint(1, horizon.steps)
            finished = leaping.leap(steps)
            single = [stepping.step() for _ in range(steps)]
            assert not any(step.preempted or step.admitted or step.began for step in single)
            assert sorted(finished) == sorted(n for step in single for n in step.finished)
            assert not any(step.finished for step in single[:-1]), "a leap ends when something does"
            assert horizon.duration_s(steps) == pytest.approx(sum(step.duration_s for step in single))
        assert state(leaping) == state(stepping)
    assert leaping.idle


@given(st.integers(1, 500), st.floats(0.001, 1.0), st.sampled_from([0.0, 1e-6, 0.01]), st.floats(0.0, 100.0))
def test_what_has_begun_is_carried_through(steps, first_s, growth_s, elapsed_s):
    leap = Leap(steps, first_s, growth_s)
    taken = leap.steps_until(elapsed_s)
    assert 1 <= taken <= steps
    assert taken == steps or leap.duration_s(taken) >= elapsed_s
    assert taken == 1 or leap.duration_s(taken - 1) < elapsed_s


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 100))
@settings(deadline=None)
def test_alone_is_what_the_engine_takes_for_one_call(prompt, output, cached):
    limits, cost = EngineLimits(max_num_seqs=4, max_num_batched_tokens=64), StepCost(step_ms=3.0)
    cached = min(cached, prompt - 1)
    engine = EngineModel(limits, cost)
    engine.add(1, prompt, output, cached)
    spent, first_s = 0.0, None
    while not engine.idle:
        step = engine.step()
        spent += step.duration_s
        if step.began:
            first_s = spent
    expected = alone(cost, limits.max_num_batched_tokens, prompt, output, cached)
    assert first_s == pytest.approx(expected.first_token_s)
    assert spent == pytest.approx(expected.total_s)


def test_the_published_fit_prices_a_whole_call():
    p, q = 200, 50
    h_ms = 0.21 * p + 0.10 * q + 0.004 * p * q + 0.0032 * q**2 + 1.15
    assert alone(VTC_A10G, 2048, p, q).total_s == pytest.approx(h_ms / 1000)


def test_cached_tokens_are_not_computed_but_held():
    engine = EngineModel(EngineLimits(), StepCost())
    engine.add(1, 100, 3, cached_tokens=64)
    assert engine.step().computed_tokens == 36
    assert engine.kv_use == pytest.approx(7 * 16 / 65_536)


def test_waiting_sequences_are_admitted_first_come_first_served():
    engine = EngineModel(
        EngineLimits(max_num_seqs=2, max_num_batched_tokens=16, max_model_len=64), StepCost()
    )
    for number in range(20):
        engine.add(number, 5 + number % 7, 1 + number % 3)
    admitted: list[int] = []
    while not engine.idle:
        admitted += engine.step().admitted
    assert admitted == list(range(20))
