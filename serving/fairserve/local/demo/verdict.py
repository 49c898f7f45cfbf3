"""Judges what the demo measured: every claim with what was expected, what came, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from fairserve.local.demo.story import FLOODER, QUIET, TEAM_A, TEAM_B, Outcome, Round

#: How far the ratio of shares may be from the ratio of weights.
SHARE_TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the summary. `holds` is None where there is nothing to judge."""

    what: str
    expected: str
    fair: str
    fcfs: str = ""
    holds: bool | None = None


def judge(outcome: Outcome) -> tuple[Claim, ...]:
    """Every claim of the demo, in the order of the story."""
    return (*_shares(outcome), *_delays(outcome), *_throttling(outcome))


def show(claims: Sequence[Claim], console: Console) -> None:
    """Print the summary."""
    table = Table(
        "What",
        "Expected",
        "fairserve",
        "FCFS",
        "",
        title="Summary; refused, cut: interactions",
        title_justify="left",
    )
    marks = {True: "[green]ok", False: "[bold red]FAILED", None: ""}
    for claim in claims:
        table.add_row(claim.what, claim.expected, claim.fair, claim.fcfs, marks[claim.holds])
    console.print(table)


def _shares(outcome: Outcome) -> list[Claim]:
    wanted = outcome.weights[TEAM_A] / outcome.weights[TEAM_B]
    fair, fcfs = _ratio(outcome.fair), _ratio(outcome.fcfs)
    fewest = outcome.fair.fewest_waiting
    return [
        Claim(
            "Fewest waiting, A / B",
            "both > 0",
            f"{fewest[TEAM_A]} / {fewest[TEAM_B]}",
            f"{outcome.fcfs.fewest_waiting[TEAM_A]} / {outcome.fcfs.fewest_waiting[TEAM_B]}",
            min(fewest.values()) > 0,
        ),
        Claim(
            "Service, A : B",
            f"{wanted:.2f} ± {SHARE_TOLERANCE:.0%}",
            _shown_ratio(fair),
            _shown_ratio(fcfs),
            _is_near(fair, wanted),
        ),
        Claim(
            "  without fairserve",
            f"not {wanted:.2f} ± {SHARE_TOLERANCE:.0%}",
            "",
            _shown_ratio(fcfs),
            fcfs is not None and not _is_near(fcfs, wanted),
        ),
    ]


def _delays(outcome: Outcome) -> list[Claim]:
    claims = [Claim("First token, p50 / p99", "", "", "")]
    for name in (*QUIET, FLOODER):
        fair, fcfs = outcome.fair.classes[name], outcome.fcfs.classes[name]
        ours, theirs = fair.percentile_s(0.5), fcfs.percentile_s(0.5)
        holds = None if name == FLOODER else ours is not None and theirs is not None and ours < theirs
        claims.append(
            Claim(
                f"  {name}",
                "" if name == FLOODER else "p50 < FCFS",
                _shown_delay(ours, fair.percentile_s(0.99)),
                _shown_delay(theirs, fcfs.percentile_s(0.99)),
                holds,
            )
        )
    return claims


def _throttling(outcome: Outcome) -> list[Claim]:
    fair, fcfs = outcome.fair, outcome.fcfs
    refused = {name: summary.refused for name, summary in fair.classes.items()}
    others = sum(count for name, count in refused.items() if name != FLOODER)
    off = outcome.disarmed_after_s
    return [
        Claim("Throttled in the flood", "yes", _yes(holds=fair.was_armed), "", fair.was_armed),
        Claim(
            "Refused, the flooder",
            "> 0",
            str(refused[FLOODER]),
            str(fcfs.classes[FLOODER].refused),
            refused[FLOODER] > 0,
        ),
        Claim("Refused, all others", "0", str(others), str(_refused_others(fcfs)), others == 0),
        Claim("Interactions cut", "0", str(_cut(fair)), str(_cut(fcfs)), _cut(fair) == 0),
        Claim(
            "Agents' interactions",
            "> 0",
            str(fair.classes[QUIET[2]].interactions),
            str(fcfs.classes[QUIET[2]].interactions),
            fair.classes[QUIET[2]].interactions > 0,
        ),
        Claim("Tokens wasted", "0", f"{_wasted(fair):g}", f"{_wasted(fcfs):g}", _wasted(fair) == 0),
        Claim("Calls that failed", "0", str(_failed(fair)), str(_failed(fcfs)), _failed(fair) == 0),
        Claim(
            "Throttling off again",
            "yes",
            "no" if off is None else f"{off:.0f} s later",
            "",
            off is not None,
        ),
    ]


def _ratio(measured: Round) -> float | None:
    """Team A's service by team B's."""
    below = measured.shares.get(TEAM_B, 0.0)
    return measured.shares.get(TEAM_A, 0.0) / below if below else None


def _is_near(ratio: float | None, wanted: float) -> bool:
    return ratio is not None and abs(ratio / wanted - 1) <= SHARE_TOLERANCE


def _refused_others(measured: Round) -> int:
    return sum(summary.refused for name, summary in measured.classes.items() if name != FLOODER)


def _cut(measured: Round) -> int:
    return sum(summary.cut for summary in measured.classes.values())


def _wasted(measured: Round) -> float:
    """The larger of what the clients lost and what the sidecar says was lost."""
    return max(measured.wasted_tokens, sum(summary.wasted_tokens for summary in measured.classes.values()))


def _failed(measured: Round) -> int:
    return sum(summary.failed_calls for summary in measured.classes.values())


def _shown_ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"


def _shown_delay(middle: float | None, high: float | None) -> str:
    return "–" if middle is None or high is None else f"{middle:.1f} / {high:.1f} s"


def _yes(*, holds: bool) -> str:
    return "yes" if holds else "no"
