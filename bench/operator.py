"""The operator at its size: `make bench-operator`.

A real API server, one pool of 1,000 Pods whose sidecars' control ports are played by `bench.fleet`, 10,000
Tenants with an API key each and 100 Applications. The operator is a process of its own with nothing special.
API server, etcd, sidecars, the client that measures and the operator share the machine's cores: CPU seconds
of each stand beside the times, and say which of them the time goes to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import random
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.processes import cpu_s, memory_mib
from bench.results import ROOT, Figure, at_most, exactly, figure, half_quartiles, publish
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process, free_port, poll

POOL, LABELS = "llm", {"app": "vllm"}
KEYS_PER_SECRET = 100
SEED = 1
_GROUP = "/apis/fairserve.dev/v1alpha1"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_DEADLINE_S = 120.0


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
    sound: bool = False  #: all sidecars run one document with the hash that was told


class Fleet:
    """The sidecars' process."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Fleet:
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.fleet", str(self._port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=1 << 26,
        )
        await self.do("counts")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """One command; its answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self._child.stdout.readline())
        return answer

    async def applied(self, generation: int, hosts: Sequence[str]) -> float:
        """When the last of these sidecars had this generation; waits for it."""
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                at = (await self.do("applied", generation=generation))["at"]
                if all(host in at for host in hosts):
                    return float(max(at[host] for host in hosts))
                await asyncio.sleep(0.05)


class Api:
    """The API server, many calls at a time."""

    def __init__(self, control_plane: ControlPlane, session: aiohttp.ClientSession, namespace: str) -> None:
        self._session = session
        self._namespace = namespace
        self._url = control_plane.url
        self.tls = ssl.create_default_context(cafile=control_plane.ca_file)
        self._headers = {"Authorization": f"Bearer {control_plane.token}"}

    def path(self, rest: str) -> str:
        """The path of one of the bench's own objects."""
        group = "/api/v1" if rest.startswith(("pods", "secrets")) else _GROUP
        return f"{group}/namespaces/{self._namespace}/{rest}"

    async def call(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        headers = {**self._headers, "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(
            method, self._url + path, data=data, headers=headers, ssl=self.tls
        ) as response:
            answer = await response.json()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status}: {answer}")
            return answer

    async def watch(self, path: str, version: str) -> AsyncIterator[dict[str, Any]]:
        """Objects as they change."""
        url = f"{self._url}{path}?watch=1&resourceVersion={version}&allowWatchBookmarks=false"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, headers=self._headers, ssl=self.tls, timeout=timeout) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)["object"]


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
            if known != generation and any(_says_programmed(each, generation) for each in conditions):
                self.programmed[name] = generation, time.monotonic()
                self.at_work.set()

    async def until(self, wanted: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
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
        self._names = [f"tenant-{number:05d}" for number in range(size.tenants)]
        self._port = free_port()
        self.measured = Measured()

    async def run(self, control_plane: ControlPlane) -> Measured:
        self._control_plane = control_plane
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, Fleet(self._port) as self._fleet:
            self._api = Api(control_plane, session, self._namespace)
            self._seen = Seen(self._api)
            await self._populate()
            version = (await self._api.call("GET", f"{self._api.path('tenants')}?limit=1"))["metadata"][
                "resourceVersion"
            ]
            follow = asyncio.ensure_future(self._seen.follow(version))
            command = [sys.executable, "-m", "fairserve_operator", "--log-format=plain"]
            self._operator = Process(
                "operator",
                [*command, f"--kubeconfig={control_plane.kubeconfig}", f"--namespace={self._namespace}"],
                self._folder / "operator.log",
                env={"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'serving'}"},
            )
            gc.freeze()  # What was set up is looked at no more: the client should disturb little.
            try:
                await self._start()
                for phase in (self._change, self._idle, self._burst, self._hang, self._restart, self._check):
                    _say(f"{phase.__name__[1:]} ...")
                    await phase()
            finally:
                follow.cancel()
                self._operator.stop()
        return self.measured

    async def _populate(self) -> None:
        _say("populating ...")
        size, rng = self._size, self._rng
        secrets = [
            {
                "metadata": {"name": f"keys-{number}"},
                "stringData": {
                    f"k{key}": f"sk-{number}-{key}-{rng.random()}" for key in range(KEYS_PER_SECRET)
                },
            }
            for number in range(-(-size.tenants // KEYS_PER_SECRET))
        ]
        await self._each("POST", self._api.path("secrets"), secrets)
        applications = [
            _object(
                "Application",
                f"app-{number}",
                {"profile": {"mode": "Static", "inputTokens": 100 + number, "outputTokens": 100}},
            )
            for number in range(size.applications)
        ]
        await self._each("POST", self._api.path("applications"), applications)
        await self._each(
            "POST", self._api.path("tenants"), [self._tenant(n, 1.0) for n in range(size.tenants)]
        )
        pool = {"selector": {"matchLabels": LABELS}, "sidecar": {"controlPort": self._port}}
        await self._each("POST", self._api.path("servingpools"), [_object("ServingPool", POOL, pool)])
        pods = [
            {
                "metadata": {"name": f"vllm-{number}", "labels": LABELS},
                "spec": {"nodeName": "fake", "containers": [{"name": "main", "image": "fake"}]},
            }
            for number in range(size.pods)
        ]
        await self._each("POST", self._api.path("pods"), pods)
        await _gather(
            (self._pod_status(number, 0, True) for number in range(size.pods)),
            16,
        )

    def _tenant(self, number: int, weight: float) -> dict[str, Any]:
        ref = {"name": f"keys-{number // KEYS_PER_SECRET}", "key": f"k{number % KEYS_PER_SECRET}"}
        limits = {"perUser": {"count": 100 + number % 50, "window": "1m"}}
        spec = {"weight": weight, "identity": [{"apiKey": {"secretRef": ref}}], "interactionLimits": limits}
        return _object("Tenant", self._names[number], spec)

    async def _pod_status(self, number: int, restarts: int, ready: bool) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        host = self._hosts[number]
        container = {
            "name": "main",
            "image": "fake",
            "imageID": "fake",
            "ready": ready,
            "restartCount": restarts,
        }
        status = {
            "phase": "Running",
            "podIP": host,
            "podIPs": [{"ip": host}],
            "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": now}],
            "containerStatuses": [{**container, "state": {"running": {"startedAt": now}}}],
        }
        path = self._api.path(f"pods/vllm-{number}/status")
        await self._api.call("PATCH", path, {"status": status}, _MERGE)

    async def _each(self, method: str, path: str, bodies: Sequence[dict[str, Any]]) -> None:
        await _gather((self._api.call(method, path, body) for body in bodies), 16)

    async def _start(self) -> None:
        _say("start ...")
        began = time.monotonic()
        self._operator.start()
        before = self._used() | {"operator": 0.0}
        await self._seen.until(lambda: len(self._seen.programmed) == self._size.tenants, "all programmed")
        await self._programmed_pool()
        self.measured.start_s = time.monotonic() - began
        self.measured.start_cpu_s = {name: used - before[name] for name, used in self._used().items()}
        await self._quiet()

    def _used(self) -> dict[str, float]:
        """CPU seconds of everybody until now."""
        pids = {
            "operator": self._operator.pid,
            "sidecars": self._fleet.pid,
            "kube-apiserver": self._control_plane.apiserver.pid,
            "etcd": self._control_plane.etcd.pid,
            "client": os.getpid(),
        }
        return {name: cpu_s(pid) for name, pid in pids.items()}

    async def _programmed_pool(self) -> int:
        """Wait until all Pods run what the pool has; its generation."""
        async with asyncio.timeout(_DEADLINE_S):
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
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                await asyncio.sleep(2.0)
                used, before = cpu_s(self._operator.pid), used
                if used - before < 0.2:
                    return

    async def _weigh(self, number: int, weight: float) -> int:
        """Write one Tenant's weight; the generation of its spec."""
        path = f"{self._api.path('tenants')}/{self._names[number]}"
        written = await self._api.call("PATCH", path, {"spec": {"weight": weight}}, _MERGE)
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
            written = await self._api.call("PATCH", path, self._tenant(number, 5.0), _APPLY)
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
            await self._pod_status(number, restarts, False)
            # The worst of downs: connections hang, and nobody is told that it is away.
            await self._fleet.do("hang", hosts=[self._hosts[number]])
            await self._fleet.do("forget", hosts=[self._hosts[number]])
            await asyncio.sleep(0.5)
            await self._fleet.do("go", hosts=[self._hosts[number]])
            began = time.monotonic()
            await self._pod_status(number, restarts, True)
            at = await self._fleet.applied(generation, [self._hosts[number]])
            self.measured.restarted_s.append(max(0.0, at - began))

    async def _check(self) -> None:
        """The real model has the last word on what the sidecars hold."""
        generation = await self._programmed_pool()
        state = await self._fleet.do("state", hosts=self._hosts)
        self.measured.sound = bool(
            state["sound"] and len(state["running"]) == 1 and state["running"][0][0] == generation
        )


def _says_programmed(condition: Mapping[str, Any], generation: int) -> bool:
    wanted = {"type": "Programmed", "status": "True", "observedGeneration": generation}
    return wanted.items() <= condition.items()


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


async def _gather(calls: Iterable[Awaitable[Any]], at_once: int) -> None:
    """All of them, a few at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(work() for _ in range(at_once)))


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _p99(samples: Sequence[float]) -> float:
    return sorted(samples)[math.ceil(0.99 * len(samples)) - 1]


def figures(size: Size, measured: Measured) -> list[Figure]:
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
    ]


def measure(size: Size, folder: Path) -> Measured:
    """One run on a control plane of its own."""
    with ControlPlane(folder / "control-plane") as control_plane:
        install(control_plane)
        control_plane.create_namespace("bench")
        return asyncio.run(Bench(size, folder, "bench").run(control_plane))


def install(control_plane: ControlPlane) -> None:
    """Apply the custom resource definitions and wait until objects can be made."""
    control_plane.apply(ROOT / "crds")
    control_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for plural in ("tenants", "applications", "servingpools"):
        poll(lambda path=f"{_GROUP}/{plural}": control_plane.request("GET", path), 60.0, plural)  # type: ignore[misc]


def main() -> None:
    standard = Size()
    parser = argparse.ArgumentParser()
    parser.add_argument("--pods", type=int, default=standard.pods)
    parser.add_argument("--tenants", type=int, default=standard.tenants)
    parser.add_argument("--changes", type=int, default=standard.changes)
    parser.add_argument("--burst", type=int, default=standard.burst)
    parser.add_argument("--idle-s", type=float, default=standard.idle_s)
    parser.add_argument("--keep", type=Path, help="leave logs here")
    given = parser.parse_args()
    size = Size(
        pods=given.pods, tenants=given.tenants, changes=given.changes, burst=given.burst, idle_s=given.idle_s
    )
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = measure(size, folder)
    publish("operator", SEED, figures(size, measured))


if __name__ == "__main__":
    main()
