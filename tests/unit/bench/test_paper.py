"""What `make paper` judges and what it only shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.paper import _Compared
from bench.paper_report import Report, figure_of
from bench.results import at_least


@pytest.mark.parametrize(("waiting", "met"), [(0.4, None), (1.0, True), (250.0, True)])
def test_a_ratio_without_a_backlog_is_shown_and_not_judged(tmp_path: Path, waiting: float, met: bool | None):
    report = Report((1,), tmp_path)
    one = _Compared(figure_of([100.0]), figure_of([waiting]), figure_of([50.0]), "user limit 10")
    one.record(report, "x", "times fewer", "RPM", at_least(93))
    (made,) = report.figures
    assert (made.value, made.met) == (100.0, met)
    assert ("no backlog" in made.unit) is (met is None)
    assert "RPM 50" in made.unit, "both queues are named"
