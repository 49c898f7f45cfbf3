"""The overload watch: what it asks, what it says, and where it goes on after a restart."""

from __future__ import annotations

from typing import Any

from fairserve.overload.settings import OnStale, OverloadSettings, OverloadState, SignalSettings, Verdict
from fairserve_operator.clients.prometheus import Reading
from fairserve_operator.decide.resources import SERVING_POOL, ObjectKey
from fairserve_operator.decide.signals import OverloadPlan
from fairserve_operator.handlers.delivery import OverloadOrder
from fairserve_operator.handlers.overload import OverloadWatch, stored_state
from tests.unit.operator_handlers.world import FakeWorld, fake_world, until

OVERLOADED: dict[str, Any] = {
    "conditions": [{"type": "Overloaded", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]
}


def plan(threshold: float = 3.0, interval_s: float = 0.005) -> OverloadPlan:
    signals = (SignalSettings("busy", threshold, threshold / 2),)
    settings = OverloadSettings(signals, stale_after_s=30.0, on_stale=OnStale.HOLD, hold_down_s=0.0)
    return OverloadPlan(settings, {"busy": "up"}, {}, interval_s, "http://p")


class Watched:
    """A watch, and what it told."""

    def __init__(
        self, world: FakeWorld, before: dict[str, Any] | None = None, interval_s: float = 0.005
    ) -> None:
        self.orders: list[OverloadOrder] = []
        self.verdicts: list[Verdict] = []
        self.watch = OverloadWatch(
            ObjectKey(SERVING_POOL, "ns", "llm"),
            plan(interval_s=interval_s),
            world.metrics,
            lambda: world.now,
            before,
            self.orders.append,
            self.verdicts.append,
        )
        world.tasks.start(self.watch.run(), "watch")


async def test_each_evaluation_is_told_and_only_news_is_published() -> None:
    async with fake_world() as world:
        watched = Watched(world)
        await until(lambda: len(watched.orders) > 3, "several evaluations")
        assert len(watched.verdicts) == 1
        world.metrics.reading = Reading(4.0)
        await until(lambda: watched.orders[-1].armed, "the armed order")
        assert [verdict.armed for verdict in watched.verdicts] == [False, True]
        assert watched.orders[-1].lease_s == 30.0
        assert "busy is 4" in watched.orders[-1].reason


async def test_restart_goes_on_with_the_stored_state() -> None:
    async with fake_world() as world:
        world.metrics.reading = Reading(None, "not there yet")
        watched = Watched(world, OVERLOADED)
        await until(lambda: len(watched.orders) > 2, "several evaluations")
        assert all(order.armed for order in watched.orders)
        assert not watched.verdicts[0].changed
        assert watched.verdicts[0].since == 1767225610.0


async def test_changed_plan_is_evaluated_at_once() -> None:
    async with fake_world() as world:
        world.metrics.reading = Reading(4.0)
        watched = Watched(world, interval_s=3600.0)
        await until(lambda: watched.orders, "the first evaluation")
        watched.watch.replan(plan(interval_s=3600.0))  # Equal: no reason to hurry.
        watched.watch.replan(plan(threshold=9.0, interval_s=3600.0))
        await until(lambda: len(watched.orders) == 2, "the second evaluation")
        assert not watched.orders[-1].armed


def test_stored_state_is_read_from_the_condition() -> None:
    since = 1767225610.0
    assert stored_state(OVERLOADED) == (OverloadState.OVERLOADED, since)
    clear = {"conditions": [{**OVERLOADED["conditions"][0], "status": "False"}]}
    assert stored_state(clear) == (OverloadState.CLEAR, since)
    assert stored_state({"conditions": [{**OVERLOADED["conditions"][0], "status": "Unknown"}]}) is None
    assert stored_state({}) is None
