"""What a call pays when the engine gave no usage."""

from __future__ import annotations

import pytest

from fairserve.core.calls import Outcome, Usage
from fairserve.sidecar.accounting import Pace, engine_answer


@pytest.mark.parametrize(
    ("status", "usage", "expected"),
    [
        (200, Usage(5, 2, 1), (Outcome.COMPLETED, Usage(5, 2, 1))),
        (200, None, (Outcome.COMPLETED, Usage(100, 7))),
        (400, None, (Outcome.FAILED, Usage(0, 0))),
        (429, None, (Outcome.FAILED, Usage(0, 0))),
        (503, None, (Outcome.FAILED, Usage(0, 0))),
        (500, None, (Outcome.FAILED, Usage(100, 7))),
    ],
)
def test_answer(status, usage, expected):
    assert engine_answer(status, usage, 100, 7) == expected


def test_pace_is_learned_from_whole_answers():
    pace = Pace()
    assert pace.tokens_in(10.0) == 0
    pace.observe(2, 100.0)
    assert pace.tokens_in(10.0) == 0, "too short to tell"
    pace.observe(100, 1.0)
    assert pace.tokens_in(0.5) == pytest.approx(50, abs=1)
    for _ in range(200):
        pace.observe(100, 2.0)
    assert pace.tokens_in(0.5) == pytest.approx(25, abs=1)
