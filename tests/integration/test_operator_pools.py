"""Which Pods are whose, against a real API server: InferencePools, and pools that meet in a Pod."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.operating import (
    INFERENCE_POOL_DEFINITION,
    Place,
    custom,
    inference_pool,
    install_inference_pools,
    until,
)
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process


@pytest.fixture
def place(api: ControlPlane, namespace: str, everywhere: Process) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(api, namespace, stack)


def serving_pool(name: str, **spec: Any) -> dict[str, Any]:
    return custom("ServingPool", name, spec)


def reason(place: Place, name: str, type_: str) -> str:
    return str(place.condition("servingpools", name, type_).get("reason", ""))


def test_a_pool_follows_its_inference_pool_from_before_the_kind_is_known(place: Place) -> None:
    definition = INFERENCE_POOL_DEFINITION["metadata"]["name"]
    place.control_plane.kubectl("delete", "crd", definition, "--ignore-not-found")
    one, other = place.pod("a", {"app": "one"}), place.pod("b", {"app": "other"})
    place.apply([serving_pool("llm", poolRef={"name": "vllm"})])
    absent = place.until_condition("servingpools", "llm", "ResolvedRefs", "False")
    assert absent["reason"] == "InferencePoolNotInstalled"
    assert "inference.networking.k8s.io/v1" in absent["message"]
    until(place.boot_secret, "the boot Secret, which pods start from all the same")

    install_inference_pools(place.control_plane)
    until(lambda: reason(place, "llm", "ResolvedRefs") == "InferencePoolMissing", "the kind to be noticed")
    message = place.condition("servingpools", "llm", "ResolvedRefs")["message"]
    assert 'ServingPool "llm"' in message
    assert 'InferencePool "vllm"' in message

    place.apply([inference_pool("vllm", app="one")])
    place.until_condition("servingpools", "llm", "Ready", "True")
    assert place.get("servingpools", "llm")["status"]["programmed"] == "1/1"
    assert (one.generation, other.generation) == (1, 0)

    place.patch("inferencepools", "vllm", {"selector": {"matchLabels": {"app": "other"}}})
    until(lambda: other.generation == 1, "the pod that is selected now")

    place.delete("inferencepools", "vllm")
    until(lambda: reason(place, "llm", "ResolvedRefs") == "InferencePoolMissing", "its absence in the status")
    assert place.get("servingpools", "llm")["status"]["programmed"] == "1/1", "it keeps the pods that it has"


def test_a_pod_of_two_pools_is_the_first_ones_and_both_are_told(place: Place) -> None:
    shared, own = place.pod("shared", {"app": "vllm", "gpu": "h100"}), place.pod("own", {"gpu": "h100"})
    place.apply(
        [
            serving_pool("first", selector={"matchLabels": {"app": "vllm"}}),
            serving_pool("second", selector={"matchLabels": {"gpu": "h100"}}),
        ]
    )
    for name in ("first", "second"):
        told = place.until_condition("servingpools", name, "Conflicted", "True")
        assert told["reason"] == "SelectorConflict"
        for words in ('ServingPool "first"', 'ServingPool "second"', 'pod "shared"; ServingPool "first" has'):
            assert words in told["message"]
    place.until_condition("servingpools", "first", "Ready", "True")
    place.until_condition("servingpools", "second", "ResolvedRefs", "False")
    place.until_condition("servingpools", "second", "Programmed", "True")
    assert {told.body.pool for told in shared.configs} == {f"{place.namespace}/first"}
    assert {told.body.pool for told in own.configs} == {f"{place.namespace}/second"}

    place.delete("servingpools", "first")
    place.until_condition("servingpools", "second", "ResolvedRefs", "True")
    until(lambda: place.get("servingpools", "second")["status"]["pods"]["total"] == 2, "both pods")
