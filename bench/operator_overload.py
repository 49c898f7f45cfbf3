"""Overload at the operator's size: the phases of `make bench-operator` in which it asks a real Prometheus.

Prometheus scrapes the emulated sidecars of `bench.fleet`, which tell the values that the bench gives them.
`Signal` crosses one pool's threshold back and forth, and looks when the last sidecar was told. `Pools` has
many small pools with the default signals in a namespace of its own, and looks what evaluating them costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from bench.cluster import (
    DEADLINE_S,
    MERGE,
    Api,
    Fleet,
    cpu_of,
    gather,
    key_secrets,
    object_of,
    operator_process,
    says,
    tenant,
)
from bench.processes import cpu_s
from bench.results import Figure, at_most, figure, half_quartiles
from tests.parts.controlplane import ControlPlane
from tests.parts.process import free_port
from tests.parts.prometheus import Prometheus

_WAIT = "fairserve_queue_oldest_wait_seconds"
_BELOW_S, _THRESHOLD_S, _ABOVE_S = 0.0, 3.0, 12.5
_POLL_S = 0.05
#: Seconds between two scrapes of the one sidecar that tells the large pool's wait. It divides no usual
#: interval, so that signals cross at all its moments; and a scrape may have to wait while all are told.
_SCRAPE_S = 0.37
#: Scrapes of each small pool in an evaluation interval.
_SCRAPES = 5
#: A pool may be told so much later than an interval after the last time, in intervals.
_LATEST = 1.5


@dataclass(frozen=True)
class Reaction:
    """What came of flipping one pool's signal."""

    late_s: Sequence[float] = ()  #: from crossing to the last sidecar's being told, less one interval
    spread_s: Sequence[float] = ()  #: from the first sidecar's being told to the last one's
    cpu_s: Mapping[str, float] = field(default_factory=dict)  #: per evaluation


class Signal:
    """The wait of one pool's calls, which Prometheus reads from the first of its sidecars."""

    def __init__(self, api: Api, fleet: Fleet, pool: str, hosts: Sequence[str], interval_s: float) -> None:
        self._api = api
        self._fleet = fleet
        self._pool = pool
        self._hosts = hosts
        self._interval_s = interval_s

    @contextlib.contextmanager
    def scraped(self, folder: Path) -> Iterator[None]:
        """With a Prometheus that scrapes it."""
        targets = [f"{self._hosts[0]}:{self._fleet.port}"]
        prometheus = Prometheus([{"targets": targets}], scrape_interval_s=_SCRAPE_S, directory=folder)
        with prometheus as self._prometheus:
            yield

    async def flip(
        self, rounds: int, rng: random.Random, used: Callable[[], Mapping[str, float]]
    ) -> Reaction:
        """Arm and disarm in turn, at moments that are spread over the interval: also while the evaluation
        that comes too early for them is told. `used`: CPU seconds until now, by process.
        """
        late_s, spread_s = [], []
        phases = [(number + rng.random()) / rounds for number in range(rounds)]
        rng.shuffle(phases)
        async with aiohttp.ClientSession() as self._session:
            await self._begin()
            before, orders = self._used(used), await self._orders()
            for number, phase in enumerate(phases):
                # A round ends with an evaluation: so far behind that one the signal crosses.
                await asyncio.sleep(phase * self._interval_s)
                crossed = await self._cross(armed := number % 2 == 0)
                first, last = await self._fleet.turned(armed, self._hosts, crossed)
                late_s.append(last - crossed - self._interval_s)
                spread_s.append(last - first)
            evaluations = (await self._orders() - orders) / len(self._hosts)
            cpu_s = {name: (at - before[name]) / evaluations for name, at in self._used(used).items()}
        return Reaction(late_s, spread_s, cpu_s)

    async def _begin(self) -> None:
        """Give the pool its signal, and wait until every sidecar was told that it is clear."""
        await self._set(_BELOW_S)
        signal = {"name": "queue-wait", "builtin": "QueueWait", "threshold": _THRESHOLD_S, "for": "0s"}
        overload = {**_overload(self._prometheus, self._interval_s), "holdDown": "0s", "signals": [signal]}
        path, began = f"{self._api.path('servingpools')}/{self._pool}", time.monotonic()
        written = await self._api.call("PATCH", path, {"spec": {"overload": overload}}, MERGE)
        await _until_clear(self._api, {self._pool: written["metadata"]["generation"]})
        await self._fleet.turned(False, self._hosts, began)

    async def _set(self, wait_s: float) -> None:
        await _set_metrics(self._fleet, self._api.namespace, {self._hosts[0]: self._pool}, wait_s)

    async def _cross(self, armed: bool) -> float:
        """Cross the threshold; when Prometheus knew. Rather too early: the last query that had the old value
        was sent then.
        """
        wanted = _ABOVE_S if armed else _BELOW_S
        without = time.monotonic()
        await self._set(wanted)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                asked = time.monotonic()
                if await self._value() == wanted:
                    return without
                without = asked
                await asyncio.sleep(_POLL_S)

    async def _value(self) -> float | None:
        """What an instant query gives; None for nothing."""
        url = f"{self._prometheus.url}/api/v1/query"
        async with self._session.get(url, params={"query": f"max({_WAIT})"}) as response:
            found = (await response.json())["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    async def _orders(self) -> int:
        return int((await self._fleet.do("counts"))["overload"])

    def _used(self, used: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        return {**used(), "prometheus": cpu_s(self._prometheus.process.pid)}


@dataclass(frozen=True)
class Evaluated:
    """What came of evaluating many pools. Times of the monotonic clock."""

    began: float
    ended: float
    shares: Mapping[str, float]  #: of a core, by process
    told: Mapping[str, Sequence[float]]  #: when each pool's sidecar was told its state

    def require_each(self, interval_s: float) -> None:
        """Raises RuntimeError where a pool was not told its state in each interval."""
        least = round((self.ended - self.began) / interval_s) - 1
        for pool, told in self.told.items():
            inside = [at for at in told if self.began <= at <= self.ended]
            edges = [self.began, *inside, self.ended]
            longest = max(after - before for before, after in pairwise(edges))
            if len(inside) < least or longest > _LATEST * interval_s:
                raise RuntimeError(
                    f"pool {pool}: told its state {len(inside)} times (at least {least} wanted), "
                    f"once not for {longest:.2f} s"
                )


class Pools:
    """So many pools of one sidecar each, with the default signals. Namespace and operator are their own."""

    def __init__(self, count: int, tenants: int, interval_s: float, folder: Path, namespace: str) -> None:
        self._tenants = tenants
        self._interval_s = interval_s
        self._folder = folder
        self._namespace = namespace
        numbers = range(count)
        self._pools = {f"127.78.{n // 250}.{n % 250 + 1}": f"pool-{n}" for n in numbers}

    async def run(self, control_plane: ControlPlane, intervals: int) -> Evaluated:
        """Watch them for so many intervals."""
        operator = operator_process(control_plane, self._namespace, self._folder / "operator-pools.log")
        async with aiohttp.ClientSession() as session, Fleet(free_port()) as fleet:
            api = Api(control_plane, session, self._namespace)
            await _set_metrics(fleet, self._namespace, self._pools, _BELOW_S)
            with Prometheus(
                [{"targets": [f"{host}:{fleet.port}" for host in self._pools]}],
                scrape_interval_s=self._interval_s / _SCRAPES,
                directory=self._folder / "prometheus-pools",
            ) as prometheus:
                await self._populate(api, fleet, prometheus)
                with operator:

                    def used() -> dict[str, float]:
                        theirs = {"prometheus": cpu_s(prometheus.process.pid)}
                        return cpu_of(control_plane, operator, fleet) | theirs

                    wanted = dict.fromkeys(self._pools.values(), 1)
                    await _until_clear(api, wanted)
                    await asyncio.sleep(2 * self._interval_s)
                    before, began = used(), time.monotonic()
                    await asyncio.sleep(intervals * self._interval_s)
                    after, ended = used(), time.monotonic()
                    # Less is asked and told of a pool that can't read its signals.
                    await _until_clear(api, wanted)
                    orders = await fleet.orders(list(self._pools), began)
        told = {pool: [at for at, _ in each] for pool, each in zip(self._pools.values(), orders, strict=True)}
        shares = {name: (after[name] - before[name]) / (ended - began) for name in after}
        return Evaluated(began, ended, shares, told)

    async def _populate(self, api: Api, fleet: Fleet, prometheus: Prometheus) -> None:
        await api.create("secrets", key_secrets(self._tenants))
        await api.create("tenants", (tenant(number, 1.0) for number in range(self._tenants)))
        overload = _overload(prometheus, self._interval_s)
        spec = {"sidecar": {"controlPort": fleet.port}, "overload": overload}
        await api.create(
            "servingpools",
            (
                object_of("ServingPool", pool, {"selector": {"matchLabels": {"app": pool}}, **spec})
                for pool in self._pools.values()
            ),
        )
        pods = ((f"{pool}-0", host, {"app": pool}) for host, pool in self._pools.items())
        await gather((api.create_pod(*pod) for pod in pods), 16)


def _overload(prometheus: Prometheus, interval_s: float) -> dict[str, Any]:
    return {"prometheus": {"url": prometheus.url}, "evaluationInterval": f"{round(1e3 * interval_s)}ms"}


async def _set_metrics(fleet: Fleet, namespace: str, pools: Mapping[str, str], wait_s: float) -> None:
    """What the sidecars of these addresses say that their calls wait; the pools' names by address."""
    told = {
        host: {"pool_namespace": namespace, "pool": pool, "wait_s": wait_s} for host, pool in pools.items()
    }
    await fleet.do("metrics", told=told)


async def _until_clear(api: Api, pools: Mapping[str, int]) -> None:
    """Wait until these pools run, with these generations of their specs, and have read all their signals.
    Raises RuntimeError with those that don't.
    """
    ends = time.monotonic() + DEADLINE_S
    while True:
        listed = (await api.call("GET", api.path("servingpools")))["items"]
        statuses = {body["metadata"]["name"]: body.get("status", {}) for body in listed}
        other = [name for name, generation in pools.items() if not _is_clear(statuses[name], generation)]
        if not other:
            return
        if time.monotonic() > ends:
            raise RuntimeError(f"not evaluated: {', '.join(other)}; {statuses[other[0]].get('conditions')}")
        await asyncio.sleep(0.1)


def _is_clear(status: Mapping[str, Any], generation: int) -> bool:
    conditions = status.get("conditions", ())
    read = [each for each in conditions if "not read" not in each["message"]]
    return says(conditions, type="Programmed", status="True", observedGeneration=generation) and says(
        read, type="Overloaded", reason="SignalsClear"
    )


def figures(
    pods: int, tenants: int, interval_s: float, reaction: Reaction, evaluated: Evaluated
) -> list[Figure]:
    """All of them, judged. `tenants`: in the namespace of the many pools."""
    late, rounds = reaction.late_s, len(reaction.late_s)
    what = (
        f"signal crossed in Prometheus to each of {pods} sidecars armed or disarmed, "
        f"less one interval of {interval_s:g} s"
    )
    pools = f"{len(evaluated.told)} pools of one sidecar, {tenants} tenants, default signals"
    shares = {name: 100 * share for name, share in evaluated.shares.items()}
    core = "% of a core"
    return [
        figure(f"{what}: worst of {rounds} rounds", max(late), "s", None, at_most(1)),
        figure(f"{what}: median", statistics.median(late), "s", half_quartiles(late)),
        figure("of that, from the first sidecar told to the last, worst", max(reaction.spread_s), "s"),
        *(
            figure(f"CPU per evaluation told to them: {name}", 1e3 * used, "ms")
            for name, used in reaction.cpu_s.items()
        ),
        figure(
            f"{pools} evaluated every {interval_s:g} s: CPU of the operator",
            shares.pop("operator"),
            core,
            None,
            at_most(20),
        ),
        *(figure(f"CPU beside it: {name}", share, core) for name, share in shares.items()),
    ]
