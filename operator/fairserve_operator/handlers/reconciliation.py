"""One namespace: its pools, and the status of all its objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from fairserve_operator.decide.compilation import examine, secret_refs
from fairserve_operator.decide.conditions import Condition, rfc3339
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT, ObjectKey, Resource
from fairserve_operator.decide.status import Delivery, Progress, application_status, tenant_status
from fairserve_operator.handlers.boot import Boot
from fairserve_operator.handlers.pools import Digests, Gathered, Pool, World
from fairserve_operator.handlers.publication import same

#: For a namespace without pools, where digests only show whether keys differ.
_ANY_SALT = "00" * 16


#: Objects whose status is looked at before others may run.
_BREATH = 500


class _Looked(NamedTuple):
    """What an object's status is made of."""

    resource: Resource
    conditions: tuple[Condition, ...]
    held: Mapping[str, Any] | None  #: its status as the API server holds it
    entered: list[int]  #: the generation of each pool that first has the object as it is
    progress: list[Progress]
    written: bool = False  #: whether a new status was to be written then

    def pods_alone(self, before: _Looked) -> bool:
        """Whether nothing else than how far the Pods are can differ from before."""
        return (
            self.resource is before.resource
            and (self.held is before.held) is not before.written
            and (self.conditions is before.conditions or self.conditions == before.conditions)
            and self.entered == before.entered
        )


class Namespace:
    """Keeps one namespace's sidecars and statuses as its objects say.

    `changed` is called when `statuses` may yield something new, `outdated` when `reconcile` should run again.
    """

    def __init__(
        self, name: str, world: World, changed: Callable[[], None], outdated: Callable[[], None]
    ) -> None:
        self._name = name
        self._world = world
        self._changed = changed
        self._outdated = outdated
        self._pools: dict[ObjectKey, Pool] = {}
        #: Of pools that are gone. One that is made anew under the name finds its Secret collected as garbage,
        #: while its Pods still know the old token.
        self._boots: dict[ObjectKey, Boot] = {}
        self._digests = Digests(world.store)
        self._gathered: Gathered | None = None
        self._conditions: Mapping[ObjectKey, tuple[Condition, ...]] = {}
        self.refreshed = 0  #: objects of which only the Pods had changed, in the last `statuses`
        self.postponed = 0  #: ... and those that are left for the next
        #: What was looked at when an object's status was last found to be held as it should be.
        self._settled_status: dict[ObjectKey, _Looked] = {}

    async def reconcile(self) -> bool:
        """Bring every pool up to date; false if one must be tried again."""
        gathered = self._gather()
        pools = [await self._pool(resource) for resource in gathered.pools]
        for gone in self._pools.keys() - {resource.key for resource in gathered.pools}:
            await self._close(self._pools.pop(gone))
        done = await asyncio.gather(
            *(
                pool.reconcile(resource, gathered)
                for pool, resource in zip(pools, gathered.pools, strict=True)
            )
        )
        self._gathered = gathered
        self._conditions = self._examined(gathered)
        return all(done)

    @property
    def settled(self) -> bool:
        """Whether the world has answered everything that it was asked."""
        return all(pool.settled for pool in self._pools.values())

    async def statuses(self, refreshed: int) -> AsyncIterator[tuple[Resource, Mapping[str, Any]]]:
        """The status of each object whose status isn't held as it should be now, pools first.

        Each is computed when it is asked for. Objects of which nothing changed cost a comparison. Where a
        Pod comes or goes every object's count of Pods is another one: of those of which nothing else has
        changed there are at most `refreshed`, and `postponed` tells how many are left.
        """
        self.postponed = self.refreshed = 0
        if self._gathered is None:
            return
        now = rfc3339(self._world.clock())
        pools = [
            (pool, Delivery(pool.resource.key.name, pool.delivery.acks()))
            for pool in self._pools.values()
            if pool.compiled is not None
        ]
        for pool, delivery in pools:
            held = self._held(pool.resource.key)
            status = pool.status(delivery, held, now)
            if not same(status, held or {}):
                yield pool.resource, status
        before, self._settled_status = self._settled_status, {}
        for number, resource in enumerate((*self._gathered.applications, *self._gathered.tenants)):
            key = resource.key
            if (conditions := self._conditions.get(key)) is None:
                continue
            into = [(sent, at) for pool, sent in pools if (at := pool.entered_at(key)) is not None]
            held = self._held(key)
            progress = [sent.progress(at) for sent, at in into]
            looked = _Looked(resource, conditions, held, [at for _, at in into], progress)
            known = before.get(key)
            pods_alone = known is not None and looked.pods_alone(known)
            moved = known is None or known.progress != progress
            if known is None or moved or not pods_alone or known.written:
                if known is not None and pods_alone and moved and self.refreshed >= refreshed:
                    self.postponed += 1
                    self._settled_status[key] = known
                    continue
                make = tenant_status if key.kind == TENANT else application_status
                status = make(resource, conditions, into, held, now)
                if not same(status, held or {}):
                    self.refreshed += pods_alone
                    self._settled_status[key] = looked._replace(written=True)
                    yield resource, status
                    continue
            self._settled_status[key] = looked
            if number % _BREATH == 0:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop acting; nothing is undone."""
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    def _gather(self) -> Gathered:
        store = self._world.store
        revision = store.revision(self._name)
        if self._gathered is not None and self._gathered.revision == revision:
            return self._gathered
        tenants = store.objects(self._name, TENANT)
        return Gathered(
            revision=revision,
            pools=store.objects(self._name, SERVING_POOL),
            tenants=tenants,
            applications=store.objects(self._name, APPLICATION),
            refs=secret_refs(tenants),
        )

    async def _pool(self, resource: Resource) -> Pool:
        pool = self._pools.get(resource.key)
        if pool is not None and pool.resource.uid != resource.uid:
            await self._close(pool)  # Deleted and made anew under the same name.
            pool = None
        if pool is None:
            boot = self._boots.pop(resource.key, None)
            pool = Pool(resource, self._world, self._changed, self._outdated, boot)
            self._pools[resource.key] = pool
        return pool

    async def _close(self, pool: Pool) -> None:
        await pool.close()
        if pool.boot is not None:
            self._boots[pool.resource.key] = pool.boot.unread()

    def _examined(self, gathered: Gathered) -> Mapping[ObjectKey, tuple[Condition, ...]]:
        for pool in self._pools.values():
            if pool.compiled is not None:
                return pool.compiled.conditions
        found = self._digests.under(_ANY_SALT, gathered.refs)
        return examine(gathered.tenants, gathered.applications, found)

    def _held(self, key: ObjectKey) -> Mapping[str, Any] | None:
        stored = self._world.store.stored(key)
        return None if stored is None else stored.status
