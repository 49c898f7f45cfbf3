"""What `helm install`, a label and three manifests make of a cluster in which Pod security is enforced."""

import urllib.error

import pytest

from tests.node.cluster import SYSTEM
from tests.parts import images
from tests.parts.loopback import Client


def test_the_operator_is_ready_twice_under_restricted_pod_security(cluster):
    pods = cluster.pods("app.kubernetes.io/component=operator", SYSTEM)
    ready = [all(each["ready"] for each in pod["status"]["containerStatuses"]) for pod in pods]
    assert ready == [True, True]


def test_an_unmodified_vllm_is_injected(cluster):
    template = cluster.get("deployment", "vllm")["spec"]["template"]["spec"]
    assert [each["name"] for each in template["containers"]] == ["vllm"]
    assert "initContainers" not in template
    pods = cluster.pods()
    assert len(pods) == 2
    for pod in pods:
        (sidecar,) = [each for each in pod["spec"]["initContainers"] if each["name"] == "fairserve"]
        assert sidecar["image"] == images.name("fairserve-sidecar")
        arguments = pod["spec"]["containers"][0]["args"]
        assert "--host=127.0.0.1" in arguments or "--host" in arguments


def test_a_pod_that_is_less_than_restricted_is_refused_here(cluster):
    """The negative control: Pod security is enforced indeed."""
    with pytest.raises(Exception, match="violates PodSecurity"):
        cluster.kubectl("run", "root", f"--image={images.name('vllm')}", "--restart=Never")


def test_calls_through_the_service_need_a_key_and_reach_vllm(cluster):
    assert cluster.ask("team-a", max_tokens=4)["usage"]["completion_tokens"] == 4
    client = Client(cluster.service_url())
    with pytest.raises(urllib.error.HTTPError, match="401"):
        client.json("POST", "/v1/chat/completions", {"model": "emulated", "messages": []})


def test_the_engine_listens_on_loopback_alone(cluster):
    (pod, _) = cluster.pods()
    engine = Client(f"http://{pod['status']['podIP']}:18000")
    assert not engine.answers("/health")
    assert Client(f"http://{pod['status']['podIP']}:8000").answers("/health")


def test_all_that_was_applied_is_in_force(cluster):
    cluster.wait_condition("servingpools", "llm", "Ready")
    for tenant in ("team-a", "team-b"):
        programmed = cluster.wait_condition("tenants", tenant, "Programmed")
        print(tenant, programmed["message"])
