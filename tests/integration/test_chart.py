"""The chart on a real API server, by the real Helm: renderings are accepted, releases come, change and go.

There is no node: the operator runs here as a process, with the arguments and the rights that the chart gives
it. What runs in Pods is in tests/node.
"""

from __future__ import annotations

import base64
import json
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from fairserve_operator.api.v1alpha1 import API_VERSION
from tests.integration.operating import DEADLINE_S, operator_process, until
from tests.parts.controlplane import ControlPlane
from tests.parts.helm import CHART, Helm, HelmError
from tests.parts.loopback import Client
from tests.parts.process import free_port
from tests.unit.chart.cases import CASES
from tests.unit.chart.rendering import NAMESPACE, Rendered, nested

_WEBHOOK = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/fairserve-{NAMESPACE}"
_TENANT = "/apis/fairserve.dev/v1alpha1/namespaces/team-a/tenants/chat"
_DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/fairserve-operator"

#: Fields of kinds that others bring, as far as the chart writes them; theirs are the same.
_TEXT, _TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_STRINGS = {"type": "object", "additionalProperties": _TEXT}
_RELABELING = {
    **dict.fromkeys(("separator", "targetLabel", "regex", "replacement", "action"), _TEXT),
    "sourceLabels": _TEXTS,
    "modulus": {"type": "integer"},
}
_SELECTOR = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def _list(**fields: Any) -> dict[str, Any]:
    return {"type": "array", "items": _object(**fields)}


_ENDPOINTS = _list(
    **dict.fromkeys(("port", "path", "interval", "scrapeTimeout"), _TEXT),
    honorLabels={"type": "boolean"},
    relabelings=_list(**_RELABELING),
    metricRelabelings=_list(**_RELABELING),
)
_NAMESPACES = _object(any={"type": "boolean"}, matchNames=_TEXTS)
_FOREIGN = {
    ("monitoring.coreos.com", "ServiceMonitor"): _object(
        endpoints=_ENDPOINTS, selector=_SELECTOR, namespaceSelector=_NAMESPACES
    ),
    ("monitoring.coreos.com", "PodMonitor"): _object(
        podMetricsEndpoints=_ENDPOINTS, selector=_SELECTOR, namespaceSelector=_NAMESPACES
    ),
    ("monitoring.coreos.com", "PrometheusRule"): _object(
        groups=_list(
            name=_TEXT,
            interval=_TEXT,
            rules=_list(
                **dict.fromkeys(("record", "alert", "expr", "for", "keep_firing_for"), _TEXT),
                labels=_STRINGS,
                annotations=_STRINGS,
            ),
        )
    ),
    ("cert-manager.io", "Issuer"): _object(selfSigned=_object()),
    ("cert-manager.io", "Certificate"): _object(
        **dict.fromkeys(("secretName", "duration", "renewBefore"), _TEXT),
        **dict.fromkeys(("dnsNames", "usages"), _TEXTS),
        privateKey=_object(algorithm=_TEXT, size={"type": "integer"}, rotationPolicy=_TEXT),
        issuerRef=_object(name=_TEXT, kind=_TEXT, group=_TEXT),
    ),
}


def _definition(group: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _object(spec=spec)},
                }
            ],
        },
    }


def _variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Values that together render everything that the chart can make, and set each of its values once."""
    on = {"enabled": True}
    monitoring = dict.fromkeys(("serviceMonitor", "podMonitor", "prometheusRule", "dashboards"), on)
    everything = {"monitoring": monitoring, "networkPolicy": on}
    yield "default", {}
    yield "everything", {**everything, "vllm": {"enabled": True, "servingPool": {"create": True}}}
    yield "namespaces", {**everything, "namespaces": ["team-a", "team-b"]}
    yield "cert-manager", {"webhook": {"certManager": {"enabled": True}}}
    # Every value as its case sets it, and those that exclude others apart.
    settings: dict[str, Any] = {}
    for case in CASES:
        settings |= {**case.given, case.setting: case.value}
    apart = {
        "namespaces": [NAMESPACE, "team-a", "models"],
        **dict.fromkeys(("crds.enabled", "rbac.create", "webhook.enabled", "tests.enabled"), True),
        **dict.fromkeys(("serviceAccount.create", "operator.podDisruptionBudget.enabled"), True),
        "operator.strategy": {"type": "Recreate"},
        "networkPolicy.sidecars.namespaces": ["team-a"],
        "fullnameOverride": "another",
    }
    yield "each value", nested({**settings, **apart})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: a release owns the definitions that other tests share, and removes them."""
    with ControlPlane(tmp_path_factory.mktemp("chart-controlplane")) as running:
        for name in (NAMESPACE, "team-a", "team-b", "models"):
            running.create_namespace(name)
        definitions = [_definition(*names, spec) for names, spec in _FOREIGN.items()]
        running.apply("\n---\n".join(json.dumps(each) for each in definitions))
        running.wait_for_definitions()
        yield running


@pytest.fixture(scope="module")
def release(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(cluster, Helm(tmp_path_factory.mktemp("chart-helm"), cluster.kubeconfig))


class Release:
    """The release `fairserve`, and what there is of it in the cluster."""

    def __init__(self, cluster: ControlPlane, helm: Helm) -> None:
        self.cluster = cluster
        self._helm = helm

    def helm(self, command: str, *options: str, **values: Any) -> str:
        """`helm COMMAND fairserve`, with the chart where the command wants it."""
        chart = [CHART, "-f", "-"] if command in ("install", "upgrade") else []
        return self._helm(
            command,
            "fairserve",
            *chart,
            "-n",
            NAMESPACE,
            *options,
            stdin=json.dumps(values) if chart else None,
        )

    def objects(self) -> list[dict[str, Any]]:
        """What the release has, as it is, with its generation, and without what controllers write."""
        manifest = self._helm("get", "manifest", "fairserve", "-n", NAMESPACE)
        found: list[dict[str, Any]] = json.loads(
            self.cluster.kubectl(
                "get", "-o", "json", "--show-managed-fields=false", "-f", "-", stdin=manifest
            )
        )["items"]
        for each in found:
            each.pop("status", None)
            del each["metadata"]["resourceVersion"]  # A status changes it too.
            each["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
        return found

    def webhook(self) -> dict[str, Any]:
        webhook: dict[str, Any] = self.cluster.request("GET", _WEBHOOK)["webhooks"][0]
        return webhook

    def has(self, path: str) -> bool:
        try:
            self.cluster.request("GET", path)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True


@contextmanager
def operator(release: Release, log: Path) -> Iterator[None]:
    """The operator with the arguments and the rights that the release gives it; ready, and its webhook's
    certificate authority noted.
    """
    ports = {"0.0.0.0:8080": free_port(), "0.0.0.0:9443": free_port()}
    deployment = release.cluster.request("GET", _DEPLOYMENT)
    arguments: list[str] = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    for address, port in ports.items():
        arguments = [each.replace(address, f"127.0.0.1:{port}") for each in arguments]
    account = release.cluster.service_account_kubeconfig(NAMESPACE, "fairserve-operator")
    with operator_process(account, log, *arguments) as running:
        client = Client(f"http://127.0.0.1:{ports['0.0.0.0:8080']}")
        running.wait_until(lambda: client.answers("/readyz"), DEADLINE_S, "/readyz")
        until(lambda: release.webhook()["clientConfig"].get("caBundle"), "caBundle")
        yield
    assert "orbidden" not in log.read_text()


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release, whose operator has run, and a Tenant that a user made."""
    release.helm("install")
    release.cluster.wait_for_definitions()
    tenant = {"apiVersion": API_VERSION, "kind": "Tenant", "metadata": {"name": "chat"}, "spec": {}}
    release.cluster.kubectl("apply", "--server-side", "-n", "team-a", "-f", "-", stdin=json.dumps(tenant))
    with operator(release, tmp_path_factory.mktemp("operator") / "operator.log"):
        pass
    return release


@pytest.mark.parametrize("values", [pytest.param(values, id=name) for name, values in _variants()])
def test_the_api_server_takes_what_is_rendered(
    installed: Release, helm: Helm, values: dict[str, Any]
) -> None:
    # Another release, so that it is as if it were installed: some fields can't be changed.
    api = "fairserve.dev/v1alpha1/ServingPool"
    text = helm(
        "template",
        "other",
        CHART,
        "-n",
        NAMESPACE,
        "-f",
        "-",
        "--api-versions",
        api,
        stdin=json.dumps(values),
    )
    said = installed.cluster.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        stdin=text,
    )

    assert said.count("(server dry run)") == len(Rendered(text).objects)


def test_an_upgrade_without_changes_changes_nothing(installed: Release) -> None:
    before = installed.objects()
    assert len(before) > 10

    installed.helm("upgrade")

    assert installed.objects() == before


@pytest.mark.parametrize("way", ["--server-side=true", "--server-side=false"])
def test_upgrades_and_rollbacks_leave_the_certificate_authority_alone(installed: Release, way: str) -> None:
    before = installed.webhook()["clientConfig"]
    assert "CERTIFICATE" in base64.b64decode(before["caBundle"]).decode()

    installed.helm("upgrade", way, webhook={"failurePolicy": "Ignore", "timeoutSeconds": 3})
    assert installed.webhook()["failurePolicy"] == "Ignore"
    assert installed.webhook()["clientConfig"] == before

    installed.helm("rollback", way)
    assert installed.webhook()["failurePolicy"] == "Fail"
    assert installed.webhook()["clientConfig"] == before


def test_the_operator_of_some_namespaces_needs_only_its_roles(installed: Release, tmp_path: Path) -> None:
    installed.helm("upgrade", namespaces=["team-a", "team-b"])
    assert not installed.has("/apis/rbac.authorization.k8s.io/v1/clusterroles/fairserve-operator")
    metadata, spec = {"name": "llm"}, {"selector": {"matchLabels": {"app": "vllm"}}}
    pool = json.dumps({"apiVersion": API_VERSION, "kind": "ServingPool", "metadata": metadata, "spec": spec})

    with operator(installed, tmp_path / "operator.log"):
        for namespace in ("team-a", "team-b"):
            installed.cluster.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=pool)
            secret = f"/api/v1/namespaces/{namespace}/secrets/fairserve-llm"
            until(lambda secret=secret: installed.has(secret), secret)  # type: ignore[misc]


def test_a_removed_release_leaves_definitions_and_objects_to_the_next(installed: Release) -> None:
    tenant = installed.cluster.request("GET", _TENANT)
    assert installed.has(_DEPLOYMENT)

    installed.helm("uninstall")
    until(lambda: not installed.has(_DEPLOYMENT), "the Deployment to go")
    assert not installed.has(_WEBHOOK)
    assert installed.cluster.request("GET", _TENANT) == tenant

    installed.helm("install")
    assert installed.has(_DEPLOYMENT)
    assert installed.cluster.request("GET", _TENANT) == tenant


def test_the_second_round_makes_the_serving_pool(installed: Release) -> None:
    pool = f"/apis/fairserve.dev/v1alpha1/namespaces/{NAMESPACE}/servingpools/llm"
    vllm = {
        "enabled": True,
        "replicas": 0,
        "servingPool": {"create": True, "spec": {"throttling": {"mode": "Shadow"}}},
    }
    installed.helm("upgrade", vllm=vllm)

    spec = installed.cluster.request("GET", pool)["spec"]
    assert spec["throttling"] == {"mode": "Shadow"}
    before = installed.objects()
    installed.helm("upgrade", vllm=vllm)
    assert installed.objects() == before


def test_definitions_go_where_they_are_not_kept(installed: Release) -> None:
    """The last one: it takes away what the others need."""
    installed.helm("upgrade", crds={"keep": False})
    installed.helm("uninstall")

    until(lambda: not installed.has(_TENANT), "the Tenant to go with its definition")
    with pytest.raises(HelmError, match="not found"):
        installed.helm("status")
