"""From the bodies of watch events to what the store keeps: pure.

Bodies come as the API server sent them. Nothing is believed beyond what Kubernetes itself guarantees, and
little is kept: a cluster may hold many Pods and large Secrets that are none of ours.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Mapping
from typing import Any

from fairserve_operator.decide.resources import APPLICATION, ObjectKey, Resource
from fairserve_operator.handlers.store import Pod
from fairserve_operator.manifests.boot_secret import is_boot_secret

#: Types of Secrets that never hold what our objects name, and may be many or large. The token of a service
#: account is not among them: a Prometheus may want it.
FOREIGN_SECRETS = ("helm.sh/release.v1",)
SECRET_SELECTOR = ",".join(f"type!={kind}" for kind in FOREIGN_SECRETS)


def version(body: Mapping[str, Any]) -> int:
    """The resource version. API servers promise since Kubernetes 1.35 that it can be compared as a number."""
    return int(body["metadata"]["resourceVersion"])


def resource(kind: str, body: Mapping[str, Any]) -> Resource:
    """A custom resource, spec as it is."""
    metadata = body["metadata"]
    labels = metadata.get("labels") if kind == APPLICATION else None
    return Resource(
        key=ObjectKey(kind, metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        created=metadata.get("creationTimestamp", ""),
        spec=body.get("spec") or {},
        labels=labels or {},
    )


def pod(body: Mapping[str, Any]) -> Pod:
    """A Pod, reduced."""
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return Pod(
        namespace=sys.intern(metadata["namespace"]),
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        labels={sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()},
        running=status.get("phase") == "Running" and "deletionTimestamp" not in metadata,
        ready=conditions.get("Ready") == "True",
        incarnation=_incarnation(status),
    )


def secret_values(body: Mapping[str, Any]) -> Mapping[str, bytes]:
    """The entries of a Secret, decoded; none of a boot Secret, which is large and read where needed."""
    data = body.get("data") or {}
    if is_boot_secret(data):
        return {}
    return {name: decoded for name, text in data.items() if (decoded := _decoded(text)) is not None}


def _incarnation(status: Mapping[str, Any]) -> str:
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return ",".join(
        f"{each['name']}:{each.get('restartCount', 0)}:{_started(each)}"
        for each in sorted(containers, key=lambda each: str(each["name"]))
    )


def _started(container: Mapping[str, Any]) -> str:
    return str(((container.get("state") or {}).get("running") or {}).get("startedAt", ""))


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
