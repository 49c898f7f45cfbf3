"""Pods that several pools select, against an oracle that looks at one pod at a time."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from fairserve_operator.api.v1alpha1 import ServingPoolSpec
from fairserve_operator.decide.resources import ObjectKey
from fairserve_operator.decide.selectors import ALONE, Claim, Overlap, claims, overlaps
from fairserve_operator.decide.specs import oldest_first, parse
from tests.unit.operator.builders import NAMESPACE, pool

LABELS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("01"), min_size=1, max_size=3)
pools = st.lists(st.tuples(st.sampled_from("12"), LABELS), min_size=1, max_size=5)
pods = st.lists(LABELS, max_size=8).map(lambda found: [(f"pod-{i}", each) for i, each in enumerate(found)])
Labels = dict[str, str]


def claimed(made: list[tuple[str, Labels]], seed: int = 0) -> tuple[Claim, ...]:
    """What the pools claim, listed in an order that must not matter."""
    resources = [
        pool(f"p{i}", created=created, selector={"matchLabels": labels})
        for i, (created, labels) in enumerate(made)
    ]
    random.Random(seed).shuffle(resources)
    return claims([parse(r, ServingPoolSpec) for r in oldest_first(resources, NAMESPACE)], {}, {})


def selecting(order: tuple[Claim, ...], labels: Labels) -> list[ObjectKey]:
    return [c.pool for c in order if all(labels.get(key) == value for key, value in c.labels.items())]


@given(pools, pods, st.integers(0, 1000))
def test_permutations_change_nothing(
    made: list[tuple[str, Labels]], found: list[tuple[str, Labels]], seed: int
) -> None:
    shuffled = random.Random(seed).sample(found, len(found))
    assert overlaps(claimed(made), lambda: found) == overlaps(claimed(made, seed), lambda: shuffled)


@given(pools, pods)
@example([("1", {"x": "0"}), ("2", {"y": "0"})], [("pod-0", {"x": "0", "y": "0"})])
def test_each_pod_has_one_owner_and_it_is_the_first_who_selects_it(
    made: list[tuple[str, Labels]], found: list[tuple[str, Labels]]
) -> None:
    order = claimed(made)
    result = overlaps(order, lambda: found)
    for name, labels in found:
        who = selecting(order, labels)
        assert [key for key in who if name not in result.get(key, ALONE).lost] == who[:1]
    assert all(names <= {name for name, _ in found} for names in (each.lost for each in result.values()))


@given(pools, pods)
@example([("1", {"x": "0"}), ("2", {"y": "0"})], [("pod-0", {"x": "0", "y": "0"})])
def test_both_are_told_of_the_other_and_of_a_pod(
    made: list[tuple[str, Labels]], found: list[tuple[str, Labels]]
) -> None:
    order = claimed(made)
    result = overlaps(order, lambda: found)
    meetings: dict[tuple[ObjectKey, ObjectKey], set[str]] = {}
    for name, labels in found:
        for loser in selecting(order, labels)[1:]:
            meetings.setdefault((selecting(order, labels)[0], loser), set()).add(name)
    for (winner, loser), names in meetings.items():
        words = f'both select pod "{min(names)}"; {winner} has it'
        assert f"spec.selector.matchLabels: {loser} and {winner} {words}" in result[loser].losses
        assert f"spec.selector.matchLabels: {winner} and {loser} {words}" in result[winner].gains
    told = {key for pair in meetings for key in pair}
    assert result.keys() == told
    assert sum(len(each.losses) for each in result.values()) == len(meetings)


def test_the_older_wins_and_of_one_age_the_first_by_name() -> None:
    both = {"x": "0", "y": "0"}
    for ages, winner in ((("1", "2"), "p0"), (("2", "1"), "p1"), (("1", "1"), "p0")):
        order = claimed([(ages[0], {"x": "0"}), (ages[1], {"y": "0"})])
        result = overlaps(order, lambda: [("pod", both)])
        assert [key.name for key, each in result.items() if not each.lost] == [winner]


def test_pools_that_can_never_meet_cost_no_look_at_pods() -> None:
    made = [("1", {"app": name}) for name in "abc"]
    assert overlaps(claimed(made), lambda: 1 / 0) == {}  # type: ignore[arg-type, return-value]


def test_a_pool_that_is_refused_stands_in_nobodys_way_with_the_pods_that_it_still_has() -> None:
    first, refused, young = (
        pool("a", created="1", selector={"matchLabels": {"x": "0"}}),
        pool("b", created="2", selector={"matchLabels": {"x": "0", "y": "0"}}),
        pool("c", created="3", selector={"matchLabels": {"y": "0"}}),
    )
    parsed = [parse(each, ServingPoolSpec) for each in (first, refused, young)]
    order = claims(parsed, {}, {})
    assert [claim.pool.name for claim in order] == ["a", "c", "b"]
    result = overlaps(order, lambda: [("pod", {"y": "0", "x": "0"})])
    assert result[refused.key].lost == result[young.key].lost == {"pod"}
    assert isinstance(result[first.key], Overlap)
    assert not result[first.key].lost
