"""fairserve whole, in front of the real vLLM, and a load in front of it."""

import asyncio
import contextlib
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fairserve.local.load import ClientClass, Load, summarise
from tests.parts.loopback import Client
from tests.parts.process import poll
from tests.parts.stack import Stack
from tests.parts.vllm import MODEL

KEYS = {"team-a": "demo-key-of-team-a", "team-b": "demo-key-of-team-b"}


@pytest.fixture
def make_stack(control_plane, start_prometheus, tmp_path_factory):
    """`make_stack(name)` gives a running Stack in a namespace of that name, with a Prometheus of its own."""
    with contextlib.ExitStack() as running:

        def make(name):
            stack = Stack(control_plane, start_prometheus(), name, tmp_path_factory.mktemp(name))
            return running.enter_context(stack)

        yield make


@pytest.fixture
def run_load():
    """`await run_load(stack, classes, story)` runs a load beside the coroutine function `story(load)` and
    returns a summary by class."""

    async def run(url, classes, story):
        async with Load(url, MODEL, seed=1) as load:
            load.start(classes)
            await story(load)
            await load.stop(drain_s=60.0)
        for record in load.records:
            if not (record.completed or record.refused or record.error == "cancelled"):
                print(f"failed: {record}")
        return {
            each.name: summarise(record for record in load.records if record.client_class == each.name)
            for each in classes
        }

    return run


def backlog(tenant, clients, **changes):
    """A class that keeps `clients` chat calls of one tenant with the pool."""
    known = {"application": "chat", "prompt_tokens": 20, "max_tokens": 160}
    return ClientClass(tenant, KEYS[tenant], clients_per_user=clients, **(known | changes))


def tokens_to_wait(vllm, wait_s, clients):
    """Output tokens of a call with which a backlog of `clients` calls waits `wait_s` for this engine.

    Machines differ by more than any threshold of a test could bear, so the load follows the engine.
    """

    def call(_):
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 200, "ignore_eos": True}
        answer = Client(vllm.url).json("POST", "/v1/completions", body)
        return answer["usage"]["completion_tokens"]

    together = 8
    with ThreadPoolExecutor(together) as pool:
        started = time.monotonic()
        tokens = sum(pool.map(call, range(together)))
        speed = tokens / (time.monotonic() - started)
    wanted = round(speed * wait_s / clients)
    print(f"engine: {speed:.0f} tokens/s; {clients} clients wait {wait_s:g} s with {wanted} tokens a call")
    return max(16, min(wanted, 900))


async def share(sidecar, seconds, *, least_waiting):
    """Service of team A over service of team B in the next `seconds`, while both have at least
    `least_waiting` calls waiting in the sidecar (checked throughout)."""

    def tenants():
        return {each["name"]: each for each in sidecar.state()["tenants"]}

    def both_wait():
        known = tenants()
        waiting = [known.get(name, {"queued": 0})["queued"] for name in KEYS]
        return known if min(waiting) >= least_waiting else None

    before = await asyncio.to_thread(poll, both_wait, 60.0, "both teams to be backlogged")
    waiting = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.25)
        after = await asyncio.to_thread(tenants)
        waiting.append(min(after[name]["queued"] for name in KEYS))
    assert min(waiting) >= least_waiting, f"not backlogged throughout: {min(waiting)} waiting"
    served = [after[name]["service"] - before[name]["service"] for name in KEYS]
    print(f"waiting (median of the smaller queue): {statistics.median(waiting)}; service A, B: {served}")
    return served[0] / served[1]
