"""Limits that never bind, against an oracle that plays the windows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fairserve_operator.api.v1alpha1 import ApplicationSpec, ServingPoolSpec, TenantSpec
from fairserve_operator.decide.limits import never_binding
from fairserve_operator.decide.specs import parse
from tests.unit.operator.builders import application, pool, tenant

WINDOWS_S = {"1s": 1, "2s": 2, "4s": 4}
#: How many may begin in a window.
Limit = tuple[int, str]
limits = st.tuples(st.integers(1, 4), st.sampled_from(list(WINDOWS_S)))


def spec(kind: str, limit: Limit | None) -> dict[str, Any]:
    return {"interactionLimits": {kind: {"count": limit[0], "window": limit[1]}}} if limit else {}


def begun(limit: Limit, seconds: int = 20) -> list[int]:
    """When somebody begins who begins as soon as it may: the most that a limit lets through, early."""
    times: list[int] = []
    for now in range(seconds):
        while sum(at > now - WINDOWS_S[limit[1]] for at in times) < limit[0]:
            times.append(now)
    return times


def exceeds(times: list[int], limit: Limit) -> bool:
    """Whether a limit would have refused any of these."""
    count, window_s = limit[0], WINDOWS_S[limit[1]]
    return any(sum(now - window_s < at <= now for at in times) > count for now in times)


def judged(
    tenants: list[Limit | None], default: Limit | None, admits: bool, own: Limit, kinds: tuple[str, str]
) -> bool:
    """Whether the Application is told; with it exactly one other is."""
    its, theirs = kinds
    made = [parse(tenant(f"t{i}", **spec(theirs, each)), TenantSpec) for i, each in enumerate(tenants)]
    mode: dict[str, Any] = {"mode": "Admit", **spec(theirs, default)} if admits else {"mode": "Reject"}
    app = application("chat", **spec(its, own))
    known = parse(pool(defaultTenant=mode), ServingPoolSpec), parse(app, ApplicationSpec)
    told = never_binding(made, [known[0]], [known[1]])
    assert len(told) in (0, 2)
    assert not told or app.key in told
    return bool(told)


@given(
    st.lists(limits, max_size=3),
    st.none() | limits,
    st.booleans(),
    limits,
    st.sampled_from([("perUser", "perUser"), ("perUser", "total"), ("perTenant", "total")]),
)
def test_what_is_said_to_never_bind_is_exceeded_by_nobody(
    tenants: list[Limit], default: Limit | None, admits: bool, own: Limit, kinds: tuple[str, str]
) -> None:
    callers = [*tenants, *([default] if admits else [])]
    if judged(list(tenants), default, admits, own, kinds):
        assert all(each is not None and not exceeds(begun(each), own) for each in callers)


@given(st.lists(limits, min_size=1, max_size=3), limits)
def test_one_that_each_tenant_undercuts_in_count_and_window_is_told(tenants: list[Limit], own: Limit) -> None:
    stricter = all(each[0] < own[0] and WINDOWS_S[each[1]] >= WINDOWS_S[own[1]] for each in tenants)
    if stricter:
        assert judged(list(tenants), None, False, own, ("perUser", "perUser"))


@given(st.lists(limits, max_size=3), limits)
def test_a_caller_without_a_limit_makes_every_limit_bind(tenants: list[Limit], own: Limit) -> None:
    assert not judged([*tenants, None], None, False, own, ("perUser", "perUser"))
    assert not judged(list(tenants), None, True, own, ("perUser", "perUser"))
