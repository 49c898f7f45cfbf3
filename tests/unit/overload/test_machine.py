"""The overload state machine, by the story."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import (
    OnStale,
    OverloadSettings,
    OverloadState,
    Sample,
    SignalSettings,
    Verdict,
)

WAIT = SignalSettings("wait", threshold=3.0, clear_threshold=1.0)
KV = SignalSettings("kv", threshold=0.9, clear_threshold=0.8)
SETTINGS = OverloadSettings((WAIT,), stale_after_s=30.0, on_stale=OnStale.HOLD, hold_down_s=10.0)


class Story:
    """A machine, fed one evaluation at a time."""

    def __init__(self, settings: OverloadSettings = SETTINGS) -> None:
        self.machine = OverloadMachine(settings)

    def at(self, now: float, problem: str = "", **values: float | None) -> Verdict:
        return self.machine.observe([Sample(n, v, problem) for n, v in values.items()], now)


def test_arms_at_the_threshold_and_says_why() -> None:
    story = Story()
    assert not story.at(0, wait=2.9).armed
    verdict = story.at(5, wait=3.0)
    assert (verdict.armed, verdict.changed, verdict.stale, verdict.since) == (True, True, False, 5)
    assert (verdict.reason, verdict.signal, verdict.value) == ("SignalAboveThreshold", "wait", 3.0)
    assert verdict.message == "wait is 3 (threshold 3, clears below 1)"
    assert not story.at(10, wait=3.0).changed


def test_in_between_the_signal_stays_what_it_was() -> None:
    story = Story()
    assert not story.at(0, wait=2.0).armed
    story.at(5, wait=3.0)
    for now in range(10, 100, 5):
        assert story.at(now, wait=1.0).armed
    assert story.at(100, wait=1.0).reason == "SignalAboveThreshold"


def test_waits_for_an_unbroken_run_of_readings() -> None:
    story = Story(replace(SETTINGS, signals=(replace(WAIT, for_s=10.0),)))
    assert not story.at(0, wait=9.0).armed
    assert not story.at(5, wait=2.0).armed
    assert not story.at(10, wait=9.0).armed
    assert not story.at(15, wait=9.0).armed
    assert story.at(20, wait=9.0).armed


def test_disarms_hold_down_after_the_signal_cleared() -> None:
    story = Story()
    story.at(0, wait=4.0)
    verdict = story.at(5, wait=0.5)
    assert (verdict.armed, verdict.reason) == (True, "HoldDown")
    assert story.at(14, wait=0.5).armed
    verdict = story.at(15, wait=0.5)
    assert (verdict.armed, verdict.changed, verdict.reason, verdict.since) == (
        False,
        True,
        "SignalsClear",
        15,
    )


def test_without_hold_down_disarms_at_once() -> None:
    story = Story(replace(SETTINGS, hold_down_s=0.0))
    story.at(0, wait=4.0)
    assert not story.at(5, wait=0.5).armed


def test_a_signal_that_comes_back_during_hold_down_is_no_transition() -> None:
    story = Story()
    story.at(0, wait=4.0)
    story.at(5, wait=0.5)
    verdict = story.at(10, wait=4.0)
    assert (verdict.armed, verdict.changed, verdict.since) == (True, False, 0)
    assert story.at(12, wait=0.5).armed
    assert story.at(21, wait=0.5).armed
    assert not story.at(22, wait=0.5).armed


def test_any_signal_is_enough_and_all_must_clear() -> None:
    story = Story(replace(SETTINGS, signals=(WAIT, KV), hold_down_s=0.0))
    assert story.at(0, wait=0.0, kv=0.95).signal == "kv"
    both = story.at(2, wait=4.0, kv=0.91)
    assert (both.signal, both.value) == ("wait", 4.0)
    assert both.message == (
        "wait is 4 (threshold 3, clears below 1), kv is 0.91 (threshold 0.9, clears below 0.8)"
    )
    assert story.at(5, wait=4.0, kv=0.1).signal == "wait"
    assert not story.at(10, wait=0.0, kv=0.1).armed


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_no_number_is_no_reading(value: float | None) -> None:
    clear, armed = Story(), Story()
    clear.at(0, wait=0.0)
    armed.at(0, wait=4.0)
    for now in (5, 15, 25):
        assert not clear.at(now, wait=value).armed
        verdict = armed.at(now, wait=value)
        assert (verdict.armed, verdict.stale) == (True, False)


def test_for_does_not_run_out_on_failed_queries() -> None:
    story = Story(replace(SETTINGS, signals=(replace(WAIT, for_s=10.0),)))
    story.at(0, wait=4.0)
    assert not story.at(12, wait=None).armed
    assert story.at(14, wait=4.0).armed


@pytest.mark.parametrize(
    ("on_stale", "before", "after"),
    [
        (OnStale.HOLD, 4.0, True),
        (OnStale.HOLD, 0.0, False),
        (OnStale.ARM, 0.0, True),
        (OnStale.ARM, 4.0, True),
        (OnStale.DISARM, 4.0, False),
        (OnStale.DISARM, 0.0, False),
    ],
)
def test_on_stale_decides_after_stale_after(on_stale: OnStale, before: float, after: bool) -> None:
    story = Story(replace(SETTINGS, on_stale=on_stale))
    armed = story.at(0, wait=before).armed
    assert story.at(29, wait=None).armed == armed
    verdict = story.at(30, "connection refused", wait=None)
    assert (verdict.armed, verdict.stale, verdict.reason) == (after, True, "SignalsStale")
    assert verdict.changed == (armed != after)
    assert f"onStale is {on_stale.value}" in verdict.message
    assert "wait: connection refused" in verdict.message


def test_disarming_for_staleness_respects_the_hold_down() -> None:
    story = Story(replace(SETTINGS, stale_after_s=10.0, hold_down_s=25.0, on_stale=OnStale.DISARM))
    story.at(0, wait=4.0)
    verdict = story.at(20, wait=None)
    assert (verdict.armed, verdict.reason) == (True, "HoldDown")
    assert not story.at(25, wait=None).armed


def test_one_stale_signal_beside_a_live_one_counts_as_it_was_and_is_then_ignored() -> None:
    story = Story(replace(SETTINGS, signals=(WAIT, KV)))
    story.at(0, wait=4.0, kv=0.1)
    verdict = story.at(29, wait=None, kv=0.1)
    assert (verdict.armed, verdict.signal) == (True, "wait")
    verdict = story.at(30, wait=None, kv=0.1)
    assert (verdict.armed, verdict.stale, verdict.reason) == (False, False, "SignalsClear")
    assert "wait: " in verdict.message


def test_a_signal_that_is_not_sampled_is_stale_too() -> None:
    story = Story(replace(SETTINGS, on_stale=OnStale.ARM))
    story.at(0, wait=0.0)
    verdict = story.at(31)
    assert verdict.stale
    assert "wait: not evaluated" in verdict.message


def test_nothing_is_known_before_the_first_reading() -> None:
    story = Story()
    verdict = story.at(0, "no such host", wait=None)
    assert (verdict.armed, verdict.stale, verdict.reason) == (False, False, "SignalsUnknown")
    assert verdict.message == "no signal has been read yet; not read: wait: no such host"
    assert story.at(30, wait=None).reason == "SignalsStale"


def test_a_reading_ends_staleness() -> None:
    story = Story(replace(SETTINGS, on_stale=OnStale.ARM))
    story.at(0, wait=0.0)
    assert story.at(30, wait=None).armed
    verdict = story.at(35, wait=0.0)
    assert (verdict.armed, verdict.stale, verdict.reason) == (True, False, "HoldDown")
    assert not story.at(40, wait=0.0).armed


def test_the_message_stays_while_the_cause_does() -> None:
    story = Story()
    first = story.at(0, wait=4.0)
    assert story.at(5, wait=9.0).message == first.message
    assert story.at(10, "timeout", wait=None).message != first.message


def test_configure_keeps_what_is_known_of_signals_that_stay() -> None:
    story = Story(replace(SETTINGS, signals=(WAIT, KV)))
    story.at(0, wait=4.0, kv=0.1)
    story.machine.configure(replace(SETTINGS, signals=(replace(WAIT, threshold=9.0),)))
    assert story.at(5, wait=4.0).armed
    story.machine.configure(replace(SETTINGS, signals=(KV,)))
    assert story.at(6, kv=0.1).reason == "HoldDown"
    assert not story.at(15, kv=0.1).armed


def test_a_restored_overload_is_no_transition_and_ends_by_readings() -> None:
    story = Story()
    story.machine.restore(OverloadState.OVERLOADED, since=-50.0, now=0.0)
    verdict = story.at(0, wait=None)
    assert (verdict.armed, verdict.changed, verdict.since) == (True, False, -50.0)
    assert story.at(20, wait=None).armed
    assert not story.at(21, wait=0.0).armed


def test_a_restored_overload_is_held_down_as_if_it_had_cleared_just_now() -> None:
    story = Story()
    story.machine.restore(OverloadState.OVERLOADED, since=-50.0, now=0.0)
    verdict = story.at(0, wait=0.0)
    assert (verdict.armed, verdict.changed, verdict.reason) == (True, False, "HoldDown")
    assert story.at(9.9, wait=0.0).armed
    assert not story.at(10, wait=0.0).armed


def test_a_reading_that_comes_late_finds_the_signal_down() -> None:
    story = Story()
    story.at(0, wait=4.0)
    verdict = story.at(30, wait=2.0)  # In between: a signal that is up would stay so.
    assert (verdict.armed, verdict.stale, verdict.reason) == (False, False, "SignalsClear")


def test_a_reading_that_comes_late_begins_a_new_run() -> None:
    story = Story(replace(SETTINGS, signals=(replace(WAIT, for_s=10.0),)))
    story.at(0, wait=4.0)
    assert not story.at(30, wait=4.0).armed
    assert story.at(40, wait=4.0).armed


def test_no_signals_is_never_overloaded() -> None:
    verdict = Story(replace(SETTINGS, signals=(), on_stale=OnStale.ARM)).at(100)
    assert (verdict.armed, verdict.stale, verdict.reason) == (False, False, "SignalsClear")
