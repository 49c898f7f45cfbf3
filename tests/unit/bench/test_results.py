"""How benchmark figures are judged and where they are written."""

import math

import pytest

from bench.results import at_least, at_most, exactly, figure, half_quartiles, with_section

PAGE = "# Benchmarks\n\nWhat they are.\n\n## core\n\nold\n\n## paper\n\nkept\n"


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [
        (10.0, at_most(10), True),
        (10.1, at_most(10), False),
        (0.9, at_least(1), False),
        (0.0, exactly(0), True),
        (1e-9, exactly(0), False),
        (math.nan, at_most(10), False),
        (math.inf, at_least(1), False),
        (3.0, None, None),
    ],
)
def test_a_goal_is_judged_by_the_value(value, goal, met):
    judged = figure("f", value, "us", goal=goal)
    assert judged.met is met
    assert (judged.value is None) is not math.isfinite(value)


def test_rounding_never_decides():
    assert figure("f", 10.0000001, "us", goal=at_most(10)).met is False


def test_spread_of_one_sample_is_unknown():
    assert half_quartiles([1.0]) is None
    assert half_quartiles([1.0, 2.0, 3.0]) == 1.0


def test_a_section_is_replaced_where_it_stands():
    page = with_section(PAGE, "core", "new")
    assert page == PAGE.replace("old", "new")
    assert with_section(page, "sidecar", "first").endswith("## paper\n\nkept\n\n## sidecar\n\nfirst\n")
