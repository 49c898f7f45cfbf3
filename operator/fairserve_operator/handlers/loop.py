"""The reconcile loop: from "something changed in this namespace" to a few well-timed runs.

Each namespace has two workers. One reconciles, after a short pause that turns a burst of changes into one
run. The other publishes status, after a pause that lets sidecars acknowledge first, so that a change shows
as done and not as pending and then done. Nothing runs before the store has seen everybody who exists.

While another operator holds the Lease, workers only compile: everything is at hand when `act` is called.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fairserve_operator.errors import ApiServerError, AstrayError
from fairserve_operator.handlers.census import Headcount, Scope, until_complete
from fairserve_operator.handlers.measures import PoolView, View
from fairserve_operator.handlers.pools import World
from fairserve_operator.handlers.publication import Publication
from fairserve_operator.handlers.reconciliation import Namespace
from fairserve_operator.handlers.tasks import wait_for_event

_log = logging.getLogger(__name__)

#: Between two looks whether all sidecars have answered, in seconds.
_LOOK_S = 0.01
#: Statuses that are written at once where something more urgent may come.
_FEW = 8


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
    census_s: float = 180.0  #: time between two counts of who exists; each also repairs what others changed
    relisted_s: float = (
        1.0  #: how long after a watch began anew the next count comes, whatever `census_s` says
    )
    look_back_s: float = 10.0  #: time between two looks whether history went back, or others wrote statuses


class Loop:
    """Reconciles every namespace of its scope that has any of our objects.

    `astray` is called when nothing of what is known can be believed any more.
    """

    def __init__(
        self,
        world: World,
        scope: Scope,
        timing: Timing = Timing(),
        acting: bool = True,
        astray: Callable[[AstrayError], None] = lambda problem: None,
    ) -> None:
        self._world = world
        self._scope = scope
        self._timing = timing
        self._astray = astray
        self._headcount = Headcount(world.store, world.cluster, scope)
        self._listed = asyncio.Event()
        self._workers: dict[str, _Worker] = {}
        self._acting = acting
        #: Set once the store has seen everybody who exists.
        self.complete = asyncio.Event()
        #: Set once all statuses of a namespace were written as they should be.
        self.published = asyncio.Event()

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
            if not self.complete.is_set() or not self._world.store.occupied(namespace):
                return
            worker = self._workers[namespace] = _Worker(
                namespace, self._world, self._timing, self._acting, self.published.set
            )
            worker.start()
        worker.changed.set()

    def listed(self) -> None:
        """Note that a watch began anew: who went while it was broken is not among those listed."""
        if self.complete.is_set():
            self._listed.set()

    def act(self, acting: bool) -> None:
        """Act from now on, or no longer: what is under way is broken off, and begun anew as preparation."""
        if acting == self._acting:
            return
        self._acting = acting
        if acting:
            for worker in self._workers.values():
                worker.act()
            return
        gone = list(self._workers.values())
        self._workers.clear()
        self._world.tasks.start(self._stand_back(gone), "stand back")

    def view(self) -> View:
        """Tell what probes and `/metrics` say."""
        pools = (view for worker in self._workers.values() for view in worker.views())
        return View(self._acting, self.complete.is_set(), tuple(pools) if self._acting else ())

    async def _stand_back(self, workers: Iterable[_Worker]) -> None:
        for worker in workers:
            worker.cancel()
        for worker in workers:
            await worker.closed()
        for namespace in self._world.store.namespaces():
            self.mark(namespace)

    async def _supervise(self) -> None:
        await until_complete(self._world.store, self._world.cluster, self._scope)
        self.complete.set()
        _log.info("all objects are known; reconciling %d namespaces", len(self._world.store.namespaces()))
        self._world.tasks.start(self._look_back(), "look back")
        while True:
            for namespace in self._world.store.namespaces():
                self.mark(namespace)
            if await wait_for_event(self._listed, self._timing.census_s):
                await asyncio.sleep(self._timing.relisted_s)
                self._listed.clear()
            try:
                for namespace in await self._headcount.forget_vanished():
                    self.mark(namespace)
            except ApiServerError as problem:
                _log.warning("counting who exists: %s", problem)
            except AstrayError as problem:
                self._astray(problem)

    async def _look_back(self) -> None:
        while True:
            try:
                await self._headcount.look_back()
            except ApiServerError as problem:
                _log.info("looking back: %s", problem)
            except AstrayError as problem:
                self._astray(problem)
            # Not at once: whoever else writes statuses all the time would have us write all the time.
            for namespace in self._world.store.namespaces():
                if self._world.store.is_rewritten(namespace):
                    self.mark(namespace)
            await asyncio.sleep(self._timing.look_back_s)


class _Worker:
    """The two tasks of one namespace."""

    def __init__(
        self, name: str, world: World, timing: Timing, acting: bool, published: Callable[[], None]
    ) -> None:
        self._acting = acting
        self._running: list[asyncio.Task[None]] = []
        self.changed = asyncio.Event()
        self._revision = 0  #: of the store, at the last reconciliation
        self._bursts = 0  #: in a row
        self._unpublished = asyncio.Event()
        self._name = name
        self._world = world
        self._timing = timing
        self._published = published
        self._namespace = Namespace(name, world, self._unpublished.set, self.changed.set)
        self._publication = Publication(world.store, world.cluster, world.clock)

    def start(self) -> None:
        self._running = [
            self._world.tasks.start(self._reconcile(), f"reconcile {self._name}"),
            self._world.tasks.start(self._publish(), f"publish {self._name}"),
        ]

    def act(self) -> None:
        """Do what was only prepared so far."""
        self._acting = True
        self.changed.set()

    def views(self) -> Iterable[PoolView]:
        return self._namespace.views()

    def cancel(self) -> None:
        """Break off; `closed` must follow."""
        for task in self._running:
            task.cancel()

    async def closed(self) -> None:
        """Wait until nothing runs any more."""
        await self._world.tasks.cancel(self._running)
        await self._namespace.close()

    async def _reconcile(self) -> None:
        failures = 0
        while True:
            await self.changed.wait()
            await self._quiet()
            done = await self._step()
            failures = 0 if done else failures + 1
            if not done:
                await wait_for_event(self.changed, self._retry_s(failures))
                self.changed.set()

    async def _step(self) -> bool:
        if not self._acting:
            return await self._namespace.prepare()
        began = time.monotonic()
        done = await self._namespace.reconcile()
        self._world.measures.reconciled(time.monotonic() - began, done)
        self._unpublished.set()
        return done

    async def _publish(self) -> None:
        clock = asyncio.get_running_loop().time
        settle_s, failures, refresh_at = self._timing.first_settle_s, 0, 0.0
        while True:
            done = True
            if self._namespace.postponed:
                news = await wait_for_event(self._unpublished, max(0.0, refresh_at - clock()))
            else:
                news = await self._unpublished.wait()
            if news:
                await self._settled(settle_s)
                self._unpublished.clear()
                done = await self._publication.publish(self._namespace.statuses())
                settle_s = self._timing.settle_s
                self._published()
            if clock() >= refresh_at:
                old = self._namespace.refreshes(self._timing.most_refreshed, self._unpublished.is_set)
                done &= await self._publication.publish(old, at_once=_FEW)
                refresh_at = clock() + self._namespace.refreshed * self._timing.refresh_s
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
