"""Two teams in front of two vLLM Pods, through the Service: shares by weight, and OIT when it is too much."""

import asyncio
import time

import pytest

from tests.node.cluster import backlog, failed, load
from tests.parts.process import poll

MEASURE_S = 15.0
LEAST_WAITING = 3
#: Order alone is measured: the wait of a backlog must not arm OIT, which would refuse some of it.
NEVER_OVERLOADED = {
    "signals": [{"name": "queue-wait", "builtin": "QueueWait", "threshold": 3600, "clearThreshold": 1800}]
}


def tenants(cluster):
    """Service and calls that wait, by tenant, of each sidecar."""
    return [{each["name"]: each for each in state["tenants"]} for state in cluster.states()]


def least_waiting(known):
    return min(each.get(team, {"queued": 0})["queued"] for each in known for team in ("team-a", "team-b"))


async def share(cluster):
    """Team A's service over team B's in both Pods together, while both wait in both Pods."""

    def both_wait():
        known = tenants(cluster)
        return known if least_waiting(known) >= LEAST_WAITING else None

    before = await asyncio.to_thread(poll, both_wait, 60.0, "both teams to be backlogged in both Pods")
    end = time.monotonic() + MEASURE_S
    least = None
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        after = await asyncio.to_thread(tenants, cluster)
        least = least_waiting(after) if least is None else min(least, least_waiting(after))
    assert least >= LEAST_WAITING, f"not backlogged throughout: {least} waiting"
    served = {
        team: sum(
            late[team]["service"] - early[team]["service"] for early, late in zip(before, after, strict=True)
        )
        for team in ("team-a", "team-b")
    }
    ratio = served["team-a"] / served["team-b"]
    print(f"A:B = {ratio:.3f} ({served})")
    return ratio


async def measured(cluster, classes):
    async with load(cluster) as running:
        running.start(classes)
        ratio = await share(cluster)
        await running.stop(drain_s=60.0)
    assert failed(running.records) == []
    return ratio


async def test_service_through_the_service_follows_the_weights(cluster):
    cluster.apply_example(overload=NEVER_OVERLOADED)
    cluster.wait_condition("servingpools", "llm", "Programmed")
    ratio = await measured(cluster, [backlog("team-a", 64), backlog("team-b", 64)])
    assert ratio == pytest.approx(3.0, rel=0.10)


async def test_the_same_under_fcfs_is_not_fair(cluster):
    """The negative control: in arrival order team B, which sends three times as many calls, is ahead."""
    cluster.apply_example(overload=NEVER_OVERLOADED, scheduler={"policy": "FCFS"})
    cluster.wait_condition("servingpools", "llm", "Programmed")
    ratio = await measured(cluster, [backlog("team-a", 48), backlog("team-b", 144)])
    assert ratio < 1.0


async def test_overload_seen_by_the_clusters_prometheus_refuses_who_is_over_a_limit(cluster):
    cluster.apply_example()
    cluster.wait_condition("servingpools", "llm", "Overloaded", "False")
    async with load(cluster) as running:
        # Team B's one user begins far more than 10 interactions a minute; team A has no limit.
        running.start(
            [backlog("team-a", 64), backlog("team-b", 64, users=("eager",), honours_retry_after=False)]
        )
        await asyncio.to_thread(cluster.wait_condition, "servingpools", "llm", "Overloaded", "True", 90.0)

        def refused():
            return any(each.refused for each in list(running.records))

        await asyncio.to_thread(poll, refused, 60.0, "a refused call")
        await running.stop(drain_s=60.0)
    assert failed(running.records) == []
    reasons = {each.refused_reason for each in running.records if each.refused}
    assert reasons == {"user_interaction_limit"}
    assert {each.client_class for each in running.records if each.refused} == {"team-b"}
    await asyncio.to_thread(cluster.wait_condition, "servingpools", "llm", "Overloaded", "False", 90.0)
