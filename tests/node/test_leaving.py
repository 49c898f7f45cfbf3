"""Pods and sidecars that end while calls run: nobody's stream is cut whose end can be waited for."""

import asyncio
import signal

from tests.node.cluster import backlog, failed, load
from tests.parts.process import poll

#: A call of this many tokens takes the emulator well over the 5 s in which a Pod's leaving becomes known.
LONG = 400


async def test_streams_of_a_deleted_pod_finish(cluster):
    (leaving, _) = before = cluster.pods()
    async with load(cluster) as running:
        running.start([backlog("team-a", 8, max_tokens=LONG), backlog("team-b", 8)])
        control = cluster.control(leaving)
        await asyncio.to_thread(
            poll, lambda: control.json("GET", "/state")["running"] >= 4, 60.0, "streams in that Pod"
        )
        begun = [each for each in running.records if each.ended_s is None]
        await asyncio.to_thread(
            cluster.kubectl, "delete", "pod", leaving["metadata"]["name"], "--timeout=120s"
        )
        # Deleted for good: whatever it had begun has ended by now, one way or the other.
        await asyncio.to_thread(cluster.rolled_out, "vllm")
        await running.stop(drain_s=90.0)
    assert failed(running.records) == []
    assert len([each for each in begun if each.completed]) == len(begun) > 0
    names = {pod["metadata"]["name"] for pod in cluster.pods()}
    assert len(names) == len(before)
    assert leaving["metadata"]["name"] not in names


def test_a_sidecar_that_is_killed_comes_back_as_it_was(cluster):
    (pod, _) = cluster.pods()
    name = pod["metadata"]["name"]
    before = cluster.control(pod).json("GET", "/state")
    cluster.node.kill(pod, "fairserve", signal.SIGKILL)

    def restarted():
        status = cluster.get("pod", name)["status"]
        (sidecar,) = [each for each in status["initContainerStatuses"] if each["name"] == "fairserve"]
        return status if sidecar["restartCount"] == 1 and sidecar["ready"] else None

    status = poll(restarted, 60.0, "the sidecar's restart")
    assert [each["restartCount"] for each in status["containerStatuses"]] == [0]
    control = cluster.control(pod)
    # What it boots from may be a minute old; the operator tells it the rest.
    poll(lambda: control.json("GET", "/state")["hash"] == before["hash"], 60.0, "the configuration of before")
    after = control.json("GET", "/state")
    assert {each["name"] for each in after["tenants"]} == {each["name"] for each in before["tenants"]}
    poll(lambda: cluster.ask("team-b"), 30.0, "an answer")
