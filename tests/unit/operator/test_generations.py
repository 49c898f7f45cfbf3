"""Generations: they rise with content and never fall behind what sidecars run."""

from __future__ import annotations

import pytest

from fairserve_operator.decide.generations import Entry, entered, newest, next_generation
from fairserve_operator.decide.resources import ObjectKey

A, B = ObjectKey("Tenant", "n", "a"), ObjectKey("Tenant", "n", "b")


@pytest.mark.parametrize(
    ("stored_hash", "stored", "new_hash", "seen", "expected"),
    [
        (None, 0, "h", 0, 1),
        ("h", 4, "h", 4, 4),
        ("h", 4, "h", 0, 4),
        ("h", 4, "i", 4, 5),
        ("h", 4, "i", 9, 10),
        ("h", 4, "h", 9, 10),  # sidecars refuse 4
        (None, 0, "h", 9, 10),  # the Secret was lost
        ("h", 0, "h", 0, 1),  # never went out
    ],
)
def test_next_generation(
    stored_hash: str | None, stored: int, new_hash: str, seen: int, expected: int
) -> None:
    assert next_generation(stored_hash, stored, new_hash, seen) == expected


def test_an_unchanged_part_keeps_its_generation() -> None:
    before = entered({}, {A: "a1", B: "b1"}, 5)
    after = entered(before, {A: "a2", B: "b1"}, 6)
    assert after == {A: Entry("a2", 6), B: Entry("b1", 5)}


def test_a_part_that_comes_back_enters_anew() -> None:
    before = entered({A: Entry("a1", 5)}, {}, 6)
    assert before == {}
    assert entered(before, {A: "a1"}, 7) == {A: Entry("a1", 7)}


@pytest.mark.parametrize(
    ("stored", "aimed", "expected"),
    [
        ((4, "h"), (4, "h"), (4, "h")),
        ((4, "h"), (5, "i"), (5, "i")),  # told to sidecars, and not stored yet
        ((6, "j"), (5, "i"), (6, "j")),  # another operator was here
        ((5, "j"), (5, "i"), (5, None)),
        ((0, None), (0, None), (0, None)),
    ],
)
def test_newest_of_what_is_stored_and_what_was_told(
    stored: tuple[int, str | None], aimed: tuple[int, str | None], expected: tuple[int, str | None]
) -> None:
    assert newest(stored, aimed) == expected
