"""The document between operator and sidecar."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fairserve.config import (
    INTERACTION_SOURCES,
    ApiKeyConfig,
    ApplicationConfig,
    IdentityConfig,
    LearningConfig,
    LimitConfig,
    SchedulerConfig,
    TenantConfig,
    key_digest,
)
from fairserve.core import settings as core

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


def test_example_of_the_reference_is_an_identity():
    text = (Path(__file__).parents[2] / "docs/reference/identity.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    identity = document(identity=json.loads(example)).identity
    assert [issuer.kubernetes for issuer in identity.token_issuers] == [False, True]
    assert all(source.partition(":")[2] in text for source in INTERACTION_SOURCES)


@pytest.mark.parametrize("salt", ["", "x" * 129, "a@b", "a/b", "a\\b", "a\x00b"])
def test_a_salt_is_one_that_the_engine_takes(salt):
    with pytest.raises(ValidationError, match="cache_salt") as refused:
        TenantConfig(name="a", cache_salt=salt)
    assert salt == "" or repr(salt) not in str(refused.value)


def test_a_wrong_document_does_not_show_what_is_in_it():
    with pytest.raises(ValidationError) as refused:
        document(tenants=({"name": "a", "cache_salt": "se/cret"},))
    assert "se/cret" not in str(refused.value)


@pytest.mark.parametrize(
    "sources",
    [
        ["x-session"],
        ["header:"],
        ["header:X-Session"],
        ["header:a b"],
        ["body:model"],
        ["traceparent:x"],
        [""],
        ["header:x", "header:x"],
    ],
)
def test_a_source_of_names_is_one_that_can_be_read(sources):
    with pytest.raises(ValidationError, match="interaction_sources"):
        ApplicationConfig(name="chat", input_tokens=1, output_tokens=1, interaction_sources=sources)


def test_every_bound_of_the_document_reaches_the_core():
    settings = document(
        tenants=(
            TenantConfig(
                name="a",
                max_queued_requests=5,
                max_queued_bytes=7,
                max_queued_requests_per_user=2,
                max_queued_bytes_per_user=3,
                max_wait_s=9.0,
            ),
        ),
        applications=(
            ApplicationConfig(
                name="chat",
                input_tokens=100,
                output_tokens=50,
                total=LimitConfig(count=4, window_s=60.0),
                learning=LearningConfig(min_samples=8, max_factor_per_hour=2.0),
            ),
        ),
        queue={"max_requests": 11, "max_bytes": 12},
    ).settings()
    assert settings.tenants["a"].queue == core.QueueBounds(5, 9.0, 7, 2, 3)
    assert settings.applications["chat"].total == core.Limit(4, 60.0)
    assert settings.applications["chat"].learning == core.Learning(8, 2.0)
    assert settings.queue == core.TotalBounds(11, 12)


def test_unset_bounds_are_the_cores_own():
    assert TenantConfig(name="a").settings() == core.TenantSettings(name="a")
    assert document().settings().queue == core.Settings().queue
    assert LearningConfig() == LearningConfig(
        min_samples=core.Learning().min_samples, max_factor_per_hour=core.Learning().max_factor_per_hour
    )
