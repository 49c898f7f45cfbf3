"""A call that the engine turned away waits again in its place, as if it had never gone."""

import pytest

from fairserve.core import QueueBounds, UnknownCallError


def counters(rig, tenant="a", user="u"):
    known = rig.scheduler.tenant(tenant)
    return known.counter, known.flows[user].counter, known.service


def test_its_charge_is_undone(make_rig):
    rig = make_rig()
    rig.enqueue()
    before = counters(rig)
    dispatched = rig.dispatch()
    assert counters(rig) > before
    rig.scheduler.requeue(dispatched.call_id, 1.0)
    rig.scheduler.check()
    assert counters(rig) == before
    assert (rig.scheduler.running, rig.scheduler.queued, rig.scheduler.inflight_tokens) == (0, 1, 0)


def test_it_goes_before_what_came_later_however_many_are_turned_away(make_rig):
    rig = make_rig()
    order = [rig.enqueue(body_bytes=7).call_id for _ in range(5)]
    gone = [rig.dispatch().call_id for _ in range(3)]
    for call_id in (gone[1], gone[2], gone[0]):
        rig.scheduler.requeue(call_id, 1.0)
        rig.scheduler.check()
    assert [rig.serve() for _ in range(5)] == order


def test_a_continuation_stays_one(make_rig):
    rig = make_rig()
    rig.enqueue(interaction="i")
    rig.serve()
    other = rig.enqueue().call_id
    continuing = rig.enqueue(interaction="i").call_id
    assert rig.dispatch().call_id == continuing
    rig.scheduler.requeue(continuing, 1.0)
    rig.scheduler.check()
    assert [rig.serve(), rig.serve()] == [continuing, other]


def test_a_flow_is_not_lifted_for_it(make_rig):
    """Somebody who came meanwhile was lifted to a charge that is undone: that is not on this flow."""
    rig = make_rig()
    rig.enqueue(user="u")
    dispatched = rig.dispatch()
    rig.enqueue(user="late")
    rig.scheduler.requeue(dispatched.call_id, 0.0)
    assert counters(rig, user="u")[1] == 0
    assert rig.dispatch().call_id == dispatched.call_id


def test_it_expires_by_its_arrival_also_where_it_was_forgotten_by_then(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_wait_s=10.0)})
    first = rig.enqueue(now=0.0).call_id
    assert rig.dispatch(now=1.0).call_id == first
    rig.scheduler.expire(2.0)
    late = rig.enqueue(now=5.0).call_id
    rig.scheduler.requeue(first, 6.0)
    rig.scheduler.check()
    assert rig.scheduler.oldest_wait(6.0) == 6.0
    assert [lost.call_id for lost in rig.scheduler.expire(10.0)] == [first]
    assert [lost.call_id for lost in rig.scheduler.expire(15.0)] == [late]


def test_a_full_queue_takes_it_back(make_rig):
    rig = make_rig(tenant_a={"queue": QueueBounds(max_requests=1)})
    first = rig.enqueue().call_id
    rig.dispatch()
    rig.enqueue()
    rig.scheduler.requeue(first, 0.0)
    rig.scheduler.check()
    assert rig.scheduler.queued == 2


@pytest.mark.parametrize("stage", ["unknown", "waiting", "ended"])
def test_only_a_running_call_can_be_turned_away(make_rig, stage):
    rig = make_rig()
    call_id = 99
    if stage != "unknown":
        call_id = rig.enqueue().call_id
    if stage == "ended":
        rig.serve()
    with pytest.raises(UnknownCallError):
        rig.scheduler.requeue(call_id, 0.0)
    rig.scheduler.check()


def test_nothing_waits_longer_than_an_expiry_may_say(make_rig):
    rig = make_rig()
    old = rig.enqueue(now=0.0).call_id
    young = rig.enqueue(now=20.0).call_id
    assert [lost.call_id for lost in rig.scheduler.expire(31.0, 30.0)] == [old]
    assert rig.scheduler.expire(32.0) == ()
    assert rig.serve(now=33.0) == young
