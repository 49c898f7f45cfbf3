"""The overload state machine: thresholds with hysteresis, a hold-down against flapping, and staleness.

A signal goes up when readings have been at or above its threshold for `for_s`, and down with the first
reading below its clear threshold; only readings move it. The pool is overloaded at once when a signal is
up, and clear again `hold_down_s` after the last one cleared, so that it can't become overloaded twice
within `hold_down_s`.

A reading without a finite value is no reading. A signal that has had none for `stale_after_s` is ignored
while another one lives; until then it counts as it last was. When all of them are that old, `on_stale`
decides. Disarming for staleness respects the hold-down too, counted from the last reading that was up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fairserve.overload.settings import (
    OnStale,
    OverloadSettings,
    OverloadState,
    Sample,
    SignalSettings,
    Verdict,
)


class Reason(StrEnum):
    """Why the verdict is what it is: the reason of a condition."""

    ABOVE = "SignalAboveThreshold"
    CLEAR = "SignalsClear"
    HOLD_DOWN = "HoldDown"  #: cleared, but not for long enough
    UNKNOWN = "SignalsUnknown"  #: nothing has been read yet
    STALE = "SignalsStale"  #: nothing has been read for `stale_after_s`


@dataclass(slots=True)
class _Signal:
    """What is remembered of one signal."""

    heard_s: float  #: time of the last reading, or of the first look at it
    value: float | None = None  #: the last reading
    above_since_s: float | None = None  #: start of the unbroken run of readings at or above the threshold
    up: bool = False
    problem: str = ""  #: why there was no value last time

    def read(self, value: float, settings: SignalSettings, now: float) -> None:
        """Take a reading."""
        self.value, self.heard_s, self.problem = value, now, ""
        if value < settings.threshold:
            self.above_since_s = None
            self.up = self.up and value >= settings.clear_threshold
            return
        if self.above_since_s is None:
            self.above_since_s = now
        self.up = self.up or now - self.above_since_s >= settings.for_s

    def expire(self) -> None:
        """Forget a state too old to count; a new run of readings must earn it again."""
        self.up, self.above_since_s = False, None


@dataclass(frozen=True, slots=True)
class _Cause:
    """What a verdict says besides the state."""

    reason: Reason
    message: str
    signal: str = ""
    value: float | None = None


class OverloadMachine:
    """One pool's overload state. Times are seconds on one clock of the caller's that does not go back."""

    def __init__(self, settings: OverloadSettings) -> None:
        self._settings = settings
        self._signals: dict[str, _Signal] = {}
        self._state = OverloadState.CLEAR
        self._since_s: float | None = None
        #: Last time at which a reading left a signal up, took one down, or staleness armed.
        self._up_s = -math.inf
        self._said: tuple[object, ...] = ()
        self._cause = _Cause(Reason.UNKNOWN, "")

    @property
    def state(self) -> OverloadState:
        """The state after the last observation."""
        return self._state

    def configure(self, settings: OverloadSettings) -> None:
        """Change the settings. Signals that stay keep what is known of them."""
        self._settings = settings
        names = {signal.name for signal in settings.signals}
        self._signals = {name: signal for name, signal in self._signals.items() if name in names}

    def restore(self, state: OverloadState, since: float, now: float) -> None:
        """Go on from a state that an earlier machine reached, so that a restart is no transition.

        A restored overload lasts `hold_down_s` at least, as if its signals had cleared just now.
        """
        self._state, self._since_s = state, since
        if state is OverloadState.OVERLOADED:
            self._up_s = now

    def observe(self, samples: Sequence[Sample], now: float) -> Verdict:
        """Take the readings of one evaluation. Samples of signals that are not configured are left out."""
        since_s = now if self._since_s is None else self._since_s
        self._read({sample.signal: sample for sample in samples}, now)
        stale = self._all_stale(now)
        wanted = self._wanted(stale, now)
        changed = wanted is not self._state
        if changed:
            self._state, since_s = wanted, now
        self._since_s = since_s
        cause = self._explain(stale, changed, now)
        return Verdict(
            self._state, changed, stale, since_s, cause.reason.value, cause.message, cause.signal, cause.value
        )

    def _read(self, samples: dict[str, Sample], now: float) -> None:
        for settings in self._settings.signals:
            signal = self._signals.setdefault(settings.name, _Signal(heard_s=now))
            sample = samples.get(settings.name, Sample(settings.name, None, "not evaluated"))
            if sample.value is None or not math.isfinite(sample.value):
                signal.problem = sample.problem or f"the value is {sample.value}"
                if self._is_stale(signal, now):
                    signal.expire()
                continue
            if self._is_stale(signal, now):
                signal.expire()
            was_up = signal.up
            signal.read(sample.value, settings, now)
            if was_up or signal.up:
                self._up_s = now

    def _wanted(self, stale: bool, now: float) -> OverloadState:
        if stale and self._settings.on_stale is OnStale.HOLD:
            return self._state
        if stale and self._settings.on_stale is OnStale.ARM:
            self._up_s = now
            return OverloadState.OVERLOADED
        if any(signal.up for signal in self._signals.values()):
            return OverloadState.OVERLOADED
        if now - self._up_s >= self._settings.hold_down_s:
            return OverloadState.CLEAR if self._is_known(now) or stale else self._state
        return self._state

    def _is_known(self, now: float) -> bool:
        """Whether some signal has a value that is not stale, or there is nothing to know."""
        signals = self._signals.values()
        return not signals or any(s.value is not None and not self._is_stale(s, now) for s in signals)

    def _is_stale(self, signal: _Signal, now: float) -> bool:
        return now - signal.heard_s >= self._settings.stale_after_s

    def _all_stale(self, now: float) -> bool:
        signals = self._signals.values()
        return bool(signals) and all(self._is_stale(signal, now) for signal in signals)

    def _explain(self, stale: bool, changed: bool, now: float) -> _Cause:
        """Why. The words stay while the reason does: a message that ticks causes writes and tells nothing."""
        reason, about = self._reason(stale, now)
        problems = tuple((n, s.problem) for n, s in sorted(self._signals.items()) if s.problem)
        said = (self._state, reason, about, problems, self._settings)
        if said != self._said or changed:
            self._said, self._cause = said, self._sentence(reason, about, problems)
        return self._cause

    def _reason(self, stale: bool, now: float) -> tuple[Reason, tuple[SignalSettings, ...]]:
        """Why, and which signals are up, in the order of the settings."""
        if stale and self._settings.on_stale is OnStale.DISARM and self._state is OverloadState.OVERLOADED:
            return Reason.HOLD_DOWN, ()
        if stale:
            return Reason.STALE, ()
        if up := tuple(each for each in self._settings.signals if self._signals[each.name].up):
            return Reason.ABOVE, up
        if self._state is OverloadState.OVERLOADED:
            return (Reason.HOLD_DOWN if self._is_known(now) else Reason.UNKNOWN), ()
        return (Reason.CLEAR if self._is_known(now) else Reason.UNKNOWN), ()

    def _sentence(
        self, reason: Reason, about: tuple[SignalSettings, ...], problems: tuple[tuple[str, str], ...]
    ) -> _Cause:
        failing = "; ".join(f"{name}: {problem}" for name, problem in problems)
        settings = self._settings
        match reason:
            case Reason.ABOVE:
                message = ", ".join(self._level(signal) for signal in about)
                first = about[0].name
                return _Cause(reason, _with(message, failing), first, self._signals[first].value)
            case Reason.STALE:
                kept = {
                    OnStale.HOLD: "the last state stays",
                    OnStale.ARM: "armed",
                    OnStale.DISARM: "disarmed",
                }
                message = (
                    f"no signal has had a value for {settings.stale_after_s:g} s; "
                    f"onStale is {settings.on_stale.value}: {kept[settings.on_stale]}"
                )
                return _Cause(reason, _with(message, failing))
            case Reason.HOLD_DOWN:
                message = f"no signal is up; disarms {settings.hold_down_s:g} s after the last one was"
                return _Cause(reason, _with(message, failing))
            case Reason.CLEAR:
                return _Cause(reason, _with("no signal is up", failing))
            case Reason.UNKNOWN:
                return _Cause(reason, _with("no signal has been read yet", failing))

    def _level(self, signal: SignalSettings) -> str:
        levels = f"threshold {signal.threshold:g}, clears below {signal.clear_threshold:g}"
        return f"{signal.name} is {self._signals[signal.name].value:g} ({levels})"


def _with(message: str, failing: str) -> str:
    return f"{message}; not read: {failing}" if failing else message
