"""examples/11-inference-gateway: the extension's own definitions, the operator, and a gateway's calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import yaml

from fairserve.config import SchedulerConfig
from fairserve.core.settings import DEFAULT_APPLICATION
from tests.fakes.engine import FakeEngine
from tests.integration.operating import Place, until
from tests.integration.sidecars import ask, metric, running_sidecar
from tests.parts import definitions
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane, KubectlError
from tests.parts.process import Process

EXAMPLE = REPOSITORY / "examples" / "11-inference-gateway"
INFERENCE_POOLS = "inferencepools.inference.networking.k8s.io"


def manifests() -> list[dict[str, Any]]:
    return [
        each
        for path in sorted(EXAMPLE.glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
        if each
    ]


@pytest.fixture(scope="module")
def extended(api: ControlPlane) -> Iterator[ControlPlane]:
    """With the definitions of the Gateway API and of its inference extension."""
    # Other tests have a definition of this name that takes anything.
    api.kubectl("delete", "crd", INFERENCE_POOLS, "--ignore-not-found")
    for name in ("gateway-api", "inference-extension"):
        api.kubectl("apply", "--server-side", "-f", definitions.ensure(name))
    api.wait_for_definitions()
    yield api
    api.kubectl("delete", "crd", INFERENCE_POOLS)


@pytest.fixture
def place(extended: ControlPlane, everywhere: Process, namespace: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(extended, namespace, stack)


def test_definitions_notice_a_mistake(extended: ControlPlane, namespace: str) -> None:
    wrong = (EXAMPLE / "pool.yaml").read_text().replace("number: 8000", "number: http")
    with pytest.raises(KubectlError, match=r"targetPorts\[0\]\.number"):
        extended.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", stdin=wrong)


@pytest.fixture
def config(place: Place) -> SchedulerConfig:
    """What a pod of the InferencePool gets."""
    place.pod("vllm-0")
    place.apply(manifests())
    place.until_condition("servingpools", "llm", "Ready", "True")
    resolved = place.condition("servingpools", "llm", "ResolvedRefs")
    assert (resolved["status"], resolved["reason"]) == ("True", "Resolved")
    assert place.get("servingpools", "llm")["status"]["programmed"] == "1/1"
    until(lambda: place.get("tenants", "team-b")["status"], "the Tenant's status")
    return place.boot_document()


async def test_gateway_says_whose_a_call_is(config: SchedulerConfig, tmp_path: Any) -> None:
    routes = [each for each in manifests() if each["kind"] == "HTTPRoute"]
    sent = {
        route["metadata"]["name"]: {
            each["name"].replace("-", "_"): each["value"]
            for rule in route["spec"]["rules"]
            for filter_ in rule["filters"]
            for each in filter_["requestHeaderModifier"]["set"]
        }
        for route in routes
    }
    # The gateway's address is another one here.
    assert config.identity.trusted_proxies
    identity = {**config.identity.model_dump(), "trusted_proxies": ["127.0.0.1/32"]}
    here = SchedulerConfig.model_validate({**config.model_dump(), "identity": identity})
    async with FakeEngine() as engine, running_sidecar(tmp_path, engine, here) as sidecar:
        for team, headers in sent.items():
            assert (await ask(sidecar.data_address, "none", {}, **headers)).status == 200
            objective = {"x_llm_d_inference_objective": "batch"}
            assert (await ask(sidecar.data_address, "none", {}, **headers, **objective)).status == 200
            text = sidecar.metrics.exposition().decode()
            for application in (DEFAULT_APPLICATION, "batch"):
                labels = {"tenant": team, "application": application, "outcome": "completed"}
                assert metric(text, "fairserve_requests_total", **labels) == 1
        assert (await ask(sidecar.data_address, "none", {})).status == 401
    assert sorted(sent) == ["team-a", "team-b"]
    for route in routes:
        removed = route["spec"]["rules"][0]["filters"][0]["requestHeaderModifier"]["remove"]
        assert removed == ["x-fairserve-tenant", "x-gateway-inference-fairness-id"]
