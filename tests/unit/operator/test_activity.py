"""What statuses say of the sidecars' work: sums that make sense, and no news where nothing has happened."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairserve.config import IdentityConfig, SchedulerConfig, TenantConfig
from fairserve_operator.api.v1alpha1 import ApplicationStatus, ServingPoolStatus, TenantStatus
from fairserve_operator.decide.activity import (
    Profile,
    Report,
    application_activity,
    combined,
    configured_shares,
    pool_activity,
    read_report,
    tenant_activity,
)


def state(**service: float) -> dict[str, Any]:
    """As a sidecar tells it."""
    return {
        "window": {"size": 12},
        "tenants": [{"name": name, "users": 2} for name in service],
        "applications": [
            {
                "name": "chat",
                "input_tokens": 100,
                "system_tokens": 10,
                "output_tokens": 50,
                "learned_from": 30,
            },
            {
                "name": "agent",
                "input_tokens": 7,
                "system_tokens": 0,
                "output_tokens": 3,
                "learned_from": None,
            },
        ],
        "recent": {"service_5m": service, "refused_interactions_1h": {"a": 3.0}},
    }


def test_sidecars_are_summed_and_learned_profiles_averaged_by_samples() -> None:
    report = combined([read_report(state(a=1.0, b=3.0)), read_report(state(a=4.0))])
    assert report.service == {"a": 5.0, "b": 3.0}
    assert report.refused == {"a": 6}
    assert report.users == {"a": 4, "b": 2}
    assert report.window == 24
    assert report.profiles == {"chat": Profile(100, 10, 50, 60)}
    uneven = [Report(profiles={"chat": Profile(n, 0, n, n)}) for n in (10, 30)]
    assert combined(uneven).profiles["chat"] == Profile(25, 0, 25, 40)


def test_tenant_shows_its_share_beside_what_it_is_configured_to() -> None:
    report = combined([read_report(state(a=30.0, b=70.0))])
    told = tenant_activity("a", 0.25, report, {})
    assert told == {
        "share": {"configuredPercent": 25, "achievedPercent": 30},
        "refusedInteractionsLastHour": 3,
        "activeUsers": 2,
    }
    TenantStatus.model_validate(told)
    assert tenant_activity("c", 0.25, report, {})["share"] == {"configuredPercent": 25, "achievedPercent": 0}
    assert tenant_activity("a", None, Report(), {}) == {"refusedInteractionsLastHour": 0, "activeUsers": 0}


@pytest.mark.parametrize(
    ("shown", "percent", "told"),
    [
        (30, 31, 30),
        (30, 29, 30),
        (30, 32, 32),
        (30, 28, 28),
        (1, 0, 0),
        (0, 1, 1),
        (None, 31, 31),
        ("x", 5, 5),
    ],
)
def test_share_that_has_hardly_moved_stays_as_it_was_shown(shown: Any, percent: int, told: int) -> None:
    report = Report(service={"a": float(percent), "b": 100.0 - percent})
    status = tenant_activity("a", 0.5, report, {"share": {"achievedPercent": shown}})
    assert status["share"]["achievedPercent"] == told


@pytest.mark.parametrize(("count", "told"), [(0, 0), (7, 7), (99, 99), (123, 120), (1299, 1200)])
def test_counts_have_two_digits(count: int, told: int) -> None:
    status = tenant_activity("a", None, Report(refused={"a": count}), {})
    assert status["refusedInteractionsLastHour"] == told


def test_application_shows_what_was_learned_and_nothing_where_nothing_is() -> None:
    report = read_report(state())
    told = application_activity("chat", report, {})
    assert told == {"learned": {"inputTokens": 100, "systemTokens": 10, "outputTokens": 50, "samples": 30}}
    ApplicationStatus.model_validate(told)
    assert application_activity("agent", report, {}) == {}
    shown = {"learned": {"inputTokens": 95, "systemTokens": 10, "outputTokens": 40, "samples": 29}}
    again = application_activity("chat", report, shown)["learned"]
    assert (again["inputTokens"], again["outputTokens"]) == (95, 50)


def test_pool_shows_its_window_anew_when_it_has_moved_by_a_tenth() -> None:
    ServingPoolStatus.model_validate(pool_activity(Report(window=100), {}))
    assert pool_activity(Report(window=100), {"window": 95}) == {"window": 95}
    assert pool_activity(Report(window=100), {"window": 80}) == {"window": 100}


def test_shares_are_parts_of_all_weights() -> None:
    config = SchedulerConfig(
        pool="ns/llm",
        generation=1,
        identity=IdentityConfig(salt="ab" * 16),
        default_tenant=TenantConfig(name="default", weight=4),
        tenants=(TenantConfig(name="a", weight=3), TenantConfig(name="b", weight=1)),
    )
    assert configured_shares(config) == {"a": 3 / 8, "b": 1 / 8}


json_values = st.sampled_from(
    [
        None,
        True,
        0,
        7,
        -1,
        10**30,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "7",
        [],
        [1],
        {},
        {"a": "b"},
    ]
)
names = st.sampled_from(["a", "b", "chat"])
lies = st.fixed_dictionaries(
    {},
    optional={
        "window": st.fixed_dictionaries({"size": json_values}) | json_values,
        "recent": st.fixed_dictionaries(
            {"service_5m": st.dictionaries(names, json_values), "refused_interactions_1h": json_values}
        )
        | json_values,
        "tenants": st.lists(st.fixed_dictionaries({"name": names, "users": json_values})) | json_values,
        "applications": st.lists(
            st.fixed_dictionaries(
                {
                    "name": names,
                    "input_tokens": json_values,
                    "system_tokens": st.just(0),
                    "output_tokens": st.just(1),
                    "learned_from": json_values,
                }
            )
        )
        | json_values,
    },
)


@given(st.lists(lies, max_size=3))
def test_whatever_sidecars_say_statuses_stay_well_formed(states: list[dict[str, Any]]) -> None:
    report = combined(read_report(each) for each in states)
    TenantStatus.model_validate(tenant_activity("a", 0.5, report, {}))
    ApplicationStatus.model_validate(application_activity("chat", report, {}))
    ServingPoolStatus.model_validate(pool_activity(report, {}))
