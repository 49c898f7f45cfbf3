"""Overload from end to end: a real Prometheus, the real operator, real conditions, fake control ports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from tests.fakes.prometheus import Answer, FakePrometheus, certificate, number
from tests.fakes.sidecar_control import SidecarControl
from tests.integration.operating import Place, install_custom_resources, operator_process, two_teams, until
from tests.parts.controlplane import ControlPlane
from tests.parts.prometheus import Prometheus


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Exporter:
    """Serves /metrics as a sidecar of the pool would; `wait` is the age of its oldest call."""

    def __init__(self, pool: str) -> None:
        registry = CollectorRegistry()
        namespace, name = pool.split("/")
        Gauge("fairserve_pool_info", "Pool.", ["pool_namespace", "pool"], registry=registry).labels(
            namespace, name
        ).set(1)
        self.wait = Gauge("fairserve_queue_oldest_wait_seconds", "Wait.", registry=registry)
        self._server = make_server("127.0.0.1", 0, make_wsgi_app(registry), handler_class=_QuietHandler)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Exporter:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Iterator[Place]:
    """A namespace with our kinds."""
    install_custom_resources(control_plane)
    with ExitStack() as stack:
        yield Place(control_plane, namespace, stack)


def manifests(prometheus: Prometheus | FakePrometheus, on_stale: str) -> list[dict[str, Any]]:
    """The example, with a pool that evaluates fast."""
    signal = {"name": "queue-wait", "builtin": "QueueWait", "threshold": 3, "clearThreshold": 1, "for": "0s"}
    everything = two_teams()
    pool = next(each for each in everything if each["kind"] == "ServingPool")
    pool["spec"]["overload"] = {
        "prometheus": {"url": prometheus.url},
        "evaluationInterval": "200ms",
        "staleAfter": "2s",
        "holdDown": "0s",
        "onStale": on_stale,
        "signals": [signal],
    }
    return everything


def all_armed(sidecars: list[SidecarControl], armed: bool) -> bool:
    return all(sidecar.overloads and sidecar.armed is armed for sidecar in sidecars)


def test_signal_over_its_threshold_arms_every_sidecar_and_staleness_follows_on_stale(
    place: Place, start_prometheus: Callable[..., Prometheus], tmp_path: Path
) -> None:
    operator = operator_process(place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace)
    with Exporter(f"{place.namespace}/llm") as exporter, operator:
        prometheus = start_prometheus([{"targets": [exporter.address]}], scrape_interval_s=0.2)
        place.apply(manifests(prometheus, "Disarm"))
        sidecars = [place.pod("a"), place.pod("b")]

        quiet = place.until_condition("servingpools", "llm", "Overloaded", "False")
        assert quiet["reason"] == "SignalsClear", quiet
        until(lambda: all_armed(sidecars, armed=False), "the disarmed state in every sidecar")

        exporter.wait.set(12.5)
        up = place.until_condition("servingpools", "llm", "Overloaded", "True")
        assert up["reason"] == "SignalAboveThreshold"
        assert all(word in up["message"] for word in ("queue-wait", "12.5", "3"))
        until(lambda: all_armed(sidecars, armed=True), "the armed state in every sidecar")
        assert sidecars[0].overloads[-1].body["lease_s"] == 2.0
        assert events(place) == ["Overloaded"]

        sidecars.append(place.pod("c"))
        until(lambda: all_armed(sidecars, armed=True), "the armed state in the new pod")
        assert all(told.body["armed"] for told in sidecars[2].overloads)

        operator.kill()
        heard = len(sidecars[0].overloads)
        operator.start()
        until(lambda: len(sidecars[0].overloads) > heard + 3, "evaluations of the restarted operator")
        assert all(told.body["armed"] for told in sidecars[0].overloads[heard:])
        assert place.condition("servingpools", "llm", "Overloaded") == up

        prometheus.kill()
        stale = place.until_condition("servingpools", "llm", "Overloaded", "False")
        assert stale["reason"] == "SignalsStale"
        assert "onStale is Disarm" in stale["message"]
        assert "not read: queue-wait: no connection to http://127.0.0.1:" in stale["message"]
        until(lambda: all_armed(sidecars, armed=False), "the disarmed state in every sidecar")

        prometheus.start()
        place.until_condition("servingpools", "llm", "Overloaded", "True")
        exporter.wait.set(0)
        place.until_condition("servingpools", "llm", "Overloaded", "False")
        until(lambda: all_armed(sidecars, armed=False), "the disarmed state in every sidecar")
        until(lambda: events(place) == ["Overloaded", "Clear"] * 2, "an Event for each transition")


def test_signals_without_any_series_are_staleness_and_not_zero(
    place: Place, start_prometheus: Callable[..., Prometheus], tmp_path: Path
) -> None:
    prometheus = start_prometheus([])
    with operator_process(place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace):
        place.apply(manifests(prometheus, "Arm"))
        sidecar = place.pod("a")
        armed = place.until_condition("servingpools", "llm", "Overloaded", "True")
    assert armed["reason"] == "SignalsStale"
    assert "finds no series" in armed["message"]
    assert sidecar.armed


CREDENTIALS = "prometheus-credentials"


def put_credentials(place: Place, **entries: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CREDENTIALS}, "stringData": entries}
    place.control_plane.kubectl("delete", "secret", CREDENTIALS, "-n", place.namespace, "--ignore-not-found")
    place.apply([secret])


def test_credentials_come_from_a_secret_that_may_be_missing_wrong_and_rotated(
    place: Place, tmp_path: Path
) -> None:
    files = certificate(tmp_path, "prometheus")
    with ExitStack() as stack:
        prometheus = stack.enter_context(FakePrometheus(files))
        prometheus.answer = lambda asked: (
            number("7") if asked.authorization == "Bearer right" else Answer(b"who is it?", 401)
        )
        everything = manifests(prometheus, "Hold")
        overload = next(each for each in everything if each["kind"] == "ServingPool")["spec"]["overload"]
        overload["signals"] = [{"name": "mine", "query": "vector(7)", "threshold": 3}]
        overload["prometheus"] |= {
            "auth": {"bearerToken": {"secretRef": {"name": CREDENTIALS, "key": "token"}}},
            "tls": {"ca": {"name": CREDENTIALS, "key": "ca"}},
        }
        log = tmp_path / "log"
        stack.enter_context(operator_process(place.control_plane.kubeconfig, log, "-n", place.namespace))
        place.apply(everything)
        place.pod("a")

        missing = place.until_condition("servingpools", "llm", "ResolvedRefs", "False")
        assert missing["message"].startswith(
            f'spec.overload.prometheus.auth.bearerToken.secretRef: Secret "{CREDENTIALS}" not found'
        )
        place.until_condition("servingpools", "llm", "Programmed", "True")

        def told(words: str) -> None:
            until(
                lambda: words in place.condition("servingpools", "llm", "Overloaded").get("message", ""),
                words,
            )

        put_credentials(place, token="hush-hush", ca="none")
        told("the CA is not a certificate in PEM")
        place.until_condition("servingpools", "llm", "ResolvedRefs", "True")
        put_credentials(place, token="hush-hush", ca=certificate(tmp_path, "other")[0].read_text())
        told(f"not read: mine: no trust in {prometheus.url}: self-signed certificate")
        assert prometheus.asked == []
        put_credentials(place, token="hush-hush", ca=files[0].read_text())
        told(f"mine: {prometheus.url} refuses the credentials: HTTP 401")
        put_credentials(place, token="right\n", ca=files[0].read_text())
        up = place.until_condition("servingpools", "llm", "Overloaded", "True")
        pool = place.get("servingpools", "llm")
        since = pool["status"]["overload"]["since"]
        assert up["message"] == f"overloaded since {since}: mine is 7 (threshold 3, clears below 2.4)"
        assert "hush-hush" not in log.read_text() + str(pool)


def events(place: Place) -> list[str]:
    """Reasons of the pool's Events, oldest first."""
    path = f"/api/v1/namespaces/{place.namespace}/events?fieldSelector=involvedObject.kind=ServingPool"
    items = place.control_plane.request("GET", path)["items"]
    ordered = sorted(items, key=lambda each: int(each["metadata"]["resourceVersion"]))
    return [each["reason"] for each in ordered]
