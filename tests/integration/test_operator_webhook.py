"""The webhook of two replicas, called by a real API server, with no more rights than the examples grant."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fairserve_operator.manifests.certificates import Pair, new_authority, new_serving, read_certificates
from tests.integration.operating import Place, install_custom_resources, until
from tests.integration.webhooks import LABELLED, Balancer, Cluster, Replica, creating, sidecar
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane, KubectlError
from tests.parts.process import free_port

SHAPES = REPOSITORY / "tests" / "unit" / "operator" / "shapes"
NAMESPACE = "webhook-test"
CONTROL_PORT = 9007


class Installed:
    """Two replicas of which one acts, a ServingPool `llm`, and the webhook."""

    def __init__(self, cluster: Cluster, kubeconfig: Path, folder: Path, replicas: list[Replica]) -> None:
        self.cluster = cluster
        self.kubeconfig = kubeconfig
        self.folder = folder
        self.replicas = replicas

    def kubectl(self, *args: str | Path, stdin: str | None = None) -> str:
        return self.cluster.control_plane.kubectl("-n", self.cluster.namespace, *args, stdin=stdin)

    def until_all_serve_another(self, before: str) -> None:
        until(lambda: self.cluster.secret()["tls.crt"] != before, "another certificate")
        wanted = self.cluster.secret()["tls.crt"]
        until(lambda: {each.certificate() for each in self.replicas} == {wanted}, "everybody to serve by it")


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    install_custom_resources(control_plane)
    control_plane.create_namespace(NAMESPACE)
    folder = tmp_path_factory.mktemp("webhook")
    with ExitStack() as stack:
        control_plane.kubectl(
            "apply", "-n", NAMESPACE, "-f", REPOSITORY / "examples" / "operator" / "rbac.yaml"
        )
        kubeconfig = control_plane.service_account_kubeconfig(NAMESPACE, "fairserve-operator")
        place = Place(control_plane, NAMESPACE, stack)
        place.control_port = CONTROL_PORT
        metadata = {"name": "llm"}
        spec = {"selector": {"matchLabels": {"app": "vllm"}}}
        place.apply(
            [
                {
                    "apiVersion": "fairserve.dev/v1alpha1",
                    "kind": "ServingPool",
                    "metadata": metadata,
                    "spec": spec,
                }
            ]
        )
        replicas = [
            Replica(
                kubeconfig,
                folder,
                name,
                "--leader-elect",
                "--webhook-host=127.0.0.1",
                "--webhook-secret=fairserve-webhook",
                f"--webhook-configuration=fairserve-{NAMESPACE}",
            )
            for name in ("one", "two")
        ]
        port = free_port()
        stack.enter_context(Balancer(replicas, port))
        cluster = Cluster(control_plane, NAMESPACE, port)
        control_plane.apply(cluster.manifest("rbac-webhook.yaml"))
        cluster.install()
        stack.callback(control_plane.request, "DELETE", f"/api/v1/namespaces/{NAMESPACE}")
        stack.callback(cluster.remove)
        for each in replicas:
            stack.callback(each.process.kill)
            each.process.start()
        for each in replicas:
            each.until_ready()
        until(lambda: sidecar(cluster.try_pod("p", LABELLED)), "the first sidecar")
        yield Installed(cluster, kubeconfig, folder, replicas)
        for each in replicas:
            log = each.process.log_tail(100_000)
            assert "Traceback" not in log, log
            assert "orbidden" not in log, log
            assert cluster.secret()["tls.key"].splitlines()[1] not in log


def test_pods_that_a_deployment_makes_have_the_sidecar(installed: Installed) -> None:
    cluster = installed.cluster
    deployment = (SHAPES / "deployment.yaml").read_text()
    patch = json.dumps({"spec": {"template": {"metadata": {"labels": LABELLED}}}})
    labelled = installed.kubectl("patch", "--local", "-o", "json", "-p", patch, "-f", "-", stdin=deployment)
    installed.kubectl("apply", "-f", "-", stdin=labelled)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=fairserve.dev/inject=llm"
    wanted = json.loads(labelled)["spec"].get("replicas", 1)

    def pods() -> list[dict[str, Any]] | None:
        items = cluster.control_plane.request("GET", path)["items"]
        return items if len(items) == wanted else None

    (pod, *_) = until(pods, "all Pods")
    injected = sidecar(pod)
    assert injected is not None
    assert injected["image"] == "sidecar:7"
    assert injected["restartPolicy"] == "Always"
    assert f"--control=0.0.0.0:{CONTROL_PORT}" in injected["args"], "the ServingPool's"
    assert "--host 127.0.0.1 --port 18000" in " ".join(pod["spec"]["containers"][0]["args"])
    # Whoever has a sidecar, from `fairserve inject` say, keeps it.
    again = installed.kubectl(
        "create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(renamed(pod))
    )
    assert json.loads(again)["spec"]["initContainers"] == pod["spec"]["initContainers"]


def renamed(pod: dict[str, Any]) -> dict[str, Any]:
    kept = {key: pod["metadata"][key] for key in ("labels", "annotations")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "again", **kept}, "spec": pod["spec"]}


def test_only_labelled_pods_are_touched(installed: Installed) -> None:
    before = [each.figures() for each in installed.replicas]
    pod = installed.cluster.try_pod("plain", {"app": "vllm"})
    assert sidecar(pod) is None
    assert "args" not in pod["spec"]["containers"][0]
    assert admissions(before) == admissions([each.figures() for each in installed.replicas]), (
        "nobody was asked"
    )


def admissions(figures: list[dict[str, float]]) -> float:
    return sum(value for each in figures for name, value in each.items() if "admission_total" in name)


def test_a_refusal_can_be_read_where_somebody_waits_for_the_pod(installed: Installed) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "secured", "labels": LABELLED},
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai", "args": ["--uds=/tmp/s"]}]},
    }
    with pytest.raises(KubectlError) as refused:
        installed.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    words = str(refused.value)
    assert 'admission webhook "inject.fairserve.dev" denied the request' in words
    assert f"Pod {NAMESPACE}/secured: spec.containers[0].args: " in words


def test_a_pod_may_come_before_its_pool_and_its_author_is_told(installed: Installed) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "early", "labels": {"fairserve.dev/inject": "later"}},
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai"}]},
    }
    command = ("create", "--dry-run=server", "-o", "json", "-f", "-")
    taken = json.loads(installed.kubectl(*command, stdin=json.dumps(pod)))
    injected = sidecar(taken)
    assert injected is not None
    assert "--control=0.0.0.0:8001" in injected["args"]
    with pytest.raises(KubectlError, match=f"there is no ServingPool {NAMESPACE}/later yet"):
        installed.kubectl("--warnings-as-errors", *command, stdin=json.dumps(pod))


def review(pod: dict[str, Any]) -> dict[str, Any]:
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    asked = {"uid": "u", "kind": kind, "operation": "CREATE", "namespace": NAMESPACE, "object": pod}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}


def test_every_replica_answers_whichever_acts_and_whatever_comes(installed: Installed) -> None:
    assert {each.state()["acting"] for each in installed.replicas} == {True, False}
    container = {"name": "vllm", "image": "vllm/vllm-openai"}
    asked = review({"metadata": {"name": "p", "labels": LABELLED}, "spec": {"containers": [container]}})
    for each in installed.replicas:
        client = each.client(installed.cluster.trusted())
        assert client.json("POST", "/inject", asked)["response"]["patchType"] == "JSONPatch"
        for status, body, content_type in (
            (400, {"kind": "Pod"}, "application/json"),
            (400, asked | {"apiVersion": "admission.k8s.io/v1beta1"}, "application/json"),
            (413, "x" * 3_200_000, "application/json"),
            (415, asked, "text/plain"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                client.call("POST", "/inject", body, content_type=content_type)
            assert refused.value.code == status
        assert client.json("POST", "/inject", asked)["response"]["allowed"] is True
        figures = each.figures()
        assert figures['fairserve_operator_admission_total{outcome="bad"}'] == 4
        assert figures['fairserve_operator_admission_total{outcome="injected"}'] >= 2
        assert figures["fairserve_operator_admission_seconds_count"] >= 6
        days = (
            figures["fairserve_operator_webhook_certificate_expiry_timestamp_seconds"] - time.time()
        ) / 86400
        assert 60 < days <= 90


def test_no_pod_fails_while_the_secret_is_deleted(installed: Installed) -> None:
    cluster = installed.cluster
    before = cluster.secret()
    with creating(cluster):
        installed.kubectl("delete", "secret", "fairserve-webhook")
        installed.until_all_serve_another(before["tls.crt"])
    after = cluster.secret()
    assert after["ca.crt"].endswith(before["ca.crt"]), "the old one is trusted for a while"
    assert cluster.trusted() == after["ca.crt"]


def test_no_pod_fails_while_an_almost_expired_certificate_is_renewed(installed: Installed) -> None:
    cluster = installed.cluster
    kept = cluster.secret()
    newest = read_certificates(kept["ca.crt"].encode())[0]
    old = new_serving(Pair(newest, kept["ca.key"].encode()), ["127.0.0.1"], time.time() - 89 * 86400)
    data = {"tls.crt": old.certificate.pem, "tls.key": old.key}
    patch = {"data": {key: base64.b64encode(value).decode() for key, value in data.items()}}
    with creating(cluster):
        installed.kubectl("patch", "secret", "fairserve-webhook", "-p", json.dumps(patch))
        installed.until_all_serve_another(old.certificate.pem.decode())
    assert cluster.secret()["ca.key"] == kept["ca.key"]


def test_a_wiped_bundle_is_put_back(installed: Installed) -> None:
    cluster = installed.cluster
    for wipe in (cluster.wipe, cluster.install):
        wipe()
        until(lambda: cluster.trusted() == cluster.secret()["ca.crt"], "caBundle")
        until(lambda: sidecar(cluster.try_pod("p", LABELLED)), "Pods")


def test_follows_a_folder_and_is_ready_once_it_has_a_certificate(
    installed: Installed, tmp_path: Path
) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    described = Replica(installed.kubeconfig, tmp_path, "three", f"--webhook-certificate-dir={folder}")
    authority = new_authority(time.time())
    with described.process:
        until(lambda: described.state()["reasons"] == ["the webhook has no certificate yet"], "all else")
        for name in ("a.example.com", "b.example.com"):
            pair = new_serving(authority, [name, "127.0.0.1"], time.time())
            (folder / "tls.key").write_bytes(pair.key)
            (folder / "tls.crt").write_bytes(pair.certificate.pem)
            described.until_ready()
            pem = pair.certificate.pem.decode()
            until(lambda pem=pem: described.certificate() == pem, name)
        assert described.client(authority.certificate.pem.decode()).answers("/nothing") is False
        described.process.kill()


def test_no_pod_fails_while_a_replica_leaves_in_order(installed: Installed) -> None:
    (acting,) = (each for each in installed.replicas if each.state()["acting"])
    with creating(installed.cluster):
        acting.process.stop(grace_s=30)
        until(
            lambda: all(each.state()["acting"] for each in installed.replicas if each is not acting),
            "the other",
        )
    assert "Traceback" not in acting.process.log_tail(1000)
    acting.process.start()
    acting.until_ready()


def test_what_becomes_of_pods_while_replicas_die(installed: Installed) -> None:
    cluster, (one, two) = installed.cluster, installed.replicas
    one.process.kill()
    until(lambda: sidecar(cluster.try_pod("p", LABELLED)), "the other to answer")
    two.process.kill()

    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.try_pod("p", LABELLED)
    assert refused.value.code == 500
    assert "failed calling webhook" in str(refused.value)
    assert sidecar(cluster.try_pod("plain", {"app": "vllm"})) is None

    cluster.install(failurePolicy="Ignore")
    until(lambda: sidecar(cluster.try_pod("p", LABELLED)) is None, "a Pod that nobody was asked about")
