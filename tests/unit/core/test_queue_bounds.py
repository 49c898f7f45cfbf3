"""Full queues and calls that waited too long."""

from fairserve.core import QueueBounds, Queued, RefusalReason, Refused


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
