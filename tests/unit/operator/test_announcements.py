"""Events: trouble and its end are told once, what every change goes through is not, and never too many."""

from __future__ import annotations

from typing import Any

import pytest

from fairserve_operator.decide.announcements import Allowance, Announcement, announcement


def status(ready: str = "True", reason: str = "Ready", message: str = "why", **other: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "reason": reason, "message": message}]
    conditions += [
        {"type": type_, "status": "True", "reason": "Duplicate", "message": words}
        for type_, words in other.items()
    ]
    return {"conditions": conditions}


FINE, PENDING, BROKEN = status(), status("False", "Pending"), status("False", "SecretMissing")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, FINE, None),
        ({}, PENDING, None),
        (FINE, PENDING, None),
        (PENDING, FINE, None),
        (BROKEN, BROKEN, None),
        (BROKEN, PENDING, None),
        ({}, BROKEN, Announcement("Warning", "SecretMissing", "why")),
        (FINE, BROKEN, Announcement("Warning", "SecretMissing", "why")),
        (status("False", "Invalid"), BROKEN, Announcement("Warning", "SecretMissing", "why")),
        (BROKEN, FINE, Announcement("Normal", "Ready", "why")),
        (FINE, status(Conflicted="with b"), Announcement("Warning", "Duplicate", "with b")),
        (status(Conflicted="with b"), status(Conflicted="with b"), None),
        (status(Conflicted="with b"), FINE, None),
    ],
)
def test_what_is_told_of_a_step(
    before: dict[str, Any], after: dict[str, Any], told: Announcement | None
) -> None:
    assert announcement(before, after) == told


def test_events_are_rationed() -> None:
    allowance = Allowance(most=3, refill_s=10.0)
    assert [allowance.take(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert not allowance.take(50.0)
    assert allowance.take(60.1)
    assert not allowance.take(60.2)
    assert [allowance.take(1e9) for _ in range(4)] == [True, True, True, False]
