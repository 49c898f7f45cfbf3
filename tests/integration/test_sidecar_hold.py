"""A tenant that is held, through a real sidecar: it begins nothing, and nothing that it has begun is cut."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.engine import Reply, Seen, answer_at_once
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    ask,
    control,
    document,
    eventually,
    metric,
    running_sidecar,
)


def held(generation: int, mode: str):
    return document(generation, mode=mode, tenants=[{"name": "a", "held": True}, {"name": "b"}])


@pytest.mark.parametrize("mode", ["Enforce", "Shadow"])
async def test_a_held_tenant_begins_nothing_and_what_was_admitted_is_served(tmp_path, engine, mode):
    go_on = asyncio.Event()

    async def busy(seen: Seen, reply: Reply) -> None:
        await go_on.wait()
        await answer_at_once(seen, reply)

    engine.behaviour = busy
    session = {"x_fairserve_interaction_id": "begun"}
    async with running_sidecar(tmp_path, engine, document(mode=mode), max_window=1) as sidecar:
        runs = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.scheduler.running == 1, "a call in the engine")
        waits = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}, **session))
        await eventually(lambda: sidecar.scheduler.queued == 1, "a call that waits")
        assert (await control(sidecar, "PUT", "/config", held(2, mode).to_bytes())).status == 200

        refused = await ask(sidecar.data_address, KEY_A, {}, x_fairserve_interaction_id="new")
        assert (refused.status, refused.header("x-fairserve-refused-reason")) == (403, "tenant_held")
        assert refused.header("retry-after") is None
        assert refused.fields["error"]["code"] == "tenant_held"

        go_on.set()
        assert [each.status for each in await asyncio.gather(runs, waits)] == [200, 200]
        assert (await ask(sidecar.data_address, KEY_A, {}, **session)).status == 200, "it continues"
        assert (await ask(sidecar.data_address, KEY_B, {})).status == 200
        labels = {"tenant": "a", "reason": "tenant_held", "mode": "Enforce"}
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_refused_interactions_total", **labels) == 1
        users = [
            metric(text, f"fairserve_tenant_users{which}", tenant="a") for which in ("", "_fully_served")
        ]
        assert users == [1, 1], "an admin's word is no bad service"
        assert sidecar.state()["recent"]["refused_interactions_1h"] == {"a": 1.0}

        released = document(3, mode=mode)
        assert (await control(sidecar, "PUT", "/config", released.to_bytes())).status == 200
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
