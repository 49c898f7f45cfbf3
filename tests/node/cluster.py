"""What the tests of a node do with a cluster: vLLM as its owner has it, the chart, and calls to both."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
from pathlib import Path

import yaml

from fairserve.local.load import ClientClass, Load
from tests.parts import cache, controlplane, helm, images
from tests.parts.helm import CHART, Helm
from tests.parts.loopback import Client
from tests.parts.process import poll

MANIFESTS = Path(__file__).parent / "manifests"
EXAMPLE = cache.REPOSITORY / "examples" / "01-two-teams"
SYSTEM = "fairserve-system"
KEYS = {"team-a": "demo-key-of-team-a", "team-b": "demo-key-of-team-b"}
CONTROL_PORT = 8001
DEADLINE_S = 120.0
#: Pod security is enforced, and anything less than `restricted` is refused.
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def readme_commands():
    """What the README tells to install fairserve, but for what has been done for the node: images are there.

    There is no Prometheus operator here, and two cores must bear the requests of three sidecars.
    """
    section = (cache.REPOSITORY / "README.md").read_text().partition("## Install on a cluster\n")[2]
    block = section.partition("```\n")[2].partition("```")[0].replace("\\\n", "\\\n ")
    commands = re.split(r"\n(?! )", block.strip())
    assert commands[0].startswith("for image in operator sidecar")
    monitoring = ",monitoring.podMonitor.enabled=true"
    assert monitoring in commands[1]
    registry, _, _ = images.name("x").rpartition("/")
    small = ",sidecar.cpu=50m,sidecar.memory=256Mi"
    return [each.replace("REGISTRY", registry).replace(monitoring, small) for each in commands[1:]]


class Cluster:
    """A node's cluster, as an administrator sees it who has helm and kubectl."""

    def __init__(self, node, directory, namespace="llm"):
        self.node = node
        self.control_plane = node.control_plane
        self.helm = Helm(directory, node.control_plane.kubeconfig)
        self.namespace = namespace
        self._kubeconfig = directory / "kubeconfig"
        config = json.loads(node.control_plane.kubeconfig.read_text())
        config["contexts"][0]["context"]["namespace"] = namespace
        self._kubeconfig.write_text(json.dumps(config))

    def shell(self, command):
        """Run a command as it is read, in the repository, by somebody who works in the namespace."""
        programs = (controlplane.ensure_programs(), helm.ensure_programs())
        path = ":".join([*map(str, programs), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(self._kubeconfig)}
        environment |= {
            f"HELM_{kind}_HOME": str(self._kubeconfig.parent) for kind in ("CACHE", "CONFIG", "DATA")
        }
        words = ["bash", "-euo", "pipefail", "-c", command]
        finished = subprocess.run(
            words, cwd=cache.REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"

    def kubectl(self, *args, stdin=None):
        return self.control_plane.kubectl("-n", self.namespace, *args, stdin=stdin)

    def get(self, kind, name=None, namespace=None):
        words = ("get", kind, *([name] if name else []), "-o", "json")
        return json.loads(self.control_plane.kubectl("-n", namespace or self.namespace, *words))

    def create_namespace(self, name):
        self.control_plane.create_namespace(name)
        labels = [f"{key}={value}" for key, value in RESTRICTED.items()]
        self.control_plane.kubectl("label", "namespace", name, *labels)

    def install(self, *more, command="install"):
        """helm install, or upgrade, as the README says; waits until the operator is ready."""
        words = (command, "fairserve", CHART, "--namespace", SYSTEM, "--wait", "--timeout", "3m")
        # Two cores bear the requests of two sidecars and a third one while Pods are replaced.
        small = ("--set", "sidecar.cpu=50m", "--set", "sidecar.memory=256Mi")
        return self.helm(*words, *small, *more)

    def apply_vllm(self):
        text = (MANIFESTS / "vllm.yaml").read_text()
        self.kubectl("apply", "-f", "-", stdin=text.replace("VLLM", images.name("vllm")))

    def apply_example(self, **pool_spec):
        """The first example to the letter, but for sections of the ServingPool's spec."""
        objects = [
            each for path in sorted(EXAMPLE.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())
        ]
        spec = next(each for each in objects if each["kind"] == "ServingPool")["spec"]
        for section, value in pool_spec.items():
            spec[section] = {**spec.get(section, {}), **value}
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def apply_prometheus(self):
        text = (MANIFESTS / "prometheus.yaml").read_text()
        image = images.name("prometheus")
        self.control_plane.kubectl("apply", "-f", "-", stdin=text.replace("PROMETHEUS", image))
        self.rolled_out("prometheus", "monitoring")

    def rolled_out(self, deployment, namespace=None):
        """Wait until a Deployment's Pods are all of its newest template and ready."""
        self.control_plane.kubectl(
            *("-n", namespace or self.namespace, "rollout", "status", f"deployment/{deployment}"),
            "--timeout=180s",
        )

    def pods(self, selector="app=vllm", namespace=None):
        """Pods that are not on their way out, the oldest first."""
        words = ("-n", namespace or self.namespace, "get", "pods", "-l", selector, "-o", "json")
        items = json.loads(self.control_plane.kubectl(*words))["items"]
        living = [each for each in items if "deletionTimestamp" not in each["metadata"]]
        return sorted(living, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def service_url(self, name="vllm"):
        service = self.get("service", name)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def control(self, pod, pool="llm"):
        """The control port of a Pod's sidecar."""
        data = self.get("secret", f"fairserve-{pool}")["data"]
        token = base64.b64decode(data["control-token"]).decode()
        return Client(f"http://{pod['status']['podIP']}:{CONTROL_PORT}", token=token)

    def states(self):
        """What each sidecar says."""
        return [self.control(pod).json("GET", "/state") for pod in self.pods()]

    def wait_condition(self, kind, name, type_, status="True", deadline_s=DEADLINE_S):
        def current():
            found = self.get(f"{kind}.fairserve.dev", name)
            for each in found.get("status", {}).get("conditions", []):
                newest = each.get("observedGeneration", 0) == found["metadata"]["generation"]
                if each["type"] == type_ and each["status"] == status and newest:
                    return each
            return None

        return poll(current, deadline_s, f"{kind}/{name} to be {type_}={status}")

    def ask(self, tenant="team-a", *, max_tokens=8):
        """One call through the Service; returns its status and the answer's JSON."""
        client = Client(self.service_url())
        body = {
            "model": "emulated",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": max_tokens,
        }
        headers = {"Authorization": f"Bearer {KEYS[tenant]}"}
        return client.json("POST", "/v1/chat/completions", body, headers=headers)

    def diagnose(self):
        """Print what one wants to know after a failure."""
        for namespace in (SYSTEM, self.namespace):
            with contextlib.suppress(Exception):
                words = (
                    "-n",
                    namespace,
                    "get",
                    "pods,events",
                    "-o",
                    "wide",
                    "--sort-by=.metadata.creationTimestamp",
                )
                print(self.control_plane.kubectl(*words)[-6000:])
        with contextlib.suppress(Exception):
            words = ("-n", SYSTEM, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=20")
            print(self.control_plane.kubectl(*words)[-6000:])


def load(cluster, **options):
    """A load on vLLM's Service. The enclosure has no other network, so the load can't leave it."""
    made = Load("http://127.0.0.1", "emulated", seed=1, **options)
    made._url = f"{cluster.service_url()}/v1/chat/completions"
    return made


def backlog(tenant, clients, **changes):
    """A class that keeps `clients` chat calls of one tenant with the pool."""
    known = {"application": "chat", "prompt_tokens": 20, "max_tokens": 64}
    return ClientClass(tenant, KEYS[tenant], clients_per_user=clients, **(known | changes))


def failed(records):
    """Calls that were neither answered to the end nor refused with a reason."""
    return [each for each in records if not (each.completed or each.refused or each.error == "cancelled")]
