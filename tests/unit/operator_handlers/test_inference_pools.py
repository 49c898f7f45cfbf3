"""Pools that name an InferencePool, and pools that meet in a pod, in a world of fakes."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fairserve_operator.decide.inference_pools import PENDING, InferencePool
from fairserve_operator.decide.resources import SERVING_POOL, TENANT
from fairserve_operator.errors import ApiServerError, NotFoundError, UnreachableError
from fairserve_operator.handlers.inference_pools import Lookout, LookPace, Sightings
from tests.unit.operator_handlers.test_loop import Operated
from tests.unit.operator_handlers.world import fake_world, pod, rest, until

QUICK = LookPace(interval_s=0.002, absent_s=0.002)


def inference_pool(name: str = "vllm", namespace: str = "ns", **labels: str) -> dict[str, Any]:
    spec = {"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}]}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


@asynccontextmanager
async def operating(*listed: dict[str, Any]) -> AsyncIterator[Operated]:
    """Pods a and b, one each of two applications, and somebody who looks out for InferencePools."""
    async with fake_world() as world:
        operated = Operated(world)
        world.cluster.pools = list(listed)

        def learned(namespace: str) -> None:
            world.store.touch(namespace)
            operated.loop.mark(namespace)

        lookout = Lookout(world.world.inference_pools, world.cluster, ("ns",), learned, QUICK)
        for name in ("a", "b"):
            world.store.put_pod(pod(name, labels={"app": name, "gpu": "yes"}), 1)
        operated.put(TENANT, "team", {})
        await operated.loop.start()
        world.tasks.start(lookout.run(), "look out")
        yield operated


async def test_nobody_is_asked_before_a_pool_names_one() -> None:
    async with operating() as operated:
        operated.put(SERVING_POOL, "llm", {"selector": {"matchLabels": {"app": "a"}}})
        await operated.until_condition("llm", "Ready", "True")
        assert operated.world.cluster.looks == 0
        operated.put(SERVING_POOL, "other", {"poolRef": {"name": "vllm"}})
        await until(lambda: operated.world.cluster.looks, "a look")


async def test_a_pool_has_the_pods_that_its_inference_pool_selects_and_follows_it() -> None:
    async with operating(inference_pool(app="a")) as operated:
        operated.put(SERVING_POOL, "llm", {"poolRef": {"name": "vllm"}})
        await operated.until_condition("llm", "Ready", "True")
        assert operated.world.sidecars.running.keys() == {"a"}
        states = [c["status"] for c in _published(operated, "llm", "ResolvedRefs")]
        assert states == ["True"], "no status is written before it was looked for"
        operated.world.cluster.pools = [inference_pool(app="b")]
        await until(lambda: "b" in operated.world.sidecars.running, "the pod that it selects now")
        operated.world.cluster.pools = []
        missing = await operated.until_condition("llm", "ResolvedRefs", "False")
        assert missing["reason"] == "InferencePoolMissing"
        operated.put(TENANT, "late", {})
        await until(lambda: operated.programmed("late") == "1/1", "the pod that it had last")


async def test_a_kind_that_is_installed_later_is_found() -> None:
    async with operating() as operated:
        operated.world.cluster.pools = NotFoundError("list of inferencepools", 404, "page not found")
        operated.put(SERVING_POOL, "llm", {"poolRef": {"name": "vllm"}})
        missing = await operated.until_condition("llm", "ResolvedRefs", "False")
        assert missing["reason"] == "InferencePoolNotInstalled"
        assert '"llm"' in missing["message"]
        assert '"vllm"' in missing["message"]
        operated.world.cluster.pools = [inference_pool(app="a")]
        await operated.until_condition("llm", "Ready", "True")


async def test_a_right_that_lacks_is_told() -> None:
    async with operating() as operated:
        operated.world.cluster.pools = ApiServerError("list of inferencepools", 403, "forbidden: no right")
        operated.put(SERVING_POOL, "llm", {"poolRef": {"name": "vllm"}})
        missing = await operated.until_condition("llm", "ResolvedRefs", "False")
        assert missing["reason"] == "InferencePoolForbidden"
        assert "forbidden: no right" in missing["message"]


async def test_what_was_seen_holds_while_the_api_server_is_away() -> None:
    async with operating(inference_pool(app="a")) as operated:
        operated.put(SERVING_POOL, "llm", {"poolRef": {"name": "vllm"}})
        await operated.until_condition("llm", "Ready", "True")
        operated.world.cluster.pools = UnreachableError("list of inferencepools", 0, "away")
        looks = operated.world.cluster.looks
        await until(lambda: operated.world.cluster.looks > looks + 2, "looks that fail")
        await rest()
        assert operated.condition("llm", "ResolvedRefs")["status"] == "True"


def test_sightings_are_kept_for_those_alone_who_want_them() -> None:
    sightings, seen = Sightings(), {"vllm": InferencePool({"app": "a"}, frozenset())}
    assert not sightings.put("ns", seen)
    sightings.want("ns", True)
    assert sightings.of("ns") is PENDING
    assert sightings.put("ns", seen)
    assert not sightings.put("ns", dict(seen)), "nothing new"
    sightings.want("ns", False)
    assert sightings.of("ns") is PENDING


@pytest.mark.parametrize("by_name", [False, True])
async def test_a_pod_that_two_pools_select_is_the_older_ones_and_both_are_told(by_name: bool) -> None:
    async with operating(inference_pool(gpu="yes")) as operated:
        young = {"poolRef": {"name": "vllm"}} if by_name else {"selector": {"matchLabels": {"gpu": "yes"}}}
        operated.put(SERVING_POOL, "first", {"selector": {"matchLabels": {"app": "a"}}})
        operated.put(SERVING_POOL, "second", young)  # Of one age; the names decide.
        lacks = await operated.until_condition("second", "Conflicted", "True")
        has = await operated.until_condition("first", "Conflicted", "True")
        for told in (lacks, has):
            for each in (
                'ServingPool "first"',
                'ServingPool "second"',
                'pod "a"; ServingPool "first" has it',
            ):
                assert each in told["message"]
        await operated.until_condition("first", "Ready", "True")
        assert operated.condition("second", "ResolvedRefs")["reason"] == "SelectorConflict"
        await until(lambda: operated.programmed("second") == "1/1", "the pod that is left")
        pods = operated.world.sidecars
        assert _pools(pods.pushes, "a") == {"ns/first"}
        assert _pools(pods.pushes, "b") == {"ns/second"}

        operated.world.store.put_pod(pod("a", labels={"gpu": "yes"}), 2)  # It is in one pool only now.
        operated.loop.mark("ns")
        await operated.until_condition("second", "Ready", "True")
        await until(lambda: not operated.condition("first", "Conflicted"), "the end of the conflict")
        assert not operated.condition("second", "Conflicted")
        assert operated.programmed("second") == "2/2"


def _pools(pushes: list[tuple[str, bytes]], host: str) -> set[str]:
    """Whose documents a sidecar was given."""
    return {json.loads(gzip.decompress(body))["pool"] for where, body in pushes if where == host}


def _published(operated: Operated, name: str, type_: str) -> list[dict[str, Any]]:
    return [
        dict(each)
        for _, who, status in operated.world.cluster.statuses
        if who == name
        for each in status["conditions"]
        if each["type"] == type_
    ]
