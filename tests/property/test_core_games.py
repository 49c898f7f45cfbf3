"""What those who game the scheduler gain: splitting, mislabelling, cancelling. FCFS shows that there is
something to gain.
"""

from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.core import ApplicationSettings, Outcome, Profile, Scheduler, Settings, TenantSettings, Usage
from fairserve.core.calls import Call
from tests.property.core_drive import TYPICAL, Drive, inflight_bound, make_settings

SLOTS = 4
seeds = st.integers(0, 2**32 - 1)


def split(name, seed, users, rounds=150):
    """Service of a tenant that calls under many names, and of one that doesn't; each name offers as much."""
    drive = Drive(name, make_settings({"sybil": 1.0, "honest": 1.0}, normalisation=1.0), seed)
    for _ in range(rounds):
        for user in range(users):
            if drive.rng.random() < 2.0 / users * SLOTS:
                drive.offer("sybil", user=str(user))
        for _ in range(2):
            drive.offer("honest")
        drive.fill()
        drive.step()
    return drive.service("sybil"), drive.service("honest")


@settings(max_examples=15, deadline=None)
@given(users=st.integers(1, 100), seed=seeds)
def test_splitting_a_user_gains_nothing_above_the_tenants_share(users, seed):
    sybil, honest = split("FairServe", seed, users)
    assert sybil - honest <= inflight_bound(SLOTS, 1.0)


def estimates(calls):
    """What is expected of an honest tenant's next body, after so many calls by (tenant, bytes, tokens)."""
    scheduler = Scheduler(make_settings({"padder": 1.0, "honest": 1.0}))
    for number, (tenant, size, tokens) in enumerate(calls):
        scheduler.enqueue(Call(number, tenant, "u", "chat", 100, body_bytes=size), float(number))
        dispatched = scheduler.dispatch(float(number))
        scheduler.finish(dispatched.call_id, Usage(tokens, 1), Outcome.COMPLETED, float(number))
    return [scheduler.estimate_input("honest", "chat", size) for size in (1, 1_000, 1_000_000)]


bodies = st.tuples(st.integers(1, 10**8), st.integers(1, 10**6))


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.tuples(st.sampled_from(["padder", "honest"]), bodies), max_size=30))
def test_anothers_padded_bodies_move_no_estimate(calls):
    calls = [(tenant, *body) for tenant, body in calls]
    honest = [call for call in calls if call[0] == "honest"]
    assert estimates(calls) == estimates(honest)


@settings(max_examples=50, deadline=None)
@given(own=st.lists(bodies, min_size=1, max_size=30))
def test_ones_own_padded_bodies_move_an_estimate_to_a_16th_of_their_size_at_most(own):
    least = [max(1, round(size / 16)) for size in (1, 1_000, 1_000_000)]
    for estimate, bound in zip(estimates([("honest", *body) for body in own]), least, strict=True):
        assert estimate >= bound


def test_splitting_gains_where_flows_are_not_in_tenants():
    """The control: round robin over flows pays for every name."""
    sybil, honest = split("DRR", 1, 100)
    assert sybil > 2.0 * honest


def mislabelled(share, heavy, calls=400):
    """Priced tokens served to one who calls everything heavy, and to one who doesn't, of the same calls."""
    applications = {
        "small": ApplicationSettings("small", Profile(100.0, 50.0)),
        "heavy": ApplicationSettings("heavy", Profile(100.0 * heavy, 50.0 * heavy)),
    }
    chosen = Settings(
        normalisation=share,
        continuation_head_start=0.0,
        tenants=MappingProxyType({name: TenantSettings(name) for name in ("liar", "honest")}),
        applications=MappingProxyType(applications),
    )
    scheduler = Scheduler(chosen)
    had = {"liar": 0.0, "honest": 0.0}
    for n in range(calls):
        scheduler.enqueue(Call(2 * n, "liar", "u", "heavy", 100), 0.0)
        scheduler.enqueue(Call(2 * n + 1, "honest", "u", "small", 100), 0.0)
    for _ in range(calls):
        dispatched = scheduler.dispatch(0.0)
        settled = scheduler.finish(dispatched.call_id, Usage(100, 50), Outcome.COMPLETED, 0.0)
        had[settled.tenant] += 100 + 2 * 50
    return had


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0, 0.95), heavy=st.floats(1.0, 1e4))
def test_mislabelling_gains_at_most_one_over_one_minus_lambda(share, heavy):
    had = mislabelled(share, heavy)
    # All calls cost the same, so w̄ is what an honest one costs. A few calls of slack: the last turn may be
    # the liar's, and w̄ is a guess at first.
    assert had["liar"] <= had["honest"] / (1.0 - share) + 10 * 200


def test_mislabelling_gains_without_limit_where_lambda_is_one():
    had = mislabelled(1.0, 1e4)
    assert had["liar"] > 50 * had["honest"]


def computed(seed, *, charges_cancelled=True, rounds=200):
    """Priced tokens that the engine computed for one who cancels half way and for one who doesn't, in typical
    calls.
    """
    drive = Drive("FairServe", make_settings({"canceller": 1.0, "honest": 1.0}, normalisation=1.0), seed)
    drive.charges_cancelled = charges_cancelled
    work = {"canceller": 0.0, "honest": 0.0}
    ended = drive.end

    def end(call_id, outcome):
        call, output = drive.calls[call_id], drive.running[call_id][0]
        work[call.tenant] += (call.input_tokens + 2.0 * output) / TYPICAL["chat"]
        ended(call_id, outcome)

    drive.end = end
    for _ in range(rounds):
        for tenant in work:
            for _ in range(6):
                drive.offer(tenant)
        drive.fill()
        drive.step(cancels=("canceller",))
    return work["canceller"] - work["honest"]


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_a_canceller_gains_nothing(seed):
    assert computed(seed) <= 2.0 * inflight_bound(SLOTS, 1.0)


def test_a_canceller_gains_where_cancelled_calls_are_not_charged():
    assert computed(3, charges_cancelled=False) > 2.0 * inflight_bound(SLOTS, 1.0)
