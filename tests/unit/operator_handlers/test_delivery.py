"""Deliveries: every sidecar ends up with the document and the order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from fairserve.config import SchedulerConfig
from fairserve.rendering import Renderer, Rendering
from fairserve_operator.clients.sidecars import ControlPort, Newer, Rejected, Running, State, Unreachable
from fairserve_operator.handlers.delivery import Document, OverloadOrder, Pace, PoolDelivery
from fairserve_operator.handlers.lanes import Lanes
from fairserve_operator.handlers.tasks import wait_for_event
from tests.unit.operator_handlers.world import (
    FAST,
    PATIENT,
    FakeSidecars,
    FakeWorld,
    document,
    fake_world,
    pod,
    rest,
    until,
)


class Whole(Document):
    """A document that always travels whole, in the words of the fake sidecars."""

    def __init__(self, generation: int, content_hash: str = "h") -> None:
        super().__init__(generation, content_hash, Rendering(content_hash, 0, {}, {}))

    async def whole(self) -> bytes:
        return document(self.generation, self.content_hash)


FIRST, SECOND = Whole(1), Whole(2, "g")
ARMED = OverloadOrder(True, 30.0, "queue-wait is 9")


class Delivered(PoolDelivery):
    """A delivery that counts its calls back."""

    def __init__(self, world: FakeWorld, pace: Pace, lanes: Lanes | None = None) -> None:
        self.changes = self.outdated_calls = 0
        super().__init__(
            "llm",
            world.sidecars,
            lanes or Lanes(),
            world.tasks,
            self._count_change,
            self._count_outdated,
            lambda pod, state: None,
            lambda: world.now,
            random.Random(3),
            pace,
        )

    def _count_change(self) -> None:
        self.changes += 1

    def _count_outdated(self) -> None:
        self.outdated_calls += 1

    def generations(self) -> dict[str, int | None]:
        return {ack.pod: ack.generation for ack in self.acks()}


@asynccontextmanager
async def delivering(
    *names: str, pace: Pace = PATIENT, lanes: Lanes | None = None
) -> AsyncIterator[tuple[FakeWorld, Delivered]]:
    async with fake_world() as world:
        delivery = Delivered(world, pace, lanes)
        await delivery.follow([pod(name) for name in names])
        yield world, delivery


async def test_every_pod_gets_the_document_once() -> None:
    async with delivering("a", "b") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1, "b": 1}, "all acknowledged")
        delivery.aim(Whole(1), 8001, "token")  # Equal: nothing to do.
        await rest()
        assert sorted(host for host, _ in world.sidecars.pushes) == ["a", "b"]
        assert world.sidecars.tokens == {"token"}
        assert delivery.settled
        assert delivery.changes >= 2


async def test_unreachable_pod_is_tried_until_it_answers() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.down = {"a"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: len(world.sidecars.looks) > 5, "several tries")
        assert delivery.acks()[0].error == "refused"
        assert delivery.settled  # It was tried; waiting longer would not help status.
        world.sidecars.down = set()
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        assert delivery.acks()[0].error == ""


async def test_newer_document_replaces_one_that_never_arrived() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.down = {"a"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: world.sidecars.looks, "a try")
        delivery.aim(SECOND, 8001, "token")
        world.sidecars.down = set()
        await until(lambda: delivery.generations() == {"a": 2}, "the second document")
        assert world.sidecars.running["a"] == Running(2, "g")


async def test_pods_that_fail_take_no_slots_from_those_that_answer() -> None:
    async with delivering("a", "b", lanes=Lanes(lane=1, slow_lane=1)) as (world, delivery):
        world.sidecars.down = {"a", "b"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.settled, "a first try of both")
        world.sidecars.hanging = {"a", "b"}
        tries = len(world.sidecars.looks)
        await until(lambda: len(world.sidecars.looks) > tries, "a try that hangs")
        await delivery.follow([pod("a"), pod("b"), pod("c")])
        delivery.aim(SECOND, 8001, "token")
        await until(lambda: delivery.generations()["c"] == 2, "the pod that answers")


async def test_pod_that_hangs_delays_only_itself() -> None:
    async with delivering("a", "b") as (world, delivery):
        world.sidecars.hanging = {"a"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": None, "b": 1}, "the other pod")
        assert not delivery.settled


async def enter(
    lanes: Lanes, failed_before: bool, entered: list[str], name: str, leave: asyncio.Event
) -> None:
    async with lanes.slot(failed_before):
        entered.append(name)
        await leave.wait()


async def test_call_that_hangs_gives_its_slot_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes, entered, hangs, works = Lanes(lane=1, slow_lane=1), list[str](), asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(enter(lanes, False, entered, "hangs", hangs))
        await until(lambda: entered == ["hangs"], "the first call")
        monkeypatch.setattr("fairserve_operator.handlers.lanes._LONGEST_HOLD_S", 3600.0)
        tasks.create_task(enter(lanes, False, entered, "second", works))
        await until(lambda: entered == ["hangs", "second"], "the slot of the call that hangs")
        hangs.set()  # What it has given back already, it does not give back again.
        tasks.create_task(enter(lanes, False, entered, "third", works))
        await rest()
        assert entered == ["hangs", "second"]
        works.set()


async def test_those_that_failed_before_have_a_lane_of_their_own() -> None:
    lanes, entered, leave = Lanes(lane=1, slow_lane=1), list[str](), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for name in ("slow", "slow too"):
            tasks.create_task(enter(lanes, True, entered, name, leave))
        tasks.create_task(enter(lanes, False, entered, "quick", leave))
        await rest()
        assert entered == ["slow", "quick"]
        leave.set()


class Noted(Lanes):
    """Lanes that note who comes: whether it failed before."""

    def __init__(self) -> None:
        super().__init__()
        self.failed_before: list[bool] = []

    def slot(self, failed_before: bool) -> AbstractAsyncContextManager[None]:
        self.failed_before.append(failed_before)
        return super().slot(failed_before)


async def test_every_kind_of_call_that_failed_before_takes_the_slow_lane() -> None:
    lanes = Noted()
    async with delivering("a", lanes=lanes) as (world, delivery):
        world.sidecars.down = {"a"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: len(world.sidecars.looks) > 2, "several looks")
        assert lanes.failed_before[:3] == [False, True, True]
        world.sidecars.answers["a"] = [Unreachable("refused")] * 2
        lanes.failed_before.clear()
        world.sidecars.down = set()
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        assert lanes.failed_before[-3:] == [False, True, True]  # Pushes, after a look that succeeded.
        await rest()
        lanes.failed_before.clear()
        world.sidecars.down = {"a"}
        delivery.order(ARMED)
        await until(lambda: len(lanes.failed_before) > 2, "several tries to tell")
        assert lanes.failed_before[:3] == [False, True, True]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long sidecars were left alone, in seconds."""
    found: list[float] = []

    async def noted(event: asyncio.Event, timeout_s: float) -> bool:
        found.append(timeout_s)
        return await wait_for_event(event, timeout_s)

    monkeypatch.setattr("fairserve_operator.handlers.delivery.wait_for_event", noted)
    return found


LONG_S = 1e6  #: so long that what a test takes is nothing beside it


async def test_retries_of_two_pods_are_apart(pauses: list[float]) -> None:
    async with delivering("a", "b", pace=Pace(LONG_S, LONG_S)) as (world, delivery):
        world.sidecars.down = {"a", "b"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: len(pauses) >= 2, "both pauses")
        await rest()
        assert all(0.5 * LONG_S <= pause <= LONG_S for pause in pauses)
        assert max(pauses) - min(pauses) > 0.001 * LONG_S


async def test_looks_at_two_pods_are_apart(pauses: list[float]) -> None:
    async with delivering("a", "b", pace=Pace(resync_s=LONG_S)) as (_, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: len(pauses) >= 2, "both pauses")
        await rest()
        assert all(0.799 * LONG_S <= pause <= 1.2 * LONG_S for pause in pauses)
        assert max(pauses) - min(pauses) > 0.001 * LONG_S


async def test_rejected_document_is_not_pushed_again_but_orders_are() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Rejected(422, "tenants.0.weight: must be positive")]
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.acks()[0].error, "the rejection")
        delivery.order(ARMED)
        await until(lambda: world.sidecars.orders, "the order")
        await rest()
        assert len(world.sidecars.pushes) == 1
        assert "HTTP 422: tenants.0.weight" in delivery.acks()[0].error


def rendered(generation: int, weight: float) -> Document:
    """A document of which differences can be made."""
    config = SchedulerConfig.model_validate(
        {
            "pool": "ns/llm",
            "generation": generation,
            "identity": {"salt": "00" * 16},
            "tenants": [{"name": f"t{number}", "weight": 1.0 + number / 7} for number in range(50)]
            + [{"name": "u", "weight": weight}],
        }
    )
    rendering = Renderer().render(config)
    return Document(generation, rendering.content_hash, rendering)


async def test_change_travels_as_a_difference_to_what_runs() -> None:
    async with delivering("a", "b") as (world, delivery):
        delivery.aim(rendered(1, 1.0), 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1, "b": 1}, "the whole document")
        delivery.aim(rendered(2, 2.0), 8001, "token")
        await until(lambda: delivery.generations() == {"a": 2, "b": 2}, "the difference")
        assert [host for host, _ in world.sidecars.pushes] == ["a", "b"]
        (_, one), (_, other) = world.sidecars.differences
        assert one is other  # Made once for all.


async def test_sidecar_that_runs_another_base_gets_the_whole_document() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(rendered(1, 1.0), 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the whole document")
        world.sidecars.running["a"] = Running(0, "")  # It started anew, and nobody has noticed.
        delivery.aim(rendered(2, 2.0), 8001, "token")
        await until(lambda: delivery.generations() == {"a": 2}, "the acknowledgement")
        assert (len(world.sidecars.differences), len(world.sidecars.pushes)) == (1, 2)


async def test_sidecar_that_booted_from_the_secret_is_given_nothing() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.running["a"] = Running(1, "h")
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        assert world.sidecars.pushes == []


async def test_newer_generation_on_a_sidecar_is_reported() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Newer(41, "x")]
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.outdated_calls, "the report")
        assert delivery.highest_seen == 41
        delivery.aim(Whole(42), 8001, "token")
        await until(lambda: delivery.generations() == {"a": 42}, "the overtaking document")


async def test_other_content_of_the_same_generation_counts_as_higher() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Newer(1, "x")]
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.outdated_calls, "the report")
        assert delivery.highest_seen == 2


async def test_answer_with_another_generation_is_no_acknowledgement() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Running(1, "something else")] * 3
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: "something el" in delivery.acks()[0].error, "the complaint")
        assert delivery.generations() == {"a": None}
        await until(lambda: delivery.generations() == {"a": 1}, "the fourth try")
        assert len(world.sidecars.pushes) == 4


async def test_restarted_container_is_given_everything_anew() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        delivery.order(ARMED)
        await until(lambda: world.sidecars.orders, "the order")
        world.sidecars.running.clear()
        await delivery.follow([pod("a", incarnation="main:1")])
        await until(lambda: len(world.sidecars.orders) == 2, "the order again")
        assert [host for host, _ in world.sidecars.pushes] == ["a", "a"]
        assert delivery.generations() == {"a": 1}


async def test_last_order_reaches_each_process_once_also_one_that_was_away() -> None:
    async with delivering("a", "b", pace=FAST) as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        delivery.order(ARMED)
        await until(lambda: len(world.sidecars.orders) == 2, "the order")
        world.sidecars.down = {"b"}
        delivery.order(OverloadOrder(False, 1.0, "no more", last=True))
        await until(lambda: world.sidecars.orders[2:], "the last order")
        world.sidecars.down = set()
        await until(lambda: len(world.sidecars.orders) == 4, "the last order to who was away")
        assert sorted(world.sidecars.orders[2:]) == [(pod, False, 1.0, "no more") for pod in ("a", "b")]
        delivery.aim(SECOND, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 2, "b": 2}, "another document")
        await rest()
        assert len(world.sidecars.orders) == 4


async def test_pod_that_starts_anew_does_not_wait_for_the_call_that_hangs() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.hanging = {"a"}
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: world.sidecars.looks, "the call that hangs")
        await delivery.follow([pod("a", ip="b")])
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement from the new address")


async def test_pod_that_becomes_ready_is_looked_at_at_once() -> None:
    async with delivering() as (world, delivery):
        await delivery.follow([pod("a", ready=False)])
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.running["a"] = Running(0, "")
        await delivery.follow([pod("a", ready=True)])
        await until(lambda: len(world.sidecars.pushes) == 2, "the second push")


async def test_resync_catches_a_sidecar_that_lost_its_document() -> None:
    async with delivering("a", pace=FAST) as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.running["a"] = Running(0, "")
        await until(lambda: world.sidecars.running["a"] == Running(1, "h"), "the document again")
        assert world.sidecars.looks


async def test_resync_comes_however_often_overload_is_evaluated() -> None:
    async with delivering("a", pace=replace(PATIENT, resync_s=0.3)) as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.running["a"] = Running(1, "what nobody gave it")

        def evaluated() -> bool:
            delivery.order(replace(ARMED))
            return world.sidecars.running["a"] == Running(1, "h")

        await until(evaluated, "the document again")


async def test_generation_in_the_answer_to_an_order_tells_of_a_restart() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.running["a"] = Running(0, "")
        delivery.order(ARMED)
        await until(lambda: world.sidecars.running["a"] == Running(1, "h"), "the document again")
        await until(lambda: len(world.sidecars.orders) == 2, "the order again, which the restart has lost")


async def test_every_order_is_told_to_every_pod_and_new_pods_hear_the_last() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        delivery.order(ARMED)
        await until(lambda: len(world.sidecars.orders) == 1, "the first order")
        delivery.order(OverloadOrder(True, 30.0, "queue-wait is 9"))  # Equal, but it renews the lease.
        await until(lambda: len(world.sidecars.orders) == 2, "the renewal")
        await delivery.follow([pod("a"), pod("b")])
        await until(lambda: len(world.sidecars.orders) == 3, "the new pod's order")
        assert world.sidecars.orders[-1] == ("b", True, 30.0, "queue-wait is 9")


async def test_order_that_did_not_arrive_is_repeated() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.down = {"a"}
        delivery.order(ARMED)
        await until(lambda: delivery.acks()[0].error == "refused", "the failure")
        assert delivery.generations() == {"a": 1}  # What it acknowledged still holds.
        world.sidecars.down = set()
        await until(lambda: world.sidecars.orders, "the order")


async def test_pods_that_go_are_let_go() -> None:
    async with delivering("a", "b") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.settled, "the acknowledgements")
        await delivery.follow([pod("b")])
        assert delivery.generations() == {"b": 1}
        await delivery.close()
        delivery.aim(SECOND, 8001, "token")
        await rest()
        assert len(world.sidecars.pushes) == 2


async def test_a_thousand_pods_are_not_called_at_once() -> None:
    async with fake_world() as world:
        most = 0

        class Counting(FakeSidecars):
            inside = 0

            async def put_config(self, port: ControlPort, document_gz: bytes) -> Running:
                nonlocal most
                self.inside += 1
                most = max(most, self.inside)
                await asyncio.sleep(0)
                self.inside -= 1
                return Running(1, "h")

        world.sidecars = Counting()
        delivery = Delivered(world, PATIENT)
        await delivery.follow([pod(f"p{number}") for number in range(1000)])
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: set(delivery.generations().values()) == {1}, "all acknowledged")
        assert 1 < most <= 128


async def test_unreachable_words_are_told_once_per_change() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Unreachable("no answer in time")] * 5
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: len(world.sidecars.pushes) >= 4, "several tries")
        assert delivery.changes == 1
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")


async def test_sidecar_that_contradicts_its_acknowledgement_is_not_believed_again() -> None:
    async with delivering("a", "b", pace=FAST) as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1, "b": 1}, "the acknowledgements")
        world.sidecars.says["a"] = Running(0, "")
        await until(lambda: "but says that it runs 0" in delivery.acks()[0].error, "the contradiction")
        for _ in range(50):
            await asyncio.sleep(0.001)  # It acknowledges with each push.
            assert delivery.generations() == {"a": None, "b": 1}
        del world.sidecars.says["a"]
        await until(lambda: delivery.generations() == {"a": 1, "b": 1}, "the truth")


async def test_order_answered_with_another_generation_is_looked_into_once_for_each_order() -> None:
    async with delivering("a") as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        world.sidecars.told_with["a"] = 7
        looks = len(world.sidecars.looks)
        for count in (1, 2, 3):
            delivery.order(OverloadOrder(True, 30.0, "queue-wait is 9"))
            await until(lambda count=count: len(world.sidecars.looks) == looks + count, "the look")  # type: ignore[misc]
            await rest()
        assert len(world.sidecars.looks) == looks + 3
        assert len(world.sidecars.pushes) == 1
        assert delivery.generations() == {"a": 1}  # The state is what counts.


async def test_sidecar_that_says_now_this_now_that_is_called_after_pauses_only() -> None:
    hour = Pace(first_retry_s=3600.0, last_retry_s=3600.0, resync_s=3600.0)
    async with delivering("a", pace=hour) as (world, delivery):
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.generations() == {"a": 1}, "the acknowledgement")
        # Each order makes doubtful what it runs, and each second look into its state denies it.
        world.sidecars.told_with["a"] = 7
        states = itertools.cycle([Running(0, ""), Running(1, "h")])

        async def get_state(port: ControlPort) -> State:
            world.sidecars.looks.append(port.host)
            return State(next(states))

        world.sidecars.get_state = get_state  # type: ignore[method-assign]
        delivery.order(ARMED)
        await until(lambda: len(world.sidecars.pushes) == 2, "the push after the first denial")
        await rest()
        assert (len(world.sidecars.pushes), len(world.sidecars.looks)) == (2, 4)
        assert delivery.generations() == {"a": None}


async def test_sidecar_that_is_always_ahead_raises_the_generation_ever_more_rarely() -> None:
    async with delivering("a", "b") as (world, delivery):
        world.sidecars.ahead = {"a": 1}
        generation, raised = 1, 0
        for _ in range(40):
            seen, pushes = delivery.highest_seen, len(world.sidecars.pushes)
            delivery.aim(Whole(generation), 8001, "token")
            await until(lambda pushes=pushes: len(world.sidecars.pushes) == pushes + 2, "both")  # type: ignore[misc]
            await rest()
            raised += delivery.highest_seen > seen
            generation = max(generation, delivery.highest_seen) + 1
        assert raised == 6  # The first, second, fourth, 8th, 16th and 32nd time.
        assert delivery.generations() == {"a": None, "b": generation - 1}


async def test_generation_beyond_all_counting_is_not_outdone() -> None:
    async with delivering("a") as (world, delivery):
        world.sidecars.answers["a"] = [Newer(2**70, "x")]
        delivery.aim(FIRST, 8001, "token")
        await until(lambda: delivery.acks()[0].error, "the complaint")
        assert delivery.highest_seen == 0
