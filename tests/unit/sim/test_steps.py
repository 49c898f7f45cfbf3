"""The step model: what continuous batching promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.sim.steps import EngineLimits, EngineModel, StepCost

SMALL = EngineLimits(max_num_seqs=4, max_num_batched_tokens=32, kv_tokens=256, max_model_len=128)


def model(limits: EngineLimits = SMALL) -> EngineModel:
    return EngineModel(limits, StepCost())


def drain(engine: EngineModel, limit: int = 10_000) -> list[tuple[int, ...]]:
    """Step until idle, checking invariants; who finished in each step."""
    finished = []
    while not engine.idle:
        finished.append(engine.step().finished)
        engine.check()
        assert len(finished) < limit, "the engine makes progress"
    return finished


sequences = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=20)


@given(sequences)
@settings(max_examples=60, deadline=None)
def test_every_sequence_gets_exactly_its_tokens(wanted):
    engine = model()
    for number, (prompt, output) in enumerate(wanted):
        engine.add(number, prompt, output)
    produced: dict[int, int] = {}
    while not engine.idle:
        step = engine.step()
        engine.check()
        for number in step.produced:
            produced[number] = produced.get(number, 0) + 1
    assert produced == {number: output for number, (_, output) in enumerate(wanted)}
    assert engine.prompt_tokens == sum(prompt for prompt, _ in wanted)
    assert engine.generated_tokens == sum(output for _, output in wanted)
    assert engine.kv_use == 0.0


@given(sequences)
@settings(max_examples=60, deadline=None)
def test_a_step_stays_within_budget_and_batch(wanted):
    engine = model()
    for number, (prompt, output) in enumerate(wanted):
        engine.add(number, prompt, output)
    while not engine.idle:
        step = engine.step()
        assert 0 < step.computed_tokens <= SMALL.max_num_batched_tokens
        assert engine.running <= SMALL.max_num_seqs
        assert 0.0 <= engine.kv_use <= 1.0


def test_equal_sequences_finish_in_order_of_arrival():
    engine = model()
    for number in range(12):
        engine.add(number, 8, 5)
    finished = [number for step in drain(engine) for number in step]
    assert finished == list(range(12))


def test_a_full_pool_preempts_the_last_admitted_and_recomputes_it():
    engine = model(EngineLimits(max_num_seqs=2, max_num_batched_tokens=64, kv_tokens=96, max_model_len=96))
    engine.add(1, 32, 60)
    engine.add(2, 32, 60)
    preempted: list[int] = []
    computed = 0
    while not engine.idle:
        step = engine.step()
        engine.check()
        preempted += step.preempted
        computed += step.computed_tokens
    assert preempted, "both can't fit"
    assert set(preempted) == {2}
    assert engine.preemptions == len(preempted)
    assert computed > 2 * (32 + 59), "what was preempted is computed again"


def test_without_pressure_nothing_is_preempted():
    engine = model()
    engine.add(1, 32, 60)
    drain(engine)
    assert engine.preemptions == 0


def test_a_long_prompt_is_computed_in_chunks():
    engine = model()
    engine.add(1, 100, 1)
    steps = [engine.step() for _ in range(4)]
    assert [step.computed_tokens for step in steps] == [32, 32, 32, 4]
    assert [step.produced for step in steps] == [(), (), (), (1,)]


def test_running_sequences_go_before_a_new_prompt():
    engine = model()
    engine.add(1, 4, 10)
    engine.step()
    engine.add(2, 100, 1)
    step = engine.step()
    assert step.produced == (1,)
    assert step.computed_tokens == SMALL.max_num_batched_tokens


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_abort_frees_everything(steps):
    engine = model()
    engine.add(1, 40, 50)
    engine.add(2, 40, 50)
    for _ in range(steps):
        engine.step()
    assert engine.abort(1)
    assert engine.abort(2)
    engine.check()
    assert engine.idle
    assert engine.kv_use == 0.0
    assert not engine.abort(1)


def test_the_steps_of_a_lone_sequence_cost_its_h():
    limits = EngineLimits()
    engine = EngineModel(limits, StepCost(step_ms=0.1, scale=1.0))
    prompt, output = 200, 50
    engine.add(1, prompt, output)
    count, total_ms = 0, 0.0
    while not engine.idle:
        total_ms += engine.step().duration_s * 1000
        count += 1
    h = 0.21 * prompt + 0.10 * output + 0.004 * prompt * output + 0.0032 * output**2 + 1.15
    assert total_ms == pytest.approx(h + 0.1 * count)


def test_batching_pays():
    alone, together = model(), model()
    alone.add(1, 8, 40)
    for number in range(4):
        together.add(number, 8, 40)

    def rate(engine: EngineModel) -> float:
        spent = 0.0
        while not engine.idle:
            spent += engine.step().duration_s
        return engine.generated_tokens / spent

    assert rate(together) > 2 * rate(alone)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "max_num_batched_tokens"),
        ({"kv_tokens": 64, "max_model_len": 128}, "kv_tokens"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes, named):
    with pytest.raises(ValueError, match=named):
        EngineLimits(**sizes)


def test_a_sequence_that_can_never_fit_is_refused():
    with pytest.raises(ValueError, match="exceed 128"):
        model().add(1, 100, 29)
