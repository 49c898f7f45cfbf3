"""What the overload state machine is told, and what it is fed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class OnStale(StrEnum):
    """What a state does when nothing trustworthy has been heard for too long."""

    HOLD = "Hold"  #: keep the last state
    ARM = "Arm"  #: act as if overloaded
    DISARM = "Disarm"  #: act as if not overloaded


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """One number that tells of overload: at or above `threshold` for `for_s` it is up, below
    `clear_threshold` it is down, in between it stays what it was.
    """

    name: str
    threshold: float
    clear_threshold: float
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """The pool is overloaded while any signal is up; it disarms `hold_down_s` after the last one cleared."""

    signals: tuple[SignalSettings, ...]
    stale_after_s: float = 30.0
    on_stale: OnStale = OnStale.HOLD
    hold_down_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of one signal. `value` is None where the query failed, was empty or was not a number:
    that is staleness, never zero.
    """

    signal: str
    value: float | None
    problem: str = ""  #: why there is no value, for people


class OverloadState(StrEnum):
    """What is known of the pool."""

    CLEAR = "Clear"
    OVERLOADED = "Overloaded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The machine's state after one evaluation. `changed` is true on a transition."""

    state: OverloadState
    changed: bool
    stale: bool  #: no signal has had a value for `stale_after_s`: `on_stale` decides
    since: float  #: when the state was entered, on the caller's clock, seconds
    reason: str  #: CamelCase, for a condition: see machine.Reason
    message: str  #: one sentence with the signal, its value and its threshold
    signal: str = ""  #: the signal that the message is about; empty if about none
    value: float | None = None  #: its value when the message was made

    @property
    def armed(self) -> bool:
        """Whether OIT refuses."""
        return self.state is OverloadState.OVERLOADED
