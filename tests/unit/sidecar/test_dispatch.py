"""The dispatcher, with calls that go nowhere."""

from __future__ import annotations

from fairserve.core import (
    Call,
    Dispatched,
    DispatchWindow,
    Outcome,
    QueueBounds,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.metrics import Metrics


class Waiting:
    """A call; `fails`: sending it does not work."""

    def __init__(self, dispatcher: Dispatcher, *, fails: bool = False) -> None:
        self.dispatcher, self.fails, self.went, self.told = dispatcher, fails, False, False
        self.call = Call(dispatcher.next_id(), "a", "u", "_default", input_tokens=5)

    def go(self, dispatched: Dispatched) -> None:
        if self.fails:
            raise RecursionError
        self.went = True

    def notice_silence(self, now: float, most_s: float, *, engine_answers: bool) -> None:
        pass

    def could_not_go(self) -> None:
        self.told = True
        self.dispatcher.finish(self, Usage(0, 0), Outcome.FAILED)  # type: ignore[arg-type]


def test_a_call_that_cannot_be_sent_keeps_no_slot_and_stops_no_other(caplog):
    window = DispatchWindow(maximum=1, initial=1)
    dispatcher = Dispatcher(Scheduler(Settings()), window, Metrics(), clock=lambda: 0.0)
    calls = [Waiting(dispatcher), *(Waiting(dispatcher, fails=True) for _ in range(3)), Waiting(dispatcher)]
    for call in calls:
        assert dispatcher.submit(call) is None
    assert calls[0].went
    dispatcher.finish(calls[0], Usage(5, 1), Outcome.COMPLETED)
    assert [call.told for call in calls] == [False, True, True, True, False]
    assert calls[4].went
    assert dispatcher.scheduler.running == 1
    assert caplog.text.count("could not be sent") == 3
    dispatcher.scheduler.check()


def test_the_time_that_a_call_waited_is_its_tenants():
    now = 0.0
    metrics = Metrics()
    window = DispatchWindow(maximum=1, initial=1)
    dispatcher = Dispatcher(Scheduler(Settings()), window, metrics, clock=lambda: now)
    first, second = Waiting(dispatcher), Waiting(dispatcher)
    for call in (first, second):
        dispatcher.submit(call)
    assert b"fairserve_tenant_queue_wait_seconds_total{" not in metrics.exposition()
    now = 2.5
    dispatcher.finish(first, Usage(5, 1), Outcome.COMPLETED)
    assert b'fairserve_tenant_queue_wait_seconds_total{tenant="a"} 2.5' in metrics.exposition()


def test_who_is_refused_or_evicted_was_not_served_in_full():
    now = 0.0
    bounds = QueueBounds(max_requests=1, max_wait_s=5.0)
    settings = Settings(default_tenant=TenantSettings("_default", queue=bounds))
    metrics = Metrics()
    window = DispatchWindow(maximum=1, initial=1)
    dispatcher = Dispatcher(Scheduler(settings), window, metrics, clock=lambda: now)

    def call_of(user: str) -> Waiting:
        waiter = Waiting(dispatcher)
        waiter.call = Call(waiter.call.call_id, "a", user, "_default", input_tokens=5)
        waiter.evicted = lambda refusal: None
        return waiter

    served, evicted, refused = call_of("served"), call_of("evicted"), call_of("refused")
    assert [dispatcher.submit(call) is None for call in (served, evicted, refused)] == [True, True, False]
    assert metrics.experience.counts() == {"a": (1, 0)}
    now = 6.0
    dispatcher.expire()
    assert metrics.experience.counts() == {"a": (2, 0)}
    dispatcher.finish(served, Usage(5, 1), Outcome.COMPLETED)
    assert metrics.experience.counts() == {"a": (3, 1)}
