"""The loop in a world of fakes: from objects in the store to documents, Secrets, statuses and Events."""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairserve.config import SchedulerConfig, key_digest
from fairserve_operator.clients.prometheus import Reading
from fairserve_operator.clients.sidecars import Newer
from fairserve_operator.decide.resources import SERVING_POOL, TENANT, ObjectKey
from fairserve_operator.errors import ApiServerError, AstrayError, NotFoundError, SetupError
from fairserve_operator.handlers import pools
from fairserve_operator.handlers.census import Headcount, require_custom_resources
from fairserve_operator.handlers.delivery import OverloadOrder, PoolDelivery
from fairserve_operator.handlers.loop import Loop, Timing
from fairserve_operator.handlers.store import Name, Store
from tests.unit.operator_handlers.world import (
    FAST,
    FakeCluster,
    FakeConnection,
    FakeWorld,
    fake_world,
    pod,
    resource,
    rest,
    until,
)

TIMING = Timing(
    quiet_s=0.002, burst_s=0.05, settle_s=0.05, first_settle_s=0.1, first_retry_s=0.001, last_retry_s=0.002
)
POOL = {"selector": {"matchLabels": {"app": "vllm"}}}
KEY = {"apiKey": {"secretRef": {"name": "team-a-key", "key": "api-key"}}}


class Operated:
    """A world with the loop in it, and two pods."""

    def __init__(self, world: FakeWorld, timing: Timing = TIMING, acting: bool = True) -> None:
        self.world = world
        self.loop = Loop(world.world, ("ns",), timing, acting)
        self._version = 0

    def put(self, kind: str, name: str, spec: dict[str, Any], generation: int = 1) -> None:
        self._version += 1
        self.world.store.put(resource(kind, name, spec, generation), self._version, {})
        self.loop.mark("ns")

    def put_secret(self, name: str, **values: bytes) -> None:
        self._version += 1
        self.world.store.put_secret(
            "ns", name, self._version, {key.replace("_", "-"): value for key, value in values.items()}
        )
        self.loop.mark("ns")

    def boot(self) -> SchedulerConfig:
        data = self.world.cluster.secrets["ns", "fairserve-llm"]["data"]
        return SchedulerConfig.from_bytes(gzip.decompress(base64.b64decode(data["config.json.gz"])))

    def running(self) -> set[int]:
        return {running.generation for running in self.world.sidecars.running.values()}

    def status(self, name: str) -> dict[str, Any]:
        """The last one published."""
        return next((dict(each) for _, who, each in reversed(self.world.cluster.statuses) if who == name), {})

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        """The last one published."""
        for _, who, status in reversed(self.world.cluster.statuses):
            if who == name:
                return dict(next((each for each in status["conditions"] if each["type"] == type_), {}))
        return {}

    def programmed(self, name: str) -> str:
        """The Pods that have it, as last published."""
        found = [status for _, who, status in self.world.cluster.statuses if who == name]
        return str(found[-1]["programmed"]) if found else ""

    def observed(self, name: str) -> int:
        """The generation that was last published."""
        found = [status for _, who, status in self.world.cluster.statuses if who == name]
        return int(found[-1]["observedGeneration"]) if found else 0

    async def until_condition(self, name: str, type_: str, status: str) -> dict[str, Any]:
        await until(
            lambda: self.condition(name, type_).get("status") == status, f"{type_}={status} of {name}"
        )
        return self.condition(name, type_)


@asynccontextmanager
async def operating(
    overload: dict[str, Any] | None = None, timing: Timing = TIMING, acting: bool = True
) -> AsyncIterator[Operated]:
    async with fake_world() as world:
        operated = Operated(world, timing, acting)
        for name in ("a", "b"):
            world.store.put_pod(pod(name), 1)
        operated.put_secret("team-a-key", api_key=b"key of team a\n")
        operated.put(SERVING_POOL, "llm", POOL | ({"overload": overload} if overload else {}))
        operated.put(TENANT, "team-a", {"weight": 3, "identity": [KEY]})
        await operated.loop.start()
        yield operated


async def test_objects_become_a_document_a_secret_and_statuses() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        await operated.until_condition("llm", "Programmed", "True")
        config = operated.boot()
        assert operated.running() == {config.generation} == {1}
        assert [(tenant.name, tenant.weight) for tenant in config.tenants] == [("team-a", 3)]
        digest = key_digest(config.identity.salt, "key of team a")  # Without the line end.
        assert config.identity.api_keys[0].digest == digest


async def test_a_burst_of_changes_compiles_once_or_twice() -> None:
    async with operating(timing=replace(TIMING, quiet_s=0.1, burst_s=10.0)) as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        for number in range(60):
            operated.put(TENANT, f"t{number}", {"weight": 1})
            await asyncio.sleep(0.001)
        await operated.until_condition("t59", "Programmed", "True")
        await rest()
        assert operated.boot().generation <= 3


async def thirty_tenants(operated: Operated) -> list[str]:
    names = [f"t{number}" for number in range(30)]
    for name in names:
        operated.put(TENANT, name, {"weight": 1})
    for name in names:
        await operated.until_condition(name, "Programmed", "True")
    return names


async def test_change_is_told_before_the_counts_that_a_new_pod_makes_old() -> None:
    slowly = replace(TIMING, refresh_s=0.1, most_refreshed=2)
    async with operating(timing=slowly) as operated:
        names = await thirty_tenants(operated)
        await rest()
        written = len(operated.world.cluster.statuses)
        operated.world.store.put_pod(pod("c"), 2)
        operated.loop.mark("ns")
        await until(lambda: "c" in operated.world.sidecars.running, "the new pod's document")
        operated.put(TENANT, "t7", {"weight": 9}, generation=2)
        await until(lambda: operated.observed("t7") == 2, "the status of what changed")
        told = {name for _, name, _ in operated.world.cluster.statuses[written:]}
        assert len(told) < 20
        await until(lambda: {operated.programmed(name) for name in names} == {"3/3"}, "all counts, in time")


async def test_what_arrives_is_told_before_the_counts_that_a_new_pod_makes_old() -> None:
    slowly = replace(TIMING, refresh_s=0.1, most_refreshed=2)
    async with operating(timing=slowly) as operated:
        names = await thirty_tenants(operated)
        operated.world.sidecars.down = {"b"}
        operated.put(TENANT, "t7", {"weight": 9}, generation=2)
        await operated.until_condition("t7", "Programmed", "False")
        await rest()
        written = len(operated.world.cluster.statuses)
        operated.world.store.put_pod(pod("c"), 2)
        operated.loop.mark("ns")
        await until(lambda: "c" in operated.world.sidecars.running, "the new pod's document")
        operated.world.sidecars.down = set()
        await operated.until_condition("t7", "Programmed", "True")
        told = {name for _, name, _ in operated.world.cluster.statuses[written:]}
        assert len(told) < 20
        await until(lambda: {operated.programmed(name) for name in names} == {"3/3"}, "all counts, in time")


async def test_status_that_somebody_else_wrote_is_put_right() -> None:
    async with operating(timing=replace(TIMING, look_back_s=0.02)) as operated:
        await operated.until_condition("team-a", "Ready", "True")
        await rest()
        store, written = operated.world.store, len(operated.world.cluster.statuses)
        stored = store.stored(ObjectKey(TENANT, "ns", "team-a"))
        assert stored is not None
        edited = {**stored.status, "programmed": "7/7"}
        store.put(stored.resource, stored.version + 1000, edited)
        await until(lambda: len(operated.world.cluster.statuses) > written, "our own words again")
        assert operated.programmed("team-a") == "2/2"


async def test_nothing_happens_before_everybody_was_seen() -> None:
    async with fake_world() as world:
        looks = 0

        class Counting(Store):
            def missing(self, kind: str, census: Iterable[Name]) -> list[Name]:
                nonlocal looks
                looks += 1
                return super().missing(kind, census)

        world.world = replace(world.world, store=Counting())
        world.store = world.world.store
        operated = Operated(world)
        world.cluster.people[TENANT] = {("ns", "team-a"): "7"}
        operated.put(SERVING_POOL, "llm", POOL)
        await operated.loop.start()
        await until(lambda: looks > 2, "several looks")
        assert world.cluster.secrets == {}
        operated.put(TENANT, "team-a", {"weight": 3})
        await operated.until_condition("team-a", "Accepted", "True")
        assert operated.boot().generation == 1


async def test_unchanged_objects_are_never_published_twice() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        written = len(operated.world.cluster.statuses)
        for _ in range(5):
            operated.loop.mark("ns")
            await rest()
        operated.put(TENANT, "team-b", {"weight": 1})
        await operated.until_condition("team-b", "Programmed", "True")
        assert {name for _, name, _ in operated.world.cluster.statuses[written:]} == {"team-b", "llm"}


async def test_refused_pool_goes_on_with_its_last_document() -> None:
    async with operating() as operated:
        await operated.until_condition("llm", "Programmed", "True")
        operated.put(SERVING_POOL, "llm", {"selector": {}, "nonsense": 1}, generation=2)
        refused = await operated.until_condition("llm", "Accepted", "False")
        assert "nonsense" in refused["message"]
        operated.world.store.put_pod(pod("c"), 9)
        operated.loop.mark("ns")
        await until(lambda: "c" in operated.world.sidecars.running, "the new pod's document")
        assert operated.running() == {1}


async def test_api_server_that_fails_is_tried_again() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        version = int(operated.world.cluster.secrets["ns", "fairserve-llm"]["metadata"]["resourceVersion"])
        operated.world.store.put_secret("ns", "fairserve-llm", version, {})
        operated.world.cluster.broken = ApiServerError("Secret", 500, "etcd is away")
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        calls = operated.world.cluster.calls
        await until(lambda: operated.world.cluster.calls > calls + 3, "several tries")
        await until(lambda: operated.running() == {2}, "the change, for which sidecars need no API server")
        operated.world.cluster.broken = None
        await until(lambda: operated.boot().generation == 2, "the changed document in the Secret")


async def test_conflict_on_the_boot_secret_is_resolved_by_reading_it_again() -> None:
    async with operating() as operated:
        await operated.until_condition("llm", "Programmed", "True")
        before = operated.boot()
        version = int(operated.world.cluster.secrets["ns", "fairserve-llm"]["metadata"]["resourceVersion"])
        operated.world.store.put_secret(
            "ns", "fairserve-llm", version, {}
        )  # The watch lags behind the others.
        operated.world.cluster.conflicts = 2
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        await until(lambda: operated.running() == {2}, "the changed document")
        assert operated.boot().identity.salt == before.identity.salt


async def test_two_operators_that_disagree_do_not_rewrite_each_other_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "_FIRST_YIELD_S", 300.0)
    async with operating() as operated:
        await operated.until_condition("llm", "Programmed", "True")
        cluster, ours = operated.world.cluster, operated.boot().content_hash
        where = "ns", "fairserve-llm"

        def other_writes() -> None:
            before, held = operated.boot(), copy.deepcopy(cluster.secrets[where])
            theirs = before.model_copy(
                update={
                    "generation": before.generation + 1,
                    "tenants": tuple(
                        each.model_copy(update={"weight": each.weight + 1}) for each in before.tenants
                    ),
                }
            )
            packed = base64.b64encode(gzip.compress(theirs.to_bytes())).decode()
            held["data"]["config.json.gz"] = packed
            version = int(held["metadata"]["resourceVersion"]) + 1000
            held["metadata"]["resourceVersion"] = str(version)
            cluster.secrets[where] = held
            operated.world.store.put_secret(*where, version, {})
            operated.loop.mark("ns")

        other_writes()
        await until(lambda: operated.boot().content_hash == ours, "ours again: it may have been a mistake")
        other_writes()
        told = await operated.until_condition("llm", "Programmed", "False")
        assert "another operator keeps writing" in told["message"]
        await rest()
        assert operated.boot().content_hash != ours


async def test_document_that_can_not_be_stored_is_delivered_and_the_pool_says_so() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        operated.world.cluster.conflicts = 1_000_000
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        await until(lambda: operated.observed("team-a") == 2, "the change in force")
        assert operated.condition("team-a", "Programmed")["status"] == "True"
        told = await operated.until_condition("llm", "Programmed", "False")
        assert told["reason"] == "NotStored"
        assert "fairserve-llm" in told["message"]
        assert operated.boot().generation == 1
        operated.world.cluster.conflicts = 0
        await operated.until_condition("llm", "Programmed", "True")
        await until(lambda: operated.boot().generation == 2, "the same in the Secret")


async def test_existing_boot_secret_is_adopted_and_not_rewritten() -> None:
    async with operating() as first:
        await first.until_condition("llm", "Programmed", "True")
        held, token = first.world.cluster.secrets, first.world.sidecars.tokens
    async with fake_world() as world:
        world.cluster.secrets = copy.deepcopy(held)
        again = Operated(world)
        world.store.put_pod(pod("a"), 1)
        again.put_secret("team-a-key", api_key=b"key of team a")
        again.put(SERVING_POOL, "llm", POOL)
        again.put(TENANT, "team-a", {"weight": 3, "identity": [KEY]})
        await again.loop.start()
        await again.until_condition("llm", "Programmed", "True")
        assert world.cluster.writes == 0
        assert world.sidecars.tokens == token
        assert again.running() == {1}


async def test_secret_of_somebody_else_is_left_alone() -> None:
    async with fake_world() as world:
        operated = Operated(world)
        foreign = {
            "metadata": {"name": "fairserve-llm", "resourceVersion": "3"},
            "data": {"password": "eA=="},
        }
        world.cluster.secrets["ns", "fairserve-llm"] = foreign
        operated.put(SERVING_POOL, "llm", POOL)
        await operated.loop.start()
        calls = world.cluster.calls
        await until(lambda: world.cluster.calls > calls + 10, "several tries")
        assert world.cluster.secrets["ns", "fairserve-llm"] == foreign
        told = await operated.until_condition("llm", "Programmed", "False")
        assert told["reason"] == "NotStored"
        assert "somebody else's" in told["message"]


async def test_edited_boot_secret_is_put_right() -> None:
    async with operating() as operated:
        await operated.until_condition("llm", "Programmed", "True")
        before = operated.boot()
        secret = operated.world.cluster.secrets["ns", "fairserve-llm"]
        secret["data"] = {**secret["data"], "config.json.gz": "Z2FyYmFnZQ=="}
        secret["metadata"]["resourceVersion"] = "500"
        operated.world.store.put_secret("ns", "fairserve-llm", 500, {})
        operated.loop.mark("ns")
        await until(
            lambda: (
                operated.world.cluster.secrets["ns", "fairserve-llm"]["data"]["config.json.gz"]
                != "Z2FyYmFnZQ=="
            ),
            "the repaired Secret",
        )
        assert operated.boot() == before


async def test_sidecar_with_a_newer_generation_is_overtaken() -> None:
    async with operating() as operated:
        operated.world.sidecars.answers["a"] = [Newer(41, "x")]
        await until(lambda: operated.running() == {42}, "a generation above the sidecar's")
        await until(lambda: operated.boot().generation == 42, "the same in the Secret")


async def test_namespace_without_a_pool_still_tells_its_tenants() -> None:
    async with fake_world() as world:
        operated = Operated(world)
        operated.put(TENANT, "team-a", {"weight": -1})
        await operated.loop.start()
        told = await operated.until_condition("team-a", "Accepted", "False")
        assert "weight" in told["message"]


async def test_overload_is_told_recorded_and_published() -> None:
    signal = {"name": "busy", "query": "up", "threshold": 3, "for": "0s"}
    overload = {
        "prometheus": {"url": "http://p"},
        "signals": [signal],
        "evaluationInterval": "100ms",
        "staleAfter": "60s",
    }
    async with operating(overload) as operated:
        await operated.until_condition("llm", "Overloaded", "False")
        operated.world.metrics.reading = Reading(4.5)
        up = await operated.until_condition("llm", "Overloaded", "True")
        assert "busy is 4.5" in up["message"]
        await until(lambda: operated.world.cluster.events, "the Event")
        assert operated.world.cluster.events[0]["reason"] == "Overloaded"
        await until(
            lambda: {host for host, armed, *_ in operated.world.sidecars.orders if armed} == {"a", "b"},
            "the orders",
        )
        url, promql, timeout_s = operated.world.metrics.queries[-1]
        assert (url, promql) == ("http://p", "up")
        assert timeout_s <= 5
        assert len(operated.world.cluster.events) == 1

        assert "evaluate llm" in {task.get_name() for task in asyncio.all_tasks()}
        operated.put(SERVING_POOL, "llm", POOL | {"overload": {**overload, "prometheus": None}}, generation=2)
        await operated.until_condition("llm", "Overloaded", "Unknown")
        assert "evaluate llm" not in {task.get_name() for task in asyncio.all_tasks()}
        orders = operated.world.sidecars.orders
        await until(lambda: {host for host, armed, *_ in orders[-2:] if not armed} == {"a", "b"}, "the end")
        last, told = orders[-1], len(orders)
        assert last[2:] == (1.0, "the pool has no Prometheus any more")
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        await until(lambda: operated.running() == {2}, "another document")
        await rest()
        assert len(orders) == told


async def test_operator_that_stands_back_leaves_overload_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[OverloadOrder | None] = []
    order = PoolDelivery.order

    def noted(self: PoolDelivery, told: OverloadOrder | None) -> None:
        given.append(told)
        order(self, told)

    monkeypatch.setattr(PoolDelivery, "order", noted)
    overload = {"prometheus": {"url": "http://p"}, "signals": [{"name": "s", "query": "up", "threshold": 3}]}
    async with operating(overload) as operated:
        operated.world.metrics.reading = Reading(9.0)
        await until(lambda: given, "the order")
        operated.loop.act(False)
        await until(lambda: given[-1] is None, "the end of orders")
        await rest()
        assert not any(each is not None and each.last for each in given)


@pytest.mark.parametrize(("status", "orders"), [("True", 2), ("Unknown", 0)])
async def test_what_an_earlier_operator_armed_is_disarmed_where_there_is_no_prometheus(
    status: str, orders: int
) -> None:
    at = "2026-01-01T00:00:10Z"
    before = {"conditions": [{"type": "Overloaded", "status": status, "lastTransitionTime": at}]}
    async with operating(acting=False) as operated:
        operated.world.store.put(resource(SERVING_POOL, "llm", POOL, 1), 9, before)
        operated.loop.act(True)
        await operated.until_condition("llm", "Programmed", "True")
        await until(lambda: len(operated.world.sidecars.orders) == orders, "the last word")
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        await until(lambda: operated.running() == {2}, "another document")
        await rest()
        assert len(operated.world.sidecars.orders) == orders


async def test_age_of_signals_counts_from_the_begin_where_none_was_ever_heard() -> None:
    def ages() -> list[float | None]:
        return [pool.signal_age_s for pool in operated.loop.view().pools]

    async with operating({"prometheus": {"url": "http://p"}, "evaluationInterval": "100ms"}) as operated:
        operated.world.metrics.reading = Reading(None, "no connection", "connection")
        await operated.until_condition("llm", "Programmed", "True")
        operated.world.now += 77.0
        await until(lambda: ages() == [77.0], "the age")
        operated.put(SERVING_POOL, "llm", POOL, generation=2)
        await until(lambda: ages() == [None], "no age without a Prometheus")


async def test_pool_that_flaps_without_hold_down_records_few_of_its_transitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overload = {
        "prometheus": {"url": "http://p"},
        "signals": [{"name": "busy", "query": "up", "threshold": 3, "for": "0s"}],
        "evaluationInterval": "100ms",
        "holdDown": "0s",
    }
    async with operating(overload) as operated:
        await operated.until_condition("llm", "Overloaded", "False")
        world, readings = operated.world, itertools.cycle((Reading(9.0), Reading(0.0)))

        async def query(connection: FakeConnection, promql: str, timeout_s: float) -> Reading:
            return next(readings)

        monkeypatch.setattr(FakeConnection, "query", query)
        for told, after_s in ((10, 0.0), (12, 60.0)):
            world.now += after_s
            await until(lambda told=told: len(world.cluster.events) >= told, "the Events")  # type: ignore[misc]
            flips = len(world.sidecars.orders) + 8  # Two pods, so at least three flips more.
            await until(lambda flips=flips: len(world.sidecars.orders) > flips, "more of them")  # type: ignore[misc]
            await rest()
            assert len(world.cluster.events) == told


async def test_deleted_pool_is_no_longer_delivered() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        operated.world.store.remove(SERVING_POOL, "ns", "llm")
        operated.loop.mark("ns")
        told = await operated.until_condition("team-a", "Programmed", "False")
        assert "no ServingPool" in told["message"]
        pushes = len(operated.world.sidecars.pushes)
        operated.world.store.put_pod(pod("c"), 9)
        operated.loop.mark("ns")
        await rest()
        assert len(operated.world.sidecars.pushes) == pushes


def working(**service: float) -> dict[str, Any]:
    """What a sidecar tells that has served."""
    return {"window": {"size": 8}, "recent": {"service_5m": service}}


async def test_statuses_show_the_sidecars_work_and_change_only_with_it() -> None:
    async with fake_world(FAST) as world:
        operated = Operated(world)
        for name in ("a", "b"):
            world.store.put_pod(pod(name), 1)
            world.sidecars.states[name] = working(**{"team-a": 1.0, "team-b": 1.0})
        operated.put(SERVING_POOL, "llm", POOL)
        for name, weight in (("team-a", 3), ("team-b", 1)):
            operated.put(TENANT, name, {"weight": weight})
        await operated.loop.start()
        shares = {"configuredPercent": 75, "achievedPercent": 50}
        await until(lambda: operated.status("team-a").get("share") == shares, "the share")
        await until(lambda: operated.status("llm").get("window") == 16, "the window")

        written, looks = len(world.cluster.statuses), len(world.sidecars.looks)
        await until(lambda: len(world.sidecars.looks) > looks + 10, "more surveys")
        assert len(world.cluster.statuses) == written
        world.sidecars.down = {"a", "b"}  # Whose work is unknown did not cease to work.
        await until(lambda: len(world.sidecars.looks) > looks + 20, "surveys without answers")
        assert len(world.cluster.statuses) == written
        world.sidecars.down = set()
        for name in ("a", "b"):
            world.sidecars.states[name] = working(**{"team-a": 3.0, "team-b": 1.0})
        await until(lambda: operated.status("team-b")["share"]["achievedPercent"] == 25, "the new share")


async def test_what_was_shown_of_work_stays_until_sidecars_were_asked_again() -> None:
    async with fake_world() as world:
        operated = Operated(world)
        world.store.put_pod(pod("a"), 1)
        world.sidecars.down = {"a"}
        shown = {"share": {"configuredPercent": 10, "achievedPercent": 20}, "refusedInteractionsLastHour": 5}
        world.store.put(resource(SERVING_POOL, "llm", POOL), 1, {"window": 7})
        world.store.put(resource(TENANT, "team-a", {}), 1, shown)
        await operated.loop.start()
        await operated.until_condition("team-a", "Programmed", "False")
        await operated.until_condition("llm", "Programmed", "False")
        assert {name: operated.status("team-a")[name] for name in shown} == shown
        assert operated.status("llm")["window"] == 7


async def test_trouble_and_its_end_are_recorded() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Ready", "True")
        assert operated.world.cluster.events == []
        operated.put(
            TENANT, "team-b", {"identity": [{"apiKey": {"secretRef": {"name": "gone", "key": "k"}}}]}
        )
        await until(lambda: operated.world.cluster.events, "the Event")
        operated.put_secret("gone", k=b"key of team b")
        await until(lambda: len(operated.world.cluster.events) == 2, "the second Event")
        told = [(each["type"], each["reason"]) for each in operated.world.cluster.events]
        assert told == [("Warning", "SecretMissing"), ("Normal", "Ready")]
        assert {each["involvedObject"]["name"] for each in operated.world.cluster.events} == {"team-b"}


async def test_who_waits_compiles_and_tells_nobody() -> None:
    async with operating(acting=False) as operated:
        measures = operated.world.world.measures
        compiled = b"fairserve_operator_compile_seconds_count 1.0"
        await until(lambda: compiled in measures.exposition(), "the compilation")
        await rest()
        cluster, sidecars = operated.world.cluster, operated.world.sidecars
        assert (cluster.secrets, cluster.statuses, sidecars.pushes, sidecars.looks) == ({}, [], [], [])
        operated.loop.act(True)
        await operated.until_condition("team-a", "Programmed", "True")
        assert operated.loop.view().acting


async def test_who_no_longer_acts_tells_nobody_more_and_may_act_again() -> None:
    async with operating() as operated:
        await operated.until_condition("team-a", "Programmed", "True")
        cluster, sidecars = operated.world.cluster, operated.world.sidecars
        operated.loop.act(False)
        written, pushed = len(cluster.statuses), len(sidecars.pushes)
        operated.put(TENANT, "team-a", {"weight": 5, "identity": [KEY]}, generation=2)
        await asyncio.sleep(5 * (TIMING.burst_s + TIMING.settle_s))
        assert (len(cluster.statuses), len(sidecars.pushes)) == (written, pushed)
        operated.loop.act(True)
        await until(lambda: operated.running() == {2}, "the change, late")
        await until(
            lambda: operated.condition("team-a", "Programmed")["observedGeneration"] == 2, "its status"
        )


async def test_who_vanished_unseen_is_forgotten() -> None:
    async with fake_world() as world:
        world.store.put(resource(TENANT, "gone", {}), 5, {})
        world.store.put(resource(TENANT, "here", {}), 5, {})
        world.cluster.people[TENANT] = {("ns", "here"): "5"}
        assert await Headcount(world.store, world.cluster, ("ns",)).forget_vanished() == {"ns"}
        assert [each.key.name for each in world.store.objects("ns", TENANT)] == ["here"]


async def test_history_that_went_back_is_noticed_by_a_look_and_by_a_count() -> None:
    async with fake_world() as world:
        headcount = Headcount(world.store, world.cluster, ("ns",))
        world.store.put(resource(TENANT, "here", {}), 900, {})
        world.cluster.people[TENANT] = {("ns", "here"): "900"}
        await headcount.look_back()
        assert await headcount.forget_vanished() == frozenset()
        world.cluster.people[TENANT] = {("ns", "here"): "400"}
        with pytest.raises(AstrayError, match="Tenant ns/here is known in a form that the API server never"):
            await headcount.forget_vanished()
        world.cluster.latest = 950
        with pytest.raises(AstrayError, match="went back from 1000 to 950"):
            await headcount.look_back()
        # Even where nobody has looked before: the store has seen a later one.
        world.cluster.latest = 800
        with pytest.raises(AstrayError, match="went back from 900 to 800"):
            await Headcount(world.store, world.cluster, ("ns",)).look_back()


async def test_watch_that_missed_a_change_for_good_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_world() as world:
        headcount = Headcount(world.store, world.cluster, ("ns",))
        world.store.put(resource(TENANT, "here", {}), 5, {})
        world.cluster.people[TENANT] = {("ns", "here"): "6"}
        await headcount.forget_vanished()
        await headcount.forget_vanished()  # So soon after it may be on its way.
        later = asyncio.get_running_loop().time() + 31
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: later)
        world.store.put(resource(TENANT, "here", {}, 2), 6, {})
        world.cluster.people[TENANT] = {("ns", "here"): "7"}
        await headcount.forget_vanished()  # That one came, and the next is missing for a moment only.
        later += 31
        with pytest.raises(AstrayError, match="watch of Tenant ns/here has missed its change"):
            await headcount.forget_vanished()


async def test_who_went_while_its_watch_was_broken_is_forgotten_after_the_next_listing() -> None:
    timing = replace(TIMING, relisted_s=0.001, census_s=3600.0)
    async with fake_world() as world:
        operated = Operated(world, timing)
        operated.put(TENANT, "gone", {})
        world.cluster.people[TENANT] = {("ns", "gone"): "1"}
        await operated.loop.start()
        await until(operated.loop.complete.is_set, "everybody")
        world.cluster.people[TENANT] = {}
        operated.loop.listed()
        await until(lambda: not world.store.objects("ns", TENANT), "the listing to be compared")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (NotFoundError("list of tenants", 404, "page not found"), "apply crds/"),
        (ApiServerError("list of tenants", 403, "tenants is forbidden"), "forbidden"),
    ],
)
async def test_cluster_that_is_not_prepared_ends_the_operator_with_words(
    problem: ApiServerError, words: str
) -> None:
    cluster = FakeCluster()
    cluster.broken = problem
    with pytest.raises(SetupError, match=words):
        await require_custom_resources(cluster, ("ns",))
