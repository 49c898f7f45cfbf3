"""The Lease by which one of several operators acts: its body, and what is read from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairserve_operator.decide.leadership import Lease


def lease_body(namespace: str, name: str, lease: Lease, acquired: str | None, renewed: str) -> dict[str, Any]:
    """A coordination.k8s.io/v1 Lease; an empty version creates it.

    Times are RFC 3339 with microseconds, for people; `acquired` None leaves that one out.
    """
    spec: dict[str, Any] = {
        "holderIdentity": lease.holder,
        "leaseDurationSeconds": int(lease.lease_s),
        "leaseTransitions": lease.transitions,
        "renewTime": renewed,
    }
    if acquired is not None:
        spec["acquireTime"] = acquired
    metadata = {"name": name, "namespace": namespace}
    if lease.version:
        metadata["resourceVersion"] = lease.version
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def read_lease(body: Mapping[str, Any]) -> Lease:
    """What a Lease says. One that leaves everything out is held by nobody."""
    spec = body.get("spec") or {}
    return Lease(
        version=body["metadata"]["resourceVersion"],
        holder=spec.get("holderIdentity") or "",
        lease_s=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
    )
