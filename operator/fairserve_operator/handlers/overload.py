"""One pool's overload: ask Prometheus, let the state machine decide, tell the sidecars.

Every evaluation is told to every sidecar, changed or not, because that renews their lease: an operator that
stops evaluating stops renewing, and the sidecars follow `onStale` by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import OverloadState, Sample, Verdict
from fairserve_operator.decide.conditions import OVERLOADED
from fairserve_operator.decide.resources import ObjectKey
from fairserve_operator.decide.signals import OverloadPlan
from fairserve_operator.handlers.contracts import Clock, Metrics
from fairserve_operator.handlers.delivery import OverloadOrder
from fairserve_operator.handlers.tasks import wait_for_event
from fairserve_operator.logs import about

_log = logging.getLogger(__name__)

#: A query that takes longer tells of the past.
_LONGEST_QUERY_S = 5.0


class OverloadWatch:
    """Evaluates one pool while `run` runs.

    `before` is the pool's stored status: a restarted operator goes on from there. `tell` gets each
    evaluation's order. `turned` gets each verdict that says something new, be it another state or another
    reason.
    """

    def __init__(
        self,
        pool: ObjectKey,
        plan: OverloadPlan,
        metrics: Metrics,
        clock: Clock,
        before: Mapping[str, Any] | None,
        tell: Callable[[OverloadOrder], None],
        turned: Callable[[Verdict], None],
    ) -> None:
        self._pool = pool
        self._plan = plan
        self._metrics = metrics
        self._clock = clock
        self._tell = tell
        self._turned = turned
        self._machine = OverloadMachine(plan.settings)
        if (state := stored_state(before or {})) is not None:
            self._machine.restore(*state, now=clock())
        self._replanned = asyncio.Event()
        self.heard_at: float | None = None  #: when any signal had a value last
        #: The last verdict that said something new; None before the first evaluation.
        self.verdict: Verdict | None = None

    def replan(self, plan: OverloadPlan) -> None:
        """Go on with another plan, from the state that there is; evaluates at once if anything differs."""
        if plan == self._plan:
            return
        self._plan = plan
        self._machine.configure(plan.settings)
        self._replanned.set()

    async def run(self) -> None:
        """Evaluate each interval until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._plan.interval_s
            await self._evaluate()
            await wait_for_event(self._replanned, max(0.0, due - loop.time()))

    async def _evaluate(self) -> None:
        plan = self._plan
        if plan.prometheus_url is None:
            raise AssertionError("only a plan with a Prometheus is evaluated")
        samples = await asyncio.gather(
            *(self._sample(plan, signal, promql) for signal, promql in plan.queries.items())
        )
        if any(sample.value is not None for sample in samples):
            self.heard_at = self._clock()
        verdict = self._machine.observe(samples, self._clock())
        if self.verdict is None or _told(self.verdict) != _told(verdict):
            self.verdict = verdict
            _log.info(
                "%s in %s: %s: %s",
                self._pool,
                self._pool.namespace,
                verdict.state.value,
                verdict.message,
                extra=about(self._pool),
            )
            self._turned(verdict)
        self._tell(OverloadOrder(verdict.armed, plan.settings.stale_after_s, verdict.message))

    async def _sample(self, plan: OverloadPlan, signal: str, promql: str) -> Sample:
        timeout_s = min(plan.interval_s, _LONGEST_QUERY_S)
        reading = await self._metrics.query(plan.prometheus_url or "", promql, timeout_s)
        return Sample(signal, reading.value, reading.problem)


def _told(verdict: Verdict) -> tuple[object, ...]:
    return verdict.state, verdict.reason, verdict.message


def stored_state(status: Mapping[str, Any]) -> tuple[OverloadState, float] | None:
    """Read the overload state and its begin (Unix time) from a pool's status, None where it has none."""
    for condition in status.get("conditions") or ():
        if condition["type"] == OVERLOADED and condition["status"] in ("True", "False"):
            since = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp()
            return (OverloadState.OVERLOADED if condition["status"] == "True" else OverloadState.CLEAR), since
    return None
