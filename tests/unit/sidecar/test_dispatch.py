"""The dispatcher, with calls that go nowhere."""

from __future__ import annotations

from fairserve.core import Call, Dispatched, DispatchWindow, Outcome, Scheduler, Settings, Usage
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
