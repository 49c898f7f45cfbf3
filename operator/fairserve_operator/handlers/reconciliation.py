"""One namespace: its pools, and the status of all its objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.activity import (
    ACTIVITY,
    Report,
    application_activity,
    combined,
    configured_shares,
    pool_activity,
    tenant_activity,
)
from fairserve_operator.decide.compilation import examine, needs
from fairserve_operator.decide.conditions import Condition, rfc3339
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT, ObjectKey, Resource
from fairserve_operator.decide.selectors import ALONE, Claim, Overlap, claims, overlaps
from fairserve_operator.decide.specs import oldest_first, parse
from fairserve_operator.decide.status import Delivery, Progress, application_status, tenant_status
from fairserve_operator.handlers.boot import Boot
from fairserve_operator.handlers.measures import PoolView
from fairserve_operator.handlers.pools import Digests, Gathered, Pool, World, issuer_keys
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
    survey: int  #: which one told of its work
    written: bool = False  #: whether a new status was to be written then

    def moved(self, before: _Looked) -> bool:
        """Whether Pods are elsewhere than before, or may tell of other work."""
        return self.progress != before.progress or self.survey != before.survey

    def work_alone(self, before: _Looked) -> bool:
        """Whether nothing else than where the Pods are and what they do can differ from before."""
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
        #: What the pools select, in the order in which they win.
        self._claims: tuple[Claim, ...] = ()
        self._conditions: Mapping[ObjectKey, tuple[Condition, ...]] = {}
        self.refreshed = 0  #: objects of which only the Pods had changed, in the last `statuses`
        self.postponed = 0  #: ... and those that are left for the next
        #: What was looked at when an object's status was last found to be held as it should be.
        self._settled_status: dict[ObjectKey, _Looked] = {}
        #: What all sidecars tell of their work, and each Tenant's part of all weights; as of the last survey.
        self._report: Report | None = None
        self._configured: Mapping[str, float] = {}
        self._surveys = 0  #: how often these have changed

    async def prepare(self) -> bool:
        """Compile what `reconcile` would act on, to have it at hand; false if that must be tried again."""
        return await self._each(Pool.prepare)

    async def reconcile(self) -> bool:
        """Bring every pool up to date; false if one must be tried again."""
        return await self._each(Pool.reconcile)

    async def _each(self, act: Callable[[Pool, Resource, Gathered], Awaitable[bool]]) -> bool:
        gathered = self._gather()
        pools = [await self._pool(resource) for resource in gathered.pools]
        for gone in self._pools.keys() - {resource.key for resource in gathered.pools}:
            await self._close(self._pools.pop(gone))
            self._surveyed()
        self._claims = self._claimed(gathered)
        done = await asyncio.gather(
            *(act(pool, resource, gathered) for pool, resource in zip(pools, gathered.pools, strict=True))
        )
        self._gathered = gathered
        self._conditions = self._examined(gathered)
        return all(done)

    @property
    def settled(self) -> bool:
        """Whether the world has answered everything that it was asked."""
        return all(pool.settled for pool in self._pools.values())

    def views(self) -> Iterator[PoolView]:
        """What the gauges of `/metrics` say of each pool."""
        return (pool.view() for pool in self._pools.values())

    async def statuses(self, refreshed: int) -> AsyncIterator[tuple[Resource, Mapping[str, Any]]]:
        """The status of each object whose status isn't held as it should be now, pools first.

        Each is computed when it is asked for. Objects of which nothing changed cost a comparison. Where a
        Pod comes or goes every object's count of Pods is another one, and every survey tells of work: of
        objects of which nothing else has changed there are at most `refreshed`, and `postponed` tells how
        many are left.
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
            status |= self._activity(pool.resource.key, held, pool.report)
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
            looked = _Looked(resource, conditions, held, [at for _, at in into], progress, self._surveys)
            known = before.get(key)
            alone = known is not None and looked.work_alone(known)
            if known is None or not alone or known.written or looked.moved(known):
                if known is not None and alone and looked.moved(known) and self.refreshed >= refreshed:
                    self.postponed += 1
                    self._settled_status[key] = known
                    continue
                tell = tenant_status if key.kind == TENANT else application_status
                status = tell(resource, conditions, into, held, now)
                status |= self._activity(key, held, self._report)
                if not same(status, held or {}):
                    self.refreshed += alone
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

    def _activity(
        self, key: ObjectKey, held: Mapping[str, Any] | None, report: Report | None
    ) -> Mapping[str, Any]:
        """The part of a status that tells of work; what it said before, until the sidecars were asked."""
        shown = held or {}
        if report is None:
            return {name: shown[name] for name in ACTIVITY[key.kind] if name in shown}
        match key.kind:
            case "Tenant":
                return tenant_activity(key.name, self._configured.get(key.name), report, shown)
            case "Application":
                return application_activity(key.name, report, shown)
            case _:
                return pool_activity(report, shown)

    def _surveyed(self) -> None:
        """Take what the pools' sidecars have told; shares are looked at anew now and not at every change."""
        told = [(pool.compiled.config, pool.report) for pool in self._pools.values() if pool.compiled]
        in_force = [(config, report) for config, report in told if config]
        if any(report is None for _, report in in_force):
            return  # Half of the truth would show as a step, after each start of the operator.
        report = combined(report for _, report in in_force if report)
        configured = next((configured_shares(config) for config, _ in in_force), {})
        if (report, configured) != (self._report, self._configured):
            self._report, self._configured = report, configured
            self._surveys += 1
            self._changed()

    def _gather(self) -> Gathered:
        store = self._world.store
        revision = store.revision(self._name)
        if self._gathered is not None and self._gathered.revision == revision:
            return self._gathered
        tenants, pools = store.objects(self._name, TENANT), store.objects(self._name, SERVING_POOL)
        wanted = needs(tenants, pools)
        named = any(spec and spec.pool_ref for spec in (parse(p, ServingPoolSpec).spec for p in pools))
        self._world.inference_pools.want(self._name, named)
        self._world.keyring.want(self._name, {each for each in wanted.keys if isinstance(each, str)})
        return Gathered(
            revision=revision,
            pools=pools,
            tenants=tenants,
            applications=store.objects(self._name, APPLICATION),
            needs=wanted,
            inference_pools=self._world.inference_pools.of(self._name),
        )

    def _claimed(self, gathered: Gathered) -> tuple[Claim, ...]:
        parsed = [parse(pool, ServingPoolSpec) for pool in oldest_first(gathered.pools, self._name)]
        in_force = {key: pool.selection for key, pool in self._pools.items() if pool.selection is not None}
        return claims(parsed, gathered.inference_pools, in_force)

    def _overlap(self, key: ObjectKey) -> Overlap:
        """What a pool shares with others, of the Pods that there are now."""
        found = overlaps(
            self._claims, lambda: ((pod.name, pod.labels) for pod in self._world.store.pods(self._name, {}))
        )
        return found.get(key, ALONE)

    async def _pool(self, resource: Resource) -> Pool:
        pool = self._pools.get(resource.key)
        if pool is not None and pool.resource.uid != resource.uid:
            await self._close(pool)  # Deleted and made anew under the same name.
            pool = None
        if pool is None:
            boot = self._boots.pop(resource.key, None)
            pool = Pool(
                resource, self._world, self._changed, self._outdated, self._surveyed, self._overlap, boot
            )
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
        found = self._digests.under(_ANY_SALT, gathered.needs.secrets)
        keys = issuer_keys(self._world.store, self._world.keyring, gathered.needs.keys, {})
        return examine(gathered.tenants, gathered.applications, found, keys)

    def _held(self, key: ObjectKey) -> Mapping[str, Any] | None:
        stored = self._world.store.stored(key)
        return None if stored is None else stored.status
