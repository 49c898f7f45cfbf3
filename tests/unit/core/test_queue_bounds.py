"""Full queues and calls that waited too long."""

import dataclasses
from types import MappingProxyType

import pytest

from fairserve.core import QueueBounds, Queued, RefusalReason, Refused, TenantSettings, TotalBounds


def test_a_full_queue_refuses_the_newest_beginning_call_of_the_deepest_flow(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=4)})
    mine = [rig.enqueue(user="flooder").call_id for _ in range(4)]
    assert isinstance(rig.enqueue(user="flooder"), Refused)
    quiet = rig.enqueue(user="quiet")
    assert isinstance(quiet, Queued)
    assert [(e.call_id, e.refusal.reason) for e in quiet.evicted] == [(mine[-1], RefusalReason.QUEUE_FULL)]


def test_a_full_queue_of_one_tenant_is_nothing_to_another(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=1)})
    rig.enqueue("a")
    assert isinstance(rig.enqueue("a"), Refused)
    assert isinstance(rig.enqueue("b"), Queued)


def test_a_continuation_takes_the_place_of_a_beginning_call(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=2)})
    rig.enqueue(interaction="agent")
    rig.serve(input_tokens=100, output_tokens=50)
    beginning = [rig.enqueue().call_id for _ in range(2)]
    first = rig.enqueue(interaction="agent")
    assert [e.call_id for e in first.evicted] == [beginning[1]]
    second = rig.enqueue(interaction="agent")
    assert [e.call_id for e in second.evicted] == [beginning[0]]
    third = rig.enqueue(interaction="agent")
    assert isinstance(third, Refused)
    assert third.wasted_tokens == 150, "the interaction's tokens are wasted with the call it lost"


def test_a_call_leaves_after_its_longest_wait(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_wait_s=10.0)})
    early, late = rig.enqueue(now=0.0), rig.enqueue(now=5.0)
    assert rig.scheduler.expire(9.9) == ()
    assert [e.call_id for e in rig.scheduler.expire(10.0)] == [early.call_id]
    rig.scheduler.check()
    assert rig.dispatch(now=10.0).call_id == late.call_id
    assert rig.scheduler.expire(99.0) == ()


def test_oldest_wait_follows_the_queue(make_rig):
    rig = make_rig()
    assert rig.scheduler.oldest_wait(5.0) == 0.0
    rig.enqueue(now=1.0)
    rig.enqueue(now=3.0)
    assert rig.scheduler.oldest_wait(5.0) == 4.0
    rig.serve(now=5.0)
    assert rig.scheduler.oldest_wait(5.0) == 2.0


def test_each_tenant_tells_its_own_queue(make_rig):
    rig = make_rig()
    rig.enqueue("b", now=0.0)
    rig.dispatch(now=0.0)
    rig.enqueue("a", user="late", now=3.0)
    rig.enqueue("a", user="early", interaction="agent", now=1.0)
    rig.enqueue("a", user="early", interaction="agent", now=2.0)
    found = {view.name: view for view in rig.scheduler.tenant_views(5.0)}
    a, b = found["a"], found["b"]
    assert (a.weight, a.queued, a.running, a.oldest_wait_s, a.interactions) == (3.0, 3, 0, 4.0, 1)
    assert (b.weight, b.queued, b.running, b.oldest_wait_s, b.interactions) == (1.0, 0, 1, 0.0, 0)


def ids(decision):
    return [evicted.call_id for evicted in decision.evicted]


def test_a_full_user_refuses_its_own_newest(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=10, max_requests_per_user=2)})
    first = [rig.enqueue(interaction="agent").call_id, rig.enqueue().call_id]
    assert isinstance(rig.enqueue(), Refused)
    assert isinstance(rig.enqueue(user="other"), Queued), "another user has its own bound"
    assert ids(rig.enqueue(interaction="agent")) == [first[1]], (
        "a continuation takes a beginning call's place"
    )
    rig.scheduler.cancel(first[0], 0.0)
    rig.enqueue(interaction="agent")
    assert isinstance(rig.enqueue(interaction="agent"), Refused), "only continuations are left"


def test_bytes_of_a_tenant_are_bounded(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_bytes=1_000)})
    big = rig.enqueue(user="big", body_bytes=600).call_id
    small = [rig.enqueue(user=f"small{n}", body_bytes=100).call_id for n in range(4)]
    assert isinstance(rig.enqueue(user="big", body_bytes=1), Refused)
    assert isinstance(rig.enqueue(user="huge", body_bytes=700), Refused), "it would be furthest over itself"
    assert rig.scheduler.backlog.bytes == 1_000
    quiet = rig.enqueue(user="quiet", body_bytes=300)
    assert ids(quiet) == [big], "who holds most bytes, not who holds most calls"
    assert isinstance(rig.enqueue(user="small0", body_bytes=300), Queued)
    assert small[0] in rig.scheduler.backlog.calls


def test_bytes_of_a_user_are_bounded(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_bytes_per_user=1_000)})
    rig.enqueue(body_bytes=900)
    assert isinstance(rig.enqueue(body_bytes=101), Refused)
    assert isinstance(rig.enqueue(body_bytes=100), Queued)
    assert isinstance(rig.enqueue(user="v", body_bytes=1_001), Refused), "it would never fit"


def test_several_small_calls_make_room_for_a_large_one_or_none_goes(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_bytes=1_000)})
    many = [rig.enqueue(user="many", body_bytes=100).call_id for _ in range(9)]
    fits = rig.enqueue(user="one", body_bytes=300)
    assert ids(fits) == [many[8], many[7]]
    before = rig.scheduler.queued
    assert isinstance(rig.enqueue(user="one", body_bytes=900), Refused)
    assert rig.scheduler.queued == before, "nobody goes for a call that doesn't fit in the end"


def test_the_total_is_bounded_and_the_tenant_furthest_over_its_share_gives(make_rig):
    rig = make_rig(queue=TotalBounds(max_requests=8))
    flood = [rig.enqueue("a", user="flood").call_id for _ in range(5)]
    other = [rig.enqueue("b").call_id for _ in range(3)]
    assert isinstance(rig.enqueue("b"), Refused), "a weighs 3: five of its calls are less than four of b's"
    assert ids(rig.enqueue("a", user="quiet")) == [other[-1]]
    assert [rig.scheduler.tenant(name).queued for name in "ab"] == [6, 2]
    assert ids(rig.enqueue("a", user="quiet")) == [flood[-1]], "now a is the one: 7/3 of its weight against 2"
    rig.scheduler.check()


def test_total_bytes_are_bounded(make_rig):
    rig = make_rig(queue=TotalBounds(max_bytes=1_000))
    rig.enqueue("b", body_bytes=900)
    assert isinstance(rig.enqueue("b", body_bytes=200), Refused)
    assert len(ids(rig.enqueue("a", body_bytes=200))) == 1


def test_a_continuation_outside_the_full_tenant_takes_a_beginning_calls_place(make_rig):
    rig = make_rig(queue=TotalBounds(max_requests=3))
    rig.enqueue("b", interaction="agent")
    rig.serve()
    beginning = [rig.enqueue("a").call_id for _ in range(3)]
    continued = [rig.enqueue("b", interaction="agent") for _ in range(3)]
    assert [ids(d) for d in continued] == [[beginning[2]], [beginning[1]], [beginning[0]]]
    assert isinstance(rig.enqueue("b", interaction="agent"), Refused)
    assert isinstance(rig.enqueue("a"), Refused), "a beginning call never takes a continuation's place"


def test_under_a_long_flood_the_quiet_are_let_in_and_the_order_stays_right(make_rig):
    """Rankings are kept up while queues are full; each victim is the one that a plain search would find."""
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=30)})
    depth, owner = {}, {}
    for n in range(600):
        user = f"u{n % 7 * (n % 3)}"
        decision = rig.enqueue(user=user, now=float(n))
        if isinstance(decision, Queued):
            depth[user] = depth.get(user, 0) + 1
            for evicted in decision.evicted:
                victim = owner[evicted.call_id]
                assert depth[victim] == max(depth.values())
                depth[victim] -= 1
            owner[decision.call_id] = user
        else:
            assert depth.get(user, 0) + 1 >= max(depth.values())
        if n % 5 == 0:
            gone = rig.scheduler.dispatch(float(n)).call_id
            depth[owner[gone]] -= 1
            rig.finish(gone, now=float(n))
    assert rig.scheduler.queued <= 30


def test_changed_bounds_hold_from_the_next_call(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=4)})
    for _ in range(4):
        rig.enqueue()
    assert isinstance(rig.enqueue(), Refused)
    wider = MappingProxyType({"a": TenantSettings("a", queue=QueueBounds(max_requests=5, max_wait_s=5.0))})
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, tenants=wider))
    late = rig.enqueue(now=1.0)
    assert isinstance(late, Queued)
    assert isinstance(rig.enqueue(), Refused)
    assert [e.call_id for e in rig.scheduler.expire(7.0)] == [late.call_id], "the others keep their wait"


@pytest.mark.parametrize("begins", [True, False])
def test_a_call_that_can_never_fit_is_refused_and_evicts_nobody(make_rig, begins):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_bytes=1_000)})
    rig.enqueue(interaction="agent")
    rig.serve()
    rig.enqueue(body_bytes=10)
    assert isinstance(rig.enqueue(interaction=None if begins else "agent", body_bytes=5_000), Refused)
    assert rig.scheduler.queued == 1


def test_a_changed_weight_holds_for_who_is_furthest_over_its_share(make_rig):
    rig = make_rig(tenant_a={"weight": 3.0}, queue=TotalBounds(max_requests=8))
    mine = [rig.enqueue("a").call_id for _ in range(5)]
    others = [rig.enqueue("b").call_id for _ in range(3)]
    assert ids(rig.enqueue("c")) == [others[-1]], "three of weight one are more than five of weight three"
    tenants = MappingProxyType({"a": TenantSettings("a"), "b": TenantSettings("b")})
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, tenants=tenants))
    assert ids(rig.enqueue("d")) == [mine[-1]]
