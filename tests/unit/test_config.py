"""The document between operator and sidecar."""

import pytest
from pydantic import ValidationError

from fairserve.config import (
    ApiKeyConfig,
    ApplicationConfig,
    IdentityConfig,
    LimitConfig,
    SchedulerConfig,
    TenantConfig,
    key_digest,
)

SALT = "5a" * 16


def document(**changes):
    known = {
        "pool": "default/llm",
        "identity": IdentityConfig(
            salt=SALT, api_keys=(ApiKeyConfig(digest=key_digest(SALT, "secret-key"), tenant="a"),)
        ),
        "tenants": (TenantConfig(name="a", weight=3.0, per_user=LimitConfig(count=5, window_s=60.0)),),
        "applications": (ApplicationConfig(name="chat", input_tokens=100, output_tokens=50),),
    }
    return SchedulerConfig(**(known | changes))


def test_a_document_survives_the_wire():
    assert SchedulerConfig.from_bytes(document().to_bytes()) == document()


def test_the_hash_tells_contents_apart_but_not_generations():
    assert document(generation=1).content_hash == document(generation=2).content_hash
    assert document().content_hash != document(mode="Shadow").content_hash


def test_no_key_is_in_the_document():
    assert b"secret-key" not in document().to_bytes()
    assert key_digest(SALT, "secret-key") != key_digest("5b" * 16, "secret-key")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"pool": "llm"}, "pool"),
        ({"tenants": (TenantConfig(name="a"), TenantConfig(name="a"))}, "'a' appears twice"),
        ({"tenants": ()}, "unknown tenant 'a'"),
        ({"identity": {"salt": SALT, "trusted_proxies": ["10.0.0.0/99"]}}, "trusted_proxies"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change, message):
    with pytest.raises(ValidationError, match=message):
        document(**change)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ValidationError, match="weight"):
        TenantConfig(name="a", weight=weight)


def test_the_core_gets_what_the_document_says():
    settings = document().settings()
    assert settings.tenants["a"].weight == 3.0
    assert settings.tenants["a"].per_user.count == 5
    assert settings.applications["chat"].profile.input_tokens == 100
    assert settings.default_tenant is None
