"""Every value of the chart, and what it does."""

from __future__ import annotations

from typing import Any

import pytest

from charts.generate import CHART as CHART_PATH
from charts.generate import ROOT, files, values
from tests.parts.helm import Helm
from tests.unit.chart.cases import CASES, WITH_FILES, Case
from tests.unit.chart.rendering import Rendered, render


@pytest.fixture(scope="module")
def without(helm: Helm) -> dict[str, Rendered]:
    """Renderings that cases are compared with, by what is given."""
    return {}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.setting}-{case.name}-{case.path.rpartition('/')[2]}"
)
def test_a_value_does_what_its_description_says(helm: Helm, without: dict[str, Rendered], case: Case) -> None:
    key = repr(sorted(case.given.items()))
    if key not in without:
        without[key] = render(helm, case.given)
    before = without[key].at(case.name, case.path)
    assert before != case.expected, f"{case.setting} is not what leads to it"

    after = render(helm, {**case.given, case.setting: case.value})

    assert case.expected == after.at(case.name, case.path)


def test_every_value_has_a_case() -> None:
    pool_spec: dict[str, Any] = {}
    described = values((ROOT / CHART_PATH / "values.yaml").read_text(), pool_spec)
    leaves = {".".join(leaf.path) for value in described for leaf in value.leaves()}

    assert leaves == {case.setting for case in CASES} | WITH_FILES


def test_generated_files_are_up_to_date() -> None:
    assert [str(path) for path, content in files().items() if (ROOT / path).read_text() != content] == []
