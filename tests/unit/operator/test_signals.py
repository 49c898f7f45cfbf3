"""From the pool's overload section to PromQL and thresholds."""

from __future__ import annotations

import pytest

from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.signals import OverloadPlan, builtin_query, overload_plan


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


@pytest.mark.parametrize(
    ("builtin", "fold", "series"),
    [
        ("QueueWait", "max", "fairserve_queue_oldest_wait_seconds"),
        ("Saturation", "avg", "fairserve_saturation"),
        ("KVCacheUse", "avg", '{__name__=~"vllm[:_]kv_cache_usage_perc"}'),
        ("EngineWaiting", "sum", '{__name__=~"vllm[:_]num_requests_waiting"}'),
    ],
)
def test_builtin_query(builtin: str, fold: str, series: str) -> None:
    join = 'on (instance, job) group_left () fairserve_pool_info{pool_namespace="ns", pool="llm"}'
    assert builtin_query(builtin, "ns", "llm") == f"{fold}({series} * {join})"  # type: ignore[arg-type]


def test_names_are_quoted() -> None:
    assert 'pool="a\\"b\\\\"' in builtin_query("QueueWait", "ns", 'a"b\\')
