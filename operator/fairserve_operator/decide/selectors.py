"""Which pool has which pods, where two pools claim the same ones.

Where the labels of one pool include those of another, every pod of the narrower is one of the wider too: the
younger pool is refused. Any other two may still meet in a pod that carries the labels of both: it is the
older pool's, and the younger goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.inference_pools import InferencePools, Selection, select
from fairserve_operator.decide.resources import ObjectKey, Parsed

#: A pod's name and labels.
Labelled = tuple[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class SelectorConflicts:
    """The pools that lose, each with why, and what all pools in a conflict are told."""

    lost: dict[ObjectKey, str] = field(default_factory=dict)
    messages: dict[ObjectKey, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """What one pool selects, and by which field."""

    pool: ObjectKey
    path: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Overlap:
    """What one pool is told of pods that another selects as well."""

    lost: frozenset[str] = frozenset()  #: names of pods that an older pool has
    losses: tuple[str, ...] = ()  #: about those
    gains: tuple[str, ...] = ()  #: about pods that it keeps


#: Of a pool whose pods nobody else selects.
ALONE = Overlap()


def selector_conflicts(
    pools: Iterable[Parsed[ServingPoolSpec]], inference_pools: InferencePools
) -> SelectorConflicts:
    """Judge pools by their labels alone, given oldest first.

    A pool that has lost does not stand in the way of younger ones; nor does one whose labels are not known.
    """
    conflicts = SelectorConflicts()
    winners: list[Claim] = []
    for pool in pools:
        claim = _claim(pool, inference_pools)
        if claim is None:
            continue
        rivals = [each for each in winners if _nested(claim.labels, each.labels)]
        if not rivals:
            winners.append(claim)
            continue
        conflicts.lost[claim.pool] = _message(claim, rivals[0], rivals[0])
        for rival in rivals:
            conflicts.messages.setdefault(claim.pool, []).append(_message(claim, rival, rival))
            conflicts.messages.setdefault(rival.pool, []).append(_message(rival, claim, rival))
    return conflicts


def claims(
    pools: Sequence[Parsed[ServingPoolSpec]],
    inference_pools: InferencePools,
    in_force: Mapping[ObjectKey, Selection],
) -> tuple[Claim, ...]:
    """What each pool selects, in the order in which they win, out of pools given oldest first.

    `in_force` has what a pool goes on with where its spec can't tell, or is refused for its labels. Those
    that are refused come last: they may still have pods, but stand in nobody's way.
    """
    lost = selector_conflicts(pools, inference_pools).lost
    found: list[Claim] = []
    for pool in sorted(pools, key=lambda each: each.resource.key in lost):
        key = pool.resource.key
        claim, before = _claim(pool, inference_pools), in_force.get(key)
        if before is not None and before.labels is not None and (claim is None or key in lost):
            claim = Claim(key, before.path, before.labels)
        if claim is not None:
            found.append(claim)
    return tuple(found)


def overlaps(claims: Sequence[Claim], pods: Callable[[], Iterable[Labelled]]) -> dict[ObjectKey, Overlap]:
    """Who has the pods that several claims select: the first claim. Only those pools are in the result.

    `pods` is asked only where labels allow that two claims meet. Of the pods that two pools share the first
    by name is named.
    """
    if not any(_may_meet(one, other) for i, one in enumerate(claims) for other in claims[:i]):
        return {}
    shared: dict[tuple[int, int], list[str]] = {}  # winner and loser
    for name, labels in pods():
        claimants = [i for i, claim in enumerate(claims) if claim.labels.items() <= labels.items()]
        for loser in claimants[1:]:
            shared.setdefault((claimants[0], loser), []).append(name)
    found: dict[ObjectKey, Overlap] = {}
    for (winner, loser), names in sorted(shared.items()):
        has, lacks, pod = claims[winner], claims[loser], min(names)
        before = found.get(lacks.pool, ALONE)
        found[lacks.pool] = Overlap(
            before.lost | set(names), (*before.losses, _sharing(lacks, has, pod, has)), before.gains
        )
        before = found.get(has.pool, ALONE)
        found[has.pool] = Overlap(before.lost, before.losses, (*before.gains, _sharing(has, lacks, pod, has)))
    return found


def _claim(pool: Parsed[ServingPoolSpec], inference_pools: InferencePools) -> Claim | None:
    if pool.spec is None:
        return None
    selection = select(pool.resource.key, pool.spec, inference_pools)
    if selection.labels is None:
        return None
    return Claim(pool.resource.key, selection.path, selection.labels)


def _nested(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return one.items() <= other.items() or other.items() <= one.items()


def _may_meet(one: Claim, other: Claim) -> bool:
    return all(other.labels.get(name, value) == value for name, value in one.labels.items())


def _message(mine: Claim, other: Claim, winner: Claim) -> str:
    return f"{mine.path}: {mine.pool} and {other.pool} select the same pods; {winner.pool} has them"


def _sharing(mine: Claim, other: Claim, pod: str, winner: Claim) -> str:
    return f'{mine.path}: {mine.pool} and {other.pool} both select pod "{pod}"; {winner.pool} has it'
