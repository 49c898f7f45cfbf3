"""The scheduler's state from outside: to keep over a restart, to show to people, and to check.

Nothing here decides. A snapshot holds ages instead of times, because two processes share no clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fairserve.core.interactions import Interaction
from fairserve.core.settings import Limit

if TYPE_CHECKING:
    from fairserve.core.scheduler import Scheduler

#: Bumped when an older scheduler can't read a snapshot.
FORMAT = 1


def snapshot(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """See `Scheduler.snapshot`."""
    predictor = scheduler.predictor
    return {
        "format": FORMAT,
        "traffic_mean": [scheduler.traffic.value, scheduler.traffic.samples],
        "output_tokens": {name: list(known) for name, known in predictor.output_by_application.items()},
        "bytes_per_token": {name: list(known) for name, known in predictor.bytes_per_token.items()},
        "tenants": {
            name: {
                "counter": tenant.counter,
                "service": tenant.service,
                "users": {user: flow.counter for user, flow in tenant.flows.items()},
            }
            for name, tenant in scheduler.backlog.tenants.items()
        },
        "windows": [
            [list(subject), window.limit.count, window.limit.window_s, list(window.ages(now))]
            for subject, window in scheduler.throttle.windows
        ],
        "interactions": [
            [list(key), now - known.opened, now - known.touched, known.calls, known.tokens]
            for key, known in scheduler.interactions
        ],
    }


def restore(scheduler: Scheduler, data: dict[str, Any], now: float) -> None:
    """See `Scheduler.restore`. Reads everything before it changes anything."""
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"snapshot format {data['format']!r} is not {FORMAT}")
        mean, samples = _finite(data["traffic_mean"][0]), int(data["traffic_mean"][1])
        outputs = {str(name): (_finite(v), int(n)) for name, (v, n) in data["output_tokens"].items()}
        ratios = {str(name): (_finite(v), int(n)) for name, (v, n) in data["bytes_per_token"].items()}
        tenants = [
            (
                str(name),
                _finite(tenant["counter"]),
                _finite(tenant["service"]),
                {str(user): _finite(counter) for user, counter in tenant["users"].items()},
            )
            for name, tenant in data["tenants"].items()
        ]
        windows = [
            (tuple(map(str, subject)), Limit(int(count), _finite(window_s)), tuple(map(_finite, ages)))
            for subject, count, window_s, ages in data["windows"]
        ]
        interactions = [
            (
                (str(tenant), str(user), str(application), str(identity)),
                Interaction(now - _finite(opened), now - _finite(touched), int(calls), 0, int(tokens)),
            )
            for (tenant, user, application, identity), opened, touched, calls, tokens in data["interactions"]
        ]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a snapshot of a scheduler: {type(error).__name__}: {error}") from error
    scheduler.traffic.value, scheduler.traffic.samples = mean, samples
    scheduler.predictor.output_by_application.update(outputs)
    scheduler.predictor.bytes_per_token.update(ratios)
    for name, counter, service, users in tenants:
        tenant = scheduler.backlog.tenant(name)
        tenant.counter, tenant.service = counter, service
        for user, user_counter in users.items():
            scheduler.remember(tenant, user, user_counter, now)
    for subject, limit, ages in windows:
        scheduler.throttle.windows.restore(subject, limit, ages, now)
    for key, interaction in interactions:
        scheduler.interactions.restore(key, interaction)


def dump(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """See `Scheduler.dump`. Names no user: those are people."""
    return {
        "policy": scheduler.settings.policy.value,
        "mode": scheduler.settings.mode.value,
        "armed": scheduler.armed,
        "queued": scheduler.queued,
        "running": scheduler.running,
        "oldest_wait_s": scheduler.oldest_wait(now),
        "inflight_tokens": scheduler.inflight_tokens,
        "open_interactions": len(scheduler.interactions),
        "tenants": [
            {
                "name": name,
                "weight": scheduler.tenant_settings(name).weight,
                "counter": tenant.counter,
                "service": tenant.service,
                "queued": tenant.queued,
                "running": tenant.running,
                "users": len(tenant.flows),
            }
            for name, tenant in sorted(scheduler.backlog.tenants.items())
        ],
    }


def check(scheduler: Scheduler) -> None:
    """See `Scheduler.check`."""
    backlog = scheduler.backlog
    running = scheduler.running_calls()
    waiting_of_flows = 0
    for tenant in backlog.tenants.values():
        flows = tenant.flows.values()
        assert math.isfinite(tenant.counter), f"counter of {tenant.name} is {tenant.counter}"
        assert tenant.queued == sum(flow.waiting for flow in flows), f"{tenant.name}: queued is off"
        assert tenant.continuing == sum(len(flow.continuing) for flow in flows), f"{tenant.name}: continuing"
        assert tenant.running == sum(flow.running for flow in flows), f"{tenant.name}: running is off"
        assert (tenant.lane is not None) == (tenant.queued > 0), f"{tenant.name}: waits in the wrong lane"
        depths = [len(flow.beginning) for flow in flows]
        deepest = tenant.depths.deepest
        assert (len(deepest.beginning) if deepest else 0) == max(depths, default=0), f"{tenant.name}: depth"
        for flow in flows:
            expected = None
            if flow.waiting:
                expected = tenant.lanes.continuing if flow.continuing else tenant.lanes.beginning
            assert flow.lane is expected, f"{tenant.name}/{flow.user}: waits in the wrong lane"
        waiting_of_flows += tenant.queued
    assert waiting_of_flows == len(backlog), "the order of arrival and the flows disagree"
    assert not backlog.arrivals.keys() & running.keys(), "a call waits and runs"
    assert sum(tenant.running for tenant in backlog.tenants.values()) == len(running), "running is off"
    tokens = sum(call.ticket.call.input_tokens + call.charged_output for call in running.values())
    assert tokens == scheduler.inflight_tokens, "tokens in flight are off"


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a snapshot holds {number}")
    return number
