"""Scenarios with thresholds, each with the mean that was measured and how; FCFS must fail them.

Means are of seeds 1 to 5 of `bench.paper_scenarios` and `bench/scenarios`, printed by `measured` below; a
threshold leaves room of about half the measured value for changes of the core that are no regressions.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import paper_scenarios as scenarios
from fairserve.sim.experiment import Experiment, experiment
from fairserve.sim.files import read_scenario
from fairserve.sim.scenario import Scenario

SEEDS = (1, 2)
NOISY = Path(__file__).parents[2] / "bench" / "scenarios" / "noisy-neighbour.yaml"


def measured(scenario: Scenario, *policies: str) -> Experiment:
    return experiment(scenario, policies, SEEDS)


def share_deviation(runs: Experiment, policy: str, weights: dict[str, float]) -> float:
    """The largest relative deviation of a tenant's share of service from its weight's."""
    served = {name: runs.of_class(policy, name, "service").mean for name in weights}
    total, whole = sum(served.values()), sum(weights.values())
    return max(abs(served[name] / total / (weight / whole) - 1) for name, weight in weights.items())


WEIGHTS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}


@pytest.fixture(scope="module")
def weighted() -> Experiment:
    return measured(scenarios.weighted(WEIGHTS, ("chat", "code", "rag", "story")), "FCFS", "VTC", "W")


def test_shares_follow_the_weights(weighted):
    deviation = share_deviation(weighted, "W", WEIGHTS)
    assert deviation < 0.03, "measured 0.02"
    assert weighted.figure("W", "waiting_in_scheduler_p50").mean > 50, "the backlog is in the scheduler"


def test_first_come_first_served_fails_the_shares(weighted):
    assert share_deviation(weighted, "FCFS", WEIGHTS) > 0.5, "measured 2.2: the lightest gets most"


def test_a_plain_token_counter_fails_the_shares_of_unlike_applications(weighted):
    assert share_deviation(weighted, "VTC", WEIGHTS) > 0.5, "measured 1.6: it keeps tokens even"


@pytest.fixture(scope="module")
def flooded() -> tuple[float, Experiment]:
    solo = measured(scenarios.flood(False), "FairServe").of_class("FairServe", "quiet", "ttft_p99_s").mean
    return solo, measured(scenarios.flood(True, scenarios.FLOOD_LIMITS["1 in 2 s"]), "FairServe")


def test_a_quiet_tenant_hardly_notices_a_flood(flooded):
    solo, runs = flooded
    assert runs.of_class("FairServe", "quiet", "ttft_p99_s").mean / solo < 1.15, "measured 1.06"


def test_first_come_first_served_fails_the_quiet_tenant(flooded):
    solo, _ = flooded
    runs = measured(scenarios.flood(True), "FCFS")
    assert runs.of_class("FCFS", "quiet", "ttft_p99_s").mean / solo > 20, "measured 750"


def test_oit_hits_the_right_interactions_only():
    runs = measured(scenarios.oit_alone(), "FairServe")
    assert runs.of_class("FairServe", "abusers", "refused_interactions").mean > 200, "measured 1,700"
    for group in ("good", "spike"):
        assert runs.of_class("FairServe", group, "refused_interactions").mean == 0
    assert runs.figure("FairServe", "cut_interactions").mean == 0
    assert runs.figure("FairServe", "token_waste").mean == 0


def test_the_service_gap_of_backlogged_users_is_within_the_bound(weighted):
    assert weighted.figure("W", "compared_pairs").mean > 50, "there were pairs to compare"
    assert weighted.figure("W", "gap_over_bound").mean <= 1.0, (
        "measured 0.01: the bound is for the worst engine"
    )
    fair, fcfs = (weighted.figure(policy, "service_gap").mean for policy in ("W", "FCFS"))
    assert fcfs > 3 * fair, "first come, first served is the negative control"


def test_the_bound_is_broken_by_first_come_first_served_and_kept_by_counters():
    runs = measured(scenarios.greedy(), "FCFS", "W")
    assert runs.figure("W", "compared_pairs").mean > 500, "measured 1,060"
    assert runs.figure("W", "gap_over_bound").mean <= 1.0, "measured 0.06"
    assert runs.figure("FCFS", "gap_over_bound").mean > 5.0, "measured 16: the negative control"


def test_good_users_wait_little_beside_loud_ones():
    runs = measured(read_scenario(NOISY), "FCFS", "FairServe")
    fair, fcfs = (runs.figure(p, "good_wait_p99_s").mean for p in ("FairServe", "FCFS"))
    assert fair < 0.5, "measured 0.22"
    assert fcfs > 10.0, "measured 45: the negative control"


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("retrier, ignores Retry-After", 1.1),  # measured 1.0
        ("Sybil, 1,000 users of one tenant", 1.1),  # measured 1.01
        (
            "canceller, at 90 % of the output",
            1.1,
        ),  # measured 1.04: the same share, of calls with fewer tokens
        ("mislabeller, all as the heaviest", 5.0),  # measured 1.3; the bound is 1/(1 − λ)
        ("id forger", 1.05),  # measured 1.0
    ],
)
def test_an_adversary_gains_nothing_or_what_is_stated(name, most):
    attack = next(attack for attack in scenarios.attacks() if attack.name == name)
    tokens = [
        measured(world, "FairServe").of_class("FairServe", "attacker", "service_tokens").mean
        for world in (attack.honest, attack.attacking)
    ]
    assert tokens[1] / tokens[0] < most
