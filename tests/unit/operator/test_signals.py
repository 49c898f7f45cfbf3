"""From the pool's overload section to PromQL and thresholds."""

from __future__ import annotations

from typing import get_args

from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings
from fairserve_operator.api.v1alpha1 import Builtin, ServingPoolSpec
from fairserve_operator.decide.resources import SecretRef
from fairserve_operator.decide.signals import (
    OverloadPlan,
    PrometheusAccess,
    builtin_query,
    joint_queries,
    overload_plan,
)


def plan(**overload: object) -> OverloadPlan:
    spec = ServingPoolSpec.model_validate({"selector": {"matchLabels": {"a": "b"}}, "overload": overload})
    return overload_plan("ns", "llm", spec)


def test_plan() -> None:
    found = plan(
        prometheus={"url": "http://prometheus:9090"},
        signals=[
            {"name": "wait", "builtin": "QueueWait", "threshold": 3, "clearThreshold": 1, "for": "5s"},
            {"name": "mine", "query": "sum(up)", "threshold": 10},
        ],
        evaluationInterval="2s",
        staleAfter="1m",
        onStale="Disarm",
        holdDown="0s",
    )
    assert found.settings == OverloadSettings(
        signals=(SignalSettings("wait", 3.0, 1.0, 5.0), SignalSettings("mine", 10.0, 8.0, 0.0)),
        stale_after_s=60.0,
        on_stale=OnStale.DISARM,
        hold_down_s=0.0,
    )
    assert found.queries["mine"] == "sum(up)"
    assert found.queries["wait"] == builtin_query("QueueWait", "ns", "llm")
    assert found.builtins == {"wait": "QueueWait"}
    assert (found.interval_s, found.prometheus_url) == (2.0, "http://prometheus:9090")


def test_without_prometheus_there_is_a_plan_all_the_same() -> None:
    found = plan()
    assert found.prometheus_url is None
    assert set(found.builtins.values()) == {"QueueWait", "Saturation", "KVCacheUse"}


def test_times_and_rates_need_a_prometheus() -> None:
    found = plan(signals=[{"name": "t", "builtin": "TimeToFirstToken", "threshold": 1}])
    assert found.builtins == {}
    assert "time_to_first_token" in found.queries["t"]


def test_evaluation_ends_in_time_to_renew_the_lease() -> None:
    for stale_after, interval, timeout_s in (("30s", "5s", 5.0), ("6s", "3s", 2.0)):
        found = plan(staleAfter=stale_after, evaluationInterval=interval)
        assert found.timeout_s == timeout_s
        assert found.interval_s + found.timeout_s < found.settings.stale_after_s


def test_credentials_are_entries_of_secrets_in_the_pools_namespace() -> None:
    url = "https://p"
    ref = {"name": "s", "key": "k"}
    bearer = plan(prometheus={"url": url, "auth": {"bearerToken": {"secretRef": ref}}, "tls": {"ca": ref}})
    entry = SecretRef("ns", "s", "k")
    assert bearer.access == PrometheusAccess(bearer_token=entry, ca=entry)
    basic = plan(
        prometheus={
            "url": url,
            "auth": {"basic": {"username": ref, "password": {"name": "s", "key": "p"}}},
            "tls": {"insecureSkipVerify": True},
        }
    )
    assert basic.access == PrometheusAccess(username=entry, password=SecretRef("ns", "s", "p"), verify=False)
    assert plan(prometheus={"url": url}).access == PrometheusAccess()


def test_built_in_signals_are_asked_for_together_and_the_users_own_alone() -> None:
    signals = [{"name": b.lower(), "builtin": b, "threshold": 1} for b in get_args(Builtin)]
    found = plan(signals=[*signals, {"name": "mine", "query": "1", "threshold": 1}])
    ((promql, names),) = found.joint.items()
    assert names == tuple(b.lower() for b in get_args(Builtin))
    for name in names:
        assert f'label_replace({found.queries[name]}, "fairserve_signal", "{name}", "", "")' in promql
    assert plan(signals=signals[:1]).joint == {}


def test_joint_queries_stay_short_enough_for_a_url() -> None:
    queries = {str(n): "x" * 1400 for n in range(5)}
    assert [*joint_queries(queries).values()] == [("0", "1"), ("2", "3")]


def test_names_are_quoted() -> None:
    assert 'pool="a\\"b\\\\"' in builtin_query("QueueWait", "ns", 'a"b\\')
