"""The reconcile loop: from "something changed in this namespace" to a few well-timed runs.

Each namespace has two workers. One reconciles, after a short pause that turns a burst of changes into one
run. The other publishes status, after a pause that lets sidecars acknowledge first, so that a change shows
as done and not as pending and then done. Nothing runs before the store has seen everybody who exists.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairserve_operator.errors import ApiServerError
from fairserve_operator.handlers.census import Scope, forget_vanished, until_complete
from fairserve_operator.handlers.pools import World
from fairserve_operator.handlers.publication import Publication
from fairserve_operator.handlers.reconciliation import Namespace
from fairserve_operator.handlers.tasks import wait_for_event

_log = logging.getLogger(__name__)

#: Between two looks whether all sidecars have answered, in seconds.
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses of the loop, in seconds."""

    quiet_s: float = 0.03  #: a burst has ended when nothing came for this long
    burst_s: float = 0.25  #: ... but it is not waited for longer than this
    longest_burst_s: float = 6.0  #: ... nor than this, where one burst follows the other
    many: int = 4  #: changes that make a burst
    settle_s: float = 0.5  #: how long status waits for the sidecars' acknowledgements
    first_settle_s: float = 20.0  #: the same for the first status after a start, which is everybody's
    refresh_s: float = 0.02  #: pause for each object of which only the count of Pods has changed
    most_refreshed: int = 100  #: ... of which there are so many at once
    first_retry_s: float = 0.5
    last_retry_s: float = 15.0
    census_s: float = 60.0  #: time between two counts of who exists; each also repairs what others changed


class Loop:
    """Reconciles every namespace of its scope that has any of our objects."""

    def __init__(self, world: World, scope: Scope, timing: Timing = Timing()) -> None:
        self._world = world
        self._scope = scope
        self._timing = timing
        self._workers: dict[str, _Worker] = {}
        self._complete = False

    async def start(self) -> None:
        """Begin."""
        self._world.tasks.start(self._supervise(), "supervise")

    async def stop(self) -> None:
        """End all work. Nothing is undone: sidecars and objects stay as they are."""
        await self._world.tasks.cancel()

    def mark(self, namespace: str) -> None:
        """Note that something changed there that matters."""
        worker = self._workers.get(namespace)
        if worker is None:
            if not self._complete or not self._world.store.occupied(namespace):
                return
            worker = self._workers[namespace] = _Worker(namespace, self._world, self._timing)
            worker.start()
        worker.changed.set()

    def state(self) -> Mapping[str, Any]:
        """Tell what a liveness probe may want to see."""
        return {"complete": self._complete, "namespaces": len(self._workers)}

    async def _supervise(self) -> None:
        await until_complete(self._world.store, self._world.cluster, self._scope)
        self._complete = True
        _log.info("all objects are known; reconciling %d namespaces", len(self._world.store.namespaces()))
        while True:
            for namespace in self._world.store.namespaces():
                self.mark(namespace)
            await asyncio.sleep(self._timing.census_s)
            try:
                for namespace in await forget_vanished(self._world.store, self._world.cluster, self._scope):
                    self.mark(namespace)
            except ApiServerError as problem:
                _log.warning("counting who exists: %s", problem)


class _Worker:
    """The two tasks of one namespace."""

    def __init__(self, name: str, world: World, timing: Timing) -> None:
        self.changed = asyncio.Event()
        self._revision = 0  #: of the store, at the last reconciliation
        self._bursts = 0  #: in a row
        self._unpublished = asyncio.Event()
        self._name = name
        self._world = world
        self._timing = timing
        self._namespace = Namespace(name, world, self._unpublished.set, self.changed.set)
        self._publication = Publication(world.store, world.cluster)

    def start(self) -> None:
        self._world.tasks.start(self._reconcile(), f"reconcile {self._name}")
        self._world.tasks.start(self._publish(), f"publish {self._name}")

    async def _reconcile(self) -> None:
        failures = 0
        while True:
            await self.changed.wait()
            await self._quiet()
            done = await self._namespace.reconcile()
            self._unpublished.set()
            failures = 0 if done else failures + 1
            if not done:
                await wait_for_event(self.changed, self._retry_s(failures))
                self.changed.set()

    async def _publish(self) -> None:
        clock = asyncio.get_running_loop().time
        settle_s, failures, refresh_at = self._timing.first_settle_s, 0, 0.0
        while True:
            if self._namespace.postponed:
                await wait_for_event(self._unpublished, max(0.0, refresh_at - clock()))
            else:
                await self._unpublished.wait()
            await self._settled(settle_s)
            self._unpublished.clear()
            may_refresh = self._timing.most_refreshed if clock() >= refresh_at else 0
            done = await self._publication.publish(self._namespace.statuses(may_refresh))
            if self._namespace.refreshed:
                refresh_at = clock() + self._namespace.refreshed * self._timing.refresh_s
            settle_s = self._timing.settle_s
            failures = 0 if done else failures + 1
            if not done:
                await asyncio.sleep(self._retry_s(failures))
                self._unpublished.set()

    async def _quiet(self) -> None:
        """Wait until changes stop coming, but not for ever.

        While many come all the time, as from `kubectl apply` of a thousand objects, it waits twice as long
        each time: what is compiled meanwhile is old at once. Pods are no burst: nothing is compiled for them.
        """
        loop = asyncio.get_running_loop()
        timing, longer = self._timing, 2.0**self._bursts
        latest = loop.time() + min(timing.burst_s * longer, timing.longest_burst_s)
        quiet_s = timing.burst_s if self._bursts else timing.quiet_s
        self.changed.clear()
        while loop.time() < latest and await wait_for_event(self.changed, quiet_s):
            pass
        revision = self._world.store.revision(self._name)
        self._bursts = min(self._bursts + 1, 30) if revision - self._revision >= timing.many else 0
        self._revision = revision

    async def _settled(self, longest_s: float) -> None:
        """Wait until every sidecar has been given its document once, but not for ever."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + longest_s
        # Asked now and then: waking for each of a thousand acknowledgements would cost more.
        while not self._namespace.settled and loop.time() < latest:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    def _retry_s(self, failures: int) -> float:
        longest = min(self._timing.first_retry_s * 2.0 ** min(failures - 1, 30), self._timing.last_retry_s)
        return longest * self._world.rng.uniform(0.5, 1.0)
