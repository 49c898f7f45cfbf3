"""Compilation against arbitrary namespaces: canonical, total, and unmoved by other objects' faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairserve.config import SchedulerConfig, key_digest
from fairserve_operator.decide.compilation import Compiled, compile_pool
from fairserve_operator.decide.conditions import CONFLICTED
from fairserve_operator.decide.resources import Resource, SecretProblem, SecretRef
from tests.unit.operator.builders import NAMESPACE, SALT, api_key, application, header, pool, tenant

SECRETS = ("s0", "s1", "s2")
APPLICATIONS = ("chat", "agent", "broken-app", "gone")


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
)
well_formed = st.fixed_dictionaries(
    {"identity": st.lists(identities, max_size=4)},
    optional={"weight": st.floats(0.01, 100.0), "queue": st.sampled_from([{}, {"maxWait": "1m"}])},
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
    {"selector": st.sampled_from([{"matchLabels": {"app": value}} for value in "xyz"])},
    optional={
        "scheduler": st.sampled_from([{"policy": "VTC"}, {"normalisation": 0.5}]),
        "trustedProxies": st.sampled_from([["10.0.0.0/8", "10.0.0.0/8"], ["::/0"]]),
        "defaultTenant": st.sampled_from([{"mode": "Admit"}, {"mode": "Reject"}]),
    },
)
ill_formed_pool = st.sampled_from([{"selector": {}}, {"selector": {"matchLabels": {"app": "x"}}, "no": 1}])
#: Secrets hold few keys, so that some hold the same one.
usable = st.sampled_from([key_digest(SALT, key) for key in ("one", "two", "three")])
problems = st.sampled_from(list(SecretProblem))


@dataclass(frozen=True)
class Namespace:
    pools: tuple[Resource, ...]
    tenants: tuple[Resource, ...]
    applications: tuple[Resource, ...]
    digests: dict[SecretRef, str | SecretProblem]

    def compile(self, which: int = 0) -> Compiled:
        return compile_pool(
            self.pools[which], self.pools, self.tenants, self.applications, self.digests, {}, SALT
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
            pool(f"p{i}", created=draw(times), **draw(mostly(well_formed_pool, ill_formed_pool)))
            for i in range(draw(st.integers(1, 3)))
        ),
        tenants=tuple(tenant(f"t{i}", created=draw(times), **spec) for i, spec in enumerate(specs)),
        applications=(application("chat"), application("agent"), application("broken-app", weight=0)),
        digests={SecretRef(NAMESPACE, name, "api-key"): draw(mostly(usable, problems)) for name in SECRETS},
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
            assert (len(has) + len(has_headers) == len(t.spec.get("identity", ()))) == (
                resolved.status == "True"
            )


@given(namespaces())
def test_no_two_compiled_pools_select_the_same_pods(namespace: Namespace) -> None:
    results = [namespace.compile(i) for i in range(len(namespace.pools))]
    labels = [tuple(r.spec.selector.match_labels.items()) for r in results if r.spec is not None]
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
    for name, t in by_name.items():
        for identity in t.spec.get("identity", ()):
            key = identity.get("apiKey")
            if key is None or key.get("application") not in (None, "chat", "agent"):
                continue
            digest = namespace.digests.get(SecretRef(NAMESPACE, key["secretRef"]["name"], "api-key"))
            if digest is not None and not isinstance(digest, SecretProblem):
                claimed.setdefault(digest, []).append((t.created, name))
    assert holders == {digest: min(claims)[1] for digest, claims in claimed.items()}
    for claims in claimed.values():
        if len(set(claims)) > 1:
            assert {by_name[name].key for _, name in claims} <= told
