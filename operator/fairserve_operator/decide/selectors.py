"""Which pool has which pods, where two pools claim the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.resources import ObjectKey
from fairserve_operator.decide.specs import Parsed


@dataclass(frozen=True, slots=True)
class SelectorConflicts:
    """The pools that lose, each with why, and what all pools in a conflict are told."""

    lost: dict[ObjectKey, str] = field(default_factory=dict)
    messages: dict[ObjectKey, list[str]] = field(default_factory=dict)


def selector_conflicts(pools: Iterable[Parsed[ServingPoolSpec]]) -> SelectorConflicts:
    """Judge pools given oldest first.

    Two selectors conflict where the labels of one include those of the other: then every pod of the narrower
    pool is a pod of the wider one too. A pool that has lost does not stand in the way of younger ones.
    """
    conflicts = SelectorConflicts()
    winners: list[tuple[ObjectKey, ServingPoolSpec]] = []
    for pool in pools:
        if pool.spec is None:
            continue
        key, labels = pool.resource.key, pool.spec.selector.match_labels.items()
        rivals = [k for k, spec in winners if _nested(labels, spec.selector.match_labels.items())]
        if not rivals:
            winners.append((key, pool.spec))
            continue
        conflicts.lost[key] = _message(key, rivals[0], rivals[0])
        for rival in rivals:
            conflicts.messages.setdefault(key, []).append(_message(key, rival, rival))
            conflicts.messages.setdefault(rival, []).append(_message(rival, key, rival))
    return conflicts


def _nested(one: Iterable[tuple[str, str]], other: Iterable[tuple[str, str]]) -> bool:
    mine, theirs = set(one), set(other)
    return mine <= theirs or theirs <= mine


def _message(mine: ObjectKey, other: ObjectKey, winner: ObjectKey) -> str:
    return f"spec.selector.matchLabels: {mine} and {other} select the same pods; {winner} has them"
