"""Small scenarios for the simulator's tests."""

from __future__ import annotations

from types import MappingProxyType

from fairserve.core import ApplicationSettings, Limit, Settings, TenantSettings
from fairserve.sim.costs import StepCost
from fairserve.sim.distributions import Choice, LogNormal, Uniform
from fairserve.sim.scenario import Engines, Faults, Overload, Scenario
from fairserve.sim.steps import EngineLimits
from fairserve.sim.workload import (
    Application,
    ArrivalKind,
    Arrivals,
    Behaviour,
    UserClass,
    draw_workload,
    typical_call,
)

CHAT = Application("chat", LogNormal(5.0, 0.5, high=900.0), LogNormal(3.0, 0.6, high=200.0), system_tokens=32)
SMALL = EngineLimits(max_num_seqs=8, max_num_batched_tokens=256, kv_tokens=4096, max_model_len=2048)


def users(name: str, count: int, rate_per_s: float, **changes: object) -> UserClass:
    """A class of Poisson users of the chat application, in a tenant of the same name."""
    fields: dict[str, object] = {
        "calls": Choice((1, 2, 3), (6, 2, 2)),
        "gap_s": Uniform(0.1, 0.5),
        "arrivals": Arrivals(rate_per_s=rate_per_s),
        **changes,
    }
    return UserClass(name, count, name, (("chat", 1.0),), **fields)  # type: ignore[arg-type]


def closed(name: str, count: int, **changes: object) -> UserClass:
    """The same in a closed loop."""
    return users(
        name, count, 0.0, arrivals=Arrivals(ArrivalKind.CLOSED, think_s=Uniform(0.2, 1.0)), **changes
    )


def scenario(
    *classes: UserClass,
    seconds: float = 20.0,
    engines: Engines | None = None,
    overload: Overload | None = None,
    faults: Faults | None = None,
    limit: int | None = None,
    horizon_s: float = 3600.0,
) -> Scenario:
    """A scenario of these classes; `limit` is a user's interactions in 10 s."""
    per_user = Limit(limit, 10.0) if limit is not None else None
    tenants = {c.tenant: TenantSettings(c.tenant, per_user=per_user) for c in classes}
    settings = Settings(
        tenants=MappingProxyType(tenants),
        applications=MappingProxyType({"chat": ApplicationSettings("chat", typical_call(CHAT))}),
    )
    return Scenario(
        "test",
        settings,
        lambda seed: draw_workload(classes, {"chat": CHAT}, seconds, seed),
        engines or Engines(limits=SMALL, cost=StepCost(step_ms=5.0), max_window=8),
        overload=overload,
        faults=faults or Faults(),
        horizon_s=horizon_s,
    )


__all__ = ["CHAT", "SMALL", "Behaviour", "closed", "scenario", "users"]
