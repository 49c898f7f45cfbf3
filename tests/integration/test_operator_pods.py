"""Pods that fail in any way, at rest and during changes: who works gets its configuration, `Programmed` is
true of what was acknowledged truthfully, and nobody is called without pauses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.fakes.prometheus import FakePrometheus
from tests.fakes.sidecar_control import SidecarControl, Twist
from tests.integration.operating import Place, custom, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: Evaluations during which calls to a failing pod are counted. Each wakes its delivery once.
EVALUATIONS = 6


def instead(status: int, body: bytes) -> Twist:
    """The same answer to everything."""
    return lambda _call, _status, _honest: (status, body)


def with_(calls: tuple[str, ...], **lies: Callable[[Any], Any]) -> Twist:
    """Answers to these calls with fields that are not true."""

    def twist(call: str, status: int, honest: dict[str, Any]) -> tuple[int, bytes]:
        if call in calls and status == 200:
            honest |= {name: lie(honest[name]) for name, lie in lies.items()}
        return status, json.dumps(honest).encode()

    return twist


def always_ahead(by: int) -> Twist:
    """Has a newer document, whatever it is given."""

    def twist(call: str, status: int, honest: dict[str, Any]) -> tuple[int, bytes]:
        if call == "PUT /config" and status == 200:
            newer = {"error": "older than what runs", "generation": honest["generation"] + by, "hash": "x"}
            return 409, json.dumps(newer).encode()
        return status, json.dumps(honest).encode()

    return twist


PUT, STATE, ORDER = ("PUT /config",), ("GET /state",), "PUT /overload"
FAILING: dict[str, tuple[Twist, str]] = {
    "rubbish": (instead(200, b"<html>hello</html>"), "HTTP 200: <html>"),
    "nesting": (instead(200, b"[" * 100_000), "HTTP 200: [[["),
    "not text": (instead(200, b"\xff\x00\xfe"), "HTTP 200"),
    "401": (instead(401, b'{"error": "who are you?"}'), "HTTP 401: who are you?"),
    "500": (instead(500, b"oops"), "HTTP 500: oops"),
    "acknowledges an older one": (with_(PUT, generation=lambda g: g - 1), "acknowledged generation"),
    "acknowledges a newer one": (with_(PUT, generation=lambda g: g + 1), "acknowledged generation"),
    "acknowledges what it never got": (with_(PUT, generation=lambda _: 10**30), "acknowledged generation"),
    "acknowledges other content": (with_(PUT, hash=lambda _: "f" * 64), "acknowledged generation"),
    "state denies what was acknowledged": (
        with_((*STATE, ORDER), generation=lambda _: 1),
        "but says that it runs 1",
    ),
    "always ahead": (always_ahead(1), "runs generation"),
    "ahead of all numbers": (always_ahead(2**62), "runs generation"),
}
#: What shows at rest: the others lie in the answer to a push alone.
SHOWN_AT_REST = {"state denies what was acknowledged"}


class Pods:
    """A pool with a pod that works and one that doesn't; configuration and orders reach both."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.good, self.bad = place.pod("good"), place.pod("bad")
        self._weight = 1.0

    def change(self) -> Callable[[SidecarControl], bool]:
        """Change the configuration; returns what tells whether a sidecar has it."""
        self._weight += 1.0
        weight = self._weight
        self.place.patch("tenants", "team", {"weight": weight})
        return lambda sidecar: bool(sidecar.configs) and sidecar.config.tenants[0].weight == weight

    def calls(self) -> int:
        """Pushes and looks at the one that fails."""
        return len([call for call in self.bad.calls if ORDER not in call])

    def evaluations(self) -> None:
        """Let some evaluations pass."""
        heard = len(self.good.overloads)
        until(lambda: len(self.good.overloads) >= heard + EVALUATIONS, "some evaluations")

    def programmed(self, status: str) -> dict[str, Any]:
        """Wait until the Tenant says so of itself as it is now."""
        return self.place.until_condition("tenants", "team", "Programmed", status)


@pytest.fixture(scope="module")
def pods(api: ControlPlane, everywhere: Process) -> Iterator[Pods]:
    spec = {
        "selector": {"matchLabels": {"app": "vllm"}},
        "overload": {
            "evaluationInterval": "100ms",
            "signals": [{"name": "mine", "query": "vector(5)", "threshold": 100}],
        },
    }
    api.create_namespace("failing-pods")
    with ExitStack() as stack:
        stack.callback(api.request, "DELETE", "/api/v1/namespaces/failing-pods")
        place = Place(api, "failing-pods", stack)
        prometheus = stack.enter_context(FakePrometheus())
        spec["overload"]["prometheus"] = {"url": prometheus.url}  # type: ignore[index]
        place.apply([custom("ServingPool", "llm", spec), custom("Tenant", "team", {"weight": 1})])
        yield Pods(place)


@pytest.mark.parametrize("kind", FAILING)
def test_failing_pod_is_told_and_not_called_without_pauses(
    pods: Pods, kind: str, everywhere: Process
) -> None:
    pods.programmed("True")
    pods.bad.twist, words = FAILING[kind]
    try:
        calls, orders = pods.calls(), len(pods.good.overloads)
        pods.evaluations()
        if kind in SHOWN_AT_REST:
            assert words in pods.programmed("False")["message"]
        else:
            assert pods.place.condition("tenants", "team", "Programmed")["status"] == "True"
        has_it = pods.change()
        until(lambda: has_it(pods.good), "the change in the pod that works")
        told = until(
            lambda: (
                said
                if words in (said := pods.place.condition("tenants", "team", "Programmed")).get("message", "")
                else None
            ),
            words,
        )
        assert (told["status"], told["reason"]) == ("False", "PodFailing")
        assert 'pod "bad"' in told["message"]
        generation = pods.place.get("servingpools", "llm")["status"]["generation"]
        pods.evaluations()
        # An evaluation wakes a delivery that waits; each wake may push once, look once and try the whole.
        assert pods.calls() - calls <= 4 * (len(pods.good.overloads) - orders) + 20
        status = pods.place.get("servingpools", "llm")["status"]
        assert status["generation"] <= generation + 4  # Outdone twice, by one more than it has.
        assert [each["pod"] for each in status["pods"]["behind"]] == ["bad"]
        assert everywhere.alive
    finally:
        pods.bad.twist = None
    has_it = pods.change()
    pods.programmed("True")
    assert has_it(pods.good)
    assert has_it(pods.bad)


def test_slow_pod_is_waited_for_and_a_silent_one_is_not(pods: Pods) -> None:
    pods.programmed("True")
    pods.bad.delay_s = 0.5
    has_it = pods.change()
    pods.programmed("True")
    assert has_it(pods.bad)
    pods.bad.delay_s = 0.0
    pods.bad.hang()  # At rest: it accepts, and answers neither orders nor pushes.
    pods.evaluations()
    assert pods.place.condition("tenants", "team", "Programmed")["status"] == "True"
    has_it = pods.change()
    callers, orders = len(pods.bad.callers), len(pods.good.overloads)
    until(lambda: has_it(pods.good), "the change in the pod that answers")
    pods.evaluations()
    assert len(pods.bad.callers) - callers <= len(pods.good.overloads) - orders + 2
    pods.programmed("False")
    pods.bad.go()
    pods.programmed("True")
    assert has_it(pods.bad)
