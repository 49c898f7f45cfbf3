"""Evaluates a pool's overload signals on one machine and tells the sidecar the verdict, with a lease.

The state machine is the operator's (`fairserve.overload.machine`). Built-in signals that one look tells are
read from the sidecar's own /metrics; rates, times and queries need a Prometheus and have no value without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import isfinite

import aiohttp

from fairserve.local.control import Sidecar, SidecarError
from fairserve.local.signals import read_builtin
from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import Sample, Verdict
from fairserve_operator.decide.signals import OverloadPlan

_QUERY_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class OverloadWatch:
    """One pool's signals."""

    def __init__(
        self, sidecar: Sidecar, plan: OverloadPlan, prometheus: str | None, say: Callable[[str], None]
    ) -> None:
        self._sidecar = sidecar
        self._plan = plan
        self._prometheus = prometheus
        self._say = say
        self._machine = OverloadMachine(plan.settings)
        self._was_stale = False
        self._was_unreachable = False
        self._problems: dict[str, str] = {}  #: by signal; "" where it has a value
        #: The last verdict; None before the first evaluation.
        self.verdict: Verdict | None = None

    @property
    def plan(self) -> OverloadPlan:
        """What is evaluated."""
        return self._plan

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Signals that can have no value here: what only a Prometheus tells, without one."""
        if self._prometheus is not None:
            return ()
        return tuple(name for name in self._plan.queries if name not in self._plan.builtins)

    def follow(self, plan: OverloadPlan) -> None:
        """Go on with other settings; the state is kept."""
        if plan != self._plan:
            self._plan = plan
            self._machine.configure(plan.settings)

    async def run(self) -> None:
        """Evaluate until cancelled."""
        while True:
            await self.evaluate(asyncio.get_running_loop().time())
            await asyncio.sleep(self._plan.interval_s)

    async def evaluate(self, now: float) -> Verdict:
        """Read every signal once, decide, and tell the sidecar."""
        samples = await self._samples()
        self._say_problems(samples)
        verdict = self._machine.observe(samples, now)
        if verdict.changed or verdict.stale != self._was_stale:
            word = "overloaded: throttling is on" if verdict.armed else "not overloaded: throttling is off"
            self._say(f"{word} ({verdict.reason}: {verdict.message})")
        self._was_stale = verdict.stale
        self.verdict = verdict
        try:
            await self._sidecar.put_overload(verdict.armed, self._plan.settings.stale_after_s, verdict.reason)
            self._was_unreachable = False
        except SidecarError as error:
            if not self._was_unreachable:
                self._say(f"the sidecar did not take the overload state: {error}")
            self._was_unreachable = True
        return verdict

    def _say_problems(self, samples: list[Sample]) -> None:
        """Tell of a signal that can't be read, once for each way in which it can't."""
        for sample in samples:
            known = sample.problem == self._problems.get(sample.signal) or sample.signal in self.unanswered
            if sample.problem and not known:
                self._say(f"signal {sample.signal} has no value: {sample.problem}")
            self._problems[sample.signal] = sample.problem

    async def _samples(self) -> list[Sample]:
        metrics, problem = "", ""
        if self._plan.builtins:
            try:
                metrics = await self._sidecar.metrics()
            except SidecarError as error:
                problem = str(error)
        samples = []
        for signal in self._plan.settings.signals:
            builtin = self._plan.builtins.get(signal.name)
            if builtin is None:
                samples.append(await self._query(signal.name))
            elif problem:
                samples.append(Sample(signal.name, None, problem))
            else:
                samples.append(read_builtin(signal.name, builtin, metrics))
        return samples

    async def _query(self, signal: str) -> Sample:
        if self._prometheus is None:
            return Sample(signal, None, "it needs --prometheus URL")
        url = f"{self._prometheus.rstrip('/')}/api/v1/query"
        parameters = {"query": self._plan.queries[signal]}
        try:
            async with (
                aiohttp.ClientSession(timeout=_QUERY_TIMEOUT) as session,
                session.get(url, params=parameters) as answer,
            ):
                return one_number(signal, await answer.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return Sample(signal, None, f"the query failed: {error!r}")


def one_number(signal: str, body: object) -> Sample:
    """The value in an answer of Prometheus, if it is exactly one number."""
    match body:
        case {"status": "success", "data": {"resultType": "scalar", "result": [_, str(text)]}}:
            pass
        case {"status": "success", "data": {"resultType": "vector", "result": [{"value": [_, str(text)]}]}}:
            pass
        case {"status": "success"}:
            return Sample(signal, None, "the query did not give exactly one number")
        case {"error": str(message)}:
            return Sample(signal, None, f"the query failed: {message}")
        case _:
            return Sample(signal, None, "the answer is not one of Prometheus")
    value = float(text)
    return Sample(signal, value) if isfinite(value) else Sample(signal, None, f"the query gave {text}")
