"""A scenario: engines, scheduler settings, overload, clients and faults. Values only; `files` reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from fairserve.core import Settings
from fairserve.overload.settings import OverloadSettings, SignalSettings
from fairserve.sim.costs import StepCost
from fairserve.sim.steps import EngineLimits
from fairserve.sim.workload import Workload

_LIMITS, _COST = EngineLimits(), StepCost()


class Balancing(StrEnum):
    """How calls are spread over pods."""

    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_CALLS = "least-calls"  #: fewest queued and running
    STICKY = "sticky"  #: all of one user to one pod


@dataclass(frozen=True, slots=True)
class Engines:
    """The pods: each an engine with its own scheduler, as a sidecar is."""

    count: int = 1
    limits: EngineLimits = _LIMITS
    cost: StepCost = _COST
    prefix_cache_share: float = 0.0  #: of the system prompt that the prefix cache has
    balancing: Balancing = Balancing.ROUND_ROBIN
    max_window: int = 256  #: calls that an engine ever holds
    sampling_s: float = 0.25  #: between two readings of an engine's metrics


class Signal(StrEnum):
    """What an overload signal measures."""

    QUEUE_WAIT = "QueueWait"  #: oldest wait in any scheduler, seconds
    SATURATION = "Saturation"  #: mean over the pods
    KV_CACHE_USE = "KVCacheUse"  #: mean over the pods
    ENGINE_WAITING = "EngineWaiting"  #: sum over the pods


_OVERLOAD = OverloadSettings(
    signals=(
        SignalSettings(Signal.QUEUE_WAIT.value, threshold=2.0, clear_threshold=0.5, for_s=2.0),
        SignalSettings(Signal.SATURATION.value, threshold=1.0, clear_threshold=0.8, for_s=5.0),
    ),
    hold_down_s=10.0,
)


@dataclass(frozen=True, slots=True)
class Overload:
    """How OIT is armed: the signals are named after what they measure."""

    settings: OverloadSettings = _OVERLOAD
    interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of simulated time."""

    start_s: float
    stop_s: float

    def holds(self, now: float) -> bool:
        """Whether it is now."""
        return self.start_s <= now < self.stop_s


@dataclass(frozen=True, slots=True)
class Slowdown:
    """An engine takes `factor` times as long."""

    span: Span
    factor: float
    pod: int | None = None  #: None: all of them


@dataclass(frozen=True, slots=True)
class Restart:
    """A pod dies and starts again: its calls fail, its scheduler goes on from its last snapshot."""

    at_s: float
    pod: int
    snapshot_age_s: float = 0.0  #: at most: how often snapshots are taken


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong."""

    sensor_lag_s: float = 0.0  #: engine metrics and overload signals are this old
    blind: tuple[Span, ...] = ()  #: no overload signal can be read
    slowdowns: tuple[Slowdown, ...] = ()
    restarts: tuple[Restart, ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One experiment. `draw` makes its workload for a seed."""

    name: str
    settings: Settings
    draw: Callable[[int], Workload]
    engines: Engines = Engines()
    overload: Overload | None = Overload()  #: None: OIT is never armed
    faults: Faults = Faults()
    #: The run ends here, whatever still waits.
    horizon_s: float = 3600.0

    def generator(self, seed: int, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{seed}/{self.name}/{purpose}")
