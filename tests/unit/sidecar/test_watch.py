"""What is known of the engine while it answers, and what is believed when it no longer does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fairserve.core.calls import Call
from fairserve.core.scheduler import Scheduler
from fairserve.core.settings import Settings
from fairserve.core.window import DispatchWindow
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.messages import ResponseHead
from fairserve.sidecar.metrics import Metrics
from fairserve.sidecar.upstream import Failure, UpstreamPool
from fairserve.sidecar.watch import STALE_S, EngineWatch

TEXT = b"""\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 0
vllm:kv_cache_usage_perc{engine="0"} 0.9
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
"""


class Engine:
    """Stands for the pool: answers at once what a test says, or not at all (None)."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes | int | Failure | None] = {b"/health": b"", b"/metrics": TEXT}

    def send(self, data: bytes, receiver: Any) -> Engine:
        answer = self.answers.get(data.split(b" ")[1], 404)
        if isinstance(answer, Failure):
            receiver.failed(answer)
        elif answer is not None:
            status, body = (answer, b"") if isinstance(answer, int) else (200, answer)
            receiver.received(ResponseHead(status, b"", []), body, ended=True)
        return self

    def cancel(self) -> None:
        """Nobody waits for the answer."""


class Rig:
    def __init__(self) -> None:
        self.now = 100.0
        self.engine = Engine()
        scheduler = Scheduler(Settings())
        self.dispatcher = Dispatcher(scheduler, DispatchWindow(), Metrics(), lambda: self.now)
        pool = cast("UpstreamPool", self.engine)
        self.watch = EngineWatch(pool, self.dispatcher, 0.25, lambda: self.now)
        self.watch.timeout_s = 0.001

    def runs(self, input_tokens: int) -> None:
        """A call is in the engine."""
        self.dispatcher.scheduler.enqueue(Call(1, "t", "u", "a", input_tokens, max_output_tokens=0), self.now)
        self.dispatcher.scheduler.dispatch(self.now)


@pytest.fixture
def rig():
    return Rig()


async def test_fresh_numbers_count(rig):
    await rig.watch.look()
    assert rig.watch.problem is None
    assert rig.watch.age_s(rig.now) == 0.0
    full = rig.watch.saturation(rig.now)
    rig.engine.answers[b"/metrics"] = TEXT.replace(b"0.9", b"0.45")
    await rig.watch.look()
    assert rig.watch.saturation(rig.now) == pytest.approx(full / 2)


@pytest.mark.parametrize("unreadable", [500, b"", TEXT.replace(b" 0.9", b" NaN"), Failure.BROKEN, None])
async def test_last_numbers_hold_for_a_while_and_then_what_is_in_flight_counts(rig, unreadable):
    await rig.watch.look()
    full = rig.watch.saturation(rig.now)
    rig.engine.answers[b"/metrics"] = unreadable
    rig.now += STALE_S
    await rig.watch.look()
    assert rig.watch.age_s(rig.now) == STALE_S
    assert rig.watch.saturation(rig.now) == full
    rig.now += 0.1
    assert rig.watch.saturation(rig.now) == 0.0, "nothing is in flight"
    rig.runs(1_440)  # of 1,600 tokens
    assert rig.watch.saturation(rig.now) == pytest.approx(full)


async def test_engine_that_never_told_its_numbers_is_judged_by_its_queue(rig):
    rig.engine.answers[b"/metrics"] = 404
    await rig.watch.look()
    assert rig.watch.problem is None
    assert rig.watch.age_s(rig.now) is None
    assert rig.watch.saturation(rig.now) == 0.0


@pytest.mark.parametrize("answer", [Failure.UNREACHABLE, 500, 503])
async def test_engine_that_is_gone_or_dead_holds_calls_until_it_is_back(rig, answer):
    rig.engine.answers[b"/health"] = answer
    await rig.watch.look()
    assert rig.dispatcher.held
    assert rig.watch.problem is not None
    rig.engine.answers[b"/health"] = b""
    await rig.watch.look()
    assert not rig.dispatcher.held
    assert rig.watch.problem is None


async def test_engine_that_does_not_answer_is_given_a_few_chances(rig):
    held = []
    rig.engine.answers[b"/health"] = None
    for _ in range(2):
        await rig.watch.look()
        held.append(rig.dispatcher.held)
    rig.engine.answers[b"/health"] = b""
    await rig.watch.look()
    rig.engine.answers[b"/health"] = None
    for _ in range(3):
        await rig.watch.look()
        held.append(rig.dispatcher.held)
    assert held == [False, False, False, False, True]
    assert rig.watch.problem == "the engine's /health does not answer"
