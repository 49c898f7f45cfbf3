"""Compilation against arbitrary namespaces: canonical, total, and unmoved by other objects' faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairserve.config import INTERACTION_SOURCES, SchedulerConfig, key_digest
from fairserve.sidecar.identity import IdentityTable
from fairserve_operator.decide.compilation import Compiled, compile_pool, needs
from fairserve_operator.decide.conditions import CONFLICTED
from fairserve_operator.decide.inference_pools import InferencePool
from fairserve_operator.decide.jwks import CLUSTER, KeySet, KeySource, KeysProblem
from fairserve_operator.decide.limits import NEVER_BINDS
from fairserve_operator.decide.resources import Resource, SecretProblem, SecretRef
from tests.unit.operator.builders import (
    CLUSTER_ISSUER,
    ISSUER,
    JWKS_URI,
    NAMESPACE,
    SALT,
    api_key,
    application,
    header,
    jwt,
    key_set,
    pool,
    service_account,
    tenant,
)

SECRETS = ("s0", "s1", "s2")
APPLICATIONS = ("chat", "agent", "broken-app", "gone")
USER_SOURCES = ({"header": "x-user"}, {"bodyField": "user"}, {"bodyField": "metadata.who"})


@st.composite
def mostly(draw: st.DrawFn, usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> Any:
    """One in eight is odd: with more, hardly anything of a namespace would be compiled."""
    return draw(odd if draw(st.integers(0, 7)) == 7 else usual)


times = st.sampled_from(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])
identities = st.one_of(
    st.builds(
        api_key,
        mostly(st.sampled_from(SECRETS), st.just("missing")),
        application=mostly(st.none(), st.sampled_from(APPLICATIONS)),
    ),
    st.builds(header, st.sampled_from(["x-team", "X-Team", "x-org"]), st.sampled_from(["a", "b"])),
    st.builds(
        jwt,
        issuer=mostly(st.sampled_from([ISSUER, "https://other.example"]), st.just(CLUSTER_ISSUER)),
        audience=st.sampled_from(["llm", "llm", "elsewhere"]),
        claim=st.just(["team"]),
        value=st.sampled_from(["x", "y"]),
        jwksUri=mostly(st.just(JWKS_URI), st.just("https://away.example/keys")),
    ),
    st.builds(service_account, st.sampled_from(["ns-a", "ns-b"]), st.sampled_from([None, "app"])),
    st.just(jwt(issuer="https://one.example")),
)
some_labels = st.sampled_from([{"tier": "low"}, {"tier": "low", "kind": "web"}, {"tier": "high"}])
limits = st.fixed_dictionaries({"count": st.integers(1, 9), "window": st.sampled_from(["1s", "1m"])})
well_formed = st.fixed_dictionaries(
    {"identity": st.lists(identities, max_size=4)},
    optional={
        "weight": st.floats(0.01, 100.0),
        "queue": st.sampled_from([{}, {"maxWait": "1m"}, {"maxBytes": "1Mi", "maxBytesPerUser": "1Ki"}]),
        "interactionLimits": st.fixed_dictionaries({"perUser": limits}),
        "prefixCacheGroup": st.sampled_from(["g", "h"]),
        "stopPolicy": st.sampled_from(["None", "Hold"]),
        "applications": st.fixed_dictionaries({"names": st.lists(st.sampled_from(APPLICATIONS), unique=True)})
        | st.fixed_dictionaries({"selector": st.fixed_dictionaries({"matchLabels": some_labels})}),
        "users": st.fixed_dictionaries({"from": st.lists(st.sampled_from(USER_SOURCES), unique_by=str)}),
    },
)
matches = st.sampled_from(
    [
        {"models": ["m"]},
        {"models": ["m", "n"]},
        {"models": ["n", "m"]},
        {"paths": ["/v1/completions"], "headers": [{"name": "x-kind", "value": "k"}]},
    ]
)
well_formed_application = st.fixed_dictionaries(
    {
        "profile": st.fixed_dictionaries(
            {"inputTokens": st.integers(5, 10**8), "outputTokens": st.integers(1, 10**8)},
            optional={"systemTokens": st.integers(0, 5), "mode": st.sampled_from(["Static", "Learned"])},
        )
    },
    optional={
        "weight": st.floats(0.01, 100.0),
        "match": matches,
        "interactionLimits": st.one_of(
            [st.fixed_dictionaries({}, optional={kind: limits}) for kind in ("perUser", "perTenant", "total")]
        ),
        "interaction": st.fixed_dictionaries(
            {}, optional={"idSources": st.lists(st.sampled_from(INTERACTION_SOURCES), unique=True)}
        ),
    },
)
ill_formed = st.sampled_from(
    [
        {"weight": 0},
        {"weight": "3"},
        {"identity": [{}]},
        {"identity": None},
        {"queue": {"maxWait": "x"}},
        {"no": 1},
    ]
)
well_formed_pool = st.fixed_dictionaries(
    {},
    optional={
        "scheduler": st.sampled_from([{"policy": "VTC"}, {"normalisation": 0.5}]),
        "trustedProxies": st.sampled_from([["10.0.0.0/8", "10.0.0.0/8"], ["::/0"]]),
        "defaultTenant": st.sampled_from([{"mode": "Admit", "prefixCacheGroup": "g"}, {"mode": "Reject"}]),
        "hopTokens": st.lists(
            st.builds(lambda name: {"name": name, "key": "api-key"}, st.sampled_from([*SECRETS, "missing"])),
            max_size=3,
        ),
        "queue": st.sampled_from([{}, {"maxRequests": 1, "maxBytes": "1Ki"}]),
        "serviceAccountAudience": st.sampled_from(["fairserve", "llm"]),
    },
)
selections = mostly(
    st.sampled_from([{"selector": {"matchLabels": {"app": value}}} for value in "xyz"]),
    st.sampled_from([{"selector": None, "poolRef": {"name": name}} for name in ("by-x", "gone")]),
)
INFERENCE_POOLS = {"by-x": InferencePool({"app": "x"}, frozenset({8000}))}
ill_formed_pool = st.sampled_from([{"selector": {}}, {"selector": {"matchLabels": {"app": "x"}}, "no": 1}])
KEYS: dict[KeySource, KeySet] = {
    JWKS_URI: key_set("k1", "k2"),
    "https://away.example/keys": key_set("away", problem="no answer"),
    CLUSTER: key_set("c", issuer=CLUSTER_ISSUER),
}
#: Secrets hold few keys, so that some hold the same one.
usable = st.sampled_from([key_digest(SALT, key) for key in ("one", "two", "three")])
problems = st.sampled_from(list(SecretProblem))


@dataclass(frozen=True)
class Namespace:
    pools: tuple[Resource, ...]
    tenants: tuple[Resource, ...]
    applications: tuple[Resource, ...]
    digests: dict[SecretRef, str | SecretProblem]
    keys: dict[KeySource, KeySet | KeysProblem]

    def compile(self, which: int = 0) -> Compiled:
        return compile_pool(
            self.pools[which],
            self.pools,
            self.tenants,
            self.applications,
            self.digests,
            self.keys,
            SALT,
            INFERENCE_POOLS,
        )

    def joined_by(self, one: Resource) -> Namespace:
        match one.key.kind:
            case "Tenant":
                return replace(self, tenants=(*self.tenants, one))
            case "Application":
                return replace(self, applications=(*self.applications, one))
            case _:
                return replace(self, pools=(*self.pools, one))


@st.composite
def namespaces(draw: st.DrawFn) -> Namespace:
    specs = [draw(mostly(well_formed, ill_formed)) for _ in range(draw(st.integers(0, 6)))]
    return Namespace(
        pools=tuple(
            pool(
                f"p{i}",
                created=draw(times),
                **{**draw(selections), **draw(mostly(well_formed_pool, ill_formed_pool))},
            )
            for i in range(draw(st.integers(1, 3)))
        ),
        tenants=tuple(tenant(f"t{i}", created=draw(times), **spec) for i, spec in enumerate(specs)),
        applications=(
            application(
                "chat", created=draw(times), labels=draw(some_labels), **draw(well_formed_application)
            ),
            application(
                "agent", created=draw(times), labels=draw(some_labels), **draw(well_formed_application)
            ),
            application("broken-app", weight=0),
        ),
        digests={SecretRef(NAMESPACE, name, "api-key"): draw(mostly(usable, problems)) for name in SECRETS},
        keys={
            source: draw(mostly(st.just(keys), st.just(KeysProblem("KeysUnavailable", "away"))))
            for source, keys in KEYS.items()
        },
    )


@given(namespaces(), st.integers(0, 1000))
def test_permutations_change_nothing(namespace: Namespace, seed: int) -> None:
    rng = random.Random(seed)
    shuffled = replace(
        namespace,
        pools=(namespace.pools[0], *rng.sample(namespace.pools, len(namespace.pools))),
        tenants=tuple(rng.sample(namespace.tenants, len(namespace.tenants))),
        applications=tuple(rng.sample(namespace.applications, len(namespace.applications))),
        digests=dict(rng.sample(sorted(namespace.digests.items()), len(namespace.digests))),
        keys=dict(rng.sample(sorted(namespace.keys.items(), key=str), len(namespace.keys))),
    )
    one, other = namespace.compile(), shuffled.compile()
    assert one == other
    assert (one.config and one.config.to_bytes()) == (other.config and other.config.to_bytes())


@given(namespaces())
def test_every_configuration_is_accepted_by_the_sidecar(namespace: Namespace) -> None:
    config = namespace.compile().config
    if config is not None:
        read = SchedulerConfig.from_bytes(config.to_bytes())
        assert read == config
        assert read.content_hash == config.content_hash
        assert set(read.settings().tenants) == {t.name for t in config.tenants}
        IdentityTable(read)  # Which reads the keys as well.


@given(
    namespaces(),
    st.sampled_from(
        [
            tenant("aa", weight=0, identity=[api_key("s0"), header("x-team", "a")]),
            tenant("zz", identity=[{}]),
            tenant("mm", created="2000-01-01T00:00:00Z", nope=1),
            application("aa-app", weight=-1),
            pool("a", selector={}),
        ]
    ),
)
def test_a_broken_object_changes_only_its_own_conditions(namespace: Namespace, broken: Resource) -> None:
    before = namespace.compile()
    after = namespace.joined_by(broken).compile()
    assert after.config == before.config
    assert after.parts == before.parts
    assert {k: v for k, v in after.conditions.items() if k != broken.key} == before.conditions
    assert after.conditions[broken.key][0].status == "False"


claimants = well_formed.map(lambda spec: tenant("zz", created="2030-01-01T00:00:00Z", **spec))


@given(namespaces(), claimants)
def test_a_younger_object_takes_nothing_from_anybody(namespace: Namespace, younger: Resource) -> None:
    """It changes its own conditions, and tells those whose things it claims; they keep them."""
    before, after = unnoted(namespace.compile()), unnoted(namespace.joined_by(younger).compile())
    told = {key for key, cs in after.conditions.items() if cs != before.conditions.get(key)}
    assert {key for key in told if key.kind != "Tenant"} == set()
    for key in told - {younger.key}:
        assert after.conditions[key][:2] == before.conditions[key][:2]
        conflict = next(c for c in after.conditions[key] if c.type == CONFLICTED)
        assert '"zz"' in conflict.message or "more" in conflict.message
        mine = next(c for c in after.conditions[younger.key] if c.type == CONFLICTED)
        assert f'"{key.name}"' in mine.message or "more" in mine.message
    assert {k: v for k, v in after.parts.items() if k != younger.key} == before.parts
    if before.config is not None:
        assert after.config is not None
        assert without(after.config, "zz") == without(before.config, "zz")


def unnoted(result: Compiled) -> Compiled:
    """The same without notes of limits that never bind: whoever joins may make them bind."""
    return replace(
        result,
        conditions={
            key: tuple(
                replace(c, reason="Accepted", message="the spec is well formed")
                if c.reason == NEVER_BINDS
                else c
                for c in conditions
            )
            for key, conditions in result.conditions.items()
        },
    )


def without(config: SchedulerConfig, name: str) -> dict[str, Any]:
    """A document without everything that is one tenant's, and whichever format that needs."""
    content = config.model_dump(exclude={"format"})
    identity = content["identity"]
    content["tenants"] = [t for t in content["tenants"] if t["name"] != name]
    for kind in ("api_keys", "headers"):
        identity[kind] = [each for each in identity[kind] if each["tenant"] != name]
    for issuer in identity["token_issuers"]:
        issuer["tenants"] = {v: t for v, t in (issuer["tenants"] or {}).items() if t != name}
    identity["token_issuers"] = [
        issuer
        for issuer in identity["token_issuers"]
        if issuer["tenants"] or issuer["tenant"] not in (None, name)
    ]
    return content


FIELDS = """
    identity jwt apiKey secretRef name key weight queue maxBytes profile mode interaction idSources selector
    matchLabels hopTokens claim value overload signals match models headers applications names users from
"""
words = st.sampled_from(FIELDS.split())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(words | st.text(max_size=3), below, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # The first text takes a second to be ready for.
@given(
    namespaces(), st.dictionaries(words, anything, max_size=4), st.sampled_from([tenant, application, pool])
)
def test_no_spec_crashes_it(namespace: Namespace, spec: dict[str, Any], make: Any) -> None:
    odd = replace(make("odd"), spec=spec)
    joined = namespace.joined_by(odd)
    result = joined.compile()
    assert result.conditions[odd.key]
    needs(joined.tenants, joined.pools)
    if result.config is not None:
        IdentityTable(SchedulerConfig.from_bytes(result.config.to_bytes()))


@given(namespaces())
def test_every_object_is_told_and_exactly_the_accepted_tenants_go_in(namespace: Namespace) -> None:
    result = namespace.compile()
    objects = {r.key for r in (*namespace.pools, *namespace.tenants, *namespace.applications)}
    assert set(result.conditions) == set(result.observed) == objects
    if result.config is not None:
        accepted = {r.key.name for r in namespace.tenants if result.conditions[r.key][0].status == "True"}
        assert {t.name for t in result.config.tenants} == accepted
        assert {key.name for key in result.parts if key.kind == "Tenant"} == accepted


@given(namespaces())
def test_whoever_lacks_an_identity_is_told(namespace: Namespace) -> None:
    """A Tenant whose references are all resolved has every identity it lists."""
    result = namespace.compile()
    if result.config is None:
        return
    identity = result.config.identity
    for t in namespace.tenants:
        accepted, resolved = result.conditions[t.key][:2]
        if accepted.status == "True":
            has = [k for k in identity.api_keys if k.tenant == t.key.name]
            has_headers = [h for h in identity.headers if h.tenant == t.key.name]
            has_tokens = [
                value
                for issuer in identity.token_issuers
                for value, name in (issuer.tenants or {None: issuer.tenant}).items()
                if name == t.key.name
            ]
            listed = t.spec.get("applications", {}).get("names", ())
            (usable,) = (each.applications for each in result.config.tenants if each.name == t.key.name)
            whole = len(has) + len(has_headers) + len(has_tokens) == len(t.spec.get("identity", ()))
            assert (whole and set(listed) <= set(usable or ())) == (resolved.status == "True")


@given(namespaces())
def test_a_match_is_the_oldest_applications_and_whoever_lacks_it_is_told(namespace: Namespace) -> None:
    result = namespace.compile()
    if result.config is None:
        return
    has = {a.name for a in result.config.applications if a.match is not None}
    for one in namespace.applications:
        if "match" not in one.spec or result.conditions[one.key][0].status != "True":
            continue
        rivals = [
            other
            for other in namespace.applications
            if other is not one
            and "match" in other.spec
            and sorted(str(sorted(map(str, each))) for each in other.spec["match"].values())
            == sorted(str(sorted(map(str, each))) for each in one.spec["match"].values())
        ]
        wins = all((one.created, one.key.name) < (rival.created, rival.key.name) for rival in rivals)
        assert (one.key.name in has) == wins == (result.conditions[one.key][1].status == "True")
        assert any(c.type == CONFLICTED for c in result.conditions[one.key]) == bool(rivals)


@given(namespaces(), well_formed_application, some_labels)
def test_a_younger_application_takes_no_match_from_anybody(
    namespace: Namespace, spec: dict[str, Any], labels: dict[str, str]
) -> None:
    younger = application("zz-app", created="2030-01-01T00:00:00Z", labels=labels, **spec)
    before, after = namespace.compile().config, namespace.joined_by(younger).compile().config
    if before is not None:
        assert after is not None
        assert [a for a in after.applications if a.name != "zz-app"] == list(before.applications)
        for old, new in zip(before.tenants, after.tenants, strict=True):
            assert set(new.applications or ()) - {"zz-app"} == set(old.applications or ())


@given(namespaces())
def test_tokens_are_read_as_every_tenant_that_is_known_by_them_said(namespace: Namespace) -> None:
    result = namespace.compile()
    specs = {t.key.name: t.spec for t in namespace.tenants}
    for issuer in result.config.identity.token_issuers if result.config else ():
        for value, name in (issuer.tenants or {None: issuer.tenant}).items():
            assert name is not None
            said = [each["jwt"] for each in specs[name]["identity"] if "jwt" in each]
            assert issuer.kubernetes or any(
                (each["issuer"], each["audience"], each["jwksUri"], each.get("value"))
                == (issuer.issuer, *issuer.audiences, issuer.source, value)
                for each in said
            )


@given(namespaces())
def test_no_two_compiled_pools_select_the_same_pods(namespace: Namespace) -> None:
    results = [namespace.compile(i) for i in range(len(namespace.pools))]
    found = [r.selection.labels for r in results if r.selection is not None]
    labels = [tuple(each.items()) for each in found if each is not None]
    assert len(labels) == len(set(labels))


@given(namespaces())
def test_a_shared_key_is_the_oldest_tenants_and_every_claimant_is_told(namespace: Namespace) -> None:
    result = namespace.compile()
    if result.config is None:
        return
    told = {key for key, cs in result.conditions.items() if any(c.type == CONFLICTED for c in cs)}
    holders = {key.digest: key.tenant for key in result.config.identity.api_keys}
    by_name = {t.key.name: t for t in namespace.tenants if result.conditions[t.key][0].status == "True"}
    claimed: dict[str, list[tuple[str, str]]] = {}
    usable = {t.name: t.applications for t in result.config.tenants}
    for name, t in by_name.items():
        its = {"chat", "agent"} if usable[name] is None else set(usable[name] or ())
        for identity in t.spec.get("identity", ()):
            key = identity.get("apiKey")
            if key is None or key.get("application") not in {None, *its & {"chat", "agent"}}:
                continue
            digest = namespace.digests.get(SecretRef(NAMESPACE, key["secretRef"]["name"], "api-key"))
            if digest is not None and not isinstance(digest, SecretProblem):
                claimed.setdefault(digest, []).append((t.created, name))
    assert holders == {digest: min(claims)[1] for digest, claims in claimed.items()}
    for claims in claimed.values():
        if len(set(claims)) > 1:
            assert {by_name[name].key for _, name in claims} <= told
