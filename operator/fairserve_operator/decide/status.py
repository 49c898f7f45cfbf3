"""The whole `.status` of each kind, for a server-side apply.

`Programmed` is the sidecars' own word: the configuration generation that each pod acknowledged against
the one into which this object was compiled. "The Secret was written" proves nothing and counts for nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fairserve.overload.settings import Verdict
from fairserve_operator.api.v1alpha1 import ApplicationSpec, TenantSpec
from fairserve_operator.decide.compilation import Compiled
from fairserve_operator.decide.conditions import (
    ACCEPTED,
    CONFLICTED,
    OVERLOADED,
    PROGRAMMED,
    READY,
    RESOLVED_REFS,
    Condition,
    merge,
    rfc3339,
)
from fairserve_operator.decide.resources import Resource
from fairserve_operator.decide.selectors import ALONE, Overlap
from fairserve_operator.decide.specs import joined, parse

#: Why a pool is in conflict.
_SHARED = "SelectorConflict"

#: How many pods a ServingPool's status names; the rest is only counted.
NAMED_PODS = 10


@dataclass(frozen=True, slots=True)
class PodAck:
    """What is known of one pod's sidecar."""

    pod: str
    generation: int | None  #: the configuration generation it acknowledged; None: never heard of it
    error: str = ""  #: why the last attempt failed; empty if it did not
    last_ack_time: str | None = None  #: RFC 3339


#: Pool, generation that is waited for (0: none), pods that have it, pods, the worst pod.
Progress: TypeAlias = tuple[str, int, int, int, PodAck | None]


class Delivery:
    """How far the configurations of one pool have come.

    Build it once per pool and share it between objects: counting costs O(log pods) then.
    """

    __slots__ = ("_acknowledged", "_progress", "pods", "pool")

    def __init__(self, pool: str, pods: Iterable[PodAck]) -> None:
        self.pool = pool
        #: Worst first: never heard of, then by generation, then by name.
        self.pods = tuple(sorted(pods, key=lambda ack: (_known(ack), ack.pod)))
        self._acknowledged = [_known(ack) for ack in self.pods]
        self._progress: dict[int, Progress] = {}

    @property
    def total(self) -> int:
        """Pods of the pool."""
        return len(self.pods)

    def behind(self, generation: int) -> tuple[PodAck, ...]:
        """The pods that do not run `generation` or a later one, worst first."""
        return self.pods[: self._behind(generation)]

    def programmed(self, generation: int) -> int:
        """How many pods run `generation` or a later one."""
        return self.total - self._behind(generation)

    def progress(self, generation: int) -> Progress:
        """All that the status of an object tells of this delivery: equal progress, equal words."""
        found = self._progress.get(generation)
        if found is None:
            behind = self._behind(generation)
            worst = self.pods[0] if behind else None
            found = self._progress[generation] = (
                self.pool,
                generation if behind else 0,
                self.total - behind,
                self.total,
                worst,
            )
        return found

    def _behind(self, generation: int) -> int:
        return bisect_left(self._acknowledged, generation)


def tenant_status(
    tenant: Resource,
    conditions: Sequence[Condition],
    deliveries: Sequence[tuple[Delivery, int]],
    previous: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    """Status of a Tenant.

    `conditions` are those of `Compiled.conditions` (of any pool of the namespace: they are equal) or of
    `examine`. `deliveries` has, for every pool that is not refused, how far it is and the generation at
    which this object entered it (`generations.entered`). `previous` is the stored status, `now` RFC 3339.
    """
    status = _member_status(tenant, conditions, deliveries, previous, now)
    spec = parse(tenant, TenantSpec).spec
    return {**status, "weight": spec.weight} if spec else status


def application_status(
    application: Resource,
    conditions: Sequence[Condition],
    deliveries: Sequence[tuple[Delivery, int]],
    previous: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    """Status of an Application; arguments as of `tenant_status`."""
    status = _member_status(application, conditions, deliveries, previous, now)
    spec = parse(application, ApplicationSpec).spec
    return {**status, "profile": spec.profile.mode} if spec else status


def pool_status(
    pool: Resource,
    compiled: Compiled,
    generation: int,
    delivery: Delivery,
    verdict: Verdict | None,
    previous: Mapping[str, Any] | None,
    now: str,
    overlap: Overlap = ALONE,
    unstored: str = "",
) -> dict[str, Any]:
    """Status of a ServingPool.

    `generation` is the configuration's (the last good one's where the pool is refused, 0 if there never was
    one). `verdict` is the last one of its OverloadMachine, whose clock must be Unix time (`since` becomes a
    timestamp); None before the first. `overlap` is about pods that another pool selects as well, `unstored`
    says why the Secret that its Pods boot from is not what it should be.
    """
    conditions = _contested(compiled.conditions[pool.key], overlap, pool.generation)
    programmed = _programmed(conditions, [(delivery, generation)], pool.generation)
    if unstored and (programmed.status == "True" or generation == 0):
        words = f"Pods that start now would get an older configuration or none: {unstored}"
        programmed = Condition(PROGRAMMED, "False", "NotStored", words, pool.generation)
    overloaded = _overloaded(compiled, verdict, pool.generation)
    status: dict[str, Any] = {
        "observedGeneration": pool.generation,
        "generation": generation,
        "programmed": f"{delivery.programmed(generation)}/{delivery.total}",
        "pods": {
            "total": delivery.total,
            "programmed": delivery.programmed(generation),
            "behind": [_behind(ack) for ack in delivery.behind(generation)[:NAMED_PODS]],
        },
        "conditions": _merged([*conditions, programmed], [overloaded], previous, now),
    }
    if compiled.spec is not None:
        status["policy"] = compiled.spec.scheduler.policy
    if verdict is not None:
        status["overload"] = _overload(verdict)
    return status


def _member_status(
    resource: Resource,
    conditions: Sequence[Condition],
    deliveries: Sequence[tuple[Delivery, int]],
    previous: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    programmed = _programmed(conditions, deliveries, resource.generation)
    done = sum(delivery.programmed(generation) for delivery, generation in deliveries)
    total = sum(delivery.total for delivery, _ in deliveries)
    return {
        "observedGeneration": resource.generation,
        "programmed": f"{done}/{total}",
        "conditions": _merged([*conditions, programmed], [], previous, now),
    }


def _merged(
    steps: Sequence[Condition],
    others: Sequence[Condition],
    previous: Mapping[str, Any] | None,
    now: str,
) -> list[dict[str, Any]]:
    old = (previous or {}).get("conditions") or ()
    return merge(old, [*steps, _ready(steps), *others], now)


def _ready(steps: Sequence[Condition]) -> Condition:
    """Ready says what the first step that is not true says."""
    generation = steps[0].observed_generation
    for step in steps:
        if step.type in (ACCEPTED, RESOLVED_REFS, PROGRAMMED) and step.status != "True":
            return Condition(READY, "False", step.reason, step.message, generation)
    return Condition(READY, "True", "Ready", "in force on every pod", generation)


def _programmed(
    conditions: Sequence[Condition], deliveries: Sequence[tuple[Delivery, int]], observed: int
) -> Condition:
    def told(status: bool, reason: str, message: str) -> Condition:
        return Condition(PROGRAMMED, "True" if status else "False", reason, message, observed)

    if any(c.type == ACCEPTED and c.status != "True" for c in conditions):
        return told(False, "NotAccepted", "not in force until accepted")
    total = sum(delivery.total for delivery, _ in deliveries)
    if total == 0:
        return told(False, "NoPods", _no_pods([delivery.pool for delivery, _ in deliveries]))
    done = sum(delivery.programmed(generation) for delivery, generation in deliveries)
    if done == total:
        return told(True, "Acknowledged", f"{done}/{total} pods run this generation")
    delivery, generation = min(
        ((d, g) for d, g in deliveries if d.behind(g)), key=lambda dg: _known(dg[0].pods[0]) - dg[1]
    )
    worst = delivery.pods[0]
    what = _lag(worst, generation)
    message = (
        f'{done}/{total} pods run this generation; pod "{worst.pod}" of ServingPool "{delivery.pool}" {what}'
    )
    return told(False, "PodFailing" if worst.error else "Pending", message)


def _no_pods(pools: Sequence[str]) -> str:
    if not pools:
        return "the namespace has no ServingPool that is accepted"
    return "no pods in " + ", ".join(f'ServingPool "{pool}"' for pool in sorted(pools))


def _lag(ack: PodAck, generation: int) -> str:
    has = "has no configuration yet" if ack.generation is None else f"runs configuration {ack.generation}"
    return f"{has}, not {generation}" + (f": {ack.error}" if ack.error else "")


def _known(ack: PodAck) -> int:
    return -1 if ack.generation is None else ack.generation


def _behind(ack: PodAck) -> dict[str, Any]:
    entry: dict[str, Any] = {"pod": ack.pod}
    if ack.generation is not None:
        entry["generation"] = ack.generation
    if ack.error:
        entry["error"] = ack.error
    if ack.last_ack_time is not None:
        entry["lastAckTime"] = ack.last_ack_time
    return entry


def _contested(conditions: Sequence[Condition], overlap: Overlap, observed: int) -> tuple[Condition, ...]:
    """The conditions of a pool that shares pods: Conflicted, and ResolvedRefs=False where it lacks some."""
    told = {condition.type: condition for condition in conditions}
    if messages := (*overlap.losses, *overlap.gains):
        known = told.get(CONFLICTED)
        text = joined([known.message, *messages] if known else messages)
        told[CONFLICTED] = Condition(CONFLICTED, "True", _SHARED, text, observed)
    resolved = told[RESOLVED_REFS]
    if overlap.losses and resolved.status == "True":
        told[RESOLVED_REFS] = Condition(RESOLVED_REFS, "False", _SHARED, joined(overlap.losses), observed)
    return tuple(told.values())


def _overloaded(compiled: Compiled, verdict: Verdict | None, observed: int) -> Condition:
    if verdict is not None:
        state = "overloaded" if verdict.armed else "not overloaded"
        message = f"{state} since {rfc3339(verdict.since)}: {verdict.message}"
        return Condition(OVERLOADED, "True" if verdict.armed else "False", verdict.reason, message, observed)
    if compiled.overload is not None and compiled.overload.prometheus_url is None:
        message = "spec.overload.prometheus: unset, so that no signal is evaluated"
        return Condition(OVERLOADED, "Unknown", "NoPrometheus", message, observed)
    return Condition(OVERLOADED, "Unknown", "NotEvaluated", "no signal has been evaluated yet", observed)


def _overload(verdict: Verdict) -> dict[str, Any]:
    overload: dict[str, Any] = {"since": rfc3339(verdict.since)}
    if verdict.signal:
        overload["signal"] = verdict.signal
    if verdict.value is not None:
        overload["value"] = verdict.value
    return overload
