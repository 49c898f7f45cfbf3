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
from fairserve_operator.decide.resources import Resource
from fairserve_operator.errors import ApiServerError, ConflictError, NotFoundError
from fairserve_operator.handlers.bodies import version
from fairserve_operator.handlers.contracts import Cluster
from fairserve_operator.handlers.store import Store
from fairserve_operator.manifests.status_patch import FIELD_MANAGER, status_patch

_log = logging.getLogger(__name__)

_BATCH = 64


class Publication:
    """Writes status through one API server."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster

    async def publish(self, statuses: AsyncIterable[tuple[Resource, Mapping[str, Any]]]) -> bool:
        """Write these statuses; false if one failed and should be tried again."""
        done = True
        batch: list[tuple[Resource, Mapping[str, Any]]] = []
        async for resource, status in statuses:
            stored = self._store.stored(resource.key)
            if stored is None or stored.resource.uid != resource.uid:
                continue
            batch.append((resource, status))
            if len(batch) >= _BATCH:
                done &= await self._write(batch)
                batch = []
        return await self._write(batch) and done

    async def _write(self, batch: Iterable[tuple[Resource, Mapping[str, Any]]]) -> bool:
        return all(await asyncio.gather(*(self._apply(resource, status) for resource, status in batch)))

    async def _apply(self, resource: Resource, status: Mapping[str, Any]) -> bool:
        patch = status_patch(resource.key, status)
        patch["metadata"]["uid"] = resource.uid  # Never to another object that has the name by now.
        try:
            written = await self._cluster.apply_status(patch, FIELD_MANAGER)
        except (NotFoundError, ConflictError):
            return True  # It is gone, or another object has its name now: its own event follows.
        except ApiServerError as problem:
            _log.warning("%s", problem)
            return False
        self._store.put_status(resource.key, version(written.body), written.body.get("status") or {})
        return True


def same(ours: Mapping[str, Any], held: Mapping[str, Any]) -> bool:
    """Whether the held status says what ours says; conditions of other types are others' business."""
    return _owned(ours) == _owned(held)


def _owned(status: Mapping[str, Any]) -> dict[str, Any]:
    own = [each for each in status.get("conditions") or () if each.get("type") in conditions.ORDER]
    return {**status, "conditions": sorted(own, key=lambda each: conditions.ORDER.index(each["type"]))}
