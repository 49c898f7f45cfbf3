"""Numbers that can't be, and clocks that go wrong: a typed error or a decision, and intact invariants."""

import dataclasses
import math
from types import MappingProxyType

import pytest

from fairserve.core import (
    ApplicationSettings,
    CallError,
    InteractionRules,
    Learning,
    Limit,
    Outcome,
    Profile,
    QueueBounds,
    Queued,
    SettingsError,
    TenantSettings,
    TimeError,
    TokenWeights,
    TotalBounds,
    Usage,
)

NEVER = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-7, 1e7, *NEVER])
def test_a_weight_that_would_corrupt_a_counter_is_refused_by_name(make_rig, weight):
    rig = make_rig()
    before = rig.scheduler.settings
    for changed in (
        dataclasses.replace(before, tenants=MappingProxyType({"a": TenantSettings("a", weight)})),
        dataclasses.replace(
            before,
            applications=MappingProxyType({"a": ApplicationSettings("a", Profile(1.0, 1.0), weight)}),
        ),
    ):
        with pytest.raises(SettingsError, match=r"(tenant|application) a: weight is .* must be within"):
            rig.scheduler.configure(changed)
    assert rig.scheduler.settings is before
    rig.scheduler.check()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalisation": math.nan}, "normalisation"),
        ({"normalisation": 1.1}, "normalisation"),
        ({"continuation_head_start": math.inf}, "continuation_head_start"),
        ({"tokens": TokenWeights(input=0.0)}, "tokens.input"),
        ({"tokens": TokenWeights(cached=-0.1)}, "tokens.cached"),
        ({"queue": TotalBounds(max_requests=0)}, "queue.max_requests"),
        ({"default_tenant": TenantSettings("_default", math.nan)}, "default tenant: weight"),
        ({"default_tenant": TenantSettings("d", queue=QueueBounds(max_wait_s=math.nan))}, "max_wait_s"),
        (
            {"default_tenant": TenantSettings("d", queue=QueueBounds(max_bytes_per_user=0))},
            "max_bytes_per_user",
        ),
        ({"default_tenant": TenantSettings("d", per_user=Limit(0, 1.0))}, "per_user.count"),
        ({"default_tenant": TenantSettings("d", total=Limit(1, 0.0))}, "total.window_s"),
        (
            {"default_application": ApplicationSettings("x", Profile(math.nan, 1.0))},
            "x: profile.input_tokens",
        ),
        (
            {
                "default_application": ApplicationSettings(
                    "x", Profile(1.0, 1.0), interaction=InteractionRules(idle_timeout_s=-1.0)
                )
            },
            "x: interaction.idle_timeout_s",
        ),
        (
            {"default_application": ApplicationSettings("x", Profile(1.0, 1.0), learning=Learning(0))},
            "x: learning.min_samples",
        ),
    ],
)
def test_settings_that_cannot_be_scheduled_by_name_object_and_field(make_rig, changes, named):
    rig = make_rig()
    with pytest.raises(SettingsError, match=named):
        rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, **changes))
    rig.enqueue()
    rig.serve()


@pytest.mark.parametrize("weight", [1e-6, 1e6])
def test_extreme_weights_keep_every_invariant(make_rig, weight):
    rig = make_rig(tenant_a={"weight": weight}, normalisation=1.0)
    for _ in range(20):
        rig.enqueue("a")
        rig.enqueue("b")
    for _ in range(40):
        rig.serve()
    order = rig.scheduler.tenant("a").service, rig.scheduler.tenant("b").service
    assert order[0] == order[1] > 0


@pytest.mark.parametrize("now", NEVER)
def test_a_time_that_is_none_is_an_error_and_changes_nothing(make_rig, now):
    rig = make_rig()
    queued = rig.enqueue()
    rig.enqueue()
    running = rig.dispatch()
    before = rig.scheduler.snapshot(0.0)
    with pytest.raises(TimeError):
        rig.scheduler.enqueue(rig.call(), now)
    with pytest.raises(TimeError):
        rig.scheduler.dispatch(now)
    with pytest.raises(TimeError):
        rig.scheduler.finish(running.call_id, Usage(1, 1), Outcome.COMPLETED, now)
    with pytest.raises(TimeError):
        rig.scheduler.cancel(queued.call_id, now)
    with pytest.raises(TimeError):
        rig.scheduler.expire(now)
    rig.scheduler.check()
    assert rig.scheduler.snapshot(0.0) == before
    assert (rig.scheduler.queued, rig.scheduler.running) == (1, 1)


@pytest.mark.parametrize(
    "size",
    [
        {"input_tokens": -1},
        {"input_tokens": math.nan},
        {"input_tokens": 10**400},
        {"system_tokens": -1},
        {"body_bytes": -1},
        {"body_bytes": math.inf},
    ],
)
def test_a_call_of_a_size_that_cannot_be_is_an_error(make_rig, wrong_type, size):
    rig = make_rig()
    whole = all(isinstance(tokens, int) for tokens in size.values())
    with pytest.raises(CallError if whole else wrong_type):
        rig.scheduler.enqueue(rig.call(**size), 0.0)
    assert rig.scheduler.backlog.tenants == {}


@pytest.mark.parametrize("most", [0, -5, 10**30])
def test_a_clients_own_cap_is_only_a_cap(make_rig, most):
    rig = make_rig()
    rig.enqueue(max_output_tokens=most)
    assert rig.dispatch().predicted_output_tokens == min(50, max(0, most))


@pytest.mark.parametrize("counts", [(-9, -9, -9), (math.nan, math.nan), (10**400, 10**400)])
def test_usage_that_cannot_be_ends_the_call_all_the_same(make_rig, make_usage, counts):
    rig = make_rig()
    rig.enqueue()
    usage = make_usage(*counts) or Usage(0, 0)
    settled = rig.scheduler.finish(rig.dispatch().call_id, usage, Outcome.COMPLETED, 0.0)
    rig.scheduler.check()
    assert 0 <= settled.service < 10**12
    assert rig.scheduler.running == rig.scheduler.inflight_tokens == 0


def test_progress_never_goes_back(make_rig):
    rig = make_rig()
    rig.enqueue()
    dispatched = rig.dispatch()
    rig.scheduler.progress(dispatched.call_id, 500)
    for so_far in (100, -1, 10**15):
        rig.scheduler.progress(dispatched.call_id, so_far)
    rig.scheduler.check()
    assert rig.scheduler.inflight_tokens == 100 + 500


def test_a_clock_that_jumps_expires_what_waits_and_nothing_else(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_wait_s=60.0)})
    rig.enqueue(now=1e9)
    late = rig.enqueue(now=5.0)
    assert late.begins_interaction
    assert rig.scheduler.oldest_wait(5.0) == 0.0, "no wait is negative"
    assert rig.dispatch(now=3.0).wait_s == 0.0
    assert rig.scheduler.expire(50.0) == ()
    assert [e.call_id for e in rig.scheduler.expire(1e12)] == [late.call_id]
    rig.scheduler.check()
    assert isinstance(rig.enqueue(now=-1e12), Queued), "a clock may start anywhere"
    rig.serve(now=-1e12)


def test_a_clock_that_jumps_ahead_and_comes_back_stops_nothing(make_rig):
    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0), "queue": QueueBounds(max_wait_s=10.0)})
    rig.scheduler.set_armed(True)
    rig.enqueue(user="early", now=1e9)
    rig.enqueue(user="waits", now=100.0)
    assert rig.scheduler.oldest_wait(105.0) == pytest.approx(5.0)
    assert rig.scheduler.expire(109.0) == ()
    assert len(rig.scheduler.expire(110.0)) == 2, "waiting goes on at the clock's rate"
    refused = rig.enqueue(user="early", now=130.0)
    assert refused.refusal.retry_after_s == pytest.approx(30.0), "and so do windows"
    assert isinstance(rig.enqueue(user="early", now=161.0), Queued)


def test_times_that_are_told_late_do_not_speed_time_up(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_wait_s=10.0)})
    for step in range(100):
        rig.enqueue(now=step * 0.01)
        rig.scheduler.expire(step * 0.01 - 0.005)
    assert rig.scheduler.expire(9.99) == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"input_tokens": 10.0},
        {"input_tokens": "10"},
        {"body_bytes": 1.5},
        {"max_output_tokens": math.nan},
        {"max_output_tokens": "5"},
        {"interaction": 5},
        {"user": 7},
    ],
)
def test_a_call_of_the_wrong_type_is_an_error_and_changes_nothing(make_rig, wrong_type, fields):
    rig = make_rig()
    with pytest.raises(wrong_type):
        rig.enqueue(**fields)
    rig.scheduler.check()
    assert (rig.scheduler.queued, len(rig.scheduler.backlog.tenants)) == (0, 0)


@pytest.mark.parametrize("counts", [(10.5, 5.0, 0.5), (10.0, 5.0)])
def test_fractions_of_tokens_are_cut(make_rig, make_usage, counts):
    rig = make_rig()
    rig.enqueue()
    usage = make_usage(*counts) or Usage(10, 5)
    settled = rig.scheduler.finish(rig.dispatch().call_id, usage, Outcome.COMPLETED, 0.0)
    assert settled.usage == Usage(10, 5)
    rig.scheduler.check()
