"""Asking a pool's sidecars what they do, now and then.

It is nobody's hurry: a few calls at a time, spread over the interval, which grows with the number of Pods so
that the rate of calls is bounded. A sidecar that doesn't answer is left out until the next round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from fairserve_operator.clients.sidecars import ControlPort
from fairserve_operator.decide.activity import Report, combined, read_report
from fairserve_operator.handlers.contracts import Sidecars


@dataclass(frozen=True, slots=True)
class SurveyPace:
    """How often sidecars are asked, in seconds."""

    first_s: float = 5.0  #: after the start, when there is more urgent work
    interval_s: float = 30.0
    per_pod_s: float = 0.06  #: an interval is at least this times the number of Pods
    at_a_time: int = 8


class Survey:
    """Rounds over the sidecars that `ports` names. `told` is called with what they say together."""

    def __init__(
        self,
        sidecars: Sidecars,
        ports: Callable[[], Iterable[ControlPort]],
        told: Callable[[Report], None],
        pace: SurveyPace,
    ) -> None:
        self._sidecars = sidecars
        self._ports = ports
        self._told = told
        self._pace = pace

    async def run(self) -> None:
        """Go round until cancelled."""
        await asyncio.sleep(self._pace.first_s)
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time()
            ports = tuple(self._ports())
            due += max(self._pace.interval_s, self._pace.per_pod_s * len(ports))
            reports = await self._round(ports)
            if reports or not ports:
                self._told(combined(reports))
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _round(self, ports: tuple[ControlPort, ...]) -> list[Report]:
        reports: list[Report] = []
        waiting = iter(ports)
        pause_s = self._pace.per_pod_s * self._pace.at_a_time / 2

        async def ask_some() -> None:
            for port in waiting:
                state = await self._sidecars.read_state(port)
                if state is not None:
                    reports.append(read_report(state))
                await asyncio.sleep(pause_s)

        asking: list[Awaitable[None]] = [ask_some() for _ in range(min(self._pace.at_a_time, len(ports)))]
        await asyncio.gather(*asking)
        return reports
