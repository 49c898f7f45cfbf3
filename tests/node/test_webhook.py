"""What becomes of labelled Pods while the webhook can't answer, and after its certificate is gone."""

import pytest

from tests.node.cluster import SYSTEM
from tests.parts.controlplane import KubectlError
from tests.parts.process import poll


@pytest.fixture
def no_operator(cluster):
    """The operator is scaled to nothing, as in an outage, and comes back afterwards."""
    scale(cluster, 0)
    poll(lambda: not cluster.get("pods", namespace=SYSTEM)["items"], 90.0, "no operator")
    yield
    scale(cluster, 2)
    cluster.rolled_out("fairserve-operator", SYSTEM)


def scale(cluster, replicas):
    words = ("-n", SYSTEM, "scale", "deployment/fairserve-operator", f"--replicas={replicas}")
    cluster.control_plane.kubectl(*words)


def test_while_no_operator_answers_labelled_pods_are_refused_and_others_serve_on(cluster, no_operator):
    with pytest.raises(KubectlError, match=r"failed calling webhook .inject\.fairserve\.dev"):
        cluster.kubectl("run", "labelled", "--image=x", "--labels=fairserve.dev/inject=llm")
    # Pod security looks at this one, which is how far it comes; no webhook is asked.
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        cluster.kubectl("run", "unlabelled", "--image=x")
    before = {pod["metadata"]["uid"] for pod in cluster.pods()}
    assert cluster.ask("team-a")["usage"]["completion_tokens"] == 8
    # A Pod that is lost meanwhile comes back once the operator does. Who makes it tries less and less often,
    # so the outage is a short one.
    cluster.kubectl("delete", "pod", cluster.pods()[0]["metadata"]["name"], "--wait=false")
    poll(lambda: refusals(cluster), 60.0, "a refused Pod")
    assert len(before & {pod["metadata"]["uid"] for pod in cluster.pods()}) == 1
    scale(cluster, 2)
    cluster.rolled_out("fairserve-operator", SYSTEM)
    cluster.rolled_out("vllm")
    assert all(sidecars(pod) == ["fairserve"] for pod in cluster.pods())


def sidecars(pod):
    return [each["name"] for each in pod["spec"].get("initContainers", [])]


def authority(cluster):
    """What the API server believes about the webhook's certificate."""
    configurations = cluster.get("mutatingwebhookconfigurations")["items"]
    (found,) = {each["webhooks"][0]["clientConfig"].get("caBundle") for each in configurations}
    return found


def test_a_certificate_that_is_deleted_is_made_anew_and_no_pod_fails_meanwhile(cluster):
    before, refused = authority(cluster), refusals(cluster)
    cluster.control_plane.kubectl("-n", SYSTEM, "delete", "secret", "fairserve-webhook")
    cluster.kubectl("rollout", "restart", "deployment/vllm")
    cluster.rolled_out("vllm")
    poll(lambda: authority(cluster) not in (None, before), 90.0, "another authority")
    # The webhook serves by the new one, or this would be refused.
    cluster.kubectl("rollout", "restart", "deployment/vllm")
    cluster.rolled_out("vllm")
    assert all(sidecars(pod) == ["fairserve"] for pod in cluster.pods())
    assert refusals(cluster) == refused


def refusals(cluster):
    """How many Pods the API server has refused for want of an answer, as events tell."""
    events = cluster.get("events")["items"]
    return sum(each["count"] for each in events if "failed calling webhook" in each["message"])
