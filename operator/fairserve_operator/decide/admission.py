"""What an AdmissionReview of a Pod is answered: pure, over what is known of the pool that the Pod asks for.

`read_review` tells what is asked, `answer` what to say. Whoever asks for no sidecar is let through as it is;
so is a Pod that has one, whoever put it there. docs/reference/injection.md says why a Pod is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any, NoReturn

from fairserve_operator.manifests.injection import (
    INJECT_LABEL,
    RECORD_ANNOTATION,
    SIDECAR_NAME,
    Injected,
    Refused,
    Settings,
    inject,
    wanted_pool,
)

API_VERSION = "admission.k8s.io/v1"

_DEFAULT_CONTROL_PORT = Settings("-").control_port


class Outcome(StrEnum):
    """How a call ended: a label of `/metrics`."""

    INJECTED = "injected"
    UNCHANGED = "unchanged"  #: it has a sidecar already
    IGNORED = "ignored"  #: nobody creates a labelled Pod
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"  #: nothing can be told of the pool at this moment
    BAD = "bad"  #: no AdmissionReview that can be answered


@dataclass(frozen=True, slots=True)
class BadReview:
    """What came can't be answered by an AdmissionReview."""

    message: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked."""

    uid: str
    namespace: str
    pod: Mapping[str, Any]
    pool: str | None  #: that the Pod's label names; None: nothing is to be done

    @property
    def subject(self) -> str:
        """The Pod, for messages; of one that gets its name later, how that begins."""
        metadata = self.pod.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        name = metadata.get("name") or f"{metadata.get('generateName', '')}*"
        return f"Pod {self.namespace}/{name}"


@dataclass(frozen=True, slots=True)
class Pool:
    """What is known of the ServingPool that a Pod asks for."""

    control_port: int | None  #: None: there is no such ServingPool
    #: That Pods of the pool have; empty where an InferencePool says which.
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoPool:
    """Why nothing is known of it; the Pod can't be created."""

    outcome: Outcome
    code: HTTPStatus
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say, and how the call counts."""

    outcome: Outcome
    body: dict[str, Any]  #: an AdmissionReview
    message: str = ""  #: why it is refused
    warnings: tuple[str, ...] = ()  #: what its author should know, as the body has it


def read_pool(spec: Mapping[str, Any]) -> Pool:
    """What a ServingPool's spec says, be it accepted or not."""
    sidecar, selector = spec.get("sidecar"), spec.get("selector")
    port = sidecar.get("controlPort") if isinstance(sidecar, Mapping) else None
    labels = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    return Pool(
        port if isinstance(port, int) and 0 < port < 65536 else _DEFAULT_CONTROL_PORT,
        labels if isinstance(labels, Mapping) else {},
    )


def read_review(body: bytes) -> Request | BadReview:
    """What a request's body asks."""
    try:
        review = json.loads(body, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return BadReview("the body is no JSON")
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        return BadReview("the body is no AdmissionReview")
    if review.get("apiVersion") != API_VERSION:
        return BadReview(f"apiVersion must be {API_VERSION}: list it in admissionReviewVersions")
    asked = review.get("request")
    if isinstance(asked, dict) and isinstance(uid := asked.get("uid"), str) and uid:
        return _request(uid, asked)
    return BadReview("request.uid is missing")


def _request(uid: str, asked: Mapping[str, Any]) -> Request | BadReview:
    namespace, pod = asked.get("namespace"), asked.get("object")
    creates = asked.get("operation") == "CREATE" and not asked.get("subResource")
    match asked.get("kind"):
        case {"group": "", "version": "v1", "kind": "Pod"} if creates:
            if not isinstance(pod, dict):
                return BadReview("request.object is no object")
            if not isinstance(namespace, str) or not namespace:
                return BadReview("request.namespace is missing")
            return Request(uid, namespace, pod, wanted_pool(pod))
    return Request(uid, str(namespace or ""), {}, None)


def ignored(request: Request) -> Answer:
    """The answer to what asks for no sidecar."""
    return _allowed(Outcome.IGNORED, request, [], ())


def answer(request: Request, pool_name: str, pool: Pool | NoPool, settings: Settings) -> Answer:
    """The answer to the creation of a labelled Pod."""
    if isinstance(pool, NoPool):
        return _denied(pool.outcome, request, pool.code, pool.message)
    warnings = []
    if pool.control_port is None:
        warnings.append(
            f"metadata.labels[{INJECT_LABEL}]: there is no ServingPool {request.namespace}/{pool_name} yet: "
            f"the Pod waits for it, and its sidecar.controlPort must be {settings.control_port}"
        )
    else:
        settings = replace(settings, control_port=pool.control_port)
    match inject(request.pod, pool_name, settings):
        case Refused() as refused:
            return _denied(Outcome.REFUSED, request, HTTPStatus.BAD_REQUEST, str(refused))
        case Injected(template=template, notes=notes):
            pass
    labels = template["metadata"]["labels"]
    missing = {name: value for name, value in pool.labels.items() if labels.get(name) != value}
    if missing:
        words = ", ".join(f"{name}: {value}" for name, value in sorted(missing.items()))
        warnings.append(
            f"metadata.labels: ServingPool {request.namespace}/{pool_name} selects Pods with {words}, which "
            "this one hasn't: its sidecar will never hear of changes or of overload"
        )
    warnings += notes
    operations = difference(request.pod, template)
    if not _has_sidecar(request.pod):
        return _allowed(Outcome.INJECTED, request, operations, warnings)
    if operations:
        warnings.append(
            f"metadata.annotations[{RECORD_ANNOTATION}]: the sidecar that is here already stays as it is"
            f"{_other_image(request.pod, settings.image)}; with the options of the operator and the "
            "ServingPool it would be another"
        )
    return _allowed(Outcome.UNCHANGED, request, [], warnings)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[dict[str, Any]]:
    """The JSON patch (RFC 6902) from one object to another. Lists are replaced whole."""
    operations: list[dict[str, Any]] = []
    for name in sorted({*old, *new}):
        place = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
        before, after = old.get(name), new.get(name)
        if name not in new:
            operations.append({"op": "remove", "path": place})
        elif name not in old:
            operations.append({"op": "add", "path": place, "value": after})
        elif isinstance(before, Mapping) and isinstance(after, Mapping):
            operations += difference(before, after, place)
        elif before != after:
            operations.append({"op": "replace", "path": place, "value": after})
    return operations


def _has_sidecar(pod: Mapping[str, Any]) -> bool:
    metadata = pod.get("metadata") or {}
    return RECORD_ANNOTATION in (metadata.get("annotations") or {})


def _other_image(pod: Mapping[str, Any], ours: str) -> str:
    images = (each.get("image") for each in pod["spec"]["initContainers"] if each.get("name") == SIDECAR_NAME)
    image = next(images, None)
    return "" if image == ours else f", with image {image!r} and not {ours!r}"


def _allowed(
    outcome: Outcome, request: Request, operations: Sequence[Mapping[str, Any]], warnings: Sequence[str]
) -> Answer:
    response: dict[str, Any] = {"allowed": True}
    if operations:
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        response |= {"patchType": "JSONPatch", "patch": patch}
    told = tuple(f"{request.subject}: {warning}" for warning in warnings)
    if told:
        response["warnings"] = list(told)
    return Answer(outcome, _review(request, response), warnings=told)


def _denied(outcome: Outcome, request: Request, code: HTTPStatus, reason: str) -> Answer:
    message = f"{request.subject}: {reason}"
    response = {"allowed": False, "status": {"code": int(code), "message": message}}
    return Answer(outcome, _review(request, response), message)


def _review(request: Request, response: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "AdmissionReview",
        "response": {"uid": request.uid, **response},
    }


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
