"""InferencePools, looked at now and then while any ServingPool names one.

The kind is another project's and may be installed later, or never. kopf would need rights on
CustomResourceDefinitions to notice, so that there is no watch. A cluster has few InferencePools, and nobody
is asked before a ServingPool has a `poolRef`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fairserve_operator.decide.inference_pools import (
    NOT_INSTALLED,
    PENDING,
    InferencePool,
    InferencePools,
    Unseen,
    read_inference_pool,
)
from fairserve_operator.errors import ApiServerError, NotFoundError
from fairserve_operator.handlers.census import Scope
from fairserve_operator.handlers.contracts import Cluster
from fairserve_operator.handlers.tasks import wait_for_event

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LookPace:
    """Times between two looks, in seconds."""

    interval_s: float = 2.0
    absent_s: float = 5.0  #: where they could not be listed


class Sightings:
    """What is known of the InferencePools of each namespace."""

    def __init__(self) -> None:
        self.new = asyncio.Event()  #: set when a namespace wants them that didn't before
        self._wanted: set[str] = set()
        self._found: dict[str, InferencePools] = {}

    def want(self, namespace: str, wanted: bool) -> None:
        """Say whether any ServingPool of a namespace names one."""
        if wanted and namespace not in self._wanted:
            self._wanted.add(namespace)
            self.new.set()
        elif not wanted:
            self._wanted.discard(namespace)
            self._found.pop(namespace, None)

    @property
    def wanted(self) -> frozenset[str]:
        """The namespaces that want them."""
        return frozenset(self._wanted)

    def of(self, namespace: str) -> InferencePools:
        """What was seen last."""
        return self._found.get(namespace, PENDING)

    def put(self, namespace: str, seen: InferencePools) -> bool:
        """Take what a look has shown; true if that is new to somebody."""
        if namespace not in self._wanted or self._found.get(namespace) == seen:
            return False
        self._found[namespace] = seen
        return True


class Lookout:
    """Looks at what is wanted; `changed` is called with each namespace that must be compiled anew."""

    def __init__(
        self,
        sightings: Sightings,
        cluster: Cluster,
        scope: Scope,
        changed: Callable[[str], None],
        pace: LookPace = LookPace(),
    ) -> None:
        self._sightings = sightings
        self._cluster = cluster
        self._scope = scope
        self._changed = changed
        self._pace = pace

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            pause_s = self._pace.interval_s if await self._look() else self._pace.absent_s
            await wait_for_event(self._sightings.new, pause_s)

    async def _look(self) -> bool:
        """Look once; whether all could be listed."""
        done = True
        wanted = self._sightings.wanted
        for place in self._scope:
            namespaces = wanted if place is None else wanted & {place}
            if not namespaces:
                continue
            try:
                seen = by_namespace(await self._cluster.inference_pools(place))
            except ApiServerError as problem:
                done = False
                if (unseen := _unseen(problem)) is None:
                    _log.info("%s", problem)  # What was seen last holds until the API server is back.
                    continue
                self._take(dict.fromkeys(namespaces, unseen))
            else:
                self._take({namespace: seen.get(namespace, {}) for namespace in namespaces})
        return done

    def _take(self, seen: Mapping[str, InferencePools]) -> None:
        for namespace, pools in seen.items():
            if self._sightings.put(namespace, pools):
                if isinstance(pools, Unseen):
                    _log.warning("the InferencePools that %s wants: %s", namespace, pools.message)
                self._changed(namespace)


def by_namespace(bodies: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, InferencePool]]:
    """Sort listed InferencePools into their namespaces, by name."""
    found: dict[str, dict[str, InferencePool]] = {}
    for body in bodies:
        metadata = body["metadata"]
        pool = read_inference_pool(body.get("spec"))
        found.setdefault(metadata["namespace"], {})[metadata["name"]] = pool
    return found


def _unseen(problem: ApiServerError) -> Unseen | None:
    if isinstance(problem, NotFoundError):
        return NOT_INSTALLED
    if problem.status == HTTPStatus.FORBIDDEN:
        return Unseen("InferencePoolForbidden", f"the operator may not look for: {problem}")
    return None
