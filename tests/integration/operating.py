"""What the tests of the operator share: the operator as a process, and a namespace with fake pods."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import sys
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fairserve.config import SchedulerConfig
from tests.fakes.sidecar_control import SidecarControl
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process, free_port, poll

T = TypeVar("T")

#: Long enough for a machine whose cores are all busy with something else; what passes, passes in far less.
DEADLINE_S = 60.0

#: In the environment: where the operator is found.
PYTHONPATH = {"PYTHONPATH": f"{REPOSITORY / 'operator'}:{REPOSITORY / 'serving'}"}

#: Of kinds that are not ours.
_PREFIXES = {
    **dict.fromkeys(("pods", "secrets", "events"), "/api/v1"),
    "inferencepools": "/apis/inference.networking.k8s.io/v1",
}

#: A network for each of the processes that share the tests.
_network = 41 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 200
_addresses = (f"127.{_network}.{high}.{low}" for high, low in itertools.product(range(256), range(1, 255)))


def operator_process(kubeconfig: Path, log: Path, *options: str) -> Process:
    """The operator, not yet started. `options` as of `python -m fairserve_operator`."""
    return Process(
        "operator",
        [
            sys.executable,
            "-m",
            "fairserve_operator",
            "--log-format=plain",
            f"--kubeconfig={kubeconfig}",
            *options,
        ],
        log,
        env=PYTHONPATH,
    )


def install_custom_resources(control_plane: ControlPlane) -> None:
    """Apply the definitions and wait until objects can be made."""
    control_plane.apply(REPOSITORY / "crds")
    control_plane.wait_for_definitions()
    for plural in ("tenants", "applications", "servingpools"):
        path = f"/apis/fairserve.dev/v1alpha1/{plural}"
        poll(lambda path=path: control_plane.request("GET", path), DEADLINE_S, path)  # type: ignore[misc]


#: InferencePools of the Gateway API inference extension, as far as anybody here looks at them.
INFERENCE_POOL_DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "inferencepools.inference.networking.k8s.io",
        # Groups under k8s.io are protected.
        "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
    },
    "spec": {
        "group": "inference.networking.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "InferencePool", "plural": "inferencepools", "singular": "inferencepool"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}


def custom(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A custom resource of ours."""
    return {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def inference_pool(name: str, **labels: str) -> dict[str, Any]:
    """An InferencePool that selects these labels, for the sidecars' port."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }


def install_inference_pools(control_plane: ControlPlane) -> None:
    """Apply the definition and wait until objects can be made."""
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(INFERENCE_POOL_DEFINITION))
    path = "/apis/inference.networking.k8s.io/v1/inferencepools"

    def served() -> dict[str, Any] | None:
        try:
            return control_plane.request("GET", path)
        except urllib.error.HTTPError:
            return None

    until(served, path)


def until(condition: Callable[[], T | None], what: str) -> T:
    """Poll until the condition holds, and return what it gives."""
    return poll(condition, DEADLINE_S, what)


def two_teams() -> list[dict[str, Any]]:
    """The manifests of the example, without the Prometheus that is not there."""
    manifests: list[dict[str, Any]] = []
    for path in sorted((REPOSITORY / "examples" / "01-two-teams").glob("*.yaml")):
        manifests += [each for each in yaml.safe_load_all(path.read_text()) if each]
    for manifest in manifests:
        if manifest["kind"] == "ServingPool":
            del manifest["spec"]["overload"]
    return manifests


class Place:
    """A namespace with objects and fake pods."""

    def __init__(self, control_plane: ControlPlane, namespace: str, stack: ExitStack) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.control_port = free_port()
        self._stack = stack

    def apply(self, manifests: Sequence[Mapping[str, Any]]) -> None:
        """Apply these in the namespace, server-side; pools get the control port of the fake pods."""
        for manifest in manifests:
            if manifest["kind"] == "ServingPool":
                manifest["spec"]["sidecar"] = {"controlPort": self.control_port}
        text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
        self.control_plane.kubectl("apply", "--server-side", "-n", self.namespace, "-f", "-", stdin=text)

    def patch(self, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Merge into a spec, as `kubectl patch` does."""
        path = self.path(kind, name)
        return self.control_plane.request(
            "PATCH", path, {"spec": spec}, content_type="application/merge-patch+json"
        )

    def pod(self, name: str, labels: Mapping[str, str] | None = None) -> SidecarControl:
        """Make a running pod whose sidecar answers."""
        sidecar = self.sidecar()
        self._stack.enter_context(sidecar)
        self.announce(name, sidecar, labels)
        return sidecar

    def sidecar(self) -> SidecarControl:
        """A sidecar that is neither started nor in any pod."""
        return SidecarControl(next(_addresses), self.control_port)

    def announce(self, name: str, sidecar: SidecarControl, labels: Mapping[str, str] | None = None) -> None:
        """Make a running pod around a sidecar."""
        self.control_plane.fake_pod(self.namespace, name, sidecar.host, labels or {"app": "vllm"})

    def restart_container(self, name: str) -> None:
        """Say what a kubelet says after it started a pod's containers anew."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        status = self.control_plane.request("GET", path)["status"]
        for container in status["containerStatuses"]:
            container["restartCount"] += 1
        patch = {"status": {"containerStatuses": status["containerStatuses"]}}
        self.control_plane.request(
            "PATCH", f"{path}/status", patch, content_type="application/merge-patch+json"
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object."""
        return self.control_plane.request("GET", self.path(kind, name))

    def delete(self, kind: str, name: str) -> None:
        """Delete one object."""
        self.control_plane.request("DELETE", self.path(kind, name))

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        """One condition of an object as it is now; empty if there is none yet."""
        body = self.get(kind, name)
        for each in body.get("status", {}).get("conditions", ()):
            if each["type"] == condition and each["observedGeneration"] == body["metadata"]["generation"]:
                return dict(each)
        return {}

    def until_condition(self, kind: str, name: str, condition: str, status: str) -> dict[str, Any]:
        """Wait for a condition of the object as it is now."""

        def held() -> dict[str, Any] | None:
            found = self.condition(kind, name, condition)
            return found if found.get("status") == status else None

        return until(held, f"{condition}={status} of {kind} {name}")

    def boot_secret(self, pool: str = "llm") -> dict[str, Any]:
        """The Secret that a pool's pods boot from; raises HTTPError (an OSError) while there is none."""
        return self.get("secrets", f"fairserve-{pool}")

    def boot_document(self, pool: str = "llm") -> SchedulerConfig:
        """The configuration in it."""
        packed = base64.b64decode(self.boot_secret(pool)["data"]["config.json.gz"])
        return SchedulerConfig.from_bytes(gzip.decompress(packed))

    def gone(self, kind: str, name: str) -> bool:
        """Whether there is no such object."""
        try:
            self.get(kind, name)
        except urllib.error.HTTPError as error:
            return error.code == HTTPStatus.NOT_FOUND
        return False

    def control_token(self, pool: str = "llm") -> str:
        """What the boot Secret gives as the control token."""
        return base64.b64decode(self.boot_secret(pool)["data"]["control-token"]).decode()

    def path(self, kind: str, name: str) -> str:
        """The path of an object."""
        prefix = _PREFIXES.get(kind, "/apis/fairserve.dev/v1alpha1")
        return f"{prefix}/namespaces/{self.namespace}/{kind}/{name}"
