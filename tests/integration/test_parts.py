"""The real parts work: a control plane, a Prometheus, and the processes around them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import CollectorRegistry, Gauge, make_wsgi_app

from tests.parts.controlplane import ControlPlane, KubectlError
from tests.parts.process import DeadlineError, Process, ProcessEndedError, free_port, group_members, poll
from tests.parts.prometheus import Prometheus


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def exporter() -> Iterator[str]:
    """The address of a server whose one metric is named like vLLM's, and negotiates the spelling."""
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_waiting", "Waiting.", registry=registry).set(7)
    with make_server("127.0.0.1", 0, make_wsgi_app(registry), handler_class=_QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# The control plane.


def test_apiserver_applies_and_returns_an_object(control_plane: ControlPlane, namespace: str) -> None:
    metadata = {"name": "one", "namespace": namespace}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}
    control_plane.apply(json.dumps(manifest))
    assert (
        control_plane.kubectl("-n", namespace, "get", "configmap", "one", "-o", "jsonpath={.data.a}") == "b"
    )


def test_kubectl_error_holds_the_servers_words(control_plane: ControlPlane) -> None:
    with pytest.raises(KubectlError, match='configmaps "absent" not found'):
        control_plane.kubectl("get", "configmap", "absent")


def test_fake_pod_is_ready_at_its_address(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.fake_pod(namespace, "engine-0", "127.0.0.7", {"app": "engine"}, {"http": 8000})
    control_plane.kubectl(
        "-n", namespace, "wait", "--for=condition=Ready", "pod", "-l", "app=engine", "--timeout=5s"
    )
    pod = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/pods/engine-0")
    assert pod["status"]["podIP"] == "127.0.0.7"
    assert pod["status"]["phase"] == "Running"
    assert pod["spec"]["containers"][0]["ports"] == [
        {"name": "http", "containerPort": 8000, "protocol": "TCP"}
    ]


def test_fake_pod_can_turn_unready_and_be_deleted(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.fake_pod(namespace, "engine-0", "127.0.0.7")
    pod = control_plane.set_pod_ready(namespace, "engine-0", False)
    ready = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
    assert ready["Ready"] == "False"
    control_plane.delete_pod(namespace, "engine-0")
    assert control_plane.kubectl("-n", namespace, "get", "pods", "-o", "name") == ""


def test_service_account_has_only_its_rights(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("-n", namespace, "create", "serviceaccount", "reader")
    control_plane.kubectl(
        "-n", namespace, "create", "role", "reader", "--verb=get,list", "--resource=configmaps"
    )
    control_plane.kubectl(
        "-n",
        namespace,
        "create",
        "rolebinding",
        "reader",
        "--role=reader",
        f"--serviceaccount={namespace}:reader",
    )
    as_reader = f"--kubeconfig={control_plane.service_account_kubeconfig(namespace, 'reader')}"
    assert "kube-root-ca.crt" in poll(
        lambda: control_plane.kubectl(as_reader, "get", "configmaps", "-o", "name"), 10.0, "the reader's list"
    )
    with pytest.raises(KubectlError, match="Forbidden"):
        control_plane.kubectl(as_reader, "get", "secrets")


def test_apiserver_restarts_with_its_data(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("-n", namespace, "create", "configmap", "kept")
    control_plane.stop_apiserver()
    with pytest.raises(OSError, match="refused"):
        control_plane.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/kept")
    control_plane.start_apiserver()
    kept = control_plane.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/kept")
    assert kept["metadata"]["name"] == "kept"
    assert control_plane.controller_manager.alive


def test_nothing_of_a_stopped_control_plane_is_left() -> None:
    with ControlPlane() as short:
        groups = [process.pid for process in (short.etcd, short.apiserver, short.controller_manager)]
        assert all(group_members(group) for group in groups)
    assert [group_members(group) for group in groups] == [[], [], []]
    assert not short.directory.exists()


# Prometheus.


@pytest.mark.parametrize(
    ("legacy_names", "name"), [(False, "vllm:num_requests_waiting"), (True, "vllm_num_requests_waiting")]
)
def test_prometheus_stores_both_spellings(
    start_prometheus: Callable[..., Prometheus], exporter: str, legacy_names: bool, name: str
) -> None:
    prometheus = start_prometheus(
        [{"targets": [exporter], "labels": {"pod": "a"}}], legacy_names=legacy_names
    )
    query = '{__name__=~"vllm[:_]num_requests_waiting"}'
    (sample,) = prometheus.process.wait_until(lambda: prometheus.query(query), 20.0, "a sample")
    assert sample.value == 7.0
    assert sample.labels == {"__name__": name, "instance": exporter, "job": "test", "pod": "a"}


def test_prometheus_follows_its_targets(start_prometheus: Callable[..., Prometheus], exporter: str) -> None:
    prometheus = start_prometheus(scrape_interval_s=0.2)
    assert prometheus.query("up") == []
    prometheus.set_targets([{"targets": [exporter]}])
    prometheus.process.wait_until(lambda: prometheus.query("up == 1"), 20.0, "the new target")
    prometheus.set_targets([])
    prometheus.process.wait_until(lambda: not prometheus.query("up"), 20.0, "the end of the target")


def test_prometheus_keeps_its_data_over_a_crash(
    start_prometheus: Callable[..., Prometheus], exporter: str
) -> None:
    prometheus = start_prometheus([{"targets": [exporter]}])
    prometheus.process.wait_until(lambda: prometheus.query("up == 1"), 20.0, "a sample")
    prometheus.set_targets([])
    group = prometheus.process.pid
    prometheus.kill()
    assert group_members(group) == []
    with pytest.raises(OSError, match="refused"):
        prometheus.query("up")
    prometheus.start()
    assert prometheus.query("last_over_time(up[5m])")


# Processes.


def test_wait_until_fails_early_with_the_log(tmp_path: Path) -> None:
    with (
        Process("brief", ["sh", "-c", "echo the reason; exit 3"], tmp_path / "log") as process,
        pytest.raises(ProcessEndedError, match=r"(?s)waiting for nothing of brief.*the reason"),
    ):
        process.wait_until(lambda: False, 60.0, "nothing")


def test_wait_until_names_what_did_not_come(tmp_path: Path) -> None:
    with (
        Process("idle", ["sleep", "60"], tmp_path / "log") as process,
        pytest.raises(DeadlineError, match=r"waiting for rain of idle: not within 0\.05 s"),
    ):
        process.wait_until(lambda: False, 0.05, "rain")


def test_stop_ends_grandchildren_and_those_that_ignore_term(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo started; while true; do sleep 0.05; done"
    process = Process("stubborn", ["sh", "-c", script], tmp_path / "log").start()
    group = process.pid
    process.wait_until(lambda: "started" in process.log_tail() and len(group_members(group)) > 1, 10.0)
    process.stop(grace_s=0.1)
    assert group_members(group) == []
    assert not process.alive


def test_child_lives_on_when_the_thread_that_started_it_ends(tmp_path: Path) -> None:
    with Process(
        "lasting", ["sh", "-c", "while true; do sleep 0.01; echo tick; done"], tmp_path / "log"
    ) as first:
        first.stop()
        thread = threading.Thread(target=first.start)
        thread.start()
        thread.join()
        ticks = first.log_tail(10_000).count("tick")
        first.wait_until(lambda: first.log_tail(10_000).count("tick") > ticks + 3, 10.0, "more ticks")


def test_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from tests.parts.process import Process
child = Process("child", ["sleep", "60"], Path(sys.argv[1]) / "log").start()
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert group_members(child) == [child]
        parent.send_signal(signal.SIGKILL)
    poll(lambda: not group_members(child), 10.0, "the end of the child")


def test_free_ports_differ() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
