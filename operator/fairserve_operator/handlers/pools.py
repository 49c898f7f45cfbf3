"""One ServingPool: from the namespace's objects to what its sidecars are told.

Sidecars are told at once, and the boot Secret, which takes longer, is written meanwhile. Whoever finds
sidecars with a generation that was never stored overtakes it (`generations.next_generation`). A pool is
compiled anew only where something changed that is compiled in; Pods come and go without.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairserve.overload.settings import Verdict
from fairserve.rendering import Renderer, Rendering
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.activity import Report
from fairserve_operator.decide.announcements import Allowance
from fairserve_operator.decide.claims import Digests as FoundDigests
from fairserve_operator.decide.compilation import Compiled, Needs, compile_pool
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.generations import Entry, entered, newest, next_generation
from fairserve_operator.decide.inference_pools import InferencePools, Selection
from fairserve_operator.decide.issuers import issuers_keys
from fairserve_operator.decide.jwks import Keys, KeySet
from fairserve_operator.decide.resources import (
    ObjectKey,
    Resource,
)
from fairserve_operator.decide.selectors import Overlap
from fairserve_operator.decide.signals import OverloadPlan
from fairserve_operator.decide.status import Delivery, pool_status
from fairserve_operator.errors import ApiServerError, ConflictError, ContestedError, ForeignSecretError
from fairserve_operator.handlers.boot import Boot, BootSecrets
from fairserve_operator.handlers.contracts import Clock, Cluster, Metrics, Sidecars
from fairserve_operator.handlers.delivery import Document, OverloadOrder, Pace, PoolDelivery
from fairserve_operator.handlers.inference_pools import Sightings
from fairserve_operator.handlers.keys import Keyring
from fairserve_operator.handlers.lanes import Lanes
from fairserve_operator.handlers.measures import Measures, PoolView
from fairserve_operator.handlers.overload import OverloadWatch, stored_state
from fairserve_operator.handlers.secret_values import NO_SALT, Digests, issuer_keys, secret_value
from fairserve_operator.handlers.store import Pod, Store
from fairserve_operator.handlers.survey import Survey
from fairserve_operator.handlers.tasks import Tasks
from fairserve_operator.logs import about
from fairserve_operator.manifests.boot_secret import boot_secret_name
from fairserve_operator.manifests.events import event

_log = logging.getLogger(__name__)

#: For how long a Secret is left to another operator that keeps writing another document, in seconds.
_FIRST_YIELD_S = 1.0
_LONGEST_YIELD_S = 300.0
#: The lease of the last word, in seconds: what comes after it is up to `onStale`.
_LAST_LEASE_S = 1.0
#: Without a contest for that long the next one is the first again.
_FORGOTTEN_S = 600.0
#: Events of overload that one pool may tell at once, and the seconds in which it may tell one more. Of its
#: own: a pool that flaps, having no hold-down, neither floods the API server nor silences others.
_OVERLOAD_EVENTS = 10
_OVERLOAD_EVENT_S = 30.0


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
    keyring: Keyring = field(default_factory=Keyring)
    inference_pools: Sightings = field(default_factory=Sightings)
    measures: Measures = field(default_factory=Measures)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The objects of a namespace at one moment, and the store's revision of them."""

    revision: int
    pools: tuple[Resource, ...]
    tenants: tuple[Resource, ...]
    applications: tuple[Resource, ...]
    needs: Needs
    inference_pools: InferencePools


class Pool:
    """Acts for one ServingPool.

    `changed` is called when there is something to publish, `outdated` when a sidecar runs a generation that
    ours must exceed, `surveyed` when `report` is new. `overlap` tells what it shares with others. `resource`
    and `compiled` are what the sidecars are aimed at, not what comes next.
    """

    def __init__(
        self,
        resource: Resource,
        world: World,
        changed: Callable[[], None],
        outdated: Callable[[], None],
        surveyed: Callable[[], None],
        overlap: Callable[[ObjectKey], Overlap],
        boot: Boot | None = None,
    ) -> None:
        self.resource = resource
        self.compiled: Compiled | None = None
        self._survey = Survey(self._told)
        self.delivery = PoolDelivery(
            resource.key.name,
            world.sidecars,
            world.lanes,
            world.tasks,
            changed,
            outdated,
            self._survey.heard,
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
        #: Which Pods it has; the last that could be told: who can't be found takes no Pods away.
        self.selection: Selection | None = None
        self._overlap = overlap
        self._generation = 0
        self._unstored = ""  #: why the boot Secret is not what it should be
        self._failures = 0  #: to write it, in a row
        self._contests = 0  #: how often others have written another document over ours
        self._yield_until = 0.0  #: monotonic
        self._document: Document | None = None
        self._to_store: Document | None = None  #: what the last `reconcile` aimed at
        self._keys: Mapping[str, KeySet] = {}  #: of the document's token issuers
        self.revision = 0  #: rises with what `entered_at` and `compiled` say
        self._watch: OverloadWatch | None = None
        self._watching: asyncio.Task[None] | None = None
        self._allowance = Allowance(_OVERLOAD_EVENTS, _OVERLOAD_EVENT_S)
        self._planned = False  #: whether it was seen to have a Prometheus, or none
        self._surveyed = surveyed
        self._surveying: asyncio.Task[None] | None = None
        #: What the sidecars tell of their work; None before they were asked.
        self.report: Report | None = None

    async def prepare(self, resource: Resource, gathered: Gathered) -> bool:
        """Compile what `reconcile` would aim at, and act on nothing; false if that must be tried again."""
        try:
            self._boot = await self._boots.read(resource, self._boot)
        except (ApiServerError, ForeignSecretError) as problem:
            _log.info(
                "%s in %s: %s", resource.key, resource.key.namespace, problem, extra=about(resource.key)
            )
            return False
        await self._compile(resource, gathered, self._boot)
        return True

    async def reconcile(self, resource: Resource, gathered: Gathered) -> bool:
        """Bring the sidecars' target up to date; false if that must be tried again."""
        self._to_store = None
        try:
            self._boot = await self._boots.read(resource, self._boot)
            await self._compile(resource, gathered, self._boot)
            await self._program(resource, self._boot)
        except (ApiServerError, ContestedError, ForeignSecretError) as problem:
            if self.compiled is None:  # Conditions need no Secret, and people should know.
                await self._compile(resource, gathered, Boot(salt=NO_SALT, token=""))
                self.resource, self.compiled = resource, self._candidate
                self.revision += 1
            self._not_stored(problem)
            return False
        finally:
            await self._follow_pods()
        return True

    async def store(self) -> bool:
        """Keep what `reconcile` aimed at in the Secret; false if that must be tried again."""
        document, boot = self._to_store, self._boot
        if document is None or boot is None:
            return True
        try:
            self._boot = await self._boots.write(
                self.resource,
                boot,
                document.generation,
                document.content_hash,
                await document.whole(),
                self._keys,
            )
        except (ApiServerError, ForeignSecretError) as problem:
            self._not_stored(problem)
            return False
        if self._unstored:
            self._unstored = ""
            self._changed()
        self._failures = 0
        return True

    def _not_stored(self, problem: ApiServerError | ContestedError | ForeignSecretError) -> None:
        """Note why the Secret is not what it should be. One conflict is no news: the next try may do."""
        self._failures += 1
        key, conflict = self.resource.key, isinstance(problem, ConflictError)
        if conflict:
            self._boot = self._boot and self._boot.unread()
        level = logging.INFO if conflict else logging.WARNING
        _log.log(level, "%s in %s: %s", key, key.namespace, problem, extra=about(key))
        if not conflict or self._failures > 1:
            self._unstored = str(problem)
            self._changed()

    def status(self, delivery: Delivery, previous: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
        """Tell the status that the pool should have. Only after the first compilation."""
        if self.compiled is None:
            raise AssertionError("a pool that was never compiled has no status")
        verdict = None if self._watch is None else self._watch.verdict
        return pool_status(
            self.resource,
            self.compiled,
            self._generation,
            delivery,
            verdict,
            previous,
            now,
            overlap=self._overlap(self.resource.key),
            unstored=self._unstored,
        )

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
        """Whether every sidecar was asked what it does and given its document once, and the overload
        signals were read once.
        """
        selection = None if self.compiled is None else self.compiled.selection
        if selection is not None and selection.pending:
            return False
        evaluated = self._watch is None or self._watch.verdict is not None
        surveyed = self._surveying is None or self._survey.begun
        return evaluated and surveyed and self.delivery.settled

    def view(self) -> PoolView:
        """Tell what the gauges of `/metrics` say of it."""
        key, delivery = self.resource.key, Delivery(self.resource.key.name, self.delivery.acks())
        heard_at = None if self._watch is None else self._watch.heard_at
        return PoolView(
            namespace=key.namespace,
            pool=key.name,
            pods=delivery.total,
            behind=len(delivery.behind(self._generation)),
            signal_age_s=None if heard_at is None else max(0.0, self._world.clock() - heard_at),
        )

    async def close(self) -> None:
        """Stop acting; the sidecars go on with what they have."""
        if self._surveying is not None:
            await self._world.tasks.cancel([self._surveying])
        await self._stop_watching()
        await self.delivery.close()

    async def _compile(self, resource: Resource, gathered: Gathered, boot: Boot) -> None:
        store, salt = self._world.store, boot.salt
        if self._candidate is None or self._candidate_of != (gathered.revision, salt):
            found = self._digests.under(salt, gathered.needs.secrets)
            keys = issuer_keys(store, self._world.keyring, gathered.needs.keys, boot.keys)
            # In a thread: it takes long with thousands of Tenants, and leases are renewed meanwhile.
            with self._world.measures.compiling():
                self._candidate, self._rendering = await asyncio.to_thread(
                    self._made, resource, gathered, found, keys, salt
                )
            self._candidate_of = gathered.revision, salt

    def _made(
        self, resource: Resource, gathered: Gathered, found: FoundDigests, keys: Keys, salt: str
    ) -> tuple[Compiled, Rendering | None]:
        compiled = compile_pool(
            resource,
            gathered.pools,
            gathered.tenants,
            gathered.applications,
            found,
            keys,
            salt,
            gathered.inference_pools,
        )
        return compiled, None if compiled.config is None else self._renderer.render(compiled.config)

    async def _program(self, resource: Resource, boot: Boot) -> None:
        """Aim at what was compiled. A refused pool keeps what it has."""
        compiled, rendering = self._candidate, self._rendering
        if compiled is None:
            raise AssertionError("programmed before compiled")
        if rendering is None or compiled.spec is None or compiled.config is None:
            self.revision += compiled is not self.compiled
            self.resource, self.compiled, self._generation = resource, compiled, boot.generation
            return
        content_hash = rendering.content_hash
        self._require_uncontested(boot, content_hash)
        document = self._document
        at, of = newest(
            (boot.generation, boot.content_hash),
            (0, None) if document is None else (document.generation, document.content_hash),
        )
        generation = next_generation(of, at, content_hash, self.delivery.highest_seen)
        if document is None or (document.generation, document.content_hash) != (generation, content_hash):
            document = Document(generation, content_hash, rendering)
        self._keys = issuers_keys(compiled.config.identity.token_issuers)
        if not boot.intact:  # Nobody knows its token before it is stored.
            boot = self._boot = await self._boots.write(
                resource, boot, generation, content_hash, await document.whole(), self._keys
            )
        # From here to the end of aim() nothing waits: status never mixes the old and the new.
        self.revision += compiled is not self.compiled or generation != self._generation
        self.resource, self.compiled, self._generation = resource, compiled, generation
        self._spec, self._entries = compiled.spec, entered(self._entries, compiled.parts, generation)
        self._document = document
        if compiled.selection is not None and compiled.selection.labels is not None:
            self.selection = compiled.selection
        self._to_store = document
        self.delivery.aim(document, compiled.spec.sidecar.control_port, boot.token)
        if self._surveying is None:
            rounds = self._survey.run(lambda: self.delivery.settled, self.delivery.round_s)
            self._surveying = self._world.tasks.start(rounds, f"survey {self.resource.key.name}")
        await self._replan(compiled.overload)

    def _require_uncontested(self, boot: Boot, content_hash: str) -> None:
        """Raise ContestedError while the Secret is left to whoever rewrites it again and again.

        A Secret that was edited or restored is put right at once. Two operators that disagree would go on
        like that for ever, and every sidecar with them.
        """
        ours, now = self._document, time.monotonic()
        if ours is None or boot.content_hash in (content_hash, None) or content_hash != ours.content_hash:
            return
        if boot.generation <= ours.generation:
            return
        if now < self._yield_until:
            raise ContestedError(
                f"Secret {boot_secret_name(self.resource.key.name)}: another operator keeps writing another "
                "document; give both one Lease"
            )
        if now > self._yield_until + _FORGOTTEN_S:
            self._contests = 0
        self._contests += 1
        self._yield_until = now + min(_FIRST_YIELD_S * 2.0 ** min(self._contests - 1, 30), _LONGEST_YIELD_S)

    def _told(self, report: Report) -> None:
        self.report = report
        self._surveyed()

    async def _follow_pods(self) -> None:
        if self._spec is not None:
            await self.delivery.follow(self._pods())

    def _pods(self) -> tuple[Pod, ...]:
        if self.selection is None or self.selection.labels is None:
            return ()
        lost = self._overlap(self.resource.key).lost
        pods = self._world.store.pods(self.resource.key.namespace, self.selection.labels)
        return tuple(pod for pod in pods if pod.name not in lost) if lost else pods

    async def _replan(self, plan: OverloadPlan | None) -> None:
        first, self._planned = not self._planned, True
        if plan is None or plan.prometheus_url is None:
            stored = self._world.store.stored(self.resource.key)
            # Another operator may have evaluated, and its word is held by those that were told.
            before = first and stored_state((stored and stored.status) or {}) is not None
            if self._watch is not None or before:
                await self._stop_watching()
                reason = "the pool has no Prometheus any more"
                self.delivery.order(OverloadOrder(False, _LAST_LEASE_S, reason, last=True))
        elif self._watch is not None:
            self._watch.replan(plan)
        else:
            stored = self._world.store.stored(self.resource.key)
            self._watch = OverloadWatch(
                self.resource.key,
                plan,
                self._world.metrics,
                lambda ref: secret_value(self._world.store, ref),
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
        if verdict.changed and self._allowance.take(self._world.clock()):
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
