"""Any interleaving of events leaves the scheduler consistent, its accounts exact and its promises kept."""

import dataclasses
import random
from types import MappingProxyType

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairserve.core import (
    ApplicationSettings,
    Call,
    Limit,
    Outcome,
    Policy,
    Profile,
    QueueBounds,
    Queued,
    Refused,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)

TENANTS = ("a", "b", "c")
APPLICATIONS = ("chat", "agent")


def make_settings(policy, weights):
    return Settings(
        policy=policy,
        tenants=MappingProxyType(
            {
                name: TenantSettings(
                    name, weight, per_user=Limit(2, 30.0), queue=QueueBounds(max_requests=6, max_wait_s=50.0)
                )
                for name, weight in zip(TENANTS, weights, strict=True)
            }
        ),
        applications=MappingProxyType(
            {
                "chat": ApplicationSettings("chat", Profile(50.0, 20.0)),
                "agent": ApplicationSettings("agent", Profile(500.0, 100.0), weight=2.0),
            }
        ),
    )


weights = st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.ids = 0
        self.waiting = set()
        self.running = set()
        self.settled = dict.fromkeys(TENANTS, 0.0)
        self.admitted = set()

    @initialize(policy=st.sampled_from(Policy), weights=weights)
    def start(self, policy, weights):
        self.scheduler = Scheduler(make_settings(policy, weights), random.Random(0))

    @rule(
        tenant=st.sampled_from(TENANTS),
        user=st.sampled_from(["u", "v"]),
        application=st.sampled_from(APPLICATIONS),
        interaction=st.sampled_from([None, "i", "j"]),
        tokens=st.integers(0, 5_000),
    )
    def enqueue(self, tenant, user, application, interaction, tokens):
        self.ids += 1
        call = Call(self.ids, tenant, user, application, tokens, interaction=interaction)
        armed = self.scheduler.armed
        decision = self.scheduler.enqueue(call, self.now)
        if isinstance(decision, Refused):
            assert armed or decision.refusal.reason.value.startswith("queue_")
            return
        assert isinstance(decision, Queued)
        self.waiting.add(call.call_id)
        self.waiting -= {evicted.call_id for evicted in decision.evicted}

    @precondition(lambda self: self.waiting)
    @rule()
    def dispatch(self):
        dispatched = self.scheduler.dispatch(self.now)
        assert dispatched is not None, "something waits, so something is dispatched"
        self.waiting.remove(dispatched.call_id)
        self.running.add(dispatched.call_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), output=st.integers(0, 10_000))
    def progress(self, data, output):
        self.scheduler.progress(data.draw(st.sampled_from(sorted(self.running))), output)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        usage=st.builds(Usage, st.integers(0, 5_000), st.integers(0, 10_000), st.integers(0, 5_000)),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.CANCELLED, Outcome.FAILED]),
    )
    def finish(self, data, usage, outcome):
        call_id = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(call_id)
        settled = self.scheduler.finish(call_id, usage, outcome, self.now)
        self.settled[settled.tenant] += settled.service

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        call_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(call_id)
        assert self.scheduler.cancel(call_id, self.now)

    @rule(seconds=st.floats(0.0, 40.0))
    def time_passes(self, seconds):
        self.now += seconds
        evicted = {e.call_id for e in self.scheduler.expire(self.now)}
        assert evicted <= self.waiting
        self.waiting -= evicted

    @rule(armed=st.booleans())
    def overload(self, armed):
        self.scheduler.set_armed(armed)

    @rule(policy=st.sampled_from(Policy), weights=weights)
    def configure(self, policy, weights):
        self.scheduler.configure(make_settings(policy, weights))

    @rule()
    def restart(self):
        """What waits and runs is lost with its connections; what was settled is not."""
        while self.running:
            call_id = self.running.pop()
            settled = self.scheduler.finish(call_id, Usage(1, 1), Outcome.FAILED, self.now)
            self.settled[settled.tenant] += settled.service
        kept = self.scheduler.snapshot(self.now)
        self.waiting.clear()
        armed, settings = self.scheduler.armed, self.scheduler.settings
        self.scheduler = Scheduler(settings, random.Random(1))
        self.scheduler.set_armed(armed)
        self.scheduler.restore(kept, self.now)

    @invariant()
    def consistent(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        assert self.scheduler.queued == len(self.waiting)
        assert self.scheduler.running == len(self.running)

    @invariant()
    def charges_equal_costs(self):
        """What a tenant was charged is what its ended calls cost plus what its running calls are charged."""
        if not hasattr(self, "scheduler"):
            return
        charged = dict(self.settled)
        for running in self.scheduler.running_calls().values():
            charged[running.ticket.call.tenant] += running.charged
        for name, tenant in self.scheduler.backlog.tenants.items():
            assert tenant.service == pytest.approx(charged[name], rel=1e-9, abs=1e-6)


SchedulerMachine.TestCase.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase


def test_the_machine_would_notice_a_lost_refund():
    """The negative control of the accounts: a scheduler that never settles fails the machine."""

    class NeverSettles(Scheduler):
        def finish(self, call_id, usage, outcome, now):
            running = self.running_calls()[call_id]
            predicted = Usage(running.ticket.call.input_tokens, running.charged_output)
            settled = super().finish(call_id, predicted, outcome, now)
            return dataclasses.replace(settled, service=running.cost.service(usage))

    machine = SchedulerMachine()
    machine.start(Policy.FAIRSERVE, [1.0, 1.0, 1.0])
    machine.scheduler = NeverSettles(machine.scheduler.settings, random.Random(0))
    machine.enqueue("a", "u", "chat", None, 10)
    machine.dispatch()
    machine.running.clear()
    settled = machine.scheduler.finish(1, Usage(10, 9_999), Outcome.COMPLETED, 0.0)
    machine.settled["a"] += settled.service
    with pytest.raises(AssertionError):
        machine.charges_equal_costs()
