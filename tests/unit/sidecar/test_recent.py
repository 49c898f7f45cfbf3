"""Recent sums: what was added lately counts, what is older doesn't."""

from __future__ import annotations

from fairserve.sidecar.recent import Recent


def test_what_is_older_than_the_periods_no_longer_counts() -> None:
    recent, totals = Recent(period_s=10.0, periods=3), {"a": 0.0}
    now = 0.0
    for _ in range(6):
        assert recent.due(now)
        recent.close(totals, now)
        assert not recent.due(now + 9.9)
        totals["a"] += 2.0
        now += 10.0
    assert recent.sums(totals) == {"a": 2.0 * 4}  # three periods and the one that has begun
    totals["b"] = 5.0
    assert recent.sums(totals) == {"a": 8.0, "b": 5.0}


def test_names_that_stand_still_are_left_out() -> None:
    recent = Recent(period_s=10.0, periods=2)
    recent.close({"a": 7.0, "b": 1.0}, 0.0)
    recent.close({"a": 7.0, "b": 3.0}, 10.0)
    assert recent.sums({"a": 7.0, "b": 3.0}) == {"b": 2.0}


def test_a_long_pause_is_a_time_of_nothing() -> None:
    recent = Recent(period_s=10.0, periods=3)
    recent.close({}, 0.0)
    recent.close({"a": 4.0}, 10.0)
    recent.close({"a": 6.0}, 1000.0)
    assert recent.sums({"a": 6.0}) == {}


def test_everything_since_the_start_counts_before_the_first_period_ends() -> None:
    recent = Recent(period_s=10.0, periods=3)
    assert recent.sums({"a": 1.0}) == {"a": 1.0}
