"""The whole operator in one coroutine: parts made, connected, run and taken down again."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fairserve_operator.clients.jwks import JwksClient
from fairserve_operator.clients.kubernetes_client import KubernetesClient
from fairserve_operator.clients.prometheus import PrometheusClient
from fairserve_operator.clients.sidecars import SidecarClient
from fairserve_operator.errors import AstrayError, OperatorError
from fairserve_operator.handlers import memory
from fairserve_operator.handlers.census import Scope, require_custom_resources
from fairserve_operator.handlers.inference_pools import Lookout
from fairserve_operator.handlers.keys import KeyRefresh
from fairserve_operator.handlers.lanes import Lanes
from fairserve_operator.handlers.leadership import Leadership
from fairserve_operator.handlers.loop import Loop
from fairserve_operator.handlers.measures import Measures
from fairserve_operator.handlers.observation import ObservationServer
from fairserve_operator.handlers.pools import World
from fairserve_operator.handlers.registration import registry
from fairserve_operator.handlers.store import Store
from fairserve_operator.handlers.tasks import Tasks
from fairserve_operator.handlers.watching import watch
from fairserve_operator.options import Options

if TYPE_CHECKING:
    from fairserve_operator.handlers.webhook import Webhook

_log = logging.getLogger(__name__)

#: How long an orderly end may take, in seconds.
_LONGEST_END_S = 20.0


async def run(
    cluster: KubernetesClient, scope: Scope, options: Options, allow_http_jwks: bool = False
) -> None:
    """Operate these namespaces until SIGTERM or SIGINT.

    Raises SetupError where the cluster lacks our kinds or denies them, or the port is taken, and
    OperatorError where a part of the operator died of a mistake.
    """
    await require_custom_resources(cluster, scope)
    memory.prepare()
    measures = Measures()
    told = asyncio.Event()
    webhook = _webhook(cluster, scope, options, measures, told.is_set)
    port = ObservationServer(measures, list if webhook is None else webhook.unready)
    try:
        if options.listen is not None:
            await port.start(*options.listen)
        if webhook is not None:
            await webhook.start()
        _log.info("serving %s", ", ".join(name or "all namespaces" for name in scope))
        while not told.is_set():
            await _operate(cluster, scope, options, allow_http_jwks, measures, webhook, told)
    finally:
        if webhook is not None:
            await webhook.stop()
        await port.stop()


def _webhook(
    cluster: KubernetesClient,
    scope: Scope,
    options: Options,
    measures: Measures,
    leaving: Callable[[], bool],
) -> Webhook | None:
    if options.webhook is None:
        return None
    # Imported late: cryptography takes 9 MiB, of which an operator without a webhook has no need.
    from fairserve_operator.handlers.webhook import Webhook

    return Webhook(cluster, cluster.own_namespace, scope, options.webhook, measures, leaving)


def _accompany(webhook: Webhook | None, store: Store, tasks: Tasks) -> None:
    """Have the webhook go by this store, which is another one after all was forgotten."""
    if webhook is not None:
        webhook.pools.store = store
        tasks.start(webhook.run(), "keep the certificate")


async def _operate(
    cluster: KubernetesClient,
    scope: Scope,
    options: Options,
    allow_http_jwks: bool,
    measures: Measures,
    webhook: Webhook | None,
    told: asyncio.Event,
) -> None:
    """Operate until told to stop, or until all must be forgotten and begun anew."""
    over, deaths = asyncio.Event(), list[BaseException]()

    def fatal(problem: BaseException) -> None:
        _log.critical("a part of the operator died", exc_info=problem)
        deaths.append(problem)
        over.set()

    def astray(problem: AstrayError) -> None:
        _log.warning("%s; beginning anew", problem)
        over.set()

    def end() -> None:
        told.set()
        over.set()
        # Whatever hangs then: sidecars go on without us.
        asyncio.get_running_loop().call_later(_LONGEST_END_S, os.kill, os.getpid(), signal.SIGKILL)

    def heed_signals() -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, end)

    heed_signals()
    identity = options.identity or socket.gethostname()
    store, tasks = Store(), Tasks(fatal)
    candidate = _candidate(cluster, options, identity, lambda acting: loop.act(acting))
    may_act = (lambda: True) if candidate is None else candidate.acts
    cluster.observer, cluster.may_write = measures.api_called, may_act
    sidecars = SidecarClient(may_call=may_act, observer=measures.sidecar_called, name=identity)
    prometheus = PrometheusClient()
    rng = random.Random()  # noqa: S311
    world = World(store, cluster, sidecars, prometheus, Lanes(), tasks, time.time, rng, measures=measures)
    loop = Loop(world, scope, acting=candidate is None, astray=astray)
    measures.view = loop.view
    key_sets = JwksClient(allow_http_jwks)

    def learned(namespace: str) -> None:
        store.touch(namespace)
        loop.mark(namespace)

    lookout = Lookout(world.inference_pools, cluster, scope, learned)
    refresh = KeyRefresh(world.keyring, key_sets, cluster, tasks, world.rng, learned)

    async def campaign(candidate: Leadership) -> None:
        await loop.complete.wait()  # Who would act without knowing everybody leaves it to others.
        await candidate.run()

    try:
        tasks.start(memory.tend(loop.published), "tend memory")
        tasks.start(refresh.run(), "refresh keys")
        tasks.start(lookout.run(), "look for InferencePools")
        _accompany(webhook, store, tasks)
        await loop.start()
        if candidate is not None:
            tasks.start(campaign(candidate), "campaign")
        handlers = partial(registry, store, loop.mark, cluster.connection, loop.listed)
        await watch(handlers, scope, over, heed_signals)
    finally:
        await loop.stop()
        if candidate is not None:
            await candidate.release()
        await sidecars.close()
        await key_sets.close()
        prometheus.close()
    if deaths:
        raise OperatorError(f"a part of the operator died: {deaths[0]!r}") from deaths[0]


def _candidate(
    cluster: KubernetesClient, options: Options, identity: str, turned: Callable[[bool], None]
) -> Leadership | None:
    if not options.leader_elect:
        return None
    namespace = options.lease_namespace or cluster.own_namespace
    return Leadership(cluster, namespace, options.lease_name, identity, turned)
