"""The operator on a bad way to its API server: watches that break, answers that refuse or get lost.

Each fault comes during a change and at rest; afterwards every sidecar and every status says what the objects
say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairserve.config import SchedulerConfig
from tests.fakes.api_proxy import ApiProxy, Call, Fault
from tests.fakes.prometheus import Answer, FakePrometheus, number
from tests.integration.operating import Place, operator_process, two_teams, until
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: Watches of an operator: one for each kind.
WATCHES = 5


class Scene:
    """Two teams before two sidecars, and what they should be."""

    def __init__(self, place: Place, overload: Mapping[str, Any] | None = None) -> None:
        self.place = place
        manifests = two_teams()
        for manifest in manifests:
            if overload is not None and manifest["kind"] == "ServingPool":
                manifest["spec"]["overload"] = overload
        place.apply(manifests)
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
        boot = self.place.boot_document()
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


def test_history_that_goes_back_is_noticed_and_followed(
    api: ControlPlane, operator: Process, namespace: str
) -> None:
    with ExitStack() as stack:
        scene = Scene(Place(api, namespace, stack))
        scene.until_agreed()
        backup, weights_before = api.back_up_etcd(), dict(scene.weights)
        api.age_etcd(1000)  # What follows is later than anything in the new history will be for a while.
        for weight in (7, 8, 9):
            scene.change(weight)
            scene.until_agreed()
        scene.delete()
        extra = {"apiVersion": "fairserve.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "later"}}
        scene.place.apply([{**extra, "spec": {"weight": 5}}])
        scene.weights["later"] = 5
        scene.until_agreed()
        generation = scene.sidecars[0].generation

        # At rest: nothing happens to the objects but that they are what they were.
        api.restore_etcd(backup)
        scene.weights = weights_before
        scene.until_agreed()
        assert scene.sidecars[0].generation > generation
        # In the new history, whose versions are all lower than what was known.
        scene.change(4)
        scene.delete()
        scene.until_agreed()
        assert "history went back" in operator.log_tail(1000)
        generations = [told.body.generation for told in scene.sidecars[0].configs]
        assert generations == sorted(generations)


def test_api_server_that_is_away_for_a_minute_stops_nothing(
    api: ControlPlane, operator: Process, namespace: str
) -> None:
    with FakePrometheus() as prometheus, ExitStack() as stack:
        prometheus.answer = lambda _: number("1")
        overload = {
            "prometheus": {"url": prometheus.url},
            "evaluationInterval": "200ms",
            "staleAfter": "2s",
            "holdDown": "0s",
            "onStale": "Disarm",
            "signals": [{"name": "mine", "query": "vector(1)", "threshold": 3, "for": "0s"}],
        }
        scene = Scene(Place(api, namespace, stack), overload)
        scene.until_agreed()
        a, b = scene.sidecars
        b.hang()
        scene.change(7)
        until(lambda: weights(a.config)["team-a"] == 7, "the change in one of two")

        api.stop_apiserver()
        try:
            b.go()
            until(lambda: b.generation == a.generation, "what was on its way")
            prometheus.answer = lambda _: number("9")
            until(lambda: a.armed and b.armed, "the overload to be told")
            a.forget()
            until(lambda: a.generation == b.generation and a.armed, "a sidecar that began anew")
            prometheus.answer = lambda _: Answer(b"away", 503)
            until(lambda: not a.armed and not b.armed, "what onStale says")
            prometheus.answer = lambda _: number("9")
            renewed = len(b.overloads)
            # The better part of a minute, each renewal of the lease after a fifth of a second or more.
            until(lambda: len(b.overloads) > renewed + 220, "renewals of the lease")
            assert b.armed
        finally:
            api.start_apiserver()
            api.restart_controller_manager()
        scene.change(8)
        scene.delete()
        scene.until_agreed()
        scene.place.until_condition("servingpools", "llm", "Overloaded", "True")
        assert operator.alive


def test_field_of_a_newer_schema_is_named_and_spares_the_others(
    scene: Scene, api: ControlPlane, proxy: ApiProxy
) -> None:
    crd = yaml.safe_load((REPOSITORY / "crds" / "fairserve.dev_tenants.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["burst"] = {"type": "integer"}
    try:
        api.apply(json.dumps(crd))
        until(lambda: scene.place.patch("tenants", "team-b", {"burst": 3})["spec"].get("burst"), "the field")
        scene.place.patch("tenants", "team-b", {"burst": None})
        proxy.cut(None)  # Watches from before leave the field out for as long as the API server keeps them.
        until(lambda: proxy.watching == WATCHES, "all watches")
        scene.place.patch("tenants", "team-b", {"burst": 3})
        told = scene.place.until_condition("tenants", "team-b", "Accepted", "False")
        assert "spec.burst: unknown field" in told["message"]
        del scene.weights["team-b"]
        scene.change(3)
        scene.until_agreed()
        scene.place.patch("tenants", "team-b", {"burst": None})
        scene.weights["team-b"] = scene.place.get("tenants", "team-b")["spec"].get("weight", 1)
        scene.until_agreed()
    finally:
        api.apply(REPOSITORY / "crds")


def test_two_operators_that_know_nothing_of_each_other_agree(scene: Scene, tmp_path: Path) -> None:
    place = scene.place
    before = scene.sidecars[0].generation
    kubeconfig = place.control_plane.kubeconfig
    named = [("tenants", "team-a"), ("servingpools", "llm"), ("secrets", "fairserve-llm")]

    def versions() -> list[str]:
        return [place.get(kind, name)["metadata"]["resourceVersion"] for kind, name in named]

    with operator_process(kubeconfig, tmp_path / "log", "-n", place.namespace) as second:
        second.wait_until(lambda: "all objects are known" in second.log_tail(100), 60, "it to know all")
        for weight in (5, 6, 7):
            scene.change(weight)
            scene.until_agreed()
        assert scene.sidecars[0].generation == before + 3
        settled = versions()
        looks = [len(sidecar.calls) for sidecar in scene.sidecars]
        for name in ("a", "b"):  # Both operators look again, and find nothing to write.
            place.restart_container(name)
        for sidecar, known in zip(scene.sidecars, looks, strict=True):
            until(lambda sidecar=sidecar, known=known: len(sidecar.calls) >= known + 2, "both to look")
        scene.until_agreed()
        assert scene.sidecars[0].generation == before + 3
        assert versions()[2] == settled[2]
