"""What is forgotten, and what survives a restart."""

import json

import pytest

from fairserve.core import (
    InteractionRules,
    Learning,
    Limit,
    Policy,
    QueueBounds,
    Queued,
    Refused,
    Scheduler,
    SnapshotError,
    TenantSettings,
    memory,
)


def test_idle_flows_windows_and_interactions_are_forgotten(make_rig):
    rig = make_rig(tenant_a={"weight": 3.0, "per_user": Limit(1, 60.0)})
    for user in range(1_000):
        rig.enqueue(user=str(user), interaction="i")
        rig.serve()
    tenant = rig.scheduler.tenant("a")
    assert (len(tenant.flows), tenant.interactions) == (1_000, 1_000)
    for second in range(1_000, 1_040):
        rig.scheduler.expire(float(second * 10))
    rig.scheduler.check()
    assert len(tenant.flows) <= 1
    assert tenant.interactions <= 1


def test_a_flow_with_debts_a_window_or_an_open_interaction_is_remembered(make_rig):
    rig = make_rig(
        tenant_a={"per_user": Limit(5, 10_000.0), "queue": QueueBounds(max_wait_s=1e6)},
        application={"interaction": InteractionRules(idle_timeout_s=10_000.0, max_duration_s=20_000.0)},
    )
    rig.enqueue(user="windowed")
    rig.serve()
    rig.enqueue("b", user="agent", interaction="i")
    rig.serve()
    rig.enqueue("b", user="plain")
    rig.serve()
    rig.scheduler.absorb(("a", "indebted"), 50.0)
    rig.enqueue(user="waits")
    for second in range(700, 6_000, 100):
        rig.scheduler.expire(float(second))
    rig.scheduler.check()
    assert set(rig.scheduler.tenant("a").flows) == {"windowed", "indebted", "waits"}
    assert set(rig.scheduler.tenant("b").flows) == {"agent"}
    assert not rig.enqueue("b", user="agent", interaction="i", now=6_000.0).begins_interaction


def test_a_sybil_pushes_out_its_own_flows_and_nobody_elses(make_rig, monkeypatch):
    monkeypatch.setattr(memory, "MOST_IDLE_FLOWS", 100)
    rig = make_rig()
    for user in range(40):
        rig.enqueue("b", user=f"quiet-{user}")
        rig.serve()
    for user in range(300):
        rig.enqueue("a", user=f"sybil-{user}", interaction="i" if user % 10 == 0 else None)
        rig.serve()
    assert len(rig.scheduler.tenant("b").flows) == 40
    sybils = rig.scheduler.tenant("a").flows
    assert len(sybils) == 60
    assert all(f"sybil-{user}" in sybils for user in range(0, 300, 10)), "open interactions keep their flows"


def test_with_too_many_interactions_a_tenants_further_calls_stand_alone(make_rig, monkeypatch):
    monkeypatch.setattr(memory, "MOST_INTERACTIONS", 40)
    rig = make_rig()
    rig.enqueue("b", user="other", interaction="i")
    rig.serve()
    for n in range(100):
        rig.enqueue(user=f"u{n}", interaction="i")
        rig.serve()
    assert rig.scheduler.tenant("a").interactions == 39
    assert not rig.enqueue(user="u0", interaction="i").begins_interaction, "an open one is never pushed out"
    assert rig.enqueue(user="u99", interaction="i").begins_interaction
    rig.enqueue("b", user="other", interaction="j")
    assert not rig.enqueue("b", user="other", interaction="j").begins_interaction, "b has not had its part"


def test_closed_interactions_of_a_busy_flow_take_no_memory(make_rig):
    rig = make_rig(application={"interaction": InteractionRules(idle_timeout_s=5.0)})
    rig.enqueue(now=0.0)
    for n in range(2_000):
        rig.enqueue(interaction=str(n), now=float(n))
        rig.serve(now=float(n))
    assert rig.scheduler.tenant("a").interactions < 50


def test_calls_that_are_gone_take_no_memory(make_rig):
    rig = make_rig()
    rig.enqueue(user="stays")
    for _ in range(5_000):
        cancelled = rig.scheduler.enqueue(rig.call(), 0.0)
        rig.scheduler.cancel(cancelled.call_id, 0.0)
    rig.scheduler.check()
    assert sum(len(line.calls) for line in rig.scheduler.backlog.timelines.values()) < 100
    assert len(rig.scheduler.backlog.calls) == 1


def test_a_tenant_that_is_gone_is_forgotten(make_rig):
    rig = make_rig(default_tenant=TenantSettings("_default"))
    rig.enqueue("stranger")
    rig.serve()
    rig.enqueue("a")
    for _ in range(3):
        rig.enqueue("a")
        rig.serve()
    for second in range(700, 2_000, 100):
        rig.scheduler.expire(float(second))
    assert "stranger" not in rig.scheduler.backlog.tenants
    assert "a" in rig.scheduler.backlog.tenants, "a configured tenant stays"


def test_a_restart_hands_out_no_amnesty_and_cuts_no_interaction(make_rig):
    rig = make_rig(tenant_a={"per_user": Limit(1, 60.0)})
    rig.enqueue(interaction="agent", now=100.0)
    rig.serve(now=101.0)
    kept = json.loads(json.dumps(rig.scheduler.snapshot(110.0)))

    restarted = Scheduler(rig.scheduler.settings)
    restarted.restore(kept, now=7.0)
    restarted.check()
    restarted.set_armed(True)
    assert isinstance(restarted.enqueue(rig.call(), 7.0), Refused)
    assert isinstance(restarted.enqueue(rig.call(interaction="agent"), 7.0), Queued)
    old, new = rig.scheduler.tenant("a"), restarted.tenant("a")
    assert (new.counter, new.service) == (old.counter, old.service)
    assert new.flows["u"].counter == old.flows["u"].counter
    assert isinstance(restarted.enqueue(rig.call(), 57.5), Queued), "the window ends when it would have"


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"format": 1},
        {"traffic_mean": ["nan", 3]},
        {"tenants": {"a": {"counter": "many"}}},
        {"tenants": []},
        {"applications": {"chat": {"output_tokens": [1.0, 2]}}},
    ],
)
def test_a_broken_snapshot_changes_nothing(make_rig, broken):
    rig = make_rig()
    complete = rig.scheduler.snapshot(0.0) | broken if broken else {}
    before = rig.scheduler.snapshot(0.0)
    with pytest.raises(SnapshotError, match="snapshot"):
        rig.scheduler.restore(complete, 0.0)
    assert rig.scheduler.snapshot(0.0) == before


def test_a_call_that_runs_at_the_snapshot_keeps_its_interaction_open_and_is_no_settled_service(make_rig):
    rules = InteractionRules(idle_timeout_s=300.0)
    tenant = {"per_user": Limit(1, 3_600.0)}
    rig = make_rig(tenant_a=tenant, application={"interaction": rules})
    rig.enqueue(interaction="slow")
    rig.serve()
    settled = rig.scheduler.tenant("a").service
    rig.enqueue(interaction="slow", now=1.0)
    rig.dispatch(now=1.0)
    charged = rig.scheduler.tenant("a").counter
    kept = json.loads(json.dumps(rig.scheduler.snapshot(400.0)))
    fresh = make_rig(tenant_a=tenant, application={"interaction": rules})
    fresh.scheduler.set_armed(True)
    fresh.scheduler.restore(kept, 400.0)
    assert fresh.scheduler.tenant("a").service == settled, "nobody will settle what ran"
    assert fresh.scheduler.tenant("a").counter == charged, "and nobody gets it for nothing"
    assert not fresh.enqueue(interaction="slow", now=401.0).begins_interaction


def test_a_snapshot_is_not_restored_over_calls(make_rig):
    rig = make_rig()
    kept = rig.scheduler.snapshot(0.0)
    rig.enqueue()
    with pytest.raises(SnapshotError, match="1 calls are queued or running"):
        rig.scheduler.restore(kept, 1.0)
    rig.scheduler.check()


def test_a_snapshot_is_complete(make_rig):
    """What a restored scheduler would snapshot is what it was given, ages moved on alike."""
    rig = make_rig(
        tenant_a={"per_user": Limit(9, 60.0), "total": Limit(50, 60.0)},
        application={
            "per_user": Limit(8, 60.0),
            "per_tenant": Limit(40, 60.0),
            "total": Limit(70, 60.0),
            "learning": Learning(min_samples=5),
        },
    )
    for n in range(12):
        rig.enqueue("ab"[n % 2], user=f"u{n % 3}", interaction=f"i{n % 4}", now=float(n), body_bytes=400 + n)
        rig.serve(output_tokens=20 + n, now=float(n))
    rig.scheduler.expire(30.0)
    rig.scheduler.expire(60.0)
    kept = json.loads(json.dumps(rig.scheduler.snapshot(64.0)))
    restarted = Scheduler(rig.scheduler.settings)
    restarted.restore(kept, 1_064.0)
    restarted.check()
    assert restarted.snapshot(1_064.0) == kept
    assert kept["applications"]["chat"]["learned"][:2] != [100.0, 50.0]


def test_after_a_restart_a_newcomer_has_no_credit(make_rig):
    """Counters are restored, so the floor that newcomers are lifted to must be as well."""
    rig = make_rig(tenant_a={"weight": 1.0})
    for _ in range(50):
        rig.enqueue("a", user="old")
        rig.serve()
    restarted = Scheduler(rig.scheduler.settings)
    restarted.restore(rig.scheduler.snapshot(0.0), 0.0)
    rig.scheduler = restarted
    for _ in range(10):
        rig.enqueue("a", user="new")
        rig.enqueue("a", user="old")
    ids = [rig.dispatch().call_id for _ in range(10)]
    first = [rig.scheduler.running_calls()[call_id].call.user for call_id in ids]
    assert first.count("new") == 5


def test_counters_of_another_order_are_not_restored(make_rig):
    """Service that one order gave is nobody's debt under another."""
    rig = make_rig(policy=Policy.FCFS)
    for _ in range(20):
        rig.enqueue("b")
        rig.serve()
    fair = make_rig()
    fair.scheduler.restore(rig.scheduler.snapshot(0.0), 0.0)
    assert fair.scheduler.tenant("b").counter == 0
    assert fair.scheduler.tenant("b").service == rig.scheduler.tenant("b").service


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


def test_a_body_that_is_mostly_image_teaches_no_absurd_ratio(make_rig):
    rig = make_rig()
    for _ in range(20):
        rig.enqueue(body_bytes=1_000_000)
        rig.serve()
    assert rig.scheduler.estimate_input("a", "chat", 1_600) == 100


def test_bodies_teach_their_own_tenant_and_application(make_rig):
    rig = make_rig()
    for _ in range(20):
        rig.enqueue("a", body_bytes=200)
        rig.serve(input_tokens=100)
    for tenant, application, tokens in (("a", "chat", 50), ("a", "other", 25), ("b", "chat", 25)):
        assert rig.scheduler.estimate_input(tenant, application, 100) == tokens


def test_a_tenant_that_owes_is_remembered_after_its_flows(make_rig):
    """Idling is no way to be rid of a debt while others wait with less service."""
    rig = make_rig(tenant_a={"weight": 1.0, "queue": QueueBounds(max_wait_s=1e6)})
    rig.enqueue("stranger")
    running = rig.dispatch()
    for _ in range(10):
        rig.enqueue("a")
    rig.finish(running.call_id, output_tokens=10_000)
    for second in range(700, 2_000, 100):
        rig.scheduler.expire(float(second))
    assert not rig.scheduler.tenant("stranger").flows
    for _ in range(5):
        rig.enqueue("stranger", now=2_000.0)
    assert [rig.owner(rig.dispatch(now=2_000.0)) for _ in range(10)] == ["a"] * 10
