"""The whole operator in one coroutine: parts made, connected, run and taken down again."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import time

import kopf
from kopf._core.engines.peering import Identity

from fairserve_operator.clients.kubernetes_client import KubernetesClient
from fairserve_operator.clients.prometheus import PrometheusClient
from fairserve_operator.clients.sidecars import SidecarClient
from fairserve_operator.errors import OperatorError
from fairserve_operator.handlers.census import Scope, require_custom_resources
from fairserve_operator.handlers.delivery import Lanes
from fairserve_operator.handlers.loop import Loop
from fairserve_operator.handlers.pools import World
from fairserve_operator.handlers.registration import registry
from fairserve_operator.handlers.store import Store
from fairserve_operator.handlers.tasks import Tasks

_log = logging.getLogger(__name__)


async def run(cluster: KubernetesClient, scope: Scope, health: str | None) -> None:
    """Operate these namespaces until SIGTERM or SIGINT.

    Raises SetupError where the cluster lacks our kinds or denies them, and OperatorError where a part of the
    operator died of a mistake.
    """
    await require_custom_resources(cluster, scope)
    # Nearly all that is made stays, or goes without a collector's help; looking through 10,000 objects every
    # few thousand new ones would take a third of the time.
    gc.set_threshold(20_000, 10, 10)
    stop, deaths = asyncio.Event(), list[BaseException]()

    def fatal(problem: BaseException) -> None:
        _log.critical("a part of the operator died", exc_info=problem)
        deaths.append(problem)
        stop.set()

    sidecars, metrics = SidecarClient(), PrometheusClient()
    store, tasks = Store(), Tasks(fatal)
    world = World(store, cluster, sidecars, metrics, Lanes(), tasks, time.time, random.Random())  # noqa: S311
    loop = Loop(world, scope)

    async def end() -> None:
        await loop.stop()
        stop.set()  # kopf waits five seconds for whoever waits for this flag.

    try:
        _log.info("serving %s", ", ".join(name or "all namespaces" for name in scope))
        await kopf.operator(
            registry=registry(store, loop.mark, cluster.connection, loop.start, end, loop.state),
            clusterwide=scope == (None,),
            namespaces=[name for name in scope if name],
            # Named here, or kopf asks for the user's name, which a user id without a passwd entry has not.
            identity=Identity(f"fairserve-operator@{socket.gethostname()}"),
            liveness_endpoint=health,
            stop_flag=stop,
        )
    finally:
        await tasks.cancel()
        await sidecars.close()
        metrics.close()
    if deaths:
        raise OperatorError(f"a part of the operator died: {deaths[0]!r}") from deaths[0]
