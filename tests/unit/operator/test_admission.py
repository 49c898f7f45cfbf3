"""What the webhook answers to the API server."""

from __future__ import annotations

import base64
import copy
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml

from fairserve_operator.decide.admission import (
    Answer,
    BadReview,
    NoPool,
    Outcome,
    Pool,
    Request,
    answer,
    difference,
    ignored,
    read_review,
)
from fairserve_operator.manifests.injection import INJECT_LABEL, Injected, Settings, inject

SHAPES = sorted((Path(__file__).parent / "shapes").glob("*.yaml"))
SETTINGS = Settings("sidecar:1", drain_s=45)
POOL = Pool(9001)


def pod(path: Path) -> dict[str, Any]:
    """A Pod of a shape, labelled."""
    document = yaml.safe_load(path.read_text())
    template = document if document["kind"] == "Pod" else document["spec"]["template"]
    metadata = {**(template.get("metadata") or {}), "generateName": "vllm-7d9f-"}
    metadata["labels"] = {**(metadata.get("labels") or {}), INJECT_LABEL: "llm"}
    metadata.pop("name", None)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def vllm(**fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "labels": {INJECT_LABEL: "llm"}},
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v1", **fields}]},
    }


def review(body: object, **request: Any) -> bytes:
    """What an API server sends for the creation of a Pod."""
    asked = {
        "uid": "u-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "shop",
        "operation": "CREATE",
        "object": body,
        "oldObject": None,
        "dryRun": False,
        **request,
    }
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}
    ).encode()


def asked(body: dict[str, Any], **request: Any) -> Request:
    read = read_review(review(body, **request))
    assert isinstance(read, Request), read
    return read


def answered(body: dict[str, Any], pool: Pool | NoPool = POOL) -> Answer:
    request = asked(body)
    assert request.pool is not None
    return answer(request, request.pool, pool, SETTINGS)


def patched(given: Answer, body: dict[str, Any]) -> dict[str, Any]:
    """What the API server makes of it."""
    response = given.body["response"]
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    return jsonpatch.apply_patch(body, json.loads(base64.b64decode(response["patch"])))


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_each_shape_becomes_what_the_injection_makes_of_it(path):
    before = pod(path)
    wanted = inject(before, "llm", Settings("sidecar:1", control_port=9001, drain_s=45))
    assert isinstance(wanted, Injected)
    given = answered(copy.deepcopy(before))
    assert patched(given, before) == wanted.template
    assert given.outcome is Outcome.INJECTED
    assert given.body["apiVersion"] == "admission.k8s.io/v1"
    assert given.body["response"]["uid"] == "u-1"
    assert given.body["response"].get("warnings", []) == [
        f"Pod shop/vllm-7d9f-*: {note}" for note in wanted.notes
    ]


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_what_has_a_sidecar_stays_as_it_is(path):
    before = pod(path)
    given = answered(patched(answered(before), before))
    assert given.outcome is Outcome.UNCHANGED
    assert given.body["response"]["allowed"] is True
    assert "patch" not in given.body["response"]
    assert not any("another" in warning for warning in given.body["response"].get("warnings", []))


def test_a_sidecar_of_other_options_stays_too_and_its_author_is_told():
    offline = inject(vllm(), "llm", Settings("sidecar:0", control_port=9002))
    assert isinstance(offline, Injected)
    response = answered(offline.template).body["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert warning.startswith("Pod shop/p: metadata.annotations[fairserve.dev/injected]: ")
    assert "with image 'sidecar:0' and not 'sidecar:1'" in warning, (
        "whoever wrote the annotation may be anybody"
    )
    same = inject(vllm(), "llm", Settings("sidecar:1", control_port=9002))
    assert isinstance(same, Injected)
    (warning,) = answered(same.template).body["response"]["warnings"]
    assert "image" not in warning


def test_a_refusal_names_the_pod_and_the_field():
    given = answered(vllm(args=["--uds=/tmp/socket"]))
    assert given.outcome is Outcome.REFUSED
    response = given.body["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 400
    assert response["status"]["message"] == given.message
    assert given.message.startswith("Pod shop/p: spec.containers[0].args: ")


def test_somebodys_change_to_what_was_injected_is_refused():
    before = vllm()
    body = patched(answered(before), before)
    body["spec"]["containers"][0]["args"] = ["--port=1"]
    assert answered(body).outcome is Outcome.REFUSED


def test_a_pool_that_is_not_there_yet_is_waited_for():
    before = vllm()
    given = answered(before, Pool(None))
    wanted = inject(before, "llm", SETTINGS)
    assert isinstance(wanted, Injected)
    assert patched(given, before) == wanted.template
    (warning,) = given.body["response"]["warnings"]
    assert "no ServingPool shop/llm yet" in warning
    assert "sidecar.controlPort must be 8001" in warning


def test_a_pod_that_its_pool_does_not_select_comes_with_a_warning():
    for labels in ({}, {INJECT_LABEL: "llm"}):
        assert "warnings" not in answered(vllm(), Pool(8001, labels)).body["response"]
    given = answered(vllm(), Pool(8001, {INJECT_LABEL: "llm", "app": "vllm", "a": "b"}))
    assert given.outcome is Outcome.INJECTED
    (warning,) = given.body["response"]["warnings"]
    assert "ServingPool shop/llm selects Pods with a: b, app: vllm, which this one hasn't" in warning


def test_nothing_is_created_while_nothing_can_be_told_of_the_pool():
    given = answered(vllm(), NoPool(Outcome.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE, "no answer"))
    assert given.outcome is Outcome.UNAVAILABLE
    assert given.body["response"] == {
        "uid": "u-1",
        "allowed": False,
        "status": {"code": 503, "message": "Pod shop/p: no answer"},
    }


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "UPDATE"},
        {"operation": "DELETE", "object": None},
        {"subResource": "binding"},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"object": {"metadata": {"name": "p", "labels": {"app": "vllm"}}, "spec": {"containers": []}}},
        {"object": {"metadata": None, "spec": None}},
    ],
    ids=str,
)
def test_only_the_creation_of_labelled_pods_is_touched(request_):
    request = read_review(review(vllm(), **request_))
    assert isinstance(request, Request)
    assert request.pool is None
    given = ignored(request)
    assert given.outcome is Outcome.IGNORED
    assert given.body["response"] == {"uid": "u-1", "allowed": True}


def of_version(version: str) -> bytes:
    return review(vllm()).replace(b"admission.k8s.io/v1", version.encode())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (review(vllm()).replace(b'"p"', b"NaN"), "no JSON"),
        (b"[]", "no AdmissionReview"),
        (b'{"kind": "Pod"}', "no AdmissionReview"),
        (of_version("admission.k8s.io/v1beta1"), "apiVersion must be admission.k8s.io/v1"),
        (b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}', "request.uid"),
        (review(vllm(), uid=""), "request.uid"),
        (review(vllm(), uid=7), "request.uid"),
        (review(None), "request.object"),
        (review(vllm(), namespace=None), "request.namespace"),
    ],
    ids=range(13),
)
def test_what_is_no_review_is_said(body, words):
    read = read_review(body)
    assert isinstance(read, BadReview)
    assert words in read.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 1}, {"a": 1}),
        ({"a": {"b/c": 1, "d~e": 2, "~1": 3}}, {"a": {"b/c": 2, "d~e": 3, "~1": 4, "f~/g": 5}}),
        ({"a": {"b": {"c": 1}}, "d": [1]}, {"a": {"b": {"e": [2]}}, "d": [1, 2]}),
        ({"a": None, "b": {"c": 1}}, {"a": {"x": 1}, "b": None}),
        ({"a": 1}, {}),
    ],
)
def test_a_difference_makes_the_one_of_the_other(old, new):
    operations = difference(old, new)
    assert jsonpatch.apply_patch(old, operations) == new
    assert bool(operations) == (old != new)
