"""A real node: scheduler, containerd, kubelet, kube-proxy and a name server around a control plane.

It lives in an enclosure (`tests.parts.enclosure`), whose end is its end: containers outlive the kubelet and
containerd, and stop when the kernel ends the enclosure. The test, inside it as well, reaches the addresses of
Pods and Services.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.parts import controlplane, images
from tests.parts.controlplane import ControlPlane
from tests.parts.enclosure import ADDRESS, current
from tests.parts.process import Process

NAME = "node1"

_DEADLINE_S = 120.0
_POD_SUBNET = "10.244.0.0/24"
_SOCKET = "/run/containerd/containerd.sock"
_CNI_PLUGINS = "/usr/lib/cni"
#: How often Services are looked at for the name server.
_NAMES_PERIOD_S = 0.5


class Node:
    """A cluster of one node, `control_plane` its API server; started on entering, gone with the enclosure.

    Its images are those of `tests.parts.images`; there is no registry to pull others from.
    """

    def __init__(self, directory: Path) -> None:
        """Write the settings of all programs; logs stay in `directory`."""
        enclosure = current()
        self.directory = directory
        self._state = enclosure.state
        self.control_plane = ControlPlane(directory / "controlplane", node_address=ADDRESS)
        self._running = ExitStack()
        self._stopping = threading.Event()
        self._names = directory / "names"
        self._names.mkdir()
        programs, kubeconfig = controlplane.ensure_node_programs(), self.control_plane.kubeconfig
        self.containerd = self._process("containerd", "containerd", f"--config={self._containerd_settings()}")
        self.scheduler = self._process(
            "kube-scheduler",
            programs / "kube-scheduler",
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        self.kubelet = self._process(
            "kubelet",
            programs / "kubelet",
            f"--kubeconfig={kubeconfig}",
            f"--config={self._kubelet_settings(enclosure.cgroup)}",
            f"--root-dir={self._state / 'kubelet'}",
            f"--cert-dir={self._state / 'kubelet-certificates'}",
            f"--node-ip={ADDRESS}",
            f"--hostname-override={NAME}",
        )
        self.kube_proxy = self._process(
            "kube-proxy",
            programs / "kube-proxy",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NAME}",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",
        )
        self.dnsmasq = self._process(
            "dnsmasq",
            "dnsmasq",
            *("--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"),
            *("--bind-interfaces", f"--listen-address={ADDRESS}", "--local=/#/"),
            f"--hostsdir={self._names}",
            f"--pid-file={self._state / 'dnsmasq.pid'}",
        )

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._running.close)
            self._running.enter_context(self.control_plane)
            self._running.enter_context(self.containerd)
            self.containerd.wait_until(lambda: self._ctr("version", check=False), _DEADLINE_S, "its socket")
            self._import_images()
            for process in (self.scheduler, self.kube_proxy, self.dnsmasq, self.kubelet):
                self._running.enter_context(process)
            self._running.callback(self._follow_names())
            self.kubelet.wait_until(self._ready, _DEADLINE_S, "a node that is ready")
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def logs(self, namespace: str, pod: str, container: str) -> str:
        """What a container has said since it started last."""
        return self.control_plane.kubectl("-n", namespace, "logs", pod, "-c", container)

    def kill(self, pod: Mapping[str, Any], container: str, sign: signal.Signals) -> None:
        """Signal a container's first process, past the kubelet; `pod` is as the API server has it."""
        status = pod["status"]
        statuses = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
        (identifier,) = [each["containerID"] for each in statuses if each["name"] == container]
        command = [
            "ctr",
            f"--address={_SOCKET}",
            "--namespace=k8s.io",
            "tasks",
            "kill",
            f"--signal={sign.name}",
        ]
        subprocess.run([*command, identifier.removeprefix("containerd://")], check=True)

    def _process(self, name: str, *args: str | Path) -> Process:
        return Process(name, list(args), self.directory / f"{name}.log")

    def _ctr(self, *arguments: str | Path, check: bool = True) -> bool:
        command = ["ctr", f"--address={_SOCKET}", "--namespace=k8s.io", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and finished.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {finished.stderr.strip()}")
        return finished.returncode == 0

    def _import_images(self) -> None:
        self._ctr("images", "import", images.ensure_archive())

    def _ready(self) -> bool:
        node = self.control_plane.request("GET", f"/api/v1/nodes/{NAME}")
        return any(
            each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"]
        )

    def _follow_names(self) -> Any:
        """Keep the name server's file of Services true, in a thread; returns what ends that."""
        thread = threading.Thread(target=self._write_names, name="names", daemon=True)
        thread.start()

        def end() -> None:
            self._stopping.set()
            thread.join()

        return end

    def _write_names(self) -> None:
        written = ""
        while not self._stopping.wait(_NAMES_PERIOD_S):
            try:
                services = self.control_plane.request("GET", "/api/v1/services")["items"]
            except OSError:  # A test may stop the API server.
                continue
            lines = [
                f"{each['spec']['clusterIP']} {each['metadata']['name']}.{each['metadata']['namespace']}"
                ".svc.cluster.local"
                for each in services
                if each["spec"].get("clusterIP", "None") != "None"
            ]
            text = "".join(f"{line}\n" for line in sorted(lines))
            if text != written:
                # It reads a file of this folder again when it changes, and forgets names only when told to.
                new = self.directory / "services.new"
                new.write_text(text)
                os.replace(new, self._names / "services")
                self._signal_dnsmasq()
                written = text

    def _signal_dnsmasq(self) -> None:
        if self.dnsmasq.alive:
            os.kill(self.dnsmasq.pid, signal.SIGHUP)

    def _containerd_settings(self) -> Path:
        networks = self.directory / "networks"
        networks.mkdir()
        (networks / "10-bridge.conflist").write_text(json.dumps(_network(self._state), indent=2))
        file = self.directory / "containerd.toml"
        file.write_text(f"""\
version = 2
root = "{self._state}/containerd"
state = "/run/containerd"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.name("pause")}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_CNI_PLUGINS}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""")
        return file

    def _kubelet_settings(self, cgroup: str) -> Path:
        resolver = self.directory / "resolv.conf"
        resolver.write_text("")  # Nothing but the cluster's names is known to anybody.
        settings: Mapping[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            # Nobody outside the enclosure reaches it.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "failCgroupV1": False,
            "containerRuntimeEndpoint": f"unix://{_SOCKET}",
            "clusterDNS": [ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            "podLogsDir": str(self.directory / "pods"),
            "volumePluginDir": str(self._state / "plugins"),
            # The machine's disk and memory are not this node's alone.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
        }
        file = self.directory / "kubelet.json"
        file.write_text(json.dumps(settings, indent=2))
        return file


def _network(state: Path) -> dict[str, Any]:
    """A bridge on which Pods reach the node and one another."""
    addresses = {
        "type": "host-local",
        "dataDir": str(state / "addresses"),
        "ranges": [[{"subnet": _POD_SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}
