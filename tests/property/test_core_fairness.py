"""The bound: backlogged tenants, and users of one tenant, never drift apart by more than 2·U + Δ.

The engine here is a plain batch: calls run together, one finishes at a time, in random order.
FCFS runs through the same test and must fail it.
"""

import random
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.core import (
    ApplicationSettings,
    Call,
    Outcome,
    Policy,
    Profile,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)

MAX_INPUT, MAX_OUTPUT = 800, 400
PROFILES = {"chat": Profile(100.0, 50.0), "batch": Profile(800.0, 400.0)}
HEAD_START = 1.0


def drift(policy, weights, seed, *, slots=4, rounds=300, calls_of_greedy=1):
    """Runs two always backlogged tenants; the largest difference of service (in counter units) that any
    interval of the run shows, and the bound for it."""
    rng = random.Random(seed)
    tenants = {name: TenantSettings(name, weight) for name, weight in weights.items()}
    applications = {name: ApplicationSettings(name, profile) for name, profile in PROFILES.items()}
    scheduler = Scheduler(
        Settings(
            policy=policy,
            normalisation=1.0,
            continuation_head_start=HEAD_START,
            tenants=MappingProxyType(tenants),
            applications=MappingProxyType(applications),
        ),
        rng,
    )
    ids = iter(range(1, 1_000_000))
    running = {}

    def offer(tenant):
        call = Call(
            next(ids),
            tenant,
            user="u",
            application=rng.choice(list(PROFILES)),
            input_tokens=rng.randint(1, MAX_INPUT),
            interaction=rng.choice([None, "i"]),
        )
        scheduler.enqueue(call, 0.0)

    given_service = dict.fromkeys(weights, 0.0)
    low = high = 0.0
    widest = 0.0
    for _ in range(rounds):
        for name in weights:
            want = 30 * (calls_of_greedy if name == "greedy" else 1)
            while scheduler.backlog.tenant(name).queued < want:
                offer(name)
        while scheduler.running < slots:
            dispatched = scheduler.dispatch(0.0)
            running[dispatched.call_id] = scheduler.running_calls()[dispatched.call_id].ticket.call
        call = running.pop(rng.choice(list(running)))
        usage = Usage(call.input_tokens, rng.randint(1, MAX_OUTPUT))
        settled = scheduler.finish(call.call_id, usage, Outcome.COMPLETED, 0.0)
        given_service[call.tenant] += settled.service / weights[call.tenant]
        first, second = given_service.values()
        low, high = min(low, first - second), max(high, first - second)
        widest = high - low
    # One engine holds at most `slots` calls: M = slots · MAX_OUTPUT tokens of output and as many inputs.
    worst = max(
        (MAX_INPUT + 2.0 * MAX_OUTPUT) / (p.input_tokens + 2.0 * p.output_tokens) for p in PROFILES.values()
    )
    unit = slots * worst / min(weights.values())
    # `widest` compares two points in time, each within the bound of its own.
    return widest, 2 * (2 * unit + HEAD_START)


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from([Policy.FAIRSERVE]),
    weight=st.floats(0.5, 4.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_backlogged_tenants_stay_within_the_bound(policy, weight, seed):
    widest, bound = drift(policy, {"greedy": 1.0, "fair": weight}, seed, calls_of_greedy=4)
    assert widest <= bound


def test_fcfs_breaks_the_bound():
    """The negative control: in arrival order the tenant that offers more gets more, without limit."""
    widest, bound = drift(Policy.FCFS, {"greedy": 1.0, "fair": 3.0}, seed=7, rounds=1_500, calls_of_greedy=4)
    assert widest > bound


def test_fairserve_keeps_the_bound_where_fcfs_breaks_it():
    widest, bound = drift(
        Policy.FAIRSERVE, {"greedy": 1.0, "fair": 3.0}, seed=7, rounds=1_500, calls_of_greedy=4
    )
    assert widest <= bound
