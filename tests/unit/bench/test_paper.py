"""What `make paper` judges and what it only shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.paper import _Compared, armed_outside
from bench.paper_report import Report, figure_of
from bench.results import at_least
from fairserve.sim.experiment import experiment
from fairserve.sim.recording import Transition
from tests.unit.sim.worlds import scenario, users


@pytest.mark.parametrize(("waiting", "met"), [(0.4, None), (1.0, True), (250.0, True)])
def test_a_ratio_without_a_backlog_is_shown_and_not_judged(tmp_path: Path, waiting: float, met: bool | None):
    report = Report((1,), tmp_path)
    one = _Compared(figure_of([100.0]), figure_of([waiting]), figure_of([50.0]), "user limit 10")
    one.record(report, "x", "times fewer", "RPM", at_least(93))
    (made,) = report.figures
    assert (made.value, made.met) == (100.0, met)
    assert ("no backlog" in made.unit) is (met is None)
    assert "RPM 50" in made.unit, "both queues are named"


def test_arming_counts_where_no_overload_lasts():
    at = [Transition(20.0, True, ""), Transition(25.0, False, ""), Transition(74.0, True, "")]
    assert armed_outside(at, (60.0, 120.0)) == 1, "the spike at 20 s"
    assert armed_outside([Transition(126.0, True, "")], (60.0, 120.0)) == 0


def test_transitions_are_those_of_every_seed():
    runs = experiment(scenario(users("a", 1, 1.0)), ["FCFS"], (1, 2, 3))
    assert len(runs.transitions["FCFS"]) == 3
