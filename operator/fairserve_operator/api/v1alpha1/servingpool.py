"""ServingPool: which vLLM pods are shared, and how."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fairserve_operator.api.v1alpha1.fields import (
    DURATION_PATTERN,
    CommonStatus,
    Count,
    Duration,
    DurationOrZero,
    Flag,
    MatchLabels,
    Model,
    Name,
    Price,
    SecretKeyRef,
    Size,
    Weight,
    cel,
    duration_s,
    one_of_rule,
)
from fairserve_operator.api.v1alpha1.prometheus import Prometheus
from fairserve_operator.api.v1alpha1.tenant import CacheGroup, Queue, TenantInteractionLimits

Builtin = Literal[
    "QueueWait",
    "Saturation",
    "KVCacheUse",
    "EngineWaiting",
    "EngineQueueTime",
    "Preemptions",
    "TimeToFirstToken",
]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]

_PORTS_DIFFER = "port and controlPort must differ"
_FAIRSERVE_ONLY = "normalisation and continuationHeadStart apply to policy FairServe only"
_BUILTIN_XOR_QUERY = "exactly one of builtin, query is allowed"
_CLEAR_BELOW = "clearThreshold must be below threshold"
_NO_TEXT = "is a text in quotes, not PromQL that yields a number"
_STALE_AFTER = "staleAfter must be at least twice evaluationInterval"
_TOO_OFTEN = "must be at least 100ms"
_ONE_SELECTION = one_of_rule("selector", "poolRef")
_REJECT_EXCLUDES = (
    "mode Reject admits nobody, so weight, interactionLimits, queue and prefixCacheGroup must be unset"
)


def _is_network(block: str) -> str:
    ipaddress.ip_network(block)
    return block


class Selector(Model):
    """Which pods."""

    match_labels: MatchLabels = Field(description="Labels that a pod of the pool has, all of them.")


class PoolRef(Model):
    """An InferencePool of the Gateway API inference extension (inference.networking.k8s.io/v1)."""

    name: Name = Field(description="Name of the InferencePool, in the same namespace.")


class Sidecar(
    Model,
    json_schema_extra=cel(
        (
            "(has(self.port) ? self.port : 8000) != (has(self.controlPort) ? self.controlPort : 8001)",
            _PORTS_DIFFER,
        )
    ),
):
    """Where the sidecar listens in each pod."""

    port: Port = Field(8000, description="Port for clients, which also serves /metrics. Default: 8000.")
    control_port: Port = Field(
        8001, description="Port on which the operator reaches the sidecar. Default: 8001."
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port == self.control_port:
            raise ValueError(_PORTS_DIFFER)
        return self


class TokenWeights(Model):
    """Price of one token of each kind."""

    input: Price = Field(1.0, description="An uncached prompt token, more than 0. Default: 1.")
    cached: Annotated[float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)] = Field(
        0.1, description="A prompt token found in the prefix cache, at least 0. Default: 0.1."
    )
    system: Price = Field(
        1.0, description="A token of the application's own fixed prompt, more than 0. Default: 1."
    )
    output: Price = Field(2.0, description="A generated token, more than 0. Default: 2.")


class Scheduler(
    Model,
    json_schema_extra=cel(
        (
            "!has(self.policy) || self.policy == 'FairServe' || "
            "(!has(self.normalisation) && !has(self.continuationHeadStart))",
            _FAIRSERVE_ONLY,
        )
    ),
):
    """Which call goes next and what a call costs."""

    policy: Literal["FairServe", "VTC", "FCFS"] = Field(
        "FairServe",
        description="FairServe: weighted service counters on costs normalised by application. VTC: plain "
        "token counters. FCFS: order of arrival, no fairness. Default: FairServe.",
    )
    normalisation: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None,
        description="How far a call's cost is measured by its own application (1) rather than by the pool's "
        "typical call (0). Below 1, naming the wrong application gains at most a factor "
        "1/(1 - normalisation). Only with policy FairServe. Default: 0.8.",
    )
    token_weights: TokenWeights = Field(
        TokenWeights(), description="Price of one token of each kind. Unset: the defaults of its fields."
    )
    continuation_head_start: (
        Annotated[float, Field(strict=True, ge=0, le=1000, allow_inf_nan=False)] | None
    ) = Field(
        None,
        description="How far a call that continues an interaction may run ahead of another user's turn, in "
        "typical calls. Only with policy FairServe. Default: 1.",
    )

    @model_validator(mode="after")
    def _settings_fit_policy(self) -> Self:
        refinements = (self.normalisation, self.continuation_head_start)
        if self.policy != "FairServe" and any(value is not None for value in refinements):
            raise ValueError(_FAIRSERVE_ONLY)
        return self


def _is_no_text(query: str) -> str:
    if re.match(_TEXT_LITERAL, query):
        raise ValueError(_NO_TEXT)
    return query


#: PromQL has no other expressions that are texts than literals, and in answers texts look like numbers.
_TEXT_LITERAL = r"[\s(]*[\x22\x27\x60]"


class OverloadSignal(
    Model,
    json_schema_extra=cel(
        ("[has(self.builtin), has(self.query)].filter(x, x).size() == 1", _BUILTIN_XOR_QUERY),
        ("!has(self.clearThreshold) || self.clearThreshold < self.threshold", _CLEAR_BELOW),
    ),
):
    """One number that tells of overload."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] = Field(
        description="Name of the signal in conditions and events, unique in the pool."
    )
    builtin: Builtin | None = Field(
        None,
        description="QueueWait: seconds that the longest waiting call of any pod has waited. Saturation: "
        "mean saturation of the pods, where 1 is full. KVCacheUse: mean use of the KV cache, 0 to 1. "
        "EngineWaiting: calls waiting inside the engines, in sum; it stays low behind sidecars. "
        "EngineQueueTime: seconds that 95 % of the last minute's calls waited inside the engines at most. "
        "Preemptions: preempted calls a second, in sum over the last minute. TimeToFirstToken: seconds from "
        "an engine's taking a call to its first token, for 95 % of the last minute's calls. The last three "
        "need two scrapes a minute.",
    )
    query: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=4096,
                json_schema_extra=cel((f"!self.matches(r'^{_TEXT_LITERAL}')", _NO_TEXT)),
            ),
            AfterValidator(_is_no_text),
        ]
        | None
    ) = Field(
        None,
        description="PromQL that yields exactly one number which grows with load. No answer, several series, "
        "NaN and infinity are no value: see `staleAfter`.",
    )
    threshold: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = Field(
        description="The signal is up when it has been at or above this for `for`. More than 0."
    )
    clear_threshold: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="The signal is down when it is below this; in between it stays what it was. "
        "Less than `threshold`. Default: 80 % of `threshold`.",
    )
    for_: DurationOrZero = Field(
        "0s", alias="for", description="How long it must be at or above `threshold`. Default: 0s."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.builtin is None) == (self.query is None):
            raise ValueError(_BUILTIN_XOR_QUERY)
        if self.clear_threshold is not None and self.clear_threshold >= self.threshold:
            raise ValueError(_CLEAR_BELOW)
        return self


DEFAULT_SIGNALS = (
    OverloadSignal(name="queue-wait", builtin="QueueWait", threshold=5.0, clear_threshold=1.0, for_="10s"),
    OverloadSignal(name="saturation", builtin="Saturation", threshold=1.0, clear_threshold=0.8, for_="10s"),
    OverloadSignal(
        name="kv-cache-use", builtin="KVCacheUse", threshold=0.95, clear_threshold=0.8, for_="10s"
    ),
)


def _is_not_too_often(text: str) -> str:
    if duration_s(text) < MIN_INTERVAL_S:
        raise ValueError(_TOO_OFTEN)
    return text


#: An evaluation costs a few milliseconds of the operator, and scrapes are seconds apart.
MIN_INTERVAL_S = 0.1


class Overload(
    Model,
    json_schema_extra=cel(
        (
            "duration(has(self.staleAfter) ? self.staleAfter : '30s') >= "
            + " + ".join(["duration(has(self.evaluationInterval) ? self.evaluationInterval : '5s')"] * 2),
            _STALE_AFTER,
        )
    ),
):
    """When the pool counts as overloaded."""

    prometheus: Prometheus | None = Field(
        None,
        description="Where signals are read. Unset: the operator evaluates no signal, and only `armLocally` "
        "and `onStale` can refuse anybody.",
    )
    signals: Annotated[
        tuple[OverloadSignal, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = Field(
        DEFAULT_SIGNALS,
        description="The pool is overloaded while any of these is up. Default: QueueWait 5 (clear 1), "
        "Saturation 1 (clear 0.8) and KVCacheUse 0.95 (clear 0.8), each for 10s.",
    )
    evaluation_interval: Annotated[
        str,
        Field(
            pattern=DURATION_PATTERN,
            max_length=24,
            json_schema_extra=cel(("duration(self) >= duration('100ms')", _TOO_OFTEN)),
        ),
        AfterValidator(_is_not_too_often),
    ] = Field("5s", description="Time between two evaluations, at least 100ms. Default: 5s.")
    stale_after: Duration = Field(
        "30s",
        description="A signal without a value for this long is ignored; when all are, `onStale` decides. "
        "Also how long a sidecar believes the operator's last word. At least twice `evaluationInterval`. "
        "Default: 30s.",
    )
    on_stale: Literal["Hold", "Arm", "Disarm"] = Field(
        "Hold",
        description="What happens when nothing trustworthy is known. Hold: the last state stays. Arm: act as "
        "overloaded. Disarm: act as not overloaded. Default: Hold.",
    )
    hold_down: DurationOrZero = Field(
        "10s",
        description="The pool stays overloaded for this long after the last signal cleared. Default: 10s.",
    )
    arm_locally: Flag = Field(
        False,
        description="Whether a pod refuses by itself, whatever the operator says or does not say, from a "
        "saturation of its own of 1 on until it has been below 0.8 for `holdDown`. Default: false.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if duration_s(self.stale_after) < 2 * duration_s(self.evaluation_interval):
            raise ValueError(_STALE_AFTER)
        seen: set[str] = set()
        for signal in self.signals:
            if signal.name in seen:
                raise ValueError(f"signals: two are named {signal.name}")
            seen.add(signal.name)
        return self


class Throttling(Model):
    """What happens to calls over an interaction limit while the pool is overloaded."""

    mode: Literal["Enforce", "Shadow"] = Field(
        "Enforce",
        description="Enforce: they are refused. Shadow: they are counted and served. Default: Enforce.",
    )


class DefaultTenant(
    Model,
    json_schema_extra=cel(
        (
            "self.mode != 'Reject' || "
            "(!has(self.weight) && !has(self.interactionLimits) && !has(self.queue) "
            "&& !has(self.prefixCacheGroup))",
            _REJECT_EXCLUDES,
        )
    ),
):
    """What becomes of callers that no Tenant claims."""

    mode: Literal["Admit", "Reject"] = Field(
        description="Admit: they share as one tenant with the settings below. Reject: they get 401."
    )
    weight: Weight | None = Field(None, description="As of a Tenant. Default: 1.")
    interaction_limits: TenantInteractionLimits | None = Field(
        None, description="As of a Tenant. Unset: no limit."
    )
    queue: Queue | None = Field(None, description="As of a Tenant. Unset: the defaults of its fields.")
    prefix_cache_group: CacheGroup | None = Field(None, description="As of a Tenant. Unset: as there.")

    @model_validator(mode="after")
    def _reject_has_no_settings(self) -> Self:
        settings = (self.weight, self.interaction_limits, self.queue, self.prefix_cache_group)
        if self.mode == "Reject" and any(value is not None for value in settings):
            raise ValueError(_REJECT_EXCLUDES)
        return self


class PoolQueue(Model):
    """How much may wait in each pod, of all tenants together."""

    max_requests: Count | None = Field(
        None,
        description="Most calls that wait at one time. What overflows is refused, of those tenants first "
        "that have most waiting for their weight. Default: 1000000.",
    )
    max_bytes: Size | None = Field(
        None,
        description="Most that the bodies of waiting calls hold, such as 64Mi or 1Gi. Default: 8Gi.",
    )


class ServingPoolSpec(Model, json_schema_extra=cel(_ONE_SELECTION)):
    """The vLLM pods that all Tenants of the namespace share, and how they are shared."""

    selector: Selector | None = Field(
        None,
        description="Which pods of the namespace. A pod that two pools select is the older pool's; where the "
        "labels of one include those of the other, the younger is refused. Unset: `poolRef` says.",
    )
    pool_ref: PoolRef | None = Field(
        None,
        description="An InferencePool whose `spec.selector` says which pods, and whose `targetPorts` should "
        "be `sidecar.port`. Looked at every two seconds; while it can't be found the pool keeps the pods "
        "that it has. Unset: `selector` says.",
    )
    sidecar: Sidecar = Field(
        Sidecar(), description="Where the sidecar listens. Unset: the defaults of its fields."
    )
    scheduler: Scheduler = Field(
        Scheduler(),
        description="Which call goes next and what a call costs. Unset: the defaults of its fields.",
    )
    overload: Overload = Field(
        Overload(), description="When the pool counts as overloaded. Unset: the defaults of its fields."
    )
    throttling: Throttling = Field(
        Throttling(),
        description="What happens to calls over a limit while overloaded. Unset: the defaults of its fields.",
    )
    default_tenant: DefaultTenant | None = Field(
        None, description="What becomes of callers that no Tenant claims. Unset: they get 401."
    )
    queue: PoolQueue = Field(
        PoolQueue(),
        description="How much may wait in each pod, of all tenants together. Unset: the defaults of its "
        "fields.",
    )
    service_account_audience: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        "fairserve",
        description="The audience of the ServiceAccount tokens by which callers show who they are, so that "
        "a token for the API server is worth nothing here and the other way round. Default: fairserve.",
    )
    hop_tokens: Annotated[tuple[SecretKeyRef, ...], Field(max_length=8)] = Field(
        (),
        description="Tokens by which a proxy at any address is believed, in the header "
        "`x-fairserve-hop-token`; several, to change one for the other. Only their salted hashes leave the "
        "operator. Unset: only `trustedProxies` are believed.",
    )
    trusted_proxies: Annotated[
        tuple[
            Annotated[
                str, Field(pattern=r"^[0-9a-fA-F:.]+/[0-9]{1,3}$", max_length=64), AfterValidator(_is_network)
            ],
            ...,
        ],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field(
        (),
        description="CIDR blocks of the proxies whose identity headers are believed, such as 10.0.0.0/8. "
        "Unset: nobody's are.",
    )

    @model_validator(mode="after")
    def _selects_one_way(self) -> Self:
        if (self.selector is None) == (self.pool_ref is None):
            raise ValueError(_ONE_SELECTION[1])
        return self


class PodBehind(Model):
    """A pod whose sidecar does not run the newest configuration."""

    pod: Name = Field(description="Name of the pod.")
    generation: int | None = Field(
        None, description="The configuration it acknowledged last. Unset: none yet."
    )
    error: str | None = Field(None, description="Why the last attempt failed. Unset: it did not.")
    last_ack_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = Field(
        None, description="When it acknowledged last. Unset: never."
    )


class Pods(Model):
    """How far the pool's configuration has come."""

    total: Annotated[int, Field(ge=0)] = Field(description="Pods of the pool.")
    programmed: Annotated[int, Field(ge=0)] = Field(description="Those that run `generation`.")
    behind: Annotated[
        tuple[PodBehind, ...],
        Field(
            max_length=10,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["pod"]},
        ),
    ] = Field((), description="Those that don't, the ten furthest behind.")


class OverloadStatus(Model):
    """The overload state, as of its last transition."""

    since: Annotated[str, Field(json_schema_extra={"format": "date-time"})] = Field(
        description="When the pool became overloaded, or ceased to be."
    )
    signal: str | None = Field(None, description="The signal that tells most. Unset: none does.")
    value: float | None = Field(None, description="Its value when it was noted.")


class ServingPoolStatus(CommonStatus):
    """What is known of a ServingPool."""

    generation: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Generation of the configuration that the pods should run."
    )
    policy: str | None = Field(None, description="The policy in force, the default included.")
    programmed: str | None = Field(None, description="`pods.programmed` of `pods.total`: `2/3`.")
    pods: Pods | None = Field(None, description="How far the configuration has come.")
    overload: OverloadStatus | None = Field(None, description="The overload state.")
    window: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Calls that the engines of all pods together may hold. Looked at about each 30s and "
        "shown anew when it has moved by a tenth.",
    )
