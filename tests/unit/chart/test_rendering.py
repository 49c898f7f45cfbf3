"""What holds for whole renderings: who has which rights, which labels, and what is refused in which words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from fairserve import __version__
from fairserve_operator.__main__ import app
from fairserve_operator.manifests.injection import INJECT_LABEL, Injected, Settings, inject, wanted_pool
from tests.parts.cache import REPOSITORY
from tests.parts.helm import CHART, Helm, HelmError
from tests.unit.chart.rendering import NAMESPACE, Rendered, nested, render

#: Everything that the chart can make.
EVERYTHING: dict[str, Any] = {
    "webhook.certManager.enabled": True,
    "monitoring.serviceMonitor.enabled": True,
    "monitoring.podMonitor.enabled": True,
    "monitoring.prometheusRule.enabled": True,
    "monitoring.dashboards.enabled": True,
    "networkPolicy.enabled": True,
    "vllm.enabled": True,
    "vllm.servingPool.create": True,
}
#: Kinds that belong to no namespace.
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "PriorityClass",
}
WITHOUT_CLUSTER_RIGHTS: dict[str, Any] = {
    "namespaces": ["team-a", "team-b"],
    "webhook.enabled": False,
    "crds.enabled": False,
    "operator.priorityClass.create": False,
}
RULES = {
    "groups": [
        {"name": "a", "interval": "1m", "rules": [{"record": "r", "expr": "1"}, {"alert": "X", "expr": "1"}]},
        {"name": "b", "rules": [{"alert": "Y", "expr": "2", "labels": {"severity": "critical"}}]},
    ]
}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with one file of rules and one dashboard."""
    copy = tmp_path_factory.mktemp("chart") / "fairserve"
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("rules", "dashboards"))
    for folder, name, content in (
        ("rules", "some.yaml", RULES),
        ("dashboards", "tenant.json", {"title": "{{x}}"}),
    ):
        (copy / "files" / folder).mkdir()
        (copy / "files" / folder / name).write_text(json.dumps(content))
    return copy


def kinds(rendered: Rendered) -> set[str]:
    return {each["kind"] for each in rendered.objects}


def rules_of(rendered: Rendered) -> list[dict[str, Any]]:
    groups = rendered["PrometheusRule/fairserve-some"]["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_lint_finds_nothing(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART)


def test_versions_are_the_distributions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["version"] == chart["appVersion"] == __version__


def test_every_object_and_pod_has_common_labels_and_annotations_and_selectors_do_not(
    helm: Helm, chart: Path
) -> None:
    common = {"commonLabels": {"team": "x"}, "commonAnnotations": {"owner": "y"}}
    rendered = render(helm, {**EVERYTHING, **common}, chart)

    assert len(kinds(rendered)) > 15
    for name, metadata in rendered.metadata():
        assert metadata["labels"].get("team") == "x", name
        assert metadata["annotations"].get("owner") == "y", name
        assert metadata["labels"]["app.kubernetes.io/instance"] == "fairserve", name
    for each in ("Deployment/fairserve-operator", "Deployment/fairserve-vllm"):
        assert "team" not in rendered[each]["spec"]["selector"]["matchLabels"]


def test_pods_do_not_change_with_the_version_of_the_chart(helm: Helm) -> None:
    template = render(helm)["Deployment/fairserve-operator"]["spec"]["template"]

    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & {*template["metadata"]["labels"]}


def test_services_policies_and_monitors_select_the_operator(helm: Helm) -> None:
    rendered = render(helm, EVERYTHING)
    pods = rendered["Deployment/fairserve-operator"]["spec"]["template"]["metadata"]["labels"].items()
    of_service = rendered["Service/fairserve-operator"]["metadata"]["labels"].items()

    for each in ("Service/fairserve-operator", "Service/fairserve-webhook"):
        assert rendered[each]["spec"]["selector"].items() <= pods
    assert (
        rendered["PodDisruptionBudget/fairserve-operator"]["spec"]["selector"]["matchLabels"].items() <= pods
    )
    assert rendered["NetworkPolicy/fairserve-operator"]["spec"]["podSelector"]["matchLabels"].items() <= pods
    monitored = rendered["ServiceMonitor/fairserve-operator"]["spec"]["selector"]["matchLabels"].items()
    assert monitored <= of_service
    assert not monitored <= rendered["Service/fairserve-webhook"]["metadata"]["labels"].items()
    caller = rendered["NetworkPolicy/fairserve-sidecars"]["spec"]["ingress"][0]["from"][0]
    assert caller["podSelector"]["matchLabels"].items() <= pods
    assert caller["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}


def test_the_operator_meets_the_restricted_standard(helm: Helm) -> None:
    rendered = render(helm)
    for pod in (
        rendered["Deployment/fairserve-operator"]["spec"]["template"]["spec"],
        rendered["Pod/fairserve-test-readyz"]["spec"],
    ):
        context = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True


def test_the_operator_has_an_option_for_each_argument(helm: Helm) -> None:
    given = {"operator.verbose": True, "operator.allowHttpJwks": True}
    others: list[dict[str, Any]] = [{}, {"namespaces": ["a"]}, {"webhook.certManager.enabled": True}]
    for settings in ({**given, **other} for other in (*others, {"webhook.enabled": False})):
        operator = render(helm, settings)["Deployment/fairserve-operator"]["spec"]["template"]["spec"]
        get_command(app).make_context("operator", list(operator["containers"][0]["args"]))


def rights(text: str, kind: str) -> list[dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(text) if each["kind"] == kind]
    rules: list[dict[str, Any]] = found[0]["rules"]
    return rules


@pytest.mark.parametrize(
    ("settings", "kind", "example"),
    [({}, "ClusterRole", "rbac-all-namespaces.yaml"), ({"namespaces": ["team-a"]}, "Role", "rbac.yaml")],
)
def test_rights_are_those_of_the_example(
    helm: Helm, settings: dict[str, Any], kind: str, example: str
) -> None:
    text = (REPOSITORY / "examples" / "operator" / example).read_text()

    assert render(helm, settings)[f"{kind}/fairserve-operator"]["rules"] == rights(text, kind)


def test_listed_namespaces_need_no_cluster_role_but_the_webhooks(helm: Helm) -> None:
    rendered = render(helm, {"namespaces": ["team-a", "team-b"]})

    roles = [each for each in rendered.objects if each["kind"].startswith("ClusterRole")]
    assert {each["metadata"]["name"] for each in roles} == {f"fairserve-{NAMESPACE}-webhook"}
    (role,) = (each for each in roles if "rules" in each)
    assert role["rules"] == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [f"fairserve-{NAMESPACE}"],
            "verbs": ["get", "patch"],
        }
    ]


def test_the_webhook_is_the_examples(helm: Helm) -> None:
    folder = REPOSITORY / "examples" / "operator"
    example, _ = yaml.safe_load_all((folder / "webhook.yaml").read_text())
    text = (folder / "rbac-webhook.yaml").read_text()
    rendered = render(helm)

    (webhook,) = rendered[f"MutatingWebhookConfiguration/fairserve-{NAMESPACE}"]["webhooks"]
    assert webhook == {**example["webhooks"][0], "matchPolicy": "Equivalent"}
    assert rendered[f"ClusterRole/fairserve-{NAMESPACE}-webhook"]["rules"] == rights(text, "ClusterRole")
    assert rendered["Role/fairserve-operator-own"]["rules"][2:] == rights(text, "Role")


def test_without_cluster_rights_there_is_nothing_that_needs_them(helm: Helm) -> None:
    assert not kinds(render(helm, WITHOUT_CLUSTER_RIGHTS)) & CLUSTER_WIDE
    assert kinds(render(helm)) >= CLUSTER_WIDE


def test_crds_are_the_repositorys_and_are_kept(helm: Helm) -> None:
    rendered = render(helm)
    for path in sorted((REPOSITORY / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        found = rendered[f"CustomResourceDefinition/{crd['metadata']['name']}"]
        assert found["spec"] == crd["spec"]
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_webhook_configuration_has_no_certificate(helm: Helm) -> None:
    configuration = render(helm)[f"MutatingWebhookConfiguration/fairserve-{NAMESPACE}"]

    assert "caBundle" not in json.dumps(configuration)


def test_a_pod_monitor_finds_what_the_injection_noted(helm: Helm) -> None:
    vllm = {"name": "vllm", "image": "vllm/vllm-openai", "command": ["vllm", "serve", "m", "--port", "9001"]}
    pod = {"metadata": {}, "spec": {"containers": [vllm]}}
    injected = inject(pod, "llm", Settings("fairserve-sidecar:1"))
    assert isinstance(injected, Injected)
    (sidecar,) = injected.template["spec"]["initContainers"]
    annotation = injected.template["metadata"]["annotations"]["fairserve.dev/injected"]

    monitor = render(helm, {"monitoring.podMonitor.enabled": True})["PodMonitor/fairserve-sidecars"]

    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [port["name"] for port in sidecar["ports"]] == [endpoint["port"]]
    address, pool = endpoint["relabelings"]
    for host in ("10.1.2.3", "[fd00::1]"):
        labels = {"__address__": f"{host}:8001"}
        labels["__meta_kubernetes_pod_annotation_fairserve_dev_injected"] = annotation
        # As Prometheus does it: joined by semicolons, the whole of it, and references with a dollar sign.
        joined = ";".join(labels[name] for name in address["sourceLabels"])
        found = re.fullmatch(address["regex"], joined, re.DOTALL)
        assert found is not None
        assert found.expand(re.sub(r"\$(\d)", r"\\\1", address["replacement"])) == f"{host}:9001"
    assert pool["sourceLabels"] == ["__meta_kubernetes_pod_label_fairserve_dev_inject"]
    assert monitor["spec"]["selector"]["matchExpressions"][0]["key"] == INJECT_LABEL


def test_the_charts_vllm_can_be_injected(helm: Helm) -> None:
    rendered = render(helm, {"vllm.enabled": True, "vllm.port": 8200})
    template = rendered["Deployment/fairserve-vllm"]["spec"]["template"]
    assert wanted_pool(template) == "llm"

    injected = inject(template, "llm", Settings("fairserve-sidecar:1"))

    assert isinstance(injected, Injected)
    assert (injected.container, injected.port, injected.notes) == ("vllm", 8200, ())
    # A Service's port by name is looked for in ordinary containers, and is the sidecar's now.
    (port,) = rendered["Service/fairserve-vllm"]["spec"]["ports"]
    assert injected.template["spec"]["containers"][0]["ports"][0]["name"] == port["targetPort"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {},
            [
                '{"fairserve.dev/inject":"llm"}',
                "helm -n fairserve-system test fairserve",
                "serves all namespaces",
            ],
        ),
        ({"namespaces": ["a", "b"]}, ["it serves a, b", "in vLLM's namespace (one of a, b)"]),
        ({"webhook.enabled": False}, ["fairserve inject -f deployment.yaml --pool llm"]),
        ({"crds.enabled": False}, ["The CRDs are not this release's"]),
        ({"crds.keep": False}, ["deletes the CRDs, and with them every Tenant"]),
        (
            {"vllm.enabled": True},
            ["fairserve-vllm:8000", "wait for the ServingPool llm", "io/component: vllm"],
        ),
        ({"vllm.enabled": True, "vllm.servingPool.create": True}, ["once more, as `helm upgrade`"]),
        ({"networkPolicy.enabled": True}, ["No NetworkPolicy guards control ports"]),
    ],
    ids=lambda value: " ".join(value) or "default",
)
def test_notes_tell_the_next_step(helm: Helm, settings: dict[str, Any], words: list[str]) -> None:
    values = json.dumps(nested(settings))
    notes = helm("install", "fairserve", CHART, "-n", NAMESPACE, "-f", "-", "--dry-run=client", stdin=values)

    for each in words:
        assert each in notes


def test_rules_are_wrapped_as_they_are(helm: Helm, chart: Path) -> None:
    given = {"monitoring.prometheusRule.enabled": True}
    assert "PrometheusRule/fairserve-some" not in render(helm, {}, chart)
    assert render(helm, given, chart)["PrometheusRule/fairserve-some"]["spec"] == RULES

    routed = rules_of(render(helm, {**given, "monitoring.prometheusRule.alertLabels": {"team": "x"}}, chart))
    assert routed[0] == {"record": "r", "expr": "1"}
    assert [each.get("labels") for each in routed] == [
        None,
        {"team": "x"},
        {"team": "x", "severity": "critical"},
    ]

    left = render(helm, {**given, "monitoring.prometheusRule.disabledAlerts": ["Y"]}, chart)
    assert left["PrometheusRule/fairserve-some"]["spec"] == {"groups": RULES["groups"][:1]}

    labels = {f"monitoring.prometheusRule.{kind}": {"a": "b"} for kind in ("labels", "annotations")}
    metadata = render(helm, {**given, **labels}, chart)["PrometheusRule/fairserve-some"]["metadata"]
    assert (metadata["labels"]["a"], metadata["annotations"]["a"]) == ("b", "b")


def test_a_label_of_all_alerts_counts_before_a_rules_own(helm: Helm, chart: Path) -> None:
    given = {"monitoring.prometheusRule.enabled": True}
    labels = {"monitoring.prometheusRule.alertLabels": {"severity": "info"}}

    severities = [
        rule["labels"]["severity"] for rule in rules_of(render(helm, {**given, **labels}, chart))[1:]
    ]

    assert severities == ["info", "info"]


def test_dashboards_are_config_maps_for_grafanas_sidecar(helm: Helm, chart: Path) -> None:
    name = "ConfigMap/fairserve-dashboard-tenant"
    assert name not in render(helm, {}, chart)
    given = {
        "monitoring.dashboards.enabled": True,
        "monitoring.dashboards.namespace": "grafana",
        "monitoring.dashboards.labels": {"grafana_folder": "llm"},
        "monitoring.dashboards.annotations": {"a": "b"},
    }
    found = render(helm, given, chart)[name]

    assert json.loads(found["data"]["fairserve-tenant.json"]) == {"title": "{{x}}"}
    assert found["metadata"]["namespace"] == "grafana"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["labels"]["grafana_folder"] == "llm"
    assert found["metadata"]["annotations"] == {"a": "b"}


def test_the_serving_pool_waits_for_its_kind(helm: Helm) -> None:
    wanted = "vllm.enabled=true,vllm.servingPool.create=true"
    command = ("template", "fairserve", CHART, "--set", wanted)

    assert "kind: ServingPool\n" not in re.sub(r"(?m)^ .*\n", "", helm(*command))
    assert "\nkind: ServingPool\n" in helm(*command, "--api-versions", "fairserve.dev/v1alpha1/ServingPool")
    assert "\nkind: ServingPool\n" in helm(*command, "--set", "crds.enabled=false")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"foo": 1}, "additional properties 'foo' not allowed"),
        ({"operator.replica": 3}, "at '/operator': additional properties 'replica' not allowed"),
        ({"operator.replicas": "3"}, "at '/operator/replicas': got string, want integer"),
        ({"operator.image": "fairserve:1"}, "at '/operator/image': got string, want object"),
        ({"operator.image.digest": "abc"}, "at '/operator/image/digest': 'abc' does not match pattern"),
        (
            {"operator.env": [{"name": "a", "value": 1}]},
            "at '/operator/env/0/value': got number, want string",
        ),
        (
            {"operator.tolerations": [{"kye": "a"}]},
            "at '/operator/tolerations/0': additional properties 'kye'",
        ),
        ({"operator.resources": {"limit": {}}}, "at '/operator/resources': additional properties 'limit'"),
        ({"commonLabels": {"helm.sh/chart": "a"}}, "at '/commonLabels/helm.sh~1chart': false schema"),
        ({"webhook.failurePolicy": "fail"}, "value must be one of 'Fail', 'Ignore'"),
        ({"namespaces": ["a", "a"]}, "at '/namespaces': items at 0 and 1 are equal"),
        (
            {"vllm.servingPool.spec": {"overlaod": {}}},
            "'/vllm/servingPool/spec': additional properties 'overlaod'",
        ),
        (
            {"vllm.servingPool.spec": {"selector": {}}},
            "'/vllm/servingPool/spec': additional properties 'selector'",
        ),
        (
            {"vllm.enabled": True, "namespaces": ["a"]},
            'vllm.namespace: the operator doesn\'t serve the namespace "fairserve-system": add it to',
        ),
        ({"vllm.enabled": True, "webhook.enabled": False}, "vllm.enabled needs webhook.enabled"),
        ({"webhook.port": 8080}, "operator.port and webhook.port must differ: both are 8080"),
        ({"operator.preStopSeconds": 30}, "operator.preStopSeconds must be less than"),
        (
            {"networkPolicy.enabled": True, "networkPolicy.sidecars.namespaces": ["a"], "namespaces": ["b"]},
            'networkPolicy.sidecars.namespaces: the operator doesn\'t serve the namespace "a"',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_named(helm: Helm, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(HelmError) as error:
        render(helm, settings)

    assert words in str(error.value)


def test_a_parent_charts_own_global_values_are_left_alone(helm: Helm) -> None:
    assert render(helm, {"global.storageClass": "fast"}).objects


def test_long_names_fit(helm: Helm) -> None:
    text = helm("template", "a" * 53, CHART, "-n", NAMESPACE)
    namespaced = [each for each in Rendered(text).objects if each["kind"] not in CLUSTER_WIDE]

    assert len(namespaced) > 5
    assert max(len(each["metadata"]["name"]) for each in namespaced) <= 63


def test_nobody_scrapes_the_operator_where_nobody_is_named(helm: Helm) -> None:
    """No peers at all would mean everybody."""
    nobody: dict[str, Any] = {"networkPolicy.prometheus": [], "tests.enabled": False}
    rendered = render(helm, {"networkPolicy.enabled": True, **nobody})

    rules = rendered.at("NetworkPolicy/fairserve-operator", "spec/ingress")
    (peers,) = (rule["from"] for rule in rules if rule["ports"][0]["port"] == "metrics")
    assert peers


def test_probes_and_budget_ask_what_they_are_for(helm: Helm) -> None:
    rendered = render(helm, {"vllm.enabled": True})

    (test_pod,) = (each for each in rendered.objects if each["kind"] == "Pod")
    assert "/readyz" in json.dumps(test_pod)
    startup = "spec/template/spec/containers/0/startupProbe/httpGet/path"
    assert rendered.at("Deployment/fairserve-vllm", startup) == "/health"
    # An operator that isn't ready keeps no node from being drained.
    eviction = rendered.at("PodDisruptionBudget/fairserve-operator", "spec/unhealthyPodEvictionPolicy")
    assert eviction == "AlwaysAllow"
