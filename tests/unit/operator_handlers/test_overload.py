"""The overload watch: what it asks, what it says, and where it goes on after a restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fairserve.overload.settings import OnStale, OverloadSettings, OverloadState, SignalSettings, Verdict
from fairserve_operator.clients.prometheus import Reading
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.resources import SERVING_POOL, ObjectKey, SecretRef
from fairserve_operator.decide.signals import OverloadPlan, PrometheusAccess
from fairserve_operator.handlers.delivery import OverloadOrder
from fairserve_operator.handlers.overload import OverloadWatch, stored_state
from fairserve_operator.handlers.secret_values import secret_value
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
        self,
        world: FakeWorld,
        before: dict[str, Any] | None = None,
        interval_s: float = 0.005,
        this: OverloadPlan | None = None,
    ) -> None:
        self.orders: list[OverloadOrder] = []
        self.verdicts: list[Verdict] = []
        self.watch = OverloadWatch(
            ObjectKey(SERVING_POOL, "ns", "llm"),
            this or plan(interval_s=interval_s),
            world.metrics,
            lambda ref: secret_value(world.store, ref),
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


async def test_restored_overload_is_held_down_from_the_restart_on() -> None:
    settings = replace(plan().settings, hold_down_s=3600.0)
    async with fake_world() as world:
        watched = Watched(world, OVERLOADED, this=replace(plan(), settings=settings))
        await until(lambda: len(watched.orders) > 2, "several evaluations")
        assert all(order.armed for order in watched.orders)
        assert watched.verdicts[-1].reason == "HoldDown"


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
    year_0 = {**OVERLOADED["conditions"][0], "lastTransitionTime": "0000-01-01T00:00:00Z"}
    assert stored_state({"conditions": [year_0]}) is None
    assert stored_state({}) is None


def stored_since(time: str) -> dict[str, Any]:
    return {"conditions": [{**OVERLOADED["conditions"][0], "lastTransitionTime": time}]}


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
async def test_stored_time_of_no_year_that_can_be_written_counts_as_none(time: str) -> None:
    assert stored_state(stored_since(time)) is None
    async with fake_world() as world:
        watched = Watched(world, stored_since(time))
        await until(lambda: watched.verdicts, "the first evaluation")
        assert (watched.verdicts[0].armed, watched.verdicts[0].since) == (False, world.now)


@pytest.mark.parametrize(
    "time", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999Z", "0001-01-01T00:00:00.5Z"]
)
def test_every_stored_time_that_is_taken_can_be_told_again(time: str) -> None:
    taken = stored_state(stored_since(time))
    assert taken is not None
    assert rfc3339(taken[1]) == f"{time[:19]}Z"


TOKEN, CA = SecretRef("ns", "prometheus", "token"), SecretRef("ns", "prometheus", "ca.crt")
USER, PASSWORD = SecretRef("ns", "prometheus", "username"), SecretRef("ns", "prometheus", "password")


def put_secret(world: FakeWorld, version: int, **entries: bytes) -> None:
    values = {name.replace("_", "."): value for name, value in entries.items()}
    world.store.put_secret("ns", "prometheus", version, values)


async def test_rotated_secret_is_used_for_the_next_evaluation_and_a_deleted_one_is_staleness() -> None:
    secured = replace(plan(), access=PrometheusAccess(bearer_token=TOKEN, ca=CA))
    async with fake_world() as world:
        watched, connections = Watched(world, this=secured), world.metrics.connections
        await until(lambda: watched.verdicts, "the first evaluation")
        assert 'not read: busy: Secret "prometheus" not found' in watched.verdicts[0].message
        put_secret(world, 1, token=b"first\n", ca_crt=b"PEM")
        await until(lambda: connections, "the first connection")
        put_secret(world, 2, token=b"second", ca_crt=b"PEM")
        await until(lambda: len(connections) == 2, "the second connection")
        assert [each.source.authorization for each in connections] == ["Bearer first", "Bearer second"]
        assert connections[1].source.ca_pem == "PEM"
        assert connections[0].closed
        heard = len(watched.orders)
        await until(lambda: len(watched.orders) > heard + 3, "more evaluations")
        assert len(connections) == 2, "nothing has changed"
        put_secret(world, 3, ca_crt=b"PEM")
        await until(lambda: "has no key" in watched.verdicts[-1].message, "the verdict about it")
        assert connections[1].closed
        shown = [watched.orders, watched.verdicts, [each.source for each in connections]]
    assert not any(secret in repr(shown) for secret in ("first", "second"))
    assert "PEM" not in repr(shown)


async def test_user_and_password_travel_as_http_has_it() -> None:
    secured = replace(plan(), access=PrometheusAccess(username=USER, password=PASSWORD, verify=False))
    async with fake_world() as world:
        put_secret(world, 1, username=b"me", password=b"p:w ")
        Watched(world, this=secured)
        await until(lambda: world.metrics.connections, "the connection")
        source = world.metrics.connections[0].source
        assert (source.authorization, source.verify) == ("Basic bWU6cDp3", False)


@pytest.mark.parametrize("token", [b"a\nb", b"\xff", "ä".encode()])
async def test_token_that_no_header_can_carry_is_named(token: bytes) -> None:
    async with fake_world() as world:
        put_secret(world, 1, token=token)
        watched = Watched(world, this=replace(plan(), access=PrometheusAccess(bearer_token=TOKEN)))
        await until(lambda: watched.verdicts, "the evaluation")
        assert (
            'key "token" of Secret "prometheus" is nothing that a caller can send in a header'
            in watched.verdicts[0].message
        )


def joint_plan() -> OverloadPlan:
    """Two signals that are asked for together, and one of the user's own."""
    signals = tuple(SignalSettings(name, 3.0, 1.0) for name in ("wait", "kv", "mine"))
    queries = {"wait": "q(wait)", "kv": "q(kv)", "mine": "q(mine)"}
    settings = OverloadSettings(signals, on_stale=OnStale.HOLD, hold_down_s=0.0)
    return OverloadPlan(settings, queries, {}, 3600.0, "http://p", joint={"q(wait) or q(kv)": ("wait", "kv")})


async def test_signals_are_asked_for_together_and_alone_where_one_of_them_is_refused() -> None:
    async with fake_world() as world:
        watched = Watched(world, this=joint_plan())
        await until(lambda: watched.orders, "the evaluation")
        asked = [promql for _, promql, _ in world.metrics.queries]
        assert sorted(asked) == ["q(mine)", "q(wait) or q(kv)"]
        assert watched.verdicts[0].reason == "SignalsClear"

        world.metrics.refused.add("q(kv)")
        world.metrics.readings["q(wait)"] = Reading(7.0)
        watched.watch.replan(replace(joint_plan(), interval_s=3599.0))
        await until(lambda: len(watched.orders) == 2, "the second evaluation")
        assert watched.orders[-1].armed
        assert watched.verdicts[-1].message == (
            "wait is 7 (threshold 3, clears below 1); not read: kv: parse error"
        )


async def test_problem_that_ticks_is_told_once() -> None:
    async with fake_world() as world:
        watched = Watched(world)
        for seconds in range(5):
            world.metrics.reading = Reading(None, f"out of order by {seconds} s", "HTTP 500")
            told = len(watched.orders)
            await until(lambda told=told: len(watched.orders) > told + 1, "an evaluation")  # type: ignore[misc]
        assert [verdict.message for verdict in watched.verdicts if "out of" in verdict.message] == [
            watched.verdicts[-1].message
        ]
        world.metrics.reading = Reading(None, "no connection", "connection")
        await until(lambda: "no connection" in watched.verdicts[-1].message, "another problem")


@pytest.mark.parametrize(
    "mended",
    [
        replace(plan(), prometheus_url="http://q"),
        replace(plan(), queries={"busy": "down"}),
        replace(plan(), access=PrometheusAccess(verify=False)),
    ],
)
async def test_problem_of_what_was_changed_since_is_forgotten(mended: OverloadPlan) -> None:
    async with fake_world() as world:
        world.metrics.reading = Reading(None, "the first words", "connection")
        watched = Watched(world)
        await until(lambda: watched.verdicts, "the first evaluation")
        world.metrics.reading = Reading(None, "the second words", "connection")
        watched.watch.replan(plan(threshold=4.0))
        told = len(watched.orders)
        await until(lambda: len(watched.orders) > told + 1, "an evaluation by another threshold")
        assert "the first words" in watched.verdicts[-1].message
        watched.watch.replan(mended)
        await until(lambda: "the second words" in watched.verdicts[-1].message, "what is the matter now")


async def test_problem_names_the_secret_that_is_missing_now_and_a_rotated_one_is_tried() -> None:
    first, second = (
        replace(plan(), access=PrometheusAccess(bearer_token=SecretRef("ns", name, "token")))
        for name in ("one", "prometheus")
    )
    async with fake_world() as world:
        world.metrics.reading = Reading(None, "refuses the first", "HTTP 401")
        watched = Watched(world, this=first)
        await until(lambda: watched.verdicts, "the first evaluation")
        watched.watch.replan(second)
        await until(lambda: 'Secret "prometheus" not' in watched.verdicts[-1].message, "the other Secret")
        put_secret(world, 1, token=b"a")
        await until(lambda: "refuses the first" in watched.verdicts[-1].message, "the answer")
        world.metrics.reading = Reading(None, "refuses the second", "HTTP 401")
        put_secret(world, 2, token=b"b")
        await until(lambda: "refuses the second" in watched.verdicts[-1].message, "the other answer")


async def test_wall_clock_that_jumps_moves_no_state() -> None:
    async with fake_world() as world:
        world.metrics.reading = Reading(4.0)
        watched = Watched(world)
        await until(lambda: watched.orders and watched.orders[-1].armed, "the armed order")
        began = watched.verdicts[-1].since
        world.metrics.reading = Reading(None, "late", "late")
        for jump in (86_400.0, -172_800.0):
            world.now += jump
            told = len(watched.orders)
            await until(lambda told=told: len(watched.orders) > told + 1, "an evaluation")  # type: ignore[misc]
        assert watched.orders[-1].armed
        assert not watched.verdicts[-1].stale
        assert watched.verdicts[-1].since == began
