"""The paper's workload has the published aggregates."""

from __future__ import annotations

from collections import Counter

import pytest

from fairserve.sim import paper


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_aggregates(seed):
    workload = paper.draw(seed)
    by_user: Counter[str] = Counter()
    for plan in workload.plans:
        by_user[plan.client.user] += len(plan.calls)
    counts = sorted(by_user.values())
    assert (len(counts), sum(counts), counts[-1]) == (1_358, 9_241, 2_092)
    assert counts[len(counts) // 2] == 4
    assert counts[int(0.99 * len(counts))] == pytest.approx(29, abs=1)
    assert sum(counts[-14:]) / sum(counts) == pytest.approx(0.35, abs=0.005)
    assert len({call.application for plan in workload.plans for call in plan.calls}) == 23
    assert all(0.0 <= plan.start_s <= 71.0 for plan in workload.plans)
    assert all(1.0 <= gap <= 6.0 for plan in workload.plans for gap in plan.gaps_s)


def test_lengths_have_the_published_means():
    calls = [call for plan in paper.draw(1).plans for call in plan.calls]
    assert sum(c.input_tokens for c in calls) / len(calls) == pytest.approx(paper.INPUT.mean, rel=0.1)
    assert sum(c.output_tokens for c in calls) / len(calls) == pytest.approx(paper.OUTPUT.mean, rel=0.15)


def test_some_applications_are_one_users():
    users: dict[str, set[str]] = {}
    for plan in paper.draw(1).plans:
        users.setdefault(plan.calls[0].application, set()).add(plan.client.user)
    assert sum(len(names) == 1 for names in users.values()) >= 3
