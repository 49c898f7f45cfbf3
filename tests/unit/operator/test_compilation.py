"""Compilation: what goes in, what is left out, and who is told what."""

from __future__ import annotations

import pytest

from fairserve.config import (
    ApiKeyConfig,
    HeaderIdentityConfig,
    LearningConfig,
    LimitConfig,
    MatchConfig,
    key_digest,
)
from fairserve.core.settings import DEFAULT_TENANT
from fairserve_operator.decide import sections
from fairserve_operator.decide.compilation import Compiled, compile_pool, examine, needs
from fairserve_operator.decide.conditions import ACCEPTED, CONFLICTED, HELD, RESOLVED_REFS
from fairserve_operator.decide.resources import ObjectKey, Resource, SecretProblem, SecretRef
from tests.unit.operator.builders import (
    NAMESPACE,
    SALT,
    api_key,
    application,
    compiled,
    condition,
    digests,
    header,
    pool,
    tenant,
)

OLD, YOUNG = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"


def names(result: Compiled) -> list[str]:
    assert result.config is not None
    return [t.name for t in result.config.tenants]


def keys(result: Compiled) -> dict[str, str]:
    """Tenant by key digest."""
    assert result.config is not None
    return {key.digest: key.tenant for key in result.config.identity.api_keys}


def test_tenant_goes_in_whole() -> None:
    result = compiled(
        [
            tenant(
                "a",
                weight=3,
                identity=[api_key("s", application="chat"), header("X-Team", "A")],
                interactionLimits={"perUser": {"count": 10, "window": "60s"}},
                queue={
                    "maxRequests": 5,
                    "maxWait": "1m30s",
                    "maxBytes": "2Mi",
                    "maxRequestsPerUser": 2,
                    "maxBytesPerUser": "512Ki",
                },
                prefixCacheGroup="research",
            )
        ],
        [application("chat")],
        {"s": "key"},
    )
    assert result.config is not None
    (a,) = result.config.tenants
    assert (a.weight, a.per_user, a.total) == (3.0, LimitConfig(count=10, window_s=60), None)
    assert (a.max_queued_requests, a.max_wait_s) == (5, 90.0)
    assert (a.max_queued_bytes, a.max_queued_requests_per_user, a.max_queued_bytes_per_user) == (
        2 * 2**20,
        2,
        512 * 2**10,
    )
    assert a.cache_salt is not None
    assert "research" not in a.cache_salt
    digest = key_digest(SALT, "key")
    assert result.config.identity.api_keys == (ApiKeyConfig(digest=digest, tenant="a", application="chat"),)
    assert result.config.identity.headers == (HeaderIdentityConfig(name="x-team", value="A", tenant="a"),)
    assert result.config.identity.salt == SALT


def test_tenants_of_one_cache_group_have_one_salt_and_strangers_another() -> None:
    groups = {"a": "x", "b": "x", "c": "y"}
    tenants = [tenant(name, prefixCacheGroup=group) for name, group in groups.items()]
    config = compiled([*tenants, tenant("d")], this=pool(defaultTenant={"mode": "Admit"})).config
    assert config is not None
    salts = {t.name: t.cache_salt for t in config.tenants}
    assert salts["a"] == salts["b"] != salts["c"]
    assert salts["d"] is None
    elsewhere = compile_pool(pool(), [], tenants, [], {}, {}, "6b" * 16).config
    assert elsewhere is not None
    assert salts["a"] not in {t.cache_salt for t in elsewhere.tenants}


def test_application_goes_in_whole() -> None:
    limit = {"count": 9, "window": "1m"}
    chat = application(
        "chat",
        weight=2,
        profile={
            "mode": "Learned",
            "inputTokens": 100,
            "systemTokens": 10,
            "outputTokens": 50,
            "learning": {"minSamples": 7},
        },
        interactionLimits={"perUser": limit, "perTenant": limit, "total": limit},
        interaction={"idSources": ["header:x-our-session", "traceparent"], "maxCalls": 3},
    )
    config = compiled(applications=[chat]).config
    assert config is not None
    (it,) = config.applications
    assert it.per_user == it.per_tenant == it.total == LimitConfig(count=9, window_s=60)
    assert it.learning == LearningConfig(min_samples=7, max_factor_per_hour=4.0)
    assert it.interaction_sources == ("header:x-our-session", "traceparent")
    assert (it.weight, it.input_tokens, it.system_tokens, it.output_tokens) == (2, 100, 10, 50)
    assert (it.max_calls, it.idle_timeout_s) == (3, 300.0)
    assert config.settings().applications["chat"].learning is not None


def test_no_source_makes_each_call_an_interaction_of_its_own() -> None:
    config = compiled(applications=[application("chat", interaction={"idSources": []})]).config
    assert config is not None
    assert config.applications[0].interaction_sources == ()


def test_a_held_tenant_goes_in_as_held_and_is_told() -> None:
    a, b = tenant("a", stopPolicy="Hold"), tenant("b", stopPolicy="None")
    result = compiled([a, b])
    assert result.config is not None
    assert {t.name: t.held for t in result.config.tenants} == {"a": True, "b": False}
    assert condition(result, a, HELD).status == "True"
    assert condition(result, a, HELD).message.startswith("spec.stopPolicy: Hold")
    assert [c.type for c in result.conditions[b.key]] == [ACCEPTED, RESOLVED_REFS]
    assert result.parts[a.key] != compiled([tenant("a")]).parts[a.key]


def test_the_keys_of_every_tenant_go_in() -> None:
    tenants = [tenant(name, identity=[api_key(f"{name}1"), api_key(f"{name}2")]) for name in "abc"]
    secrets = {f"{name}{i}": f"key-{name}{i}" for name in "abc" for i in (1, 2)}
    result = compiled(tenants, secrets=secrets)
    assert keys(result) == {key_digest(SALT, key): key[4] for key in secrets.values()}


def test_pool_goes_in_whole() -> None:
    this = pool(
        scheduler={"normalisation": 1, "continuationHeadStart": 0, "tokenWeights": {"output": 3}},
        throttling={"mode": "Shadow"},
        overload={"staleAfter": "1m", "onStale": "Arm", "armLocally": True},
        defaultTenant={"mode": "Admit", "weight": 0.5},
        trustedProxies=["10.0.0.0/8", "::1/128"],
        queue={"maxRequests": 50, "maxBytes": "3Gi"},
        hopTokens=[{"name": "hop", "key": "api-key"}],
    )
    config = compiled(this=this, secrets={"hop": "token"}).config
    assert config is not None
    assert config.pool == f"{NAMESPACE}/llm"
    assert (config.scheduler.normalisation, config.scheduler.continuation_head_start) == (1.0, 0.0)
    assert (config.scheduler.token_weights.output, config.scheduler.token_weights.input) == (3.0, 1.0)
    assert (config.overload.stale_after_s, config.overload.on_stale) == (60.0, "Arm")
    assert config.overload.arm_locally
    assert config.mode == "Shadow"
    assert config.identity.trusted_proxies == ("10.0.0.0/8", "::1/128")
    assert config.identity.hop_tokens == (key_digest(SALT, "token"),)
    assert (config.queue.max_requests, config.queue.max_bytes) == (50, 3 * 2**30)
    assert config.default_tenant is not None
    assert (config.default_tenant.name, config.default_tenant.weight) == (DEFAULT_TENANT, 0.5)


def test_a_hop_token_that_is_not_there_is_told_and_the_others_count() -> None:
    refs = [{"name": name, "key": "api-key"} for name in ("gone", "new", "old", "again")]
    this = pool(hopTokens=refs)
    result = compiled(this=this, secrets={"new": "n", "old": "o", "again": "o"})
    assert result.config is not None
    assert result.config.identity.hop_tokens == tuple(sorted(key_digest(SALT, token) for token in "no"))
    resolved = condition(result, this, RESOLVED_REFS)
    assert (resolved.reason, resolved.message) == (
        "SecretMissing",
        'spec.hopTokens[0]: Secret "gone" not found',
    )


def test_default_tenant_has_the_cores_name() -> None:
    assert sections.DEFAULT_TENANT == DEFAULT_TENANT


def test_reject_is_no_default_tenant() -> None:
    config = compiled(this=pool(defaultTenant={"mode": "Reject"})).config
    assert config is not None
    assert config.default_tenant is None


def test_ill_formed_tenant_is_left_out_and_told() -> None:
    broken, good = tenant("broken", weight=0, wat=1), tenant("good")
    result = compiled([broken, good])
    assert names(result) == ["good"]
    accepted = condition(result, broken, ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", "Invalid")
    assert accepted.message == "spec.weight: Input should be greater than 0; spec.wat: unknown field"
    assert condition(result, broken, RESOLVED_REFS).status == "Unknown"
    assert condition(result, good, ACCEPTED).status == "True"
    assert broken.key not in result.parts


@pytest.mark.parametrize(
    ("problem", "reason", "message"),
    [
        (None, "SecretMissing", 'spec.identity[0].apiKey.secretRef: Secret "s" not found'),
        (
            SecretProblem.SECRET_MISSING,
            "SecretMissing",
            'spec.identity[0].apiKey.secretRef: Secret "s" not found',
        ),
        (
            SecretProblem.KEY_MISSING,
            "SecretKeyMissing",
            'spec.identity[0].apiKey.secretRef: Secret "s" has no key "api-key"',
        ),
        (
            SecretProblem.EMPTY,
            "SecretEmpty",
            'spec.identity[0].apiKey.secretRef: key "api-key" of Secret "s" is empty',
        ),
    ],
)
def test_a_key_that_does_not_resolve_is_left_out_and_the_tenant_stays(
    problem: SecretProblem | None, reason: str, message: str
) -> None:
    a = tenant("a", identity=[api_key("s"), api_key("good")])
    result = compiled([a], secrets={"good": "key", **({"s": problem} if problem else {})})
    assert names(result) == ["a"]
    assert keys(result) == {key_digest(SALT, "key"): "a"}
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason, resolved.message) == ("False", reason, message)
    assert condition(result, a, ACCEPTED).status == "True"


def test_pinned_application_must_exist_and_be_accepted() -> None:
    a = tenant("a", identity=[api_key("s", application="gone"), api_key("s", application="broken")])
    result = compiled([a], [application("broken", weight=0)], {"s": "key"})
    assert keys(result) == {}
    resolved = condition(result, a, RESOLVED_REFS)
    assert resolved.reason == "ApplicationMissing"
    assert resolved.message == (
        'spec.identity[0].apiKey.application: Application "gone" not found; '
        'spec.identity[1].apiKey.application: Application "broken" is not accepted'
    )


def test_the_older_tenant_keeps_a_shared_key_and_both_are_told() -> None:
    young = tenant("a", created=YOUNG, identity=[api_key("s1")])
    old = tenant("b", created=OLD, identity=[header("x-b", "b"), api_key("s2")])
    result = compiled([young, old], secrets={"s1": "same", "s2": "same"})
    assert keys(result) == {key_digest(SALT, "same"): "b"}
    assert names(result) == ["a", "b"]
    loser = condition(result, young, RESOLVED_REFS)
    assert (loser.status, loser.reason) == ("False", "DuplicateIdentity")
    assert loser.message == (
        'spec.identity[0].apiKey: Tenant "a" and Tenant "b" (spec.identity[1].apiKey) have the same API key; '
        'Tenant "b" keeps it'
    )
    assert condition(result, old, RESOLVED_REFS).status == "True"
    assert condition(result, old, CONFLICTED).message == (
        'spec.identity[1].apiKey: Tenant "b" and Tenant "a" (spec.identity[0].apiKey) have the same API key; '
        'Tenant "b" keeps it'
    )
    assert condition(result, young, CONFLICTED).status == "True"


def test_of_tenants_of_one_age_the_first_by_name_keeps_a_shared_header() -> None:
    b, a = tenant("b", identity=[header("X-Team", "t")]), tenant("a", identity=[header("x-team", "t")])
    result = compiled([b, a])
    assert result.config is not None
    assert [h.tenant for h in result.config.identity.headers] == ["a"]
    assert condition(result, b, RESOLVED_REFS).reason == "DuplicateIdentity"


def test_values_of_headers_differ_by_case() -> None:
    result = compiled([tenant("a", identity=[header("x-t", "t"), header("x-t", "T")])])
    assert result.config is not None
    assert len(result.config.identity.headers) == 2


def test_the_same_key_twice_in_one_tenant_is_a_problem_but_no_conflict() -> None:
    a = tenant("a", identity=[api_key("s1"), api_key("s2")])
    result = compiled([a], secrets={"s1": "same", "s2": "same"})
    assert keys(result) == {key_digest(SALT, "same"): "a"}
    message = condition(result, a, RESOLVED_REFS).message
    assert message == "spec.identity[1].apiKey: the same API key as spec.identity[0].apiKey"
    assert [c.type for c in result.conditions[a.key]] == [ACCEPTED, RESOLVED_REFS]


def test_an_ill_formed_older_tenant_claims_nothing() -> None:
    broken = tenant("a", created=OLD, weight=0, identity=[api_key("s")])
    result = compiled([broken, tenant("b", created=YOUNG, identity=[api_key("s")])], secrets={"s": "key"})
    assert list(keys(result).values()) == ["b"]


def test_a_message_with_many_problems_is_bounded() -> None:
    a = tenant("a", identity=[api_key(f"s{i}") for i in range(100)])
    message = condition(compiled([a]), a, RESOLVED_REFS).message
    assert message.endswith("; and 95 more")
    assert message.count("not found") == 5


def test_the_older_pool_has_the_pods_of_two_with_nested_selectors() -> None:
    young = pool("a", created=YOUNG, selector={"matchLabels": {"app": "x"}})
    old = pool("b", created=OLD, selector={"matchLabels": {"app": "x", "gpu": "h100"}})
    other = pool("c", created=YOUNG, selector={"matchLabels": {"app": "y"}})
    lost = compiled(this=young, pools=[young, old, other])
    assert lost.config is None
    accepted = condition(lost, young, ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", "SelectorConflict")
    assert accepted.message == (
        'spec.selector.matchLabels: ServingPool "a" and ServingPool "b" select the same pods; '
        'ServingPool "b" has them'
    )
    won = compiled(this=old, pools=[young, old, other])
    assert won.config is not None
    assert condition(won, old, ACCEPTED).status == "True"
    assert condition(won, old, CONFLICTED).message == (
        'spec.selector.matchLabels: ServingPool "b" and ServingPool "a" select the same pods; '
        'ServingPool "b" has them'
    )
    assert [c.type for c in won.conditions[other.key]] == [ACCEPTED, RESOLVED_REFS]


def test_a_pool_that_lost_stands_in_nobodys_way() -> None:
    first = pool("a", selector={"matchLabels": {"app": "x"}})
    lost = pool("b", selector={"matchLabels": {"app": "x", "gpu": "h100"}})
    free = pool("c", selector={"matchLabels": {"gpu": "h100"}})
    assert compiled(this=lost, pools=[first, free]).config is None
    assert compiled(this=free, pools=[first, lost]).config is not None


def test_ill_formed_pool_is_refused_and_members_are_judged_all_the_same() -> None:
    broken, good = tenant("broken", weight=-1), tenant("good")
    result = compiled([broken, good], this=pool(scheduler={"policy": "LIFO"}))
    assert (result.config, result.spec, result.overload, result.parts) == (None, None, None, {})
    assert condition(result, broken, ACCEPTED).status == "False"
    assert condition(result, good, ACCEPTED).status == "True"


def test_tenants_of_other_namespaces_do_not_get_in() -> None:
    stranger = Resource(ObjectKey("Tenant", "elsewhere", "a"), "u", 1, "", {"identity": [header("x", "y")]})
    result = compiled([stranger])
    assert names(result) == []
    assert stranger.key not in result.conditions


def test_a_name_that_no_cluster_allows_is_refused() -> None:
    reserved = tenant("_default")
    result = compiled([reserved])
    assert names(result) == []
    assert condition(result, reserved, ACCEPTED).message == "metadata.name: '_default' is not a DNS subdomain"


def test_a_pools_name_must_fit_a_label() -> None:
    long = pool("n" * 64)
    result = compiled(this=long)
    assert result.config is None
    assert condition(result, long, ACCEPTED).message == "metadata.name: longer than 63 characters"


def test_examine_says_what_compilation_says() -> None:
    tenants = [
        tenant("a", weight=0),
        tenant("b", identity=[api_key("s")]),
        tenant("c", identity=[api_key("s")]),
    ]
    applications = [application("chat"), application("broken", weight=0)]
    result = compiled(tenants, applications, {"s": "key"})
    judged = examine(tenants, applications, digests({"s": "key"}), {})
    assert judged == {r.key: result.conditions[r.key] for r in (*tenants, *applications)}


def test_secrets_that_are_needed_are_those_of_well_formed_objects() -> None:
    tenants = [
        tenant("a", identity=[api_key("s"), header("x", "y")]),
        tenant("broken", weight=0, identity=[api_key("t")]),
    ]
    pools = [pool(hopTokens=[{"name": "hop", "key": "token"}]), pool("broken", hopTokens=[{"name": "x"}])]
    assert needs(tenants, pools).secrets == {
        SecretRef(NAMESPACE, "s", "api-key"),
        SecretRef(NAMESPACE, "hop", "token"),
    }


def test_parts_change_with_what_an_object_contributes_and_only_then() -> None:
    a, b = tenant("a", identity=[api_key("s")]), tenant("b")
    before = compiled([a, b], secrets={"s": "one"}).parts
    rotated = compiled([a, b], secrets={"s": "two"}).parts
    assert rotated[a.key] != before[a.key]
    assert rotated[b.key] == before[b.key]
    heavier = compiled([a, tenant("b", weight=2)], secrets={"s": "one"}).parts
    assert heavier[a.key] == before[a.key]
    assert heavier[b.key] != before[b.key]


def test_observed_generations_are_those_compiled() -> None:
    a = tenant("a", generation=7)
    assert compiled([a]).observed[a.key] == 7


def secured(**prometheus: object) -> Resource:
    return pool(overload={"prometheus": {"url": "https://p", **prometheus}})


def test_missing_credentials_of_prometheus_are_named_and_the_pool_goes_on() -> None:
    ref = {"name": "s", "key": "api-key"}
    this = secured(auth={"bearerToken": {"secretRef": ref}}, tls={"ca": {"name": "t", "key": "api-key"}})
    result = compiled(secrets={"s": SecretProblem.EMPTY}, this=this)
    assert result.config is not None
    resolved = condition(result, this, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "SecretEmpty")
    assert resolved.message == (
        'spec.overload.prometheus.auth.bearerToken.secretRef: key "api-key" of Secret "s" is empty; '
        'spec.overload.prometheus.tls.ca: Secret "t" not found'
    )
    assert (
        condition(compiled(secrets={"s": "k", "t": "PEM"}, this=this), this, RESOLVED_REFS).status == "True"
    )
    assert "PEM" not in repr(compiled(secrets={"s": "k", "t": "PEM"}, this=this))


def test_needs_have_the_credentials_of_well_formed_pools() -> None:
    basic = {"username": {"name": "u", "key": "k"}, "password": {"name": "p", "key": "k"}}
    pools = [secured(auth={"basic": basic}), secured(auth={"basic": {}}), pool("plain")]
    assert needs([], pools).secrets == {SecretRef(NAMESPACE, "u", "k"), SecretRef(NAMESPACE, "p", "k")}


def allowed(result: Compiled) -> dict[str, tuple[str, ...] | None]:
    assert result.config is not None
    return {t.name: t.applications for t in result.config.tenants}


def test_tenant_uses_the_applications_that_it_lists_and_that_there_are() -> None:
    a = tenant("a", applications={"names": ["gone", "chat", "broken", "agent"]})
    result = compiled(
        [a, tenant("b")], [application("chat"), application("agent"), application("broken", weight=0)]
    )
    assert allowed(result) == {"a": ("agent", "chat"), "b": None}
    assert result.config is not None
    assert result.config.format == 2
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "ApplicationMissing")
    assert resolved.message == (
        'spec.applications.names[0]: Tenant "a" may use Application "gone", which is not found; '
        'spec.applications.names[2]: Tenant "a" may use Application "broken", which is not accepted'
    )
    assert condition(result, a, ACCEPTED).status == "True"


def test_tenant_that_lists_none_uses_none() -> None:
    assert allowed(compiled([tenant("a", applications={"names": []})], [application("chat")])) == {"a": ()}


def test_selector_is_resolved_to_names() -> None:
    both = {"matchLabels": {"tier": "low", "kind": "web"}}
    a = tenant("a", applications={"selector": both})
    applications = [
        application("z", labels={"tier": "low", "kind": "web", "more": "1"}),
        application("m", labels={"tier": "low"}),
        application("c", labels={"tier": "low", "kind": "web"}),
        application("broken", labels={"tier": "low", "kind": "web"}, weight=0),
    ]
    result = compiled([a], applications)
    assert allowed(result) == {"a": ("c", "z")}
    assert condition(result, a, RESOLVED_REFS).reason == "Resolved"
    later = compiled([a], [*applications, application("d", labels=both["matchLabels"])])
    assert allowed(later) == {"a": ("c", "d", "z")}
    assert later.parts[a.key] != result.parts[a.key]
    assert allowed(compiled([a], applications)) == {"a": ("c", "z")}


def test_selector_of_nothing_leaves_nothing_and_says_so() -> None:
    a = tenant("a", applications={"selector": {"matchLabels": {"tier": "low"}}})
    result = compiled([a], [application("chat", labels={"tier": "high"})])
    assert allowed(result) == {"a": ()}
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("True", "NothingSelected")
    assert "spec.applications.selector" in resolved.message


def test_key_for_an_application_that_its_tenant_may_not_use_is_left_out() -> None:
    selector = {"matchLabels": {"tier": "low"}}
    a = tenant("a", applications={"selector": selector}, identity=[api_key("s", application="chat")])
    result = compiled([a], [application("chat")], {"s": "key"})
    assert keys(result) == {}
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("False", "ApplicationNotAllowed")
    assert 'identity[0].apiKey.application: Application "chat" is not among' in resolved.message
    low = [application("chat", labels={"tier": "low"})]
    assert keys(compiled([a], low, {"s": "key"})) == {key_digest(SALT, "key"): "a"}


def test_users_places_go_in_as_they_are_ordered() -> None:
    places = [{"bodyField": "metadata.who"}, {"header": "x-user"}, {"bodyField": "user"}]
    result = compiled([tenant("a", users={"from": places}), tenant("b", users={"from": []})])
    assert result.config is not None
    sources = [t.user_sources for t in result.config.tenants]
    assert sources == [("body:metadata.who", "header:x-user", "body:user"), ()]
    assert result.config.format == 2


MATCH = {
    "models": ["n", "m"],
    "paths": ["/b", "/a"],
    "headers": [{"name": "x-b", "value": "2"}, {"name": "x-a", "value": "1"}],
}


def test_match_goes_in_sorted() -> None:
    config = compiled(applications=[application("chat", match=MATCH)]).config
    assert config is not None
    assert config.applications[0].match == MatchConfig(
        models=("m", "n"), paths=("/a", "/b"), headers={"x-a": "1", "x-b": "2"}
    )
    assert config.format == 2


def test_the_older_of_two_applications_keeps_a_match_and_both_are_told() -> None:
    same = {**MATCH, "models": ["m", "n"], "headers": MATCH["headers"][::-1]}
    young = application("a", created=YOUNG, match=same)
    old = application("b", created=OLD, match=MATCH)
    other = application("c", created=OLD, match={"models": ["m", "n"]})
    broken = application("0", created=OLD, match=MATCH, weight=0)
    result = compiled(applications=[young, old, other, broken])
    assert result.config is not None
    assert {a.name: a.match is not None for a in result.config.applications} == {
        "a": False,
        "b": True,
        "c": True,
    }
    lost = condition(result, young, RESOLVED_REFS)
    assert (lost.status, lost.reason) == ("False", "DuplicateMatch")
    assert lost.message == (
        'spec.match: Application "a" and Application "b" (spec.match) have the same match; '
        'Application "b" keeps it'
    )
    assert condition(result, young, CONFLICTED).status == "True"
    assert condition(result, old, RESOLVED_REFS).status == "True"
    assert condition(result, old, CONFLICTED).message == (
        'spec.match: Application "b" and Application "a" (spec.match) have the same match; '
        'Application "b" keeps it'
    )
    assert [c.type for c in result.conditions[other.key]] == [ACCEPTED, RESOLVED_REFS]
    alone = compiled(applications=[young])
    assert alone.config is not None
    assert alone.config.applications[0].match is not None
    assert alone.parts[young.key] != result.parts[young.key]


def test_document_that_says_nothing_new_is_of_the_old_format() -> None:
    config = compiled([tenant("a")], [application("chat")]).config
    assert config is not None
    assert config.format == 1
    assert not any(word in config.to_bytes() for word in (b"user_sources", b"match", b'"applications":null'))
