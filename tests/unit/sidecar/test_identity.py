"""Who calls, by key and by header."""

from __future__ import annotations

import pytest

from fairserve.config import INTERACTION_SOURCES, SchedulerConfig, key_digest
from fairserve.core.settings import DEFAULT_TENANT
from fairserve.difference import diff
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.configuration import read_difference, read_document
from fairserve.sidecar.identity import APPLICATION_HEADER, USER_HEADER, Caller, IdentityTable, Memory
from fairserve.sidecar.refusals import Problem

SALT = "ab" * 16


def table(**changes) -> IdentityTable:
    fields = {
        "pool": "n/p",
        "identity": {
            "salt": SALT,
            "api_keys": [
                {"digest": key_digest(SALT, "ka"), "tenant": "a"},
                {"digest": key_digest(SALT, "kü"), "tenant": "b", "application": "chat"},
            ],
            "headers": [{"name": "x-team", "value": "bee", "tenant": "b"}],
            "trusted_proxies": ["10.0.0.0/8", "fd00::/8"],
            "hop_tokens": [key_digest(SALT, "hop"), key_digest(SALT, "next-hop")],
        },
        "tenants": [{"name": "a"}, {"name": "b"}],
        "applications": [
            {"name": "chat", "input_tokens": 1, "output_tokens": 1},
            {"name": "agent", "input_tokens": 1, "output_tokens": 1},
        ],
    }
    return IdentityTable(SchedulerConfig.model_validate({**fields, **changes}))


def identify_pairs(pairs, asked=EngineRequest(b""), *, trusted: bool = False, **changes):  # noqa: B008 - never changed
    identities, named = table(**changes), dict(pairs)
    claim = identities.authenticate(pairs, named, Memory(identities, "10.0.0.9"), trusted=trusted)
    if isinstance(claim, Problem):
        return claim
    return identities.identify(claim, named, asked, trusted=trusted)


def identify(headers: dict[str, str], body_user: str = "", *, trusted: bool = False, **changes):
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return identify_pairs(pairs, EngineRequest(b"", user=body_user), trusted=trusted, **changes)


def code(result) -> str:
    assert isinstance(result, Problem)
    return result.code


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer ka"},
        {"authorization": "bearer  ka "},
        {"x-api-key": "ka"},
        {"api-key": "ka"},
        {"authorization": "Bearer ka", "x-api-key": "kü", "api-key": "kü"},
    ],
)
def test_key_is_its_tenant(headers):
    assert identify(headers) == Caller("a", "", "_default", None)


def test_key_may_hold_any_text_and_pin_an_application():
    assert identify({"x-api-key": "kü"}) == Caller("b", "", "chat", None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer nope"},
        {"authorization": "Basic ka"},
        {"authorization": "ka"},
        {"x-api-key": ""},
        {"authorization": "Bearer nope", "x-api-key": "ka"},
    ],
)
def test_unknown_caller_is_refused_or_the_default_tenant(headers):
    problem = identify(headers)
    assert code(problem) == "invalid_api_key"
    assert problem.status == 401
    caller = identify(headers, default_tenant={"name": "_default"})
    assert caller == Caller(DEFAULT_TENANT, "", "_default", None)


def test_header_names_a_tenant_only_from_a_trusted_hop():
    for headers in (
        {"x-team": "bee"},
        {"x-fairserve-tenant": "b"},
        {"x-llm-d-inference-fairness-id": "b"},
        {"x-gateway-inference-fairness-id": "b"},
    ):
        assert code(identify(headers)) == "invalid_api_key"
        assert identify(headers, trusted=True).tenant == "b"
        assert identify({**headers, "x-api-key": "ka"}).tenant == "a"
        assert identify({**headers, "x-api-key": "ka"}, trusted=True).tenant == "b"


def test_header_with_an_unknown_value_names_nobody():
    assert code(identify({"x-team": "cee"}, trusted=True)) == "invalid_api_key"
    assert identify({"x-team": "cee", "x-api-key": "ka"}, trusted=True).tenant == "a"


def test_two_values_of_an_identity_header_are_refused():
    pairs = [(b"x-team", b"bee"), (b"x-team", b"cee")]
    assert code(identify_pairs(pairs, trusted=True)) == "ambiguous_identity"


@pytest.mark.parametrize("name", [USER_HEADER, APPLICATION_HEADER])
@pytest.mark.parametrize("trusted", [False, True])
def test_two_users_or_applications_are_refused_but_not_one_said_twice(name, trusted):
    pairs = [(b"x-api-key", b"ka"), (name, b"chat")]
    assert code(identify_pairs([*pairs, (name, b"other")], trusted=trusted)) == "ambiguous_identity"
    assert identify_pairs([*pairs, (name, b"chat")], trusted=trusted).tenant == "a"


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"api-key"])
def test_two_keys_are_refused_but_not_one_said_twice(name):
    pairs = [(name, b"Bearer kx"), (name, b"Bearer ka")]
    for said in (pairs, pairs[::-1]):
        assert code(identify_pairs(said)) == "ambiguous_identity"
    key = b"Bearer ka" if name == b"authorization" else b"ka"
    assert identify_pairs([(name, key), (b"accept", b"*/*"), (name, key)]).tenant == "a"


@pytest.mark.parametrize(
    ("tokens", "trusted"),
    [
        ([b"hop"], True),
        ([b"next-hop"], True),
        ([b"hop "], False),
        ([key_digest(SALT, "hop").encode()], False),
        ([b""], False),
        ([], False),
        ([b"hop", b"hop"], False),
        ([b"guess", b"hop"], False),
    ],
)
def test_hop_shows_itself_by_one_token(tokens, trusted):
    headers = [(b"x-fairserve-hop-token", token) for token in tokens]
    assert table().trusts_token(headers) is trusted


def test_without_hop_tokens_no_token_is_trusted():
    identities = table(identity={"salt": SALT})
    assert not identities.trusts_token([(b"x-fairserve-hop-token", b"hop")])


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3", True),
        ("11.0.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("fd00::1%eth0", True),
        ("fe80::1", False),
        ("", False),
    ],
)
def test_trusted_peers(peer, trusted):
    assert table().trusts(peer) is trusted


def test_user_comes_from_the_header_then_from_the_body():
    assert identify({"x-api-key": "ka", "x-fairserve-user": "h"}, "b").user == "h"
    assert identify({"x-api-key": "ka"}, "b").user == "b"


def test_long_names_are_kept_as_digests():
    caller = identify({"x-api-key": "ka", "session-id": "s" * 10_000}, "\ud800" * 10_000)
    assert len(caller.user) < 100
    assert len(caller.interaction) < 100
    assert caller.user != identify({"x-api-key": "ka"}, "u" * 10_000).user


def test_application_must_exist_and_agree_with_the_key():
    assert identify({"x-api-key": "ka", "x-fairserve-application": "agent"}).application == "agent"
    assert identify({"x-api-key": "kü", "x-fairserve-application": "chat"}).application == "chat"
    unknown = identify({"x-api-key": "ka", "x-fairserve-application": "nope"})
    assert (unknown.status, unknown.code, unknown.param) == (
        400,
        "unknown_application",
        "x-fairserve-application",
    )
    other = identify({"x-api-key": "kü", "x-fairserve-application": "agent"})
    assert (other.status, other.code) == (403, "application_not_allowed")


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: Every source that a call may name its interaction by, and the name that it gives.
NAMES = {source: source.partition(":")[2] for source in INTERACTION_SOURCES} | {"traceparent": TRACE[3:35]}


def interaction_of(sources, **changes):
    """Which source counts when a call names its interaction in all of these."""
    headers = {NAMES[s].encode(): NAMES[s].encode() for s in sources if s.startswith("header:")}
    if "traceparent" in sources:
        headers[b"traceparent"] = TRACE.encode()
    body = {NAMES[s]: NAMES[s] for s in sources if s.startswith("body:")}
    pairs = [(b"x-api-key", b"ka"), (b"x-fairserve-application", b"chat"), *headers.items()]
    return identify_pairs(pairs, EngineRequest(b"", interaction=body), **changes)


def test_first_name_of_an_interaction_wins():
    for at, source in enumerate(INTERACTION_SOURCES):
        caller = interaction_of(INTERACTION_SOURCES[at:][::-1])
        assert caller.interaction == NAMES[source]
        assert (caller.previous_response is not None) is (source == "body:previous_response_id")
    assert interaction_of([]).interaction is None


@pytest.mark.parametrize("source", INTERACTION_SOURCES)
def test_one_name_is_enough(source):
    assert interaction_of([source]).interaction == NAMES[source]


def test_application_may_change_the_order_and_leave_names_out():
    order = ["traceparent", "body:session_id", "header:session-id"]
    chat = {"name": "chat", "input_tokens": 1, "output_tokens": 1, "interaction_sources": order}
    changes = {"applications": [chat, {"name": "agent", "input_tokens": 1, "output_tokens": 1}]}
    for at, source in enumerate(order):
        assert interaction_of(order[at:], **changes).interaction == NAMES[source]
    others = [source for source in INTERACTION_SOURCES if source not in order]
    caller = interaction_of(others, **changes)
    assert (caller.interaction, caller.previous_response) == (None, None)


def test_application_may_let_each_call_stand_alone():
    chat = {"name": "chat", "input_tokens": 1, "output_tokens": 1, "interaction_sources": []}
    agent = {"name": "agent", "input_tokens": 1, "output_tokens": 1}
    assert interaction_of(INTERACTION_SOURCES, applications=[chat, agent]).interaction is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("0af7", "0AF7"),
        TRACE.replace("00-", "ff-"),
        TRACE[:-3],
    ],
)
def test_what_is_no_trace_names_nothing(value):
    assert identify({"x-api-key": "ka", "traceparent": value}).interaction is None


def test_place_in_the_engines_queue_is_an_untrusted_header():
    assert {b"x-vllm-priority", b"x-team", b"x-fairserve-tenant"} <= table().header_names


def test_a_connection_is_remembered_by_its_last_key_alone():
    identities = table()
    memory = Memory(identities, "10.0.0.9")

    def tenant(key):
        pairs = [(b"authorization", b"Bearer " + key)]
        claim = identities.authenticate(pairs, dict(pairs), memory, trusted=False)
        return claim.code if isinstance(claim, Problem) else claim.tenant

    answers = [tenant(key) for key in (b"ka", b"ka", b"stolen", b"k", b"kaa", b"ka")]
    assert answers == ["a", "a", *["invalid_api_key"] * 3, "a"]
    assert [tenant("kü".encode()), tenant(b"ka")] == ["b", "a"]


def test_what_a_header_is_configured_to_mean_counts_before_a_tenants_name():
    identity = {"salt": SALT, "headers": [{"name": "x-fairserve-tenant", "value": "a", "tenant": "b"}]}
    assert identify({"x-fairserve-tenant": "a"}, trusted=True, identity=identity).tenant == "b"
    assert identify({"x-fairserve-tenant": "b"}, trusted=True, identity=identity).tenant == "b"


@pytest.mark.parametrize("head", [(b"x-api-key", b"ka"), (b"x-team", b"ant"), (b"x-fairserve-tenant", b"a")])
def test_a_tenants_new_cache_salt_is_its_keys_and_headers_at_once(head):
    def document(generation: int, salt: str) -> SchedulerConfig:
        identity = {
            "salt": SALT,
            "api_keys": [{"digest": key_digest(SALT, "ka"), "tenant": "a"}],
            "headers": [{"name": "x-team", "value": "ant", "tenant": "a"}],
        }
        tenants = [{"name": "a", "cache_salt": salt}, {"name": "b"}]
        return SchedulerConfig.model_validate(
            {"pool": "n/p", "generation": generation, "identity": identity, "tenants": tenants}
        )

    running = read_document(document(1, "old").to_bytes())
    changed = read_difference(diff(document(1, "old"), document(2, "new")).to_bytes(), running)
    for configuration, salt in ((running, "old"), (changed, "new")):
        memory = Memory(configuration.table, "10.0.0.9")
        claim = configuration.table.authenticate([head], dict([head]), memory, trusted=True)
        assert claim == Claim("a", cache_salt=salt)


def application(name: str, **more) -> dict:
    return {"name": name, "input_tokens": 1, "output_tokens": 1, **more}


def test_tenant_is_refused_an_application_that_is_not_among_its_own():
    tenants = {"tenants": [{"name": "a", "applications": ["agent"]}, {"name": "b", "applications": []}]}
    ours = {"x-api-key": "ka", "x-fairserve-application": "agent"}
    assert identify(ours, **tenants).application == "agent"
    refused = identify({"x-api-key": "ka", "x-fairserve-application": "chat"}, **tenants)
    assert (refused.status, refused.code, refused.param) == (
        403,
        "application_not_allowed",
        "x-fairserve-application",
    )
    assert refused.message == "Tenant 'a' may not use application 'chat'."
    assert code(identify({**ours, "x-fairserve-application": "nope"}, **tenants)) == "unknown_application"
    assert code(identify({"x-api-key": "kü"}, **tenants)) == "application_not_allowed"  # pinned to chat
    assert identify({"x-api-key": "ka"}, **tenants).application == "_default"


MATCHED = {
    "applications": [
        application("chat", match={"models": ["big"]}),
        application("agent", match={"headers": {"x-kind": "agent"}}),
    ]
}


def said(**fields: str) -> EngineRequest:
    return EngineRequest(b"", said={tuple(name.split("__")): value for name, value in fields.items()})


def test_call_that_names_no_application_has_the_one_that_matches():
    key = (b"x-api-key", b"ka")
    assert identify_pairs([key], said(model="big"), **MATCHED).application == "chat"
    assert identify_pairs([key], said(model="small"), **MATCHED).application == "_default"
    assert identify_pairs([key, (b"x-kind", b"agent")], said(model="big"), **MATCHED).application == "agent"
    named = [key, (b"x-fairserve-application", b"agent")]
    assert identify_pairs(named, said(model="big"), **MATCHED).application == "agent"
    pinned = [(b"x-api-key", "kü".encode()), (b"x-kind", b"agent")]
    assert identify_pairs(pinned, **MATCHED).application == "chat"


def test_call_that_is_matched_to_an_application_that_is_not_its_tenants_is_refused():
    tenants = [{"name": "a", "applications": ["agent"]}, {"name": "b"}]
    refused = identify_pairs([(b"x-api-key", b"ka")], said(model="big"), **MATCHED, tenants=tenants)
    assert (refused.status, refused.code, refused.param) == (403, "application_not_allowed", None)
    assert "'chat'" in refused.message
    assert "'a'" in refused.message


def test_two_values_of_a_header_that_decides_the_application_are_refused():
    pairs = [(b"x-api-key", b"ka"), (b"x-kind", b"agent"), (b"x-kind", b"other")]
    assert code(identify_pairs(pairs, **MATCHED)) == "ambiguous_identity"
    assert identify_pairs(pairs).application == "_default"


def test_bodies_are_read_only_for_what_the_configuration_asks():
    users = [{"name": "a", "user_sources": ["body:metadata.who", "header:x-u"]}, {"name": "b"}]

    def fields(name: str, **changes):
        pairs, identities = [(b"x-api-key", name.encode())], table(**changes)
        memory = Memory(identities, "10.0.0.9")
        return identities.wanted(identities.authenticate(pairs, dict(pairs), memory, trusted=False))

    assert fields("ka") == ()
    assert fields("ka", **MATCHED) == (("model",),)
    assert fields("ka", **MATCHED, tenants=users) == (("model",), ("metadata", "who"))
    assert fields("kü", tenants=users) == ()


def user_of(headers: dict[str, str], sources: list[str], *, trusted: bool = False, **body: str) -> object:
    tenants = [{"name": "a", "user_sources": sources}, {"name": "b"}]
    pairs = [(b"x-api-key", b"ka"), *((n.encode(), v.encode()) for n, v in headers.items())]
    asked = said(**body)
    asked.user = "usual"
    caller = identify_pairs(pairs, asked, trusted=trusted, tenants=tenants)
    return caller.code if isinstance(caller, Problem) else caller.user


def test_first_place_that_names_a_user_counts_and_no_other_does():
    order = ["body:metadata.who", "header:x-user", "body:user"]
    everywhere = {"metadata__who": "one", "user": "three"}
    assert user_of({"x-user": "two"}, order, **everywhere) == "one"
    assert user_of({"x-user": "two"}, order, user="three") == "two"
    assert user_of({"x-user": ""}, order, user="three") == "three"
    assert user_of({"x-fairserve-user": "usual"}, order) == ""
    assert user_of({"x-fairserve-user": "ours"}, [*order, "header:x-fairserve-user"]) == "ours"
    assert user_of({"x-user": "two"}, [], **everywhere) == ""


def test_two_values_of_a_header_that_names_the_user_are_refused():
    pairs = [(b"x-api-key", b"ka"), (b"x-user", b"one"), (b"x-user", b"two")]
    tenants = [{"name": "a", "user_sources": ["header:x-user"]}, {"name": "b"}]
    assert code(identify_pairs(pairs, tenants=tenants)) == "ambiguous_identity"
    assert identify_pairs([*pairs[:2], pairs[1]], tenants=tenants).user == "one"
    # Another tenant's calls may have what they like in it.
    assert identify_pairs([(b"x-api-key", "kü".encode()), *pairs[1:]], tenants=tenants).tenant == "b"
