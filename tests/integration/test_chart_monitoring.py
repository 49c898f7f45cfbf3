"""The chart's PodMonitor in a real Prometheus: it finds injected Pods, and the operator's queries match."""

# The Prometheus operator isn't here: what it makes of a PodMonitor is written down below.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fairserve_operator.decide.signals import builtin_query
from fairserve_operator.manifests.injection import Injected, Settings, inject
from tests.fakes.exposition import served
from tests.integration.operating import until
from tests.parts.controlplane import ControlPlane
from tests.parts.helm import Helm
from tests.parts.prometheus import Prometheus
from tests.unit.chart.rendering import NAMESPACE, render


def _as_operator_of_prometheus_does(monitor: Mapping[str, Any], kubeconfig: Path) -> dict[str, Any]:
    """The scrape configuration that the Prometheus operator makes of a PodMonitor for all namespaces."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (rule,) = monitor["spec"]["selector"]["matchExpressions"]
    label = re.sub(r"\W", "_", rule["key"])
    meta = "__meta_kubernetes_pod"
    ours = [
        {"source_labels": [f"{meta}_labelpresent_{label}"], "regex": "true", "action": "keep"},
        {"source_labels": [f"{meta}_container_port_name"], "regex": endpoint["port"], "action": "keep"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": [f"{meta}_container_name"], "target_label": "container"},
        {"source_labels": [f"{meta}_name"], "target_label": "pod"},
    ]
    snake = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    theirs = [{snake.get(key, key): value for key, value in each.items()} for each in endpoint["relabelings"]]
    return {
        "job_name": f"{NAMESPACE}/fairserve-sidecars",
        "metrics_path": endpoint["path"],
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": [*ours, *theirs],
    }


def _run(
    control_plane: ControlPlane, namespace: str, template: Mapping[str, Any], name: str, address: str
) -> None:
    """Make a Pod that runs at an address, as a kubelet would tell."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    metadata = {**template["metadata"], "name": name}
    pod = {**template, "metadata": metadata, "spec": {**template["spec"], "nodeName": "fake-node"}}
    control_plane.request("POST", path, pod)
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    content = "application/merge-patch+json"
    control_plane.request("PATCH", f"{path}/{name}/status", {"status": status}, content_type=content)


def test_prometheus_finds_what_the_operator_asks_for(
    control_plane: ControlPlane, namespace: str, helm: Helm, start_prometheus: Callable[..., Prometheus]
) -> None:
    """The PodMonitor as a scrape configuration, and Pods that were injected, one of them with two ports."""
    monitor = render(helm, {"monitoring.podMonitor.enabled": True})["PodMonitor/fairserve-sidecars"]
    scraped = _as_operator_of_prometheus_does(monitor, control_plane.kubeconfig)
    text = (
        f'fairserve_pool_info{{pool_namespace="{namespace}",pool="llm"}} 1\n'
        'vllm:num_requests_waiting{engine="0",model_name="m"} 21\n'
    )
    with ExitStack() as stack:
        for number in (1, 2):
            address = f"127.77.{os.getpid() % 250}.{number}"
            port = int(stack.enter_context(served(lambda: text, address)).rpartition(":")[2])
            command = ["vllm", "serve", "m", f"--port={port}"]
            ports = [{"name": "http", "containerPort": port}, {"name": "other", "containerPort": 9}]
            vllm = {"name": "vllm", "image": "vllm/vllm-openai", "command": command, "ports": ports}
            template = {"metadata": {}, "spec": {"containers": [vllm]}}
            injected = inject(template, "llm", Settings("fairserve-sidecar:1"))
            assert isinstance(injected, Injected)
            _run(control_plane, namespace, injected.template, f"vllm-{number}", address)
        prometheus = start_prometheus(scrape_configs=[scraped])

        infos = until(
            lambda: found if len(found := prometheus.query("fairserve_pool_info")) == 2 else None,
            "two Pods to be scraped",
        )
        assert {each.labels["pod"] for each in infos} == {"vllm-1", "vllm-2"}
        assert {(each.labels["namespace"], each.labels["pool"]) for each in infos} == {(namespace, "llm")}
        assert len(prometheus.query("up")) == 2  # Each Pod once, whatever ports it has.
        until(
            lambda: (
                [each.value for each in prometheus.query(builtin_query("EngineWaiting", namespace, "llm"))]
                == [42]
            ),
            "the sum over both",
        )
