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
    MatchConfig,
    SchedulerConfig,
    TenantConfig,
    format_needed,
    key_digest,
)
from fairserve.core import settings as core

SALT = "5a" * 16
CHAT = {"name": "chat", "input_tokens": 1, "output_tokens": 1}


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tenants": [{"name": "a", "applications": ["nope"]}]}, "tenants: a: unknown application 'nope'"),
        ({"tenants": [{"name": "a", "applications": ["chat", "chat"]}]}, "'chat' appears twice"),
        ({"tenants": [{"name": "a", "user_sources": ["header:X-Upper"]}]}, "'header:X-Upper' is neither"),
        ({"tenants": [{"name": "a", "user_sources": ["body:a..b"]}]}, "'body:a..b' is neither"),
        ({"tenants": [{"name": "a", "user_sources": ["body:a", "body:a"]}]}, "'body:a' appears twice"),
        ({"applications": [{**CHAT, "match": {}}]}, "at least one of models, paths and headers"),
        ({"applications": [{**CHAT, "match": {"headers": {"X-Upper": "1"}}}]}, "match.headers"),
    ],
)
def test_who_may_use_what_is_refused_by_name_where_it_makes_no_sense(change, message):
    with pytest.raises(ValidationError, match=message):
        document(**change)


#: A document as it was before `held`, `applications`, `user_sources` and `match`, whole and with its hash.
OLD = (
    b'{"applications":[{"idle_timeout_s":300.0,"input_tokens":100.0,"interaction_sources":["traceparent"],'
    b'"learning":null,"max_calls":100,"max_duration_s":3600.0,"name":"chat","output_tokens":50.0,'
    b'"per_tenant":null,"per_user":null,"system_tokens":0.0,"total":null,"weight":1.0}],'
    b'"default_tenant":null,"format":1,"generation":3,"identity":{"api_keys":[],"headers":[],'
    b'"hop_tokens":[],"salt":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a","token_issuers":[],"trusted_proxies":[]},'
    b'"mode":"Enforce","overload":{"arm_locally":false,"hold_down_s":10.0,"on_stale":"Hold",'
    b'"stale_after_s":30.0},"pool":"default/llm","queue":{"max_bytes":8589934592,"max_requests":1000000},'
    b'"scheduler":{"continuation_head_start":1.0,"normalisation":0.8,"policy":"FairServe","token_weights":'
    b'{"cached":0.1,"input":1.0,"output":2.0,"system":1.0}},"tenants":[{"cache_salt":null,'
    b'"max_queued_bytes":1073741824,"max_queued_bytes_per_user":null,"max_queued_requests":10000,'
    b'"max_queued_requests_per_user":null,"max_wait_s":600.0,"name":"a","per_user":null,"total":null,'
    b'"weight":1.0}]}'
)
OLD_HASH = "db7ac4d2a4d65f611d03293bca7dced3cea3c318e0d70d0cda7017fa1479ccfc"


def test_document_of_before_is_read_and_stays_what_it_was():
    """Else a newer operator and an older sidecar, or the other way round, would disagree on every hash."""
    read = SchedulerConfig.from_bytes(OLD)
    assert (read.to_bytes(), read.content_hash) == (OLD, OLD_HASH)


def test_format_tells_older_sidecars_what_they_cannot_read():
    plain, bare = TenantConfig(name="a"), ApplicationConfig(**CHAT)
    assert format_needed([plain], [bare]) == 1
    assert format_needed([plain, TenantConfig(name="b", held=True)], [bare]) == 2
    assert format_needed([plain, TenantConfig(name="b", applications=())], [bare]) == 2
    assert format_needed([plain, TenantConfig(name="b", user_sources=())], [bare]) == 2
    assert format_needed([plain], [ApplicationConfig(**CHAT, match=MatchConfig(models=("m",)))]) == 2
