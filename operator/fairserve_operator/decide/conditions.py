"""Status conditions: what is known of an object, when that changed, and how old and new are merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

ACCEPTED = "Accepted"  #: the spec is well formed and no older object stands in its way
RESOLVED_REFS = "ResolvedRefs"  #: everything the spec refers to exists and is this object's
PROGRAMMED = "Programmed"  #: every pod of every pool runs a configuration with this object's generation
READY = "Ready"  #: all of the above
OVERLOADED = "Overloaded"  #: OIT is armed for the pool
CONFLICTED = "Conflicted"  #: another object claims the same; present on both, and only while it lasts
HELD = "Held"  #: its spec.stopPolicy lets the Tenant begin nothing; present only while it does

#: In the order in which they come true, which is the order in `.status.conditions`.
ORDER = (ACCEPTED, RESOLVED_REFS, PROGRAMMED, READY, OVERLOADED, CONFLICTED, HELD)

#: In characters.
LONGEST_MESSAGE = 32768

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its transition time, which only a comparison with the old one can give."""

    type: str
    status: Truth
    reason: str  #: CamelCase, for machines
    message: str  #: one sentence that names object and field; told as far as the API server takes it
    observed_generation: int


def merge(old: Iterable[Mapping[str, Any]], new: Iterable[Condition], now: str) -> list[dict[str, Any]]:
    """The list for `.status.conditions`: the new conditions, in order, each with its transition time.

    `now` is RFC 3339. The time of an old condition of the same type and status is kept. Old conditions
    that are not among the new ones are gone.
    """
    before = {condition["type"]: condition for condition in old}
    return [_rendered(condition, before.get(condition.type), now) for condition in sorted(new, key=_place)]


def rfc3339(unix_s: float) -> str:
    """Seconds since the epoch as Kubernetes writes times: UTC, whole seconds."""
    # Not by strftime: its %Y has fewer than four digits before the year 1000.
    return datetime.fromtimestamp(int(unix_s), UTC).replace(tzinfo=None).isoformat() + "Z"


def _rendered(condition: Condition, old: Mapping[str, Any] | None, now: str) -> dict[str, Any]:
    unchanged = old is not None and old.get("status") == condition.status
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": _bounded(condition.message),
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": (old.get("lastTransitionTime") or now) if old and unchanged else now,
    }


def _bounded(message: str) -> str:
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"


def _place(condition: Condition) -> tuple[int, str]:
    place = ORDER.index(condition.type) if condition.type in ORDER else len(ORDER)
    return place, condition.type
