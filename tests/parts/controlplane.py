"""A current Kubernetes control plane: etcd, API server and controller manager as processes on loopback.

There is no scheduler and no kubelet (`tests.parts.node` has them). Pods are made with `fake_pod`, which
writes the status that a kubelet would write, so that servers listening on 127.0.0.N stand for them. Two
things that follow: the objects of Services (EndpointSlices) list none of these Pods, since Kubernetes allows
no loopback address in them, and whoever deletes a Pod gracefully waits until somebody deletes it for good.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.parts import cache, golang
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port, poll

MODULE = cache.REPOSITORY / "tests" / "controlplane"

_PROGRAMS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}

_DEFINITIONS_S = 60.0
#: Long enough for a machine whose cores all build something else.
_START_DEADLINE_S = 120.0

#: Fixed: the API server wants an advertised address that is not loopback, though nothing ever connects to it.
_ADVERTISED = "10.250.0.1"


#: A real node's, from the same module.
_NODE_PROGRAMS = {
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
}


def ensure_programs() -> Path:
    """Return the cached folder with etcd, kube-apiserver, kube-controller-manager and kubectl."""
    announcement = (
        "building kube-apiserver, kube-controller-manager, kubectl and etcd (about 8 minutes the first time)"
    )
    return golang.ensure("controlplane", MODULE, _PROGRAMS, announcement, ldflags=_ldflags())


def ensure_node_programs() -> Path:
    """Return the cached folder with kubelet, kube-proxy and kube-scheduler."""
    announcement = "building kubelet, kube-proxy and kube-scheduler (about 3 minutes the first time)"
    return golang.ensure("node", MODULE, _NODE_PROGRAMS, announcement, ldflags=_ldflags())


def _ldflags() -> str:
    required = re.compile(r"^\s*(?:require )?k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)", re.MULTILINE)
    found = required.search((MODULE / "go.mod").read_text())
    if found is None:
        raise cache.BuildError(f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes")
    # Without these the server calls itself v0.0.0 and kubectl warns about the distance.
    values = zip(("gitVersion", "gitMajor", "gitMinor"), found.groups(), strict=True)
    return " ".join(
        ["-s -w", *(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values)]
    )


class KubectlError(RuntimeError):
    """kubectl failed; the message holds its stderr."""


class ControlPlane:
    """A control plane of its own, started on entering the context and gone after it.

    `kubeconfig`, `token` (both of a cluster admin) and `url` are valid once it is started. With `directory`
    all files stay there after the end; without, they live in a temporary folder.
    """

    def __init__(self, directory: Path | None = None, *, node_address: str | None = None) -> None:
        """Prepare the files and the processes; builds the programs if they are not in the cache.

        With `node_address` it listens there, so that Pods reach it through the Service `kubernetes`, and its
        Pods are expected to be real.
        """
        programs = ensure_programs()
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="fairserve-controlplane-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = self.directory / "kubeconfig"
        self.ca_file = self.directory / "certificates" / "apiserver.crt"
        self.token = secrets.token_hex(16)
        self._kubectl = programs / "kubectl"
        self._running = ExitStack()
        self._client: Client | None = None

        key = self.directory / "service-accounts.key"
        tokens = self.directory / "tokens.csv"
        _write_private(key, _ec_private_key())
        _write_private(tokens, f"{self.token},admin,admin,system:masters\n")

        etcd_port, etcd_peer_port, port = free_port(), free_port(), free_port()
        etcd_url = f"http://127.0.0.1:{etcd_port}"
        self._etcd_client = Client(etcd_url)
        self._etcd_data = self.directory / "etcd"
        address = node_address or "127.0.0.1"
        self.url = f"https://{address}:{port}"
        self.etcd = Process(
            "etcd",
            [
                programs / "etcd",
                f"--data-dir={self._etcd_data}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={etcd_url}",
                f"--advertise-client-urls={etcd_url}",
                f"--listen-peer-urls=http://127.0.0.1:{etcd_peer_port}",
            ],
            self.directory / "etcd.log",
        )
        self.apiserver = Process(
            "kube-apiserver",
            [
                programs / "kube-apiserver",
                f"--bind-address={address}",
                f"--advertise-address={node_address or _ADVERTISED}",
                f"--secure-port={port}",
                f"--etcd-servers={etcd_url}",
                f"--cert-dir={self.ca_file.parent}",
                f"--token-auth-file={tokens}",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=RBAC",
                "--allow-privileged=true",
                f"--endpoint-reconciler-type={'lease' if node_address else 'none'}",
                "--kubelet-preferred-address-types=InternalIP",
            ],
            self.directory / "kube-apiserver.log",
        )
        self.controller_manager = Process(
            "kube-controller-manager",
            [
                programs / "kube-controller-manager",
                f"--kubeconfig={self.kubeconfig}",
                "--secure-port=0",
                "--leader-elect=false",
                f"--service-account-private-key-file={key}",
                f"--root-ca-file={self.ca_file}",
                "--use-service-account-credentials=true",
                # It deletes Pods whose node does not exist, and none of the fake ones' does.
                f"--controllers=*{'' if node_address else ',-pod-garbage-collector-controller'}",
            ],
            self.directory / "kube-controller-manager.log",
        )

    def start(self) -> Self:
        """Start everything and wait until Pods can be created in the default namespace."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._running.enter_context(self.etcd)
            self.start_apiserver()
            self._running.callback(self.stop_apiserver)
            self._running.enter_context(self.controller_manager)
            account = "/api/v1/namespaces/default/serviceaccounts/default"
            self.controller_manager.wait_until(
                lambda: self.request("GET", account), _START_DEADLINE_S, "the default service account"
            )
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Stop everything, and delete the files unless a directory was given."""
        self._running.close()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready; started again it has the same address and data."""
        self.apiserver.start()
        self.apiserver.wait_until(self._connect, _START_DEADLINE_S, "its certificate")
        self.apiserver.wait_until(lambda: self._api().answers("/readyz"), _START_DEADLINE_S, "/readyz")

    def stop_apiserver(self) -> None:
        """Kill the API server, so that every client loses its connections at once."""
        self.apiserver.kill()

    def back_up_etcd(self) -> Path:
        """Copy etcd's data and return where to; etcd is away for a moment, which the API server bears."""
        copy = Path(tempfile.mkdtemp(prefix="etcd-backup-", dir=self.directory)) / "etcd"
        self.etcd.stop()
        shutil.copytree(self._etcd_data, copy)
        self._start_etcd()
        return copy

    def restore_etcd(self, backup: Path) -> None:
        """Go back to a backup, as the manuals say: with the API server stopped.

        The controller manager begins anew as well, since it would wait for what is the past by now.
        """
        self.controller_manager.stop()
        self.stop_apiserver()
        self.etcd.stop()
        shutil.rmtree(self._etcd_data)
        shutil.copytree(backup, self._etcd_data)
        self._start_etcd()
        self.start_apiserver()
        self.controller_manager.start()

    def age_etcd(self, revisions: int) -> None:
        """Make history: as many changes of something that no API server looks at."""
        put = {"key": base64.b64encode(b"nothing").decode(), "value": ""}
        for _ in range(revisions):
            self._etcd_client.json("POST", "/v3/kv/put", put)

    def _start_etcd(self) -> None:
        self.etcd.start()
        self.etcd.wait_until(lambda: self._etcd_client.answers("/health"), _START_DEADLINE_S, "/health")

    def restart_controller_manager(self) -> None:
        """For after a long outage: by itself it waits long before it looks at the API server again."""
        self.controller_manager.stop()
        self.controller_manager.start()

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Send one call to the API server as cluster admin and return the answer's JSON.

        Raises urllib.error.HTTPError (an OSError), with the server's words, for a status of 400 and more.
        """
        answer = self._api().json(method, path, body, content_type=content_type)
        if not isinstance(answer, dict):
            raise TypeError(f"{method} {path} answered no object: {answer!r}")
        return answer

    def kubectl(self, *args: str | Path, stdin: str | None = None) -> str:
        """Run kubectl as cluster admin and return its stdout; raises KubectlError with its stderr."""
        finished = subprocess.run(
            [self._kubectl, *args],
            input=stdin or "",
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "KUBECACHEDIR": str(self.directory / "kubectl"),
            },
            check=False,
        )
        if finished.returncode != 0:
            words = " ".join(str(arg) for arg in args)
            raise KubectlError(
                f"kubectl {words} ended with status {finished.returncode}: {finished.stderr.strip()}"
            )
        return finished.stdout

    def apply(self, manifests: str | Path) -> str:
        """Apply server-side the manifests in a text, or in the file or folder at a Path; returns stdout."""
        command = ("apply", "--server-side", "--force-conflicts", "-f")
        if isinstance(manifests, Path):
            return self.kubectl(*command, manifests)
        return self.kubectl(*command, "-", stdin=manifests)

    def wait_for_definitions(self) -> None:
        """Wait until all custom resource definitions are established.

        `kubectl wait` ends with an error where it looks at one before it has any condition.
        """
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

        def established() -> bool:
            found = self.request("GET", path)["items"]
            return all("Established" in _true_conditions(each) for each in found)

        poll(established, _DEFINITIONS_S, "all custom resource definitions are established")

    def create_namespace(self, name: str) -> None:
        """Create a namespace and wait until Pods can be created in it."""
        metadata = {"name": name}
        self.request(
            "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        )
        self._await_account(name)

    def fake_pod(
        self,
        namespace: str,
        name: str,
        ip: str,
        labels: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        *,
        annotations: Mapping[str, str] | None = None,
        node: str = "fake-node",
    ) -> dict[str, Any]:
        """Create a Pod that runs and is ready at the given address, without a kubelet, and return it.

        `ports` are its one container's, by name. All of 127.0.0.0/8 answers on loopback, so each Pod can have
        an address of its own.
        """
        container = {
            "name": "main",
            "image": "fake",
            "ports": [
                {"name": port_name, "containerPort": port} for port_name, port in (ports or {}).items()
            ],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": dict(labels or {}), "annotations": dict(annotations or {})},
            "spec": {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0},
        }
        self._await_account(namespace)
        created = self.request("POST", _pods_path(namespace), pod)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Read back: admission may have injected containers, and a webhook's Pod wants a status for each.
        spec = created["spec"]
        status = {
            "phase": "Running",
            "hostIP": "127.0.0.1",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": now,
            "conditions": [
                {"type": condition, "status": "True", "lastTransitionTime": now}
                for condition in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [_running_container(each, now) for each in spec["containers"]],
            "initContainerStatuses": [
                _running_container(each, now) for each in spec.get("initContainers", [])
            ],
        }
        return self._patch_status(namespace, name, status)

    def set_pod_ready(self, namespace: str, name: str, ready: bool) -> dict[str, Any]:
        """Turn a fake Pod's Ready conditions on or off and return the Pod."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        pod = self.request("GET", f"{_pods_path(namespace)}/{name}")
        conditions = pod["status"]["conditions"]
        for condition in conditions:
            if condition["type"] in ("ContainersReady", "Ready"):
                condition.update(status=str(ready), lastTransitionTime=now)
        return self._patch_status(namespace, name, {"conditions": conditions})

    def delete_pod(self, namespace: str, name: str, *, grace_s: int = 0) -> None:
        """Delete a fake Pod at once; with `grace_s` it stays, terminating, until deleted again without."""
        self.request("DELETE", f"{_pods_path(namespace)}/{name}", {"gracePeriodSeconds": grace_s})

    def service_account_kubeconfig(self, namespace: str, name: str, duration_s: int = 3600) -> Path:
        """Write a kubeconfig that acts as a service account, with a token of its own, and return its path.

        It has the rights that RBAC grants the account, so that code can be run with exactly those.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.request("POST", path, {"spec": {"expirationSeconds": duration_s}})
        kubeconfig = self.directory / f"kubeconfig-{namespace}-{name}"
        self._write_kubeconfig(kubeconfig, f"{namespace}-{name}", answer["status"]["token"], namespace)
        return kubeconfig

    def _await_account(self, namespace: str) -> None:
        """Wait for the namespace's default service account, without which no Pod can be created."""
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        poll(
            lambda: self.request("GET", account),
            30.0,
            f"the default service account of namespace {namespace}",
        )

    def _patch_status(self, namespace: str, name: str, status: Mapping[str, object]) -> dict[str, Any]:
        path = f"{_pods_path(namespace)}/{name}/status"
        return self.request("PATCH", path, {"status": status}, content_type="application/merge-patch+json")

    def _connect(self) -> bool:
        """Read the certificate that the API server signs itself, and write the admin's kubeconfig with it."""
        try:
            tls = ssl.create_default_context(cafile=self.ca_file)
        except (FileNotFoundError, ssl.SSLError):  # Not there, or not yet written to its end.
            return False
        self._client = Client(self.url, token=self.token, tls=tls)
        self._write_kubeconfig(self.kubeconfig, "admin", self.token, "default")
        return True

    def _api(self) -> Client:
        if self._client is None:
            raise RuntimeError("the control plane is not started")
        return self._client

    def _write_kubeconfig(self, path: Path, user: str, token: str, namespace: str) -> None:
        authority = base64.b64encode(self.ca_file.read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}
            ],
            "current-context": "test",
        }
        _write_private(path, json.dumps(config, indent=2))  # JSON is YAML.


def _true_conditions(body: Mapping[str, Any]) -> list[str]:
    conditions = body.get("status", {}).get("conditions") or ()
    return [condition["type"] for condition in conditions if condition["status"] == "True"]


def _pods_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def _running_container(container: Mapping[str, Any], now: str) -> dict[str, Any]:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "fake",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(text)


def _ec_private_key() -> str:
    """Return a new private key on the curve P-256 as PEM.

    The standard library makes no keys, but one is a random number in a fixed frame (RFC 5915; the public half
    is optional there, readers derive it).
    """
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    secret = (1 + secrets.randbelow(order - 1)).to_bytes(32, "big")
    curve = bytes.fromhex("a00a06082a8648ce3d030107")
    der = bytes.fromhex("30310201010420") + secret + curve
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN EC PRIVATE KEY-----\n{body}-----END EC PRIVATE KEY-----\n"
