"""Any interleaving of events leaves the scheduler consistent, its accounts exact and its promises kept.

The machine keeps books of its own, in whole units: what each call is charged, who pays it at which weight,
and what is settled. They must equal the scheduler's counters to the last unit after every step.
"""

import dataclasses
import json
import math
from types import MappingProxyType

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fairserve.core import (
    UNIT,
    ApplicationSettings,
    Call,
    CallError,
    InteractionRules,
    Learning,
    Limit,
    Outcome,
    Policy,
    Profile,
    QueueBounds,
    Queued,
    RefusalReason,
    Refused,
    Scheduler,
    Settings,
    TenantSettings,
    TotalBounds,
    Usage,
)
from fairserve.core.catalogue import DISCIPLINES
from fairserve.core.cost import price, sane

TENANTS = ("a", "b", "c")
APPLICATIONS = ("chat", "agent", "unlisted")


def make_settings(policy, weights, head_start=1.0, share=0.8):
    return Settings(
        policy=policy,
        normalisation=share,
        continuation_head_start=head_start,
        queue=TotalBounds(max_requests=14, max_bytes=5_000),
        tenants=MappingProxyType(
            {
                name: TenantSettings(
                    name,
                    weight,
                    per_user=Limit(2, 30.0),
                    total=Limit(5, 60.0),
                    queue=QueueBounds(
                        6, 50.0, max_bytes=3_000, max_requests_per_user=4, max_bytes_per_user=2_500
                    ),
                )
                for name, weight in zip(TENANTS, weights, strict=True)
            }
        ),
        applications=MappingProxyType(
            {
                "chat": ApplicationSettings(
                    "chat", Profile(50.0, 20.0), total=Limit(6, 40.0), learning=Learning(min_samples=1)
                ),
                "agent": ApplicationSettings(
                    "agent",
                    Profile(500.0, 100.0, 50.0),
                    weight=weights[0],
                    per_tenant=Limit(4, 30.0),
                    interaction=InteractionRules(20.0, 5, 200.0),
                ),
            }
        ),
    )


weights = st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3)
policies = st.sampled_from(Policy)
disciplines = st.sampled_from([None, None, *DISCIPLINES.values()])


class Book:
    """What one call has been charged, and at which weights."""

    def __init__(self, ticket):
        self.call, self.rate, self.tariff = ticket.call, ticket.rate, ticket.tariff
        self.weights = ticket.tenant_weight, ticket.application_weight
        self.units = 0

    def charge(self, usage):
        self.units = int(price(sane(usage), self.call.system_tokens, self.tariff) * self.rate)

    @property
    def of_tenant(self):
        return int(self.units / self.weights[0])

    @property
    def of_flow(self):
        return int(self.units / self.weights[1])


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.ids = 0
        self.waiting = {}
        self.books = {}
        self.settled = dict.fromkeys(TENANTS, 0)
        #: What is on each counter for good, besides lifts: (tenant, user) or (tenant, None).
        self.paid = {}
        self.lifts = {}
        self.may_lift = True

    @initialize(discipline=disciplines, policy=policies, weights=weights)
    def start(self, policy, weights, discipline=None):
        self.fixed = discipline
        self.scheduler = Scheduler(make_settings(policy, weights), discipline)

    @rule(
        tenant=st.sampled_from(TENANTS),
        user=st.sampled_from("uv"),
        application=st.sampled_from(APPLICATIONS),
        interaction=st.sampled_from([None, "i", "j"]),
        tokens=st.integers(0, 5_000),
        size=st.integers(0, 1_500),
    )
    def enqueue(self, tenant, user, application, interaction, tokens, size=0):
        self.ids += 1
        self.may_lift = True
        call = Call(self.ids, tenant, user, application, tokens, 40, interaction=interaction, body_bytes=size)
        armed = self.scheduler.armed or self.scheduler.discipline.throttling.counts_calls
        decision = self.scheduler.enqueue(call, self.now)
        if isinstance(decision, Refused):
            assert armed or decision.refusal.reason is RefusalReason.QUEUE_FULL
            return
        assert isinstance(decision, Queued)
        self.waiting[call.call_id] = decision.begins_interaction
        for evicted in decision.evicted:
            assert self.waiting.pop(evicted.call_id), "only calls that begin an interaction make room"

    @precondition(lambda self: self.waiting)
    @rule()
    def enqueue_again(self):
        call = self.scheduler.backlog.calls[next(iter(self.waiting))].call
        with pytest.raises(CallError):
            self.scheduler.enqueue(call, self.now)

    @precondition(lambda self: self.waiting)
    @rule()
    def dispatch(self):
        dispatched = self.scheduler.dispatch(self.now)
        assert dispatched is not None, "something waits, so something is dispatched"
        del self.waiting[dispatched.call_id]
        ticket = self.scheduler.running_calls()[dispatched.call_id]
        book = self.books[dispatched.call_id] = Book(ticket)
        book.charge(Usage(book.call.input_tokens, dispatched.predicted_output_tokens))
        assert book.units == dispatched.units

    @precondition(lambda self: self.books)
    @rule(data=st.data(), output=st.integers(0, 10_000))
    def progress(self, data, output):
        call_id = data.draw(st.sampled_from(sorted(self.books)))
        self.scheduler.progress(call_id, output)
        ticket, book = self.scheduler.running_calls()[call_id], self.books[call_id]
        assert ticket.charged_output >= output
        book.charge(Usage(book.call.input_tokens, ticket.charged_output))

    @precondition(lambda self: self.books)
    @rule(
        data=st.data(),
        usage=st.builds(Usage, st.integers(-5, 5_000), st.integers(-5, 10_000), st.integers(-5, 5_000)),
        outcome=st.sampled_from([Outcome.COMPLETED, Outcome.CANCELLED, Outcome.FAILED]),
    )
    def finish(self, data, usage, outcome):
        self.end(data.draw(st.sampled_from(sorted(self.books))), usage, outcome)

    def end(self, call_id, usage, outcome):
        settled = self.scheduler.finish(call_id, usage, outcome, self.now)
        book = self.books.pop(call_id)
        book.charge(usage)
        assert settled.units == book.units, "the charge that stays is the actual cost"
        call = book.call
        self.settled[call.tenant] += settled.units
        self.pay(call.tenant, None, book.of_tenant)
        self.pay(call.tenant, call.user, book.of_flow)

    @precondition(lambda self: self.books)
    @rule(data=st.data())
    def turn_away(self, data):
        """The engine refuses a call before it computes anything: it waits again and has cost nothing."""
        call_id = data.draw(st.sampled_from(sorted(self.books)))
        begins = not self.scheduler.running_calls()[call_id].continues
        self.scheduler.requeue(call_id, self.now)
        del self.books[call_id]
        self.waiting[call_id] = begins

    def pay(self, tenant, user, units):
        self.paid[tenant, user] = self.paid.get((tenant, user), 0) + units

    @rule(tenant=st.sampled_from(TENANTS), user=st.sampled_from("uv"), cost=st.floats(0.0, 50.0))
    def absorb(self, tenant, user, cost):
        self.may_lift = True
        self.scheduler.absorb((tenant, user), cost)
        self.pay(tenant, user, int(cost * UNIT))
        self.pay(tenant, None, int(cost * UNIT / self.scheduler.tenant_settings(tenant).weight))

    @rule(
        tenant=st.sampled_from(TENANTS),
        user=st.sampled_from("uv"),
        application=st.sampled_from(APPLICATIONS),
        usage=st.builds(Usage, st.integers(-5, 5_000), st.integers(-5, 10_000)),
    )
    def charge(self, tenant, user, application, usage):
        """Something is computed outside of the queue."""
        self.may_lift = True
        units = self.scheduler.charge(Call(0, tenant, user, application, 0), usage)
        self.settled[tenant] += units
        weight = self.scheduler.application_settings(application).weight
        self.pay(tenant, user, int(units / weight))
        self.pay(tenant, None, int(units / self.scheduler.tenant_settings(tenant).weight))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        call_id = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[call_id]
        assert self.scheduler.cancel(call_id, self.now)

    @rule(seconds=st.one_of(st.floats(0.0, 40.0), st.floats(-100.0, 2_000.0)))
    def time_passes(self, seconds):
        """Or goes back, or jumps."""
        self.now += seconds
        evicted = [e.call_id for e in self.scheduler.expire(self.now)]
        for call_id in evicted:
            del self.waiting[call_id]

    @rule(armed=st.booleans())
    def overload(self, armed):
        self.scheduler.set_armed(armed)

    @rule(policy=policies, weights=weights, head_start=st.floats(0.0, 5.0), share=st.floats(0.0, 1.0))
    def configure(self, policy, weights, head_start, share):
        before = self.scheduler.discipline.ordering
        self.scheduler.configure(make_settings(policy, weights, head_start, share))
        if self.scheduler.discipline.ordering is not before:
            self.forgiven()

    def forgiven(self):
        """Counters began anew; what runs was charged to the old ones and moves the new ones no more."""
        for book in self.books.values():
            book.weights = math.inf, math.inf
        self.paid.clear()
        self.lifts.clear()
        self.may_lift = True

    @rule()
    def restart(self):
        """What waits and runs is lost with its connections. The account holds what was settled, no more; the
        counters also what was charged for calls that ran.
        """
        kept = json.loads(json.dumps(self.scheduler.snapshot(self.now)))
        for book in self.books.values():
            self.pay(book.call.tenant, None, book.of_tenant)
            self.pay(book.call.tenant, book.call.user, book.of_flow)
        self.books.clear()
        self.waiting.clear()
        armed, settings = self.scheduler.armed, self.scheduler.settings
        self.scheduler = Scheduler(settings, self.fixed)
        self.scheduler.set_armed(armed)
        self.now += 1_000.0
        self.scheduler.restore(kept, self.now)

    @invariant()
    def consistent(self):
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        assert self.scheduler.queued == len(self.waiting)
        assert self.scheduler.running == len(self.books)

    @invariant()
    def charges_equal_costs(self):
        """What a tenant was charged is what its ended calls cost plus what its running calls are charged."""
        if not hasattr(self, "scheduler"):
            return
        charged = dict(self.settled)
        for book in self.books.values():
            charged[book.call.tenant] += book.units
        for name, tenant in self.scheduler.backlog.tenants.items():
            assert tenant.service == charged[name]

    @invariant()
    def counters_hold_charges_and_lifts(self):
        """A counter is what was charged to it and what it was lifted by, which happens only to who comes."""
        if not hasattr(self, "scheduler"):
            return
        live = {}
        for book in self.books.values():
            call = book.call
            live[call.tenant, None] = live.get((call.tenant, None), 0) + book.of_tenant
            live[call.tenant, call.user] = live.get((call.tenant, call.user), 0) + book.of_flow
        known = {}
        for name, tenant in self.scheduler.backlog.tenants.items():
            known[name, None] = tenant.counter
            known |= {(name, user): flow.counter for user, flow in tenant.flows.items()}
        lifts = {key: counter - self.paid.get(key, 0) - live.get(key, 0) for key, counter in known.items()}
        for key, lift in lifts.items():
            before = self.lifts.get(key)
            if before is not None:
                assert lift >= before, "nothing is taken off a counter but what was charged to it"
                assert self.may_lift or lift == before, "only who comes is lifted"
        self.paid = {key: units for key, units in self.paid.items() if key in known}
        self.lifts, self.may_lift = lifts, False


SchedulerMachine.TestCase.settings = hypothesis_settings(
    max_examples=80, stateful_step_count=40, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase


def test_the_machine_would_notice_a_lost_refund():
    """The negative control of the accounts: a scheduler that never settles fails the machine."""

    class NeverSettles:
        def __init__(self, scheduler):
            self._scheduler = scheduler

        def __getattr__(self, name):
            return getattr(self._scheduler, name)

        def finish(self, call_id, usage, outcome, now):
            running = self.running_calls()[call_id]
            predicted = Usage(running.call.input_tokens, running.charged_output)
            settled = self._scheduler.finish(call_id, predicted, outcome, now)
            actual = int(price(usage, running.call.system_tokens, running.tariff) * running.rate)
            return dataclasses.replace(settled, units=actual)

    machine = SchedulerMachine()
    machine.start(Policy.FAIRSERVE, [1.0, 1.0, 1.0])
    machine.scheduler = NeverSettles(machine.scheduler)
    machine.enqueue("a", "u", "chat", None, 10)
    machine.dispatch()
    machine.end(1, Usage(10, 9_999), Outcome.COMPLETED)
    with pytest.raises(AssertionError):
        machine.charges_equal_costs()


def test_the_machine_would_notice_a_cut_counter():
    machine = SchedulerMachine()
    machine.start(Policy.FAIRSERVE, [1.0, 1.0, 1.0])
    machine.enqueue("a", "u", "chat", None, 10)
    machine.dispatch()
    machine.counters_hold_charges_and_lifts()
    machine.scheduler.tenant("a").counter -= 1
    with pytest.raises(AssertionError):
        machine.counters_hold_charges_and_lifts()


def test_a_replaced_setting_is_a_new_value():
    """The machine relies on settings being values."""
    chosen = make_settings(Policy.FCFS, [1.0, 1.0, 1.0])
    assert dataclasses.replace(chosen, normalisation=0.1) != chosen
