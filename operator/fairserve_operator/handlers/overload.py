"""One pool's overload: ask Prometheus, let the state machine decide, tell the sidecars.

Every evaluation is told to every sidecar, changed or not, because that renews their lease: an operator that
stops evaluating stops renewing, and the sidecars follow `onStale` by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import OverloadState, Sample, Verdict
from fairserve_operator.clients.prometheus import Reading, Source, basic, bearer
from fairserve_operator.decide.conditions import OVERLOADED
from fairserve_operator.decide.resources import ObjectKey, SecretProblem, SecretRef, can_be_sent
from fairserve_operator.decide.signals import SIGNAL_LABEL, OverloadPlan
from fairserve_operator.handlers.contracts import Clock, Metrics, MetricsConnection
from fairserve_operator.handlers.delivery import OverloadOrder
from fairserve_operator.handlers.tasks import wait_for_event
from fairserve_operator.logs import about

_log = logging.getLogger(__name__)

#: Gives the value of an entry of a Secret, as it is now.
Secrets = Callable[[SecretRef], bytes | SecretProblem]


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
        secrets: Secrets,
        clock: Clock,
        before: Mapping[str, Any] | None,
        tell: Callable[[OverloadOrder], None],
        turned: Callable[[Verdict], None],
    ) -> None:
        self._pool = pool
        self._plan = plan
        self._metrics = metrics
        self._secrets = secrets
        self._connection: MetricsConnection | None = None
        #: The last one of each signal, with what was asked for it, and whom.
        self._problems: dict[str, tuple[object, Reading]] = {}
        self._clock = clock
        self._tell = tell
        self._turned = turned
        # The machine lives on a clock that nobody can set; only what people read is Unix time.
        self._machine = OverloadMachine(plan.settings)
        self._since: float | None = None
        if (state := stored_state(before or {})) is not None:
            now = time.monotonic()
            self._machine.restore(state[0], since=now, now=now)
            self._since = state[1]
        self._replanned = asyncio.Event()
        #: When any signal had a value last; before the first one, since when it is asked for.
        self.heard_at = clock()
        #: The last verdict that said something new; None before the first evaluation.
        self.verdict: Verdict | None = None

    @property
    def stale_after_s(self) -> float:
        """The age from which on signals count for nothing, in seconds."""
        return self._plan.settings.stale_after_s

    def replan(self, plan: OverloadPlan) -> None:
        """Go on with another plan, from the state that there is; evaluates at once if anything differs."""
        if plan == self._plan:
            return
        self._plan = plan
        self._machine.configure(plan.settings)
        self._replanned.set()

    async def run(self) -> None:
        """Evaluate each interval until cancelled."""
        try:
            while True:
                due = time.monotonic() + self._plan.interval_s
                await self._evaluate()
                await wait_for_event(self._replanned, max(0.0, due - time.monotonic()))
        finally:
            self._disconnect()

    async def _evaluate(self) -> None:
        plan = self._plan
        readings = await self._read(plan)
        verdict = self._machine.observe(
            [Sample(name, each.value, each.problem) for name, each in readings.items()], time.monotonic()
        )
        if any(reading.value is not None for reading in readings.values()):
            self.heard_at = self._clock()
        if verdict.changed or self._since is None:
            self._since = self._clock()
        verdict = replace(verdict, since=self._since)
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

    async def _read(self, plan: OverloadPlan) -> Mapping[str, Reading]:
        """Ask for every signal, all at the same time."""
        connection = self._connect(plan)
        if isinstance(connection, Reading):
            readings = dict.fromkeys(plan.queries, connection)
        else:
            united = {name for names in plan.joint.values() for name in names}
            alone = [name for name in plan.queries if name not in united]
            parts = await asyncio.gather(
                *(self._united(connection, plan, promql, names) for promql, names in plan.joint.items()),
                self._each(connection, plan, alone, plan.timeout_s),
            )
            readings = {name: reading for part in parts for name, reading in part.items()}
        whom = plan.prometheus_url, plan.access, self._connection and self._connection.source
        return {
            name: self._steady(name, (plan.queries[name], *whom), reading)
            for name, reading in readings.items()
        }

    async def _united(
        self, connection: MetricsConnection, plan: OverloadPlan, promql: str, names: Sequence[str]
    ) -> Mapping[str, Reading]:
        ends = time.monotonic() + plan.timeout_s
        found = await connection.query_jointly(promql, SIGNAL_LABEL, names, plan.timeout_s)
        if found is not None:
            return found
        # One of them is at fault, and the others should not suffer for it.
        return await self._each(connection, plan, names, max(0.0, ends - time.monotonic()))

    async def _each(
        self, connection: MetricsConnection, plan: OverloadPlan, names: Sequence[str], timeout_s: float
    ) -> Mapping[str, Reading]:
        found = await asyncio.gather(*(connection.query(plan.queries[name], timeout_s) for name in names))
        return dict(zip(names, found, strict=True))

    def _steady(self, signal: str, asked: object, reading: Reading) -> Reading:
        """Keep the words while the problem is of the same kind: a status that ticks tells nothing.

        Words about another query, URL or Secret would name what has been mended.
        """
        asked_before, before = self._problems.get(signal, (None, reading))
        if reading.value is None and asked_before == asked and before.kind == reading.kind:
            return before
        self._problems[signal] = asked, reading
        return reading

    def _connect(self, plan: OverloadPlan) -> MetricsConnection | Reading:
        """The connection, made anew when the plan or a Secret has changed; or what is missing for it."""
        source = prometheus_source(plan, self._secrets)
        if isinstance(source, Reading):
            self._disconnect()
            return source
        if self._connection is None or self._connection.source != source:
            self._disconnect()
            self._connection = self._metrics.connect(source)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def prometheus_source(plan: OverloadPlan, secrets: Secrets) -> Source | Reading:
    """Put together what it takes to ask; a reading without a value where a Secret does not have it."""
    if plan.prometheus_url is None:
        raise AssertionError("only a plan with a Prometheus is evaluated")
    access, found = plan.access, dict[SecretRef, str]()
    for ref in (access.bearer_token, access.username, access.password, access.ca):
        if ref is None:
            continue
        value = secrets(ref)
        if isinstance(value, SecretProblem):
            return Reading(None, value.of(ref.name, ref.key), value.value)
        text = value.decode("utf-8", "replace").strip()
        if ref == access.bearer_token and not can_be_sent(text):
            problem = SecretProblem.MALFORMED
            return Reading(None, problem.of(ref.name, ref.key), problem.value)
        found[ref] = text
    source = Source(plan.prometheus_url)
    if access.bearer_token is not None:
        source = bearer(plan.prometheus_url, found[access.bearer_token])
    elif access.username is not None and access.password is not None:
        source = basic(plan.prometheus_url, found[access.username], found[access.password])
    return replace(source, ca_pem=found[access.ca] if access.ca else None, verify=access.verify)


def _told(verdict: Verdict) -> tuple[object, ...]:
    return verdict.state, verdict.reason, verdict.message


def stored_state(status: Mapping[str, Any]) -> tuple[OverloadState, float] | None:
    """Read the overload state and its begin (Unix time) from a pool's status, None where it has none.

    Others may write statuses too, and the API server takes times that are in no year from 1 to 9999 of UTC,
    which nobody could write again: they count as none.
    """
    for condition in status.get("conditions") or ():
        if condition["type"] == OVERLOADED and condition["status"] in ("True", "False"):
            try:
                # To whole seconds, because a float rounds the last microseconds of 9999 up.
                since = datetime.fromisoformat(condition["lastTransitionTime"]).replace(microsecond=0)
                since = since.astimezone(UTC)
            except (ValueError, OverflowError):
                return None
            state = OverloadState.OVERLOADED if condition["status"] == "True" else OverloadState.CLEAR
            return state, since.timestamp()
    return None
