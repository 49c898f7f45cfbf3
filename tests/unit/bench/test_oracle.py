"""The order that knows beforehand who is well-behaved."""

from __future__ import annotations

from bench.oracle import WellBehavedFirst
from fairserve.core import Call, Outcome, Settings, TenantSettings, Usage
from fairserve.core.catalogue import DISCIPLINES


def test_others_go_only_while_no_well_behaved_user_waits():
    settings = Settings(default_tenant=TenantSettings("_default"))
    oracle = WellBehavedFirst(settings, good=lambda user: user == "good", discipline=DISCIPLINES["W"])
    for number, user in enumerate(("loud", "good", "loud", "good"), start=1):
        oracle.enqueue(Call(number, "t", user, "chat", 10), 0.0)
    oracle.check()
    order = []
    while (dispatched := oracle.dispatch(1.0)) is not None:
        order.append(dispatched.call_id)
    assert order == [2, 4, 1, 3]
    assert (oracle.queued, oracle.running, set(oracle.running_calls())) == (0, 4, {1, 2, 3, 4})
    for number in order:
        oracle.finish(number, Usage(10, 5), Outcome.COMPLETED, 2.0)
    assert oracle.running == 0
