"""The CRDs on a real API server: it refuses what the models refuse, in readable words, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from fairserve.config import INTERACTION_SOURCES
from fairserve_operator.api.v1alpha1 import API_VERSION
from fairserve_operator.crdgen import KINDS
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane, KubectlError
from tests.parts.process import poll

POOL: dict[str, Any] = {"selector": {"matchLabels": {"app": "vllm"}}}
PROFILE = {"inputTokens": 1, "outputTokens": 1}
MANY, FEW = {"count": 9, "window": "60s"}, {"count": 3, "window": "1m"}
JWT: dict[str, Any] = {
    "jwt": {"issuer": "https://id.example", "jwksUri": "https://id.example/keys", "audience": "llm"}
}
SIGNAL = {"name": "s", "threshold": 1, "query": "up"}
ENTRY = {"name": "prometheus", "key": "k"}
BASIC = {"username": ENTRY, "password": ENTRY}
SPECS = {kind.name: kind.spec for kind in KINDS}


def token(**changes: Any) -> dict[str, Any]:
    """A Tenant known by a token."""
    return {"identity": [{"jwt": {**JWT["jwt"], **changes}}]}


def users(*places: dict[str, str]) -> dict[str, Any]:
    return {"users": {"from": list(places)}}


def matching(*headers: dict[str, str]) -> dict[str, Any]:
    return {"profile": PROFILE, "match": {"headers": list(headers)}}


def prometheus(**fields: Any) -> dict[str, Any]:
    return {**POOL, "overload": {"prometheus": {"url": "https://prometheus:9090", **fields}}}


@pytest.fixture(scope="session")
def with_crds(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("apply", "-f", REPOSITORY / "crds")
    control_plane.wait_for_definitions()
    return control_plane


def manifest(kind: str, spec: dict[str, Any], name: str = "x") -> str:
    return json.dumps({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("Tenant", {"weight": 0}, "spec.weight in body should be greater than 0"),
        ("Tenant", {"weight": 1e-9}, "must be at least 0.000001"),
        ("Tenant", {"weight": "3"}, "must be of type number"),
        ("Tenant", {"wieght": 3}, 'unknown field "spec.wieght"'),
        ("Tenant", {"identity": [{}]}, "spec.identity[0]: Invalid value: exactly one of apiKey, header"),
        ("Tenant", {"identity": [{"header": {"name": "Host", "value": "a"}}]}, "a meaning of its own"),
        ("Tenant", {"interactionLimits": {"perUser": {"count": 1}}}, "perUser.window: Required value"),
        ("Tenant", {"queue": {"maxWait": "0s"}}, "must be longer than 0s"),
        ("Tenant", {"queue": {"maxBytes": "1000"}}, "spec.queue.maxBytes"),
        ("Tenant", {"queue": {"maxRequestsPerUser": 10001}}, "must not exceed maxRequests"),
        ("Tenant", {"queue": {"maxBytesPerUser": "2Gi"}}, "must not exceed maxBytes"),
        ("Tenant", {"queue": {"maxBytes": "2047Ki", "maxBytesPerUser": "2Mi"}}, "must not exceed maxBytes"),
        ("Tenant", {"interactionLimits": {"perUser": MANY, "total": FEW}}, "where it could never apply"),
        ("Tenant", {"prefixCacheGroup": "a b"}, "spec.prefixCacheGroup"),
        ("Tenant", {"stopPolicy": "Drain"}, 'supported values: "None", "Hold"'),
        ("Tenant", token(jwksUri="http://user:secret@id.example/keys"), "identity[0].jwt.jwksUri"),
        ("Tenant", token(jwksSecretRef={"name": "s", "key": "k"}), "exactly one of jwksUri, jwksSecretRef"),
        ("Tenant", token(claim=["team"]), "claim and value go together"),
        ("Tenant", token(claim=[], value="x"), "should have at least 1 items"),
        ("Tenant", {"identity": [{**JWT, "serviceAccount": {"namespace": "x"}}]}, "exactly one of apiKey"),
        ("Tenant", {"identity": [{"serviceAccount": {"name": "x"}}]}, "serviceAccount.namespace: Required"),
        ("Tenant", {"applications": {}}, "exactly one of names, selector is allowed"),
        ("Tenant", {"applications": {"names": ["a", "a"]}}, "Duplicate value"),
        ("Tenant", {"applications": {"selector": {}}}, "selector.matchLabels: Required value"),
        (
            "Tenant",
            {
                "applications": {"names": ["a"]},
                "identity": [{"apiKey": {"secretRef": ENTRY, "application": "b"}}],
            },
            "the application of an apiKey in identity must be among applications.names",
        ),
        ("Tenant", {"users": {}}, "spec.users.from: Required value"),
        ("Tenant", users({"header": "x-u", "bodyField": "u"}), "exactly one of header, bodyField is allowed"),
        ("Tenant", users({"header": "X-Upper"}), "spec.users.from[0].header"),
        ("Tenant", users({"header": "authorization"}), "is a header with another meaning"),
        ("Tenant", users({"header": "x-fairserve-tenant"}), "is a header with another meaning"),
        ("Tenant", users({"bodyField": "a..b"}), "spec.users.from[0].bodyField"),
        ("Tenant", users({"bodyField": "a"}, {"bodyField": "a"}), "an entry is there twice"),
        (
            "Application",
            {"profile": PROFILE, "match": {}},
            "at least one of models, paths, headers is needed",
        ),
        ("Application", {"profile": PROFILE, "match": {"models": []}}, "should have at least 1 items"),
        ("Application", {"profile": PROFILE, "match": {"paths": ["/a?b"]}}, "spec.match.paths[0]"),
        ("Application", matching({"name": "api-key", "value": "a"}), "is a header with another meaning"),
        ("Application", matching({"name": "x-a"}), "spec.match.headers[0].value: Required value"),
        (
            "Application",
            matching({"name": "x-a", "value": "1"}, {"name": "x-a", "value": "2"}),
            "Duplicate value",
        ),
        ("Application", {}, "spec.profile: Required value"),
        ("Application", {"profile": {**PROFILE, "mode": "Magic"}}, 'supported values: "Static", "Learned"'),
        ("Application", {"profile": {**PROFILE, "learning": {}}}, "learning applies to mode Learned only"),
        (
            "Application",
            {"profile": PROFILE, "interactionLimits": {"perTenant": MANY, "total": FEW}},
            "perTenant must not allow more than total",
        ),
        (
            "Application",
            {"profile": PROFILE, "interaction": {"idSources": ["header:X-Upper"]}},
            "spec.interaction.idSources[0]",
        ),
        (
            "Application",
            {"profile": PROFILE, "interaction": {"idSources": ["traceparent"] * 2}},
            "Duplicate value",
        ),
        (
            "Application",
            {"profile": {"inputTokens": 1, "systemTokens": 2, "outputTokens": 1}},
            "systemTokens must not exceed inputTokens",
        ),
        ("ServingPool", {}, "exactly one of selector, poolRef is allowed"),
        ("ServingPool", {**POOL, "poolRef": {"name": "x"}}, "exactly one of selector, poolRef is allowed"),
        ("ServingPool", {"poolRef": {"name": "X"}}, "spec.poolRef.name"),
        ("ServingPool", {"selector": {"matchLabels": {}}}, "should have at least 1 properties"),
        ("ServingPool", {"selector": {"matchLabels": {"app": "v l"}}}, "should match"),
        (
            "ServingPool",
            {**POOL, "overload": {"prometheus": {"url": "http://user:secret@prometheus:9090"}}},
            "should match",
        ),
        ("ServingPool", prometheus(url="http://[::1:9090"), "should match"),
        ("ServingPool", prometheus(url="http://a]b:9090"), "should match"),
        ("ServingPool", prometheus(url="http://prometheus:99999"), "is not a URL"),
        ("ServingPool", prometheus(url="http://prometheus:x"), "is not a URL"),
        ("ServingPool", prometheus(url="http://?"), "is not a URL"),
        ("ServingPool", {**POOL, "sidecar": {"port": 8001}}, "port and controlPort must differ"),
        ("ServingPool", {**POOL, "scheduler": {"policy": "VTC", "normalisation": 1}}, "FairServe only"),
        (
            "ServingPool",
            {**POOL, "overload": {"signals": [{**SIGNAL, "builtin": "QueueWait"}]}},
            "exactly one of builtin, query is allowed",
        ),
        (
            "ServingPool",
            {**POOL, "overload": {"signals": [{**SIGNAL, "clearThreshold": 1}]}},
            "clearThreshold must be below threshold",
        ),
        ("ServingPool", {**POOL, "overload": {"signals": [SIGNAL, SIGNAL]}}, "Duplicate value"),
        (
            "ServingPool",
            {**POOL, "overload": {"signals": [{**SIGNAL, "query": " (`5`)"}]}},
            "is a text in quotes, not PromQL",
        ),
        ("ServingPool", {**POOL, "overload": {"evaluationInterval": "99ms"}}, "must be at least 100ms"),
        ("ServingPool", prometheus(auth={}), "exactly one of bearerToken, basic is allowed"),
        (
            "ServingPool",
            prometheus(auth={"bearerToken": {"secretRef": ENTRY}, "basic": BASIC}),
            "exactly one of bearerToken, basic is allowed",
        ),
        ("ServingPool", prometheus(auth={"basic": {"username": ENTRY}}), "password: Required value"),
        (
            "ServingPool",
            prometheus(tls={"ca": ENTRY, "insecureSkipVerify": True}),
            "insecureSkipVerify makes ca pointless",
        ),
        (
            "ServingPool",
            prometheus(url="http://prometheus:9090", tls={"ca": ENTRY}),
            "tls needs a url that begins with https://",
        ),
        ("ServingPool", {**POOL, "overload": {"staleAfter": "5s"}}, "staleAfter must be at least twice"),
        ("ServingPool", {**POOL, "defaultTenant": {"mode": "Reject", "weight": 1}}, "Reject admits nobody"),
        ("ServingPool", {**POOL, "trustedProxies": ["10.0.0.0"]}, "spec.trustedProxies[0]"),
        ("ServingPool", {**POOL, "hopTokens": [{"name": "s"}]}, "spec.hopTokens[0].key: Required value"),
        ("ServingPool", {**POOL, "queue": {"maxBytes": 5}}, "must be of type string"),
        (
            "ServingPool",
            {**POOL, "defaultTenant": {"mode": "Reject", "prefixCacheGroup": "g"}},
            "Reject admits nobody",
        ),
    ],
)
def test_api_server_and_models_refuse_the_same(
    with_crds: ControlPlane, kind: str, spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(KubectlError) as refused:
        with_crds.kubectl("create", "--dry-run=server", "-f", "-", stdin=manifest(kind, spec))
    assert words in str(refused.value)
    with pytest.raises(ValidationError):
        SPECS[kind].model_validate(spec)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Tenant", {}),
        ("Application", {"profile": {"inputTokens": 1, "outputTokens": 1}}),
        ("Tenant", token(claim=["org", "team"], value="x", userClaim=["email"], applicationClaim=["app"])),
        ("Tenant", {"identity": [{"serviceAccount": {"namespace": "x", "name": "y.z"}}, JWT]}),
        ("Tenant", {"queue": {"maxBytesPerUser": "1Gi", "maxRequestsPerUser": 10000}}),
        ("Tenant", {"stopPolicy": "Hold"}),
        ("Tenant", {"interactionLimits": {"perUser": {**MANY, "window": "1s"}, "total": FEW}}),
        ("Application", {"profile": {**PROFILE, "mode": "Learned", "learning": {"maxFactorPerHour": 1.5}}}),
        ("Application", {"profile": PROFILE, "interaction": {"idSources": list(INTERACTION_SOURCES)}}),
        ("Application", {"profile": PROFILE, "interaction": {"idSources": []}}),
        ("ServingPool", {**POOL, "queue": {"maxBytes": "16Gi"}, "hopTokens": [{"name": "s", "key": "k"}]}),
        ("Tenant", {"applications": {"names": []}, "users": {"from": []}}),
        ("Tenant", {"applications": {"selector": {"matchLabels": {"a.b/c": "d"}}}}),
        (
            "Tenant",
            {
                "applications": {"names": ["a"]},
                "identity": [{"apiKey": {"secretRef": ENTRY, "application": "a"}}, JWT],
            },
        ),
        ("Tenant", users({"header": "x-fairserve-user"}, {"bodyField": "metadata.user_id"}, {"header": "x"})),
        (
            "Application",
            {"profile": PROFILE, "match": {"models": ["org/m:1"], "paths": ["/v1/score"]}},
        ),
        ("Application", matching({"name": "x-a", "value": "a b"}, {"name": "user-agent", "value": "x"})),
        ("ServingPool", POOL),
        ("ServingPool", {"poolRef": {"name": "vllm"}}),
        ("ServingPool", {**POOL, "overload": {"signals": [{**SIGNAL, "for": "1h30m"}], "holdDown": "0s"}}),
        ("ServingPool", {**POOL, "overload": {"signals": [{**SIGNAL, "query": """{"vllm:up"} > 0"""}]}}),
        ("ServingPool", {**POOL, "overload": {"staleAfter": "10s"}}),
        ("ServingPool", prometheus(auth={"basic": BASIC}, tls={"ca": ENTRY, "insecureSkipVerify": False})),
        ("ServingPool", prometheus(url="https://[2001:db8::1]:9090/base/")),
        ("ServingPool", prometheus(url="http://p", auth={"bearerToken": {"secretRef": ENTRY}})),
    ],
)
def test_a_spec_is_stored_as_it_was_written(with_crds: ControlPlane, kind: str, spec: dict[str, Any]) -> None:
    stored = with_crds.kubectl(
        "create", "--dry-run=server", "-o", "json", "-f", "-", stdin=manifest(kind, spec)
    )
    assert json.loads(stored)["spec"] == spec
    SPECS[kind].model_validate(spec)


def test_a_pools_name_must_fit_a_label(with_crds: ControlPlane) -> None:
    with pytest.raises(KubectlError, match="at most 63 characters"):
        with_crds.kubectl(
            "create", "--dry-run=server", "-f", "-", stdin=manifest("ServingPool", POOL, "n" * 64)
        )


def undescribed(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if not field.get("description", "").endswith("."):
            yield f"{path}.{name}"
        yield from undescribed(field, f"{path}.{name}")
        yield from undescribed(field.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("kind", SPECS)
def test_kubectl_explain_has_words_for_every_field(with_crds: ControlPlane, kind: str) -> None:
    def published() -> dict[str, Any] | None:
        document = with_crds.request("GET", "/openapi/v3/apis/fairserve.dev/v1alpha1")
        schema: dict[str, Any] | None = document["components"]["schemas"].get(
            f"dev.fairserve.v1alpha1.{kind}"
        )
        return schema

    schema = poll(published, 30.0, f"the published schema of {kind}")
    for part in ("spec", "status"):
        assert list(undescribed(schema["properties"][part], part)) == []


def test_kubectl_explain_reads_well(with_crds: ControlPlane) -> None:
    def explained() -> str | None:
        try:
            return with_crds.kubectl("explain", "tenants.fairserve.dev.spec.queue.maxBytesPerUser")
        except KubectlError:  # The schema is published a moment after the definition.
            return None

    words = " ".join(poll(explained, 30.0, "kubectl explain").split())
    assert "As `maxBytes`, for each of its users. Unset: only `maxBytes` bounds them." in words


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("fst", ["NAME", "WEIGHT", "PROGRAMMED", "SHARE", "REFUSED", "READY", "AGE"]),
        ("fsapp", ["NAME", "PROFILE", "READY", "AGE"]),
        ("fspool", ["NAME", "PODS", "POLICY", "OVERLOADED", "AGE"]),
    ],
)
def test_short_names_and_columns(
    with_crds: ControlPlane, namespace: str, name: str, columns: list[str]
) -> None:
    specs = {
        "fst": ("Tenant", {}),
        "fsapp": ("Application", {"profile": PROFILE}),
        "fspool": ("ServingPool", POOL),
    }
    with_crds.kubectl("create", "-n", namespace, "-f", "-", stdin=manifest(*specs[name]))
    assert with_crds.kubectl("get", "-n", namespace, name).splitlines()[0].split() == columns
    assert f"{specs[name][0].lower()}" in with_crds.kubectl("get", "-n", namespace, "fairserve", "-o", "name")
