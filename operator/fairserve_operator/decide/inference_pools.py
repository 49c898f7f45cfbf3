"""Which Pods a ServingPool means: by labels of its own, or by those of an InferencePool that it names.

InferencePools are the Gateway API inference extension's, so that nothing is believed of how they look. One
that can't be seen takes no Pods from anybody: the ServingPool goes on with those that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.claims import Problem
from fairserve_operator.decide.resources import ObjectKey

KIND: Final = "InferencePool"
GROUP_VERSION: Final = "inference.networking.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class InferencePool:
    """As much of an InferencePool as is of use here."""

    labels: Mapping[str, str]  #: empty where it has none that could select
    ports: frozenset[int]  #: where gateways send calls


@dataclass(frozen=True, slots=True)
class Unseen:
    """Why nothing is known of a namespace's InferencePools."""

    reason: str
    message: str


#: Those of one namespace, by name.
InferencePools: TypeAlias = Mapping[str, InferencePool] | Unseen

PENDING: Final = Unseen("Pending", "has not been looked for yet")
NOT_INSTALLED: Final = Unseen(
    "InferencePoolNotInstalled", f"can't be there: the API server knows no {KIND} of {GROUP_VERSION}"
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which Pods a ServingPool means. `labels` is None where that can't be told; `problem` says why then."""

    path: str  #: the field that decides
    labels: Mapping[str, str] | None
    problem: Problem | None = None
    note: Problem | None = None  #: what should be known although it is resolved

    @property
    def pending(self) -> bool:
        """Whether it will be known in a moment."""
        return self.problem is not None and self.problem.reason == PENDING.reason


def read_inference_pool(spec: object) -> InferencePool:
    """An InferencePool out of its raw spec."""
    labels = _below(spec, "selector", "matchLabels")
    ports = _below(spec, "targetPorts")
    usable = isinstance(labels, Mapping) and all(
        isinstance(each, str) for pair in labels.items() for each in pair
    )
    return InferencePool(
        labels=dict(labels) if usable else {},
        ports=frozenset(
            number for port in (ports if isinstance(ports, list) else ()) if (number := _number(port))
        ),
    )


def select(key: ObjectKey, spec: ServingPoolSpec, known: InferencePools) -> Selection:
    """Tell which Pods a well-formed ServingPool means. `known` are the InferencePools of its namespace."""
    if spec.selector is not None:
        return Selection("spec.selector.matchLabels", spec.selector.match_labels)
    if spec.pool_ref is None:
        raise AssertionError("a well-formed ServingPool selects in one way")
    path, name = "spec.poolRef", spec.pool_ref.name
    both = f'{path}: {key} names {KIND} "{name}", which'
    if isinstance(known, Unseen):
        return Selection(path, None, Problem(known.reason, f"{both} {known.message}"))
    found = known.get(name)
    if found is None:
        return Selection(path, None, Problem("InferencePoolMissing", f"{both} is not found"))
    if not found.labels:
        return Selection(path, None, Problem("InferencePoolUnusable", f"{both} selects by no labels"))
    return Selection(path, found.labels, note=_unreached(both, found.ports, spec.sidecar.port))


def _unreached(both: str, ports: frozenset[int], port: int) -> Problem | None:
    if ports == {port}:
        return None
    told = ", ".join(map(str, sorted(ports))) or "no port"
    words = f"{both} has {told} in targetPorts, while spec.sidecar.port is {port}: other calls pass it by"
    return Problem("OtherPortsTargeted", words)


def _below(value: object, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(port: object) -> int | None:
    number = _below(port, "number")
    return number if isinstance(number, int) else None
