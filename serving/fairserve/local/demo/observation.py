"""What the demo knows about the pool from outside: /state and /metrics, read twice a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from fairserve.local.control import Sidecar, SidecarError

_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant at one time. `service` and `tokens` only grow."""

    name: str
    weight: float
    service: float  #: normalised: one typical call is 1
    waiting: int
    running: int
    refused: int  #: calls
    tokens: float


@dataclass(frozen=True, slots=True)
class Observation:
    """The pool at one time, seconds on the event loop's clock. A tenant appears with its first call."""

    at_s: float
    policy: str
    generation: int
    armed: bool
    oldest_wait_s: float
    tenants: Mapping[str, TenantView]
    wasted_tokens: float

    def service(self, name: str) -> float:
        """What a tenant has been given."""
        return self.tenants[name].service if name in self.tenants else 0.0

    def waiting(self, name: str) -> int:
        """How many of a tenant's calls wait."""
        return self.tenants[name].waiting if name in self.tenants else 0


class Observer:
    """Keeps every observation, and tells each to a listener."""

    def __init__(self, sidecar: Sidecar, listener: Callable[[Observation], None]) -> None:
        self._sidecar = sidecar
        self._listener = listener
        self.observations: list[Observation] = []

    async def run(self) -> None:
        """Observe until cancelled. A reading that fails is left out."""
        while True:
            with suppress(SidecarError):
                await self.look()
            await asyncio.sleep(_INTERVAL_S)

    async def look(self) -> Observation:
        """Observe now. Raises SidecarError."""
        state, metrics = await self._sidecar.state(), await self._sidecar.metrics()
        seen = observe(state, metrics, asyncio.get_running_loop().time())
        self.observations.append(seen)
        self._listener(seen)
        return seen


def observe(state: Mapping[str, Any], metrics: str, now: float) -> Observation:
    """An observation from the bodies of GET /state and GET /metrics."""
    tokens = _totals(metrics, "fairserve_tokens_total", "tenant")
    return Observation(
        at_s=now,
        policy=state["policy"],
        generation=state["generation"],
        armed=state["overload"]["armed"],
        oldest_wait_s=state["oldest_wait_s"],
        tenants={
            tenant["name"]: TenantView(
                name=tenant["name"],
                weight=tenant["weight"],
                service=tenant["service"],
                waiting=tenant["queued"],
                running=tenant["running"],
                refused=tenant["refused"],
                tokens=tokens.get(tenant["name"], 0.0),
            )
            for tenant in state["tenants"]
        },
        wasted_tokens=sum(_totals(metrics, "fairserve_wasted_tokens_total", "tenant").values()),
    )


def shares(begin: Observation, end: Observation, names: Iterable[str]) -> dict[str, float]:
    """Each tenant's part of the service that these got in between; nothing if they got none."""
    given = {name: end.service(name) - begin.service(name) for name in names}
    total = sum(given.values())
    return {name: service / total for name, service in given.items()} if total > 0 else {}


def _totals(metrics: str, name: str, label: str) -> dict[str, float]:
    lines = [line for line in metrics.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            key = sample.labels.get(label, "")
            totals[key] = totals.get(key, 0.0) + sample.value
    return totals
