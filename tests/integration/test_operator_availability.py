"""Two replicas of the operator with no more rights than the example grants: one acts, the other follows."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sidecar_control import SidecarControl
from tests.integration.operating import (
    PYTHONPATH,
    Place,
    install_custom_resources,
    operator_process,
    two_teams,
    until,
)
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port

#: Python imports this before anything else: a wall clock that a file sets.
SHIFTED_CLOCK = """
import time
true = time.time
def shifted():
    try:
        with open({!r}) as shift:
            return true() + float(shift.read())
    except FileNotFoundError:
        return true()
time.time = shifted
"""


class Replica:
    """One operator that campaigns under its name. `figures` is what its port says."""

    def __init__(self, place: Place, kubeconfig: Path, name: str, folder: Path) -> None:
        self.name = name
        listen = f"127.0.0.1:{free_port()}"
        described = operator_process(
            kubeconfig, folder / name, "--leader-elect", f"--identity={name}", f"--listen={listen}"
        )
        self._shift = folder / f"{name} shift"
        modules = folder / f"{name} modules"
        modules.mkdir()
        (modules / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(str(self._shift)))
        env = {"PYTHONPATH": f"{modules}:{PYTHONPATH['PYTHONPATH']}"}
        self.process = Process("operator", described.args, described.log, env=env)
        self._port = Client(f"http://{listen}")

    def shift_clock(self, seconds: float) -> None:
        """Set its wall clock that far off, while it runs."""
        shift = self._shift.with_suffix(".new")
        shift.write_text(str(seconds))
        shift.replace(self._shift)

    def ready(self) -> dict[str, Any]:
        return dict(self._port.json("GET", "/readyz"))

    def acts(self) -> bool:
        return bool(self.ready()["acting"])

    def figures(self) -> str:
        return self._port.call("GET", "/metrics")

    def wrote(self) -> list[str]:
        """What it sent beyond reading and its Lease."""
        calls = re.findall(r'_call_seconds_count\{call="((?:PUT|POST|PATCH) [^"]*)"', self.figures())
        return [*calls, *re.findall(r"(sidecar_call_seconds_count\{.*)", self.figures())]


class Pair:
    """Two replicas in front of two sidecars; the first acts."""

    def __init__(
        self, place: Place, replicas: tuple[Replica, Replica], sidecars: list[SidecarControl]
    ) -> None:
        self.place = place
        self.first, self.second = replicas
        self.sidecars = sidecars

    def lease(self) -> dict[str, Any]:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.place.namespace}/leases/fairserve-operator"
        return dict(self.place.control_plane.request("GET", path)["spec"])

    def callers(self) -> list[list[str]]:
        """Who called each sidecar, in order, repetitions left out."""
        return [_without_repetitions(sidecar.callers) for sidecar in self.sidecars]

    def change(self, weight: int) -> None:
        self.place.patch("tenants", "team-a", {"weight": weight})
        self.place.until_condition("tenants", "team-a", "Programmed", "True")
        for sidecar in self.sidecars:
            assert {each.name: each.weight for each in sidecar.config.tenants}["team-a"] == weight

    def until_second_acts(self) -> None:
        started = time.monotonic()
        until(self.second.acts, "the second to act")
        print(f"\nthe second acts after {time.monotonic() - started:.1f} s")


@pytest.fixture
def pair(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Pair]:
    install_custom_resources(control_plane)
    rights = REPOSITORY / "examples" / "operator" / "rbac.yaml"
    control_plane.kubectl("apply", "-n", namespace, "-f", rights)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "fairserve-operator")
    with ExitStack() as stack:
        place = Place(control_plane, namespace, stack)
        place.apply(two_teams())
        sidecars = [place.pod("a"), place.pod("b")]
        first, second = (Replica(place, kubeconfig, name, tmp_path) for name in ("one", "two"))
        stack.enter_context(first.process)
        until(first.acts, "the first to act")
        stack.enter_context(second.process)
        until(lambda: second.ready()["ready"], "the second to know everything")
        place.until_condition("tenants", "team-a", "Ready", "True")
        yield Pair(place, (first, second), sidecars)


def _without_repetitions(names: list[str]) -> list[str]:
    return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]


ONE, TWO = "fairserve-operator (one)", "fairserve-operator (two)"


def test_the_second_only_waits_and_follows_when_the_first_is_killed(pair: Pair) -> None:
    compiled = "fairserve_operator_compile_seconds_count"
    until(lambda: re.search(rf"^{compiled} [1-9]", pair.second.figures(), re.M), "the second to compile")
    pair.change(4)
    assert not pair.second.acts()
    assert pair.second.wrote() == []
    generation = pair.sidecars[0].generation

    pair.first.process.kill()
    pair.until_second_acts()
    pair.change(5)

    assert pair.callers() == [[ONE, TWO], [ONE, TWO]]
    assert pair.lease()["leaseTransitions"] == 1
    assert pair.sidecars[0].generation == generation + 1


def test_who_ends_in_order_is_followed_without_waiting_for_the_lease_to_end(pair: Pair) -> None:
    # That long, if the Lease were left to run out; what is released is taken at the next look.
    pair.first.process.stop()
    assert pair.lease()["holderIdentity"].partition("_")[0] in ("", "two")
    pair.until_second_acts()
    pair.change(6)


def test_who_was_held_up_acts_no_more_when_it_goes_on(pair: Pair) -> None:
    os.kill(pair.first.process.pid, signal.SIGSTOP)
    pair.until_second_acts()
    pair.change(7)
    os.kill(pair.first.process.pid, signal.SIGCONT)
    until(lambda: not pair.first.acts(), "the first to know that it has lost")
    pair.change(8)
    assert pair.callers() == [[ONE, TWO], [ONE, TWO]]
    assert pair.lease()["holderIdentity"].startswith("two_")
    assert pair.first.process.alive


def test_clocks_that_jump_by_hours_move_neither_lease_nor_status(pair: Pair) -> None:
    for weight, (first_s, second_s) in enumerate([(5 * 3600, 0), (-48 * 3600, 9 * 3600), (0, -3600)], 2):
        renewed = pair.lease()["renewTime"]
        pair.first.shift_clock(first_s)
        pair.second.shift_clock(second_s)
        pair.change(weight)
        until(lambda renewed=renewed: pair.lease()["renewTime"] != renewed, "a renewal")
        assert (pair.first.acts(), pair.second.acts()) == (True, False)
    assert pair.lease().get("leaseTransitions", 0) == 0
    two_days_ago = datetime.now() - timedelta(days=2)
    assert f"{two_days_ago:%Y-%m-%d}" in pair.first.process.log_tail(1000)  # The clock did jump.
    pair.first.process.kill()
    pair.until_second_acts()
    pair.change(9)
    assert pair.callers() == [[ONE, TWO], [ONE, TWO]]
    assert pair.lease()["leaseTransitions"] == 1
