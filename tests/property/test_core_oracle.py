"""The oracle is what max-min fairness says it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.core_oracle import max_min

names = st.sampled_from("abcde")
sizes = st.floats(0.01, 1e3)


@pytest.mark.parametrize(
    ("demands", "weights", "capacity", "expected"),
    [
        ({"a": 10, "b": 10}, {"a": 1, "b": 1}, 10, {"a": 5, "b": 5}),
        ({"a": 10, "b": 10}, {"a": 3, "b": 1}, 8, {"a": 6, "b": 2}),
        ({"a": 1, "b": 10, "c": 10}, {"a": 1, "b": 1, "c": 1}, 9, {"a": 1, "b": 4, "c": 4}),
        ({"a": 2, "b": 3}, {"a": 1, "b": 1}, 100, {"a": 2, "b": 3}),
        ({"a": 0, "b": 3}, {"a": 9, "b": 1}, 2, {"a": 0, "b": 2}),
    ],
)
def test_worked_examples(demands, weights, capacity, expected):
    assert max_min(demands, weights, capacity) == pytest.approx(expected)


@given(
    demands=st.dictionaries(names, sizes, min_size=1),
    weights=st.fixed_dictionaries({name: st.floats(0.1, 10.0) for name in "abcde"}),
    part=st.floats(0.0, 1.5),
)
def test_nobody_can_have_more_without_taking_from_someone_with_less(demands, weights, part):
    capacity = part * sum(demands.values())
    given_ = max_min(demands, weights, capacity)
    assert sum(given_.values()) == pytest.approx(min(capacity, sum(demands.values())))
    levels = {name: given_[name] / weights[name] for name in demands}
    for name, demand in demands.items():
        assert -1e-9 <= given_[name] <= demand * (1 + 1e-9)
        if given_[name] < demand * (1 - 1e-9):
            assert levels[name] >= max(levels.values()) - 1e-6 * (1 + max(levels.values()))
