"""The whole `.status` of each kind, for a server-side apply.

`Programmed` is the sidecars' own word: the configuration generation that each pod acknowledged against
the one into which this object was compiled. "The Secret was written" proves nothing and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairserve.overload.settings import Verdict
from fairserve_operator.decide.compilation import Compiled
from fairserve_operator.decide.conditions import Condition
from fairserve_operator.decide.resources import Resource


@dataclass(frozen=True, slots=True)
class PodAck:
    """What is known of one pod's sidecar."""

    pod: str
    generation: int | None  #: the configuration generation it acknowledged; None: never heard of it
    error: str = ""  #: why the last attempt failed; empty if it did not
    last_ack_time: str | None = None  #: RFC 3339


class Delivery:
    """How far the configurations of one pool have come. Build it once per pool and share it between objects."""

    def __init__(self, pool: str, pods: Iterable[PodAck]) -> None:
        raise NotImplementedError


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
    raise NotImplementedError


def application_status(
    application: Resource,
    conditions: Sequence[Condition],
    deliveries: Sequence[tuple[Delivery, int]],
    previous: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    """Status of an Application; arguments as of `tenant_status`."""
    raise NotImplementedError


def pool_status(
    pool: Resource,
    compiled: Compiled,
    generation: int,
    delivery: Delivery,
    verdict: Verdict | None,
    previous: Mapping[str, Any] | None,
    now: str,
) -> dict[str, Any]:
    """Status of a ServingPool.

    `generation` is the configuration's (the last good one's where the pool is refused). `verdict` is the last
    one of its OverloadMachine, whose clock must be Unix time (`since` becomes a timestamp); None before the first.
    """
    raise NotImplementedError
