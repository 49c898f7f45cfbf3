"""fairserve whole, with the real parts: an operator and sidecars over a real control plane and Prometheus.

A sidecar listens on an address of its own in 127.0.0.0/8 and a fake Pod carries that address, so that the
operator finds it as it finds a pod. It boots from the pool's Secret, as a pod that mounts it does. Used by
the integration and end-to-end tests and by the cluster demo.
"""

from __future__ import annotations

import base64
import itertools
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.parts import cache
from tests.parts.controlplane import ControlPlane
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port, poll
from tests.parts.prometheus import Prometheus

_CRDS = cache.REPOSITORY / "crds"
_EXAMPLE = cache.REPOSITORY / "examples" / "01-two-teams"
_DEADLINE_S = 60.0

#: Addresses of pods: 127.0.<subnet>.<n>, one subnet a stack.
_subnets = itertools.count(10)


def example(*, port: int, control_port: int, prometheus_url: str, **pool_spec: Any) -> list[dict[str, Any]]:
    """Return the first example's manifests, with the pool's ports and Prometheus of this machine.

    `pool_spec` replaces whole sections of the pool's spec; a key of None removes one.
    """
    objects = [
        manifest
        for path in sorted(_EXAMPLE.glob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
    ]
    spec = next(each for each in objects if each["kind"] == "ServingPool")["spec"]
    spec["sidecar"] = {"port": port, "controlPort": control_port}
    spec["overload"]["prometheus"] = {"url": prometheus_url}
    for section, value in pool_spec.items():
        if isinstance(value, Mapping):
            spec[section] = {**spec.get(section, {}), **value}
        else:
            spec[section] = value
    return objects


class Sidecar:
    """One sidecar process in front of one engine, and the fake Pod that carries its address."""

    def __init__(self, stack: Stack, name: str, ip: str, engine_url: str) -> None:
        """Describe it; the boot files are read when it starts."""
        self.name = name
        self.url = f"http://{ip}:{stack.port}"
        self.ip = ip
        self._stack = stack
        self._folder = stack.directory / name
        self._folder.mkdir(parents=True)
        self.process = Process(
            name,
            [
                sys.executable,
                "-m",
                "fairserve.cli",
                "sidecar",
                f"--listen={ip}:{stack.port}",
                f"--control={ip}:{stack.control_port}",
                f"--engine={engine_url}",
                f"--config={self._folder / 'config.json.gz'}",
                f"--control-token-file={self._folder / 'control-token'}",
            ],
            self._folder / "sidecar.log",
            env=_PYTHONPATH,
        )

    def start(self) -> Self:
        """Start it from what the Secret holds now, and wait until it is ready."""
        secret = self._stack.boot_secret()
        for key, value in secret.items():
            file = self._folder / key
            file.write_bytes(value)
            file.chmod(0o600)
        self._control = Client(
            f"http://{self.ip}:{self._stack.control_port}", token=secret["control-token"].decode()
        )
        self.process.start()
        self.process.wait_until(lambda: self._control.answers("/readyz"), _DEADLINE_S, "/readyz")
        return self

    def state(self) -> dict[str, Any]:
        """GET /state of its control port."""
        answer = self._control.json("GET", "/state")
        assert isinstance(answer, dict)
        return answer

    def tenant(self, name: str) -> dict[str, Any]:
        """What it says of one tenant."""
        return next(each for each in self.state()["tenants"] if each["name"] == name)


_PYTHONPATH = {"PYTHONPATH": f"{cache.REPOSITORY / 'serving'}:{cache.REPOSITORY / 'operator'}"}


class Stack:
    """The operator, its namespace and any number of sidecars; all of it is gone after the context."""

    def __init__(
        self,
        control_plane: ControlPlane,
        prometheus: Prometheus,
        namespace: str,
        directory: Path,
        *,
        pool: str = "llm",
    ) -> None:
        """Describe it; nothing is started yet."""
        self.control_plane = control_plane
        self.prometheus = prometheus
        self.namespace = namespace
        self.pool = pool
        self.directory = directory
        self.port, self.control_port = free_port(), free_port()
        self.sidecars: list[Sidecar] = []
        self._subnet = next(_subnets)
        self._undo = ExitStack()
        self.operator = Process(
            "operator",
            [sys.executable, "-m", "fairserve_operator", "--namespace", namespace],
            directory / "operator.log",
            env={**_PYTHONPATH, "KUBECONFIG": str(control_plane.kubeconfig)},
        )

    def __enter__(self) -> Self:
        """Create the resource definitions and the namespace, and start the operator."""
        self.control_plane.apply(_CRDS)
        self.control_plane.wait_for_definitions()
        self.control_plane.create_namespace(self.namespace)
        self._undo.callback(
            self.control_plane.kubectl,
            "delete",
            "namespace",
            self.namespace,
            "--wait=false",
            "--ignore-not-found",
        )
        self._undo.callback(self.operator.stop)
        self.operator.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sidecar in self.sidecars:
            self._undo.callback(sidecar.process.stop)
        self._undo.close()
        self.prometheus.set_targets([])

    def apply_example(self, **pool_spec: Any) -> None:
        """Apply the first example; see `example`."""
        url = self.prometheus.url
        objects = example(port=self.port, control_port=self.control_port, prometheus_url=url, **pool_spec)
        self.apply(objects)

    def apply(self, objects: Sequence[Mapping[str, Any]]) -> str:
        """Apply objects to the namespace, as `kubectl apply` does."""
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.control_plane.kubectl("-n", self.namespace, *args, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object of the group, as JSON."""
        path = f"/apis/fairserve.dev/v1alpha1/namespaces/{self.namespace}/{kind}/{name}"
        return self.control_plane.request("GET", path)

    def condition(self, kind: str, name: str, type_: str) -> dict[str, Any]:
        """One condition of an object; {} while it has none."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {})

    def wait_condition(
        self, kind: str, name: str, type_: str, status: str, deadline_s: float = _DEADLINE_S
    ) -> dict[str, Any]:
        """Wait until a condition has a status for the object's present generation; return the condition."""

        def current() -> dict[str, Any] | None:
            found = self.get(kind, name)
            for each in found.get("status", {}).get("conditions", []):
                if each["type"] == type_ and each["status"] == status:
                    seen = each.get("observedGeneration", found["metadata"]["generation"])
                    return each if seen == found["metadata"]["generation"] else None
            return None

        return poll(current, deadline_s, f"{kind}/{name} to be {type_}={status}")

    def boot_secret(self) -> dict[str, bytes]:
        """What the pool's Secret holds; waits until the operator has written it."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets/fairserve-{self.pool}"
        secret = poll(
            lambda: self.control_plane.request("GET", path),
            _DEADLINE_S,
            f"the boot Secret of pool {self.pool}",
        )
        return {key: base64.b64decode(value) for key, value in secret["data"].items()}

    def add_sidecar(self, engine_url: str) -> Sidecar:
        """Start a sidecar in front of an engine, make its Pod, and let Prometheus scrape it."""
        number = len(self.sidecars) + 1
        sidecar = Sidecar(self, f"vllm-{number}", f"127.0.{self._subnet}.{number}", engine_url)
        self.sidecars.append(sidecar.start())
        self.control_plane.fake_pod(
            self.namespace,
            sidecar.name,
            sidecar.ip,
            labels={"app": "vllm"},
            ports={"http": self.port, "control": self.control_port},
        )
        self.prometheus.set_targets([{"targets": [f"{each.ip}:{self.port}" for each in self.sidecars]}])
        return sidecar
