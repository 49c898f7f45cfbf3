"""Fits the step model to measurements of a real engine.

A measurement is n equal requests sent together: p prompt tokens, q output tokens each, and the time until
the last one's end. The step model says what that is as a sum of terms, each a number that is known times a
coefficient that is not; the coefficients are the least squares of relative errors among those that are not
negative. Every fourth measurement is held back from the fit and says how wrong it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from fairserve.sim.costs import StepCost
from fairserve.sim.statistics import mean, percentile

_TERMS = 6
#: Which measurements are held back: one of so many.
_HELD_BACK = 4


@dataclass(frozen=True, slots=True)
class Measurement:
    """`requests` equal ones together, and the time until the last one's end."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration and its relative errors, 0.1 being ten per cent."""

    cost: StepCost
    fitted: int
    fit_error: float  #: mean, of the measurements that it was fitted to
    held_back: int
    held_back_error: float  #: mean, of those that it was not
    held_back_p90: float


def predicted_ms(cost: StepCost, measurement: Measurement, step_tokens: int) -> float:
    """What the step model says a measurement takes."""
    coefficients = (cost.step_ms, *(cost.scale * c for c in _coefficients(cost)))
    return sum(c * t for c, t in zip(coefficients, _terms(measurement, step_tokens), strict=True))


def fit(measurements: Sequence[Measurement], step_tokens: int) -> Fit:
    """The calibration of an engine that computes at most `step_tokens` in one step. Raises ValueError where
    there are too few measurements.
    """
    kept = [m for index, m in enumerate(measurements) if index % _HELD_BACK != _HELD_BACK - 1]
    held = [m for index, m in enumerate(measurements) if index % _HELD_BACK == _HELD_BACK - 1]
    if len(kept) < _TERMS or not held:
        raise ValueError(f"{len(measurements)} measurements are too few for {_TERMS} coefficients")
    rows = [[term / m.total_ms for term in _terms(m, step_tokens)] for m in kept]
    step_ms, prompt, output, cross, square, first = _least_squares(rows)
    cost = StepCost(step_ms, 1.0, prompt, output, cross, square, first)
    errors = [_error(cost, m, step_tokens) for m in held]
    return Fit(
        cost=cost,
        fitted=len(kept),
        fit_error=mean([_error(cost, m, step_tokens) for m in kept]),
        held_back=len(held),
        held_back_error=mean(errors),
        held_back_p90=percentile(errors, 0.9),
    )


def _terms(m: Measurement, step_tokens: int) -> tuple[float, ...]:
    """What multiplies step_ms, prompt, output, cross, square and first."""
    n, p, q = m.requests, m.prompt_tokens, m.output_tokens
    steps = -(-n * p // step_tokens) + q - 1
    return (steps, n * p, n * q, n * p * q, n * q * q, n)


def _coefficients(cost: StepCost) -> tuple[float, ...]:
    return (cost.prompt, cost.output, cost.cross, cost.square, cost.first)


def _error(cost: StepCost, measurement: Measurement, step_tokens: int) -> float:
    return abs(predicted_ms(cost, measurement, step_tokens) / measurement.total_ms - 1.0)


def _least_squares(rows: list[list[float]]) -> list[float]:
    """The coefficients, none negative, for which the sum over rows of (Σ c·x − 1)² is smallest. Every choice
    of which are zero is tried: there are 64.
    """
    best, best_error = [0.0] * _TERMS, float(len(rows))
    for size in range(1, _TERMS + 1):
        for chosen in combinations(range(_TERMS), size):
            solved = _solve(rows, chosen)
            if solved is None or min(solved) < 0.0:
                continue
            coefficients = [0.0] * _TERMS
            for index, value in zip(chosen, solved, strict=True):
                coefficients[index] = value
            error = sum(
                (sum(c * x for c, x in zip(coefficients, row, strict=True)) - 1.0) ** 2 for row in rows
            )
            if error < best_error:
                best, best_error = coefficients, error
    return best


def _solve(rows: list[list[float]], chosen: tuple[int, ...]) -> list[float] | None:
    """Least squares over the chosen terms, by the normal equations; None where they don't determine it."""
    # Columns differ by many orders of magnitude: each is scaled to its largest entry.
    scales = [max(abs(row[index]) for row in rows) or 1.0 for index in chosen]
    columns = [[row[index] / scale for index, scale in zip(chosen, scales, strict=True)] for row in rows]
    size = len(chosen)
    matrix = [
        [sum(row[i] * row[j] for row in columns) for j in range(size)] + [sum(row[i] for row in columns)]
        for i in range(size)
    ]
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda i: abs(matrix[i][pivot]))
        if abs(matrix[largest][pivot]) < 1e-12:
            return None
        matrix[pivot], matrix[largest] = matrix[largest], matrix[pivot]
        for i in range(size):
            if i != pivot:
                factor = matrix[i][pivot] / matrix[pivot][pivot]
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[pivot], strict=True)]
    return [matrix[i][size] / matrix[i][i] / scales[i] for i in range(size)]
