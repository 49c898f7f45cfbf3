"""Overload signals: from the pool's spec to PromQL and thresholds.

Built-in signals are templates over what a sidecar serves on /metrics: vLLM's own text beside ours.
`fairserve_pool_info` says which pool a scrape target belongs to; the join on (instance, job) needs no
label that somebody must configure in Prometheus first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings
from fairserve_operator.api.v1alpha1 import Builtin, OverloadSignal, ServingPoolSpec, duration_s

#: Where `clearThreshold` is unset.
CLEAR_RATIO = 0.8

#: How each built-in signal folds its pods into one number, and what it reads. vLLM's names are matched with
#: the colon they have and with the underscore that some collectors turn it into.
_TEMPLATES: Mapping[Builtin, tuple[str, str]] = {
    "QueueWait": ("max", "fairserve_queue_oldest_wait_seconds"),
    "Saturation": ("avg", "fairserve_saturation"),
    "KVCacheUse": ("avg", '{__name__=~"vllm[:_]kv_cache_usage_perc"}'),
    "EngineWaiting": ("sum", '{__name__=~"vllm[:_]num_requests_waiting"}'),
}


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """How one pool's overload is found out."""

    settings: OverloadSettings
    queries: Mapping[str, str]  #: PromQL by signal name; each yields one number
    builtins: Mapping[str, Builtin]  #: the signals that need no Prometheus to be understood, by name
    interval_s: float
    prometheus_url: str | None  #: None: nobody evaluates but `fairserve up` and the pods themselves


def overload_plan(namespace: str, pool: str, spec: ServingPoolSpec) -> OverloadPlan:
    """The plan of a well-formed pool."""
    overload = spec.overload
    return OverloadPlan(
        settings=OverloadSettings(
            signals=tuple(_settings(signal) for signal in overload.signals),
            stale_after_s=duration_s(overload.stale_after),
            on_stale=OnStale(overload.on_stale),
            hold_down_s=duration_s(overload.hold_down),
        ),
        queries={signal.name: _query(signal, namespace, pool) for signal in overload.signals},
        builtins={signal.name: signal.builtin for signal in overload.signals if signal.builtin},
        interval_s=duration_s(overload.evaluation_interval),
        prometheus_url=overload.prometheus.url if overload.prometheus else None,
    )


def builtin_query(builtin: Builtin, namespace: str, pool: str) -> str:
    """PromQL of a built-in signal for one pool: one number, or nothing where no pod is scraped."""
    fold, series = _TEMPLATES[builtin]
    info = f"fairserve_pool_info{{pool_namespace={_quoted(namespace)}, pool={_quoted(pool)}}}"
    return f"{fold}({series} * on (instance, job) group_left () {info})"


def _query(signal: OverloadSignal, namespace: str, pool: str) -> str:
    return builtin_query(signal.builtin, namespace, pool) if signal.builtin else signal.query or ""


def _settings(signal: OverloadSignal) -> SignalSettings:
    clear = signal.threshold * CLEAR_RATIO if signal.clear_threshold is None else signal.clear_threshold
    return SignalSettings(signal.name, signal.threshold, clear, duration_s(signal.for_))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
