"""One namespace: its pools, and the status of all its objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from enum import Enum, auto
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
from fairserve_operator.handlers.pools import Gathered, Pool, World
from fairserve_operator.handlers.publication import same
from fairserve_operator.handlers.secret_values import NO_SALT, Digests, issuer_keys

#: Objects whose status is looked at before others may run.
_BREATH = 500
#: The same where each has to be computed.
_SHORT_BREATH = 50


class _Looked(NamedTuple):
    """What an object's status is made of."""

    resource: Resource
    conditions: tuple[Condition, ...]
    held: Mapping[str, Any] | None  #: its status as the API server holds it
    entered: tuple[int | None, ...]  #: the generation of each pool that first has the object as it is
    progress: tuple[Progress, ...]
    survey: int  #: which one told of its work
    written: bool = False  #: whether a new status was to be written then

    def urgency(self, before: _Looked | None) -> _Urgency:
        """How soon the object's status has to be looked at again."""
        if before is None or not self.alone(before):
            return _Urgency.NOW
        if self.progress == before.progress and self.survey == before.survey:
            return _Urgency.NOW if before.written else _Urgency.NEVER
        arrived = any(map(_behind, before.progress)) and not any(map(_behind, self.progress))
        return _Urgency.NOW if arrived else _Urgency.LATER

    def alone(self, before: _Looked) -> bool:
        """Whether nothing else than where the Pods are and what they do can differ from before."""
        return (
            self.resource is before.resource
            and (self.held is before.held) is not before.written
            and (self.conditions is before.conditions or self.conditions == before.conditions)
            and self.entered == before.entered
        )


class _Urgency(Enum):
    """When an object's status may have to be another one."""

    NOW = auto()  #: somebody changed it, or waits until it is everywhere
    LATER = auto()  #: Pods came or went, or tell of other work
    NEVER = auto()


def _behind(progress: Progress) -> bool:
    return progress[1] > 0


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
        self.refreshed = 0  #: how many the last `refreshes` yielded
        #: Objects of which only the Pods or their work have changed.
        self._moved: dict[ObjectKey, Resource] = {}
        # As of the last `statuses`: what it went by, how far each pool was, who was as far as each other, and
        # how far that was.
        self._basis: tuple[int, int, list[tuple[Pool, int]]] | None = None
        self._deliveries: list[tuple[Pool, Delivery]] = []
        self._groups: dict[tuple[int | None, ...], list[Resource]] = {}
        self._progress: dict[tuple[int | None, ...], tuple[Progress, ...]] = {}
        self._written: set[ObjectKey] = set()  #: whose status was handed out since then
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
        done = await self._each(Pool.reconcile)
        self._changed()
        return all(await asyncio.gather(*(pool.store() for pool in self._pools.values()))) and done

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

    async def statuses(self) -> AsyncIterator[tuple[Resource, Mapping[str, Any]]]:
        """The status of each object that somebody waits for, pools first: all that isn't held as it should
        be, but for what `refreshes` yields.

        Each is computed when it is asked for. Objects of which nothing changed cost a comparison.
        """
        if self._gathered is None:
            return
        now = rfc3339(self._world.clock())
        self._deliveries = [
            (pool, Delivery(pool.resource.key.name, pool.delivery.acks()))
            for pool in self._pools.values()
            if pool.compiled is not None
        ]
        for pool, delivery in self._deliveries:
            held = self._held(pool.resource.key)
            status = pool.status(delivery, held, now)
            status |= self._activity(pool.resource.key, held, pool.report)
            if not same(status, held or {}):
                yield pool.resource, status
        for number, resource in enumerate(self._worth_a_look(self._gathered)):
            looked = self._look(resource)
            if looked is None:
                continue
            self._moved.pop(resource.key, None)
            match looked.urgency(self._settled_status.get(resource.key)):
                case _Urgency.NEVER:
                    self._settled_status[resource.key] = looked
                case _Urgency.LATER:
                    self._moved[resource.key] = resource
                case _ if (news := self._anew(looked, now)) is not None:
                    yield resource, news
            if number % _BREATH == 0:
                await asyncio.sleep(0)

    def _worth_a_look(self, gathered: Gathered) -> list[Resource]:
        """Objects whose status may have to be another one than at the last look.

        After a compilation or a survey these are all. In between Pods acknowledge: objects that entered the
        configurations with the same generations are as far as each other, so they are looked at together or
        not at all. So are those whose status was written, by whomever.
        """
        members = *gathered.applications, *gathered.tenants
        pools = [(pool, pool.revision) for pool, _ in self._deliveries]
        basis = gathered.revision, self._surveys, pools
        touched = self._world.store.take_rewritten(self._name) | self._written
        self._written = set()
        anew = basis != self._basis
        if anew:
            self._basis = basis
            self._regroup(members)
        before = self._progress
        self._progress = {entered: self._progressed(entered) for entered in self._groups}
        if anew:
            return list(members)
        moved = [
            each
            for entered, group in self._groups.items()
            if before[entered] != self._progress[entered]
            for each in group
        ]
        if touched:
            moved += [each for each in members if each.key in touched]
        return moved

    def _regroup(self, members: Iterable[Resource]) -> None:
        """Sort objects by when they entered the configurations; forget those that are gone."""
        self._groups, self._moved = {}, {}
        known, self._settled_status = self._settled_status, {}
        for resource in members:
            key = resource.key
            if (looked := known.get(key)) is not None:
                self._settled_status[key] = looked
            self._groups.setdefault(self._entered(key), []).append(resource)

    async def refreshes(
        self, most: int, hurry: Callable[[], bool]
    ) -> AsyncIterator[tuple[Resource, Mapping[str, Any]]]:
        """The status of objects of which only the Pods or their work have changed since `statuses`.

        Where a Pod comes or goes every object's count of Pods is another one, and every survey tells of work.
        So there are at most `most`, none once there is a `hurry`, and `postponed` tells how many are left.
        """
        now, self.refreshed, looks = rfc3339(self._world.clock()), 0, 0
        while self._moved and self.refreshed < most and not hurry():
            looks += 1
            if looks % _SHORT_BREATH == 0:
                await asyncio.sleep(0)
            looked = self._look(self._moved.popitem()[1])
            if looked is None:
                continue
            known = self._settled_status.get(looked.resource.key)
            if known is None or not looked.alone(known):
                continue  # It is somebody's by now, whom `statuses` tells.
            if (status := self._anew(looked, now)) is not None:
                self.refreshed += 1
                yield looked.resource, status

    @property
    def postponed(self) -> int:
        """Objects of which `refreshes` has something to tell."""
        return len(self._moved)

    def _look(self, resource: Resource) -> _Looked | None:
        """What the object's status is made of; None while it is in no compilation."""
        key = resource.key
        if (conditions := self._conditions.get(key)) is None:
            return None
        entered = self._entered(key)
        progress = self._progressed(entered)
        return _Looked(resource, conditions, self._held(key), entered, progress, self._surveys)

    def _entered(self, key: ObjectKey) -> tuple[int | None, ...]:
        """Since which generation each pool has the object as it is."""
        return tuple([pool.entered_at(key) for pool, _ in self._deliveries])

    def _progressed(self, entered: tuple[int | None, ...]) -> tuple[Progress, ...]:
        """How far the pools are with objects that entered them so."""
        into = zip(self._deliveries, entered, strict=True)
        return tuple([sent.progress(at) for (_, sent), at in into if at is not None])

    def _anew(self, looked: _Looked, now: str) -> dict[str, Any] | None:
        """The object's status; None if it is held like that."""
        key = looked.resource.key
        tell = tenant_status if key.kind == TENANT else application_status
        pools = zip(self._deliveries, looked.entered, strict=True)
        into = [(sent, at) for (_, sent), at in pools if at is not None]
        status = tell(looked.resource, looked.conditions, into, looked.held, now)
        status |= self._activity(key, looked.held, self._report)
        news = not same(status, looked.held or {})
        self._settled_status[key] = looked._replace(written=news)
        if news:
            self._written.add(key)
        return status if news else None

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
        found = self._digests.under(NO_SALT, gathered.needs.secrets)
        keys = issuer_keys(self._world.store, self._world.keyring, gathered.needs.keys, {})
        return examine(gathered.tenants, gathered.applications, found, keys)

    def _held(self, key: ObjectKey) -> Mapping[str, Any] | None:
        stored = self._world.store.stored(key)
        return None if stored is None else stored.status
