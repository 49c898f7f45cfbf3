"""Events: what `kubectl describe` and `kubectl get events` tell of a transition."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from fairserve_operator.api.v1alpha1 import API_VERSION
from fairserve_operator.decide.resources import Resource
from fairserve_operator.manifests.status_patch import FIELD_MANAGER

#: What the API server accepts at most.
MAX_MESSAGE = 1024


def event(
    about: Resource, type_: Literal["Normal", "Warning"], reason: str, message: str, now: str
) -> dict[str, Any]:
    """A core/v1 Event. `now` is RFC 3339.

    The same event at the same time has the same name, so that writing it twice makes one.
    """
    what = "\0".join((about.uid, type_, reason, message, now))
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about.key.name[:230]}.{digest}", "namespace": about.key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": about.key.kind,
            "namespace": about.key.namespace,
            "name": about.key.name,
            "uid": about.uid,
        },
        "type": type_,
        "reason": reason,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
