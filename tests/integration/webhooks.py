"""What the tests of the webhook share: replicas behind one address, and Pods being created."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.integration.operating import DEADLINE_S, operator_process, until
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port

CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
EXAMPLES = REPOSITORY / "examples" / "operator"


class Replica:
    """One operator with a webhook."""

    def __init__(self, kubeconfig: Path, folder: Path, name: str, *options: str) -> None:
        self.webhook_port = free_port()
        listen = f"127.0.0.1:{free_port()}"
        self.process: Process = operator_process(
            kubeconfig,
            folder / f"{name}.log",
            f"--listen={listen}",
            f"--identity={name}",
            f"--webhook=127.0.0.1:{self.webhook_port}",
            "--sidecar-image=sidecar:7",
            *options,
        )
        self._own_port = Client(f"http://{listen}")

    def state(self) -> dict[str, Any]:
        """What `/readyz` says, with whichever status."""
        try:
            return dict(self._own_port.json("GET", "/readyz"))
        except urllib.error.HTTPError as error:
            return dict(json.loads(error.msg.partition("/readyz: ")[2]))

    def until_ready(self) -> None:
        self.process.wait_until(lambda: self.state()["ready"], DEADLINE_S, "readiness")

    def figures(self) -> dict[str, float]:
        """`/metrics`, by name and labels."""
        lines = self._own_port.call("GET", "/metrics").splitlines()
        return {
            name: float(value) for name, value in (each.rsplit(" ", 1) for each in lines if each[0] != "#")
        }

    def certificate(self) -> str:
        """By which it serves now, as PEM."""
        return ssl.get_server_certificate(("127.0.0.1", self.webhook_port))

    def client(self, ca_bundle: str) -> Client:
        """Calls it as the API server does, trusting whom that trusts."""
        return Client(
            f"https://127.0.0.1:{self.webhook_port}", tls=ssl.create_default_context(cadata=ca_bundle)
        )


class Balancer:
    """What a Service is to the API server: one address, and behind it the replicas that were ready when they
    were asked last, in turn. Whoever is sent to one that isn't there any more has bad luck, as in a cluster.
    """

    def __init__(self, replicas: Sequence[Replica], port: int) -> None:
        self._replicas = replicas
        self._turn = itertools.count()
        self._ready: set[int] = set()
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        for replica in self._replicas:
            threading.Thread(target=self._probe, args=(replica,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.close()

    def _probe(self, replica: Replica) -> None:
        while not self._ended.wait(0.2):
            ready = False
            with contextlib.suppress(OSError, http.client.HTTPException):
                ready = bool(replica.state()["ready"])
            (self._ready.add if ready else self._ready.discard)(replica.webhook_port)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # It is closed.
            while True:
                threading.Thread(target=self._carry, args=self._listener.accept()[:1], daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        ports = sorted(self._ready)
        try:
            port = ports[next(self._turn) % len(ports)] if ports else 0
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            client.close()
            return
        threading.Thread(target=_pass, args=(server, client), daemon=True).start()
        _pass(client, server)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


class Cluster:
    """A namespace in which the example's webhook is, at an address of this machine."""

    def __init__(self, control_plane: ControlPlane, namespace: str, url_port: int) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.name = f"fairserve-{namespace}"
        self._url = f"https://127.0.0.1:{url_port}/inject"

    def manifest(self, name: str) -> str:
        """An example's text, for this namespace."""
        return (EXAMPLES / name).read_text().replace("fairserve-system", self.namespace)

    def install(self, **fields: Any) -> None:
        """Apply the configuration as `helm upgrade` does, whoever wrote into it since."""
        (body, _) = yaml.safe_load_all(self.manifest("webhook.yaml"))
        (webhook,) = body["webhooks"]
        webhook["clientConfig"] = {"url": self._url}
        webhook["namespaceSelector"]["matchExpressions"] = [  # Other tests have Pods too.
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [self.namespace]}
        ]
        webhook |= fields
        self.control_plane.apply(json.dumps(body))

    def wipe(self) -> None:
        """Take `caBundle` away."""
        patch = [{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]
        self.control_plane.request(
            "PATCH", f"{CONFIGURATIONS}/{self.name}", patch, content_type="application/json-patch+json"
        )

    def remove(self) -> None:
        """Take it away, or it would be asked about all Pods of later tests."""
        self.control_plane.request("DELETE", f"{CONFIGURATIONS}/{self.name}")

    def trusted(self) -> str:
        """`caBundle`."""
        (webhook,) = self.control_plane.request("GET", f"{CONFIGURATIONS}/{self.name}")["webhooks"]
        return base64.b64decode(webhook["clientConfig"].get("caBundle", "")).decode()

    def secret(self) -> dict[str, str]:
        """What the webhook's Secret holds; raises HTTPError (an OSError) while there is none."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets/fairserve-webhook"
        data = self.control_plane.request("GET", path)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def try_pod(self, name: str, labels: Mapping[str, str], *args: str, stay: bool = False) -> dict[str, Any]:
        """What becomes of a Pod; a dry run unless it shall `stay`. Raises HTTPError with the refusal."""
        path = f"/api/v1/namespaces/{self.namespace}/pods" + ("" if stay else "?dryRun=All")
        vllm = {"name": "vllm", "image": "vllm/vllm-openai", "args": list(args)}
        body = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [vllm]}}
        return self.control_plane.request("POST", path, body)


LABELLED = {"fairserve.dev/inject": "llm"}


def sidecar(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sidecar's container, None where there is none."""
    found = [each for each in pod["spec"].get("initContainers", ()) if each["name"] == "fairserve"]
    return found[0] if found else None


@contextlib.contextmanager
def creating(cluster: Cluster, threads: int = 2) -> Iterator[list[str]]:
    """Meanwhile labelled Pods are created all the time. Yields what went wrong; nothing, and many Pods, or it
    is an error in the end.
    """
    problems: list[str] = []
    ended, counts = threading.Event(), [0] * threads

    def create(number: int) -> None:
        while not ended.wait(0.01):
            try:
                if sidecar(cluster.try_pod("p", LABELLED)) is None:
                    problems.append("a Pod without a sidecar")
                counts[number] += 1
            except OSError as problem:
                problems.append(str(problem))

    running = [threading.Thread(target=create, args=(number,)) for number in range(threads)]
    for each in running:
        each.start()
    try:
        until(lambda: problems or all(counts), "a first Pod")
        yield problems
        before = sum(counts)
        until(lambda: problems or sum(counts) > before + 20, "Pods afterwards")
    finally:
        ended.set()
        for each in running:
            each.join()
    assert not problems, problems[:3]
