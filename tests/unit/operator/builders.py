"""Resources for tests: well formed unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fairserve.config import key_digest
from fairserve_operator.decide.compilation import Compiled, compile_pool
from fairserve_operator.decide.conditions import Condition
from fairserve_operator.decide.inference_pools import InferencePools
from fairserve_operator.decide.jwks import Keys, KeySet
from fairserve_operator.decide.resources import (
    APPLICATION,
    SERVING_POOL,
    TENANT,
    ObjectKey,
    Resource,
    SecretProblem,
    SecretRef,
)

SALT = "5a" * 16
NAMESPACE = "team"
ISSUER, JWKS_URI = "https://id.example", "https://id.example/keys"
CLUSTER_ISSUER = "https://kubernetes.default.svc"


def resource(
    kind: str,
    name: str,
    spec: Mapping[str, Any],
    created: str = "",
    generation: int = 1,
    labels: Mapping[str, str] | None = None,
) -> Resource:
    key = ObjectKey(kind, NAMESPACE, name)
    return Resource(key, f"uid-{name}", generation, created, spec, labels or {})


def tenant(name: str, *, created: str = "", generation: int = 1, **spec: Any) -> Resource:
    return resource(TENANT, name, spec, created, generation)


def application(
    name: str, *, created: str = "", labels: Mapping[str, str] | None = None, **spec: Any
) -> Resource:
    profile = {"inputTokens": 100, "outputTokens": 50}
    return resource(APPLICATION, name, {"profile": profile, **spec}, created, labels=labels)


def pool(name: str = "llm", *, created: str = "", **spec: Any) -> Resource:
    fields = {"selector": {"matchLabels": {"app": name}}, **spec}
    given = {field: value for field, value in fields.items() if value is not None or field != "selector"}
    return resource(SERVING_POOL, name, given, created)


def api_key(secret: str, key: str = "api-key", application: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"secretRef": {"name": secret, "key": key}}
    return {"apiKey": {**entry, "application": application} if application else entry}


def header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"name": name, "value": value}}


def jwt(**changes: Any) -> dict[str, Any]:
    """An identity by token; `None` takes a field out."""
    fields = {"issuer": ISSUER, "jwksUri": JWKS_URI, "audience": "llm", **changes}
    return {"jwt": {name: value for name, value in fields.items() if value is not None}}


def service_account(namespace: str, name: str | None = None) -> dict[str, Any]:
    account = {"namespace": namespace} | ({"name": name} if name else {})
    return {"serviceAccount": account}


def key_set(*kids: str, issuer: str = "", problem: str = "") -> KeySet:
    """Keys that are good, with these ids."""
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    return KeySet(tuple({**key, "kid": kid} for kid in kids or ("k",)), issuer, problem)


def digests(secrets: Mapping[str, str | SecretProblem]) -> dict[SecretRef, str | SecretProblem]:
    """What handlers gather, for entries `api-key` of Secrets by name."""
    return {
        SecretRef(NAMESPACE, name, "api-key"): value
        if isinstance(value, SecretProblem)
        else key_digest(SALT, value)
        for name, value in secrets.items()
    }


def compiled(
    tenants: Iterable[Resource] = (),
    applications: Iterable[Resource] = (),
    secrets: Mapping[str, str | SecretProblem] | None = None,
    this: Resource | None = None,
    pools: Iterable[Resource] = (),
    keys: Keys | None = None,
    inference_pools: InferencePools = MappingProxyType({}),
) -> Compiled:
    known = digests(secrets or {}), keys or {}, SALT, inference_pools
    return compile_pool(this or pool(), pools, tenants, applications, *known)


def condition(of: Compiled, resource: Resource, type_: str) -> Condition:
    return next(c for c in of.conditions[resource.key] if c.type == type_)
