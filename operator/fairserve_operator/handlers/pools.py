"""One ServingPool: from the namespace's objects to what its sidecars are told.

The boot Secret is written before any sidecar is aimed at a document, so that a generation that a sidecar
has seen is always stored. A pool is compiled anew only where something changed that is compiled in; Pods
come and go without.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairserve.config import key_digest
from fairserve.overload.settings import Verdict
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.claims import Digests as FoundDigests
from fairserve_operator.decide.compilation import Compiled, compile_pool
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.generations import Entry, entered, next_generation
from fairserve_operator.decide.rendering import Renderer, Rendering
from fairserve_operator.decide.resources import ObjectKey, Resource, SecretProblem, SecretRef
from fairserve_operator.decide.signals import OverloadPlan
from fairserve_operator.decide.status import Delivery, pool_status
from fairserve_operator.errors import ApiServerError, ConflictError, ForeignSecretError
from fairserve_operator.handlers.boot import Boot, BootSecrets
from fairserve_operator.handlers.contracts import Clock, Cluster, Metrics, Sidecars
from fairserve_operator.handlers.delivery import Document, Lanes, Pace, PoolDelivery
from fairserve_operator.handlers.overload import OverloadWatch
from fairserve_operator.handlers.store import Store
from fairserve_operator.handlers.tasks import Tasks
from fairserve_operator.manifests.boot_secret import compressed
from fairserve_operator.manifests.events import event

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that acting needs."""

    store: Store
    cluster: Cluster
    sidecars: Sidecars
    metrics: Metrics
    lanes: Lanes
    tasks: Tasks
    clock: Clock
    rng: random.Random
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The objects of a namespace at one moment, and the store's revision of them."""

    revision: int
    pools: tuple[Resource, ...]
    tenants: tuple[Resource, ...]
    applications: tuple[Resource, ...]
    refs: frozenset[SecretRef]


class Pool:
    """Acts for one ServingPool.

    `changed` is called when there is something to publish, `outdated` when a sidecar runs a generation that
    ours must exceed. `resource` and `compiled` are what the sidecars are aimed at, not what comes next.
    """

    def __init__(
        self,
        resource: Resource,
        world: World,
        changed: Callable[[], None],
        outdated: Callable[[], None],
        boot: Boot | None = None,
    ) -> None:
        self.resource = resource
        self.compiled: Compiled | None = None
        self.delivery = PoolDelivery(
            resource.key.name,
            world.sidecars,
            world.lanes,
            world.tasks,
            changed,
            outdated,
            world.clock,
            world.rng,
            world.pace,
        )
        self._world = world
        self._changed = changed
        self._boots = BootSecrets(world.store, world.cluster)
        self._boot = boot
        self._digests = Digests(world.store)
        self._renderer = Renderer()
        self._candidate: Compiled | None = None
        self._candidate_of: tuple[int, str] | None = None  #: the store's revision, and the salt
        self._rendering: Rendering | None = None  #: of the candidate; None where that is refused
        self._entries: dict[ObjectKey, Entry] = {}
        self._spec: ServingPoolSpec | None = None  #: the last good one: a refused pool goes on with it
        self._generation = 0
        self._document: Document | None = None
        self._watch: OverloadWatch | None = None
        self._watching: asyncio.Task[None] | None = None

    async def reconcile(self, resource: Resource, gathered: Gathered) -> bool:
        """Bring the sidecars' target up to date; false if that must be tried again."""
        try:
            self._boot = await self._boots.read(resource, self._boot)
            await self._compile(resource, gathered, self._boot.salt)
            await self._program(resource, self._boot)
        except ConflictError as problem:
            _log.info("%s", problem)
            self._boot = self._boot and self._boot.unread()
            return False
        except (ApiServerError, ForeignSecretError) as problem:
            _log.warning("ServingPool %s/%s: %s", resource.key.namespace, resource.key.name, problem)
            return False
        finally:
            await self._follow_pods()
        return True

    def status(self, delivery: Delivery, previous: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
        """Tell the status that the pool should have. Only after the first compilation."""
        if self.compiled is None:
            raise AssertionError("a pool that was never compiled has no status")
        verdict = None if self._watch is None else self._watch.verdict
        return pool_status(self.resource, self.compiled, self._generation, delivery, verdict, previous, now)

    def entered_at(self, key: ObjectKey) -> int | None:
        """Since which generation the pool has the object as it is now; None if it leaves it out.

        An object that is compiled but not stored yet will come with a generation that nobody runs.
        """
        part = self._candidate.parts.get(key) if self._candidate else None
        if part is None:
            return None
        entry = self._entries.get(key)
        return entry.generation if entry and entry.part == part else self._generation + 1

    @property
    def boot(self) -> Boot | None:
        """What its Secret holds, as last read or written."""
        return self._boot

    @property
    def settled(self) -> bool:
        """Whether every sidecar was given its document once, and the overload signals were read once."""
        evaluated = self._watch is None or self._watch.verdict is not None
        return evaluated and self.delivery.settled

    async def close(self) -> None:
        """Stop acting; the sidecars go on with what they have."""
        await self._stop_watching()
        await self.delivery.close()

    async def _compile(self, resource: Resource, gathered: Gathered, salt: str) -> None:
        if self._candidate is None or self._candidate_of != (gathered.revision, salt):
            found = self._digests.under(salt, gathered.refs)
            # In a thread: it takes long with thousands of Tenants, and leases are renewed meanwhile.
            self._candidate, self._rendering = await asyncio.to_thread(
                self._made, resource, gathered, found, salt
            )
            self._candidate_of = gathered.revision, salt

    def _made(
        self, resource: Resource, gathered: Gathered, found: FoundDigests, salt: str
    ) -> tuple[Compiled, Rendering | None]:
        compiled = compile_pool(
            resource, gathered.pools, gathered.tenants, gathered.applications, found, salt
        )
        return compiled, None if compiled.config is None else self._renderer.render(compiled.config)

    async def _program(self, resource: Resource, boot: Boot) -> None:
        """Store what was compiled and aim at it. A refused pool keeps what it has."""
        compiled, rendering = self._candidate, self._rendering
        if compiled is None:
            raise AssertionError("programmed before compiled")
        if rendering is None or compiled.spec is None:
            self.resource, self.compiled, self._generation = resource, compiled, boot.generation
            return
        content_hash = rendering.content_hash
        seen = self.delivery.highest_seen
        generation = next_generation(boot.content_hash, boot.generation, content_hash, seen)
        document = self._document
        if document is None or (document.generation, document.content_hash) != (generation, content_hash):
            packed = await asyncio.to_thread(lambda: compressed(rendering.document(generation)))
            document = Document(generation, content_hash, packed, rendering)
        self._boot = await self._boots.write(resource, boot, generation, content_hash, document.body_gz)
        # From here to the end of aim() nothing waits: status never mixes the old and the new.
        self.resource, self.compiled, self._generation = resource, compiled, generation
        self._spec, self._entries = compiled.spec, entered(self._entries, compiled.parts, generation)
        self._document = document
        self.delivery.aim(document, compiled.spec.sidecar.control_port, self._boot.token)
        await self._replan(compiled.overload)

    async def _follow_pods(self) -> None:
        if self._spec is not None:
            labels = self._spec.selector.match_labels
            await self.delivery.follow(self._world.store.pods(self.resource.key.namespace, labels))

    async def _replan(self, plan: OverloadPlan | None) -> None:
        if plan is None or plan.prometheus_url is None:
            await self._stop_watching()
        elif self._watch is not None:
            self._watch.replan(plan)
        else:
            stored = self._world.store.stored(self.resource.key)
            self._watch = OverloadWatch(
                self.resource.key,
                plan,
                self._world.metrics,
                self._world.clock,
                stored.status if stored else None,
                self.delivery.order,
                self._turned,
            )
            self._watching = self._world.tasks.start(self._watch.run(), f"evaluate {self.resource.key.name}")

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            await self._world.tasks.cancel([self._watching])
        self._watch = self._watching = None
        self.delivery.order(None)

    def _turned(self, verdict: Verdict) -> None:
        self._changed()
        if verdict.changed:
            self._world.tasks.start(self._record(verdict), f"record {verdict.state.value}")

    async def _record(self, verdict: Verdict) -> None:
        kind: Literal["Normal", "Warning"] = "Warning" if verdict.armed else "Normal"
        now = rfc3339(self._world.clock())
        try:
            await self._world.cluster.create_event(
                event(self.resource, kind, verdict.state.value, verdict.message, now)
            )
        except ApiServerError as problem:
            _log.warning("%s", problem)  # The condition tells the same.


class Digests:
    """Looks up Secret entries and makes them the digests that travel. Secrets that are as they were are not
    digested again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._salt = ""
        self._known: dict[SecretRef, tuple[Mapping[str, bytes] | None, str | SecretProblem]] = {}

    def under(self, salt: str, refs: frozenset[SecretRef]) -> FoundDigests:
        """The digest of each entry under a salt, or why there is none."""
        known = self._known if salt == self._salt else {}
        self._salt, self._known = salt, {}
        found: dict[SecretRef, str | SecretProblem] = {}
        for ref in refs:
            values = self._store.secret(ref.namespace, ref.name)
            before = known.get(ref)
            if before is None or before[0] is not values:
                before = values, _digest(values, ref, salt)
            self._known[ref] = before
            found[ref] = before[1]
        return found


def _digest(values: Mapping[str, bytes] | None, ref: SecretRef, salt: str) -> str | SecretProblem:
    if values is None:
        return SecretProblem.SECRET_MISSING
    if ref.key not in values:
        return SecretProblem.KEY_MISSING
    # Headers carry neither line ends nor spaces around a value; `kubectl create secret --from-file` does.
    key = values[ref.key].decode("latin-1").strip()
    return key_digest(salt, key) if key else SecretProblem.EMPTY
