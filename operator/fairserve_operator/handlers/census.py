"""Comparing the store with who really exists.

A watch tells of every change but not when its first listing is complete, and not of what was deleted while
it was broken. Counting heads answers both: nothing is compiled before everybody has been seen (a Secret
that is late would cost a Tenant its key for a moment), and who vanished unseen is forgotten. It also shows
where watches have gone astray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from fairserve_operator.clients.kubernetes_client import Census
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT
from fairserve_operator.errors import ApiServerError, AstrayError, NotFoundError, SetupError
from fairserve_operator.handlers.bodies import SECRET_SELECTOR
from fairserve_operator.handlers.contracts import Cluster
from fairserve_operator.handlers.store import Name, Store

_log = logging.getLogger(__name__)

CUSTOM = (TENANT, APPLICATION, SERVING_POOL)
KINDS = (*CUSTOM, "Pod", "Secret")

_LOOK_S = 0.05
_COUNT_AGAIN_S = 1.0
#: A watch that hasn't told of a change for that long after others see it never will.
_MISSED_S = 30.0

#: Namespaces to serve; (None,) is all of them.
Scope = Sequence[str | None]


async def require_custom_resources(cluster: Cluster, scope: Scope) -> None:
    """Raise SetupError, in words for whoever started the operator, where our kinds can't be listed."""
    for kind in CUSTOM:
        try:
            await cluster.census(kind, scope[0])
        except NotFoundError as problem:
            raise SetupError(
                f"the API server does not know {kind} of fairserve.dev/v1alpha1: apply crds/ first"
            ) from problem
        except ApiServerError as problem:
            raise SetupError(str(problem)) from problem


async def until_complete(store: Store, cluster: Cluster, scope: Scope) -> None:
    """Wait until the store has seen everybody who exists."""
    for kind in KINDS:
        for namespace in scope:
            await _until_seen(store, cluster, kind, namespace)


class Headcount:
    """Compares the store with who exists, again and again.

    Raises ApiServerError, and AstrayError where the difference is none that watches would mend: the API
    server's history has gone back (etcd was restored from a backup), and watches from what was its future
    tell of nothing, or they have missed a change.
    """

    def __init__(self, store: Store, cluster: Cluster, scope: Scope) -> None:
        self._store = store
        self._cluster = cluster
        self._scope = scope
        self._latest = 0  #: resource version, at the last look
        #: Whom the store has in an earlier form: the version that it lacks, and since when.
        self._behind: dict[tuple[str, str | None], dict[Name, tuple[int, float]]] = {}

    async def forget_vanished(self) -> frozenset[str]:
        """Forget who no longer exists; returns the namespaces where anybody was forgotten."""
        touched: set[str] = set()
        for kind in KINDS:
            for namespace in self._scope:
                counted = await self._cluster.census(kind, namespace, _selector(kind))
                self._require_present(kind, namespace, counted)
                for place, name in self._store.vanished(
                    kind, namespace, counted.objects, int(counted.resource_version)
                ):
                    _log.info("%s %s/%s is gone, unnoticed by its watch", kind, place, name)
                    self._store.remove(kind, place, name)
                    touched.add(place)
        return frozenset(touched)

    async def look_back(self) -> None:
        """Ask the API server for no more than where its history is."""
        before = max(self._latest, self._store.latest(TENANT, self._scope[0]))
        self._latest = await self._cluster.latest_version(TENANT, self._scope[0])
        if self._latest < before:
            raise AstrayError(
                f"the API server's history went back from {before} to {self._latest}, as by a restore of etcd"
            )

    def _require_present(self, kind: str, namespace: str | None, counted: Census) -> None:
        """Raise AstrayError where the store has what never was, or has long missed a change."""
        ahead = self._store.ahead(kind, namespace, counted.objects, int(counted.resource_version))
        if ahead:
            raise AstrayError(f"{kind} {'/'.join(ahead[0])} is known in a form that the API server never had")
        now = asyncio.get_running_loop().time()
        missed = self._behind.get((kind, namespace), {})
        behind: dict[Name, tuple[int, float]] = {}
        for name, version in self._store.behind(kind, counted.objects).items():
            lacks, since = missed.get(name, (version, now))
            if not self._store.lacks(kind, name, lacks):
                lacks, since = version, now
            elif now - since >= _MISSED_S:
                raise AstrayError(f"the watch of {kind} {'/'.join(name)} has missed its change")
            behind[name] = lacks, since
        self._behind[kind, namespace] = behind


async def _until_seen(store: Store, cluster: Cluster, kind: str, namespace: str | None) -> None:
    loop = asyncio.get_running_loop()
    patience = _COUNT_AGAIN_S
    while True:
        try:
            missing: Iterable[Name] = (await cluster.census(kind, namespace, _selector(kind))).objects
        except ApiServerError as problem:
            _log.error("waiting for the first listing: %s", problem)
            await asyncio.sleep(_COUNT_AGAIN_S)
            continue
        count_again = loop.time() + patience
        patience *= 2.0  # Counting takes from the very listing that is waited for.
        while missing := store.missing(kind, missing):
            if loop.time() > count_again:
                break  # Who isn't there yet may be deleted by now.
            await asyncio.sleep(_LOOK_S)
        else:
            return
        _log.info("waiting for the watch to list %d more of kind %s", len(missing), kind)


def _selector(kind: str) -> str:
    return SECRET_SELECTOR if kind == "Secret" else ""
