"""What the page of `make paper` claims, and what it leaves open."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.paper_report import Report, above
from bench.results import at_least, at_most


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report((1, 2), tmp_path)


def test_a_gap_without_pairs_is_not_measured(report):
    report.worst_gap("gap", [math.nan, math.nan], 0.0, at_most(1))
    (gap,) = report.figures
    assert (gap.value, gap.goal, gap.met) == (None, "<= 1", None)
    assert "not measured" in gap.unit


def test_the_worst_gap_is_judged_and_says_how_many_pairs_it_is_of(report):
    report.worst_gap("gap", [math.nan, 0.5, 1.5], 1200.0, at_most(1))
    (gap,) = report.figures
    assert (gap.value, gap.met) == (1.5, False)
    assert "1,200 pairs" in gap.unit


def test_a_figure_that_is_not_judged_is_still_shown(report):
    report.figure("ratio", [200.0], "times", at_least(93), judged=False)
    (ratio,) = report.figures
    assert (ratio.value, ratio.goal, ratio.met) == (200.0, ">= 93", None)


def test_a_control_has_to_exceed():
    assert not above(1).holds(1.0)
    assert above(1).holds(1.01)
