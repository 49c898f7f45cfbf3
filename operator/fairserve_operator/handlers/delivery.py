"""One pool's document and overload state, on their way to every sidecar of the pool.

Each Pod has a task of its own that asks its sidecar what it runs, pushes until it has acknowledged the
document aimed at, tells it every new overload state, and asks again now and then. What is pushed is the
difference to what the sidecar runs, computed once for all, and the whole document where that does not fit. A
Pod that hangs delays no other: those that failed last time share fewer slots than those that answer, and who
takes long gives its slot back. Nothing here decides generations; a sidecar that runs a newer one is reported
through `highest_seen`.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairserve.rendering import Rendering, difference
from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    State,
    Unreachable,
)
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.status import PodAck
from fairserve_operator.handlers.contracts import Clock, Sidecars
from fairserve_operator.handlers.lanes import Lanes
from fairserve_operator.handlers.store import Pod
from fairserve_operator.handlers.tasks import Tasks, wait_for_event
from fairserve_operator.manifests.boot_secret import boot_secret_name, compressed

_log = logging.getLogger(__name__)

#: Looks at one sidecar are as far apart as its pace says, times at most this.
_LATEST_LOOK = 1.2

#: How many documents can be the base of a difference. They share nearly everything.
_BASES = 8
#: A difference is compressed if it is longer than this.
_SMALL = 2048
#: A generation above this is no word of an operator: counting to it takes longer than there are changes.
_MOST_BELIEVED = 2**52


@dataclass(slots=True)
class Document:
    """What the sidecars should run. Two are equal where generation and hash are."""

    generation: int
    content_hash: str
    rendering: Rendering = field(repr=False, compare=False)
    _whole: asyncio.Future[bytes] | None = field(default=None, init=False, repr=False, compare=False)

    async def whole(self) -> bytes:
        """All of it, gzipped JSON; made when somebody wants it, because most take a difference."""
        if self._whole is None:
            made = asyncio.to_thread(lambda: compressed(self.rendering.document(self.generation)))
            self._whole = asyncio.ensure_future(made)
        return await asyncio.shield(self._whole)


@dataclass(frozen=True, slots=True, eq=False)
class OverloadOrder:
    """One evaluation's verdict. Each is told to every sidecar once, which renews the lease."""

    armed: bool
    lease_s: float
    reason: str
    last: bool = False  #: whether nobody evaluates any more, so that a process is told once and never again


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a sidecar is bothered, in seconds."""

    first_retry_s: float = 0.2
    last_retry_s: float = 15.0
    resync_s: float = 30.0  #: time between two looks at what an up-to-date sidecar really runs
    looks_per_s: float = 10.0  #: ... which is longer where a pool has more Pods than this allows


@dataclass(slots=True, eq=False)
class _Link:
    """One process at one address: a Pod that starts anew gets a new link.

    `wake` is set whenever there may be something new to do for it.
    """

    pod: Pod
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    asked: bool = False  #: whether it has ever said what it runs
    acknowledged: Running | None = None
    acknowledged_at: float | None = None
    whole: bool = False  #: whether it takes no difference to what it acknowledged
    refused: Document | None = None  #: the document it will not take, however often it is given
    told: OverloadOrder | None = None
    doubted: bool = False  #: whether to ask what it runs, although it acknowledged
    look_at: float = 0.0  #: when to ask what it runs, although nothing is doubted; by the loop's clock
    contradictions: int = 0  #: how often lately it ran something else than it had acknowledged
    overtakes: int = 0  #: how often in a row it ran a generation that ours had to exceed
    problem: str = ""
    failures: int = 0  #: in a row


class PoolDelivery:
    """All sidecars of one pool.

    `changed` is called whenever `acks` may have changed, `outdated` when `highest_seen` has risen, `heard`
    with a Pod's uid and what its sidecar tells of itself.
    """

    def __init__(
        self,
        pool: str,
        sidecars: Sidecars,
        lanes: Lanes,
        tasks: Tasks,
        changed: Callable[[], None],
        outdated: Callable[[], None],
        heard: Callable[[str, Mapping[str, Any]], None],
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
        self._heard = heard
        self._clock = clock
        self._rng = rng
        self._pace = pace
        self._links: dict[str, tuple[_Link, asyncio.Task[None]]] = {}
        self._document: Document | None = None
        #: Documents that sidecars may run, by generation and hash; the newest last.
        self._bases: dict[tuple[int, str], Rendering] = {}
        #: What makes the document of a base; None where the whole document is shorter.
        self._differences: dict[tuple[int, str], asyncio.Future[bytes | None]] = {}
        self._awaited: set[_Link] = set()  #: who has not answered since the last `aim`
        self._order: OverloadOrder | None = None
        self._control_port = 0
        self._token = ""
        self.highest_seen = 0  #: the lowest generation that no sidecar refuses as old, less one

    def aim(self, document: Document, control_port: int, token: str) -> None:
        """Make this what every sidecar should run. A document that is already aimed at changes nothing."""
        if (document, control_port, token) == (self._document, self._control_port, self._token):
            return
        if document != self._document:
            self._differences = {}
            self._bases[document.generation, document.content_hash] = document.rendering
            for oldest in list(self._bases)[:-_BASES]:
                del self._bases[oldest]
        self._document, self._control_port, self._token = document, control_port, token
        for link, _ in self._links.values():
            link.refused = None
            if link.failures == 0:
                self._awaited.add(link)
            link.wake.set()

    def order(self, order: OverloadOrder | None) -> None:
        """Tell every sidecar the overload state; None: tell nothing more, each goes on by what it knows."""
        self._order = order
        for link, _ in self._links.values():
            link.wake.set()

    async def follow(self, pods: Iterable[Pod]) -> None:
        """Make these the pool's Pods."""
        before, self._links = self._links, {}
        for pod in pods:
            known = before.get(pod.uid)
            if known is not None and _same_process(known[0].pod, pod):
                link, task = before.pop(pod.uid)
                if _refresh(link, pod):
                    # It may have had a long start: worth a look at once, whatever is hanging or waited for.
                    await self._tasks.cancel([task])
                    task = self._start(link)
                self._links[pod.uid] = link, task
            else:
                link = _Link(pod)
                if self._document is not None:
                    self._awaited.add(link)
                self._links[pod.uid] = link, self._start(link)
        self._awaited.difference_update(link for link, _ in before.values())
        await self._tasks.cancel([task for _, task in before.values()])

    def _start(self, link: _Link) -> asyncio.Task[None]:
        return self._tasks.start(self._keep(link), f"deliver to {link.pod.name}")

    @property
    def settled(self) -> bool:
        """Whether every sidecar has been given the document once, with whatever outcome. Those that failed
        before are not waited for.
        """
        return not self._awaited

    def acks(self) -> list[PodAck]:
        """How far each Pod is."""
        return [_ack(link) for link, _ in self._links.values()]

    async def close(self) -> None:
        """Let go of every Pod; the sidecars go on with what they have."""
        await self.follow(())

    async def _keep(self, link: _Link) -> None:
        while True:
            if self._document is None:
                await link.wake.wait()  # Nobody knows where its sidecar listens.
                link.wake.clear()
                continue
            if not link.asked:
                reached = await self._verify(link)
            elif self._wants_document(link):
                reached = await self._push(link)
            elif self._order is not None and link.told is not self._order:
                reached = await self._tell(link, self._order)
            elif link.doubted:
                reached = await self._verify(link)
            else:
                # Counted from the last look: what wakes it in between, such as an order, is no look.
                pause_s = link.look_at - _now()
                if pause_s <= 0.0 or not await wait_for_event(link.wake, pause_s):
                    link.doubted, link.contradictions = True, 0
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
        base = link.acknowledged
        change = await self._difference(link, document)
        whole = b"" if change is not None else await document.whole()
        async with self._lanes.slot(link.failures > 0):
            if change is not None:
                answer = await self._sidecars.put_difference(self._port(link), change)
            else:
                answer = await self._sidecars.put_config(self._port(link), whole)
        match answer:
            case Newer(generation) if change is not None and generation < document.generation:
                _log.info("Pod %s: runs generation %d, not %s", link.pod.name, generation, base)
                link.acknowledged, link.whole = None, True
                return True
            case Rejected() if change is not None:
                _log.info("Pod %s: takes no difference: %s", link.pod.name, answer.words)
                link.whole = True
                return True
        self._awaited.discard(link)
        match answer:
            case Running() if _runs(answer, document) and link.contradictions:
                return await self._confirm(link, document)
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

    async def _confirm(self, link: _Link, document: Document) -> bool:
        """Ask whether it runs what it has acknowledged: it told of something else after it did so before."""
        async with self._lanes.slot(link.failures > 0):
            answer = await self._sidecars.get_state(self._port(link))
        match answer:
            case State(running) if _runs(running, document):
                self._acknowledge(link, running)
                return link.contradictions <= 1
            case State(Running(generation)):
                told = f"acknowledged generation {document.generation}, but says that it runs {generation}"
                return self._failed(link, Unreachable(told))
            case Rejected() | Unreachable():
                return self._failed(link, answer)

    async def _difference(self, link: _Link, document: Document) -> bytes | None:
        """What makes the document of the one that the sidecar runs; None: give it the whole one."""
        new = document.rendering
        if link.acknowledged is None or link.whole:
            return None
        base = link.acknowledged.generation, link.acknowledged.content_hash
        old = self._bases.get(base)
        if old is None or base[0] >= document.generation:
            return None
        found = self._differences.get(base)
        if found is None:
            work = asyncio.to_thread(_packed_difference, old, base[0], new, document)
            found = self._differences[base] = asyncio.ensure_future(work)
        # Shielded, because all others that run the same base wait for it too.
        return found.result() if found.done() else await asyncio.shield(found)

    async def _tell(self, link: _Link, order: OverloadOrder) -> bool:
        async with self._lanes.slot(link.failures > 0):
            answer = await self._sidecars.put_overload(
                self._port(link), order.armed, order.lease_s, order.reason
            )
        match answer:
            case OverloadTaken(generation=generation):
                link.told = order
                # One that runs another generation than it acknowledged is another process by now.
                link.doubted |= link.acknowledged is not None and link.acknowledged.generation != generation
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
            case State(running, told):
                link.refused = None  # Worth another try: it may have been replaced by a newer version.
                self._believe(link, running)
                self._heard(link.pod.uid, told)
                return self._reached(link) and link.contradictions <= 1
            case Rejected() | Unreachable():
                self._awaited.discard(link)
                return self._failed(link, answer)

    def _believe(self, link: _Link, running: Running) -> None:
        """Take what a sidecar says it runs, unless it is newer than all that was ever given to it."""
        document = self._document
        if document is not None and _runs(running, document):
            if not _runs(link.acknowledged, document):
                self._awaited.discard(link)
                self._acknowledge(link, running)
        elif running != link.acknowledged:
            if link.asked:
                _log.info("Pod %s: runs generation %d, not what it had", link.pod.name, running.generation)
                link.contradictions += link.acknowledged is not None
            older = document is not None and 0 < running.generation < document.generation
            link.acknowledged, link.whole = running if older else None, False
        link.asked, link.doubted, link.look_at = True, False, self._next_look()

    def _acknowledge(self, link: _Link, running: Running) -> None:
        link.acknowledged, link.acknowledged_at, link.doubted = running, self._clock(), False
        link.whole, link.overtakes = False, 0
        if link.told is not None and not link.told.last:
            link.told = None  # A sidecar that had no configuration knows no overload state either.
        self._reached(link)
        self._changed()

    def _superseded(self, link: _Link, document: Document, generation: int, content_hash: str) -> None:
        """The sidecar has a generation that ours isn't newer than: ask for a higher one of our own.

        One that has a newer one each time would drive all others through generations without end: it is
        outdone the first, second, fourth, eighth time and so on.
        """
        same = generation == document.generation and content_hash != document.content_hash
        link.overtakes += 1
        if generation <= _MOST_BELIEVED and link.overtakes & (link.overtakes - 1) == 0:
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
            case Rejected(401, words):
                secret = boot_secret_name(self._pool)
                problem = f"HTTP 401: {words}; the Pod must have its control token from Secret {secret}"
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

    def round_s(self) -> float | None:
        """The time in which every sidecar is asked what it runs; None where there is no Pod."""
        return self._between_s() * (_LATEST_LOOK + 0.1) if self._links else None

    def _between_s(self) -> float:
        return max(self._pace.resync_s, len(self._links) / self._pace.looks_per_s)

    def _next_look(self) -> float:
        return _now() + self._between_s() * self._rng.uniform(2.0 - _LATEST_LOOK, _LATEST_LOOK)

    def _retry_s(self, link: _Link) -> float:
        failures = max(link.failures, link.contradictions)
        longest = min(self._pace.first_retry_s * 2.0 ** min(failures - 1, 30), self._pace.last_retry_s)
        return longest * self._rng.uniform(0.5, 1.0)

    def _port(self, link: _Link) -> ControlPort:
        return ControlPort(link.pod.ip, self._control_port, self._token)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _packed_difference(
    old: Rendering, old_generation: int, new: Rendering, document: Document
) -> bytes | None:
    change = difference(old, old_generation, new, document.generation)
    if len(change) >= new.length:
        return None
    return gzip.compress(change, mtime=0) if len(change) > _SMALL else change


def _runs(running: Running | None, document: Document) -> bool:
    return running is not None and (running.generation, running.content_hash) == (
        document.generation,
        document.content_hash,
    )


def _same_process(before: Pod, now: Pod) -> bool:
    return (before.ip, before.incarnation) == (now.ip, now.incarnation)


def _refresh(link: _Link, pod: Pod) -> bool:
    """Take what is new of a Pod; whether it has come up."""
    came_up = pod.ready and not link.pod.ready
    link.pod = pod
    if came_up:
        link.doubted, link.failures = True, 0
    return came_up


def _ack(link: _Link) -> PodAck:
    return PodAck(
        pod=link.pod.name,
        generation=None if link.acknowledged is None else link.acknowledged.generation,
        error=link.problem,
        last_ack_time=None if link.acknowledged_at is None else rfc3339(link.acknowledged_at),
    )
