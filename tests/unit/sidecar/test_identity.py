"""Who calls, by key and by header."""

from __future__ import annotations

import pytest

from fairserve.config import SchedulerConfig, key_digest
from fairserve.core.settings import DEFAULT_TENANT
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.identity import INTERACTION_HEADERS, Caller, IdentityTable
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
        },
        "tenants": [{"name": "a"}, {"name": "b"}],
        "applications": [
            {"name": "chat", "input_tokens": 1, "output_tokens": 1},
            {"name": "agent", "input_tokens": 1, "output_tokens": 1},
        ],
    }
    return IdentityTable(SchedulerConfig.model_validate({**fields, **changes}))


def identify(headers: dict[str, str], body_user: str = "", *, trusted: bool = False, **changes):
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return table(**changes).identify(pairs, EngineRequest(b"", user=body_user), trusted=trusted)


def code(result) -> str:
    assert isinstance(result, Problem)
    return result.code


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer ka"}, {"authorization": "bearer  ka "}, {"x-api-key": "ka"}]
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
    ],
)
def test_unknown_caller_is_refused_or_the_default_tenant(headers):
    problem = identify(headers)
    assert code(problem) == "invalid_api_key"
    assert problem.status == 401
    caller = identify(headers, default_tenant={"name": "_default"})
    assert caller == Caller(DEFAULT_TENANT, "", "_default", None)


def test_header_names_a_tenant_only_from_a_trusted_hop():
    for headers in ({"x-team": "bee"}, {"x-fairserve-tenant": "b"}):
        assert code(identify(headers)) == "invalid_api_key"
        assert identify(headers, trusted=True).tenant == "b"
        assert identify({**headers, "x-api-key": "ka"}).tenant == "a"
        assert identify({**headers, "x-api-key": "ka"}, trusted=True).tenant == "b"


def test_header_with_an_unknown_value_names_nobody():
    assert code(identify({"x-team": "cee"}, trusted=True)) == "invalid_api_key"
    assert identify({"x-team": "cee", "x-api-key": "ka"}, trusted=True).tenant == "a"


def test_two_values_of_an_identity_header_are_refused():
    pairs = [(b"x-team", b"bee"), (b"x-team", b"cee")]
    assert code(table().identify(pairs, EngineRequest(b""), trusted=True)) == "ambiguous_identity"


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


def test_first_interaction_header_wins():
    headers = {name.decode(): name.decode() for name in reversed(INTERACTION_HEADERS)}
    for name in INTERACTION_HEADERS:
        assert identify({"x-api-key": "ka", **headers}).interaction == name.decode()
        del headers[name.decode()]
    assert identify({"x-api-key": "ka", **headers}).interaction is None


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_interaction_is_named_by_header_then_by_body_then_by_trace():
    pairs = [(b"x-api-key", b"ka"), (b"traceparent", TRACE.encode())]
    said = EngineRequest(b"", previous_response="r", conversation="c")
    caller = table().identify([*pairs, (b"x-session-id", b"s")], said, trusted=False)
    assert (caller.interaction, caller.previous_response) == ("s", None)
    caller = table().identify(pairs, said, trusted=False)
    assert (caller.interaction, caller.previous_response) == ("r", "r")
    caller = table().identify(pairs, EngineRequest(b"", conversation="c"), trusted=False)
    assert (caller.interaction, caller.previous_response) == ("c", None)
    caller = table().identify(pairs, EngineRequest(b""), trusted=False)
    assert caller.interaction == "0af7651916cd43dd8448eb211c80319c"


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
