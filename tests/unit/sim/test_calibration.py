"""The fit finds the coefficients that made the measurements, and says when it can't."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest

from fairserve.sim.calibration import Measurement, fit, predicted_ms
from fairserve.sim.costs import StepCost
from fairserve.sim.steps import EngineLimits, EngineModel

TRUE = StepCost(step_ms=4.0, scale=1.0, prompt=0.05, output=0.3, cross=0.001, square=0.002, first=0.7)
SHAPES = list(product((1, 2, 4, 8), (16, 64, 256, 1024), (1, 8, 24, 48)))
LIMITS = EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048)


def measure(cost: StepCost, n: int, p: int, q: int) -> Measurement:
    """What the engine model itself takes."""
    engine, spent_s = EngineModel(LIMITS, cost), 0.0
    for number in range(n):
        engine.add(number, p, q)
    while not engine.idle:
        spent_s += engine.step().duration_s
    return Measurement(n, p, q, spent_s * 1000)


def shuffled(noise: float) -> list[Measurement]:
    rng = random.Random(1)
    made = [measure(TRUE, *shape) for shape in SHAPES]
    rng.shuffle(made)
    return [replace(m, total_ms=m.total_ms * rng.uniform(1 - noise, 1 + noise)) for m in made]


def test_the_terms_are_those_of_the_engine_model():
    for shape in SHAPES:
        measured = measure(TRUE, *shape)
        # Prompts that a step can not hold together: the last sequence is then a step behind the others.
        slack = 0.06 if shape[0] * shape[1] > LIMITS.max_num_batched_tokens else 1e-9
        assert predicted_ms(TRUE, measured, 2048) == pytest.approx(measured.total_ms, rel=slack)


def test_the_coefficients_are_found_again():
    found = fit(shuffled(noise=0.0), 2048)
    assert found.held_back_error < 0.01
    for name in ("step_ms", "prompt", "output", "cross", "square", "first"):
        assert getattr(found.cost, name) == pytest.approx(getattr(TRUE, name), rel=0.15, abs=0.1)


def test_noise_shows_in_the_error_of_what_was_held_back():
    found = fit(shuffled(noise=0.2), 2048)
    assert 0.05 < found.held_back_error < 0.2, "uniform noise of ±20 % has a mean of 10 %"
    assert found.fitted == 3 * found.held_back


def test_no_coefficient_is_negative():
    falling = [Measurement(1, 16 * i, 1 + i, 100.0 - i) for i in range(1, 41)]
    cost = fit(falling, 2048).cost
    assert min(cost.step_ms, cost.prompt, cost.output, cost.cross, cost.square, cost.first) >= 0.0


def test_too_few_measurements_are_refused():
    with pytest.raises(ValueError, match="6 measurements are too few"):
        fit([Measurement(1, 1, 1, 1.0)] * 6, 2048)
