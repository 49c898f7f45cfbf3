"""Metrics against cases that are computed by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import MappingProxyType

import pytest

from fairserve.core import Limit, TenantSettings
from fairserve.sim import statistics
from fairserve.sim.metrics import measure
from fairserve.sim.recording import CallRecord, Fate, InteractionRecord, Recording
from fairserve.sim.workload import Behaviour, CallPlan, Client, InteractionPlan
from tests.unit.sim.worlds import scenario, users

WORLD = scenario(users("a", 1, 1.0))


def client(user: str, *, good: bool = True) -> Client:
    return Client("a", "a", user, Behaviour(), good, random.Random(1))


def call(
    number: int,
    owner: Client,
    sent_s: float,
    dispatched_s: float,
    first_s: float,
    ended_s: float,
    tokens: tuple[int, int] = (100, 10),
    calls: int = 1,
) -> CallRecord:
    plan = CallPlan("chat", tokens[0], 0, tokens[1])
    interaction = InteractionRecord(
        owner, InteractionPlan(owner, sent_s, (plan,) * calls, ()), None, sent_s, ended_s, served=1
    )
    interaction.tokens = sum(tokens)
    record = CallRecord(number, plan, interaction, sent_s, sent_s, target_tokens=tokens[1], arrival=number)
    record.queued_s, record.dispatched_s, record.behind = sent_s, dispatched_s, 2
    record.first_token_s, record.ended_s, record.fate = first_s, ended_s, Fate.SERVED
    record.input_tokens, record.output_tokens, record.charged = tokens[0], tokens[1], 1.0
    return record


def recording(*calls: CallRecord) -> Recording:
    made = Recording("test", "x", 1, list(calls), [c.interaction for c in calls])
    made.dispatched = [
        sorted((c for c in calls if c.dispatched_s == c.dispatched_s), key=lambda c: c.dispatched_s)
    ]
    made.ended_s = max(c.ended_s for c in calls)
    return made


def test_delays():
    a, b = client("a"), client("b", good=False)
    figures = measure(
        WORLD,
        recording(
            call(1, a, 0.0, 0.5, 1.0, 2.0), call(2, b, 1.0, 4.0, 5.0, 9.0), call(3, a, 2.0, 2.0, 2.5, 3.0)
        ),
    ).figures
    assert figures["wait_p50_s"] == 0.5
    assert figures["wait_mean_s"] == pytest.approx(3.5 / 3)
    assert figures["ttft_p50_s"] == 1.0
    assert figures["latency_mean_s"] == pytest.approx((2.0 + 8.0 + 1.0) / 3)
    assert figures["delayed_users"] == 0.5
    assert figures["good_delayed_users"] == 0.0
    assert figures["waiting_in_scheduler_p50"] == 2.0


def test_a_wait_counts_from_the_first_attempt():
    retried = call(1, client("a"), 0.0, 5.0, 6.0, 7.0)
    retried.queued_s = 4.9
    figures = measure(WORLD, recording(retried)).figures
    assert figures["wait_p99_s"] == 5.0
    assert figures["queue_wait_p99_s"] == pytest.approx(0.1)
    assert (figures["delayed_users"], figures["delayed_in_queue_users"]) == (1.0, 0.0)


def test_slowdown_is_time_shared_over_time_alone():
    # 5 ms a step, a quarter of VTC's cost: 100 prompt tokens in one chunk and ten outputs are ten steps.
    alone_ms = 10 * 5.0 + 0.25 * (0.21 * 100 + 0.10 * 10 + 0.004 * 1000 + 0.0032 * 100 + 1.15)
    shared_s = 3.0
    figures = measure(WORLD, recording(call(1, client("a"), 0.0, 0.5, 1.0, shared_s))).figures
    assert figures["slowdown_p99"] == pytest.approx(shared_s / (alone_ms / 1000))


def test_throughput_counts_while_clients_begin_interactions():
    a = client("a")
    figures = measure(
        WORLD, recording(call(1, a, 0.0, 0.0, 2.0, 6.0, (100, 40)), call(2, a, 4.0, 4.0, 8.0, 9.0))
    ).figures
    assert figures["input_tokens_per_s"] == pytest.approx(100 / 4.0), "the second call's input comes later"
    assert figures["output_tokens_per_s"] == pytest.approx(20 / 4.0), "half of the first one's output"


def test_waste_is_of_interactions_that_lost_a_later_call():
    kept = call(1, client("a"), 0.0, 0.0, 1.0, 2.0)
    cut = call(2, client("b"), 1.0, 1.0, 2.0, 3.0, (60, 30), calls=2)
    cut.interaction.lost = True
    figures = measure(WORLD, recording(kept, cut)).figures
    assert figures["token_waste"] == pytest.approx(90 / 200)
    assert figures["serving_experience"] == 0.5
    assert (figures["lost_interactions"], figures["cut_interactions"]) == (1.0, 1.0)


def test_users_within_their_limits():
    limit = Limit(2, 60.0)
    tenants = MappingProxyType({"a": TenantSettings("a", per_user=limit)})
    world = replace(WORLD, settings=replace(WORLD.settings, tenants=tenants))
    within = [call(n, client("within"), at, at, at + 1, at + 2) for n, at in ((1, 0.0), (2, 59.0), (3, 60.0))]
    over = [call(n, client("over"), at, at, at + 1, at + 2) for n, at in ((4, 0.0), (5, 30.0), (6, 59.0))]
    over[0].interaction.lost, over[0].interaction.served = True, 0
    served = measure(world, recording(*within, *over)).figures["within_limits_served"]
    assert served == 1.0, "who is over the limit is not counted"
    within[1].interaction.served = 0
    assert measure(world, recording(*within, *over)).figures["within_limits_served"] == 0.0
    assert measure(WORLD, recording(*within, *over)).figures["within_limits_served"] == 0.0, "no limit"


def test_order():
    a = client("a")
    calls = [call(n, a, float(n), 10.0 + place, 20.0, 30.0) for n, place in ((1, 3), (2, 1), (3, 2))]
    figures = measure(WORLD, recording(*calls)).figures
    assert figures["rank_correlation"] == pytest.approx(-0.5)  # places 2, 3, 1: d² = 1 + 1 + 4
    assert figures["inverted_pairs"] == pytest.approx(2 / 3)
    assert figures["inverted_waiting_pairs"] == pytest.approx(2 / 3), "all three waited together"


def test_service_difference_is_to_the_best_served_with_unmet_demand():
    a, b, c = client("a"), client("b"), client("c")
    served = call(1, a, 0.0, 0.0, 1.0, 2.0, (300, 50))  # 400
    half = call(2, b, 0.0, 0.0, 1.0, 2.0, (100, 25))  # 150, and all it wanted
    waits = call(3, c, 0.0, 0.0, 1.0, 2.0, (100, 25))
    waits.first_token_s = waits.ended_s = math.nan
    waits.input_tokens = waits.output_tokens = 0
    made = recording(served, half)
    made.calls.append(waits)
    made.interactions.append(waits.interaction)
    figures = measure(WORLD, made).figures
    assert figures["service_difference_max"] == pytest.approx(150.0), "b is satisfied, c wants 150 and has 0"
    assert figures["service_difference_mean"] == pytest.approx(150.0)


def test_the_bound_is_that_of_the_core():
    world = replace(WORLD, settings=replace(WORLD.settings, continuation_head_start=3.0))
    figures = measure(world, recording(call(1, client("a"), 0.0, 0.0, 1.0, 2.0))).figures
    profile = world.settings.applications["chat"].profile
    typical = (profile.input_tokens - 32) + 32 + 2 * profile.output_tokens
    assert figures["bound"] == pytest.approx(2 * 2 * 4096 / typical + 3.0)


def test_service_is_in_one_unit_whatever_was_charged():
    settings = replace(WORLD.settings, normalisation=0.8)
    world = replace(WORLD, settings=settings)
    profile = settings.applications["chat"].profile
    typical = (profile.input_tokens - 32) + 32 + 2 * profile.output_tokens
    calls = [
        call(1, client("a"), 0.0, 0.0, 1.0, 2.0, (100, 10)),  # 120 priced tokens
        call(2, client("b"), 0.0, 0.0, 1.0, 2.0, (300, 30)),  # 360: their mean is 240
    ]
    service = measure(world, recording(*calls)).classes["a"]["service"]
    assert service == pytest.approx(480 * (0.8 / typical + 0.2 / 240))
    calls[0].charged = 50.0
    assert measure(world, recording(*calls)).classes["a"]["service"] == service


def test_cached_tokens_are_cheaper_service():
    made = call(1, client("a"), 0.0, 0.0, 1.0, 2.0, (100, 10))
    whole = measure(WORLD, recording(made)).classes["a"]["service"]
    made.cached_tokens = 50
    assert measure(WORLD, recording(made)).classes["a"]["service"] < whole


def backlogged(number: int, user: str, tokens: tuple[int, int] = (100, 10)) -> list[CallRecord]:
    """A call that is served within the first 10 s, and one that waits all that time."""
    who = client(user)
    return [
        call(number, who, 0.0, 0.0, 1.0, 9.0, tokens),
        call(number + 1, who, 0.0, 12.0, 13.0, 14.0),
    ]


def test_the_gap_is_of_service_not_of_charges():
    calls = backlogged(1, "a", (1000, 10)) + backlogged(3, "b")
    figures = measure(WORLD, recording(*calls)).figures
    assert figures["compared_pairs"] == 1.0
    assert figures["service_gap"] > 0.0, "both are charged 1, but a had ten times the tokens"
    assert figures["gap_over_bound"] == pytest.approx(figures["service_gap"] / figures["bound"])


def test_a_gap_that_nobody_was_backlogged_for_has_no_value():
    figures = measure(WORLD, recording(call(1, client("a"), 0.0, 0.0, 1.0, 2.0))).figures
    assert figures["compared_pairs"] == 0.0
    assert math.isnan(figures["gap_over_bound"])
    assert math.isnan(figures["service_gap"])


def test_percentiles():
    assert statistics.percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert statistics.percentile([5.0], 0.99) == 5.0
    assert math.isnan(statistics.percentile([], 0.5))


def test_jain():
    assert statistics.jain([1.0, 1.0, 1.0]) == 1.0
    assert statistics.jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_confidence_interval_of_a_textbook_case():
    # Squared distances from 5 sum to 10; t with 3 degrees of freedom is 3.182.
    assert statistics.interval95([3.0, 4.0, 6.0, 7.0]) == pytest.approx(3.182 * math.sqrt(10 / 3) / 2)
    assert math.isnan(statistics.interval95([1.0]))


def test_rank_correlation_and_inversions():
    assert statistics.rank_correlation([10, 20, 30]) == 1.0
    assert statistics.rank_correlation([3, 2, 1]) == -1.0
    assert statistics.inversions([1, 2, 3]) == 0
    assert statistics.inversions([3, 1, 2]) == 2
