"""Statuses on their way out: each is written, and Events of them are rationed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from fairserve_operator.decide.resources import TENANT, Resource
from fairserve_operator.handlers.publication import Publication
from tests.unit.operator_handlers.world import FakeWorld, fake_world, resource

TROUBLE = {"conditions": [{"type": "Ready", "status": "False", "reason": "SecretMissing", "message": "why"}]}


async def publish_trouble(world: FakeWorld, publication: Publication, names: range) -> None:
    async def statuses() -> AsyncIterator[tuple[Resource, Mapping[str, Any]]]:
        for name in names:
            tenant = resource(TENANT, f"t{name}", {})
            world.store.put(tenant, 1, {})
            yield tenant, TROUBLE

    assert await publication.publish(statuses())


async def test_every_status_is_written_and_events_are_rationed() -> None:
    async with fake_world() as world:
        publication = Publication(world.store, world.cluster, lambda: world.now)
        await publish_trouble(world, publication, range(100))
        assert len(world.cluster.statuses) == 100
        assert len(world.cluster.events) == 25
        world.now += 15.0
        await publish_trouble(world, publication, range(100, 200))
        assert len(world.cluster.statuses) == 200
        assert len(world.cluster.events) == 28
