"""One pool's document and overload state, on their way to every sidecar of the pool.

Each Pod has a task of its own that pushes until its sidecar has acknowledged the document aimed at, tells
it every new overload state, and asks it now and then what it really runs. A Pod that hangs delays no other:
those that failed last time share fewer slots than those that answer. Nothing here decides generations; a
sidecar that runs a newer one is reported through `highest_seen`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    Unreachable,
)
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.status import PodAck
from fairserve_operator.handlers.contracts import Clock, Sidecars
from fairserve_operator.handlers.store import Pod
from fairserve_operator.handlers.tasks import Tasks, wait_for_event

_log = logging.getLogger(__name__)

#: Calls in flight at once, over all pools: to sidecars that answered last time, and to those that did not.
_LANE = 128
_SLOW_LANE = 32


@dataclass(frozen=True, slots=True)
class Document:
    """What the sidecars should run."""

    generation: int
    content_hash: str
    body_gz: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class OverloadOrder:
    """One evaluation's verdict. Each is told to every sidecar once, which renews the lease."""

    armed: bool
    lease_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a sidecar is bothered, in seconds."""

    first_retry_s: float = 0.2
    last_retry_s: float = 15.0
    resync_s: float = 30.0  #: time between two looks at what an up-to-date sidecar really runs


class Lanes:
    """Bounds the calls in flight of all pools together."""

    def __init__(self, lane: int = _LANE, slow_lane: int = _SLOW_LANE) -> None:
        self._lane = asyncio.Semaphore(lane)
        self._slow_lane = asyncio.Semaphore(slow_lane)

    def slot(self, failed_before: bool) -> asyncio.Semaphore:
        """What to hold during one call."""
        return self._slow_lane if failed_before else self._lane


@dataclass(slots=True, eq=False)
class _Link:
    """One process at one address: a Pod that starts anew gets a new link.

    `wake` is set whenever there may be something new to do for it.
    """

    pod: Pod
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: Running | None = None
    acknowledged_at: float | None = None
    tried: Document | None = None  #: the last document it was given, whatever came of it
    refused: Document | None = None  #: the document it will not take, however often it is given
    told: OverloadOrder | None = None
    doubted: bool = False  #: whether to ask what it runs, although it acknowledged
    problem: str = ""
    failures: int = 0  #: in a row


class PoolDelivery:
    """All sidecars of one pool.

    `changed` is called whenever `acks` may have changed, `outdated` when `highest_seen` has risen.
    """

    def __init__(
        self,
        pool: str,
        sidecars: Sidecars,
        lanes: Lanes,
        tasks: Tasks,
        changed: Callable[[], None],
        outdated: Callable[[], None],
        clock: Clock,
        rng: random.Random,
        pace: Pace = Pace(),
    ) -> None:
        self._pool = pool
        self._sidecars = sidecars
        self._lanes = lanes
        self._tasks = tasks
        self._changed = changed
        self._outdated = outdated
        self._clock = clock
        self._rng = rng
        self._pace = pace
        self._links: dict[str, tuple[_Link, asyncio.Task[None]]] = {}
        self._document: Document | None = None
        self._order: OverloadOrder | None = None
        self._control_port = 0
        self._token = ""
        self.highest_seen = 0  #: the lowest generation that no sidecar refuses as old, less one

    def aim(self, document: Document, control_port: int, token: str) -> None:
        """Make this what every sidecar should run. A document that is already aimed at changes nothing."""
        if (document, control_port, token) == (self._document, self._control_port, self._token):
            return
        self._document, self._control_port, self._token = document, control_port, token
        for link, _ in self._links.values():
            link.refused = None
            link.wake.set()

    def order(self, order: OverloadOrder | None) -> None:
        """Tell every sidecar the overload state; None: nobody evaluates any more."""
        self._order = order
        for link, _ in self._links.values():
            link.wake.set()

    async def follow(self, pods: Iterable[Pod]) -> None:
        """Make these the pool's Pods."""
        before, self._links = self._links, {}
        for pod in pods:
            known = before.get(pod.uid)
            if known is not None and _same_process(known[0].pod, pod):
                _refresh(known[0], pod)
                self._links[pod.uid] = before.pop(pod.uid)
            else:
                link = _Link(pod)
                self._links[pod.uid] = link, self._tasks.start(self._keep(link), f"deliver to {pod.name}")
        gone = [task for _, task in before.values()]
        await self._tasks.cancel(gone)

    @property
    def settled(self) -> bool:
        """Whether every sidecar has been given the document once, with whatever outcome."""
        return all(link.tried is self._document for link, _ in self._links.values())

    def acks(self) -> list[PodAck]:
        """How far each Pod is."""
        return [_ack(link) for link, _ in self._links.values()]

    async def close(self) -> None:
        """Let go of every Pod; the sidecars go on with what they have."""
        await self.follow(())

    async def _keep(self, link: _Link) -> None:
        while True:
            if self._wants_document(link):
                reached = await self._push(link)
            elif self._order is not None and link.told is not self._order:
                reached = await self._tell(link, self._order)
            elif link.doubted:
                reached = await self._verify(link)
            else:
                if not await wait_for_event(link.wake, self._pace.resync_s * self._rng.uniform(0.8, 1.2)):
                    link.doubted = True
                continue
            if not reached:
                await wait_for_event(link.wake, self._retry_s(link))

    def _wants_document(self, link: _Link) -> bool:
        document = self._document
        return (
            document is not None and document is not link.refused and not _runs(link.acknowledged, document)
        )

    async def _push(self, link: _Link) -> bool:
        document = self._document
        if document is None:
            raise AssertionError("only a wanted document is pushed")
        async with self._lanes.slot(link.failures > 0):
            answer = await self._sidecars.put_config(self._port(link), document.body_gz)
        link.tried = document
        match answer:
            case Running() if _runs(answer, document):
                self._acknowledge(link, answer)
            case Running(generation, content_hash):
                answered = f"acknowledged generation {generation} ({content_hash[:12]}) instead"
                return self._failed(link, Unreachable(answered))
            case Newer(generation, content_hash):
                self._superseded(link, document, generation, content_hash)
            case Rejected():
                link.refused = document
                self._failed(link, answer)
            case Unreachable():
                return self._failed(link, answer)
        return True

    async def _tell(self, link: _Link, order: OverloadOrder) -> bool:
        async with self._lanes.slot(link.failures > 0):
            answer = await self._sidecars.put_overload(
                self._port(link), order.armed, order.lease_s, order.reason
            )
        match answer:
            case OverloadTaken(generation=generation):
                link.told = order
                self._compare_generation(link, generation)
                return self._reached(link)
            case Rejected():
                link.told = order
                self._failed(link, answer)
                return True
            case Unreachable():
                return self._failed(link, answer)

    async def _verify(self, link: _Link) -> bool:
        async with self._lanes.slot(link.failures > 0):
            answer = await self._sidecars.get_state(self._port(link))
        match answer:
            case Running():
                link.doubted = False
                link.refused = None  # Worth another try: it may have been replaced by a newer version.
                if self._document is not None and not _runs(answer, self._document):
                    _log.info(
                        "Pod %s: runs generation %d, not what it was given", link.pod.name, answer.generation
                    )
                    link.acknowledged = None
                return self._reached(link)
            case Rejected() | Unreachable():
                return self._failed(link, answer)

    def _compare_generation(self, link: _Link, generation: int) -> None:
        """A sidecar that runs another generation than it acknowledged is another process by now."""
        if link.acknowledged is not None and link.acknowledged.generation != generation:
            _log.info("Pod %s: started anew with generation %d", link.pod.name, generation)
            link.acknowledged = None

    def _acknowledge(self, link: _Link, running: Running) -> None:
        link.acknowledged, link.acknowledged_at, link.doubted = running, self._clock(), False
        link.told = None  # A sidecar that had no configuration knows no overload state either.
        self._reached(link)
        self._changed()

    def _superseded(self, link: _Link, document: Document, generation: int, content_hash: str) -> None:
        """The sidecar has a generation that ours isn't newer than: ask for a higher one of our own."""
        same = generation == document.generation and content_hash != document.content_hash
        self.highest_seen = max(self.highest_seen, generation + same)
        link.refused, link.acknowledged = document, None
        link.problem = f"runs generation {generation} already"
        _log.info(
            "Pod %s of ServingPool %s runs generation %d already", link.pod.name, self._pool, generation
        )
        self._outdated()

    def _reached(self, link: _Link) -> bool:
        if link.problem and link.refused is None:
            link.problem = ""
            self._changed()
        link.failures = 0
        return True

    def _failed(self, link: _Link, answer: Rejected | Unreachable) -> bool:
        """Note the failure; returns False, "not reached"."""
        match answer:
            case Rejected(status, words):
                problem = f"HTTP {status}: {words}"
            case Unreachable(words):
                problem = words
        link.failures += 1
        if problem != link.problem:
            _log.warning(
                "Pod %s of ServingPool %s at %r: %s", link.pod.name, self._pool, self._port(link), problem
            )
            link.problem = problem
            self._changed()
        return False

    def _retry_s(self, link: _Link) -> float:
        longest = min(self._pace.first_retry_s * 2.0 ** min(link.failures - 1, 30), self._pace.last_retry_s)
        return longest * self._rng.uniform(0.5, 1.0)

    def _port(self, link: _Link) -> ControlPort:
        return ControlPort(link.pod.ip, self._control_port, self._token)


def _runs(running: Running | None, document: Document) -> bool:
    return running is not None and (running.generation, running.content_hash) == (
        document.generation,
        document.content_hash,
    )


def _same_process(before: Pod, now: Pod) -> bool:
    return (before.ip, before.incarnation) == (now.ip, now.incarnation)


def _refresh(link: _Link, pod: Pod) -> None:
    came_up = pod.ready and not link.pod.ready
    link.pod = pod
    if came_up:
        # It may have had a long start: worth a look at once, not after the backoff.
        link.doubted, link.failures = True, 0
        link.wake.set()


def _ack(link: _Link) -> PodAck:
    return PodAck(
        pod=link.pod.name,
        generation=None if link.acknowledged is None else link.acknowledged.generation,
        error=link.problem,
        last_ack_time=None if link.acknowledged_at is None else rfc3339(link.acknowledged_at),
    )
