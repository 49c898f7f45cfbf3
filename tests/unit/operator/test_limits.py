"""Limits that never bind: who is told, in which words, and at what price."""

from __future__ import annotations

from typing import Any

import pytest

from fairserve_operator.api.v1alpha1 import ApplicationSpec, TenantSpec
from fairserve_operator.decide.compilation import Compiled
from fairserve_operator.decide.conditions import ACCEPTED
from fairserve_operator.decide.limits import never_binding
from fairserve_operator.decide.resources import Resource
from fairserve_operator.decide.specs import parse
from fairserve_operator.decide.status import Delivery, PodAck, application_status
from tests.unit.operator.builders import application, compiled, condition, pool, tenant

MINUTE = "1m"


def limit(count: int, window: str = MINUTE) -> dict[str, Any]:
    return {"count": count, "window": window}


def team(name: str, **limits: Any) -> Resource:
    return tenant(name, interactionLimits=limits)


def chat(name: str = "chat", **limits: Any) -> Resource:
    return application(name, interactionLimits=limits)


def told(result: Compiled, resource: Resource) -> str:
    """What it is told, empty if nothing."""
    accepted = condition(result, resource, ACCEPTED)
    assert accepted.status == "True"
    return accepted.message if accepted.reason == "LimitNeverBinds" else ""


def test_both_are_told_and_nothing_is_refused() -> None:
    strict, loosest = team("strict", perUser=limit(2)), team("loosest", perUser=limit(10, "60s"))
    app = chat(perUser=limit(100))
    result = compiled([strict, loosest], [app])
    assert told(result, app) == (
        "spec.interactionLimits.perUser: 100 in 1m never binds: no tenant may begin so much; of all, "
        'spec.interactionLimits.perUser of Tenant "loosest" is the loosest, 10 in 60s'
    )
    assert told(result, loosest) == (
        "spec.interactionLimits.perUser: 10 in 60s is the loosest of all tenants, so that "
        'spec.interactionLimits.perUser of Application "chat", 100 in 1m, never binds'
    )
    assert told(result, strict) == ""
    assert result.config is not None
    assert result.config.applications[0].per_user is not None
    status = application_status(
        app,
        result.conditions[app.key],
        [(Delivery("llm", [PodAck("p", 1)]), 1)],
        None,
        "2026-01-01T00:00:00Z",
    )
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"


@pytest.mark.parametrize(
    ("tenants", "app", "never"),
    [
        ([{"perUser": limit(10)}], {"perUser": limit(10)}, False),  # The same: neither hides the other.
        ([{"perUser": limit(10, "2m")}], {"perUser": limit(10)}, True),
        ([{"perUser": limit(9, "30s")}], {"perUser": limit(10)}, False),  # 18 a minute.
        ([{"perUser": limit(11)}], {"perUser": limit(10)}, False),
        ([{"perUser": limit(1)}, {}], {"perUser": limit(10)}, False),  # Who has no limit may begin 10.
        ([{"perUser": limit(1)}, {"perUser": limit(20)}], {"perUser": limit(10)}, False),
        ([{"perUser": limit(5, "2m")}, {"perUser": limit(1, "30s")}], {"perUser": limit(10)}, False),
        ([{"total": limit(5)}], {"perUser": limit(10)}, True),
        ([{"total": limit(5)}], {"perTenant": limit(10)}, True),
        ([{"perUser": limit(5)}], {"perTenant": limit(10)}, False),  # It has many users.
        ([{"total": limit(5)}], {"total": limit(10)}, False),  # There may be more tenants.
        ([{"perUser": limit(100)}], {"perUser": limit(10)}, False),  # It may call what is no Application.
        ([], {"perUser": limit(10)}, False),
    ],
)
def test_a_limit_never_binds_where_everybody_meets_a_stricter_one_first(
    tenants: list[dict[str, Any]], app: dict[str, Any], never: bool
) -> None:
    made = [team(f"t{i}", **limits) for i, limits in enumerate(tenants)]
    application = chat(**app)
    result = compiled(made, [application])
    assert bool(told(result, application)) == never
    assert any(told(result, each) for each in made) == never


@pytest.mark.parametrize(
    ("default", "words"),
    [
        ({"mode": "Reject"}, 'spec.interactionLimits.perUser of Tenant "a" is the loosest, 3 in 1m'),
        ({"mode": "Admit"}, ""),
        (
            {"mode": "Admit", "interactionLimits": {"perUser": limit(5)}},
            'spec.defaultTenant.interactionLimits.perUser of ServingPool "llm" is the loosest, 5 in 1m',
        ),
    ],
)
def test_callers_that_nobody_claims_are_a_tenant_too(default: dict[str, Any], words: str) -> None:
    a, app, this = team("a", perUser=limit(3)), chat(perUser=limit(10)), pool(defaultTenant=default)
    result = compiled([a], [app], this=this)
    assert words in told(result, app)
    assert bool(words) == bool(told(result, app))
    assert bool(told(result, this)) == ("ServingPool" in words)


def test_ill_formed_objects_count_for_nothing() -> None:
    app = chat(perUser=limit(10))
    result = compiled([team("a", perUser=limit(3)), tenant("broken", weight=0)], [app])
    assert told(result, app)


def test_each_tenant_is_looked_at_once_and_not_for_each_application() -> None:
    looks = 0

    class Counted:
        def __init__(self, resource: Resource) -> None:
            self.resource = resource

        @property
        def spec(self) -> Any:
            nonlocal looks
            looks += 1
            return parsed.spec

    a = team("a", perUser=limit(3), total=limit(50))
    parsed = parse(a, TenantSpec)
    counted: list[Any] = [Counted(a)] * 50
    apps = [parse(chat(f"c{i}", perUser=limit(10), perTenant=limit(90)), ApplicationSpec) for i in range(40)]
    assert len(never_binding(counted, [], apps)) == 41
    assert looks <= 2 * len(counted), "twice: whether it is well formed, and what it says"


def test_what_is_broken_is_told_on_both_objects() -> None:
    """A reference to what is there but refused: the one says what is wrong, the other whom it lacks."""
    key = {"apiKey": {"secretRef": {"name": "s", "key": "api-key"}, "application": "broken"}}
    a, broken = tenant("a", identity=[key]), application("broken", weight=0)
    result = compiled([a], [broken], {"s": "key"})
    assert condition(result, broken, ACCEPTED).status == "False"
    lacks = condition(result, a, "ResolvedRefs")
    assert (lacks.status, lacks.reason) == ("False", "ApplicationNotAccepted")
    assert 'Application "broken" is not accepted' in lacks.message
