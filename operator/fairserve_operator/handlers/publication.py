"""Status, written to the API server.

What is written is computed at the moment of writing, so a slow pass never publishes old news. Status that is
`same` as what is held is not written, not even after a restart of the operator: GitOps tools and people see
changes only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any

from fairserve_operator.decide import conditions
from fairserve_operator.decide.announcements import Allowance, announcement
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.resources import Resource
from fairserve_operator.errors import ApiServerError, ConflictError, NotFoundError
from fairserve_operator.handlers.bodies import version
from fairserve_operator.handlers.contracts import Clock, Cluster
from fairserve_operator.handlers.store import Store
from fairserve_operator.logs import about
from fairserve_operator.manifests.events import event
from fairserve_operator.manifests.status_patch import FIELD_MANAGER, status_patch

_log = logging.getLogger(__name__)

_BATCH = 64


class Publication:
    """Writes status through one API server, and an Event where it tells of trouble or of its end."""

    def __init__(self, store: Store, cluster: Cluster, clock: Clock) -> None:
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._allowance = Allowance()

    async def publish(
        self, statuses: AsyncIterable[tuple[Resource, Mapping[str, Any]]], at_once: int = _BATCH
    ) -> bool:
        """Write these statuses, so many at once; false if one failed and should be tried again."""
        done = True
        batch: list[tuple[Resource, Mapping[str, Any]]] = []
        async for resource, status in statuses:
            stored = self._store.stored(resource.key)
            if stored is None or stored.resource.uid != resource.uid:
                continue
            batch.append((resource, status))
            if len(batch) >= at_once:
                done &= await self._write(batch)
                batch = []
        return await self._write(batch) and done

    async def _write(self, batch: Iterable[tuple[Resource, Mapping[str, Any]]]) -> bool:
        return all(await asyncio.gather(*(self._apply(resource, status) for resource, status in batch)))

    async def _apply(self, resource: Resource, status: Mapping[str, Any]) -> bool:
        stored = self._store.stored(resource.key)
        before = {} if stored is None else stored.status
        patch = status_patch(resource.key, status)
        patch["metadata"]["uid"] = resource.uid  # Never to another object that has the name by now.
        try:
            written = await self._cluster.apply_status(patch, FIELD_MANAGER)
        except NotFoundError:
            return True  # It is gone.
        except ConflictError as problem:
            # Another object has its name now, which its own event will tell, or others wrote all the time.
            _log.info("%s", problem, extra=about(resource.key))
            return False
        except ApiServerError as problem:
            _log.warning("%s", problem, extra=about(resource.key))
            return False
        self._store.put_status(resource.key, version(written.body), written.body.get("status") or {})
        await self._announce(resource, before, status)
        return True

    async def _announce(
        self, resource: Resource, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> None:
        told = announcement(before, after)
        if told is None or not self._allowance.take(self._clock()):
            return
        now = rfc3339(self._clock())
        try:
            await self._cluster.create_event(event(resource, told.type, told.reason, told.message, now))
        except ApiServerError as problem:
            _log.info("%s", problem, extra=about(resource.key))  # The condition tells the same.


def same(ours: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Whether the held status says what ours says; conditions of other types are others' business."""
    return _owned(ours) == _owned(held)


def _owned(status: Mapping[str, Any]) -> dict[str, Any]:
    own = [each for each in status.get("conditions") or () if each.get("type") in conditions.ORDER]
    return {**status, "conditions": sorted(own, key=lambda each: conditions.ORDER.index(each["type"]))}
