"""The price of tokens and its normalisation."""

import pytest

from fairserve.core import Profile, TokenWeights, Usage
from fairserve.core.cost import CostModel, TrafficMean, price, typical_cost

WEIGHTS = TokenWeights(input=1.0, cached=0.1, system=0.5, output=2.0)


def test_price_weighs_each_kind_of_token():
    assert price(Usage(100, 10), system_tokens=40, weights=WEIGHTS) == 60 * 1.0 + 40 * 0.5 + 10 * 2.0


def test_cached_tokens_are_cheap_and_count_as_system_tokens_first():
    assert price(Usage(100, 0, cached_tokens=50), 40, WEIGHTS) == 50 * 1.0 + 50 * 0.1
    assert price(Usage(100, 0, cached_tokens=20), 40, WEIGHTS) == 60 * 1.0 + 20 * 0.5 + 20 * 0.1


@pytest.mark.parametrize("usage", [Usage(-5, -5), Usage(10, 0, cached_tokens=99), Usage(0, 0, 7)])
def test_price_is_never_negative(usage):
    assert price(usage, system_tokens=1_000, weights=WEIGHTS) >= 0.0


def test_each_term_of_a_typical_cost_is_at_least_one():
    assert typical_cost(Profile(0.0, 0.0), TokenWeights()) == 3.0
    assert typical_cost(Profile(100.0, 50.0, system_tokens=20.0), WEIGHTS) == 80.0 + 10.0 + 100.0


def test_with_lambda_one_a_typical_call_costs_one():
    profile = Profile(100.0, 50.0, system_tokens=20.0)
    model = CostModel(WEIGHTS, 20, typical_cost(profile, WEIGHTS), mean=7.0, share=1.0)
    assert model.service(Usage(100, 50)) == pytest.approx(1.0)


def test_a_mislabelled_call_saves_at_most_one_over_one_minus_lambda():
    usage, light, heavy, mean = Usage(100, 50), 200.0, 1e9, 200.0
    honest = CostModel(TokenWeights(), 0, light, mean, share=0.8).service(usage)
    mislabelled = CostModel(TokenWeights(), 0, heavy, mean, share=0.8).service(usage)
    assert mislabelled < honest
    assert honest / mislabelled <= 1 / (1 - 0.8) + 1e-9


def test_traffic_mean_forgets_its_initial_guess_and_follows_traffic():
    mean = TrafficMean(initial=1_000.0)
    mean.observe(10.0)
    assert mean.value == 10.0
    for _ in range(2_000):
        mean.observe(30.0)
    assert mean.value == pytest.approx(30.0, rel=0.01)
