"""The bound that the package docstring derives, for random traffic; FCFS and a scheduler that does nothing
run through the same tests and must fail them.
"""

import dataclasses
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.core import ApplicationSettings
from tests.property.core_drive import PROFILES, Drive, inflight_bound, make_settings
from tests.property.core_oracle import max_min

SLOTS = 4
COUNTED = ("W", "W+O+I", "FairServe")
NEGATIVE = ("FCFS", "NoRestraint")
seeds = st.integers(0, 2**32 - 1)


def drift(name, seed, weights, *, head_start=0.0, continues=(), rounds=150, greed=1, users=None):
    """Keeps every tenant (or every user of one tenant) backlogged; how far the most and the least served
    drift apart in any interval of the run, and the bound for it.
    """
    drive = Drive(name, make_settings(weights, normalisation=1.0, continuation_head_start=head_start), seed)
    flows = (
        [(tenant, "u") for tenant in weights] if users is None else [(next(iter(weights)), u) for u in users]
    )
    waiting = dict.fromkeys(flows, 0)
    lows = {}
    widest = 0.0

    def offer(flow):
        interaction = drive.rng.choice(["i", "j", None]) if flow[flow[1] != "u"] in continues else None
        drive.offer(*flow, application=drive.rng.choice(list(PROFILES)), interaction=interaction)
        waiting[flow] += 1

    for _ in range(rounds):
        for index, flow in enumerate(flows):
            while waiting[flow] < (SLOTS + 2) * (greed if index == 0 else 1):
                offer(flow)
        before = set(drive.running)
        drive.fill()
        for call_id in set(drive.running) - before:
            call = drive.calls[call_id]
            waiting[call.tenant, call.user] -= 1
        drive.step()
        had = [drive.service(*flow) / weights[flow[0]] for flow in flows]
        for i, one in enumerate(had):
            for j, other in enumerate(had):
                gap = one - other
                lows[i, j] = min(gap, lows.get((i, j), 0.0))
                widest = max(widest, gap - lows[i, j])
    return widest, 2.0 * inflight_bound(SLOTS, min(weights.values())) + head_start * len(continues)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(COUNTED), weight=st.floats(0.5, 4.0), seed=seeds)
def test_backlogged_tenants_stay_within_the_bound(name, weight, seed):
    widest, bound = drift(name, seed, {"greedy": 1.0, "fair": weight}, greed=4)
    assert widest <= bound


@settings(max_examples=15, deadline=None)
@given(head_start=st.floats(0.0, 20.0), seed=seeds)
def test_a_head_start_widens_the_bound_by_itself_and_no_more(head_start, seed):
    weights = {"agents": 1.0, "single": 1.0}
    widest, bound = drift("FairServe", seed, weights, head_start=head_start, continues=("agents",))
    assert widest <= bound
    widest, bound = drift("FairServe", seed, weights, head_start=head_start, continues=("agents", "single"))
    assert widest <= bound


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_backlogged_users_of_one_tenant_stay_within_the_bound(seed):
    widest, bound = drift("FairServe", seed, {"t": 1.0}, users=("v", "w", "x"), greed=4)
    assert widest <= bound


@pytest.mark.parametrize("name", NEGATIVE)
def test_the_bound_is_broken_without_fairness(name):
    """What offers more gets more, without limit."""
    rounds = 1_500 if name == "FCFS" else 100
    widest, bound = drift(name, 7, {"greedy": 1.0, "fair": 3.0}, greed=6, rounds=rounds)
    assert widest > bound


def test_the_bound_is_kept_where_it_is_broken_without_fairness():
    widest, bound = drift("FairServe", 7, {"greedy": 1.0, "fair": 3.0}, greed=6, rounds=1_500)
    assert widest <= bound


def distance(name, seed, calls, weights, stop):
    """Everybody's calls come at once; when part of the work is done, how far each tenant's share is from the
    fluid's, in counter units, and the bound for it.
    """
    drive = Drive(name, make_settings(weights, normalisation=1.0), seed)
    order = [tenant for tenant, count in calls.items() for _ in range(count)]
    drive.rng.shuffle(order)
    for tenant in order:
        drive.offer(tenant, user=drive.rng.choice("uvw"), application=drive.rng.choice(list(PROFILES)))
    wanted = {tenant: drive.demand(tenant) for tenant in weights}
    total = stop * sum(wanted.values())
    while sum(drive.service(tenant) for tenant in weights) < total:
        drive.fill()
        drive.step()
    had = {tenant: drive.service(tenant) for tenant in weights}
    fluid = max_min(wanted, weights, sum(had.values()))
    far = max(abs(had[tenant] - fluid[tenant]) / weights[tenant] for tenant in weights)
    return far, 2.0 * inflight_bound(SLOTS, min(weights.values()))


@settings(max_examples=20, deadline=None)
@given(
    calls=st.fixed_dictionaries({tenant: st.integers(0, 60) for tenant in "abc"}),
    weights=st.fixed_dictionaries({tenant: st.floats(0.5, 4.0) for tenant in "abc"}),
    stop=st.floats(0.1, 0.9),
    seed=seeds,
)
def test_shares_are_those_of_a_max_min_fluid(calls, weights, stop, seed):
    far, bound = distance("FairServe", seed, calls, weights, stop)
    assert far <= bound


@pytest.mark.parametrize("name", NEGATIVE)
def test_without_fairness_shares_are_not_those_of_a_fluid(name):
    calls, weights = {"a": 600, "b": 150, "c": 150}, {"a": 0.5, "b": 4.0, "c": 4.0}
    far, bound = distance(name, 3, calls, weights, 0.4)
    assert far > bound
    far, bound = distance("FairServe", 3, calls, weights, 0.4)
    assert far <= bound


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(COUNTED), others=st.integers(1, 5), seed=seeds)
def test_a_waiting_call_goes_before_anybody_has_had_more_than_the_bound(name, others, seed):
    """No starvation: while a tenant's call waits, no other tenant gets more than 2·U + Δ."""
    weights = {"one": 1.0} | {f"other{n}": 1.0 for n in range(others)}
    drive = Drive(name, make_settings(weights, normalisation=1.0, continuation_head_start=1.0), seed)

    def keep_backlogged():
        for tenant in list(weights)[1:]:
            for _ in range(3):
                drive.offer(tenant, interaction=drive.rng.choice(["i", None]))

    for _ in range(20):
        keep_backlogged()
        drive.fill()
        drive.step()
    queued = drive.offer("one")
    had = {tenant: drive.service(tenant) for tenant in weights}
    bound = 2.0 * inflight_bound(SLOTS, 1.0) + 1.0
    while queued.call_id not in drive.running:
        keep_backlogged()
        drive.fill()
        drive.step()
        assert all(drive.service(tenant) - had[tenant] <= bound for tenant in weights)
        if queued.call_id not in drive.calls:
            break


@settings(max_examples=10, deadline=None)
@given(weight=st.floats(0.2, 5.0), seed=seeds)
def test_an_applications_weight_never_moves_a_tenants_share(weight, seed):
    weights = {"picky": 1.0, "plain": 1.0}
    base = make_settings(weights, normalisation=1.0)
    heavy = {
        "batch": ApplicationSettings("batch", PROFILES["batch"], weight),
        "chat": base.applications["chat"],
    }
    drive = Drive("FairServe", dataclasses.replace(base, applications=MappingProxyType(heavy)), seed)
    for _ in range(120):
        for _ in range(3):
            drive.offer("picky", application="batch")
            drive.offer("plain", application="chat")
        drive.fill()
        drive.step()
    gap = abs(drive.service("picky") - drive.service("plain"))
    assert gap <= inflight_bound(SLOTS, 1.0)
