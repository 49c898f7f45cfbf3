"""Drives a scheduler through a plain engine: `slots` calls run together, a step gives each a few tokens.

Service is counted here from the decisions alone (`units` of each dispatch and settlement), so that the tests
don't take the scheduler's own counters for granted.
"""

import random
from types import MappingProxyType

from fairserve.core import (
    UNIT,
    ApplicationSettings,
    Call,
    Dispatched,
    Outcome,
    Profile,
    Settings,
    TenantSettings,
    Usage,
)
from fairserve.core.catalogue import SCHEDULERS

MAX_INPUT, MAX_OUTPUT = 800, 400
PROFILES = {"chat": Profile(100.0, 50.0), "batch": Profile(800.0, 400.0)}
#: What a typical call costs, in priced tokens: α and β are 1, γ is 2, and no term is below 1.
TYPICAL = {"chat": 100.0 + 1.0 + 100.0, "batch": 800.0 + 1.0 + 800.0}
CHEAPEST = min(TYPICAL.values())


def make_settings(weights, **changes):
    tenants = {name: TenantSettings(name, weight) for name, weight in weights.items()}
    applications = {name: ApplicationSettings(name, profile) for name, profile in PROFILES.items()}
    known = {
        "tenants": MappingProxyType(tenants),
        "applications": MappingProxyType(applications),
        "continuation_head_start": 0.0,
    }
    return Settings(**(known | changes))


def inflight_bound(slots, lightest):
    """U: what the calls in the engine can cost at most, in counter units of the lightest weight."""
    return slots * (MAX_INPUT + 2.0 * MAX_OUTPUT) / CHEAPEST / lightest


class NoRestraint:
    """The do-nothing scheduler: whatever arrives goes to the engine at once. A second negative control."""

    def __init__(self, settings):
        self._scheduler = SCHEDULERS["FCFS"](settings)
        self.running = 0

    def __getattr__(self, name):
        return getattr(self._scheduler, name)


class Drive:
    """One run."""

    def __init__(self, name, settings, seed, *, slots=4):
        self.rng = random.Random(seed)
        make = NoRestraint if name == "NoRestraint" else SCHEDULERS[name]
        self.scheduler = make(settings)
        self.slots = 10**9 if name == "NoRestraint" else slots
        self.calls = {}
        #: How long each call's answer will be.
        self.outputs = {}
        #: Running calls: output tokens so far, and how many there will be.
        self.running = {}
        #: Units charged, by call while it runs, and for good by (tenant, user).
        self.charged = {}
        self.settled = {}
        #: False: whoever drives the scheduler says that a cancelled call used nothing.
        self.charges_cancelled = True
        self._ids = 0

    def offer(self, tenant, user="u", application="chat", interaction=None, **sizes):
        self._ids += 1
        sizes.setdefault("input_tokens", self.rng.randint(1, MAX_INPUT))
        call = Call(self._ids, tenant, user, application, interaction=interaction, **sizes)
        self.calls[call.call_id] = call
        self.outputs[call.call_id] = self.rng.randint(1, MAX_OUTPUT)
        return self.scheduler.enqueue(call, 0.0)

    def fill(self):
        """Dispatch while the engine has slots."""
        while len(self.running) < self.slots:
            dispatched = self.scheduler.dispatch(0.0)
            if dispatched is None:
                assert self.scheduler.queued == 0, "work conserving: what waits goes while there is room"
                return
            assert isinstance(dispatched, Dispatched)
            self.charged[dispatched.call_id] = dispatched.units
            self.running[dispatched.call_id] = [0, self.outputs[dispatched.call_id]]

    def step(self, cancels=()):
        """A stretch of engine work. A call whose tenant cancels ends early at random."""
        for call_id, state in list(self.running.items()):
            call = self.calls[call_id]
            state[0] = min(state[1], state[0] + self.rng.randint(1, 100))
            if call.tenant in cancels and self.rng.random() < 0.5:
                self.end(call_id, Outcome.CANCELLED)
            elif state[0] == state[1]:
                self.end(call_id, Outcome.COMPLETED)
            else:
                self.scheduler.progress(call_id, state[0])
                self.charged[call_id] = self.scheduler.running_calls()[call_id].units

    def end(self, call_id, outcome):
        call, (output, _) = self.calls.pop(call_id), self.running.pop(call_id)
        usage = Usage(call.input_tokens, output)
        if outcome is Outcome.CANCELLED and not self.charges_cancelled:
            usage = Usage(0, 0)
        settled = self.scheduler.finish(call_id, usage, outcome, 0.0)
        del self.charged[call_id]
        key = call.tenant, call.user
        self.settled[key] = self.settled.get(key, 0) + settled.units

    def service(self, tenant, user=None):
        """Normalised cost charged so far, running calls included."""
        done = sum(u for (t, w), u in self.settled.items() if t == tenant and user in (None, w))
        live = sum(
            units
            for call_id, units in self.charged.items()
            if self.calls[call_id].tenant == tenant and user in (None, self.calls[call_id].user)
        )
        return (done + live) / UNIT

    def demand(self, tenant):
        """Normalised cost of everything a tenant has offered and not finished, where λ is 1."""
        return sum(
            (call.input_tokens + 2.0 * self.outputs[call_id]) / TYPICAL[call.application]
            for call_id, call in self.calls.items()
            if call.tenant == tenant
        )
