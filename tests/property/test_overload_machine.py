"""The overload machine against arbitrary readings."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairserve.overload.machine import OverloadMachine
from fairserve.overload.settings import OnStale, OverloadSettings, Sample, SignalSettings, Verdict

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
