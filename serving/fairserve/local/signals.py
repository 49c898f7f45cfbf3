"""Built-in overload signals, read from the text of one sidecar's /metrics instead of from Prometheus.

With one pod the operator's PromQL templates come down to one maximum, mean or sum of a family's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from statistics import fmean

from prometheus_client.parser import text_string_to_metric_families

from fairserve.overload.settings import Sample
from fairserve_operator.api.v1alpha1 import Builtin


@dataclass(frozen=True, slots=True)
class _Source:
    metric: str
    aggregate: Callable[[Sequence[float]], float]


_SOURCES: Mapping[Builtin, _Source] = {
    "QueueWait": _Source("fairserve_queue_oldest_wait_seconds", max),
    "Saturation": _Source("fairserve_saturation", fmean),
    "KVCacheUse": _Source("vllm:kv_cache_usage_perc", fmean),
    "EngineWaiting": _Source("fairserve_engine_requests_waiting", fsum),
}


def read_builtin(signal: str, builtin: Builtin, metrics: str) -> Sample:
    """The signal's value. A family that is missing or not a number gives none, which is staleness."""
    source = _SOURCES[builtin]
    values = _values(source.metric, metrics)
    if not values:
        return Sample(signal, None, f"{source.metric} is not in the sidecar's /metrics")
    if not all(isfinite(value) for value in values):
        return Sample(signal, None, f"{source.metric} is not a number")
    return Sample(signal, source.aggregate(values))


def _values(metric: str, metrics: str) -> list[float]:
    # Only the family's own lines are parsed: vLLM's text runs to thousands of lines.
    lines = [line for line in metrics.splitlines() if line.startswith((metric + "{", metric + " "))]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [sample.value for family in families for sample in family.samples]
