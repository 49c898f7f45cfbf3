"""Watches the engine: is it there, how full is it, and how old is what we know.

It reads the engine's metrics over the same pool as calls do, often while calls wait and seldom while
none do. Old numbers are never taken for new ones: past `STALE_S` the KV use is guessed from what is in
flight, and the age is a metric. Each time the engine comes up it is asked which paths it has.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable

from fairserve.core.window import EngineSample
from fairserve.engine.endpoints import matching, unknown_paths
from fairserve.engine.metrics import read_sample
from fairserve.overload.saturation import saturation
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.messages import ResponseHead
from fairserve.sidecar.upstream import Exchange, Failure, UpstreamPool

_LOG = logging.getLogger(__name__)

#: Engine metrics older than this are stale.
STALE_S = 5.0
_TIMEOUT_S = 2.0
#: An engine that leaves so many questions unanswered in a row hangs; one or two may be a long step.
_HANGS_AFTER = 3
#: How often an engine that comes up is asked for its paths before it is let be.
_DESCRIPTION_TRIES = 5
#: How many poll intervals lie between two readings while nothing waits.
_RESTING_INTERVALS = 4


class EngineWatch:
    """What is known of the engine."""

    def __init__(
        self,
        pool: UpstreamPool,
        dispatcher: Dispatcher,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._interval_s = interval_s
        self._clock = clock
        self.timeout_s = _TIMEOUT_S  #: how long the engine may take for an answer
        self._sampled_at: float | None = None
        self._problem: str | None = "the engine has not answered yet"
        self._unanswered = 0  #: questions for its health in a row
        self._questions = _DESCRIPTION_TRIES  #: how often it may still be asked for its paths
        self.sample: EngineSample | None = None
        #: The engine's POST paths that nobody here knows.
        self.unknown_paths: tuple[str, ...] = ()
        self._unknown: re.Pattern[str] | None = None

    @property
    def problem(self) -> str | None:
        """Why the engine can't serve; None while it can."""
        return self._problem

    def is_unknown(self, path: str) -> bool:
        """Whether the engine has a POST path there that nobody here knows."""
        return self._unknown is not None and self._unknown.fullmatch(path) is not None

    def age_s(self, now: float) -> float | None:
        """Age of the last sample; None if there has been none."""
        return None if self._sampled_at is None else now - self._sampled_at

    def saturation(self, now: float) -> float:
        """How full this pod is; 1 and above: the engine cannot take more."""
        scheduler, sample, age_s = self._dispatcher.scheduler, self.sample, self.age_s(now)
        kv_use = waiting = None
        if sample is not None and age_s is not None:
            if age_s <= STALE_S:
                kv_use, waiting = sample.kv_use, float(sample.waiting)
            elif sample.kv_tokens is not None:
                kv_use = scheduler.inflight_tokens / sample.kv_tokens
        return saturation(kv_use, scheduler.oldest_wait(now), waiting)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            resting = self._dispatcher.scheduler.queued == 0 and not self._dispatcher.held
            await asyncio.sleep(self._interval_s * (_RESTING_INTERVALS if resting and self.sample else 1))

    async def look(self) -> None:
        """Ask once for health and metrics."""
        health = await fetch(self._pool, b"/health", self.timeout_s)
        if isinstance(health, Failure):
            if health is Failure.UNREACHABLE:
                self._note("the engine does not accept connections")
                self._dispatcher.hold()
            else:
                self._note("the engine broke off its answer to /health")
            return
        if health is None:
            self._note("the engine's /health does not answer")
            self._unanswered += 1
            if self._unanswered >= _HANGS_AFTER:
                self._dispatcher.hold()
            return
        self._unanswered = 0
        if health[0] >= 500:
            # vLLM says so when its engine is dead: it would fail every call.
            self._note(f"the engine's /health says {health[0]}")
            self._dispatcher.hold()
            return
        self._note(None)
        self._dispatcher.release()
        metrics = await fetch(self._pool, b"/metrics", self.timeout_s)
        if isinstance(metrics, tuple) and metrics[0] == 200:
            sample = read_sample(metrics[1])
            if sample is not None:
                self.sample, self._sampled_at = sample, self._clock()
                self._dispatcher.observe(sample)
        if self._questions:
            await self._compare_paths()

    async def _compare_paths(self) -> None:
        """Name what is not known, once for each set of paths."""
        self._questions -= 1
        answer = await fetch(self._pool, b"/openapi.json", self.timeout_s)
        if not isinstance(answer, tuple):
            return  # It makes its description when first asked, which takes time.
        self._questions = 0
        paths = unknown_paths(answer[1]) if answer[0] == 200 else None
        if paths is None:
            _LOG.info("the engine does not describe its paths: those that nobody here knows pass unscheduled")
        elif paths and paths != self.unknown_paths:
            _LOG.warning(
                "these paths of the engine are not known here: their calls are scheduled, and cost what their"
                " answers tell or their length says: %s",
                ", ".join(paths),
            )
        self.unknown_paths = paths or ()
        self._unknown = matching(self.unknown_paths)

    def _note(self, problem: str | None) -> None:
        if problem != self._problem:
            if problem is None:
                _LOG.info("the engine is up")
            else:
                _LOG.warning("the engine is not up: %s", problem)
                self._questions = _DESCRIPTION_TRIES
        self._problem = problem


async def fetch(pool: UpstreamPool, target: bytes, timeout_s: float) -> tuple[int, bytes] | Failure | None:
    """GET from the engine: status and body, how it failed, or None if it took too long."""
    answer = _Answer()
    request = b"GET %b HTTP/1.1\r\nhost: engine\r\naccept: text/plain;version=0.0.4\r\n\r\n" % target
    exchange: Exchange = pool.send(request, answer)
    try:
        async with asyncio.timeout(timeout_s):
            return await answer.done
    except TimeoutError:
        return None
    finally:
        if not answer.done.done() or answer.done.cancelled():
            exchange.cancel()


class _Answer:
    """Collects one answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, bytes] | Failure] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body: list[bytes] = []

    def received(self, head: ResponseHead | None, data: bytes, *, ended: bool) -> None:
        """Collect."""
        if head is not None:
            self._status = head.status
        self._body.append(data)
        if ended and not self.done.done():
            self.done.set_result((self._status, b"".join(self._body)))

    def failed(self, failure: Failure) -> None:
        """There is no answer."""
        if not self.done.done():
            self.done.set_result(failure)
