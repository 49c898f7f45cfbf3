"""Bodies of server-side apply on the status subresource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairserve_operator.api.v1alpha1 import API_VERSION
from fairserve_operator.decide.resources import ObjectKey

#: Whose fields they are: whatever this manager stops writing disappears.
FIELD_MANAGER = "fairserve-operator"


def status_patch(key: ObjectKey, status: Mapping[str, Any]) -> dict[str, Any]:
    """The whole status of an object, for `application/apply-patch+yaml`."""
    return {
        "apiVersion": API_VERSION,
        "kind": key.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "status": dict(status),
    }
