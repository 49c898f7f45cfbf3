"""The operator on a bad way to its API server: watches that break, answers that refuse or get lost.

Each fault comes during a change and at rest; afterwards every sidecar and every status says what the objects
say.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from fairserve.config import SchedulerConfig
from tests.fakes.api_proxy import ApiProxy, Call, Fault
from tests.integration.operating import Place, operator_process, two_teams, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: Watches of an operator: one for each kind.
WATCHES = 5


class Scene:
    """Two teams before two sidecars, and what they should be."""

    def __init__(self, place: Place) -> None:
        self.place = place
        place.apply(two_teams())
        self.sidecars = [place.pod("a"), place.pod("b")]
        self.weights: dict[str, float] = {
            each["metadata"]["name"]: each["spec"].get("weight", 1)
            for each in two_teams()
            if each["kind"] == "Tenant"
        }

    def change(self, weight: int) -> None:
        self.place.patch("tenants", "team-a", {"weight": weight})
        self.weights["team-a"] = weight

    def delete(self) -> None:
        self.place.delete("tenants", "team-b")
        del self.weights["team-b"]

    def restore(self) -> None:
        missing = [
            each
            for each in two_teams()
            if each["kind"] == "Tenant" and each["metadata"]["name"] not in self.weights
        ]
        self.place.apply(missing)
        self.weights |= {each["metadata"]["name"]: each["spec"].get("weight", 1) for each in missing}

    def until_agreed(self) -> None:
        """Wait until sidecars, boot Secret and statuses say what the objects say."""
        try:
            until(lambda: not self.disagreements(), "agreement")
        except TimeoutError:
            raise AssertionError(f"no agreement: {self.disagreements()}") from None

    def disagreements(self) -> list[str]:
        boot = boot_document(self.place)
        wrong = [] if weights(boot) == self.weights else [f"the boot Secret has {weights(boot)}"]
        wrong += [
            f"{sidecar.host} runs {sidecar.generation}, not {boot.generation}"
            for sidecar in self.sidecars
            if (sidecar.generation, sidecar.content_hash) != (boot.generation, boot.content_hash)
        ]
        pods = len(self.sidecars)
        for kind, name in (
            *(("tenants", name) for name in self.weights),
            ("applications", "chat"),
            ("servingpools", "llm"),
        ):
            for condition in ("Accepted", "Programmed", "Ready"):
                found = self.place.condition(kind, name, condition)
                if found.get("status") != "True":
                    wrong.append(f"{kind} {name}: {condition}: {found}")
            if kind == "tenants":
                status = self.place.get(kind, name).get("status", {})
                told = status.get("programmed"), status.get("weight")
                if told != (f"{pods}/{pods}", self.weights[name]):
                    wrong.append(f"{name}: {told}")
        return wrong


def weights(config: SchedulerConfig) -> dict[str, float]:
    return {each.name: each.weight for each in config.tenants}


def boot_document(place: Place) -> SchedulerConfig:
    packed = base64.b64decode(place.boot_secret()["data"]["config.json.gz"])
    return SchedulerConfig.from_bytes(gzip.decompress(packed))


def error_event(code: int, words: str) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": words}
    return {"type": "ERROR", "object": status}


@pytest.fixture(scope="module")
def proxy(api: ControlPlane) -> Iterator[ApiProxy]:
    with ApiProxy(api.url, api.ca_file) as running:
        yield running


@pytest.fixture(scope="module")
def operator(
    api: ControlPlane, proxy: ApiProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """An operator of all namespaces whose every call takes the bad way."""
    folder = tmp_path_factory.mktemp("operator")
    kubeconfig = proxy.kubeconfig(api.kubeconfig, folder / "kubeconfig")
    with operator_process(kubeconfig, folder / "log", "--all-namespaces") as running:
        yield running
        assert running.alive, running.log_tail()


@pytest.fixture
def scene(api: ControlPlane, operator: Process, namespace: str) -> Iterator[Scene]:
    with ExitStack() as stack:
        made = Scene(Place(api, namespace, stack))
        made.until_agreed()
        yield made


WATCH_FAULTS: Mapping[str, tuple[dict[str, Any] | None, Fault]] = {
    "connections cut": (None, Fault(lambda call: call.watches)),
    "410 as an event": (
        error_event(410, "too old resource version"),
        Fault(lambda call: call.watches, event=error_event(410, "too old resource version")),
    ),
    "410 as a status": (None, Fault(lambda call: call.watches, status=410)),
    "500 as an event": (
        error_event(500, "etcdserver: no leader"),
        Fault(lambda call: call.watches, event=error_event(500, "etcdserver: no leader")),
    ),
    "404 while kinds are installed anew": (None, Fault(lambda call: call.watches, status=404)),
    "429": (None, Fault(lambda call: call.watches or call.is_list(), 429, {"Retry-After": "1"})),
}


@pytest.mark.parametrize("which", WATCH_FAULTS)
def test_broken_watches_miss_nothing(scene: Scene, proxy: ApiProxy, operator: Process, which: str) -> None:
    last, fault = WATCH_FAULTS[which]
    until(lambda: proxy.watching == WATCHES, "all watches")
    with proxy.failing(fault):
        proxy.cut(last)
        scene.change(7)
        scene.delete()
        until(lambda: fault.met >= WATCHES, "some tries")
    scene.until_agreed()
    generation = scene.sidecars[0].generation

    until(lambda: proxy.watching == WATCHES, "all watches again")
    proxy.cut(last)
    until(lambda: proxy.watching == WATCHES, "all watches at rest")
    assert scene.disagreements() == []
    assert scene.sidecars[0].generation == generation
    scene.change(8)
    scene.restore()
    scene.until_agreed()
    assert operator.alive


def writes(call: Call) -> bool:
    return call.method in ("PUT", "PATCH", "POST") and "fairserve" in call.path


WRITE_FAULTS = {
    "409": Fault(writes, 409, times=6),
    "429": Fault(writes, 429, {"Retry-After": "1"}, times=6),
    "500": Fault(writes, 500, times=6),
    "no answer": Fault(writes, times=6),
    "answers lost": Fault(writes, passed_on=True, times=2),
    "all calls refused": Fault(lambda call: not call.watches, 503, times=12),
}


@pytest.mark.parametrize("which", WRITE_FAULTS)
def test_refused_writes_are_repeated(scene: Scene, proxy: ApiProxy, operator: Process, which: str) -> None:
    fault = WRITE_FAULTS[which]
    before = scene.sidecars[0].generation
    with proxy.failing(fault):
        scene.change(5)
        scene.until_agreed()
        assert fault.met == fault.times
    assert scene.sidecars[0].generation == before + 1
    scene.change(6)
    scene.until_agreed()
    assert scene.sidecars[0].generation == before + 2
    assert operator.alive
