"""Tokens: which issuers a pool believes, whose callers are whose, and who is told where Tenants disagree."""

from __future__ import annotations

from typing import Any

import pytest

from fairserve.config import TokenIssuerConfig
from fairserve_operator.decide.compilation import Compiled, needs
from fairserve_operator.decide.conditions import CONFLICTED, RESOLVED_REFS
from fairserve_operator.decide.jwks import CLUSTER, KeysProblem
from fairserve_operator.decide.resources import SecretRef
from tests.unit.operator.builders import (
    CLUSTER_ISSUER,
    ISSUER,
    JWKS_URI,
    NAMESPACE,
    compiled,
    condition,
    jwt,
    key_set,
    pool,
    service_account,
    tenant,
)

OLD, YOUNG = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
KEYS = {JWKS_URI: key_set("k1", "k2"), CLUSTER: key_set("c", issuer=CLUSTER_ISSUER)}


def issuers(result: Compiled) -> dict[str, TokenIssuerConfig]:
    assert result.config is not None
    return {issuer.issuer: issuer for issuer in result.config.identity.token_issuers}


def of_team(value: str, **changes: Any) -> dict[str, Any]:
    return jwt(claim=["org", "team"], value=value, **changes)


def test_tenants_of_one_issuer_share_it_by_their_values() -> None:
    tenants = [
        tenant("a", identity=[of_team("alpha"), of_team("alpha-2")]),
        tenant("b", identity=[of_team("beta")]),
    ]
    (it,) = issuers(compiled(tenants, keys=KEYS)).values()
    assert (it.issuer, it.audiences, it.source) == (ISSUER, ("llm",), JWKS_URI)
    assert it.tenant_claim == ("org", "team")
    assert it.tenants == {"alpha": "a", "alpha-2": "a", "beta": "b"}
    assert [key["kid"] for key in it.keys] == ["k1", "k2"]
    assert (it.user_claim, it.application_claim) == (("sub",), None)


def test_an_issuer_without_a_claim_is_one_tenants() -> None:
    identity = jwt(userClaim=["email"], applicationClaim=["app"])
    (it,) = issuers(compiled([tenant("a", identity=[identity])], keys=KEYS)).values()
    assert (it.tenant, it.tenant_claim, it.tenants) == ("a", None, None)
    assert (it.user_claim, it.application_claim) == (("email",), ("app",))


def test_service_accounts_are_known_by_the_clusters_own_issuer_and_the_pools_audience() -> None:
    tenants = [
        tenant("a", identity=[service_account("team-a")]),
        tenant("b", identity=[service_account("team-a", "batch")]),
    ]
    found = issuers(compiled(tenants, keys=KEYS, this=pool(serviceAccountAudience="llm.example")))
    it = found[CLUSTER_ISSUER]
    assert (it.kubernetes, it.audiences) == (True, ("llm.example",))
    assert it.tenants == {"team-a": "a", "system:serviceaccount:team-a:batch": "b"}
    default = issuers(compiled(tenants, keys=KEYS))[CLUSTER_ISSUER]
    assert default.audiences == ("fairserve",)


def test_keys_may_come_from_a_secret() -> None:
    ref = {"name": "jwks", "key": "keys.json"}
    a = tenant("a", identity=[jwt(jwksUri=None, jwksSecretRef=ref)])
    source = SecretRef(NAMESPACE, "jwks", "keys.json")
    assert needs([a], []).keys == {source}
    (it,) = issuers(compiled([a], keys={source: key_set("s")})).values()
    assert it.source == "secret:jwks/keys.json"


def test_keys_that_are_needed_are_those_of_well_formed_tenants() -> None:
    tenants = [
        tenant("a", identity=[jwt(), service_account("x")]),
        tenant("broken", weight=0, identity=[jwt(jwksUri="https://elsewhere.example/")]),
    ]
    assert needs(tenants, []).keys == {JWKS_URI, CLUSTER}


@pytest.mark.parametrize(
    ("keys", "reason", "message"),
    [
        ({}, "KeysPending", "spec.identity[0].jwt: the keys have not been fetched yet"),
        (
            {JWKS_URI: KeysProblem("KeysUnavailable", "https://id.example/keys answers with HTTP 500")},
            "KeysUnavailable",
            "spec.identity[0].jwt: https://id.example/keys answers with HTTP 500",
        ),
    ],
)
def test_without_keys_the_issuer_is_left_out_and_the_tenant_told(
    keys: dict[str, KeysProblem], reason: str, message: str
) -> None:
    a = tenant("a", identity=[jwt()])
    result = compiled([a], keys=keys)
    assert issuers(result) == {}
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason, resolved.message) == ("False", reason, message)


def test_keys_that_are_kept_count_and_the_tenant_is_told() -> None:
    a = tenant("a", identity=[jwt()])
    result = compiled([a], keys={JWKS_URI: key_set(problem="no answer")})
    assert list(issuers(result)) == [ISSUER]
    resolved = condition(result, a, RESOLVED_REFS)
    assert (resolved.status, resolved.reason) == ("True", "KeysNotRefreshed")
    assert resolved.message == "spec.identity[0].jwt: the last good keys are kept: no answer"


def test_the_older_tenant_keeps_a_value_and_both_are_told() -> None:
    young = tenant("a", created=YOUNG, identity=[of_team("x")])
    old = tenant("b", created=OLD, identity=[of_team("x")])
    result = compiled([young, old], keys=KEYS)
    assert issuers(result)[ISSUER].tenants == {"x": "b"}
    assert condition(result, young, RESOLVED_REFS).reason == "DuplicateIdentity"
    assert condition(result, old, CONFLICTED).message == (
        'spec.identity[0].jwt: Tenant "b" and Tenant "a" (spec.identity[0].jwt) have the same token; '
        'Tenant "b" keeps it'
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"audience": "other"}, "audience"),
        ({"jwksUri": "https://evil.example/"}, "keys"),
        ({"claim": ["other"]}, "claim"),
        ({"userClaim": ["email"]}, "userClaim"),
        ({"applicationClaim": ["app"]}, "applicationClaim"),
    ],
)
def test_of_tenants_that_disagree_on_an_issuer_the_oldest_decides(change: dict[str, Any], field: str) -> None:
    young = tenant(
        "a",
        created=YOUNG,
        identity=[of_team("x", **change) if "claim" not in change else jwt(value="x", **change)],
    )
    old = tenant("b", created=OLD, identity=[of_team("y")])
    result = compiled([young, old], keys={**KEYS, "https://evil.example/": key_set("evil")})
    assert issuers(result)[ISSUER].tenants == {"y": "b"}
    assert [key["kid"] for key in issuers(result)[ISSUER].keys] == ["k1", "k2"]
    verdict = f'differ in {field} of issuer https://id.example; what Tenant "b" says counts'
    lost = condition(result, young, RESOLVED_REFS)
    assert (lost.status, lost.reason) == ("False", "IssuerConflict")
    assert lost.message == f'spec.identity[0].jwt: Tenant "a" and Tenant "b" (spec.identity[0].jwt) {verdict}'
    kept = condition(result, old, CONFLICTED)
    assert (kept.reason, condition(result, old, RESOLVED_REFS).status) == ("IssuerConflict", "True")
    assert kept.message == f'spec.identity[0].jwt: Tenant "b" and Tenant "a" (spec.identity[0].jwt) {verdict}'


def test_an_issuer_does_not_change_hands_while_its_keys_are_away() -> None:
    old = tenant("b", created=OLD, identity=[of_team("x")])
    young = tenant("a", created=YOUNG, identity=[of_team("x", jwksUri="https://evil.example/")])
    result = compiled([old, young], keys={"https://evil.example/": key_set("evil")})
    assert issuers(result) == {}
    assert condition(result, young, RESOLVED_REFS).reason == "IssuerConflict"


def test_nobody_takes_the_clusters_issuer_from_service_accounts_that_came_first() -> None:
    old = tenant("b", created=OLD, identity=[service_account("x")])
    young = tenant("a", created=YOUNG, identity=[jwt(issuer=CLUSTER_ISSUER)])
    result = compiled([old, young], keys=KEYS)
    assert issuers(result)[CLUSTER_ISSUER].kubernetes
    assert condition(result, young, RESOLVED_REFS).reason == "IssuerConflict"


def test_a_rotated_key_is_new_to_those_who_use_it_and_to_nobody_else() -> None:
    tenants = [tenant("a", identity=[jwt()]), tenant("b", identity=[service_account("x")])]
    before, after = (compiled(tenants, keys={**KEYS, JWKS_URI: key_set(kid)}).parts for kid in ("k1", "k3"))
    assert {key.name for key in before if before[key] != after[key]} == {"a"}
