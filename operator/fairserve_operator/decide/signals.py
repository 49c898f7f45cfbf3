"""Overload signals: from the pool's spec to PromQL, thresholds, and what it takes to ask.

Built-in signals are templates over what a sidecar serves on /metrics: vLLM's own text beside ours.
`fairserve_pool_info` says which pool a scrape target belongs to; the join on (instance, job) needs no
label that somebody must configure in Prometheus first. vLLM's names are matched with the colon they have
and with the underscore that Prometheus 2 turns it into; a target that is stored under both, as during an
upgrade, counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings
from fairserve_operator.api.v1alpha1 import (
    Builtin,
    OverloadSignal,
    Prometheus,
    SecretKeyRef,
    ServingPoolSpec,
    duration_s,
)
from fairserve_operator.decide.resources import SecretRef

#: Where `clearThreshold` is unset.
CLEAR_RATIO = 0.8

#: Which calls the built-in times are about: those of the last minute, and all but the slowest 5 %.
_WINDOW = "1m"
_QUANTILE = 0.95

#: A query that takes longer tells of the past.
_LONGEST_QUERY_S = 5.0
#: With `staleAfter` at least twice the interval, a lease is renewed before it ends however long queries take.
_STALE_PER_QUERY = 3.0

#: The label by which the answer of a joint query says which signal a value is of.
SIGNAL_LABEL = "fairserve_signal"
#: A joint query travels in a URL, and proxies bound those.
_LONGEST_JOINT_QUERY = 3000


@dataclass(frozen=True, slots=True)
class PrometheusAccess:
    """Which entries of Secrets it takes to ask Prometheus, and whether its certificate is looked at."""

    bearer_token: SecretRef | None = None
    username: SecretRef | None = None
    password: SecretRef | None = None
    ca: SecretRef | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """How one pool's overload is found out."""

    settings: OverloadSettings
    queries: Mapping[str, str]  #: PromQL by signal name; each yields one number
    builtins: Mapping[str, Builtin]  #: the signals that one look at a sidecar's /metrics tells, by name
    interval_s: float
    prometheus_url: str | None  #: None: nobody evaluates but `fairserve up` and the pods themselves
    access: PrometheusAccess = PrometheusAccess()
    #: PromQL for several signals at once, with the signals that each is for; what is missing is asked alone.
    joint: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float:
        """How long an evaluation waits for answers."""
        return min(_LONGEST_QUERY_S, self.settings.stale_after_s / _STALE_PER_QUERY)


def overload_plan(namespace: str, pool: str, spec: ServingPoolSpec) -> OverloadPlan:
    """The plan of a well-formed pool."""
    overload = spec.overload
    queries = {signal.name: _query(signal, namespace, pool) for signal in overload.signals}
    return OverloadPlan(
        settings=OverloadSettings(
            signals=tuple(_settings(signal) for signal in overload.signals),
            stale_after_s=duration_s(overload.stale_after),
            on_stale=OnStale(overload.on_stale),
            hold_down_s=duration_s(overload.hold_down),
        ),
        queries=queries,
        builtins={s.name: s.builtin for s in overload.signals if s.builtin and s.builtin not in _TIMED},
        interval_s=duration_s(overload.evaluation_interval),
        prometheus_url=overload.prometheus.url if overload.prometheus else None,
        access=_access(namespace, overload.prometheus),
        # Only ours: a query of a user's may yield a scalar, and one that fails would take the others along.
        joint=joint_queries({s.name: queries[s.name] for s in overload.signals if s.builtin}),
    )


def prometheus_refs(namespace: str, spec: ServingPoolSpec) -> Mapping[str, SecretRef]:
    """The Secret entries that a pool's Prometheus takes, by their path in the object."""
    access, path = _access(namespace, spec.overload.prometheus), "spec.overload.prometheus"
    refs = {
        f"{path}.auth.bearerToken.secretRef": access.bearer_token,
        f"{path}.auth.basic.username": access.username,
        f"{path}.auth.basic.password": access.password,
        f"{path}.tls.ca": access.ca,
    }
    return {field_path: ref for field_path, ref in refs.items() if ref is not None}


def builtin_query(builtin: Builtin, namespace: str, pool: str) -> str:
    """PromQL of a built-in signal for one pool: one number, or nothing where no pod is scraped."""
    labels = f"pool_namespace={_quoted(namespace)}, pool={_quoted(pool)}"

    def of_pool(series: str) -> str:
        info = f"max by (instance, job) (fairserve_pool_info{{{labels}}})"
        return f"({series} * on (instance, job) group_left () {info})"

    return _TEMPLATES[builtin](of_pool)


def joint_queries(queries: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Unite queries that yield one series each; the label SIGNAL_LABEL tells whose a series is."""
    united: dict[str, Sequence[str]] = {}
    for names in _chunks(queries):
        parts = (f'label_replace({queries[n]}, "{SIGNAL_LABEL}", {_quoted(n)}, "", "")' for n in names)
        united[" or ".join(parts)] = names
    return united


def _chunks(queries: Mapping[str, str]) -> Iterable[tuple[str, ...]]:
    """Names of two or more queries that are not too long together."""
    chunk: tuple[str, ...] = ()
    for name in queries:
        if sum(len(queries[each]) for each in (*chunk, name)) > _LONGEST_JOINT_QUERY:
            if len(chunk) > 1:
                yield chunk
            chunk = ()
        chunk = (*chunk, name)
    if len(chunk) > 1:
        yield chunk


#: Restricts an expression to the pods of the pool.
_OfPool = Callable[[str], str]


def _either(name: str) -> str:
    return f"(vllm:{name} or vllm_{name})"


def _rate(name: str) -> str:
    return f"(rate(vllm:{name}[{_WINDOW}]) or rate(vllm_{name}[{_WINDOW}]))"


def _slowest(histogram: str, of_pool: _OfPool) -> str:
    """What nearly all calls of the window were below.

    An engine that holds calls and has begun none for a whole window has no value, because it may hang; one
    that holds none has nobody waiting: 0.
    """
    buckets = of_pool(_rate(f"{histogram}_bucket"))
    running, waiting = of_pool(_either("num_requests_running")), of_pool(_ENGINE_WAITING)
    slowest = f"histogram_quantile({_QUANTILE}, sum by (le) {buckets}) >= 0"
    return f"(({slowest}) or ((sum{running} + sum{waiting}) == 0))"


#: The last name is what vLLM called it before 0.10.
_KV_USE = f"({_either('kv_cache_usage_perc')} or {_either('gpu_cache_usage_perc')})"

#: A sidecar adds what waits with it to vLLM's figure and says beside it what the engine said; old ones don't.
_ENGINE_WAITING = (
    f"(fairserve_engine_requests_waiting or on (instance, job) {_either('num_requests_waiting')})"
)

#: How each built-in signal folds its pods into one number, and what it reads.
_TEMPLATES: Mapping[Builtin, Callable[[_OfPool], str]] = {
    "QueueWait": lambda of_pool: f"max{of_pool('fairserve_queue_oldest_wait_seconds')}",
    "Saturation": lambda of_pool: f"avg{of_pool('fairserve_saturation')}",
    "KVCacheUse": lambda of_pool: f"avg{of_pool(_KV_USE)}",
    "EngineWaiting": lambda of_pool: f"sum{of_pool(_ENGINE_WAITING)}",
    "EngineQueueTime": lambda of_pool: _slowest("request_queue_time_seconds", of_pool),
    "Preemptions": lambda of_pool: f"sum{of_pool(_rate('num_preemptions_total'))}",
    "TimeToFirstToken": lambda of_pool: _slowest("time_to_first_token_seconds", of_pool),
}

#: The signals that only a series of scrapes tells.
_TIMED: frozenset[Builtin] = frozenset({"EngineQueueTime", "Preemptions", "TimeToFirstToken"})


def _access(namespace: str, prometheus: Prometheus | None) -> PrometheusAccess:
    auth = prometheus and prometheus.auth
    bearer, basic, tls = auth and auth.bearer_token, auth and auth.basic, prometheus and prometheus.tls

    def ref(entry: SecretKeyRef | None) -> SecretRef | None:
        return None if entry is None else SecretRef(namespace, entry.name, entry.key)

    return PrometheusAccess(
        bearer_token=ref(bearer.secret_ref if bearer else None),
        username=ref(basic.username if basic else None),
        password=ref(basic.password if basic else None),
        ca=ref(tls.ca if tls else None),
        verify=not (tls and tls.insecure_skip_verify),
    )


def _query(signal: OverloadSignal, namespace: str, pool: str) -> str:
    return builtin_query(signal.builtin, namespace, pool) if signal.builtin else signal.query or ""


def _settings(signal: OverloadSignal) -> SignalSettings:
    clear = signal.threshold * CLEAR_RATIO if signal.clear_threshold is None else signal.clear_threshold
    return SignalSettings(signal.name, signal.threshold, clear, duration_s(signal.for_))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
