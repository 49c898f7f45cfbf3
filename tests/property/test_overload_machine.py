"""The overload machine against arbitrary readings."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import (
    OnStale,
    OverloadSettings,
    OverloadState,
    Sample,
    SignalSettings,
    Verdict,
)

NAMES = ("a", "b")
#: One evaluation: seconds since the one before, and a value for each signal.
Evaluation = tuple[float, tuple[float | None, ...]]

_for_s = st.sampled_from([0.0, 3.0, 20.0])
values = st.one_of(st.none(), st.sampled_from([math.nan, math.inf, 0.0, 0.5, 1.0, 1.5, 2.0, 5.0]))
evaluations = st.lists(
    st.tuples(st.floats(0.1, 60.0), st.tuples(*[values] * len(NAMES))), min_size=1, max_size=60
)
settings_ = st.builds(
    OverloadSettings,
    signals=st.tuples(
        *[st.builds(SignalSettings, st.just(n), st.just(2.0), st.just(1.0), _for_s) for n in NAMES]
    ),
    stale_after_s=st.sampled_from([1.0, 30.0, 100.0]),
    on_stale=st.sampled_from(list(OnStale)),
    hold_down_s=st.sampled_from([0.0, 10.0, 50.0]),
)


def run(
    machine: OverloadMachine, steps: list[Evaluation], now: float = 0.0
) -> list[tuple[float, Evaluation, Verdict]]:
    told = []
    for step in steps:
        now += step[0]
        samples = [Sample(name, value) for name, value in zip(NAMES, step[1], strict=True)]
        told.append((now, step, machine.observe(samples, now)))
    return told


@given(settings_, evaluations)
def test_never_armed_for_less_than_the_hold_down(settings: OverloadSettings, steps: list[Evaluation]) -> None:
    armed_at = None
    for now, _, verdict in run(OverloadMachine(settings), steps):
        if verdict.changed and verdict.armed:
            armed_at = now
        elif verdict.changed:
            assert armed_at is not None
            assert now - armed_at >= settings.hold_down_s


@given(settings_, evaluations, st.sampled_from([0.0, 0.5]))
def test_always_disarms_when_signals_are_clear(
    settings: OverloadSettings, steps: list[Evaluation], clear: float
) -> None:
    machine = OverloadMachine(settings)
    ended = run(machine, steps)[-1][0]
    after = run(machine, [(0.1, (clear,) * 2), (settings.hold_down_s + 0.001, (clear,) * 2)], ended)
    assert not after[-1][2].armed


@given(settings_, evaluations)
def test_arms_only_on_a_reading_at_the_threshold_or_by_on_stale(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    for _, (_, read), verdict in run(OverloadMachine(settings), steps):
        if verdict.changed and verdict.armed:
            above = any(v is not None and math.isfinite(v) and v >= 2.0 for v in read)
            assert above or (verdict.stale and settings.on_stale is OnStale.ARM)


@given(settings_, evaluations)
def test_a_reading_above_for_long_enough_arms(settings: OverloadSettings, steps: list[Evaluation]) -> None:
    machine = OverloadMachine(settings)
    ended = run(machine, steps)[-1][0]
    gap = settings.stale_after_s / 2
    above: list[Evaluation] = [(gap, (2.0, None))] * (math.ceil(settings.signals[0].for_s / gap) + 2)
    assert run(machine, above, ended)[-1][2].armed


@given(settings_, evaluations)
def test_nan_is_the_same_as_no_answer(settings: OverloadSettings, steps: list[Evaluation]) -> None:
    unknown: list[Evaluation] = [
        (gap, tuple(v if v is not None and math.isfinite(v) else None for v in read)) for gap, read in steps
    ]
    states = [(v.state, v.changed, v.stale) for _, _, v in run(OverloadMachine(settings), steps)]
    assert states == [(v.state, v.changed, v.stale) for _, _, v in run(OverloadMachine(settings), unknown)]


@given(settings_, evaluations)
def test_says_changed_exactly_when_the_state_changes(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    before = OverloadMachine(settings).state
    since = None
    for now, _, verdict in run(OverloadMachine(settings), steps):
        assert verdict.changed == (verdict.state is not before)
        since = now if verdict.changed or since is None else since
        assert verdict.since == since
        before = verdict.state


@given(settings_, evaluations)
def test_configuring_the_same_settings_changes_nothing(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    plain, configured = OverloadMachine(settings), OverloadMachine(settings)
    first = run(plain, steps)
    now = 0.0
    for step, (_, _, expected) in zip(steps, first, strict=True):
        configured.configure(replace(settings))
        ((now, _, verdict),) = run(configured, [step], now)
        assert verdict == expected


@given(settings_, evaluations)
def test_armed_no_sooner_again_than_the_hold_down(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    armings = [now for now, _, v in run(OverloadMachine(settings), steps) if v.changed and v.armed]
    for one, next_one in pairwise(armings):
        assert next_one - one >= settings.hold_down_s


@given(settings_, evaluations)
def test_a_restored_overload_lasts_the_hold_down(settings: OverloadSettings, steps: list[Evaluation]) -> None:
    machine = OverloadMachine(settings)
    machine.restore(OverloadState.OVERLOADED, since=-1000.0, now=0.0)
    for now, _, verdict in run(machine, steps):
        if now < settings.hold_down_s:
            assert verdict.armed
            assert not verdict.changed


@given(settings_, evaluations, st.sampled_from([1.5, 2.0]))
def test_what_was_known_of_a_signal_is_forgotten_once_it_is_stale(
    settings: OverloadSettings, steps: list[Evaluation], late: float
) -> None:
    settings = replace(settings, signals=tuple(replace(s, for_s=5.0) for s in settings.signals))
    machine = OverloadMachine(settings)
    ended = run(machine, steps)[-1][0]
    ((_, _, verdict),) = run(machine, [(settings.stale_after_s + 0.001, (late, late))], ended)
    assert verdict.reason != "SignalAboveThreshold"


@given(settings_, evaluations)
def test_on_stale_decides_once_nothing_was_read_for_stale_after(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    machine = OverloadMachine(settings)
    ended = run(machine, steps)[-1][0]
    before, nothing = machine.state, (None, math.nan)
    ((_, _, stale),) = run(machine, [(settings.stale_after_s + 0.001, nothing)], ended)
    assert stale.stale
    match settings.on_stale:
        case OnStale.HOLD:
            assert stale.state is before
        case OnStale.ARM:
            assert stale.armed
        case OnStale.DISARM:
            later = run(
                machine, [(settings.hold_down_s + 0.001, nothing)], ended + settings.stale_after_s + 1
            )
            assert not later[0][2].armed
            assert not run(machine, [(1.0, nothing)], later[0][0])[0][2].changed


@given(settings_, evaluations)
def test_stale_exactly_while_no_signal_was_read_for_stale_after(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    heard = dict.fromkeys(NAMES, steps[0][0])  # The first look counts: nothing is old before it.
    for now, (_, read), verdict in run(OverloadMachine(settings), steps):
        heard |= {n: now for n, v in zip(NAMES, read, strict=True) if v is not None and math.isfinite(v)}
        assert verdict.stale == all(now - at >= settings.stale_after_s for at in heard.values())


@given(settings_, evaluations)
def test_names_every_signal_that_is_up_and_those_without_a_value(
    settings: OverloadSettings, steps: list[Evaluation]
) -> None:
    settings = replace(settings, signals=tuple(replace(s, for_s=0.0) for s in settings.signals))
    for _, (_, read), verdict in run(OverloadMachine(settings), steps):
        up = {n for n, v in zip(NAMES, read, strict=True) if v is not None and math.isfinite(v) and v >= 2.0}
        unread = {n for n, v in zip(NAMES, read, strict=True) if v is None or not math.isfinite(v)}
        told, _, failing = verdict.message.partition("not read: ")
        assert all(f"{name} is " in told for name in up)
        assert {entry.split(":")[0] for entry in failing.split("; ") if entry} == unread


@given(settings_, evaluations)
def test_another_clock_changes_nothing(settings: OverloadSettings, steps: list[Evaluation]) -> None:
    """Only differences of times count, so that a clock with any origin will do."""
    steps = [(math.floor(gap) + 1.0, read) for gap, read in steps]  # Exact in floats from any origin.
    here = [(v.state, v.stale, v.message) for _, _, v in run(OverloadMachine(settings), steps)]
    there = [(v.state, v.stale, v.message) for _, _, v in run(OverloadMachine(settings), steps, now=2.0**30)]
    assert here == there
