"""A scheduler in a few words: two tenants, one application, and calls of known size."""

import os
from types import MappingProxyType

import pytest

from fairserve.core import (
    ApplicationSettings,
    Call,
    CallError,
    Outcome,
    Profile,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)

#: Compiled values take whole numbers alone: what is none is refused where it is made, by TypeError.
COMPILED = os.environ.get("FAIRSERVE_CORE", "plain") == "compiled"


@pytest.fixture
def wrong_type():
    """What refuses a call with a field of the wrong type."""
    return TypeError if COMPILED else CallError


@pytest.fixture
def make_usage():
    """A usage; None for one that, compiled, can't be made, which is made sure of."""

    def make(*counts):
        if COMPILED and any(isinstance(count, float) for count in counts):
            with pytest.raises(TypeError):
                Usage(*counts)
            return None
        return Usage(*counts)

    return make


class Rig:
    """Drives one scheduler and numbers its calls. Every step checks the scheduler's invariants."""

    def __init__(self, settings):
        self.scheduler = Scheduler(settings)
        self._ids = 0

    def call(self, tenant="a", user="u", application="chat", interaction=None, input_tokens=100, **more):
        self._ids += 1
        return Call(
            self._ids,
            tenant=tenant,
            user=user,
            application=application,
            interaction=interaction,
            input_tokens=input_tokens,
            **more,
        )

    def enqueue(self, *args, now=0.0, **kwargs):
        decision = self.scheduler.enqueue(self.call(*args, **kwargs), now)
        self.scheduler.check()
        return decision

    def dispatch(self, now=0.0):
        decision = self.scheduler.dispatch(now)
        self.scheduler.check()
        return decision

    def finish(self, call_id, input_tokens=100, output_tokens=50, outcome=Outcome.COMPLETED, now=0.0):
        settled = self.scheduler.finish(call_id, Usage(input_tokens, output_tokens), outcome, now)
        self.scheduler.check()
        return settled

    def owner(self, dispatched):
        """Whose call runs."""
        return self.scheduler.running_calls()[dispatched.call_id].call.tenant

    def serve(self, now=0.0, **usage):
        """Dispatch and finish the next call; its id."""
        dispatched = self.dispatch(now)
        self.finish(dispatched.call_id, now=now, **usage)
        return dispatched.call_id


def settings(**changes):
    known = {
        "tenants": MappingProxyType({"a": TenantSettings("a", weight=3.0), "b": TenantSettings("b")}),
        "applications": MappingProxyType({"chat": ApplicationSettings("chat", Profile(100.0, 50.0))}),
    }
    return Settings(**(known | changes))


@pytest.fixture
def make_rig():
    """`make_rig(tenant_a={...}, application={...}, **settings)` gives a Rig."""

    def make(tenant_a=None, application=None, **changes):
        if tenant_a is not None:
            tenants = {"a": TenantSettings("a", **tenant_a), "b": TenantSettings("b")}
            changes["tenants"] = MappingProxyType(tenants)
        if application is not None:
            chat = ApplicationSettings("chat", Profile(100.0, 50.0), **application)
            changes["applications"] = MappingProxyType({"chat": chat})
        return Rig(settings(**changes))

    return make
