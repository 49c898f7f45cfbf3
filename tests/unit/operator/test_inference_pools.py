"""Which Pods a ServingPool means where an InferencePool says it."""

from __future__ import annotations

from typing import Any

import pytest

from fairserve_operator.decide.compilation import Compiled
from fairserve_operator.decide.conditions import CONFLICTED, RESOLVED_REFS
from fairserve_operator.decide.inference_pools import (
    NOT_INSTALLED,
    PENDING,
    InferencePool,
    InferencePools,
    read_inference_pool,
)
from fairserve_operator.decide.resources import Resource
from tests.unit.operator.builders import compiled, condition, pool

VLLM = InferencePool({"app": "vllm"}, frozenset({8000}))


def by_ref(name: str = "llm", ref: str = "vllm", created: str = "", **spec: Any) -> Resource:
    return pool(name, created=created, selector=None, poolRef={"name": ref}, **spec)


def compiled_with(known: InferencePools, this: Resource, *others: Resource) -> Compiled:
    return compiled(this=this, pools=[this, *others], inference_pools=known)


def test_an_inference_pool_says_which_pods() -> None:
    this = by_ref()
    result = compiled_with({"vllm": VLLM}, this)
    assert result.selection is not None
    assert result.selection.labels == {"app": "vllm"}
    assert condition(result, this, RESOLVED_REFS).reason == "Resolved"


@pytest.mark.parametrize(
    ("known", "reason", "words"),
    [
        ({}, "InferencePoolMissing", "is not found"),
        ({"other": VLLM}, "InferencePoolMissing", "is not found"),
        ({"vllm": InferencePool({}, frozenset({8000}))}, "InferencePoolUnusable", "selects by no labels"),
        (
            NOT_INSTALLED,
            "InferencePoolNotInstalled",
            "can't be there: the API server knows no InferencePool of inference.networking.k8s.io/v1",
        ),
        (PENDING, "Pending", "has not been looked for yet"),
    ],
)
def test_one_that_says_nothing_is_named_and_the_document_is_made_all_the_same(
    known: InferencePools, reason: str, words: str
) -> None:
    this = by_ref()
    result = compiled_with(known, this)
    resolved = condition(result, this, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", reason)
    assert resolved.message == f'spec.poolRef: ServingPool "llm" names InferencePool "vllm", which {words}'
    assert result.selection is not None
    assert result.selection.labels is None
    assert result.config is not None, "pods boot from it"


@pytest.mark.parametrize(
    ("ports", "words"), [({8000, 9000}, "8000, 9000"), ({9000}, "9000"), (set(), "no port")]
)
def test_calls_that_would_pass_the_sidecar_by_are_told(ports: set[int], words: str) -> None:
    this = by_ref()
    result = compiled_with({"vllm": InferencePool({"app": "vllm"}, frozenset(ports))}, this)
    resolved = condition(result, this, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("True", "OtherPortsTargeted")
    assert f"has {words} in targetPorts, while spec.sidecar.port is 8000" in resolved.message


def test_a_pool_that_names_conflicts_with_one_that_selects() -> None:
    old, young = pool("a", created="1", selector={"matchLabels": {"app": "vllm"}}), by_ref("b", created="2")
    result = compiled_with({"vllm": VLLM}, young, old)
    assert result.config is None
    assert condition(result, young, CONFLICTED).message == (
        'spec.poolRef: ServingPool "b" and ServingPool "a" select the same pods; ServingPool "a" has them'
    )
    assert condition(result, old, CONFLICTED).message.startswith("spec.selector.matchLabels: ")
    assert compiled_with({}, young, old).config is not None, "what can't be found claims nothing"


@pytest.mark.parametrize(
    "spec",
    [
        None,
        [],
        {"selector": None},
        {"selector": {"app": "v1alpha2 had them here"}},
        {"selector": {"matchLabels": ["app"]}},
        {"selector": {"matchLabels": {"app": 1}}, "targetPorts": "8000"},
        {"selector": {"matchLabels": {}}, "targetPorts": [None, 8000, {"number": "8000"}, {}]},
    ],
)
def test_nothing_is_believed_of_how_one_looks(spec: object) -> None:
    assert read_inference_pool(spec) == InferencePool({}, frozenset())


def test_reads_labels_and_ports() -> None:
    spec = {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}, {"number": 1}]}
    assert read_inference_pool(spec) == InferencePool({"app": "vllm"}, frozenset({8000, 1}))
