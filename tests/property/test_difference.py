"""The difference between two documents: it makes the one of the other, byte for byte, and of no third.

Applied to what is held it is what whoever applies it to the JSON and reads the whole would have, and refused
where that can't be read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fairserve.config import SchedulerConfig, canonical_json, key_digest
from fairserve.difference import Difference, DifferenceError, Held, WrongBaseError, apply, diff
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.configuration import DocumentError, read_difference, read_document
from fairserve.sidecar.identity import IdentityTable, Memory

SALTS = ("5a" * 16, "5b" * 16)
NAMES = ("a", "b", "c", "ä")
VALUES = ("1", "2: 3")
ISSUERS = ("https://i", "i.j", '"tenants":{}')
KEY = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "k"}

limits = st.none() | st.builds(lambda n, s: {"count": n, "window_s": s}, st.integers(1, 9), st.floats(1, 99))
weights = st.floats(0.1, 9)
names = st.sampled_from(NAMES)
salts = st.none() | st.sampled_from(["s", "t"])


def one_of_each(strategy: st.SearchStrategy[dict], *fields: str) -> st.SearchStrategy[list[dict]]:
    """Any subset of names, in any order: the operator's order is only one of them."""
    return st.lists(strategy, unique_by=lambda entry: tuple(entry[f] for f in fields), max_size=4)


matches = st.sampled_from(
    [
        None,
        {"models": ["m"]},
        {"models": ["m", "n"], "paths": ["/v1/completions"]},
        {"paths": ["/v1/completions"]},
        {"headers": {"x-b": "2", "x-c": "1"}},
    ]
)
applications = st.fixed_dictionaries(
    {
        "name": names,
        "input_tokens": st.integers(1, 9),
        "output_tokens": st.just(1),
        "interaction_sources": st.sampled_from([["header:x-i"], ["traceparent"]]),
        "match": matches,
    }
)


def tenants(usable: Sequence[str]) -> st.SearchStrategy[dict]:
    some = st.lists(st.sampled_from(usable), unique=True) if usable else st.just([])
    return st.fixed_dictionaries(
        {
            "name": names,
            "weight": weights,
            "per_user": limits,
            "cache_salt": salts,
            "held": st.booleans(),
            "applications": st.none() | some,
            "user_sources": st.sampled_from([None, [], ["header:x-u", "body:a.b"], ["body:a.b"]]),
        }
    )


def keys(of: st.SearchStrategy[str], pinned: Sequence[str]) -> st.SearchStrategy[dict]:
    digests = st.sampled_from([key_digest(SALTS[0], name) for name in NAMES])
    pins = st.none() | st.sampled_from(pinned) if pinned else st.none()
    return st.fixed_dictionaries({"digest": digests, "tenant": of, "application": pins})


def headers(of: st.SearchStrategy[str]) -> st.SearchStrategy[dict]:
    called = st.sampled_from(["x-a", "x-a!", "x-fairserve-tenant"])
    return st.fixed_dictionaries({"name": called, "value": st.sampled_from(VALUES), "tenant": of})


@st.composite
def issuers(draw: st.DrawFn, of: st.SearchStrategy[str]) -> dict[str, Any]:
    issuer = {
        "issuer": draw(st.sampled_from(ISSUERS)),
        "audiences": ["tenants"],
        "algorithms": ["EdDSA"],
        "keys": [{**KEY, "alg": "EdDSA"} if draw(st.booleans()) else {**KEY, "tenants": {}}],
        "user_claim": draw(st.sampled_from([["sub"], ['"tenants":{}', "tenants"]])),
    }
    if draw(st.booleans()):
        return {**issuer, "tenant": draw(of)}
    known = draw(st.none() | st.dictionaries(st.sampled_from(["v", "w", '"x"']), of, max_size=3))
    return {**issuer, "tenant_claim": ["team"], "tenants": known}


@st.composite
def documents(
    draw: st.DrawFn,
    generation: int | None = None,
    apps: list[dict[str, Any]] | None = None,
    its: list[dict[str, Any]] | None = None,
) -> SchedulerConfig:
    """`apps` and `its` are Applications and Tenants of another one that this one has as well."""
    apps = draw(one_of_each(applications, "name")) if apps is None else apps
    called = [each["name"] for each in apps]
    its = draw(one_of_each(tenants(called), "name")) if its is None else its
    of = st.sampled_from([tenant["name"] for tenant in its] or ["-"])
    size = bool(its)
    return SchedulerConfig.model_validate(
        {
            "format": draw(st.sampled_from([1, 2])),
            "pool": "default/llm",
            "generation": draw(st.integers(0, 5)) if generation is None else generation,
            "mode": draw(st.sampled_from(["Enforce", "Shadow"])),
            "scheduler": {"normalisation": draw(st.sampled_from([0.5, 1.0]))},
            "default_tenant": draw(st.none() | st.just({"name": "default"})),
            "tenants": its,
            "applications": apps,
            "identity": {
                "salt": draw(st.sampled_from(SALTS)),
                "trusted_proxies": draw(st.lists(st.sampled_from(["10.0.0.0/8", "::1/128"]), unique=True)),
                "api_keys": draw(one_of_each(keys(of, called), "digest")) if size else [],
                "headers": draw(one_of_each(headers(of), "name", "value")) if size else [],
                "token_issuers": draw(one_of_each(issuers(of), "issuer")) if size else [],
            },
        }
    )


@st.composite
def chains(draw: st.DrawFn) -> list[SchedulerConfig]:
    """Documents of which each may have the applications, and the tenants, of the one before."""
    chain = [draw(documents(generation=0))]
    for generation in range(1, draw(st.integers(2, 5))):
        before = chain[-1].model_dump(mode="json")
        apps = before["applications"] if draw(st.booleans()) else None
        its = before["tenants"] if apps is not None and draw(st.booleans()) else None
        chain.append(draw(documents(generation, apps, its)))
    return chain


def travelled(change: Difference) -> Difference:
    return Difference.from_bytes(change.to_bytes())


@settings(deadline=None, max_examples=75)
@given(documents(), documents())
def test_a_difference_makes_the_new_document_of_the_old(old: SchedulerConfig, new: SchedulerConfig) -> None:
    made = apply(travelled(diff(old, new)), Held.of(old)).config
    assert made == new
    assert (made.to_bytes(), made.content_hash) == (new.to_bytes(), new.content_hash)


def parts(held: Held) -> object:
    """All that is kept, with its order."""
    rendering, decided = held.rendering, held.settings
    return (
        [rendering.content_hash, dict(rendering.fields)],
        {path: list(entries.items()) for path, entries in rendering.lists.items()},
        {path: list(entries.items()) for path, entries in held.entries.items()},
        [list(decided.tenants.items()), list(decided.applications.items())],
        (decided.policy, decided.mode, decided.normalisation, decided.default_tenant, decided.queue),
    )


def answers(table: IdentityTable) -> list[object]:
    """What a table says of every head that may matter."""
    heads = [(name.encode(), value.encode()) for name in ("x-a", "x-a!") for value in VALUES]
    heads += [(b"x-fairserve-tenant", value.encode()) for value in (*NAMES, *VALUES)]
    heads += [(b"x-api-key", name.encode()) for name in NAMES]
    said = [
        table.authenticate([head], dict([head]), Memory(table, "10.0.0.1"), trusted=trusted)
        for head in heads
        for trusted in (True, False)
    ]
    callers = [caller for claim in said if isinstance(claim, Claim) for caller in called_by(table, claim)]
    ambiguous = [(b"x-b", b"2"), (b"x-b", b"1")]
    twice = table.authenticate(ambiguous, dict(ambiguous), Memory(table, "10.0.0.1"), trusted=False)
    return [*said, *callers, twice, table.header_names, table.trusts("10.0.0.1")]


def called_by(table: IdentityTable, claim: Claim) -> list[object]:
    """Who a claim's calls are, of every application and user that may be."""
    asked = EngineRequest(b"", user="u", said={("model",): "m", ("a", "b"): "v"})
    heads = [{b"x-fairserve-application": name.encode()} for name in NAMES]
    heads += [{b"x-b": b"2", b"x-c": b"1"}, {b"x-u": b"w", b"x-i": b"i"}]
    targets = (b"/v1/completions", b"/v1/embeddings?x")
    said = [
        table.identify(claim, head, request, trusted=False, target=target)
        for head in heads
        for request in (asked, EngineRequest(b""))
        for target in targets
    ]
    return [*said, table.wanted(claim)]


@settings(deadline=None, max_examples=50)
@given(chains())
def test_a_chain_of_differences_is_as_the_last_document_read_whole(chain: list[SchedulerConfig]) -> None:
    running = read_document(chain[0].to_bytes())
    for old, new in pairwise(chain):
        running = read_difference(diff(old, new).to_bytes(), running)
        whole = read_document(new.to_bytes())
        assert parts(running.held) == parts(whole.held)
        assert answers(running.table) == answers(whole.table)
        assert running.document == new


@settings(deadline=None, max_examples=25)
@given(documents(), documents(), documents())
def test_a_difference_applies_to_no_other_document(
    old: SchedulerConfig, new: SchedulerConfig, other: SchedulerConfig
) -> None:
    assume((other.generation, other.content_hash) != (old.generation, old.content_hash))
    with pytest.raises(WrongBaseError):
        apply(diff(old, new), Held.of(other))


LISTS = {
    "tenants": ("name",),
    "applications": ("name",),
    "identity.api_keys": ("digest",),
    "identity.headers": ("name", "value"),
}
strange = st.sampled_from(
    [{"wieght": 1}, {"weight": 0}, {"tenant": "nobody"}, {"tenant": [1]}, {"name": 5}, {"applications": [[]]}]
)


@st.composite
def edits(draw: st.DrawFn) -> dict[str, Any]:
    """What may be put and removed, and mostly may not."""
    made: dict[str, st.SearchStrategy[dict]] = {
        "tenants": tenants(NAMES),
        "applications": applications,
        "identity.api_keys": keys(names, NAMES),
        "identity.headers": headers(names),
    }
    put: dict[str, list[dict]] = {}
    remove: dict[str, list[str]] = {}
    for path in draw(st.lists(st.sampled_from(list(made)), unique=True, max_size=2)):
        put[path] = draw(one_of_each(made[path], *LISTS[path]))
        if put[path] and draw(st.booleans()):
            put[path][0] |= draw(strange)
    for path in draw(st.lists(st.sampled_from(["tenants", "applications"]), unique=True)):
        remove[path] = draw(st.lists(names, unique=True, max_size=2))
    if draw(st.booleans()):
        remove["identity.api_keys"] = [key_digest(SALTS[0], draw(names))]
    changed = draw(st.sampled_from([{}, {"mode": "Shadow"}, {"mode": 1}, {"identity.hop_tokens": ["x"]}]))
    return {"put": put, "remove": remove, "set": changed}


def read_whole(edit: dict[str, Any], document: SchedulerConfig) -> SchedulerConfig | None:
    """The edit of the JSON, read whole; None for what can't be."""
    content = json.loads(document.to_bytes())
    places = {path: (content["identity"] if "." in path else content, path.split(".")[-1]) for path in LISTS}
    for path, value in edit["set"].items():
        section, _, name = path.rpartition(".")
        (content["identity"] if section else content)[name] = value
    for path in edit["put"].keys() | edit["remove"].keys():
        section, name = places[path]
        entries = {tuple(e[f] for f in LISTS[path]): e for e in section[name]}
        for gone in edit["remove"].get(path, []):
            if entries.pop((gone,), None) is None:
                return None
        for entry in edit["put"].get(path, []):
            called = tuple(entry[f] for f in LISTS[path])
            if called in [(gone,) for gone in edit["remove"].get(path, [])] or 5 in called:
                return None
            entries[called] = entry
        section[name] = [entries[called] for called in sorted(entries)]
    try:
        return SchedulerConfig.from_bytes(canonical_json({**content, "generation": document.generation + 1}))
    except ValidationError:
        return None


def in_order(document: SchedulerConfig) -> SchedulerConfig:
    identity = document.identity
    by_header = sorted(identity.headers, key=lambda header: (header.name, header.value))
    update = {"api_keys": tuple(sorted(identity.api_keys, key=lambda key: key.digest))}
    return document.model_copy(
        update={
            "tenants": tuple(sorted(document.tenants, key=lambda tenant: tenant.name)),
            "applications": tuple(sorted(document.applications, key=lambda its: its.name)),
            "identity": identity.model_copy(update={**update, "headers": tuple(by_header)}),
        }
    )


@settings(deadline=None, max_examples=150)
@given(documents().map(in_order), edits())
def test_an_edit_is_applied_exactly_where_the_whole_could_be_read(
    old: SchedulerConfig, edit: dict[str, Any]
) -> None:
    expected = read_whole(edit, old)
    change = {
        **edit,
        "base": {"generation": old.generation, "hash": old.content_hash},
        "generation": old.generation + 1,
        "hash": "0" * 64 if expected is None else expected.content_hash,
    }
    running = read_document(old.to_bytes())
    before = parts(running.held), answers(running.table)
    if expected is None:
        with pytest.raises(DocumentError):
            read_difference(canonical_json(change), running)
    else:
        made = read_difference(canonical_json(change), running)
        whole = read_document(expected.to_bytes())
        assert parts(made.held) == parts(whole.held)
        assert answers(made.table) == answers(whole.table)
    assert (parts(running.held), answers(running.table)) == before


def document(generation: int, *tenants: str) -> SchedulerConfig:
    return SchedulerConfig.model_validate(
        {
            "pool": "default/llm",
            "generation": generation,
            "identity": {"salt": SALTS[0]},
            "tenants": [{"name": name} for name in tenants],
        }
    )


def test_one_tenant_of_many_travels_alone() -> None:
    names = [f"t{number:04}" for number in range(1000)]
    difference = diff(document(1, *names), document(2, *names[:500], "t0499a", *names[501:]))
    assert [entry["name"] for entry in difference.put["tenants"]] == ["t0499a"]
    assert (difference.set, difference.remove) == ({}, {"tenants": ["t0500"]})


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({"set": {"surprise": 1}}, DifferenceError),
        ({"set": {"generation": 9}}, DifferenceError),
        ({"put": {"mode": []}}, DifferenceError),
        ({"put": {"tenants": [{"weight": 1}]}}, DifferenceError),
        ({"remove": {"tenants": ["nobody"]}}, DifferenceError),
        ({"remove": {"tenants": ["a"]}, "put": {"tenants": [{"name": "a"}]}}, DifferenceError),
        ({"set": {"tenants": []}, "put": {"tenants": [{"name": "a"}]}}, DifferenceError),
        ({"put": {"tenants": [{"name": "a", "weight": 0}]}}, ValidationError),
        ({"put": {"tenants": [{"name": "a", "wieght": 1}]}}, ValidationError),
        ({"set": {"mode": "Shadow"}, "hash": "0" * 64}, WrongBaseError),
    ],
)
def test_a_difference_that_makes_no_sense_is_refused(change: dict, raised: type[Exception]) -> None:
    old = document(1, "a", "b")
    sensible = diff(old, document(2, "a", "b"))
    with pytest.raises(raised):
        apply(sensible.model_copy(update=change), Held.of(old))


def with_accounts(generation: int, accounts: dict[str, str] | None, *tenants: str) -> SchedulerConfig:
    issuer = {
        "issuer": ISSUERS[0],
        "audiences": ["fairserve"],
        "algorithms": ["EdDSA"],
        "keys": [KEY],
        "kubernetes": True,
        "tenants": accounts,
    }
    fields = document(generation, *tenants).model_dump()
    return SchedulerConfig.model_validate(
        {**fields, "identity": {**fields["identity"], "token_issuers": [issuer]}}
    )


def test_one_account_of_many_travels_alone() -> None:
    accounts = {f"ns{number:04}": "a" for number in range(1000)}
    change = diff(
        with_accounts(1, accounts, "a", "b"), with_accounts(2, {**accounts, "ns0500": "b"}, "a", "b")
    )
    assert (change.set, change.remove) == ({}, {})
    assert change.put == {f"identity.token_issuers.{ISSUERS[0]}": [{"ns0500": "b"}]}


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({"remove": {"tenants": ["a"]}}, DifferenceError),
        ({"put": {f"identity.token_issuers.{ISSUERS[0]}": [{"ns": "nobody"}]}}, ValidationError),
        ({"put": {f"identity.token_issuers.{ISSUERS[0]}": [{"ns": 1}]}}, ValidationError),
        ({"put": {f"identity.token_issuers.{ISSUERS[0]}": [{"ns": float("nan")}]}}, DifferenceError),
        ({"put": {"identity.token_issuers.other": [{"ns": "a"}]}}, DifferenceError),
        ({"put": {f"tenants.{ISSUERS[0]}": [{"ns": "a"}]}}, DifferenceError),
        ({"remove": {f"identity.token_issuers.{ISSUERS[0]}": ["nowhere"]}}, DifferenceError),
        (
            {"put": {"identity.token_issuers": [{"issuer": ISSUERS[0], "tenants": {"ns": "a"}}]}},
            DifferenceError,
        ),
        ({"set": {"identity.token_issuers": [{"issuer": ISSUERS[0]}] * 2}}, DifferenceError),
        ({"set": {"identity.token_issuers": {}}}, DifferenceError),
    ],
)
def test_a_change_of_issuers_that_makes_no_sense_is_refused(change: dict, raised: type[Exception]) -> None:
    old = with_accounts(1, {"ns": "a"}, "a", "b")
    sensible = diff(old, with_accounts(2, {"ns": "a"}, "a", "b"))
    with pytest.raises(raised):
        apply(sensible.model_copy(update=change), Held.of(old))


def with_applications(generation: int, usable: list[str], *called: str) -> SchedulerConfig:
    fields = document(generation, "a", "b").model_dump()
    fields["tenants"][0]["applications"] = usable
    its = [{"name": name, "input_tokens": 1, "output_tokens": 1} for name in called]
    return SchedulerConfig.model_validate({**fields, "applications": its})


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({"remove": {"applications": ["chat"]}}, DifferenceError),
        ({"set": {"applications": []}}, DifferenceError),
        ({"remove": {"applications": ["chat"]}, "put": {"tenants": [{"name": "b"}]}}, DifferenceError),
        (
            {
                "remove": {"applications": ["chat"]},
                "put": {"tenants": [{"name": "a", "applications": ["chat"]}]},
            },
            ValidationError,
        ),
        ({"put": {"tenants": [{"name": "b", "applications": ["nope"]}]}}, ValidationError),
        ({"put": {"tenants": [{"name": "b", "applications": "chat"}]}}, ValidationError),
        ({"put": {"tenants": [{"name": "b", "applications": [["chat"]]}]}}, ValidationError),
        ({"put": {"tenants": [{"name": "b", "applications": ["chat", "chat"]}]}}, ValidationError),
    ],
)
def test_a_tenants_application_that_is_gone_or_never_was_is_refused(
    change: dict, raised: type[Exception]
) -> None:
    old = with_applications(1, ["chat"], "agent", "chat")
    sensible = diff(old, with_applications(2, ["chat"], "agent", "chat"))
    with pytest.raises(raised):
        apply(sensible.model_copy(update=change), Held.of(old))


def test_what_a_tenant_may_use_goes_with_its_applications() -> None:
    old = with_applications(1, ["chat"], "agent", "chat")
    for usable, called in ((["agent"], ["agent"]), ([], []), (["new"], ["chat", "new"])):
        new = with_applications(2, usable, *called)
        assert apply(travelled(diff(old, new)), Held.of(old)).config == new


def test_a_key_of_a_tenant_that_may_use_some_applications_travels_alone() -> None:
    old = with_applications(1, ["chat"], "chat")
    key = {"digest": key_digest(SALTS[0], "k"), "tenant": "a"}
    fields = with_applications(2, ["chat"], "chat").model_dump()
    new = SchedulerConfig.model_validate({**fields, "identity": {"salt": SALTS[0], "api_keys": [key]}})
    change = diff(old, new)
    assert (change.set, change.remove, list(change.put)) == ({}, {}, ["identity.api_keys"])
    assert apply(change, Held.of(old)).config == new
