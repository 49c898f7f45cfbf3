"""Overload signals: from the pool's spec to PromQL and thresholds.

Built-in signals are templates over what a sidecar serves on /metrics: vLLM's own text beside ours.
`fairserve_pool_info` says which pool a scrape target belongs to; the join on (instance, job) needs no
label that somebody must configure in Prometheus first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairserve.overload.settings import OverloadSettings
from fairserve_operator.api.v1alpha1 import Builtin, ServingPoolSpec


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """How one pool's overload is found out."""

    settings: OverloadSettings
    queries: Mapping[str, str]  #: PromQL by signal name; each yields one number
    builtins: Mapping[str, Builtin]  #: the signals that need no Prometheus to be understood
    interval_s: float
    prometheus_url: str | None  #: None: nobody evaluates but `fairserve up` and the pods themselves


def overload_plan(namespace: str, pool: str, spec: ServingPoolSpec) -> OverloadPlan:
    """The plan of a well-formed pool."""
    raise NotImplementedError
