"""The schedulers that are compared: FairServe, its ablations and its baselines, through one interface.

For the simulator and the benchmarks. Each is the one `Scheduler` with other choices at its seams: see
`disciplines`. `W` is weighted service counters alone, `L` limits that always hold, `O` limits that hold while
overloaded, `I` limits on interactions in place of calls. The limits are those of the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

from fairserve.core.calls import (
    Allowance,
    Call,
    Dispatched,
    Evicted,
    Outcome,
    Queued,
    Refused,
    Settled,
    Usage,
)
from fairserve.core.disciplines import Discipline, Ordering, Throttling
from fairserve.core.flows import Ticket
from fairserve.core.scheduler import Scheduler
from fairserve.core.settings import Settings


class SchedulerLike(Protocol):
    """What drives a scheduler needs of it. See `Scheduler` for each method."""

    settings: Settings
    armed: bool

    @property
    def queued(self) -> int: ...  # noqa: D102
    @property
    def running(self) -> int: ...  # noqa: D102
    @property
    def inflight_tokens(self) -> int: ...  # noqa: D102
    def enqueue(self, call: Call, now: float) -> Queued | Refused: ...  # noqa: D102
    def dispatch(self, now: float) -> Dispatched | None: ...  # noqa: D102
    def progress(self, call_id: int, output_tokens: int) -> None: ...  # noqa: D102
    def finish(self, call_id: int, usage: Usage, outcome: Outcome, now: float) -> Settled: ...  # noqa: D102
    def cancel(self, call_id: int, now: float) -> bool: ...  # noqa: D102
    def expire(self, now: float) -> tuple[Evicted, ...]: ...  # noqa: D102
    def configure(self, settings: Settings) -> None: ...  # noqa: D102
    def set_armed(self, armed: bool) -> None: ...  # noqa: D102
    def oldest_wait(self, now: float) -> float: ...  # noqa: D102
    def estimate_input(self, tenant: str, application: str, body_bytes: int) -> int: ...  # noqa: D102
    def allowance(self, tenant: str, user: str, application: str, now: float) -> Allowance | None: ...  # noqa: D102
    def snapshot(self, now: float) -> dict[str, Any]: ...  # noqa: D102
    def restore(self, data: dict[str, Any], now: float) -> None: ...  # noqa: D102
    def dump(self, now: float) -> dict[str, Any]: ...  # noqa: D102
    def check(self) -> None: ...  # noqa: D102
    def running_calls(self) -> dict[int, Ticket]: ...  # noqa: D102


_FCFS = Discipline(Ordering.ARRIVAL, continuations_first=False, throttling=Throttling.NONE)
_VTC = Discipline(continuations_first=False, relative_cost=False, throttling=Throttling.NONE)

DISCIPLINES: Mapping[str, Discipline] = MappingProxyType(
    {
        "FCFS": _FCFS,
        "RPM": Discipline(Ordering.ARRIVAL, continuations_first=False, throttling=Throttling.CALLS_ALWAYS),
        "VTC": Discipline(
            continuations_first=False, relative_cost=False, predicts=False, throttling=Throttling.NONE
        ),
        "VTC+P": _VTC,
        "DRR": Discipline(
            Ordering.ROUND_ROBIN, continuations_first=False, relative_cost=False, throttling=Throttling.NONE
        ),
        "W": Discipline(throttling=Throttling.NONE),
        "W+L": Discipline(throttling=Throttling.CALLS_ALWAYS),
        "W+O": Discipline(throttling=Throttling.CALLS_WHILE_OVERLOADED),
        "W+O+I": Discipline(),
        "FairServe": Discipline(),
    }
)

#: By name: what makes the scheduler. The settings' `policy` has no say in it.
SCHEDULERS: Mapping[str, Callable[[Settings], SchedulerLike]] = MappingProxyType(
    {name: partial(Scheduler, discipline=discipline) for name, discipline in DISCIPLINES.items()}
)
