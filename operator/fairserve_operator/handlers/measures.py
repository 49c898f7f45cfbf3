"""The operator's own figures, for `/metrics`.

Labels are bounded: kinds of calls, how they ended, and pools; Tenants and Pods are never labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class PoolView:
    """What one pool's gauges say."""

    namespace: str
    pool: str
    pods: int
    behind: int  #: Pods that don't run the newest configuration
    signal_age_s: (
        float | None
    )  #: since any overload signal had a value, or evaluation began; None: none is evaluated


@dataclass(frozen=True, slots=True)
class View:
    """What the gauges say at one moment."""

    acting: bool
    complete: bool  #: whether the store has seen everybody who exists
    pools: tuple[PoolView, ...] = ()


class Measures:
    """Histograms that the handlers feed, and gauges that are read when somebody asks."""

    def __init__(self, view: Callable[[], View] = lambda: View(acting=False, complete=False)) -> None:
        self.view = view
        self._registry = CollectorRegistry()
        self._reconcile = self._histogram(
            "fairserve_operator_reconcile_seconds", "Time to bring one namespace up to date.", "outcome"
        )
        self._compile = self._histogram(
            "fairserve_operator_compile_seconds", "Time to compile one ServingPool."
        )
        self._calls = self._histogram(
            "fairserve_operator_sidecar_call_seconds", "Calls to control ports.", "call", "outcome"
        )
        self._api = self._histogram(
            "fairserve_operator_api_call_seconds", "Calls to the API server.", "call", "outcome"
        )
        self._admissions = Counter(
            "fairserve_operator_admission", "Calls of the webhook.", ["outcome"], registry=self._registry
        )
        self._admission = self._histogram("fairserve_operator_admission_seconds", "Time to answer one.")
        #: When the webhook's certificate ends, in seconds since the epoch; None: there is none.
        self.certificate_expires_at: Callable[[], float | None] = lambda: None
        self._registry.register(_Gauges(self))
        ProcessCollector(registry=self._registry)

    def reconciled(self, seconds: float, done: bool) -> None:
        """One namespace was brought up to date, or must be tried again."""
        self._reconcile.labels("done" if done else "again").observe(seconds)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Around one compilation."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._compile.observe(time.monotonic() - began)

    def sidecar_called(self, call: str, outcome: str, seconds: float) -> None:
        """A control port was called."""
        self._calls.labels(call, outcome).observe(seconds)

    def api_called(self, call: str, outcome: str, seconds: float) -> None:
        """The API server was called."""
        self._api.labels(call, outcome).observe(seconds)

    def admitted(self, outcome: str, seconds: float) -> None:
        """The webhook was called."""
        self._admissions.labels(outcome).inc()
        self._admission.observe(seconds)

    def exposition(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, documentation: str, *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, registry=self._registry, buckets=_BUCKETS)


class _Gauges(Collector):
    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: what there is depends on the moment."""
        return ()

    def collect(self) -> Iterator[Metric]:
        view = self._measures.view()
        yield GaugeMetricFamily(
            "fairserve_operator_leader", "1 if this replica acts.", value=float(view.acting)
        )
        yield GaugeMetricFamily(
            "fairserve_operator_complete",
            "1 once all objects that exist are known.",
            value=float(view.complete),
        )
        pods = GaugeMetricFamily(
            "fairserve_operator_pods", "Pods of a ServingPool.", labels=["namespace", "pool"]
        )
        behind = GaugeMetricFamily(
            "fairserve_operator_pods_behind",
            "Pods that don't run the newest configuration.",
            labels=["namespace", "pool"],
        )
        age = GaugeMetricFamily(
            "fairserve_operator_signal_age_seconds",
            "Time since any overload signal of a ServingPool had a value, or evaluation began.",
            labels=["namespace", "pool"],
        )
        for pool in view.pools:
            where = [pool.namespace, pool.pool]
            pods.add_metric(where, pool.pods)
            behind.add_metric(where, pool.behind)
            if pool.signal_age_s is not None:
                age.add_metric(where, pool.signal_age_s)
        yield from (pods, behind, age)
        expires_at = self._measures.certificate_expires_at()
        if expires_at is not None:
            yield GaugeMetricFamily(
                "fairserve_operator_webhook_certificate_expiry_timestamp_seconds",
                "When the certificate that the webhook serves by ends.",
                value=expires_at,
            )
