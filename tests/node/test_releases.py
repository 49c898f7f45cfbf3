"""Upgrade, rollback, removal and return of the release, each under load: no call may notice."""

import asyncio

from tests.node.cluster import SYSTEM, backlog, failed, load
from tests.parts import images
from tests.parts.process import poll

NEXT = (
    "--set",
    f"operator.image.tag={images.NEXT_VERSION}",
    "--set",
    f"sidecar.image.tag={images.NEXT_VERSION}",
)


async def under_load(cluster, story):
    """Run a blocking story in a thread beside a load of both teams; return the load's records."""
    async with load(cluster) as running:
        running.start([backlog("team-a", 6), backlog("team-b", 6)])
        await asyncio.to_thread(
            poll, lambda: running.records and running.records[0].completed, 60.0, "an answer"
        )
        await asyncio.to_thread(story)
        await running.stop(drain_s=90.0)
    print(f"{len(running.records)} calls, {len(failed(running.records))} failed or cut")
    assert failed(running.records) == []
    assert {each.client_class for each in running.records if each.completed} == {"team-a", "team-b"}
    return running.records


def restart_vllm(cluster):
    cluster.kubectl("rollout", "restart", "deployment/vllm")
    cluster.rolled_out("vllm")


def operators_are(cluster, version):
    """Wait until replicas of another version are gone: a leaving one still answers the webhook for a moment,
    over connections that the API server has open, and gives Pods its own version of the sidecar.
    """

    def alone():
        items = cluster.get("pods", namespace=SYSTEM)["items"]
        found = {each["image"].rpartition(":")[2] for pod in items for each in pod["spec"]["containers"]}
        return found == {version}

    poll(alone, 60.0, f"no operator but {version}")


def versions(cluster):
    """Which versions of the operator and of the sidecar run."""
    operators = cluster.pods("app.kubernetes.io/component=operator", SYSTEM)
    return (
        {pod["spec"]["containers"][0]["image"].rpartition(":")[2] for pod in operators},
        {
            each["image"].rpartition(":")[2]
            for pod in cluster.pods()
            for each in pod["spec"]["initContainers"]
            if each["name"] == "fairserve"
        },
    )


async def test_an_upgrade_costs_no_call(cluster):
    cluster.apply_example(overload={"signals": NEVER})

    def story():
        cluster.install(*NEXT, command="upgrade")
        operators_are(cluster, images.NEXT_VERSION)
        restart_vllm(cluster)

    await under_load(cluster, story)
    assert versions(cluster) == ({images.NEXT_VERSION}, {images.NEXT_VERSION})


async def test_a_rollback_costs_no_call(cluster):
    def story():
        cluster.helm("rollback", "fairserve", "1", "--namespace", SYSTEM, "--wait", "--timeout", "3m")
        operators_are(cluster, images.VERSION)
        restart_vllm(cluster)

    await under_load(cluster, story)
    assert versions(cluster) == ({images.VERSION}, {images.VERSION})


async def test_removal_leaves_vllm_serving_and_all_objects_and_a_return_finds_them(cluster):
    before = [pod["metadata"]["uid"] for pod in cluster.pods()]
    specs = {kind: spec(cluster, kind) for kind in ("tenants", "applications", "servingpools")}

    def story():
        cluster.helm("uninstall", "fairserve", "--namespace", SYSTEM, "--wait")
        poll(lambda: not cluster.pods("app.kubernetes.io/component=operator", SYSTEM), 60.0, "no operator")
        assert {kind: spec(cluster, kind) for kind in specs} == specs
        cluster.install()
        # The operator is another one, and what it compiles is what the sidecars run.
        for tenant in ("team-a", "team-b"):
            cluster.wait_condition("tenants", tenant, "Programmed")
        patch = '{"spec": {"weight": 5}}'
        cluster.kubectl("patch", "tenants.fairserve.dev", "team-a", "--type=merge", "--patch", patch)
        poll(lambda: weights(cluster) == {5}, 60.0, "the new weight in all sidecars")

    await under_load(cluster, story)
    assert [pod["metadata"]["uid"] for pod in cluster.pods()] == before


NEVER = [{"name": "queue-wait", "builtin": "QueueWait", "threshold": 3600, "clearThreshold": 1800}]


def spec(cluster, kind):
    return {each["metadata"]["name"]: each["spec"] for each in cluster.get(f"{kind}.fairserve.dev")["items"]}


def weights(cluster):
    """Team A's weight in each sidecar."""
    return {
        each["weight"] for state in cluster.states() for each in state["tenants"] if each["name"] == "team-a"
    }
