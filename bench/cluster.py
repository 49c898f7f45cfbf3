"""What `bench.operator` stands on: a real API server, the operator as a process, emulated sidecars.

API server, etcd, sidecars, the client that measures and the operator share the machine's cores; `cpu_of` says
how much of them each has had.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from bench.processes import cpu_s
from bench.results import ROOT
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process, poll

KEYS_PER_SECRET = 100
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
#: For everything that is waited for, in seconds.
DEADLINE_S = 120.0
_GROUP = "/apis/fairserve.dev/v1alpha1"


class Fleet:
    """The sidecars' process; `port` is every sidecar's control port."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Fleet:
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.fleet", str(self.port)),
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
        async with asyncio.timeout(DEADLINE_S):
            while True:
                at = (await self.do("applied", generation=generation))["at"]
                if all(host in at for host in hosts):
                    return float(max(at[host] for host in hosts))
                await asyncio.sleep(0.05)

    async def orders(self, hosts: Sequence[str], since: float) -> list[list[tuple[float, bool]]]:
        """Of each of these sidecars: when it was told an overload state since then, and whether armed."""
        return list((await self.do("orders", hosts=hosts, since=since))["orders"])

    async def turned(self, armed: bool, hosts: Sequence[str], since: float) -> tuple[float, float]:
        """When the first and the last of these sidecars were told this state since then; waits for it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                orders = await self.orders(hosts, since)
                firsts = [next((at for at, told in each if told == armed), None) for each in orders]
                at = [first for first in firsts if first is not None]
                if len(at) == len(hosts):
                    return min(at), max(at)
                await asyncio.sleep(0.2)


class Api:
    """The API server, many calls at a time."""

    def __init__(self, control_plane: ControlPlane, session: aiohttp.ClientSession, namespace: str) -> None:
        self.namespace = namespace
        self._session = session
        self._url = control_plane.url
        self.tls = ssl.create_default_context(cafile=control_plane.ca_file)
        self._headers = {"Authorization": f"Bearer {control_plane.token}"}

    def path(self, rest: str) -> str:
        """The path of one of the bench's own objects."""
        group = "/api/v1" if rest.startswith(("pods", "secrets")) else _GROUP
        return f"{group}/namespaces/{self.namespace}/{rest}"

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

    async def create(self, plural: str, bodies: Iterable[dict[str, Any]]) -> None:
        """All of them, a few at a time."""
        await gather((self.call("POST", self.path(plural), body) for body in bodies), 16)

    async def create_pod(self, name: str, host: str, labels: Mapping[str, str]) -> None:
        """A ready Pod without a kubelet."""
        spec = {"nodeName": "fake", "containers": [{"name": "main", "image": "fake"}]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        await self.call("POST", self.path("pods"), body)
        await self.tell_pod(name, host)

    async def tell_pod(self, name: str, host: str, restarts: int = 0, ready: bool = True) -> None:
        """Write a Pod's status, as its kubelet would."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
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
        await self.call("PATCH", self.path(f"pods/{name}/status"), {"status": status}, MERGE)

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


def operator_process(control_plane: ControlPlane, namespace: str, log: Path) -> Process:
    """The operator of one namespace, not yet started."""
    return Process(
        "operator",
        [
            *(sys.executable, "-m", "fairserve_operator", "--log-format=plain"),
            *(f"--kubeconfig={control_plane.kubeconfig}", f"--namespace={namespace}"),
        ],
        log,
        env={"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'serving'}"},
    )


def cpu_of(control_plane: ControlPlane, operator: Process, fleet: Fleet) -> dict[str, float]:
    """CPU seconds of everybody until now."""
    pids = {
        "operator": operator.pid,
        "sidecars": fleet.pid,
        "kube-apiserver": control_plane.apiserver.pid,
        "etcd": control_plane.etcd.pid,
        "client": os.getpid(),
    }
    return {name: cpu_s(pid) for name, pid in pids.items()}


def object_of(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def tenant(number: int, weight: float) -> dict[str, Any]:
    """A Tenant with an API key of those that `key_secrets` has."""
    ref = {"name": f"keys-{number // KEYS_PER_SECRET}", "key": f"k{number % KEYS_PER_SECRET}"}
    limits = {"perUser": {"count": 100 + number % 50, "window": "1m"}}
    spec = {"weight": weight, "identity": [{"apiKey": {"secretRef": ref}}], "interactionLimits": limits}
    return object_of("Tenant", tenant_name(number), spec)


def tenant_name(number: int) -> str:
    return f"tenant-{number:05d}"


def key_secrets(tenants: int) -> Iterable[dict[str, Any]]:
    """Secrets with a key for each of so many Tenants."""
    for number in range(-(-tenants // KEYS_PER_SECRET)):
        keys = {f"k{key}": f"sk-{number}-{key}" for key in range(KEYS_PER_SECRET)}
        yield {"metadata": {"name": f"keys-{number}"}, "stringData": keys}


def says(conditions: Iterable[Mapping[str, Any]], **wanted: object) -> bool:
    """Whether one of the conditions has all of this."""
    return any(wanted.items() <= each.items() for each in conditions)


async def gather(calls: Iterable[Awaitable[Any]], at_once: int) -> None:
    """All of them, a few at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(work() for _ in range(at_once)))


def install(control_plane: ControlPlane) -> None:
    """Apply the custom resource definitions and wait until objects can be made."""
    control_plane.apply(ROOT / "crds")
    control_plane.wait_for_definitions()
    for plural in ("tenants", "applications", "servingpools"):
        poll(lambda path=f"{_GROUP}/{plural}": control_plane.request("GET", path), 60.0, plural)  # type: ignore[misc]


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
