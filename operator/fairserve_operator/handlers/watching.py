"""kopf's watches, begun again whenever they end: an odd answer of the API server must not end the operator.

kopf itself goes on after lost connections, 429, 5xx and "410 Gone" as an event. Whatever else comes where it
watches (a status 410 or 404, an event that says 500) it takes for a mistake and ends. Watches are all that it
does here, so they are begun anew, which lists everybody into the same store, while all else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection
from typing import Any

import kopf
from kopf._core.engines.peering import Identity

from fairserve_operator.handlers.census import Scope
from fairserve_operator.handlers.registration import configured
from fairserve_operator.handlers.tasks import wait_for_event

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
#: For kopf's tasks to end after they were cancelled.
_LONGEST_END_S = 5.0
#: Watches that have lasted that long were no failure to begin: the next pause is a short one again.
_LASTING_S = 30.0


async def watch(
    handlers: Callable[[], kopf.OperatorRegistry],
    scope: Scope,
    over: asyncio.Event,
    begun: Callable[[], None],
) -> None:
    """Watch until `over` is set. `begun` is called after kopf has begun, and taken the signals for itself."""
    loop = asyncio.get_running_loop()
    pause_s = _FIRST_PAUSE_S
    while not over.is_set():
        began = loop.time()
        problem = await _watch_once(handlers(), scope, over, begun)
        if over.is_set():
            return
        if loop.time() - began > _LASTING_S:
            pause_s = _FIRST_PAUSE_S
        _log.warning("watching ended, and begins anew in %.1f s: %r", pause_s, problem)
        if await wait_for_event(over, pause_s):
            over.set()
        pause_s = min(2.0 * pause_s, _LONGEST_PAUSE_S)


async def _watch_once(
    handlers: kopf.OperatorRegistry, scope: Scope, over: asyncio.Event, begun: Callable[[], None]
) -> BaseException | None:
    """Watch until `over` is set or kopf ends; returns what it died of."""
    # Of this time only, and set before anything is cancelled: kopf kills the process 20 s later otherwise.
    ended = asyncio.Event()
    # Not kopf.operator(): in the end that cancels every task begun meanwhile, ours as well.
    tasks = await kopf.spawn_tasks(
        registry=handlers,
        settings=configured(),
        clusterwide=scope == (None,),
        namespaces=[name for name in scope if name],
        # Named here, or kopf asks for the user's name, which a user id without a passwd entry has not.
        identity=Identity(f"fairserve-operator@{socket.gethostname()}"),
        stop_flag=ended,
    )
    begun()
    waiting = asyncio.create_task(over.wait(), name="wait for the end of watching")
    try:
        done, _ = await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.set()
        await _cancelled({*tasks, waiting})
        # Where one watcher fails kopf leaves the others as they are. Only they are cancelled: what they wait
        # for in turn would hide it from them.
        await _cancelled({task for task in asyncio.all_tasks() if task.get_name().startswith("watcher for ")})
    return next((task.exception() for task in done if not task.cancelled() and task.exception()), None)


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        ended, hanging = await asyncio.wait(tasks, timeout=_LONGEST_END_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # Looked at, or asyncio complains.
        if hanging:
            _log.warning("tasks of kopf that don't end: %s", sorted(task.get_name() for task in hanging))
