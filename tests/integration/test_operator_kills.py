"""The operator killed at any moment of many changes: afterwards everything agrees with the objects."""

from __future__ import annotations

import base64
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sidecar_control import SidecarControl
from tests.integration.agreement import disagreements
from tests.integration.operating import Place, custom, operator_process, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import DeadlineError

CHANGES = 200
KILLS = 8
#: As long as a change takes at most on a quiet machine: any step of it may be the one that is cut short.
LONGEST_CHANGE_S = 0.4


class Changing:
    """A namespace in which anything changes. Each method is one change, possible at any time."""

    def __init__(self, place: Place, rng: random.Random) -> None:
        self._place = place
        self._rng = rng
        self._made = 0
        self.tenants: list[str] = []
        self.applications: list[str] = []
        self.sidecars: dict[str, SidecarControl] = {}

    def begin(self) -> None:
        """Make the objects that the changes begin with."""
        for name in ("hop-1", "hop-2"):
            self._put_secret(name)
        self._post("servingpools", "ServingPool", "llm", self._pool())
        for make in (self.add_tenant,) * 4 + (self.add_application,) * 2 + (self.add_pod,) * 3:
            make()

    def any(self) -> None:
        """Make one change of any kind."""
        common: list[Callable[[], None]] = [self.weigh, self.rotate, self.identify, self.profile]
        rare = [
            self.add_tenant,
            self.delete_tenant,
            self.add_application,
            self.delete_application,
            self.configure,
            self.lose_secret,
            self.add_pod,
            self.delete_pod,
            self.restart_pod,
        ]
        self._rng.choice(common * 3 + rare)()

    def weigh(self) -> None:
        self._place.patch("tenants", self._tenant(), {"weight": self._rng.randint(1, 1000)})

    def rotate(self) -> None:
        self._put_secret(self._tenant())

    def lose_secret(self) -> None:
        name = self._tenant()
        if not self._place.gone("secrets", name):
            self._place.delete("secrets", name)

    def identify(self) -> None:
        name = self._tenant()
        known = [self._key(name), {"header": {"name": "x-team", "value": f"{name}-{self._rng.random()}"}}]
        self._place.patch("tenants", name, {"identity": self._rng.sample(known, self._rng.randint(0, 2))})

    def profile(self) -> None:
        name = self._rng.choice(self.applications)
        self._place.patch("applications", name, {"profile": {"outputTokens": self._rng.randint(1, 5000)}})

    def configure(self) -> None:
        self._place.patch("servingpools", "llm", self._pool())

    def add_tenant(self) -> None:
        name = self._name("team")
        self._put_secret(name)
        self._post("tenants", "Tenant", name, {"identity": [self._key(name)]})
        self.tenants.append(name)

    def delete_tenant(self) -> None:
        if len(self.tenants) > 2:
            self._place.delete("tenants", self._taken(self.tenants))

    def add_application(self) -> None:
        name = self._name("app")
        spec = {"profile": {"inputTokens": 100, "outputTokens": self._rng.randint(1, 5000)}}
        self._post("applications", "Application", name, spec)
        self.applications.append(name)

    def delete_application(self) -> None:
        if len(self.applications) > 2:
            self._place.delete("applications", self._taken(self.applications))

    def add_pod(self) -> None:
        if len(self.sidecars) < 5:
            name = self._name("pod")
            self.sidecars[name] = self._place.pod(name)

    def delete_pod(self) -> None:
        if len(self.sidecars) > 2:
            name = self._taken(list(self.sidecars))
            self._place.control_plane.delete_pod(self._place.namespace, name)
            self.sidecars.pop(name).stop()

    def restart_pod(self) -> None:
        name = self._rng.choice(list(self.sidecars))
        self.sidecars[name].forget()
        self._place.restart_container(name)

    def _pool(self) -> dict[str, Any]:
        hops = self._rng.sample(["hop-1", "hop-2"], self._rng.randint(0, 2))
        return {
            "selector": {"matchLabels": {"app": "vllm"}},
            "sidecar": {"controlPort": self._place.control_port},
            "throttling": {"mode": self._rng.choice(["Enforce", "Shadow"])},
            "hopTokens": [{"name": name, "key": "api-key"} for name in hops],
        }

    def _key(self, secret: str) -> dict[str, Any]:
        return {"apiKey": {"secretRef": {"name": secret, "key": "api-key"}}}

    def _tenant(self) -> str:
        return self._rng.choice(self.tenants)

    def _taken(self, names: list[str]) -> str:
        name = self._rng.choice(names)
        names.remove(name)
        return name

    def _name(self, what: str) -> str:
        self._made += 1
        return f"{what}-{self._made}"

    def _post(self, plural: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        body = custom(kind, name, spec)
        self._place.control_plane.request("POST", self._place.path(plural, ""), body)

    def _put_secret(self, name: str) -> None:
        value = base64.b64encode(f"key-{self._rng.random()}".encode()).decode()
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": {"api-key": value},
        }
        path = f"{self._place.path('secrets', name)}?fieldManager=test&force=true"
        self._place.control_plane.request("PATCH", path, body, content_type="application/apply-patch+yaml")


@pytest.fixture
def place(api: ControlPlane, namespace: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(api, namespace, stack)


def test_operator_killed_at_random_points_of_200_changes_loses_nothing(place: Place, tmp_path: Path) -> None:
    seed = int(os.environ.get("FAIRSERVE_SEED", "1"))
    print(f"FAIRSERVE_SEED={seed}")
    rng = random.Random(seed)
    changing = Changing(place, rng)
    changing.begin()

    def agreed() -> None:
        try:
            until(lambda: not disagreements(place, changing.sidecars), "agreement")
        except DeadlineError:
            assert disagreements(place, changing.sidecars) == []

    def at_work(calls: int) -> bool:
        return sum(len(sidecar.calls) for sidecar in changing.sidecars.values()) > calls

    with operator_process(
        place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace
    ) as operator:
        agreed()
        for kill in range(KILLS):
            at = rng.randrange(CHANGES // KILLS)
            for number in range(CHANGES // KILLS):
                changing.any()
                # Now and then some changes come together, and now and then each is done before the next.
                time.sleep(rng.choice([0.0, 0.0, LONGEST_CHANGE_S / 10, LONGEST_CHANGE_S / 5]))
                if number == at:
                    time.sleep(rng.uniform(0.0, LONGEST_CHANGE_S))
                    operator.kill()
                    calls = sum(len(sidecar.calls) for sidecar in changing.sidecars.values())
                    operator.start()
                    if kill % 3:  # Else what follows happens while it starts, and it may be killed then.
                        until(lambda calls=calls: at_work(calls), "its first call")  # type: ignore[misc]
        agreed()
        assert "Traceback" not in operator.log_tail(100_000)
        operator.kill()
    place.patch("tenants", changing.tenants[0], {"weight": 2000})  # Which nobody delivers: that must show.
    told = " ".join(disagreements(place, changing.sidecars))
    assert all(f"Pod {name} runs other content" in told for name in changing.sidecars)
    assert "the boot Secret has other content" in told
    assert "the status is of generation" in told
