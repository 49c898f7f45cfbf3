"""Profiles that follow their traffic, and what one who wants to shape them achieves."""

import dataclasses
import json
from types import MappingProxyType

import pytest

from fairserve.core import ApplicationSettings, Learning, Profile, Scheduler

LEARNS = {"learning": Learning(min_samples=20, max_factor_per_hour=2.0)}


def serve(rig, count, tenant="a", user="u", now=0.0, output_tokens=50, **sizes):
    for _ in range(count):
        rig.scheduler.enqueue(rig.call(tenant, user, **sizes), now)
        dispatched = rig.scheduler.dispatch(now)
        rig.finish(dispatched.call_id, now=now, output_tokens=output_tokens, **sizes)


def hours(rig, count, start=0.0):
    """Let an hour of sweeps and of three users' calls pass, `count` times."""
    for minute in range(60 * count + 1):
        rig.scheduler.expire(start + 60.0 * minute)
        for user in "uvw":
            serve(rig, 1, user=user, now=start + 60.0 * minute, output_tokens=400, input_tokens=100)


def test_a_static_profile_stays(make_rig):
    rig = make_rig()
    hours(rig, 2)
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)


def test_a_learned_profile_follows_within_its_bound(make_rig):
    rig = make_rig(application=LEARNS)
    hours(rig, 1)
    assert 90.0 <= rig.scheduler.profile("chat").output_tokens <= 100.0, "about twice as much after an hour"
    hours(rig, 4, start=3_600.0)
    learned = rig.scheduler.profile("chat")
    assert learned.output_tokens == pytest.approx(400.0)
    assert learned.input_tokens == pytest.approx(100.0)
    assert rig.scheduler.application_settings("chat").profile == Profile(100.0, 50.0), "settings are settings"


def test_costs_relate_to_what_was_learned(make_rig):
    rig = make_rig(application=LEARNS, normalisation=1.0)
    hours(rig, 5)
    rig.enqueue()
    settled = rig.finish(rig.dispatch().call_id, input_tokens=100, output_tokens=400)
    assert settled.service == pytest.approx(1.0, rel=0.01)


def test_too_few_samples_move_nothing(make_rig):
    rig = make_rig(application=LEARNS)
    for user, calls in (("u", 7), ("v", 7), ("w", 5)):
        serve(rig, calls, user=user, output_tokens=400)
    rig.scheduler.expire(0.0)
    rig.scheduler.expire(60.0)
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)
    serve(rig, 1, output_tokens=400)
    rig.scheduler.expire(120.0)
    assert rig.scheduler.profile("chat").output_tokens > 50.0


@pytest.mark.parametrize("users", ["u", "uv"])
def test_too_few_users_move_nothing(make_rig, users):
    rig = make_rig(application=LEARNS)
    for minute in range(60):
        for user in users:
            serve(rig, 1, user=user, now=60.0 * minute, output_tokens=400)
        rig.scheduler.expire(60.0 * minute)
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)


def test_a_jump_of_the_clock_moves_a_profile_no_further_than_a_minute(make_rig):
    rig = make_rig(application=LEARNS)
    for user in "uvw":
        serve(rig, 50, user=user, output_tokens=4_000)
    for now in (0.0, 1e9, 5.0, -1e9):
        rig.scheduler.expire(now)
    assert 50.0 < rig.scheduler.profile("chat").output_tokens <= 50.0 * 2.0 ** (1 / 60)


def test_after_an_idle_hour_no_hour_changes_a_profile_by_more_than_its_factor(make_rig):
    rig = make_rig(application=LEARNS)
    for user in "uvw":
        serve(rig, 20, user=user)
    for now in (0.0, 60.0, 3_600.0):
        rig.scheduler.expire(now)
    history = [(3_600.0, rig.scheduler.profile("chat").output_tokens)]
    for now in range(3_610, 11_000, 10):
        for user in "uvw":
            serve(rig, 3, user=user, now=float(now), output_tokens=100_000)
        rig.scheduler.expire(float(now))
        history.append((float(now), rig.scheduler.profile("chat").output_tokens))
    for start, before in history:
        within = [value for now, value in history if start <= now <= start + 3_600.0]
        assert max(within) <= before * 2.0 * (1.0 + 1e-9)
    assert history[-1][1] > 3.9 * history[0][1], "and it uses what it may"


def test_one_user_with_many_calls_shapes_nothing(make_rig):
    rig = make_rig(application=LEARNS)
    for user in "vwxyz":
        serve(rig, 20, user=user)
    serve(rig, 500, user="loud", output_tokens=10_000)
    for hour in range(5):
        rig.scheduler.expire(3_600.0 * hour)
        serve(rig, 100, user="loud", now=3_600.0 * hour, output_tokens=10_000)
    assert rig.scheduler.profile("chat").output_tokens == pytest.approx(50.0)


def test_one_tenant_with_many_users_shapes_nothing(make_rig):
    tenants = MappingProxyType(
        {name: dataclasses.replace(make_rig().scheduler.tenant_settings("a"), name=name) for name in "abc"}
    )
    rig = make_rig(application=LEARNS, tenants=tenants)
    for hour in range(5):
        now = 3_600.0 * hour
        serve(rig, 5, "b", now=now)
        serve(rig, 5, "c", now=now)
        for user in range(100):
            serve(rig, 2, "a", user=f"sybil-{user}", now=now, output_tokens=10_000)
        rig.scheduler.expire(now)
    assert rig.scheduler.profile("chat").output_tokens == pytest.approx(50.0)


@pytest.mark.parametrize("output_tokens", [1, 10_000])
@pytest.mark.parametrize("others", ["v", "vw", "vwx", "vwxyz"])
def test_one_user_among_few_shapes_nothing(make_rig, others, output_tokens):
    rig = make_rig(application=LEARNS)
    for minute in range(180):
        for user in others:
            serve(rig, 10, user=user, now=60.0 * minute)
        serve(rig, 1, user="loud", now=60.0 * minute, output_tokens=output_tokens)
        rig.scheduler.expire(60.0 * minute)
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)


@pytest.mark.parametrize("output_tokens", [1, 10_000])
def test_one_of_two_tenants_shapes_nothing(make_rig, output_tokens):
    """The mean of two would follow whoever is further away."""
    rig = make_rig(application=LEARNS)
    for minute in range(180):
        serve(rig, 10, "b", now=60.0 * minute)
        for user in range(5):
            serve(rig, 1, "a", user=f"sybil-{user}", now=60.0 * minute, output_tokens=output_tokens)
        rig.scheduler.expire(60.0 * minute)
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)


def test_two_tenants_that_agree_move_a_profile_as_far_as_both_say(make_rig):
    rig = make_rig(application={"learning": Learning(min_samples=20, max_factor_per_hour=1e3)})
    for minute in range(180):
        serve(rig, 5, "a", user="u", now=60.0 * minute, output_tokens=200)
        for user in "vw":
            serve(rig, 5, "b", user=user, now=60.0 * minute, output_tokens=400)
        rig.scheduler.expire(60.0 * minute)
    assert rig.scheduler.profile("chat").output_tokens == pytest.approx(200.0)


def test_after_a_restart_a_stranger_shapes_nothing(make_rig):
    """The profile is kept, whose traffic it follows is not: neither are the samples."""
    rig = make_rig(application=LEARNS)
    hours(rig, 5)
    learned = rig.scheduler.profile("chat")
    restarted = Scheduler(rig.scheduler.settings)
    restarted.restore(json.loads(json.dumps(rig.scheduler.snapshot(18_000.0))), 0.0)
    rig.scheduler = restarted
    assert restarted.profile("chat") == learned != Profile(100.0, 50.0)
    for user in ("stranger", "another", "third"):
        serve(rig, 1, user=user, output_tokens=10_000)
    for now in (0.0, 600.0):
        restarted.expire(now)
    assert restarted.profile("chat") == learned


def test_learning_can_be_switched_on_and_off(make_rig):
    rig = make_rig(application=LEARNS)
    hours(rig, 2)
    learned = rig.scheduler.profile("chat")
    chat = ApplicationSettings("chat", Profile(100.0, 50.0), weight=2.0, **LEARNS)
    changed = MappingProxyType({"chat": chat})
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, applications=changed))
    assert rig.scheduler.profile("chat") == learned, "another change of settings doesn't unlearn"
    static = MappingProxyType({"chat": dataclasses.replace(chat, learning=None)})
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, applications=static))
    assert rig.scheduler.profile("chat") == Profile(100.0, 50.0)
