"""From the objects of one namespace to the configuration of one pool, and to what each object is told.

Pure, total and canonical: any permutation of the inputs gives equal bytes, and an object that is broken
changes nothing but its own conditions. Conflicts are won by the oldest object, then by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairserve.config import SchedulerConfig
from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.conditions import Condition
from fairserve_operator.decide.resources import ObjectKey, Resource, SecretProblem, SecretRef
from fairserve_operator.decide.signals import OverloadPlan


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of one pool.

    `config` has generation 0 (see `generations.next_generation`) and is None where the pool is refused;
    `spec` and `overload` are None then as well. `conditions` holds Accepted, ResolvedRefs and, where two
    objects claim the same, Conflicted, for every object that took part; `observed` the metadata.generation
    they were made from. `parts` identifies what each object that is in the configuration contributed.
    """

    config: SchedulerConfig | None
    spec: ServingPoolSpec | None
    overload: OverloadPlan | None
    conditions: Mapping[ObjectKey, tuple[Condition, ...]]
    observed: Mapping[ObjectKey, int]
    parts: Mapping[ObjectKey, str]


def secret_refs(tenants: Iterable[Resource]) -> frozenset[SecretRef]:
    """The Secret entries that well-formed Tenants name: what `compile_pool` wants digests of."""
    raise NotImplementedError


def compile_pool(
    pool: Resource,
    pools: Iterable[Resource],
    tenants: Iterable[Resource],
    applications: Iterable[Resource],
    digests: Mapping[SecretRef, str | SecretProblem],
    salt: str,
) -> Compiled:
    """Compile one pool. Objects of other namespaces are not looked at.

    `pools` are the namespace's pools (this one among them or not). `digests` maps each of `secret_refs` to
    `fairserve.config.key_digest(salt, key)` or to why there is none; a ref that is absent is a missing Secret.
    """
    raise NotImplementedError


def examine(
    tenants: Iterable[Resource],
    applications: Iterable[Resource],
    digests: Mapping[SecretRef, str | SecretProblem],
) -> Mapping[ObjectKey, tuple[Condition, ...]]:
    """The same conditions in a namespace that has no pool. The digests may be under any one salt."""
    raise NotImplementedError
