"""What is forgotten, and what survives a restart."""

import json
import random

import pytest

from fairserve.core import Limit, Queued, Refused, Scheduler


def test_idle_flows_windows_and_interactions_are_forgotten(make_rig):
    rig = make_rig(tenant_a={"weight": 3.0, "per_user": Limit(1, 60.0)})
    for user in range(1_000):
        rig.enqueue(user=str(user), interaction="i")
        rig.serve()
    assert len(rig.scheduler.backlog.tenant("a").flows) == 1_000
    for second in range(1_000, 1_040):
        rig.scheduler.expire(float(second * 10))
    rig.scheduler.check()
    assert len(rig.scheduler.backlog.tenant("a").flows) <= 1
    assert len(rig.scheduler.throttle.windows) == 0
    assert len(rig.scheduler.interactions) == 0


def test_deadlines_of_dispatched_calls_take_no_memory(make_rig):
    rig = make_rig()
    for _ in range(5_000):
        rig.enqueue()
        rig.serve()
    assert len(rig.scheduler._deadlines) < 600


def test_a_restart_hands_out_no_amnesty_and_cuts_no_interaction(make_rig):
    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0)})
    rig.enqueue(interaction="agent", now=100.0)
    rig.serve(now=101.0)
    kept = json.loads(json.dumps(rig.scheduler.snapshot(110.0)))

    restarted = Scheduler(rig.scheduler.settings, random.Random(2))
    restarted.restore(kept, now=7.0)
    restarted.check()
    restarted.set_armed(True)
    assert isinstance(restarted.enqueue(rig.call(), 7.0), Refused)
    assert isinstance(restarted.enqueue(rig.call(interaction="agent"), 7.0), Queued)
    old, new = rig.scheduler.backlog.tenant("a"), restarted.backlog.tenant("a")
    assert (new.counter, new.service) == (old.counter, old.service)
    assert new.flows["u"].counter == old.flows["u"].counter
    assert isinstance(restarted.enqueue(rig.call(), 57.5), Queued), "the window ends when it would have"


@pytest.mark.parametrize("broken", [{}, {"format": 2}, {"format": 1, "tenants": {"a": {"counter": "nan"}}}])
def test_a_broken_snapshot_changes_nothing(make_rig, broken):
    rig = make_rig()
    complete = rig.scheduler.snapshot(0.0) | broken if broken else {}
    with pytest.raises(ValueError, match="snapshot"):
        rig.scheduler.restore(complete, 0.0)
    assert rig.scheduler.backlog.tenants == {}


def test_the_dump_is_json_and_names_no_user(make_rig):
    rig = make_rig()
    rig.enqueue(user="alice@example.com")
    text = json.dumps(rig.scheduler.dump(1.0))
    assert "alice" not in text
    assert json.loads(text)["tenants"][0]["queued"] == 1


def test_predictions_follow_a_flows_own_calls(make_rig):
    rig = make_rig()
    for _ in range(10):
        rig.enqueue(user="terse")
        rig.serve(output_tokens=5)
    rig.enqueue(user="terse")
    assert rig.dispatch().predicted_output_tokens == 5
    rig.enqueue(user="terse", max_output_tokens=3)
    assert rig.dispatch().predicted_output_tokens == 3
