"""What each value of the chart does: one line shows it at one place of one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.chart.rendering import NAMESPACE, Has

_DIGEST = "sha256:" + "0a" * 32
_OPERATOR, _VLLM = "Deployment/fairserve-operator", "Deployment/fairserve-vllm"
_WEBHOOK, _POOL = f"MutatingWebhookConfiguration/fairserve-{NAMESPACE}", "ServingPool/llm"
_POLICY, _SIDECARS = "NetworkPolicy/fairserve-operator", "NetworkPolicy/fairserve-sidecars"
_CERTIFICATE = "Certificate/fairserve-webhook"
_SERVICE_MONITOR, _POD_MONITOR = "ServiceMonitor/fairserve-operator", "PodMonitor/fairserve-sidecars"
_TENANTS = "CustomResourceDefinition/tenants.fairserve.dev"
_POD, _CONTAINER = "spec/template/spec", "spec/template/spec/containers/0"
_PODS = "spec/template/metadata"
_ONE = {"x.example/a": "b"}
_TOLERATION = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
_TERM = {"matchExpressions": [{"key": "a", "operator": "Exists"}]}
_AFFINITY = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]}}
}
_ENV = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
_ENV_FROM = {"configMapRef": {"name": "c"}}
_VOLUME, _MOUNT = {"name": "ca", "secret": {"secretName": "ca"}}, {"name": "ca", "mountPath": "/ca"}
_RULE = {"key": "a", "operator": "In", "values": ["b"]}
_RELABELING = {"sourceLabels": ["a"], "targetLabel": "b", "action": "replace"}
_PEER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
_MONITOR = {"monitoring.serviceMonitor.enabled": True}
_PODS_MONITOR = {"monitoring.podMonitor.enabled": True}
_MANAGED = {"webhook.certManager.enabled": True}
_POLICIES = {"networkPolicy.enabled": True}
_GUARDED = {**_POLICIES, "namespaces": ["team-a"]}
_WITH_VLLM = {"vllm.enabled": True}
_WITH_POOL = {**_WITH_VLLM, "vllm.servingPool.create": True}


@dataclass(frozen=True, slots=True)
class Case:
    """`value` at `setting` leads to `expected` at a path of an object; without it something else is there.
    None is nothing. `given` is set in both. No path: whether there is such an object.
    """

    setting: str
    value: Any
    name: str
    path: str
    expected: Any
    given: Mapping[str, Any] = field(default_factory=dict)


def _metadata(
    setting: str, name: str, given: Mapping[str, Any] | None = None, at: str = "metadata"
) -> list[Case]:
    """Annotations or labels, as the setting's name says."""
    kind = "labels" if setting.lower().endswith("labels") else "annotations"
    return [Case(setting, _ONE, name, f"{at}/{kind}/x.example~1a", "b", given or {})]


CASES = [
    Case(
        "global.imageRegistry",
        "r.example",
        _OPERATOR,
        f"{_CONTAINER}/image",
        "r.example/fairserve-operator:0.1.0",
    ),
    Case(
        "global.imageRegistry", "r.example", _VLLM, f"{_CONTAINER}/image", Has("r.example/vllm/"), _WITH_VLLM
    ),
    Case("global.imagePullSecrets", ["a"], _OPERATOR, f"{_POD}/imagePullSecrets", [{"name": "a"}]),
    Case(
        "nameOverride",
        "other",
        _OPERATOR,
        "spec/selector/matchLabels/app.kubernetes.io~1name",
        "other",
        {"fullnameOverride": "fairserve"},
    ),
    Case("fullnameOverride", "other", "Deployment/other-operator", "", True),
    Case("namespaces", ["a", "b"], "Role/a/fairserve-operator", "", True),
    Case("namespaces", ["a", "b"], "RoleBinding/b/fairserve-operator", "subjects/0/namespace", NAMESPACE),
    Case("namespaces", ["a", "b"], "ClusterRole/fairserve-operator", "", False),
    Case("namespaces", ["a", "b"], _OPERATOR, f"{_CONTAINER}/args", Has("--namespace=b")),
    Case(
        "namespaces",
        ["a", "b"],
        _WEBHOOK,
        "webhooks/0/namespaceSelector/matchExpressions/0/values",
        ["a", "b"],
    ),
    Case(
        "namespaces",
        ["a", "b"],
        _POD_MONITOR,
        "spec/namespaceSelector",
        {"matchNames": ["a", "b"]},
        _PODS_MONITOR,
    ),
    Case("namespaces", ["a", "b"], "NetworkPolicy/b/fairserve-sidecars", "", True, _POLICIES),
    *_metadata("commonLabels", _TENANTS),
    *_metadata("commonAnnotations", _TENANTS),
    Case("imagePullSecrets", ["a"], _OPERATOR, f"{_POD}/imagePullSecrets", [{"name": "a"}]),
    Case("imagePullSecrets", ["a"], "Pod/fairserve-test-readyz", "spec/imagePullSecrets", [{"name": "a"}]),
    Case("crds.enabled", False, _TENANTS, "", False),
    Case("crds.keep", False, _TENANTS, "metadata/annotations", None),
    Case("rbac.create", False, "ClusterRole/fairserve-operator", "", False),
    Case("rbac.create", False, "Role/fairserve-operator-own", "", False),
    Case("serviceAccount.create", False, "ServiceAccount/fairserve-operator", "", False),
    Case("serviceAccount.create", False, _OPERATOR, f"{_POD}/serviceAccountName", "default"),
    Case("serviceAccount.name", "mine", "ServiceAccount/mine", "", True),
    Case("serviceAccount.name", "mine", "ClusterRoleBinding/fairserve-operator", "subjects/0/name", "mine"),
    *_metadata("serviceAccount.annotations", "ServiceAccount/fairserve-operator"),
    # The operator.
    Case("operator.replicas", 3, _OPERATOR, "spec/replicas", 3),
    Case(
        "operator.image.registry",
        "r:5000",
        _OPERATOR,
        f"{_CONTAINER}/image",
        "r:5000/fairserve-operator:0.1.0",
    ),
    Case("operator.image.repository", "a/b", _OPERATOR, f"{_CONTAINER}/image", "a/b:0.1.0"),
    Case("operator.image.tag", "9", _OPERATOR, f"{_CONTAINER}/image", "fairserve-operator:9"),
    Case("operator.image.digest", _DIGEST, _OPERATOR, f"{_CONTAINER}/image", f"fairserve-operator@{_DIGEST}"),
    Case("operator.image.pullPolicy", "Never", _OPERATOR, f"{_CONTAINER}/imagePullPolicy", "Never"),
    Case("operator.port", 8090, _OPERATOR, f"{_CONTAINER}/args", Has("--listen=0.0.0.0:8090")),
    Case("operator.port", 8090, _OPERATOR, f"{_CONTAINER}/ports/0/containerPort", 8090),
    Case("operator.logFormat", "plain", _OPERATOR, f"{_CONTAINER}/args", Has("--log-format=plain")),
    Case("operator.verbose", True, _OPERATOR, f"{_CONTAINER}/args", Has("--verbose")),
    Case("operator.allowHttpJwks", True, _OPERATOR, f"{_CONTAINER}/args", Has("--allow-http-jwks")),
    Case("operator.extraArgs", ["--identity=a b"], _OPERATOR, f"{_CONTAINER}/args", Has("--identity=a b")),
    Case("operator.env", [_ENV], _OPERATOR, f"{_CONTAINER}/env", [_ENV]),
    Case("operator.envFrom", [_ENV_FROM], _OPERATOR, f"{_CONTAINER}/envFrom", [_ENV_FROM]),
    Case("operator.extraVolumes", [_VOLUME], _OPERATOR, f"{_POD}/volumes", Has(_VOLUME)),
    Case("operator.extraVolumeMounts", [_MOUNT], _OPERATOR, f"{_CONTAINER}/volumeMounts", Has(_MOUNT)),
    Case("operator.resources", {"limits": {"cpu": 2}}, _OPERATOR, f"{_CONTAINER}/resources/limits/cpu", 2),
    Case("operator.preStopSeconds", 0, _OPERATOR, f"{_CONTAINER}/lifecycle", None),
    Case(
        "operator.preStopSeconds",
        7,
        _OPERATOR,
        f"{_CONTAINER}/lifecycle/preStop/exec/command/2",
        Has("sleep(7)"),
    ),
    Case(
        "operator.terminationGracePeriodSeconds", 60, _OPERATOR, f"{_POD}/terminationGracePeriodSeconds", 60
    ),
    *[
        Case(f"operator.{probe}.{key}", 17, _OPERATOR, f"{_CONTAINER}/{probe}/{key}", 17)
        for probe in ("livenessProbe", "readinessProbe")
        for key in ("periodSeconds", "timeoutSeconds", "failureThreshold")
    ],
    Case("operator.podSecurityContext", {"fsGroup": 5}, _OPERATOR, f"{_POD}/securityContext/fsGroup", 5),
    Case(
        "operator.securityContext", {"runAsUser": 5}, _OPERATOR, f"{_CONTAINER}/securityContext/runAsUser", 5
    ),
    Case(
        "operator.strategy",
        {"rollingUpdate": {"maxSurge": "50%"}},
        _OPERATOR,
        "spec/strategy/rollingUpdate/maxSurge",
        "50%",
    ),
    Case(
        "operator.strategy",
        {"type": "Recreate"},
        _OPERATOR,
        "spec/strategy",
        {"type": "Recreate"},
    ),
    Case("operator.revisionHistoryLimit", 1, _OPERATOR, "spec/revisionHistoryLimit", 1),
    Case("operator.podDisruptionBudget.enabled", False, "PodDisruptionBudget/fairserve-operator", "", False),
    Case(
        "operator.podDisruptionBudget.maxUnavailable",
        "50%",
        "PodDisruptionBudget/fairserve-operator",
        "spec/maxUnavailable",
        "50%",
    ),
    Case("operator.priorityClass.create", False, f"PriorityClass/fairserve-{NAMESPACE}", "", False),
    Case("operator.priorityClass.create", False, _OPERATOR, f"{_POD}/priorityClassName", None),
    Case("operator.priorityClass.value", 5, f"PriorityClass/fairserve-{NAMESPACE}", "value", 5),
    Case("operator.priorityClassName", "high", _OPERATOR, f"{_POD}/priorityClassName", "high"),
    Case("operator.priorityClassName", "high", f"PriorityClass/fairserve-{NAMESPACE}", "", False),
    Case("operator.nodeSelector", {"a": "b"}, _OPERATOR, f"{_POD}/nodeSelector", {"a": "b"}),
    Case("operator.nodeSelector", {"a": "b"}, "Pod/fairserve-test-readyz", "spec/nodeSelector", {"a": "b"}),
    Case("operator.tolerations", [_TOLERATION], _OPERATOR, f"{_POD}/tolerations", [_TOLERATION]),
    Case("operator.affinity", _AFFINITY, _OPERATOR, f"{_POD}/affinity", _AFFINITY),
    Case("operator.topologySpreadConstraints", [], _OPERATOR, f"{_POD}/topologySpreadConstraints", None),
    *_metadata("operator.annotations", _OPERATOR),
    *_metadata("operator.labels", _OPERATOR),
    *_metadata("operator.podAnnotations", _OPERATOR, at=_PODS),
    *_metadata("operator.podLabels", _OPERATOR, at=_PODS),
    *_metadata("operator.serviceAnnotations", "Service/fairserve-operator"),
    # What the webhook injects.
    *[
        Case(f"sidecar.image.{key}", value, _OPERATOR, f"{_CONTAINER}/args", Has(f"--sidecar-image={image}"))
        for key, value, image in (
            ("registry", "r:5000", "r:5000/fairserve-sidecar:0.1.0"),
            ("repository", "a/b", "a/b:0.1.0"),
            ("tag", "9", "fairserve-sidecar:9"),
            ("digest", _DIGEST, f"fairserve-sidecar@{_DIGEST}"),
        )
    ],
    Case("sidecar.cpu", "2", _OPERATOR, f"{_CONTAINER}/args", Has("--sidecar-cpu=2")),
    Case("sidecar.memory", "2Gi", _OPERATOR, f"{_CONTAINER}/args", Has("--sidecar-memory=2Gi")),
    Case("sidecar.drainSeconds", 90, _OPERATOR, f"{_CONTAINER}/args", Has("--drain-s=90")),
    Case("webhook.enabled", False, _WEBHOOK, "", False),
    Case("webhook.enabled", False, "Service/fairserve-webhook", "", False),
    Case("webhook.enabled", False, f"ClusterRole/fairserve-{NAMESPACE}-webhook", "", False),
    Case("webhook.failurePolicy", "Ignore", _WEBHOOK, "webhooks/0/failurePolicy", "Ignore"),
    Case("webhook.timeoutSeconds", 9, _WEBHOOK, "webhooks/0/timeoutSeconds", 9),
    Case("webhook.port", 10250, _OPERATOR, f"{_CONTAINER}/args", Has("--webhook=0.0.0.0:10250")),
    Case("webhook.port", 10250, _OPERATOR, f"{_CONTAINER}/ports/1/containerPort", 10250),
    *[
        case
        for selector in ("namespaceSelector", "objectSelector")
        for case in (
            Case(
                f"webhook.{selector}",
                {"matchLabels": {"a": "b"}},
                _WEBHOOK,
                f"webhooks/0/{selector}/matchLabels",
                {"a": "b"},
            ),
            Case(
                f"webhook.{selector}",
                {"matchExpressions": [_RULE]},
                _WEBHOOK,
                f"webhooks/0/{selector}/matchExpressions/1",
                _RULE,
            ),
        )
    ],
    *_metadata("webhook.annotations", _WEBHOOK),
    *_metadata("webhook.serviceAnnotations", "Service/fairserve-webhook"),
    Case("webhook.certManager.enabled", True, _CERTIFICATE, "spec/issuerRef/name", "fairserve-webhook"),
    Case("webhook.certManager.enabled", True, "Issuer/fairserve-webhook", "spec", {"selfSigned": {}}),
    Case(
        "webhook.certManager.enabled",
        True,
        _WEBHOOK,
        "metadata/annotations/cert-manager.io~1inject-ca-from",
        f"{NAMESPACE}/fairserve-webhook",
    ),
    Case("webhook.certManager.enabled", True, f"ClusterRole/fairserve-{NAMESPACE}-webhook", "", False),
    Case(
        "webhook.certManager.enabled",
        True,
        _OPERATOR,
        f"{_POD}/volumes/0/secret/secretName",
        "fairserve-webhook",
    ),
    Case(
        "webhook.certManager.enabled",
        True,
        _OPERATOR,
        f"{_CONTAINER}/args",
        Has("--webhook-certificate-dir=/etc/fairserve/webhook"),
    ),
    Case("webhook.certManager.issuerRef.name", "ca", _CERTIFICATE, "spec/issuerRef/name", "ca", _MANAGED),
    Case("webhook.certManager.issuerRef.name", "ca", "Issuer/fairserve-webhook", "", False, _MANAGED),
    Case(
        "webhook.certManager.issuerRef.kind",
        "ClusterIssuer",
        _CERTIFICATE,
        "spec/issuerRef/kind",
        "ClusterIssuer",
        {**_MANAGED, "webhook.certManager.issuerRef.name": "ca"},
    ),
    Case(
        "webhook.certManager.issuerRef.group",
        "g.example",
        _CERTIFICATE,
        "spec/issuerRef/group",
        "g.example",
        {**_MANAGED, "webhook.certManager.issuerRef.name": "ca"},
    ),
    Case("webhook.certManager.duration", "24h", _CERTIFICATE, "spec/duration", "24h", _MANAGED),
    Case("webhook.certManager.renewBefore", "8h", _CERTIFICATE, "spec/renewBefore", "8h", _MANAGED),
    # What watches them.
    Case("monitoring.serviceMonitor.enabled", True, _SERVICE_MONITOR, "spec/endpoints/0/honorLabels", True),
    Case("monitoring.podMonitor.enabled", True, _POD_MONITOR, "spec/namespaceSelector", {"any": True}),
    *[
        case
        for which, name, endpoint, given in (
            ("serviceMonitor", _SERVICE_MONITOR, "spec/endpoints/0", _MONITOR),
            ("podMonitor", _POD_MONITOR, "spec/podMetricsEndpoints/0", _PODS_MONITOR),
        )
        for case in (
            Case(f"monitoring.{which}.interval", "7s", name, f"{endpoint}/interval", "7s", given),
            Case(f"monitoring.{which}.scrapeTimeout", "6s", name, f"{endpoint}/scrapeTimeout", "6s", given),
            *_metadata(f"monitoring.{which}.labels", name, given),
            *_metadata(f"monitoring.{which}.annotations", name, given),
            Case(
                f"monitoring.{which}.relabelings",
                [_RELABELING],
                name,
                f"{endpoint}/relabelings",
                Has(_RELABELING),
                given,
            ),
            Case(
                f"monitoring.{which}.metricRelabelings",
                [_RELABELING],
                name,
                f"{endpoint}/metricRelabelings",
                [_RELABELING],
                given,
            ),
        )
    ],
    # Who may reach what.
    Case(
        "networkPolicy.enabled",
        True,
        _POLICY,
        "spec/ingress/0",
        {"ports": [{"port": "webhook", "protocol": "TCP"}]},
    ),
    Case("networkPolicy.prometheus", [_PEER], _POLICY, "spec/ingress/1/from", Has(_PEER), _POLICIES),
    Case(
        "networkPolicy.prometheus",
        [_PEER],
        _SIDECARS,
        "spec/ingress/1/from",
        [_PEER],
        {**_GUARDED, "networkPolicy.sidecars.openOtherPorts": False},
    ),
    Case(
        "networkPolicy.sidecars.namespaces", ["a"], "NetworkPolicy/a/fairserve-sidecars", "", True, _POLICIES
    ),
    Case(
        "networkPolicy.sidecars.controlPorts",
        [9000, 1],
        _SIDECARS,
        "spec/ingress/0/ports",
        [{"port": 9000, "protocol": "TCP"}, {"port": 1, "protocol": "TCP"}],
        _GUARDED,
    ),
    Case(
        "networkPolicy.sidecars.controlPorts",
        [9000, 1],
        _SIDECARS,
        "spec/ingress/1/ports",
        [
            {"port": 2, "endPort": 8999, "protocol": "TCP"},
            {"port": 9001, "endPort": 65535, "protocol": "TCP"},
        ],
        _GUARDED,
    ),
    Case(
        "networkPolicy.sidecars.controlPorts",
        [65535, 65534],
        _SIDECARS,
        "spec/ingress/1/ports",
        [{"port": 1, "endPort": 65533, "protocol": "TCP"}],
        _GUARDED,
    ),
    Case(
        "networkPolicy.sidecars.openOtherPorts",
        False,
        _SIDECARS,
        "spec/ingress/1",
        None,
        {**_GUARDED, "networkPolicy.prometheus": []},
    ),
    Case("tests.enabled", False, "Pod/fairserve-test-readyz", "", False),
    # A vLLM.
    Case("vllm.enabled", True, _VLLM, f"{_CONTAINER}/command", ["vllm", "serve"]),
    Case(
        "vllm.enabled",
        True,
        _WEBHOOK,
        "webhooks/0/namespaceSelector/matchExpressions/0/values",
        ["kube-system"],
    ),
    Case("vllm.namespace", "models", "Deployment/models/fairserve-vllm", "", True, _WITH_VLLM),
    Case("vllm.namespace", "models", "Service/models/fairserve-vllm", "", True, _WITH_VLLM),
    Case("vllm.namespace", "models", "ServingPool/models/llm", "", True, _WITH_POOL),
    Case(
        "vllm.namespace",
        "models",
        "NetworkPolicy/models/fairserve-sidecars",
        "",
        True,
        {**_WITH_VLLM, **_POLICIES},
    ),
    Case("vllm.pool", "other", _VLLM, f"{_PODS}/labels/fairserve.dev~1inject", "other", _WITH_VLLM),
    Case("vllm.pool", "other", "ServingPool/other", "", True, _WITH_POOL),
    Case(
        "vllm.servingPool.create",
        True,
        _POOL,
        "spec/selector/matchLabels/app.kubernetes.io~1component",
        "vllm",
        _WITH_VLLM,
    ),
    Case(
        "vllm.servingPool.spec",
        {"throttling": {"mode": "Shadow"}},
        _POOL,
        "spec/throttling",
        {"mode": "Shadow"},
        _WITH_POOL,
    ),
    Case("vllm.replicas", 2, _VLLM, "spec/replicas", 2, _WITH_VLLM),
    Case("vllm.image.registry", "", _VLLM, f"{_CONTAINER}/image", "vllm/vllm-openai:v0.32.0", _WITH_VLLM),
    Case("vllm.image.repository", "a/b", _VLLM, f"{_CONTAINER}/image", "docker.io/a/b:v0.32.0", _WITH_VLLM),
    Case("vllm.image.tag", "9", _VLLM, f"{_CONTAINER}/image", "docker.io/vllm/vllm-openai:9", _WITH_VLLM),
    Case("vllm.image.digest", _DIGEST, _VLLM, f"{_CONTAINER}/image", Has(f"@{_DIGEST}"), _WITH_VLLM),
    Case("vllm.image.pullPolicy", "Never", _VLLM, f"{_CONTAINER}/imagePullPolicy", "Never", _WITH_VLLM),
    Case("vllm.model", "/models/a", _VLLM, f"{_CONTAINER}/args/0", "/models/a", _WITH_VLLM),
    Case(
        "vllm.args",
        ["--max-model-len=4096"],
        _VLLM,
        f"{_CONTAINER}/args/2",
        "--max-model-len=4096",
        _WITH_VLLM,
    ),
    Case("vllm.env", [_ENV], _VLLM, f"{_CONTAINER}/env", [_ENV], _WITH_VLLM),
    Case("vllm.envFrom", [_ENV_FROM], _VLLM, f"{_CONTAINER}/envFrom", [_ENV_FROM], _WITH_VLLM),
    Case("vllm.gpus", 0, _VLLM, f"{_CONTAINER}/resources", None, _WITH_VLLM),
    Case("vllm.gpus", 4, _VLLM, f"{_CONTAINER}/resources/limits", {"nvidia.com/gpu": 4}, _WITH_VLLM),
    Case(
        "vllm.gpuResource",
        "amd.com/gpu",
        _VLLM,
        f"{_CONTAINER}/resources/limits",
        {"amd.com/gpu": 1},
        _WITH_VLLM,
    ),
    Case(
        "vllm.resources",
        {"limits": {"memory": "9Gi"}},
        _VLLM,
        f"{_CONTAINER}/resources/limits",
        {"memory": "9Gi", "nvidia.com/gpu": 1},
        _WITH_VLLM,
    ),
    Case("vllm.port", 8100, _VLLM, f"{_CONTAINER}/args/1", "--port=8100", _WITH_VLLM),
    Case("vllm.port", 8100, _VLLM, f"{_CONTAINER}/ports/0/containerPort", 8100, _WITH_VLLM),
    Case("vllm.port", 8100, "Service/fairserve-vllm", "spec/ports/0/port", 8100, _WITH_VLLM),
    *_metadata("vllm.serviceAnnotations", "Service/fairserve-vllm", _WITH_VLLM),
    Case("vllm.sharedMemory", "", _VLLM, f"{_POD}/volumes", None, _WITH_VLLM),
    Case("vllm.sharedMemory", "8Gi", _VLLM, f"{_POD}/volumes/0/emptyDir/sizeLimit", "8Gi", _WITH_VLLM),
    Case("vllm.startupMinutes", 2, _VLLM, f"{_CONTAINER}/startupProbe/failureThreshold", 24, _WITH_VLLM),
    Case("vllm.extraVolumes", [_VOLUME], _VLLM, f"{_POD}/volumes", Has(_VOLUME), _WITH_VLLM),
    Case("vllm.extraVolumeMounts", [_MOUNT], _VLLM, f"{_CONTAINER}/volumeMounts", Has(_MOUNT), _WITH_VLLM),
    *_metadata("vllm.annotations", _VLLM, _WITH_VLLM),
    *_metadata("vllm.podAnnotations", _VLLM, _WITH_VLLM, at=_PODS),
    *_metadata("vllm.podLabels", _VLLM, _WITH_VLLM, at=_PODS),
    Case("vllm.nodeSelector", {"a": "b"}, _VLLM, f"{_POD}/nodeSelector", {"a": "b"}, _WITH_VLLM),
    Case("vllm.tolerations", [_TOLERATION], _VLLM, f"{_POD}/tolerations", [_TOLERATION], _WITH_VLLM),
    Case("vllm.affinity", _AFFINITY, _VLLM, f"{_POD}/affinity", _AFFINITY, _WITH_VLLM),
    Case("vllm.runtimeClassName", "nvidia", _VLLM, f"{_POD}/runtimeClassName", "nvidia", _WITH_VLLM),
    Case("vllm.priorityClassName", "low", _VLLM, f"{_POD}/priorityClassName", "low", _WITH_VLLM),
    Case("vllm.podSecurityContext", {"fsGroup": 5}, _VLLM, f"{_POD}/securityContext/fsGroup", 5, _WITH_VLLM),
    Case(
        "vllm.securityContext",
        {"runAsUser": 5},
        _VLLM,
        f"{_CONTAINER}/securityContext/runAsUser",
        5,
        _WITH_VLLM,
    ),
]

#: Those of files that come with the chart: they are shown with a rule and a dashboard of the test's own.
WITH_FILES = {
    "monitoring.prometheusRule.enabled",
    "monitoring.prometheusRule.labels",
    "monitoring.prometheusRule.annotations",
    "monitoring.prometheusRule.disabledAlerts",
    "monitoring.prometheusRule.alertLabels",
    "monitoring.dashboards.enabled",
    "monitoring.dashboards.namespace",
    "monitoring.dashboards.labels",
    "monitoring.dashboards.annotations",
}
