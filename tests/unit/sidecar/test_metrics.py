"""Counts and their exposition."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairserve.core.calls import Outcome, RefusalReason, ThrottlingMode, Usage
from fairserve.core.state import TenantView
from fairserve.sidecar.metrics import MAX_TENANTS, OTHER, Gauges, Histogram, Metrics


def samples(metrics: Metrics) -> dict:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_call_is_counted_with_disjoint_kinds_of_tokens():
    metrics = Metrics()
    metrics.calls("a", "chat").ended(Outcome.COMPLETED, Usage(10, 3, 4))
    found = samples(metrics)
    labels = (("application", "chat"), ("tenant", "a"))
    assert found["fairserve_requests_total", (labels[0], ("outcome", "completed"), labels[1])] == 1
    kinds = {
        k: found["fairserve_tokens_total", (labels[0], ("kind", k), labels[1])]
        for k in ("input", "cached", "output")
    }
    assert kinds == {"input": 6, "cached": 4, "output": 3}


def test_refusals_are_counted_by_reason_and_mode():
    metrics = Metrics()
    metrics.calls("a", "chat").refused(RefusalReason.USER_LIMIT, ThrottlingMode.SHADOW)
    labels = (
        ("application", "chat"),
        ("mode", "Shadow"),
        ("reason", "user_interaction_limit"),
        ("tenant", "a"),
    )
    assert samples(metrics)["fairserve_refused_interactions_total", labels] == 1


def test_tenants_beyond_the_limit_are_folded_and_lose_no_count():
    metrics = Metrics()
    for number in range(MAX_TENANTS + 50):
        for _ in range(2):
            metrics.calls(f"t{number}", "chat").ended(Outcome.COMPLETED)
        metrics.serve(f"t{number}", 1.0)
    found = samples(metrics)
    requests = {labels: v for (name, labels), v in found.items() if name == "fairserve_requests_total"}
    assert len(requests) == MAX_TENANTS + 1
    assert sum(requests.values()) == 2 * (MAX_TENANTS + 50)
    assert found["fairserve_service_total", (("tenant", OTHER),)] == 50


def test_histogram_is_cumulative():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    found = {(s.name, s.labels.get("le")): s.value for s in histogram.family("h", "d").samples}
    assert found["h_bucket", "1.0"] == 2
    assert found["h_bucket", "2.0"] == 3
    assert found["h_bucket", "+Inf"] == found["h_count", None] == 4
    assert found["h_sum", None] == pytest.approx(12.0)


def test_what_is_not_known_is_not_exported():
    metrics = Metrics()
    gauges = Gauges(
        pool=None,
        generation=None,
        armed=True,
        queued=1,
        oldest_wait_s=2.0,
        running=3,
        window=4,
        saturation=0.5,
        engine_up=False,
        signal_age_s=None,
    )
    metrics.gauges = lambda: gauges
    names = {name for name, _ in samples(metrics)}
    assert "fairserve_oit_armed" in names
    assert not names & {"fairserve_pool_info", "fairserve_config_generation", "fairserve_signal_age_seconds"}


def view(name: str, **changes) -> TenantView:
    fields = {
        "weight": 2.0,
        "queued": 1,
        "running": 2,
        "oldest_wait_s": 3.0,
        "interactions": 4,
    }
    return TenantView(name, **{**fields, **changes})


def of_tenant(found: dict, metric: str) -> dict[str, float]:
    return {labels[0][1]: value for (name, labels), value in found.items() if name == metric}


def test_what_a_tenant_has_now_is_told_by_tenant():
    metrics = Metrics()
    metrics.tenants = lambda: [view("a"), view("b", queued=0, oldest_wait_s=0.0)]
    metrics.experience.seen("a", "u")
    metrics.experience.lost("a", "v")
    metrics.waited("a", 1.5)
    metrics.waited("a", 2.5)
    found = samples(metrics)
    assert of_tenant(found, "fairserve_tenant_weight") == {"a": 2, "b": 2}
    assert of_tenant(found, "fairserve_tenant_queue_requests") == {"a": 1, "b": 0}
    assert of_tenant(found, "fairserve_tenant_inflight_requests") == {"a": 2, "b": 2}
    assert of_tenant(found, "fairserve_tenant_queue_oldest_wait_seconds") == {"a": 3}
    assert of_tenant(found, "fairserve_tenant_open_interactions") == {"a": 4, "b": 4}
    assert of_tenant(found, "fairserve_tenant_users") == {"a": 2}
    assert of_tenant(found, "fairserve_tenant_users_fully_served") == {"a": 1}
    assert of_tenant(found, "fairserve_tenant_queue_wait_seconds_total") == {"a": 4}


def test_tenants_beyond_the_limit_have_together_what_each_has_and_no_weight():
    metrics = Metrics()
    names = [f"t{number}" for number in range(MAX_TENANTS + 2)]
    metrics.tenants = lambda: [view(name, oldest_wait_s=float(n)) for n, name in enumerate(names)]
    for name in names:
        metrics.experience.seen(name, "u")
        metrics.waited(name, 1.0)
    found = samples(metrics)
    assert of_tenant(found, "fairserve_tenant_weight").keys() == set(names[:MAX_TENANTS])
    assert of_tenant(found, "fairserve_tenant_queue_requests")[OTHER] == 2
    assert of_tenant(found, "fairserve_tenant_queue_oldest_wait_seconds")[OTHER] == MAX_TENANTS + 1
    assert of_tenant(found, "fairserve_tenant_users")[OTHER] == 2
    assert of_tenant(found, "fairserve_tenant_queue_wait_seconds_total")[OTHER] == 2


def test_names_of_tenants_may_be_odd():
    metrics, odd = Metrics(), 'a\\n"b"\n{c}\\'
    metrics.calls(odd, odd).ended(Outcome.COMPLETED, Usage(10, 3, 4))
    metrics.calls(odd, odd).refused(RefusalReason.USER_LIMIT, ThrottlingMode.ENFORCE)
    metrics.serve(odd, 0.25)
    metrics.tenants = lambda: [view(odd)]
    found = samples(metrics)
    for name in ("requests_total", "tokens_total", "refused_interactions_total"):
        labels = next(dict(labels) for known, labels in found if known == f"fairserve_{name}")
        assert (labels["tenant"], labels["application"]) == (odd, odd)
    assert of_tenant(found, "fairserve_service_total") == {odd: 0.25}
    assert of_tenant(found, "fairserve_tenant_weight") == {odd: 2}


def test_tenants_leave_the_library_nothing_to_write():
    """It takes ten times as long as we do, and calls wait for it."""
    metrics = Metrics()
    few = sum(len(family.samples) for family in metrics.collect())
    for number in range(100):
        metrics.calls(f"t{number}", "chat").ended(Outcome.COMPLETED, Usage(10, 3, 4))
        metrics.serve(f"t{number}", 1.0)
        metrics.waited(f"t{number}", 1.0)
    metrics.tenants = lambda: [view(f"t{number}") for number in range(100)]
    assert sum(len(family.samples) for family in metrics.collect()) == few
    assert len(samples(metrics)) > 100 * 10
