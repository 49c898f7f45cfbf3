"""From bodies to what the store keeps."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fairserve_operator.handlers import bodies

POD: dict[str, Any] = {
    "metadata": {
        "namespace": "ns",
        "name": "a",
        "uid": "u",
        "resourceVersion": "12",
        "labels": {"app": "vllm"},
    },
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": [{"type": "Ready", "status": "True"}],
        "initContainerStatuses": [
            {"name": "sidecar", "restartCount": 0, "state": {"running": {"startedAt": "t1"}}}
        ],
        "containerStatuses": [{"name": "vllm", "restartCount": 0, "state": {"running": {"startedAt": "t2"}}}],
    },
}


def test_pod() -> None:
    pod = bodies.pod(POD)
    assert (pod.name, pod.ip, pod.labels, pod.reachable, pod.ready) == (
        "a",
        "10.0.0.7",
        {"app": "vllm"},
        True,
        True,
    )
    assert bodies.version(POD) == 12


@pytest.mark.parametrize("container", ["initContainerStatuses", "containerStatuses"])
@pytest.mark.parametrize("change", [{"restartCount": 1}, {"state": {"running": {"startedAt": "t9"}}}])
def test_any_container_that_starts_anew_makes_another_incarnation(
    container: str, change: dict[str, Any]
) -> None:
    body = copy.deepcopy(POD)
    body["status"][container][0].update(change)
    assert bodies.pod(body).incarnation != bodies.pod(POD).incarnation


def test_pod_that_is_pending_or_on_its_way_out_is_not_reachable() -> None:
    bare = {"metadata": {**POD["metadata"], "labels": None}}
    assert not bodies.pod(bare).reachable
    leaving = {**POD, "metadata": {**POD["metadata"], "deletionTimestamp": "now"}}
    assert not bodies.pod(leaving).reachable
    assert not bodies.pod({**POD, "status": {**POD["status"], "phase": "Failed"}}).reachable


def test_resource_keeps_its_spec_as_it_is() -> None:
    metadata = {"namespace": "ns", "name": "team-a", "uid": "u", "resourceVersion": "1", "generation": 4}
    made = bodies.resource("Tenant", {"metadata": metadata, "spec": {"weight": "not a number"}})
    assert (made.generation, made.created, made.spec) == (4, "", {"weight": "not a number"})
    assert bodies.resource("Tenant", {"metadata": metadata}).spec == {}


def test_secret_values_are_decoded_and_boot_secrets_are_not_kept() -> None:
    assert bodies.secret_values({"data": {"api-key": "a2V5"}}) == {"api-key": b"key"}
    assert bodies.secret_values({"data": {"config.json.gz": "a2V5", "control-token": "a2V5"}}) == {}
    assert bodies.secret_values({}) == {}


def test_labels_are_kept_of_applications_alone() -> None:
    metadata = {"namespace": "ns", "name": "x", "uid": "u", "resourceVersion": "1", "labels": {"tier": "low"}}
    body = {"metadata": metadata, "spec": {}}
    assert bodies.resource("Application", body).labels == {"tier": "low"}
    assert bodies.resource("Tenant", body).labels == {}
    assert bodies.resource("Application", {"metadata": {**metadata, "labels": None}}).labels == {}
