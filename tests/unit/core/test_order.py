"""Which call goes next."""

import dataclasses
from types import MappingProxyType

import pytest

from fairserve.core import (
    UNIT,
    ApplicationSettings,
    CallError,
    Outcome,
    Policy,
    Profile,
    TenantSettings,
    UnknownCallError,
    Usage,
)


def shares(rig, rounds=400):
    """Calls served per tenant while both keep 8 calls of one size waiting."""
    served = {"a": 0, "b": 0}
    for tenant in served:
        while rig.scheduler.tenant(tenant).queued < 8:
            rig.enqueue(tenant)
    for _ in range(rounds):
        dispatched = rig.dispatch()
        tenant = rig.owner(dispatched)
        rig.finish(dispatched.call_id)
        served[tenant] += 1
        rig.enqueue(tenant)
    return served["a"] / served["b"]


def test_backlogged_tenants_are_served_by_weight(make_rig):
    assert shares(make_rig()) == pytest.approx(3.0, rel=0.05)


def test_fcfs_ignores_weights(make_rig):
    assert shares(make_rig(policy=Policy.FCFS)) == pytest.approx(1.0, rel=0.05)


def test_a_changed_weight_holds_from_the_next_decision(make_rig):
    rig = make_rig()
    assert shares(rig) == pytest.approx(3.0, rel=0.05)
    tenants = MappingProxyType({"a": TenantSettings("a"), "b": TenantSettings("b")})
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, tenants=tenants))
    before = rig.scheduler.queued
    assert shares(rig) == pytest.approx(1.0, rel=0.05)
    assert rig.scheduler.queued == before, "a change of weights loses no call"


def test_users_of_one_tenant_share_equally_and_a_sybil_gains_nothing(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    owner = {}

    def offer(tenant, user):
        owner[rig.enqueue(tenant, user).call_id] = (tenant, user)

    for _ in range(4):
        offer("b", "only")
        for user in range(10):
            offer("a", f"sybil-{user}")
    served = dict.fromkeys(set(owner.values()), 0)
    for _ in range(600):
        who = owner[rig.serve()]
        served[who] += 1
        offer(*who)
    of_a = [count for (tenant, _), count in served.items() if tenant == "a"]
    assert sum(of_a) == pytest.approx(served["b", "only"], rel=0.05)
    assert max(of_a) - min(of_a) <= 1


def test_an_applications_weight_moves_share_inside_its_tenant_only(make_rig):
    profile = Profile(100.0, 50.0)
    applications = MappingProxyType(
        {
            "chat": ApplicationSettings("chat", profile, weight=4.0),
            "batch": ApplicationSettings("batch", profile),
        }
    )
    rig = make_rig(tenant_a={"weight": 1.0}, applications=applications)
    kinds = [("a", "u1", "chat"), ("a", "u2", "batch"), ("b", "u3", "batch")]
    owner = {}

    def offer(kind):
        owner[rig.enqueue(*kind).call_id] = kind

    for kind in kinds * 4:
        offer(kind)
    served = dict.fromkeys(kinds, 0)
    for _ in range(600):
        kind = owner[rig.serve()]
        served[kind] += 1
        offer(kind)
    assert served[kinds[0]] + served[kinds[1]] == pytest.approx(served[kinds[2]], rel=0.05)
    assert served[kinds[0]] / served[kinds[1]] == pytest.approx(4.0, rel=0.1)


def test_inside_a_flow_calls_are_first_come_first_served(make_rig):
    rig = make_rig()
    ids = [rig.enqueue(now=float(i)).call_id for i in range(20)]
    assert [rig.serve() for _ in ids] == ids


def test_inside_a_flow_continuations_go_first(make_rig):
    rig = make_rig()
    opened = rig.enqueue(interaction="i").call_id
    assert rig.serve() == opened
    begins = rig.enqueue().call_id
    continues = rig.enqueue(interaction="i").call_id
    assert [rig.serve(), rig.serve()] == [continues, begins]


def test_a_continuation_jumps_between_flows_by_a_bounded_head_start(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0}, continuation_head_start=3.0)
    owner = {}

    def offer(tenant, **kwargs):
        owner[rig.enqueue(tenant, **kwargs).call_id] = tenant

    offer("a", interaction="agent")
    rig.serve()
    for _ in range(8):
        offer("a", interaction="agent")
        offer("b")
    order = [owner[rig.serve()] for _ in range(16)]
    # One typical call costs about 1: the agent is at most Δ ahead, then both take turns.
    ahead = [order[:n].count("a") - order[:n].count("b") for n in range(1, 15)]
    assert 2 <= max(ahead) <= 4
    assert order[:12].count("b") >= 4, "continuations must not starve calls that begin"


def test_an_idle_tenant_saves_up_no_credit(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    for _ in range(50):
        rig.enqueue("b")
        rig.serve()
    for _ in range(20):
        rig.enqueue("b")
    for _ in range(20):
        rig.enqueue("a")
    first = [rig.owner(rig.dispatch()) for _ in range(20)]
    assert first.count("a") == pytest.approx(10, abs=1)


def test_a_newcomer_starts_at_the_smallest_counter_not_at_that_of_whoever_is_ahead(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0}, continuation_head_start=5.0)
    owner = {}

    def offer(tenant, **kwargs):
        owner[rig.enqueue(tenant, **kwargs).call_id] = tenant

    offer("a", interaction="agent")
    rig.serve()
    for _ in range(3):
        offer("b")
    for _ in range(3):
        offer("a", interaction="agent")
        assert owner[rig.serve()] == "a", "ahead by its head start"
    offer("a", interaction="agent")
    offer("c")
    assert [owner[rig.serve()] for _ in range(4)] == ["a", "b", "c", "b"]


def test_the_charge_falls_at_dispatch_not_at_the_end(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    for _ in range(8):
        rig.enqueue("a")
        rig.enqueue("b")
    batch = [rig.owner(rig.dispatch()) for _ in range(8)]
    assert batch.count("a") == 4, "nobody fills a batch before its first charge"


def test_settling_replaces_the_prediction_by_the_actual_cost(make_rig):
    rig = make_rig(normalisation=1.0)
    for outcome, output in [(Outcome.COMPLETED, 10), (Outcome.CANCELLED, 500), (Outcome.FAILED, 0)]:
        rig.enqueue("b")
        before = rig.scheduler.tenant("b").counter
        dispatched = rig.dispatch()
        rig.scheduler.progress(dispatched.call_id, output_tokens=output // 2)
        settled = rig.finish(dispatched.call_id, output_tokens=output, outcome=outcome)
        typical = 100.0 + 1.0 + 100.0
        assert settled.service == pytest.approx((100 + 2 * output) / typical)
        assert rig.scheduler.tenant("b").counter - before == settled.units


def test_what_exceeds_the_prediction_is_charged_while_the_call_runs(make_rig):
    rig = make_rig()
    rig.enqueue("b")
    dispatched = rig.dispatch()
    tenant = rig.scheduler.tenant("b")
    predicted = tenant.counter
    rig.scheduler.progress(dispatched.call_id, dispatched.predicted_output_tokens)
    assert tenant.counter == predicted
    rig.scheduler.progress(dispatched.call_id, dispatched.predicted_output_tokens + 100)
    assert tenant.counter > predicted
    assert rig.scheduler.inflight_tokens == 100 + dispatched.predicted_output_tokens + 100


def test_a_cancelled_call_leaves_the_queue_and_costs_nothing(make_rig):
    rig = make_rig()
    queued = rig.enqueue("a")
    assert rig.scheduler.cancel(queued.call_id, 0.0)
    assert not rig.scheduler.cancel(queued.call_id, 0.0)
    rig.scheduler.check()
    assert rig.dispatch() is None
    assert rig.scheduler.tenant("a").service == 0.0


def test_an_unknown_or_repeated_call_is_an_error(make_rig):
    rig = make_rig()
    call = rig.call()
    rig.scheduler.enqueue(call, 0.0)
    with pytest.raises(ValueError, match="already queued"):
        rig.scheduler.enqueue(call, 0.0)
    assert not rig.scheduler.cancel(99, 0.0)
    for unknown in (99, call.call_id):
        with pytest.raises(UnknownCallError, match=f"call {unknown} does not run"):
            rig.scheduler.finish(unknown, Usage(1, 1), Outcome.COMPLETED, 0.0)
        with pytest.raises(UnknownCallError):
            rig.scheduler.progress(unknown, 5)
    rig.dispatch()
    rig.finish(call.call_id)
    with pytest.raises(UnknownCallError):
        rig.scheduler.finish(call.call_id, Usage(1, 1), Outcome.COMPLETED, 0.0)
    assert not rig.scheduler.cancel(call.call_id, 0.0)
    rig.scheduler.check()


def test_priority_follows_the_counters(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    for _ in range(4):
        rig.enqueue("a")
    for _ in range(4):
        rig.enqueue("b", input_tokens=400)
    priorities = {"a": [], "b": []}
    for _ in range(8):
        dispatched = rig.dispatch()
        priorities[rig.owner(dispatched)].append(dispatched.priority)
    assert priorities["a"] == sorted(priorities["a"])


def test_service_had_elsewhere_counts_as_ones_own(make_rig):
    rig = make_rig(tenant_a={"weight": 2.0})
    rig.scheduler.absorb(("a", "u"), 10.0)
    tenant = rig.scheduler.tenant("a")
    assert (tenant.counter, tenant.flows["u"].counter) == (5 * UNIT, 10 * UNIT)
    assert tenant.service == 0, "what it had here is another number"
    rig.scheduler.check()
    for _ in range(8):
        rig.enqueue("b")
        rig.enqueue("a")
    first = [rig.owner(rig.dispatch()) for _ in range(6)]
    assert first.count("b") >= 5, "its turn comes after those who have had less"


def test_what_was_computed_outside_of_the_queue_costs_what_a_call_would(make_rig):
    rig = make_rig(tenant_a={"weight": 2.0}, application={"weight": 4.0})
    units = rig.scheduler.charge(rig.call("a"), Usage(100, 50))
    tenant = rig.scheduler.tenant("a")
    assert (tenant.counter, tenant.flows["u"].counter) == (int(units / 2), int(units / 4))
    rig.enqueue("b")
    settled = rig.finish(rig.dispatch().call_id)
    assert units == settled.units == tenant.service == rig.scheduler.tenant("b").service > 0
    assert rig.scheduler.charge(rig.call("a"), Usage(-5, -1)) == 0
    rig.scheduler.check()


def test_service_elsewhere_counts_from_where_who_is_idle_would_begin(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    for _ in range(50):
        rig.enqueue("b")
    for _ in range(40):
        rig.serve()
    rig.scheduler.absorb(("a", "u"), 30.0)
    for _ in range(20):
        rig.enqueue("a")
    first = [rig.owner(rig.dispatch()) for _ in range(10)]
    assert first == ["b"] * 10, "30 typical calls elsewhere are not lifted away"


def test_a_change_of_order_forgives_what_runs_as_well(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    rig.enqueue("a", max_output_tokens=None)
    dispatched = rig.dispatch()
    for policy in (Policy.FCFS, Policy.FAIRSERVE):
        rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, policy=policy))
    rig.finish(dispatched.call_id, input_tokens=0, output_tokens=0, outcome=Outcome.FAILED)
    tenant = rig.scheduler.tenant("a")
    assert (tenant.counter, tenant.flows["u"].counter) == (0, 0), "no credit from a charge that is forgotten"
    assert tenant.service == 0


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_absorbing_what_is_no_cost_is_an_error(make_rig, cost):
    rig = make_rig()
    with pytest.raises(CallError, match="absorbed cost"):
        rig.scheduler.absorb(("a", "u"), cost)
    assert rig.scheduler.backlog.tenants == {}


@pytest.mark.parametrize("before", Policy)
@pytest.mark.parametrize("after", Policy)
def test_a_changed_policy_loses_no_call_and_holds_at_once(make_rig, before, after):
    rig = make_rig(policy=before, tenant_a={"weight": 1.0})
    ids = [rig.enqueue("ab"[n % 4 == 0], now=float(n)).call_id for n in range(40)]
    served = [rig.serve() for _ in range(6)]
    running = rig.dispatch()
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, policy=after))
    rig.scheduler.check()
    rig.finish(running.call_id)
    served += [running.call_id, *(rig.serve() for _ in range(33))]
    assert sorted(served) == ids
    if after is Policy.FCFS:
        assert served[7:] == sorted(served[7:])


def test_service_under_arrival_order_is_nobodys_debt(make_rig):
    """After a day of FCFS the one who asked for most must not be starved until the others have caught up."""
    rig = make_rig(policy=Policy.FCFS, tenant_a={"weight": 1.0})
    for _ in range(100):
        rig.enqueue("a")
        rig.serve()
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, policy=Policy.FAIRSERVE))
    for _ in range(10):
        rig.enqueue("a")
        rig.enqueue("b")
    assert [rig.owner(rig.dispatch()) for _ in range(10)].count("a") == 5


def test_a_changed_head_start_and_lambda_hold_at_once(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0}, continuation_head_start=0.0)
    rig.enqueue("b", interaction="agent")
    rig.serve()
    rig.enqueue("a")
    rig.enqueue("b", interaction="agent")
    changed = dataclasses.replace(rig.scheduler.settings, continuation_head_start=5.0, normalisation=0.0)
    rig.scheduler.configure(changed)
    rig.scheduler.check()
    first = rig.dispatch()
    assert rig.owner(first) == "b"
    assert rig.finish(first.call_id, output_tokens=50).service == pytest.approx(1.0), "w̄ is what calls cost"


def test_calls_of_a_tenant_and_an_application_that_are_gone_go_on(make_rig):
    rig = make_rig()
    waiting = rig.enqueue("a")
    rig.enqueue("a")
    running = rig.dispatch()
    bare = dataclasses.replace(
        rig.scheduler.settings, tenants=MappingProxyType({}), applications=MappingProxyType({})
    )
    rig.scheduler.configure(bare)
    rig.scheduler.check()
    assert rig.finish(running.call_id).tenant == "a"
    assert rig.serve() != waiting.call_id or rig.scheduler.queued == 0
    assert rig.scheduler.queued == 0


def test_a_refund_moves_who_gets_it_forward(make_rig):
    rig = make_rig(tenant_a={"weight": 1.0})
    rig.enqueue("b", input_tokens=2_000)
    for _ in range(5):
        rig.enqueue("b")
        rig.enqueue("a")
    dear, *others = [rig.dispatch() for _ in range(4)]
    assert rig.owner(dear) == "b"
    assert [rig.owner(dispatched) for dispatched in others] == ["a"] * 3
    rig.scheduler.finish(dear.call_id, Usage(1, 0), Outcome.CANCELLED, 0.0)
    assert rig.owner(rig.dispatch()) == "b", "what it was charged too much counts no more"


def test_a_continuation_has_its_head_start_between_users_of_one_tenant_too(make_rig):
    rig = make_rig(continuation_head_start=3.0)
    owner = {}

    def offer(user, **kwargs):
        owner[rig.enqueue("a", user, **kwargs).call_id] = user

    offer("agent", interaction="i")
    for _ in range(3):
        offer("plain")
    assert owner[rig.serve()] == "agent", "it came first"
    offer("agent", interaction="i")
    assert owner[rig.serve()] == "agent", "ahead by its head start"


def test_what_waits_at_a_change_of_policy_owes_nothing(make_rig):
    """Who came first and had nothing yet must not go before all calls of one whom arrival order served."""
    rig = make_rig(policy=Policy.FCFS, tenant_a={"weight": 1.0})
    for _ in range(20):
        rig.enqueue("a")
        rig.serve()
    for _ in range(10):
        rig.enqueue("b")
        rig.enqueue("a")
    rig.scheduler.configure(dataclasses.replace(rig.scheduler.settings, policy=Policy.FAIRSERVE))
    assert [rig.owner(rig.dispatch()) for _ in range(10)].count("a") == 5


def test_a_call_is_settled_by_the_weights_at_its_dispatch(make_rig):
    """Otherwise a changed weight leaves what was charged in the counter, or takes back what never was."""
    rig = make_rig(tenant_a={"weight": 4.0}, application={"weight": 2.0})
    rig.enqueue("a")
    dispatched = rig.dispatch()
    old = rig.scheduler.settings
    tenants = MappingProxyType({"a": TenantSettings("a", weight=1.0)})
    applications = MappingProxyType({"chat": dataclasses.replace(old.applications["chat"], weight=1.0)})
    rig.scheduler.configure(dataclasses.replace(old, tenants=tenants, applications=applications))
    settled = rig.finish(dispatched.call_id, output_tokens=500)
    tenant = rig.scheduler.tenant("a")
    assert settled.units > dispatched.units
    assert tenant.counter == settled.units // 4
    assert tenant.flows["u"].counter == settled.units // 2
