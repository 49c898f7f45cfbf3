"""A scenario under several schedulers and seeds, and what comes out: figures with confidence intervals.

Every scheduler meets the same clients with the same seeds, so that two of them may be compared seed by
seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairserve.core.catalogue import SCHEDULERS
from fairserve.sim.errors import InputError
from fairserve.sim.metrics import Metrics, measure
from fairserve.sim.recording import Recording, Transition
from fairserve.sim.scenario import Scenario
from fairserve.sim.statistics import interval95, mean
from fairserve.sim.world import SchedulerFactory, simulate

#: Hears the scheduler, the seed, and the share of the whole experiment that is done.
OnProgress = Callable[[str, int, float], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds and half the width of its 95 % confidence interval (nan for one seed)."""

    mean: float
    interval: float
    values: tuple[float, ...]


@dataclass(slots=True)
class Experiment:
    """What was measured, by scheduler and seed."""

    scenario: Scenario
    seeds: tuple[int, ...]
    measured: dict[str, list[Metrics]] = field(default_factory=dict)
    #: Of the first seed, for plots; only where they were asked for.
    recordings: dict[str, Recording] = field(default_factory=dict)
    #: When the pool became overloaded or clear, by scheduler and seed.
    transitions: dict[str, list[tuple[Transition, ...]]] = field(default_factory=dict)

    def figure(self, policy: str, name: str) -> Figure:
        """One figure of a scheduler."""
        return _figure([metrics.figures[name] for metrics in self.measured[policy]])

    def of_class(self, policy: str, group: str, name: str) -> Figure:
        """One figure of a class of clients under a scheduler."""
        return _figure([metrics.classes[group][name] for metrics in self.measured[policy]])

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file. Figures that nothing was measured for are null."""
        return {
            "scenario": self.scenario.name,
            "seeds": list(self.seeds),
            "policies": {
                policy: {
                    "figures": {name: _as_json(self.figure(policy, name)) for name in runs[0].figures},
                    "classes": {
                        group: {
                            name: _as_json(self.of_class(policy, group, name))
                            for name in runs[0].classes[group]
                        }
                        for group in runs[0].classes
                        if all(group in run.classes for run in runs)
                    },
                }
                for policy, runs in self.measured.items()
            },
        }


def experiment(
    scenario: Scenario,
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    keep: bool = False,
    on_progress: OnProgress | None = None,
    schedulers: Mapping[str, SchedulerFactory] = SCHEDULERS,
) -> Experiment:
    """Run all of it. Raises ValueError for an unknown scheduler or none, before anything runs."""
    if not policies:
        raise InputError("policies", None, "", f"at least one is needed of {', '.join(schedulers)}")
    for policy in policies:
        if policy not in schedulers:
            raise ValueError(f"unknown policy {policy!r}: one of {', '.join(schedulers)}")
    result = Experiment(scenario, tuple(seeds))
    total, done = len(policies) * len(seeds), 0
    for policy in policies:
        for seed in seeds:

            def hear(share: float, policy: str = policy, seed: int = seed, done: int = done) -> None:
                if on_progress is not None:
                    on_progress(policy, seed, (done + share) / total)

            recording = simulate(scenario, policy, schedulers[policy], seed, hear)
            result.measured.setdefault(policy, []).append(measure(scenario, recording))
            result.transitions.setdefault(policy, []).append(tuple(recording.transitions))
            if keep and seed == seeds[0]:
                result.recordings[policy] = recording
            done += 1
            hear(0.0, done=done)
    return result


def _figure(values: list[float]) -> Figure:
    return Figure(mean(values), interval95(values), tuple(values))


def _as_json(figure: Figure) -> dict[str, Any]:
    return {
        "mean": _finite(figure.mean),
        "interval95": _finite(figure.interval),
        "values": [_finite(value) for value in figure.values],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
