"""The world as the handlers see it, in memory: an API server, sidecars and a Prometheus that do as told."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fairserve.config import SchedulerConfig
from fairserve.difference import Difference
from fairserve_operator.clients.kubernetes_client import Census, Written
from fairserve_operator.clients.prometheus import Reading, Source
from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    State,
    Unreachable,
)
from fairserve_operator.decide.resources import ObjectKey, Resource
from fairserve_operator.errors import ApiServerError, ConflictError
from fairserve_operator.handlers.delivery import Pace
from fairserve_operator.handlers.lanes import Lanes
from fairserve_operator.handlers.pools import World
from fairserve_operator.handlers.store import Pod, Store
from fairserve_operator.handlers.tasks import Tasks

#: So fast that a test sees many tries, so slow that it sees each of them.
FAST = Pace(first_retry_s=0.001, last_retry_s=0.004, resync_s=0.01)
PATIENT = Pace(first_retry_s=0.001, last_retry_s=0.004, resync_s=3600.0)


class FakeCluster:
    """An API server with Secrets, statuses and Events. `broken` makes every call fail."""

    def __init__(self) -> None:
        self.secrets: dict[tuple[str, str], dict[str, Any]] = {}
        self.statuses: list[tuple[str, str, Mapping[str, Any]]] = []
        self.events: list[Mapping[str, Any]] = []
        self.broken: ApiServerError | None = None
        self.issuer: tuple[str, bytes] | ApiServerError = ("", b"")
        self.pools: list[Mapping[str, Any]] | ApiServerError = []  #: InferencePools
        self.looks = 0  #: at them
        self.calls = 0
        self.writes = 0  #: of Secrets, whatever came of them
        self.conflicts = 0  #: how many of the next Secret writes meet somebody else's
        self.people: dict[str, dict[tuple[str, str], str]] = {}
        self.latest = 1000  #: resource version of every list
        self._versions = itertools.count(100)

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        self._check()
        return self.secrets.get((namespace, name))

    async def write_secret(self, manifest: Mapping[str, Any]) -> Written:
        self._check()
        self.writes += 1
        metadata = manifest["metadata"]
        where = metadata["namespace"], metadata["name"]
        if self.conflicts:
            self.conflicts -= 1
            self.secrets[where]["metadata"]["resourceVersion"] = str(next(self._versions))
        held = self.secrets.get(where, {}).get("metadata", {}).get("resourceVersion")
        if held != metadata.get("resourceVersion"):
            raise ConflictError(f"Secret {where}", 409, "it changed")
        version = str(next(self._versions))
        self.secrets[where] = {**manifest, "metadata": {**metadata, "resourceVersion": version}}
        return Written(version, self.secrets[where])

    async def apply_status(self, manifest: Mapping[str, Any], field_manager: str) -> Written:
        self._check()
        assert field_manager == "fairserve-operator"
        self.statuses.append((manifest["kind"], manifest["metadata"]["name"], manifest["status"]))
        version = str(next(self._versions))
        return Written(
            version, {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
        )

    async def issuer_keys(self) -> tuple[str, bytes]:
        self._check()
        if isinstance(self.issuer, ApiServerError):
            raise self.issuer
        return self.issuer

    async def inference_pools(self, namespace: str | None) -> Sequence[Mapping[str, Any]]:
        self._check()
        self.looks += 1
        if isinstance(self.pools, ApiServerError):
            raise self.pools
        return [each for each in self.pools if namespace in (None, each["metadata"]["namespace"])]

    async def create_event(self, manifest: Mapping[str, Any]) -> None:
        self._check()
        self.events.append(manifest)

    async def census(self, kind: str, namespace: str | None, field_selector: str = "") -> Census:
        self._check()
        return Census(str(self.latest), dict(self.people.get(kind, {})))

    async def latest_version(self, kind: str, namespace: str | None) -> int:
        self._check()
        return self.latest

    def _check(self) -> None:
        self.calls += 1
        if self.broken is not None:
            raise self.broken


class FakeSidecars:
    """Sidecars by host. `answers` scripts what PUT /config brings; without a script they acknowledge."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.answers: dict[str, list[Newer | Rejected | Unreachable | Running]] = {}
        self.says: dict[str, Running] = {}  #: what GET /state claims, whatever runs
        self.told_with: dict[str, int] = {}  #: the generation that PUT /overload claims
        self.ahead: dict[str, int] = {}  #: who runs a generation higher by this, whatever it is given
        self.hanging: set[str] = set()
        self.down: set[str] = set()
        self.pushes: list[tuple[str, bytes]] = []  #: of whole documents
        self.differences: list[tuple[str, bytes]] = []
        self.looks: list[str] = []
        self.orders: list[tuple[str, bool, float, str]] = []
        self.tokens: set[str] = set()
        self.states: dict[str, dict[str, Any]] = {}

    async def put_config(
        self, port: ControlPort, document_gz: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        self.tokens.add(port.token)
        self.pushes.append((port.host, document_gz))
        if port.host in self.hanging:
            await asyncio.Event().wait()
        if port.host in self.down:
            return Unreachable("refused")
        if script := self.answers.get(port.host):
            return script.pop(0)
        generation, content_hash = _described(document_gz)
        if ahead := self.ahead.get(port.host):
            return Newer(generation + ahead, "x")
        self.running[port.host] = Running(generation, content_hash)
        return self.running[port.host]

    async def put_difference(
        self, port: ControlPort, difference: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        self.differences.append((port.host, difference))
        if port.host in self.down:
            return Unreachable("refused")
        change, running = (
            Difference.from_bytes(_plain(difference)),
            self.running.get(port.host, Running(0, "")),
        )
        if (change.base.generation, change.base.hash) != (running.generation, running.content_hash):
            return Newer(running.generation, running.content_hash)
        self.running[port.host] = Running(change.generation, change.hash)
        return self.running[port.host]

    async def put_overload(
        self, port: ControlPort, armed: bool, lease_s: float, reason: str
    ) -> OverloadTaken | Rejected | Unreachable:
        if port.host in self.down:
            return Unreachable("refused")
        self.orders.append((port.host, armed, lease_s, reason))
        running = self.running.get(port.host)
        return OverloadTaken(armed, self.told_with.get(port.host, running.generation if running else 0))

    async def get_state(self, port: ControlPort) -> State | Rejected | Unreachable:
        self.looks.append(port.host)
        if port.host in self.hanging:
            await asyncio.Event().wait()
        if port.host in self.down:
            return Unreachable("refused")
        running = self.says.get(port.host) or self.running.get(port.host, Running(0, ""))
        return State(running, self.states.get(port.host, {}))


class FakeMetrics:
    """A Prometheus whose every query gives `reading`, or what `readings` has for it.

    `refused` are queries that it calls wrong, which spoils joint ones with them.
    """

    def __init__(self) -> None:
        self.reading = Reading(0.0)
        self.readings: dict[str, Reading] = {}
        self.refused: set[str] = set()
        self.queries: list[tuple[str, str, float]] = []
        self.connections: list[FakeConnection] = []

    def connect(self, source: Source) -> FakeConnection:
        self.connections.append(FakeConnection(self, source))
        return self.connections[-1]


class FakeConnection:
    def __init__(self, metrics: FakeMetrics, source: Source) -> None:
        self.source = source
        self.closed = False
        self._metrics = metrics

    async def query(self, promql: str, timeout_s: float) -> Reading:
        assert not self.closed
        self._metrics.queries.append((self.source.url, promql, timeout_s))
        if promql in self._metrics.refused:
            return Reading(None, "parse error", "refused")
        return self._metrics.readings.get(promql, self._metrics.reading)

    async def query_jointly(
        self, promql: str, label: str, names: Sequence[str], timeout_s: float
    ) -> Mapping[str, Reading] | None:
        assert not self.closed
        self._metrics.queries.append((self.source.url, promql, timeout_s))
        if any(each in promql for each in self._metrics.refused):
            return None
        return {name: self._metrics.readings.get(name, self._metrics.reading) for name in names}

    def close(self) -> None:
        self.closed = True


class FakeWorld:
    """All of it, with what died in `deaths`."""

    def __init__(self, pace: Pace = PATIENT) -> None:
        self.store = Store()
        self.cluster = FakeCluster()
        self.sidecars = FakeSidecars()
        self.metrics = FakeMetrics()
        self.deaths: list[BaseException] = []
        self.now = 1_000_000.0
        self.tasks = Tasks(self.deaths.append)
        self.world = World(
            self.store,
            self.cluster,
            self.sidecars,
            self.metrics,
            Lanes(),
            self.tasks,
            lambda: self.now,
            random.Random(7),
            pace,
        )


@asynccontextmanager
async def fake_world(pace: Pace = PATIENT) -> AsyncIterator[FakeWorld]:
    """Make a world; no task may die in it, and none outlives it."""
    made = FakeWorld(pace)
    try:
        yield made
    finally:
        await made.tasks.cancel()
    assert made.deaths == []


async def until(condition: Callable[[], Any], what: str) -> None:
    """Let the other tasks run until the condition holds."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 (it polls anything)
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


async def rest() -> None:
    """Let the other tasks run as far as they get by themselves."""
    for _ in range(50):
        await asyncio.sleep(0)


def pod(name: str, **changes: Any) -> Pod:
    """Make a pod that runs; its address is its name."""
    fields = {
        "namespace": "ns",
        "uid": f"uid of {name}",
        "ip": name,
        "labels": {"app": "vllm"},
        "running": True,
        "ready": True,
        "incarnation": "main:0",
    }
    return Pod(name=name, **{**fields, **changes})


def resource(kind: str, name: str, spec: Mapping[str, Any], generation: int = 1) -> Resource:
    """Make an object."""
    return Resource(ObjectKey(kind, "ns", name), f"uid of {name}", generation, "2026-01-01T00:00:00Z", spec)


def document(generation: int, content_hash: str = "h") -> bytes:
    """Make what the fake sidecars understand as a document."""
    return f"{generation} {content_hash}".encode()


def _plain(body: bytes) -> bytes:
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def _described(document_gz: bytes) -> tuple[int, str]:
    if document_gz[:2] == b"\x1f\x8b":
        config = SchedulerConfig.from_bytes(_plain(document_gz))
        return config.generation, config.content_hash
    generation, content_hash = document_gz.decode().split()
    return int(generation), content_hash
