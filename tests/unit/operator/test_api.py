"""The models: what they refuse, in whose words, and what they promise."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fairserve.config import (
    INTERACTION_SOURCES,
    ApplicationConfig,
    LearningConfig,
    OverloadConfig,
    QueueConfig,
    SchedulerConfigSection,
    TenantConfig,
)
from fairserve.overload.settings import OverloadSettings
from fairserve_operator.api.v1alpha1 import (
    DEFAULT_SIGNALS,
    ApplicationSpec,
    ServingPoolSpec,
    TenantSpec,
    duration_s,
    size_bytes,
)
from fairserve_operator.api.v1alpha1.application import BODY_SOURCES
from fairserve_operator.api.v1alpha1.fields import Model
from fairserve_operator.decide.sections import application_config, tenant_config
from fairserve_operator.decide.specs import rendered
from tests.unit.operator.builders import SALT, api_key, compiled, header, jwt, pool

MANY, FEW = {"count": 9, "window": "60s"}, {"count": 3, "window": "1m"}
SELECTOR = {"selector": {"matchLabels": {"app": "vllm"}}}


def signal(**fields: Any) -> dict[str, Any]:
    return {**SELECTOR, "overload": {"signals": [{"name": "s", "threshold": 2, **fields}]}}


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (TenantSpec, {"weight": 0}, "spec.weight: Input should be greater than 0"),
        (TenantSpec, {"weight": 1e-9}, "spec.weight: must be at least 1e-06"),
        (TenantSpec, {"weight": "3"}, "spec.weight: Input should be a valid number"),
        (TenantSpec, {"weight": True}, "spec.weight: Input should be a valid number"),
        (TenantSpec, {"wieght": 3}, "spec.wieght: unknown field"),
        (
            TenantSpec,
            {"identity": [{}]},
            "spec.identity[0]: exactly one of apiKey, header, jwt, serviceAccount is allowed",
        ),
        (
            TenantSpec,
            {"identity": [header("x-a", "b"), {**api_key("a"), **header("x-a", "b")}]},
            "spec.identity[1]: exactly one of apiKey, header, jwt, serviceAccount is allowed",
        ),
        (
            TenantSpec,
            {"identity": [header("Authorization", "b")]},
            "spec.identity[0].header: name: Authorization is a header with a meaning of its own; "
            "choose another",
        ),
        (
            TenantSpec,
            {"identity": [header("X-Fairserve-User", "b")]},
            "spec.identity[0].header: name: X-Fairserve-User is a header with a meaning of its own; "
            "choose another",
        ),
        (
            TenantSpec,
            {"identity": [{"apiKey": {"secretRef": {"name": "a"}}}]},
            "spec.identity[0].apiKey.secretRef.key: Field required",
        ),
        (
            TenantSpec,
            {"interactionLimits": {"perUser": {"count": 5}}},
            "spec.interactionLimits.perUser.window: Field required",
        ),
        (
            TenantSpec,
            {"interactionLimits": {"total": {"count": 0, "window": "0s"}}},
            "spec.interactionLimits.total.count: Input should be greater than or equal to 1; "
            "spec.interactionLimits.total.window: must be longer than 0s",
        ),
        (
            TenantSpec,
            {"interactionLimits": {"perUser": MANY, "total": FEW}},
            "spec.interactionLimits: perUser must not allow more than total in the same window, "
            "where it could never apply",
        ),
        (TenantSpec, {"stopPolicy": "Drain"}, "spec.stopPolicy: Input should be 'None' or 'Hold'"),
        (
            TenantSpec,
            {"queue": {"maxRequestsPerUser": 10_001}},
            "spec.queue: maxRequestsPerUser must not exceed maxRequests",
        ),
        (
            TenantSpec,
            {"queue": {"maxBytesPerUser": "2Mi", "maxBytes": "2047Ki"}},
            "spec.queue: maxBytesPerUser must not exceed maxBytes",
        ),
        (
            TenantSpec,
            {"identity": [jwt(jwksSecretRef={"name": "s", "key": "k"})]},
            "spec.identity[0].jwt: exactly one of jwksUri, jwksSecretRef is allowed",
        ),
        (
            TenantSpec,
            {"identity": [jwt(jwksUri=None)]},
            "spec.identity[0].jwt: exactly one of jwksUri, jwksSecretRef is allowed",
        ),
        (
            TenantSpec,
            {"identity": [jwt(claim=["team"])]},
            "spec.identity[0].jwt: claim and value go together",
        ),
        (
            ApplicationSpec,
            {
                "profile": {"inputTokens": 1, "outputTokens": 1},
                "interactionLimits": {"perTenant": MANY, "total": FEW},
            },
            "spec.interactionLimits: perTenant must not allow more than total in the same window, "
            "where it could never apply",
        ),
        (
            TenantSpec,
            {"applications": {}},
            "spec.applications: exactly one of names, selector is allowed",
        ),
        (
            TenantSpec,
            {"applications": {"names": [], "selector": {"matchLabels": {"a": "b"}}}},
            "spec.applications: exactly one of names, selector is allowed",
        ),
        (
            TenantSpec,
            {"applications": {"names": ["chat", "chat"]}},
            "spec.applications.names: chat is there twice",
        ),
        (
            TenantSpec,
            {"applications": {"names": ["chat"]}, "identity": [api_key("s", application="agent")]},
            "spec: the application of an apiKey in identity must be among applications.names",
        ),
        (
            TenantSpec,
            {"users": {"from": [{}]}},
            "spec.users.from[0]: exactly one of header, bodyField is allowed",
        ),
        (TenantSpec, {"users": {}}, "spec.users.from: Field required"),
        (
            TenantSpec,
            {"users": {"from": [{"header": "cookie"}]}},
            "spec.users.from[0].header: cookie is a header with another meaning; choose another",
        ),
        (
            TenantSpec,
            {"users": {"from": [{"header": "x-fairserve-hop-token"}]}},
            "spec.users.from[0].header: x-fairserve-hop-token is a header with another meaning; "
            "choose another",
        ),
        (
            TenantSpec,
            {"users": {"from": [{"bodyField": "user"}, {"bodyField": "user"}]}},
            "spec.users.from: an entry is there twice",
        ),
        (
            ApplicationSpec,
            {"profile": {"inputTokens": 1, "outputTokens": 1}, "match": {}},
            "spec.match: at least one of models, paths, headers is needed",
        ),
        (
            ApplicationSpec,
            {"profile": {"inputTokens": 1, "outputTokens": 1}, "match": {"models": ["m", "m"]}},
            "spec.match.models: m is there twice",
        ),
        (
            ApplicationSpec,
            {
                "profile": {"inputTokens": 1, "outputTokens": 1},
                "match": {"headers": [{"name": "x-fairserve-user", "value": "a"}]},
            },
            "spec.match.headers[0].name: x-fairserve-user is a header with another meaning; choose another",
        ),
        (
            ApplicationSpec,
            {
                "profile": {"inputTokens": 1, "outputTokens": 1},
                "match": {"headers": [{"name": "x-a", "value": "1"}, {"name": "x-a", "value": "2"}]},
            },
            "spec.match.headers: x-a is there twice",
        ),
        (
            ApplicationSpec,
            {
                "profile": {"inputTokens": 1, "outputTokens": 1},
                "interaction": {"idSources": ["traceparent"] * 2},
            },
            "spec.interaction.idSources: traceparent is there twice",
        ),
        (ApplicationSpec, {}, "spec.profile: Field required"),
        (
            ApplicationSpec,
            {"profile": {"inputTokens": 1, "systemTokens": 2, "outputTokens": 1}},
            "spec.profile: systemTokens must not exceed inputTokens, which includes them",
        ),
        (
            ApplicationSpec,
            {"profile": {"inputTokens": 1, "outputTokens": 1, "learning": {"minSamples": 9}}},
            "spec.profile: learning applies to mode Learned only",
        ),
        (ServingPoolSpec, {}, "spec: exactly one of selector, poolRef is allowed"),
        (
            ServingPoolSpec,
            {**SELECTOR, "poolRef": {"name": "vllm"}},
            "spec: exactly one of selector, poolRef is allowed",
        ),
        (ServingPoolSpec, {"poolRef": {}}, "spec.poolRef.name: Field required"),
        (
            ServingPoolSpec,
            {**SELECTOR, "sidecar": {"controlPort": 8000}},
            "spec.sidecar: port and controlPort must differ",
        ),
        (
            ServingPoolSpec,
            {**SELECTOR, "scheduler": {"policy": "VTC", "normalisation": 0.5}},
            "spec.scheduler: normalisation and continuationHeadStart apply to policy FairServe only",
        ),
        (ServingPoolSpec, signal(), "spec.overload.signals[0]: exactly one of builtin, query is allowed"),
        (
            ServingPoolSpec,
            signal(builtin="QueueWait", query="up"),
            "spec.overload.signals[0]: exactly one of builtin, query is allowed",
        ),
        (
            ServingPoolSpec,
            signal(query="up", clearThreshold=2),
            "spec.overload.signals[0]: clearThreshold must be below threshold",
        ),
        (
            ServingPoolSpec,
            {**SELECTOR, "overload": {"staleAfter": "5s"}},
            "spec.overload: staleAfter must be at least twice evaluationInterval",
        ),
        (
            ServingPoolSpec,
            {**SELECTOR, "overload": {"signals": [{"name": "s", "threshold": 1, "query": "up"}] * 2}},
            "spec.overload: signals: two are named s",
        ),
        (
            ServingPoolSpec,
            {**SELECTOR, "defaultTenant": {"mode": "Reject", "weight": 1}},
            "spec.defaultTenant: mode Reject admits nobody, so weight, interactionLimits, queue and "
            "prefixCacheGroup must be unset",
        ),
        (
            ServingPoolSpec,
            {"selector": {"matchLabels": {"a b!": "x"}}},
            "spec.selector.matchLabels: 'a b!' is no key that a label can have",
        ),
        (
            ServingPoolSpec,
            {**SELECTOR, "trustedProxies": ["10.0.0.1/8"]},
            "spec.trustedProxies[0]: 10.0.0.1/8 has host bits set",
        ),
    ],
)
def test_refuses(model: type[Model], spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(spec)
    assert rendered(caught.value) == message


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("10m", 600), ("1h", 3600), ("1h30m", 5400)]
)
def test_duration(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "-5s", "1.5h", "5 s", "1d", "5S"])
def test_is_no_duration(text: str) -> None:
    with pytest.raises(ValidationError):
        TenantSpec.model_validate({"queue": {"maxWait": text}})


def test_the_defaults_of_tenants_are_the_sidecars_own() -> None:
    assert tenant_config("a", TenantSpec(), SALT) == TenantConfig(name="a")


def test_the_defaults_of_applications_are_the_sidecars_own() -> None:
    spec = ApplicationSpec.model_validate({"profile": {"inputTokens": 3, "outputTokens": 2}})
    assert application_config("a", spec) == ApplicationConfig(name="a", input_tokens=3, output_tokens=2)


def test_the_defaults_of_learning_are_the_sidecars_own() -> None:
    profile = {"mode": "Learned", "inputTokens": 3, "outputTokens": 2}
    config = application_config("a", ApplicationSpec.model_validate({"profile": profile}))
    assert config.learning == LearningConfig()


def test_body_sources_are_those_that_the_sidecar_reads() -> None:
    assert [s for s in INTERACTION_SOURCES if s.startswith("body:")] == list(BODY_SOURCES)
    profile = {"inputTokens": 3, "outputTokens": 2}
    spec = ApplicationSpec.model_validate(
        {"profile": profile, "interaction": {"idSources": list(INTERACTION_SOURCES)}}
    )
    assert application_config("a", spec).interaction_sources == INTERACTION_SOURCES


@pytest.mark.parametrize(("text", "size"), [("1Ki", 1024), ("64Mi", 2**26), ("2Gi", 2**31)])
def test_size(text: str, size: int) -> None:
    assert size_bytes(text) == size


def test_the_defaults_of_pools_are_the_sidecars_own() -> None:
    result = compiled(this=pool())
    assert result.config is not None
    assert result.overload is not None
    assert result.config.scheduler == SchedulerConfigSection()
    assert result.config.overload == OverloadConfig()
    assert result.config.queue == QueueConfig()
    assert result.config.default_tenant is None
    assert result.overload.settings == OverloadSettings(signals=result.overload.settings.signals)
    assert [s.name for s in result.overload.settings.signals] == [s.name for s in DEFAULT_SIGNALS]


def test_default_signals_pass_their_own_validation() -> None:
    for one in DEFAULT_SIGNALS:
        assert type(one).model_validate(one.model_dump(by_alias=True, exclude_none=True)) == one
