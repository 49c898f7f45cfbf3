"""How long an engine is let be that turned a call away."""

from __future__ import annotations

import pytest

from fairserve.sidecar.retries import FIRST_PAUSE_S, MOST_PAUSE_S, MOST_TRIES, pause_s


def test_pauses_grow_up_to_a_bound():
    pauses = [pause_s(tries, None) for tries in range(1, MOST_TRIES + 1)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(set(pauses))
    assert pause_s(50, None) == MOST_PAUSE_S


@pytest.mark.parametrize(
    ("said", "pause"),
    [(b"3", 3.0), (b" 3 ", 3.0), (b"0", FIRST_PAUSE_S), (b"9999", MOST_PAUSE_S), (b"-1", FIRST_PAUSE_S)],
)
def test_the_engine_may_ask_for_more(said, pause):
    assert pause_s(1, said) == pause


@pytest.mark.parametrize("said", [b"", b"soon", b"1.5", b"Wed, 21 Oct 2026 07:28:00 GMT", "²".encode()])
def test_what_is_no_number_of_seconds_counts_as_unsaid(said):
    assert pause_s(1, said) == FIRST_PAUSE_S
