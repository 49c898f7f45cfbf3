"""Which transitions of an object's status are worth an Event, and how many Events are too many: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairserve_operator.decide.conditions import CONFLICTED, READY

#: Reasons for not being ready that pass by themselves.
_PASSING = frozenset({"Pending", "NoPods"})


@dataclass(frozen=True, slots=True)
class Announcement:
    """What an Event says."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def announcement(before: Mapping[str, Any], after: Mapping[str, Any]) -> Announcement | None:
    """What to tell of the step from one status to the next, None for nothing.

    Told is that an object is in trouble, in another trouble, in conflict with another object, or out of it.
    What every change goes through, waiting for Pods to acknowledge it, is not.
    """
    conflict, conflict_before = _condition(after, CONFLICTED), _condition(before, CONFLICTED)
    if conflict and conflict.get("message") != conflict_before.get("message"):
        return Announcement("Warning", str(conflict["reason"]), str(conflict["message"]))
    trouble, trouble_before = _trouble(after), _trouble(before)
    if trouble and trouble != trouble_before:
        return Announcement("Warning", trouble, str(_condition(after, READY)["message"]))
    ready = _condition(after, READY)
    if trouble_before and ready.get("status") == "True":
        return Announcement("Normal", READY, str(ready["message"]))
    return None


class Allowance:
    """A bucket of `most` Events that one flows into each `refill_s` seconds."""

    def __init__(self, most: int = 25, refill_s: float = 5.0) -> None:
        self._most = most
        self._refill_s = refill_s
        self._left = float(most)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Whether one more is allowed. A clock that goes back refills nothing."""
        if self._at is not None:
            self._left = min(self._most, self._left + max(0.0, now - self._at) / self._refill_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def _trouble(status: Mapping[str, Any]) -> str:
    """The reason for not being ready, empty where there is none that lasts."""
    ready = _condition(status, READY)
    reason = str(ready.get("reason", ""))
    return reason if ready.get("status") == "False" and reason not in _PASSING else ""


def _condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == type_:
            return dict(condition)
    return {}
