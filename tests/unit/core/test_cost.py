"""The price of tokens and its normalisation."""

import math

import pytest

from fairserve.core import UNIT, Outcome, Profile, TokenWeights, Usage
from fairserve.core.cost import TrafficMean, price, sane, typical_cost, unit_rate

WEIGHTS = TokenWeights(input=1.0, cached=0.1, system=0.5, output=2.0)


def test_price_weighs_each_kind_of_token():
    assert price(Usage(100, 10), 40, WEIGHTS) == 60 * 1.0 + 40 * 0.5 + 10 * 2.0


def test_cached_tokens_are_cheap_and_count_as_system_tokens_first():
    assert price(Usage(100, 0, cached_tokens=50), 40, WEIGHTS) == 50 * 1.0 + 50 * 0.1
    assert price(Usage(100, 0, cached_tokens=20), 40, WEIGHTS) == 60 * 1.0 + 20 * 0.5 + 20 * 0.1


@pytest.mark.parametrize(
    ("counts", "made_good"),
    [
        ((-5, -5), Usage(0, 0)),
        ((10, 0, 99), Usage(10, 0, 10)),
        ((0, 0, 7), Usage(0, 0)),
        ((math.nan, math.inf), Usage(0, 10**12)),
        ((10**400, 1), Usage(10**12, 1)),
        ((5, 6, 4), Usage(5, 6, 4)),
    ],
)
def test_usage_that_cannot_be_is_made_good(make_usage, counts, made_good):
    usage = make_usage(*counts) or made_good
    assert sane(usage) == made_good
    assert price(sane(usage), 1_000, WEIGHTS) >= 0.0


def test_each_term_of_a_typical_cost_is_at_least_one():
    assert typical_cost(Profile(0.0, 0.0), TokenWeights()) == 3.0
    assert typical_cost(Profile(100.0, 50.0, system_tokens=20.0), WEIGHTS) == 80.0 + 10.0 + 100.0


def test_with_lambda_one_a_typical_call_costs_one():
    profile = Profile(100.0, 50.0, system_tokens=20.0)
    rate = unit_rate(typical_cost(profile, WEIGHTS), mean=7.0, share=1.0)
    assert price(Usage(100, 50), 20, WEIGHTS) * rate == pytest.approx(UNIT)


def test_with_lambda_zero_only_the_pools_mean_counts():
    assert unit_rate(5.0, 100.0, share=0.0) == unit_rate(5_000.0, 100.0, share=0.0) == UNIT / 100.0


def test_traffic_mean_forgets_its_initial_guess_and_follows_traffic():
    mean = TrafficMean(1_000.0)
    mean.observe(10.0)
    assert mean.value == 10.0
    for _ in range(2_000):
        mean.observe(30.0)
    assert mean.value == pytest.approx(30.0, rel=0.01)


def test_no_single_call_moves_the_mean_far_and_none_to_nothing():
    mean = TrafficMean(100.0)
    for _ in range(1_000):
        mean.observe(100.0)
    mean.observe(1e4)
    assert mean.value < 150.0
    mean = TrafficMean(100.0)
    mean.observe(0.0)
    assert mean.value == 1.0


def test_a_lie_pays_at_least_its_part_of_the_plain_price():
    """What any label can save: against the token counter, and against an honest label."""
    share, honest, heavy, mean = 0.8, 200.0, 1e9, 500.0
    plain = UNIT / mean
    lie = unit_rate(heavy, mean, share)
    assert lie >= (1.0 - share) * plain
    assert unit_rate(honest, mean, share) / lie <= 1.0 + share / (1.0 - share) * mean / honest + 1e-9


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.FAILED])
def test_calls_that_were_cut_short_do_not_cheapen_the_mean(make_rig, outcome):
    """Otherwise who cancels makes everybody else's calls dear."""
    rig = make_rig(normalisation=0.0)
    rig.enqueue()
    rig.serve()
    for _ in range(20):
        rig.enqueue()
        rig.finish(rig.dispatch().call_id, input_tokens=1, output_tokens=0, outcome=outcome)
    rig.enqueue()
    assert rig.finish(rig.dispatch().call_id).units == UNIT
