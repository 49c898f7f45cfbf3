"""The operator at its size: `make bench-operator`.

A real API server, one pool of 1,000 Pods whose sidecars' control ports are played by `bench.fleet`, 10,000
Tenants with an API key each and 100 Applications. The operator is a process of its own with nothing special.
In the end a real Prometheus has the overload signals of that pool, and of 50 small ones in another namespace
with an operator of its own.

API server, etcd, sidecars, the client that measures and the operator share the machine's cores: CPU seconds
of each stand beside the times, and say which of them the time goes to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.cluster import (
    APPLY,
    DEADLINE_S,
    MERGE,
    Api,
    Fleet,
    cpu_of,
    gather,
    install,
    key_secrets,
    object_of,
    operator_process,
    say,
    says,
    tenant,
    tenant_name,
)
from bench.operator_overload import Evaluated, Pools, Reaction, Signal
from bench.operator_overload import figures as overload_figures
from bench.processes import cpu_s, memory_mib
from bench.results import Figure, at_most, exactly, figure, half_quartiles, publish
from tests.parts.controlplane import ControlPlane
from tests.parts.process import free_port

POOL, LABELS = "llm", {"app": "vllm"}
SEED = 1


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    pods: int = 1000
    tenants: int = 10_000
    applications: int = 100
    changes: int = 200
    burst: int = 1000
    hanging: float = 0.1
    idle_s: float = 60.0
    rounds: int = 20  #: in which the large pool is armed or disarmed
    pools: int = 50
    pools_tenants: int = 100  #: in the namespace of these pools
    interval_s: float = 5.0  #: between two evaluations
    intervals: int = 8  #: for which the pools are watched


@dataclass
class Measured:
    """What came of it. Times in seconds."""

    start_s: float = 0.0
    applied_s: list[float] = field(default_factory=list)
    programmed_s: list[float] = field(default_factory=list)
    beside_hanging_s: list[float] = field(default_factory=list)
    restarted_s: list[float] = field(default_factory=list)
    burst_s: float = 0.0
    burst_write_s: float = 0.0
    burst_compiles: int = 0
    idle_share: float = 0.0
    memory_mib: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)  #: per change
    start_cpu_s: dict[str, float] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    reaction: Reaction = field(default_factory=Reaction)
    sound: bool = False  #: all sidecars run one document with the hash that was told


class Seen:
    """When each Tenant was last seen programmed, and as which generation of its spec."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.programmed: dict[str, tuple[int, float]] = {}
        self.at_work = asyncio.Event()

    async def follow(self, version: str) -> None:
        async for body in self._api.watch(self._api.path("tenants"), version):
            generation = body["metadata"]["generation"]
            name, conditions = body["metadata"]["name"], body.get("status", {}).get("conditions", ())
            known = self.programmed.get(name, (0, 0.0))[0]
            if known != generation and _programmed(conditions, generation):
                self.programmed[name] = generation, time.monotonic()
                self.at_work.set()

    async def until(self, wanted: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not wanted():
                    self.at_work.clear()
                    await self.at_work.wait()
        except TimeoutError:
            raise RuntimeError(f"never: {what}") from None

    async def programmed_at(self, name: str, generation: int) -> float:
        await self.until(lambda: self.programmed.get(name, (0, 0.0))[0] >= generation, f"{name} programmed")
        return self.programmed[name][1]


class Bench:
    """One run."""

    def __init__(self, size: Size, folder: Path, namespace: str) -> None:
        self._size = size
        self._namespace = namespace
        self._folder = folder
        self._rng = random.Random(SEED)
        self._hosts = [f"127.77.{number // 250}.{number % 250 + 1}" for number in range(size.pods)]
        self._names = [tenant_name(number) for number in range(size.tenants)]
        self.measured = Measured()

    async def run(self, control_plane: ControlPlane) -> Measured:
        self._control_plane = control_plane
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, Fleet(free_port()) as self._fleet:
            self._api = Api(control_plane, session, self._namespace)
            self._seen = Seen(self._api)
            await self._populate()
            version = (await self._api.call("GET", f"{self._api.path('tenants')}?limit=1"))["metadata"][
                "resourceVersion"
            ]
            follow = asyncio.ensure_future(self._seen.follow(version))
            self._operator = operator_process(control_plane, self._namespace, self._folder / "operator.log")
            gc.freeze()  # What was set up is looked at no more: the client should disturb little.
            try:
                await self._start()
                for phase in (
                    *(self._change, self._idle, self._burst, self._hang, self._restart),
                    *(self._overload, self._check),
                ):
                    say(f"{phase.__name__[1:]} ...")
                    await phase()
            finally:
                follow.cancel()
                self._operator.stop()
        return self.measured

    async def _populate(self) -> None:
        say("populating ...")
        size = self._size
        await self._api.create("secrets", key_secrets(size.tenants))
        applications = [
            object_of(
                "Application",
                f"app-{number}",
                {"profile": {"mode": "Static", "inputTokens": 100 + number, "outputTokens": 100}},
            )
            for number in range(size.applications)
        ]
        await self._api.create("applications", applications)
        await self._api.create("tenants", (tenant(number, 1.0) for number in range(size.tenants)))
        pool = {"selector": {"matchLabels": LABELS}, "sidecar": {"controlPort": self._fleet.port}}
        await self._api.create("servingpools", [object_of("ServingPool", POOL, pool)])
        pods = enumerate(self._hosts)
        await gather((self._api.create_pod(f"vllm-{n}", host, LABELS) for n, host in pods), 16)

    async def _start(self) -> None:
        say("start ...")
        began = time.monotonic()
        self._operator.start()
        before = self._used() | {"operator": 0.0}
        await self._seen.until(lambda: len(self._seen.programmed) == self._size.tenants, "all programmed")
        await self._programmed_pool()
        self.measured.start_s = time.monotonic() - began
        self.measured.start_cpu_s = {name: used - before[name] for name, used in self._used().items()}
        await self._quiet()

    def _used(self) -> dict[str, float]:
        return cpu_of(self._control_plane, self._operator, self._fleet)

    async def _programmed_pool(self) -> int:
        """Wait until all Pods run what the pool has; its generation."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                status = (await self._api.call("GET", f"{self._api.path('servingpools')}/{POOL}")).get(
                    "status", {}
                )
                if status.get("programmed") == f"{self._size.pods}/{self._size.pods}":
                    return int(status["generation"])
                await asyncio.sleep(0.05)

    async def _quiet(self) -> None:
        """Wait until the operator has nothing to do."""
        used = cpu_s(self._operator.pid)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await asyncio.sleep(2.0)
                used, before = cpu_s(self._operator.pid), used
                if used - before < 0.2:
                    return

    async def _weigh(self, number: int, weight: float) -> int:
        """Write one Tenant's weight; the generation of its spec."""
        path = f"{self._api.path('tenants')}/{self._names[number]}"
        written = await self._api.call("PATCH", path, {"spec": {"weight": weight}}, MERGE)
        return int(written["metadata"]["generation"])

    async def _change(self) -> None:
        before = self._used()
        for turn in range(self._size.changes):
            number = self._rng.randrange(self._size.tenants)
            began = time.monotonic()
            generation = await self._weigh(number, 2.0 + turn / 1000)
            programmed = await self._seen.programmed_at(self._names[number], generation)
            applied = await self._fleet.applied(await self._programmed_pool(), self._hosts)
            self.measured.programmed_s.append(programmed - began)
            self.measured.applied_s.append(applied - began)
            await asyncio.sleep(0.2 + self._rng.random() * 0.3)
        self.measured.cpu_s = {
            name: (used - before[name]) / self._size.changes for name, used in self._used().items()
        }
        self.measured.traffic = await self._fleet.do("counts")

    async def _idle(self) -> None:
        await self._quiet()
        before, began = cpu_s(self._operator.pid), time.monotonic()
        await asyncio.sleep(self._size.idle_s)
        self.measured.idle_share = (cpu_s(self._operator.pid) - before) / (time.monotonic() - began)
        self.measured.memory_mib = memory_mib(self._operator.pid)

    async def _burst(self) -> None:
        """As `kubectl apply` of a file does it: one after the other."""
        generation = await self._programmed_pool()
        wanted: dict[str, int] = {}
        began = time.monotonic()
        for number in range(min(self._size.burst, self._size.tenants)):
            path = f"{self._api.path('tenants')}/{self._names[number]}?fieldManager=bench&force=true"
            written = await self._api.call("PATCH", path, tenant(number, 5.0), APPLY)
            wanted[self._names[number]] = written["metadata"]["generation"]
        last = time.monotonic()
        self.measured.burst_write_s = last - began
        done = [await self._seen.programmed_at(name, at) for name, at in wanted.items()]
        self.measured.burst_s = max(0.0, max(done) - last)
        await self._quiet()
        self.measured.burst_compiles = await self._programmed_pool() - generation

    async def _hang(self) -> None:
        """Some hang, and what the others see."""
        count = max(1, int(self._size.pods * self._size.hanging))
        bad = self._rng.sample(self._hosts, count)
        good = [host for host in self._hosts if host not in set(bad)]
        generation = await self._programmed_pool()
        await self._fleet.do("hang", hosts=bad)
        for turn in range(max(2, self._size.changes // 4)):
            began = time.monotonic()
            await self._weigh(self._rng.randrange(self._size.tenants), 7.0 + turn / 1000)
            generation += 1
            self.measured.beside_hanging_s.append(await self._fleet.applied(generation, good) - began)
            await asyncio.sleep(0.2 + self._rng.random() * 0.3)
        await self._fleet.do("go", hosts=bad)
        await self._programmed_pool()

    async def _restart(self) -> None:
        """Sidecars that lost everything and become ready."""
        for restarts in range(1, 6):
            generation = await self._programmed_pool()
            number = self._rng.randrange(self._size.pods)
            await self._tell_pod(number, restarts, False)
            # The worst of downs: connections hang, and nobody is told that it is away.
            await self._fleet.do("hang", hosts=[self._hosts[number]])
            await self._fleet.do("forget", hosts=[self._hosts[number]])
            await asyncio.sleep(0.5)
            await self._fleet.do("go", hosts=[self._hosts[number]])
            began = time.monotonic()
            await self._tell_pod(number, restarts, True)
            at = await self._fleet.applied(generation, [self._hosts[number]])
            self.measured.restarted_s.append(max(0.0, at - began))

    async def _tell_pod(self, number: int, restarts: int, ready: bool) -> None:
        await self._api.tell_pod(f"vllm-{number}", self._hosts[number], restarts, ready)

    async def _overload(self) -> None:
        signal = Signal(self._api, self._fleet, POOL, self._hosts, self._size.interval_s)
        with signal.scraped(self._folder / "prometheus"):
            self.measured.reaction = await signal.flip(self._size.rounds, self._rng, self._used)

    async def _check(self) -> None:
        """The real model has the last word on what the sidecars hold."""
        generation = await self._programmed_pool()
        state = await self._fleet.do("state", hosts=self._hosts)
        self.measured.sound = bool(
            state["sound"] and len(state["running"]) == 1 and state["running"][0][0] == generation
        )


def _programmed(conditions: Iterable[Mapping[str, Any]], generation: int) -> bool:
    return says(conditions, type="Programmed", status="True", observedGeneration=generation)


def _p99(samples: Sequence[float]) -> float:
    return sorted(samples)[math.ceil(0.99 * len(samples)) - 1]


def figures(size: Size, measured: Measured, evaluated: Evaluated) -> list[Figure]:
    """All of them, judged."""
    m = measured
    ms = [1e3 * s for s in m.programmed_s]
    applied = [1e3 * s for s in m.applied_s]
    what = f"{size.pods} sidecars, {size.tenants} tenants"
    return [
        figure(
            f"{what}: from a write to Programmed, p50, ms", statistics.median(ms), "ms", half_quartiles(ms)
        ),
        figure(f"{what}: from a write to Programmed, p99, ms", _p99(ms), "ms", None, at_most(1000)),
        figure(
            "from a write to applied by every sidecar, p50",
            statistics.median(applied),
            "ms",
            half_quartiles(applied),
        ),
        figure("from a write to applied by every sidecar, p99", _p99(applied), "ms", None, at_most(1000)),
        *(figure(f"CPU per change: {name}", 1e3 * used, "ms") for name, used in m.cpu_s.items()),
        figure("memory of the operator", m.memory_mib, "MiB", None, at_most(256)),
        figure("idle CPU of the operator", 100 * m.idle_share, "% of a core", None, at_most(2)),
        figure("from nothing to all programmed", m.start_s, "s", None, at_most(60)),
        *(figure(f"CPU until then: {name}", used, "s") for name, used in m.start_cpu_s.items()),
        figure(
            f"{size.burst} tenants applied one after the other: compiles",
            m.burst_compiles,
            "",
            None,
            at_most(10),
        ),
        figure("from the last of these to all programmed", m.burst_s, "s", None, at_most(10)),
        figure("time that applying them took", m.burst_write_s, "s"),
        figure(
            "beside 10 % hanging sidecars: p99 of the others, against p99 without",
            _p99(m.beside_hanging_s) / _p99(m.applied_s),
            "ratio",
            None,
            at_most(1.2),
        ),
        figure("restarted sidecar: from ready to current, worst", max(m.restarted_s), "s", None, at_most(2)),
        figure(
            "sidecars that hold another document than they told", 0 if m.sound else 1, "", None, exactly(0)
        ),
        *(figure(f"sent to sidecars until then: {name}", count, "") for name, count in m.traffic.items()),
        *overload_figures(size.pods, size.pools_tenants, size.interval_s, m.reaction, evaluated),
    ]


def measure(size: Size, folder: Path) -> tuple[Measured, Evaluated]:
    """One run on a control plane of its own. Raises RuntimeError where pools were not evaluated."""
    with ControlPlane(folder / "control-plane") as control_plane:
        install(control_plane)
        for namespace in ("bench", "bench-pools"):
            control_plane.create_namespace(namespace)
        measured = asyncio.run(Bench(size, folder, "bench").run(control_plane))
        say("pools ...")
        pools = Pools(size.pools, size.pools_tenants, size.interval_s, folder, "bench-pools")
        evaluated = asyncio.run(pools.run(control_plane, size.intervals))
    evaluated.require_each(size.interval_s)
    return measured, evaluated


def main() -> None:
    standard = Size()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, kind: type, text: str) -> None:
        default = getattr(standard, name)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, help=f"{text} (default {default:g})")

    add("pods", int, "Pods of the one large pool")
    add("tenants", int, "Tenants of its namespace")
    add("changes", int, "Tenants that are changed, one at a time")
    add("burst", int, "Tenants that are applied one after the other")
    add("idle_s", float, "seconds for which nothing happens")
    add("rounds", int, "how often that pool's overload signal crosses its threshold")
    add("pools", int, "small pools whose overload is evaluated")
    add("pools_tenants", int, "Tenants of their namespace")
    add("interval_s", float, "seconds between two evaluations of overload")
    add("intervals", int, "evaluations for which the small pools are watched")
    parser.add_argument("--keep", type=Path, help="leave logs here")
    given = vars(parser.parse_args())
    keep: Path | None = given.pop("keep")
    size = Size(**given)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured, evaluated = measure(size, folder)
    publish("operator", SEED, figures(size, measured, evaluated))


if __name__ == "__main__":
    main()
