"""Manifests decide how a real vLLM shares its tokens, and a patch changes it while it runs."""

import asyncio
import time

import pytest

from tests.e2e.conftest import backlog, share
from tests.parts.process import poll

MEASURE_S = 20.0
LEAST_WAITING = 16
#: Order alone is measured here: the wait of a backlog must not arm OIT, which would refuse some of it.
NEVER_OVERLOADED = {
    "signals": [{"name": "queue-wait", "builtin": "QueueWait", "threshold": 3600, "clearThreshold": 1800}]
}


def fair(ratio, weights):
    """The acceptance: normalised service within 10 % of the ratio of the weights."""
    return ratio == pytest.approx(weights, rel=0.10)


async def test_service_follows_weights_and_a_patch_changes_them_live(make_stack, vllm, run_load):
    stack = make_stack("e2e-shares")
    stack.apply_example(overload=NEVER_OVERLOADED)
    sidecar = stack.add_sidecar(vllm.url)
    for tenant in ("team-a", "team-b"):
        stack.wait_condition("tenants", tenant, "Programmed", "True")
    started = sidecar.process.pid

    async def story(_):
        before = await share(sidecar, MEASURE_S, least_waiting=LEAST_WAITING)
        print(f"A:B at 3:1 = {before:.3f}")
        assert fair(before, 3.0)
        seconds, generation = await asyncio.to_thread(patch_weight, stack, 1)
        print(f"patched to Programmed in {seconds:.3f} s (goal: 1 s), generation {generation}")
        after = await share(sidecar, MEASURE_S, least_waiting=LEAST_WAITING)
        print(f"A:B at 1:1 = {after:.3f}")
        assert fair(after, 1.0)

    summaries = await run_load(sidecar.url, [backlog("team-a", 96), backlog("team-b", 64)], story)
    assert [summary.failed_calls for summary in summaries.values()] == [0, 0]
    assert [summary.refused for summary in summaries.values()] == [0, 0]
    assert sidecar.process.pid == started
    assert sidecar.process.alive


async def test_the_same_load_under_fcfs_is_not_fair(make_stack, vllm, run_load):
    """The negative control: in arrival order team B, which sends four times as many calls, is ahead."""
    stack = make_stack("e2e-fcfs")
    stack.apply_example(overload=NEVER_OVERLOADED, scheduler={"policy": "FCFS"})
    sidecar = stack.add_sidecar(vllm.url)
    stack.wait_condition("tenants", "team-b", "Programmed", "True")

    async def story(_):
        ratio = await share(sidecar, MEASURE_S, least_waiting=LEAST_WAITING)
        print(f"A:B under FCFS = {ratio:.3f}")
        assert not fair(ratio, 3.0)
        assert ratio < 1.0

    await run_load(sidecar.url, [backlog("team-a", 48), backlog("team-b", 192)], story)


def patch_weight(stack, weight):
    """Seconds from the patch of team A's weight to `Programmed` for it, and the sidecar's generation."""
    started = time.monotonic()
    patch = f'{{"spec": {{"weight": {weight}}}}}'
    stack.kubectl("patch", "tenants.fairserve.dev", "team-a", "--type=merge", "-p", patch)
    stack.wait_condition("tenants", "team-a", "Programmed", "True", 30.0)
    seconds = time.monotonic() - started
    sidecar = stack.sidecars[0]
    live = poll(lambda: sidecar.tenant("team-a")["weight"] == weight, 10.0, "the weight in the sidecar")
    assert live
    return seconds, sidecar.state()["generation"]
