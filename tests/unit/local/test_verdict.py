"""The demo's judge: a claim that does not hold is found, one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairserve.local.demo.observation import observe, shares
from fairserve.local.demo.story import FLOODER, QUIET, TEAM_A, TEAM_B, Outcome, Round
from fairserve.local.demo.verdict import judge
from fairserve.local.load import Summary

CALM = Summary(
    interactions=10, refused=0, cut=0, wasted_tokens=0, tokens=100, failed_calls=0, first_token_s=(0.2, 0.4)
)
SLOW = replace(CALM, first_token_s=(5.0, 8.0))


def a_round(policy: str, ratio: float, quiet: Summary, refused: int) -> Round:
    return Round(
        policy=policy,
        shares={TEAM_A: ratio / (1 + ratio), TEAM_B: 1 / (1 + ratio)},
        fewest_waiting={TEAM_A: 3, TEAM_B: 4},
        classes=dict.fromkeys(QUIET, quiet) | {FLOODER: replace(SLOW, refused=refused)},
        was_armed=True,
        wasted_tokens=0.0,
        flood_ended_s=0.0,
    )


GOOD = Outcome(
    {TEAM_A: 3.0, TEAM_B: 1.0}, a_round("FairServe", 3.1, CALM, 9), a_round("FCFS", 1.0, SLOW, 0), 4.0
)


def failed(outcome: Outcome) -> list[str]:
    return [claim.what.strip() for claim in judge(outcome) if claim.holds is False]


def fair(**changes: object) -> Outcome:
    return replace(GOOD, fair=replace(GOOD.fair, **changes))


def quiet(name: str, **changes: object) -> Outcome:
    return fair(classes=dict(GOOD.fair.classes) | {name: replace(CALM, **changes)})


def test_a_good_run_holds():
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("outcome", "claim"),
    [
        (fair(shares={TEAM_A: 0.7, TEAM_B: 0.3}), "Service, A : B"),
        (fair(shares={}), "Service, A : B"),
        (fair(fewest_waiting={TEAM_A: 0, TEAM_B: 4}), "Fewest waiting, A / B"),
        (replace(GOOD, fcfs=a_round("FCFS", 3.0, SLOW, 0)), "without fairserve"),
        (replace(GOOD, fcfs=replace(GOOD.fcfs, shares={})), "without fairserve"),
        (quiet(QUIET[0], first_token_s=(6.0, 6.0)), QUIET[0]),
        (quiet(QUIET[1], first_token_s=()), QUIET[1]),
        (fair(was_armed=False), "Throttled in the flood"),
        (fair(classes=dict.fromkeys((*QUIET, FLOODER), CALM)), "Refused, the flooder"),
        (quiet(QUIET[0], refused=1), "Refused, all others"),
        (quiet(QUIET[2], cut=1), "Interactions cut"),
        (quiet(QUIET[2], interactions=0), "Agents' interactions"),
        (quiet(QUIET[2], wasted_tokens=5), "Tokens wasted"),
        (fair(wasted_tokens=2.0), "Tokens wasted"),
        (quiet(QUIET[0], failed_calls=1), "Calls that failed"),
        (replace(GOOD, disarmed_after_s=None), "Throttling off again"),
    ],
)
def test_each_claim_can_fail(outcome, claim):
    assert failed(outcome) == [claim]


def state(service: float) -> dict[str, object]:
    tenant = {"name": "t", "weight": 2.0, "service": service, "queued": 3, "running": 1, "refused": 5}
    return {
        "policy": "FairServe",
        "generation": 2,
        "overload": {"armed": True},
        "oldest_wait_s": 1.5,
        "tenants": [tenant],
    }


def test_observations_come_from_state_and_metrics():
    metrics = (
        'fairserve_tokens_total{tenant="t",application="a",kind="input"} 10\n'
        'fairserve_tokens_total{tenant="t",application="b",kind="output"} 5\n'
        'fairserve_wasted_tokens_total{tenant="t"} 7\n'
    )
    begin, end = observe(state(1.0), "", 0.0), observe(state(3.0), metrics, 1.0)
    assert end.tenants["t"].tokens == 15
    assert end.wasted_tokens == 7
    assert shares(begin, end, ["t", "absent"]) == {"t": 1.0, "absent": 0.0}
    assert shares(begin, begin, ["t"]) == {}
