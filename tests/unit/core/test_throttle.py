"""OIT: who is refused, when, and for how long."""

import dataclasses
from types import MappingProxyType

import pytest

from fairserve.core import (
    ApplicationSettings,
    InteractionRules,
    Limit,
    Outcome,
    Profile,
    QueueBounds,
    Queued,
    Refusal,
    RefusalReason,
    Refused,
    TenantSettings,
    ThrottlingMode,
)

LIMIT = {"per_user": Limit(2, 60.0)}


def begin(rig, n, now=0.0, **kwargs):
    return [rig.enqueue(now=now, **kwargs) for _ in range(n)]


def test_nobody_is_refused_before_overload_whatever_the_rate(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    assert all(isinstance(d, Queued) for d in begin(rig, 500))


def test_over_the_limit_while_overloaded_is_refused_with_an_exact_retry_after(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    begin(rig, 1, now=0.0)
    begin(rig, 1, now=10.0)
    rig.scheduler.set_armed(True)
    refused = rig.enqueue(now=15.0)
    assert isinstance(refused, Refused)
    assert refused.refusal.reason is RefusalReason.USER_LIMIT
    assert refused.refusal.retry_after_s == pytest.approx(45.0)
    assert (refused.refusal.limit, refused.refusal.window_s) == (2, 60.0)
    assert isinstance(rig.enqueue(now=59.9), Refused)
    assert isinstance(rig.enqueue(now=60.0), Queued), "a retry after Retry-After is admitted"


def test_refused_interactions_are_not_counted(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    rig.scheduler.set_armed(True)
    begin(rig, 2)
    assert all(isinstance(d, Refused) for d in begin(rig, 50, now=30.0))
    assert isinstance(rig.enqueue(now=60.0), Queued)


def test_what_was_admitted_before_overload_counts_from_then_on(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    begin(rig, 100, now=0.0)
    rig.scheduler.set_armed(True)
    assert isinstance(rig.enqueue(now=1.0), Refused)


def test_a_user_within_limits_and_other_tenants_see_no_refusal(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    rig.scheduler.set_armed(True)
    begin(rig, 5, user="flooder")
    assert isinstance(rig.enqueue(user="quiet"), Queued)
    assert isinstance(rig.enqueue("b"), Queued)


def test_calls_of_an_admitted_interaction_always_pass(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    rig.enqueue(interaction="agent")
    rig.scheduler.set_armed(True)
    begin(rig, 5)
    continued = begin(rig, 30, interaction="agent", now=20.0)
    assert all(isinstance(d, Queued) and not d.begins_interaction for d in continued)


def test_a_forged_id_continues_nothing(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    rig.scheduler.set_armed(True)
    begin(rig, 2)
    assert isinstance(rig.enqueue(interaction="never-admitted"), Refused)
    rig.enqueue("b", interaction="of-b")
    assert isinstance(rig.enqueue("a", interaction="of-b"), Refused), "another tenant's id is no ticket"


@pytest.mark.parametrize(
    ("rules", "calls", "now"),
    [
        (InteractionRules(max_calls=3), 3, 0.0),
        (InteractionRules(idle_timeout_s=5.0), 1, 5.1),
        (InteractionRules(idle_timeout_s=100.0, max_duration_s=50.0), 1, 50.1),
    ],
)
def test_past_its_rules_an_interaction_begins_anew_and_meets_the_limit(make_rig, rules, calls, now):
    rig = make_rig(tenant_a={"per_user": Limit(1, 1_000.0)}, application={"interaction": rules})
    rig.scheduler.set_armed(True)
    for _ in range(calls):
        assert isinstance(rig.enqueue(interaction="endless"), Queued)
        rig.serve()
    assert isinstance(rig.enqueue(interaction="endless", now=now), Refused)


def test_a_running_call_keeps_its_interaction_open(make_rig):
    rig = make_rig(application={"interaction": InteractionRules(idle_timeout_s=5.0)})
    rig.enqueue(interaction="slow")
    rig.dispatch()
    assert not rig.enqueue(interaction="slow", now=100.0).begins_interaction


def test_a_call_that_makes_room_for_its_own_interaction_leaves_it_open(make_rig):
    queue = QueueBounds(max_requests=1)
    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0), "queue": queue})
    rig.scheduler.set_armed(True)
    begun = rig.enqueue(interaction="x")
    continued = rig.enqueue(interaction="x", now=1.0)
    assert [evicted.call_id for evicted in continued.evicted] == [begun.call_id]
    rig.serve(now=2.0)
    assert not rig.enqueue(interaction="x", now=3.0).begins_interaction


@pytest.mark.parametrize("end", ["fails", "is cancelled", "waits too long"])
def test_an_admitted_interaction_that_got_nothing_may_be_tried_again(make_rig, end):
    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0), "queue": QueueBounds(max_wait_s=5.0)})
    rig.scheduler.set_armed(True)
    call_id = rig.enqueue(interaction="x").call_id
    if end == "fails":
        rig.dispatch()
        rig.finish(call_id, input_tokens=0, output_tokens=0, outcome=Outcome.FAILED)
    elif end == "is cancelled":
        assert rig.scheduler.cancel(call_id, 0.0)
    else:
        assert len(rig.scheduler.expire(6.0)) == 1
    rig.scheduler.check()
    assert not rig.enqueue(interaction="x", now=7.0).begins_interaction, "it was admitted and counted"


@pytest.mark.parametrize(
    ("before", "after"), [(("chat", "agent"), ("chat",)), (("chat",), ("chat", "agent"))]
)
def test_an_open_interaction_outlives_its_application_and_is_found_by_a_new_one(make_rig, before, after):
    def applications(names):
        return MappingProxyType({name: ApplicationSettings(name, Profile(100.0, 50.0)) for name in names})

    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0)}, applications=applications(before))
    rig.scheduler.set_armed(True)
    rig.enqueue(application="agent", interaction="x")
    rig.serve(now=1.0)
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, applications=applications(after)))
    assert not rig.enqueue(application="agent", interaction="x", now=2.0).begins_interaction
    assert isinstance(rig.enqueue(application="chat", interaction="x", now=3.0), Refused), "not its own"


def test_the_most_restrictive_limit_wins(make_rig):
    rig = make_rig(
        tenant_a={"per_user": Limit(100, 60.0), "total": Limit(3, 600.0)},
        application={"per_user": Limit(2, 60.0), "per_tenant": Limit(50, 60.0)},
    )
    rig.scheduler.set_armed(True)
    begin(rig, 2)
    assert rig.enqueue().refusal.reason is RefusalReason.USER_LIMIT
    assert isinstance(rig.enqueue(user="v"), Queued)
    refused = rig.enqueue(user="w")
    assert refused.refusal.reason is RefusalReason.TENANT_LIMIT
    both = rig.enqueue()
    assert both.refusal.reason is RefusalReason.TENANT_LIMIT
    assert both.refusal.retry_after_s == pytest.approx(600.0), "a shorter wait would meet the other limit"


def test_an_applications_limit_on_a_tenant(make_rig):
    rig = make_rig(application={"per_tenant": Limit(1, 60.0)})
    rig.scheduler.set_armed(True)
    rig.enqueue(user="u")
    assert rig.enqueue(user="v").refusal.reason is RefusalReason.APPLICATION_LIMIT
    assert isinstance(rig.enqueue("b"), Queued)


def test_shadow_refuses_nothing_and_reports_what_it_would_have(make_rig):
    rig = make_rig(tenant_a=LIMIT, mode=ThrottlingMode.SHADOW)
    rig.scheduler.set_armed(True)
    decisions = begin(rig, 5)
    assert [d.would_refuse is not None for d in decisions] == [False, False, True, True, True]
    assert decisions[-1].would_refuse.reason is RefusalReason.USER_LIMIT


def test_allowance_shows_the_tightest_limit(make_rig):
    rig = make_rig(tenant_a={"per_user": Limit(5, 60.0), "total": Limit(3, 60.0)})
    assert rig.scheduler.allowance("b", "u", "chat", 0.0) is None
    begin(rig, 1, now=10.0)
    allowance = rig.scheduler.allowance("a", "u", "chat", 20.0)
    assert (allowance.limit, allowance.remaining, allowance.reset_s) == (3, 2, 50.0)


def test_a_clock_that_goes_back_breaks_nothing(make_rig):
    rig = make_rig(tenant_a=LIMIT)
    rig.scheduler.set_armed(True)
    begin(rig, 1, now=100.0)
    begin(rig, 1, now=40.0)
    refused = rig.enqueue(now=50.0)
    assert isinstance(refused, Refused)
    assert isinstance(rig.enqueue(now=50.0 + refused.refusal.retry_after_s), Queued)


def test_an_exhausted_application_refuses_only_those_above_an_equal_share(make_rig):
    rig = make_rig(application={"total": Limit(10, 60.0)})
    begin(rig, 9, now=0.0, user="greedy")
    begin(rig, 1, now=5.0, user="quiet")
    rig.scheduler.set_armed(True)
    refused = rig.enqueue(user="greedy", now=10.0)
    assert refused.refusal.reason is RefusalReason.APPLICATION_LIMIT
    assert refused.refusal.retry_after_s == pytest.approx(50.0)
    admitted = [isinstance(rig.enqueue(user="quiet", now=10.0), Queued) for _ in range(6)]
    assert admitted == [True] * 4 + [False] * 2, "up to half of it, whatever the other took before"
    assert isinstance(rig.enqueue(user="greedy", now=60.0), Queued)


def test_a_tenant_of_many_names_has_one_tenants_share_of_an_application(make_rig):
    rig = make_rig(application={"total": Limit(10, 60.0)})
    for n in range(10):
        rig.enqueue("a", user=f"sybil{n}")
    rig.scheduler.set_armed(True)
    assert isinstance(rig.enqueue("a", user="sybil-another"), Refused)
    assert all(isinstance(rig.enqueue("b", user="honest"), Queued) for _ in range(5))
    assert isinstance(rig.enqueue("b", user="honest"), Refused)


def test_before_it_is_exhausted_an_application_admits_anybody(make_rig):
    rig = make_rig(application={"total": Limit(10, 60.0)})
    rig.scheduler.set_armed(True)
    assert all(isinstance(d, Queued) for d in begin(rig, 10, user="alone"))
    assert isinstance(rig.enqueue(user="alone"), Refused)
    assert rig.scheduler.allowance("a", "alone", "chat", 0.0).remaining == 0
    assert rig.scheduler.allowance("b", "other", "chat", 0.0).remaining == 1


def test_a_changed_limit_keeps_what_was_counted(make_rig):
    rig = make_rig(tenant_a=LIMIT, application={"total": Limit(50, 60.0)})
    begin(rig, 5)
    rig.scheduler.set_armed(True)
    old = rig.scheduler.settings
    tenants = MappingProxyType({"a": TenantSettings("a", per_user=Limit(3, 60.0))})
    rig.scheduler.configure(dataclasses.replace(old, tenants=tenants))
    assert isinstance(rig.enqueue(), Queued), "a window remembers as many as its limit counts: two"
    assert isinstance(rig.enqueue(), Refused)
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, tenants=MappingProxyType({})))
    assert isinstance(rig.enqueue(), Queued)


def test_the_end_of_a_call_is_traffic(make_rig):
    rig = make_rig(application={"interaction": InteractionRules(idle_timeout_s=5.0)})
    rig.enqueue(interaction="slow")
    dispatched = rig.dispatch()
    rig.finish(dispatched.call_id, now=100.0)
    assert not rig.enqueue(interaction="slow", now=104.0).begins_interaction


def leaves(rig, how, call_id, now=2.0):
    if how == "cancelled":
        assert rig.scheduler.cancel(call_id, now)
    else:
        assert [evicted.call_id for evicted in rig.scheduler.expire(now)] == [call_id]
    rig.scheduler.check()


@pytest.mark.parametrize("how", ["cancelled", "evicted"])
def test_a_call_that_left_the_queue_keeps_no_interaction_open(make_rig, how):
    rules = {"interaction": InteractionRules(idle_timeout_s=5.0)}
    rig = make_rig(tenant_a={"queue": QueueBounds(max_wait_s=1.0)}, application=rules)
    rig.enqueue(interaction="i")
    rig.serve()
    leaves(rig, how, rig.enqueue(interaction="i").call_id)
    assert not rig.enqueue(interaction="i", now=6.0).begins_interaction, "its end was traffic"
    rig.serve(now=6.0)
    leaves(rig, how, rig.enqueue(interaction="i", now=6.0).call_id, now=7.0)
    assert rig.enqueue(interaction="i", now=12.1).begins_interaction


@pytest.mark.parametrize("mode", ThrottlingMode)
def test_a_held_tenant_begins_nothing_overloaded_or_not(make_rig, mode):
    rig = make_rig(tenant_a={"held": True}, mode=mode)
    for armed in (False, True):
        rig.scheduler.set_armed(armed)
        refused = rig.enqueue(interaction="new")
        assert isinstance(refused, Refused)
        assert refused.refusal == Refusal(RefusalReason.TENANT_HELD, None)
        assert isinstance(rig.enqueue("b"), Queued)


def test_what_was_admitted_before_a_hold_goes_on_and_a_hold_that_ends_leaves_nothing(make_rig):
    rig = make_rig(application={"interaction": InteractionRules(idle_timeout_s=5.0)})
    before = rig.scheduler.settings
    waiting = rig.enqueue(interaction="agent").call_id
    tenants = {**before.tenants, "a": dataclasses.replace(before.tenants["a"], held=True)}
    rig.scheduler.configure(dataclasses.replace(before, tenants=MappingProxyType(tenants)))
    assert isinstance(rig.enqueue(), Refused)
    assert rig.serve() == waiting, "it was admitted"
    assert isinstance(rig.enqueue(interaction="agent", now=1.0), Queued)
    rig.serve(now=1.0)
    assert isinstance(rig.enqueue(interaction="agent", now=6.1), Refused), "past its rules it begins anew"
    rig.scheduler.configure(before)
    assert isinstance(rig.enqueue(now=6.1), Queued)
