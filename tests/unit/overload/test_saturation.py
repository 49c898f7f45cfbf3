"""A pod's own view of itself."""

from __future__ import annotations

import pytest

from fairserve.overload.saturation import SaturationTargets, saturation

TARGETS = SaturationTargets(kv_use=0.9, queue_wait_s=5.0, engine_waiting=10.0)


@pytest.mark.parametrize(
    ("kv_use", "queue_wait_s", "engine_waiting", "expected"),
    [
        (0.0, 0.0, 0, 0.0),
        (0.9, 0.0, 0, 1.0),
        (0.45, 10.0, 0, 2.0),
        (0.45, 0.0, 30, 3.0),
        (None, 2.5, None, 0.5),
        (0.9, 0.0, None, 1.0),
        (None, -1.0, None, 0.0),
    ],
)
def test_the_fullest_resource_counts(
    kv_use: float | None, queue_wait_s: float, engine_waiting: float | None, expected: float
) -> None:
    assert saturation(kv_use, queue_wait_s, engine_waiting, TARGETS) == pytest.approx(expected)
