"""How full one pod is, as one number: 1 and more means that the engine cannot take more.

Each resource is measured against the level up to which it may go, and the fullest one counts: a mean would
let an empty KV cache hide a queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings

#: A saturated pod arms by itself, where that is on; it clears well below, because saturation moves with every
#: call that comes or goes.
ARMS_AT, CLEARS_BELOW = 1.0, 0.8


@dataclass(frozen=True, slots=True)
class SaturationTargets:
    """The level of each resource at which a pod is saturated. All more than 0."""

    kv_use: float = 0.95  #: share of the KV cache; preemption begins near 1
    queue_wait_s: float = 5.0  #: how long the oldest call has waited in the sidecar
    engine_waiting: float = 16.0  #: calls in vLLM's own queue, which the dispatch window keeps near 0


def saturation(
    kv_use: float | None,
    queue_wait_s: float,
    engine_waiting: float | None,
    targets: SaturationTargets = SaturationTargets(),
) -> float:
    """max(kv_use / target, queue_wait_s / target, engine_waiting / target), at least 0.

    What the engine has not told (None) is left out; the sidecar's own queue is always known.
    """
    ratios = [queue_wait_s / targets.queue_wait_s]
    if kv_use is not None:
        ratios.append(kv_use / targets.kv_use)
    if engine_waiting is not None:
        ratios.append(engine_waiting / targets.engine_waiting)
    return max(0.0, *ratios)


def arming(hold_down_s: float) -> OverloadSettings:
    """When a pod arms by its own saturation, for an OverloadMachine that is fed the signal `saturation`."""
    signal = SignalSettings("saturation", ARMS_AT, CLEARS_BELOW)
    return OverloadSettings((signal,), on_stale=OnStale.DISARM, hold_down_s=hold_down_s)
