"""One ServingPool: from the namespace's objects to what its sidecars are told.

The boot Secret is written before any sidecar is aimed at a document, so that a generation that a sidecar
has seen is always stored. A pool is compiled anew only where something changed that is compiled in; Pods
come and go without.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairserve.config import key_digest
from fairserve.overload.settings import Verdict
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.clients.sidecars import ControlPort
from fairserve_operator.decide.activity import Report
from fairserve_operator.decide.claims import Digests as FoundDigests
from fairserve_operator.decide.compilation import Compiled, Needs, compile_pool
from fairserve_operator.decide.conditions import rfc3339
from fairserve_operator.decide.generations import Entry, entered, next_generation
from fairserve_operator.decide.inference_pools import InferencePools, Selection
from fairserve_operator.decide.issuers import issuers_keys
from fairserve_operator.decide.jwks import Keys, KeySet, KeySource, KeysProblem, known_keys, secret_keys
from fairserve_operator.decide.rendering import Renderer, Rendering
from fairserve_operator.decide.resources import ObjectKey, Resource, SecretProblem, SecretRef
from fairserve_operator.decide.selectors import Overlap
from fairserve_operator.decide.signals import OverloadPlan
from fairserve_operator.decide.status import Delivery, pool_status
from fairserve_operator.errors import ApiServerError, ConflictError, ForeignSecretError
from fairserve_operator.handlers.boot import Boot, BootSecrets
from fairserve_operator.handlers.contracts import Clock, Cluster, Metrics, Sidecars
from fairserve_operator.handlers.delivery import Document, Lanes, Pace, PoolDelivery
from fairserve_operator.handlers.inference_pools import Sightings
from fairserve_operator.handlers.keys import Keyring
from fairserve_operator.handlers.measures import Measures, PoolView
from fairserve_operator.handlers.overload import OverloadWatch
from fairserve_operator.handlers.store import Pod, Store
from fairserve_operator.handlers.survey import Survey, SurveyPace
from fairserve_operator.handlers.tasks import Tasks
from fairserve_operator.logs import about
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
    keyring: Keyring = field(default_factory=Keyring)
    inference_pools: Sightings = field(default_factory=Sightings)
    measures: Measures = field(default_factory=Measures)
    survey_pace: SurveyPace = field(default_factory=SurveyPace)


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
        #: Which Pods it has; the last that could be told: who can't be found takes no Pods away.
        self.selection: Selection | None = None
        self._overlap = overlap
        self._generation = 0
        self._document: Document | None = None
        self._watch: OverloadWatch | None = None
        self._watching: asyncio.Task[None] | None = None
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
        try:
            self._boot = await self._boots.read(resource, self._boot)
            await self._compile(resource, gathered, self._boot)
            await self._program(resource, self._boot)
        except ConflictError as problem:
            _log.info("%s", problem, extra=about(resource.key))
            self._boot = self._boot and self._boot.unread()
            return False
        except (ApiServerError, ForeignSecretError) as problem:
            _log.warning(
                "%s in %s: %s", resource.key, resource.key.namespace, problem, extra=about(resource.key)
            )
            return False
        finally:
            await self._follow_pods()
        return True

    def status(self, delivery: Delivery, previous: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
        """Tell the status that the pool should have. Only after the first compilation."""
        if self.compiled is None:
            raise AssertionError("a pool that was never compiled has no status")
        verdict = None if self._watch is None else self._watch.verdict
        overlap = self._overlap(self.resource.key)
        return pool_status(
            self.resource, self.compiled, self._generation, delivery, verdict, previous, now, overlap
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
        """Whether every sidecar was given its document once, and the overload signals were read once."""
        selection = None if self.compiled is None else self.compiled.selection
        if selection is not None and selection.pending:
            return False
        evaluated = self._watch is None or self._watch.verdict is not None
        return evaluated and self.delivery.settled

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
        """Store what was compiled and aim at it. A refused pool keeps what it has."""
        compiled, rendering = self._candidate, self._rendering
        if compiled is None:
            raise AssertionError("programmed before compiled")
        if rendering is None or compiled.spec is None or compiled.config is None:
            self.resource, self.compiled, self._generation = resource, compiled, boot.generation
            return
        content_hash = rendering.content_hash
        seen = self.delivery.highest_seen
        generation = next_generation(boot.content_hash, boot.generation, content_hash, seen)
        document = self._document
        if document is None or (document.generation, document.content_hash) != (generation, content_hash):
            packed = await asyncio.to_thread(lambda: compressed(rendering.document(generation)))
            document = Document(generation, content_hash, packed, rendering)
        its_keys = issuers_keys(compiled.config.identity.token_issuers)
        packed = document.body_gz
        self._boot = await self._boots.write(resource, boot, generation, content_hash, packed, its_keys)
        # From here to the end of aim() nothing waits: status never mixes the old and the new.
        self.resource, self.compiled, self._generation = resource, compiled, generation
        self._spec, self._entries = compiled.spec, entered(self._entries, compiled.parts, generation)
        self._document = document
        if compiled.selection is not None and compiled.selection.labels is not None:
            self.selection = compiled.selection
        self.delivery.aim(document, compiled.spec.sidecar.control_port, self._boot.token)
        if self._surveying is None:
            survey = Survey(self._world.sidecars, self._ports, self._told, self._world.survey_pace)
            self._surveying = self._world.tasks.start(survey.run(), f"survey {self.resource.key.name}")
        await self._replan(compiled.overload)

    def _ports(self) -> list[ControlPort]:
        """Where the sidecars are that can be asked now."""
        if self._spec is None or self._boot is None:
            return []
        port, token = self._spec.sidecar.control_port, self._boot.token
        return [ControlPort(pod.ip, port, token) for pod in self._pods()]

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
                before = values, self._digest(ref, salt)
            self._known[ref] = before
            found[ref] = before[1]
        return found

    def _digest(self, ref: SecretRef, salt: str) -> str | SecretProblem:
        entry = secret_value(self._store, ref)
        return entry if isinstance(entry, SecretProblem) else key_digest(salt, entry.decode("latin-1"))


def issuer_keys(
    store: Store, keyring: Keyring, sources: Iterable[KeySource], before: Mapping[str, KeySet]
) -> dict[KeySource, KeySet | KeysProblem]:
    """Look up the keys of each source. `before` has those that a pool's document has, by fetched source."""
    return {
        source: known_keys(keyring.found(source), before.get(source))
        if isinstance(source, str)
        else secret_keys(source, secret_value(store, source))
        for source in sources
    }


def secret_value(store: Store, ref: SecretRef) -> bytes | SecretProblem:
    """Look up a Secret entry. Its value has no space around it."""
    values = store.secret(ref.namespace, ref.name)
    if values is None:
        return SecretProblem.SECRET_MISSING
    if ref.key not in values:
        return SecretProblem.KEY_MISSING
    # Headers carry neither line ends nor spaces around a value; `kubectl create secret --from-file` does.
    return values[ref.key].strip() or SecretProblem.EMPTY
