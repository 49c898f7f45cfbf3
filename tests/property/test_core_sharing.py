"""Water-filling of an application's limit: the level is what its definition says, and shares are kept."""

from hypothesis import given
from hypothesis import strategies as st

from fairserve.core.limits import until
from fairserve.core.settings import Limit
from fairserve.core.sharing import SharedWindow, WaterLevel
from tests.property.core_oracle import max_min

steps = st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.integers(0, 40)), max_size=60)


@given(steps)
def test_the_level_is_the_largest_that_fits(steps):
    water, counts = WaterLevel(), {}
    for grows, key, capacity in steps:
        if grows:
            water.add(key)
            counts[key] = counts.get(key, 0) + 1
        elif counts.get(key):
            water.remove(key)
            counts[key] -= 1
        fitting = [
            level
            for level in range(max(counts.values(), default=0) + 1)
            if sum(min(count, level) for count in counts.values()) <= capacity
        ]
        assert water.level(capacity) == max(fitting)
        assert water.total == sum(counts.values())
        is_above = water.is_above(key, capacity)
        more = counts | {key: counts.get(key, 0) + 1}
        level = max(
            level
            for level in range(max(more.values()) + 1)
            if sum(min(count, level) for count in more.values()) <= capacity
        )
        assert is_above == (more[key] > level)


@given(
    demands=st.dictionaries(st.tuples(st.sampled_from("xy"), st.sampled_from("uvw")), st.integers(0, 30)),
    count=st.integers(1, 40),
)
def test_nobody_is_refused_its_max_min_share_of_an_exhausted_limit(demands, count):
    """All ask in turn until nobody is admitted any more. Some may have more than their share from before the
    limit was exhausted; nobody has less, neither a tenant nor a user of one.
    """
    shared = SharedWindow(Limit(count, 60.0))
    left = dict(demands)
    admitted = dict.fromkeys(demands, 0)
    progress = True
    while progress:
        progress = False
        for tenant, user in demands:
            if left[tenant, user] and not shared.retry_after(tenant, user, 0.0):
                shared.admit(tenant, user, 0.0)
                left[tenant, user] -= 1
                admitted[tenant, user] += 1
                progress = True
    shared.check()
    asked = {t: sum(n for (whose, _), n in demands.items() if whose == t) for t in "xy"}
    fluid = max_min(asked, dict.fromkeys(asked, 1.0), count)
    for tenant in asked:
        got = sum(n for (whose, _), n in admitted.items() if whose == tenant)
        assert got >= fluid[tenant] - 1.0
        users = {who: n for (whose, who), n in demands.items() if whose == tenant}
        fluid_users = max_min(users, dict.fromkeys(users, 1.0), int(fluid[tenant]))
        for who in users:
            assert admitted[tenant, who] >= fluid_users[who] - 1.0
    if sum(demands.values()) <= count:
        assert admitted == demands


@given(at=st.floats(-1e12, 1e12), now=st.floats(-1e12, 1e12))
def test_waiting_until_a_time_reaches_it(at, now):
    wait_s = until(at, now)
    assert wait_s >= 0.0
    assert now + wait_s >= at
    if wait_s:
        assert abs(now + wait_s - at) <= 1e-3


admissions = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from("uv"), st.integers(0, 8), st.booleans()), max_size=40
)


@given(
    admissions=admissions, count=st.integers(1, 8), tenant=st.sampled_from("xyz"), user=st.sampled_from("uvw")
)
def test_a_shared_limit_names_the_first_time_at_which_a_caller_is_admitted(admissions, count, tenant, user):
    """Some are admitted beyond their shares, as before overload. Everything happens at whole seconds, so
    halves of them before the named time see all that may have let the caller in too early.
    """
    shared, now = SharedWindow(Limit(count, 60.0)), 0.0
    for whose, who, pause_s, overloaded in admissions:
        now += pause_s
        if not overloaded or not shared.retry_after(whose, who, now):
            shared.forget(now)
            shared.admit(whose, who, now)
    kept = shared.log(now)
    wait_s = shared.retry_after(tenant, user, now)
    shared.check()
    assert shared.log(now) == [entry for entry in kept if entry[0] < 60.0], "being asked changes nothing"
    for halves in range(int(2.0 * wait_s)):
        at = now + halves / 2.0
        assert shared.retry_after(tenant, user, at) == wait_s - halves / 2.0, f"at {at} of {now}"
    assert shared.retry_after(tenant, user, now + wait_s) == 0.0


def test_far_ahead_a_shared_limit_names_no_time_that_is_too_early():
    shared = SharedWindow(Limit(400, 60.0))
    for n in range(800):
        shared.admit("xyz"[n % 3], "uv"[n % 2], n / 100.0)
    wait_s = shared.retry_after("x", "u", 10.0)
    shared.check()
    assert 60.0 + shared.EXACT / 100.0 < 10.0 + wait_s <= 64.01
    assert shared.retry_after("x", "u", 10.0 + wait_s) == 0.0
