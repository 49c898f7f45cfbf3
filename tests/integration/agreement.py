"""Whether what an operator has done agrees with the objects, judged by the pure compilation of them.

Nothing here asks the operator: objects, Secrets and statuses are read from the API server, and what sidecars
run from them.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fairserve.config import SchedulerConfig, key_digest
from fairserve_operator.decide.compilation import Compiled, compile_pool, examine, needs
from fairserve_operator.decide.resources import (
    APPLICATION,
    SERVING_POOL,
    TENANT,
    Resource,
    SecretProblem,
    SecretRef,
    can_be_sent,
)
from fairserve_operator.handlers import bodies
from fairserve_operator.manifests.boot_secret import CONFIG_KEY
from tests.fakes.sidecar_control import SidecarControl
from tests.integration.operating import Place

_PLURALS = {TENANT: "tenants", APPLICATION: "applications", SERVING_POOL: "servingpools"}
#: What the compilation alone decides.
_DECIDED = ("Accepted", "ResolvedRefs", "Conflicted", "Held")


@dataclass(frozen=True)
class Held:
    """The objects of a namespace as the API server holds them, by kind, and its Secrets by name."""

    objects: Mapping[str, list[dict[str, Any]]]
    secrets: Mapping[str, dict[str, Any]]

    def resources(self, kind: str) -> list[Resource]:
        """The objects of one kind."""
        return [bodies.resource(kind, body) for body in self.objects[kind]]

    def digests(self, salt: str) -> dict[SecretRef, str | SecretProblem]:
        """The digest of each key that an object names, or why there is none."""
        wanted = needs(self.resources(TENANT), self.resources(SERVING_POOL)).secrets
        return {ref: self._digest(ref, salt) for ref in wanted}

    def _digest(self, ref: SecretRef, salt: str) -> str | SecretProblem:
        if ref.name not in self.secrets:
            return SecretProblem.SECRET_MISSING
        data = self.secrets[ref.name].get("data") or {}
        if ref.key not in data:
            return SecretProblem.KEY_MISSING
        value = base64.b64decode(data[ref.key]).strip().decode("latin-1")
        if not value:
            return SecretProblem.EMPTY
        return key_digest(salt, value) if can_be_sent(value) else SecretProblem.MALFORMED

    def boot(self, pool: str) -> SchedulerConfig | None:
        """What the pool's boot Secret holds."""
        packed = (self.secrets.get(f"fairserve-{pool}", {}).get("data") or {}).get(CONFIG_KEY)
        return (
            None if packed is None else SchedulerConfig.from_bytes(gzip.decompress(base64.b64decode(packed)))
        )

    def compiled(self, pool: str) -> Compiled:
        """What should come of the pool; token issuers have no keys."""
        boot = self.boot(pool)
        salt = "00" * 16 if boot is None else boot.identity.salt
        pools = self.resources(SERVING_POOL)
        mine = next(each for each in pools if each.key.name == pool)
        tenants, applications = self.resources(TENANT), self.resources(APPLICATION)
        return compile_pool(mine, pools, tenants, applications, self.digests(salt), {}, salt)


def held(place: Place) -> Held:
    """Read everything."""
    api, prefix = place.control_plane, f"/apis/fairserve.dev/v1alpha1/namespaces/{place.namespace}"
    secrets = api.request("GET", f"/api/v1/namespaces/{place.namespace}/secrets")["items"]
    return Held(
        {kind: api.request("GET", f"{prefix}/{plural}")["items"] for kind, plural in _PLURALS.items()},
        {each["metadata"]["name"]: each for each in secrets},
    )


def disagreements(place: Place, sidecars: Mapping[str, SidecarControl], pool: str = "llm") -> list[str]:
    """What does not agree, in words; `sidecars` by Pod are those that there should be."""
    found = held(place)
    compiled = found.compiled(pool)
    if compiled.config is None:
        return [f"ServingPool {pool} is refused: {compiled.conditions}"]
    content_hash, boot = compiled.config.content_hash, found.boot(pool)
    told = [
        f"Pod {name} runs other content: generation {sidecar.generation}"
        for name, sidecar in sidecars.items()
        if sidecar.content_hash != content_hash or sidecar.config.content_hash != content_hash
    ]
    if boot is None or boot.content_hash != content_hash:
        told.append("the boot Secret has other content")
    elif any(sidecar.generation != boot.generation for sidecar in sidecars.values()):
        told.append(f"a sidecar runs another generation than {boot.generation}")
    told += _untrue(found, compiled.conditions)
    everywhere = f"{len(sidecars)}/{len(sidecars)}"
    for body in _all(found):
        name, status = _name(body), body.get("status") or {}
        accepted = _conditions(status).get("Accepted", {}).get("status") == "True"
        programmed = _conditions(status).get("Programmed", {}).get("status")
        if accepted and (status.get("programmed"), programmed) != (everywhere, "True"):
            told.append(f"{name}: programmed {status.get('programmed')} ({programmed}), not {everywhere}")
    return told


def untrue_statuses(place: Place) -> list[str]:
    """Which statuses don't say what the compilation of the objects says, in words."""
    found = held(place)
    pools = found.resources(SERVING_POOL)
    if pools:
        return _untrue(found, found.compiled(pools[0].key.name).conditions)
    tenants, applications = found.resources(TENANT), found.resources(APPLICATION)
    return _untrue(found, examine(tenants, applications, found.digests("00" * 16), {}))


def _untrue(found: Held, conditions: Mapping[Any, Any]) -> list[str]:
    told: list[str] = []
    for body in _all(found):
        name, metadata, status = _name(body), body["metadata"], body.get("status") or {}
        if status.get("observedGeneration") != metadata["generation"]:
            told.append(f"{name}: the status is of generation {status.get('observedGeneration')}")
        key = bodies.resource(body["kind"], body).key
        should: dict[str, Any] = {
            each.type: (each.status, each.reason, each.message, each.observed_generation)
            for each in conditions[key]
        }
        says: dict[str, Any] = {
            kind: (each["status"], each["reason"], each["message"], each["observedGeneration"])
            for kind, each in _conditions(status).items()
            if kind in _DECIDED
        }
        if any(each in str(body["spec"]) for each in ("jwt", "serviceAccount", "poolRef")):
            # What keys an issuer has, who has them first, and which InferencePools exist, is not known here.
            should, says = {"Accepted": should["Accepted"]}, {"Accepted": says.get("Accepted")}
        if says != should:
            told.append(f"{name}: says {says}, not {should}")
        if metadata.get("finalizers") or metadata.get("annotations"):
            told.append(f"{name}: has finalizers or annotations")
    return told


def _all(found: Held) -> Iterator[dict[str, Any]]:
    for kind, listed in found.objects.items():
        yield from ({**body, "kind": kind} for body in listed)


def _name(body: Mapping[str, Any]) -> str:
    return f"{body['kind']} {body['metadata']['name']}"


def _conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in status.get("conditions") or ()}
