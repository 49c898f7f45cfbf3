"""Counts for Prometheus: plain numbers on the hot path, turned into metric families when scraped.

Labels are bounded: a tenant beyond the first thousand counts as `other`, and a user is never a label. What a
tenant has waiting is asked of the scheduler when somebody scrapes. Families with a series for each tenant are
written here: prometheus_client takes ten times as long, in which no call gets on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fairserve.core.calls import Outcome, RefusalReason, ThrottlingMode, Usage
from fairserve.core.state import TenantView
from fairserve.sidecar.experience import Experience

MAX_TENANTS: Final = 1000
#: Paths of an engine that are a label, and characters of each.
MAX_UNKNOWN_PATHS: Final = 20
_MAX_PATH: Final = 200
OTHER: Final = "other"

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Reasons for which an interaction did not begin although there was room for it.
_NOT_BEGUN: Final = frozenset(
    {
        RefusalReason.USER_LIMIT,
        RefusalReason.TENANT_LIMIT,
        RefusalReason.APPLICATION_LIMIT,
        RefusalReason.TENANT_HELD,
    }
)
_WAIT_BUCKETS_S: Final[tuple[float, ...]] = (
    0.001,
    0.005,
    0.025,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_DECISION_BUCKETS_S: Final[tuple[float, ...]] = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2)


class Histogram:
    """Counts per bucket."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """As Prometheus wants it: cumulative."""
        buckets = []
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum)


@dataclass(slots=True)
class CallCounts:
    """What one tenant did in one application."""

    outcomes: dict[Outcome, int] = field(default_factory=dict)
    refusals: dict[tuple[RefusalReason, ThrottlingMode], int] = field(default_factory=dict)
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def ended(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """A call has ended."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if usage is not None:
            self.input_tokens += usage.input_tokens - usage.cached_tokens
            self.cached_tokens += usage.cached_tokens
            self.output_tokens += usage.output_tokens

    def refused(self, reason: RefusalReason, mode: ThrottlingMode) -> None:
        """A call was refused or evicted, or would have been."""
        self.refusals[reason, mode] = self.refusals.get((reason, mode), 0) + 1


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is true at the moment of a scrape. None: not known, not exported."""

    pool: tuple[str, str] | None  #: namespace and name
    generation: int | None
    armed: bool
    queued: int
    oldest_wait_s: float
    running: int
    window: int
    saturation: float
    engine_up: bool
    signal_age_s: float | None
    unknown_paths: tuple[str, ...] = ()
    realtime_sessions: int = 0


class Metrics(Collector):
    """All counts of one sidecar."""

    def __init__(self) -> None:
        self.queue_wait = Histogram(_WAIT_BUCKETS_S)
        self.decision = Histogram(_DECISION_BUCKETS_S)
        self.wasted_tokens = 0
        self.engine_refusals = 0  #: calls that the engine turned away before it computed anything
        self.experience = Experience()
        self.gauges: Callable[[], Gauges] | None = None
        self.tenants: Callable[[], Iterable[TenantView]] | None = None
        self._calls: dict[tuple[str, str], CallCounts] = {}
        self._service: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self._denied: dict[str, int] = {}
        self._folded: set[str] = set()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def calls(self, tenant: str, application: str) -> CallCounts:
        """Where the calls of a tenant in an application are counted."""
        counts = self._calls.get((tenant, application))
        if counts is None:
            key = (self._fold(tenant), application)
            counts = self._calls.setdefault(key, CallCounts())
        return counts

    def serve(self, tenant: str, service: float) -> None:
        """A tenant got normalised service."""
        if tenant not in self._service:
            tenant = self._fold(tenant)
        self._service[tenant] = self._service.get(tenant, 0.0) + service

    def waited(self, tenant: str, seconds: float) -> None:
        """A call went to the engine after it had waited."""
        if tenant not in self._waits:
            tenant = self._fold(tenant)
        self._waits[tenant] = self._waits.get(tenant, 0.0) + seconds

    def denied(self, code: str) -> None:
        """A request was turned away before anybody knew whose it is."""
        self._denied[code] = self._denied.get(code, 0) + 1

    def refused_calls(self) -> dict[str, int]:
        """Refused and evicted calls by tenant."""
        refused: dict[str, int] = {}
        for (tenant, _), counts in self._calls.items():
            lost = counts.outcomes.get(Outcome.REFUSED, 0) + counts.outcomes.get(Outcome.EVICTED, 0)
            refused[tenant] = refused.get(tenant, 0) + lost
        return refused

    def refused_interactions(self) -> dict[str, float]:
        """Interactions that a limit or a hold refused, by tenant; not those of Shadow."""
        refused: dict[str, float] = {}
        for (tenant, _), counts in self._calls.items():
            for (reason, mode), count in counts.refusals.items():
                if mode is ThrottlingMode.ENFORCE and reason in _NOT_BEGUN:
                    refused[tenant] = refused.get(tenant, 0.0) + count
        return refused

    def service(self) -> dict[str, float]:
        """Normalised service by tenant, in typical calls."""
        return dict(self._service)

    def exposition(self) -> bytes:
        """The text of `/metrics`."""
        return b"".join(self._parts())

    def _parts(self) -> Iterator[bytes]:
        yield generate_latest(self._registry)
        yield from self._call_families()
        yield _family(
            "service_total", "counter", "Normalised service given, in typical calls.", self._service
        )
        yield _family(
            "tenant_queue_wait_seconds_total",
            "counter",
            "Time that dispatched calls waited, in sum.",
            self._waits,
        )
        yield from self._tenant_families()

    def collect(self) -> Iterator[Metric]:
        """The families that have few series, for prometheus_client."""
        denied = CounterMetricFamily(
            "fairserve_denied_requests", "Requests turned away before a tenant was known.", labels=["code"]
        )
        for code, count in self._denied.items():
            denied.add_metric([code], count)
        yield denied
        yield CounterMetricFamily(
            "fairserve_wasted_tokens",
            "Tokens computed for interactions that lost a later call.",
            value=self.wasted_tokens,
        )
        yield CounterMetricFamily(
            "fairserve_engine_refusals",
            "Times that the engine turned a call away before it computed anything, and it waited again.",
            value=self.engine_refusals,
        )
        yield self.queue_wait.family("fairserve_queue_wait_seconds", "Time that dispatched calls waited.")
        yield self.decision.family("fairserve_decision_seconds", "Time in the scheduler per call.")
        if self.gauges is not None:
            yield from _gauge_families(self.gauges())

    def _tenant_families(self) -> Iterator[bytes]:
        """What tenants have now. Those beyond the limit count together, and have no weight of their own."""
        weights: dict[str, float] = {}
        queued: dict[str, float] = {}
        running: dict[str, float] = {}
        oldest: dict[str, float] = {}
        interactions: dict[str, float] = {}
        for view in () if self.tenants is None else self.tenants():
            name = self._fold(view.name)
            if name == view.name:
                weights[name] = view.weight
            queued[name] = queued.get(name, 0.0) + view.queued
            running[name] = running.get(name, 0.0) + view.running
            if view.queued:
                oldest[name] = max(oldest.get(name, 0.0), view.oldest_wait_s)
            interactions[name] = interactions.get(name, 0.0) + view.interactions
        users: dict[str, float] = {}
        served: dict[str, float] = {}
        for tenant, (seen, in_full) in self.experience.counts().items():
            name = self._fold(tenant)
            users[name] = users.get(name, 0.0) + seen
            served[name] = served.get(name, 0.0) + in_full
        for metric, documentation, values in (
            ("weight", "Weight in force of a tenant that has been here lately.", weights),
            ("queue_requests", "Calls that wait.", queued),
            ("inflight_requests", "Calls in the engine.", running),
            (
                "queue_oldest_wait_seconds",
                "How long the oldest waiting call waits; absent while none does.",
                oldest,
            ),
            ("open_interactions", "Interactions that may be open.", interactions),
            ("users", "Users whose calls ended in the last whole five minutes.", users),
            ("users_fully_served", "Those of them who lost no call.", served),
        ):
            yield _family(f"tenant_{metric}", "gauge", documentation, values)

    def _call_families(self) -> Iterator[bytes]:
        requests = [_head("requests_total", "counter", "Calls that ended.")]
        tokens = [_head("tokens_total", "counter", "Tokens: input (not cached), cached, output.")]
        refused = [
            _head(
                "refused_interactions_total",
                "counter",
                "Calls refused or evicted; with mode Shadow, those that would have been.",
            )
        ]
        known = [(_escaped(who[0]), _escaped(who[1]), counts) for who, counts in self._calls.items()]
        for tenant, application, counts in known:
            for outcome, count in counts.outcomes.items():
                requests.append(
                    f'fairserve_requests_total{{application="{application}",outcome="{outcome.value}"'
                    f',tenant="{tenant}"}} {count}.0\n'
                )
        yield "".join(requests).encode()
        for tenant, application, counts in known:
            before = f'fairserve_tokens_total{{application="{application}",kind="'
            tokens.append(
                f'{before}input",tenant="{tenant}"}} {counts.input_tokens}.0\n'
                f'{before}cached",tenant="{tenant}"}} {counts.cached_tokens}.0\n'
                f'{before}output",tenant="{tenant}"}} {counts.output_tokens}.0\n'
            )
        yield "".join(tokens).encode()
        for tenant, application, counts in known:
            for (reason, mode), count in counts.refusals.items():
                refused.append(
                    f'fairserve_refused_interactions_total{{application="{application}",mode="{mode.value}"'
                    f',reason="{reason.value}",tenant="{tenant}"}} {count}.0\n'
                )
        yield "".join(refused).encode()

    def _fold(self, tenant: str) -> str:
        if tenant in self._folded:
            return tenant
        if len(self._folded) >= MAX_TENANTS:
            return OTHER
        self._folded.add(tenant)
        return tenant


def _family(name: str, kind: str, documentation: str, values: Mapping[str, float]) -> bytes:
    """A family with one series for each tenant, as text."""
    lines = [_head(name, kind, documentation)]
    lines += [
        f'fairserve_{name}{{tenant="{_escaped(who)}"}} {float(value)!r}\n' for who, value in values.items()
    ]
    return "".join(lines).encode()


def _head(name: str, kind: str, documentation: str) -> str:
    return f"# HELP fairserve_{name} {documentation}\n# TYPE fairserve_{name} {kind}\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gauge_families(gauges: Gauges) -> Iterator[Metric]:
    if gauges.pool is not None:
        pool = GaugeMetricFamily(
            "fairserve_pool_info", "The pool this sidecar serves.", labels=["pool_namespace", "pool"]
        )
        pool.add_metric(list(gauges.pool), 1)
        yield pool
    unknown = GaugeMetricFamily(
        "fairserve_unknown_paths",
        "1 for each path of the engine that is not known here, whose calls are scheduled all the same.",
        labels=["path"],
    )
    for path in gauges.unknown_paths[:MAX_UNKNOWN_PATHS]:
        unknown.add_metric([path[:_MAX_PATH]], 1)
    yield unknown
    values: list[tuple[str, str, float | None]] = [
        ("fairserve_config_generation", "Generation of the configuration that runs.", gauges.generation),
        ("fairserve_oit_armed", "1 while interaction limits refuse.", gauges.armed),
        ("fairserve_queue_requests", "Calls that wait.", gauges.queued),
        ("fairserve_queue_oldest_wait_seconds", "How long the oldest call waits.", gauges.oldest_wait_s),
        ("fairserve_inflight_requests", "Calls in the engine.", gauges.running),
        ("fairserve_realtime_sessions", "Open WebSockets.", gauges.realtime_sessions),
        ("fairserve_dispatch_window", "Calls that the engine may hold.", gauges.window),
        ("fairserve_saturation", "1 and above: the engine cannot take more.", gauges.saturation),
        ("fairserve_engine_up", "1 while the engine answers.", gauges.engine_up),
        ("fairserve_signal_age_seconds", "Age of the engine's last readable metrics.", gauges.signal_age_s),
    ]
    for name, documentation, value in values:
        if value is not None:
            yield GaugeMetricFamily(name, documentation, value=float(value))
