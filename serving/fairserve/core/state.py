"""The scheduler's state from outside: to keep over a restart, to show to people, and to check.

Nothing here decides. A snapshot holds ages instead of times, because two processes share no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fairserve.core.calls import UNIT
from fairserve.core.errors import SnapshotError
from fairserve.core.flows import RUNS, WAITS, Flow, Part, TenantQueue
from fairserve.core.interactions import Interaction
from fairserve.core.limits import Window
from fairserve.core.memory import Memory
from fairserve.core.orders import LeastServed
from fairserve.core.prediction import ApplicationState, BytesPerToken
from fairserve.core.settings import Limit, Profile
from fairserve.core.sharing import SharedWindow

if TYPE_CHECKING:
    from fairserve.core.scheduler import Scheduler

#: Bumped when an older scheduler can't read a snapshot.
FORMAT: Final = 4


def snapshot(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """See `Scheduler.snapshot`."""
    order = scheduler.order
    unsettled: dict[str, int] = {}
    for ticket in scheduler.running_calls().values():
        name = ticket.flow.tenant.name
        unsettled[name] = unsettled.get(name, 0) + ticket.units
    return {
        "format": FORMAT,
        "ordering": scheduler.discipline.ordering.value,
        "floor": order.tenants.floor() if isinstance(order, LeastServed) else 0,
        "traffic_mean": [scheduler.traffic.value, scheduler.traffic.samples],
        "applications": {known.name: _application(known, now) for known in scheduler.known_applications()},
        "tenants": {
            name: _tenant(tenant, unsettled.get(name, 0), now)
            for name, tenant in scheduler.backlog.tenants.items()
        },
    }


def _application(known: ApplicationState, now: float) -> dict[str, Any]:
    learner, profile, shared = known.learner, known.profile, known.shared
    return {
        "output_tokens": [known.output_tokens, known.output_samples],
        "learned": None
        if learner is None
        else [profile.input_tokens, profile.output_tokens, profile.system_tokens],
        "window": None if shared is None else [shared.limit.count, shared.limit.window_s, shared.log(now)],
    }


def _tenant(tenant: TenantQueue, unsettled: int, now: float) -> dict[str, Any]:
    # Nobody will settle what runs now. The account leaves it out, and is exact; the counters keep it, as an
    # estimate of what the engine did for it, so that a restart is no amnesty.
    return {
        "counter": tenant.counter,
        "service": tenant.service - unsettled,
        "floor": tenant.queue.floor(),
        "window": _window(tenant.window, now),
        "windows": {name: _window(window, now) for name, window in tenant.windows.items()},
        "bytes_per_token": {
            name: [learned.value, learned.samples] for name, learned in tenant.bytes_per_token.items()
        },
        "users": {user: _flow(flow, now) for user, flow in tenant.flows.items()},
    }


def _flow(flow: Flow, now: float) -> dict[str, Any]:
    return {
        "counter": flow.counter,
        "granted": flow.granted,
        "window": _window(flow.window, now),
        "applications": {
            name: {
                "averages": [part.input_tokens, part.system_tokens, part.output_tokens, part.samples],
                "window": _window(part.window, now),
                "interactions": {
                    # A call that still runs is traffic.
                    identity: [
                        now - known.opened,
                        0.0 if known.active else now - known.touched,
                        known.calls,
                        known.tokens,
                    ]
                    for identity, known in (part.interactions or {}).items()
                },
            }
            for name, part in flow.parts.items()
        },
    }


def _window(window: Window | None, now: float) -> list[Any] | None:
    return None if window is None else [window.limit.count, window.limit.window_s, window.ages(now)]


def restore(scheduler: Scheduler, data: dict[str, Any], now: float) -> None:
    """See `Scheduler.restore`. Reads everything before it changes anything."""
    if not math.isfinite(now):
        raise SnapshotError(f"now is {now}, must be finite")
    try:
        if data["format"] != FORMAT:
            raise SnapshotError(f"snapshot format {data['format']!r} is not {FORMAT}")
        mean, samples = _positive(data["traffic_mean"][0]), int(data["traffic_mean"][1])
        same_order = data["ordering"] == scheduler.discipline.ordering.value
        floor = int(data["floor"])
        applications = {str(name): _Application(known, now) for name, known in data["applications"].items()}
        tenants = {str(name): _Tenant(known, now) for name, known in data["tenants"].items()}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"not a snapshot of a scheduler: {type(error).__name__}: {error}") from error
    scheduler.traffic.value, scheduler.traffic.samples = mean, samples
    for known in scheduler.known_applications():
        if known.name in applications:
            applications[known.name].apply(known, scheduler.settings.tokens)
    if same_order and isinstance(scheduler.order, LeastServed):
        scheduler.order.tenants.base = floor
    for name, kept in tenants.items():
        kept.apply(scheduler, name, now, with_counters=same_order)


class _Application:
    def __init__(self, data: Mapping[str, Any], now: float) -> None:
        self.output = (_finite(data["output_tokens"][0]), int(data["output_tokens"][1]))
        learned = data["learned"]
        self.learned = None if learned is None else Profile(*map(_size, learned))
        window = data["window"]
        self.limit = None if window is None else Limit(_count(window[0]), _positive(window[1]))
        self.log = [] if window is None else [(now - _finite(a), str(t), str(u)) for a, t, u in window[2]]

    def apply(self, known: ApplicationState, tariff: Any) -> None:
        known.output_tokens, known.output_samples = self.output
        if known.learner is not None and self.learned is not None:
            # Whose traffic it follows is not kept, so it moves only after as many samples as a new one.
            known.learner.profile = self.learned
            known.adopt(self.learned, tariff)
        if self.limit is not None:
            known.shared = SharedWindow(self.limit)
            for at, tenant, user in self.log:
                known.shared.admit(tenant, user, at)


class _Tenant:
    def __init__(self, data: Mapping[str, Any], now: float) -> None:
        self.counter, self.service, self.floor = (
            int(data["counter"]),
            int(data["service"]),
            int(data["floor"]),
        )
        self.window = _read_window(data["window"], now)
        self.windows = {str(name): _read_window(window, now) for name, window in data["windows"].items()}
        self.bytes_per_token = {
            str(name): BytesPerToken(_positive(value), int(samples))
            for name, (value, samples) in data["bytes_per_token"].items()
        }
        self.users = {str(user): _User(flow, now) for user, flow in data["users"].items()}

    def apply(self, scheduler: Scheduler, name: str, now: float, *, with_counters: bool) -> None:
        tenant = scheduler.tenant(name)
        tenant.service = self.service
        tenant.window = self.window
        tenant.windows = {name: window for name, window in self.windows.items() if window is not None}
        tenant.bytes_per_token = self.bytes_per_token
        if with_counters:
            tenant.counter, tenant.queue.base = self.counter, self.floor
        for user, kept in self.users.items():
            flow = tenant.flow(user)
            kept.apply(scheduler, flow, with_counters=with_counters)
            if not flow.waiting and not flow.running:
                scheduler.memory.idles(flow, now)


class _User:
    def __init__(self, data: Mapping[str, Any], now: float) -> None:
        self.counter, self.granted = int(data["counter"]), int(data["granted"])
        self.window = _read_window(data["window"], now)
        self.parts = {str(name): _Part(part, now) for name, part in data["applications"].items()}

    def apply(self, scheduler: Scheduler, flow: Flow, *, with_counters: bool) -> None:
        flow.window = self.window
        if with_counters:
            flow.counter, flow.granted = self.counter, self.granted
        known = {state.name: state for state in scheduler.known_applications()}
        for name, kept in self.parts.items():
            if name in known:
                kept.apply(flow.part(known[name]), scheduler.memory)


class _Part:
    def __init__(self, data: Mapping[str, Any], now: float) -> None:
        *self.averages, samples = map(_size, data["averages"])
        self.samples = int(samples)
        self.window = _read_window(data["window"], now)
        self.interactions = {
            str(identity): Interaction(now - _finite(opened), now - _finite(touched), int(calls), int(tokens))
            for identity, (opened, touched, calls, tokens) in data["interactions"].items()
        }

    def apply(self, part: Part, memory: Memory) -> None:
        part.input_tokens, part.system_tokens, part.output_tokens = self.averages
        part.samples, part.window = self.samples, self.window
        tenant = part.flow.tenant
        more = len(self.interactions) - len(part.interactions or ())
        tenant.interactions += more
        memory.interactions += more
        part.interactions = self.interactions or None


def dump(scheduler: Scheduler, now: float) -> dict[str, Any]:
    """See `Scheduler.dump`. Names no user: those are people."""
    tenants = scheduler.backlog.tenants
    return {
        "policy": scheduler.settings.policy.value,
        "mode": scheduler.settings.mode.value,
        "armed": scheduler.armed,
        "queued": scheduler.queued,
        "queued_bytes": scheduler.backlog.bytes,
        "running": scheduler.running,
        "oldest_wait_s": scheduler.oldest_wait(now),
        "inflight_tokens": scheduler.inflight_tokens,
        "open_interactions": sum(tenant.interactions for tenant in tenants.values()),
        "applications": [
            {
                "name": known.name,
                "input_tokens": known.profile.input_tokens,
                "system_tokens": known.profile.system_tokens,
                "output_tokens": known.profile.output_tokens,
                "learned_from": None if known.learner is None else known.learner.samples,
            }
            for known in scheduler.known_applications()
        ],
        "tenants": [
            {
                "name": name,
                "weight": scheduler.tenant_settings(name).weight,
                "counter": tenant.counter / UNIT,
                "service": tenant.service / UNIT,
                "queued": tenant.queued,
                "queued_bytes": tenant.bytes,
                "running": tenant.running,
                "users": len(tenant.flows),
            }
            for name, tenant in sorted(tenants.items())
        ],
    }


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant at one moment."""

    name: str
    weight: float  #: in force
    queued: int  #: calls that wait
    running: int  #: calls in the engine
    oldest_wait_s: float  #: of its waiting calls; 0 if none waits
    interactions: int  #: that may be open


def tenant_views(scheduler: Scheduler, now: float) -> Iterator[TenantView]:
    """See `Scheduler.tenant_views`."""
    for name, tenant in scheduler.backlog.tenants.items():
        arrived = _oldest(tenant) if tenant.queued else None
        yield TenantView(
            name=name,
            weight=tenant.weight,
            queued=tenant.queued,
            running=tenant.running,
            oldest_wait_s=0.0 if arrived is None else max(0.0, now - arrived),
            interactions=tenant.interactions,
        )


def _oldest(tenant: TenantQueue) -> float:
    """When the first of a tenant's waiting calls came: each flow's are in order of arrival."""
    heads = (head for flow in tenant.flows.values() for head in (flow.first, flow.first_continuing))
    return min(head.arrived for head in heads if head is not None)


def check(scheduler: Scheduler) -> None:
    """See `Scheduler.check`."""
    backlog = scheduler.backlog
    waiting = [ticket for ticket in backlog.calls.values() if ticket.stage == WAITS]
    running = [ticket for ticket in backlog.calls.values() if ticket.stage == RUNS]
    for tenant in backlog.tenants.values():
        _check_tenant(tenant)
    tenants = backlog.tenants.values()
    assert backlog.queued == len(waiting) == sum(tenant.queued for tenant in tenants), "queued is off"
    assert backlog.running == len(running) == sum(tenant.running for tenant in tenants), "running is off"
    assert backlog.bytes == sum(ticket.body_bytes for ticket in waiting), "bytes are off"
    assert len(waiting) + len(running) == len(backlog.calls), "a call is gone and known"
    for line in backlog.timelines.values():
        held = [ticket for ticket in line.calls if ticket.stage == WAITS]
        assert len(held) == line.waiting, "a timeline is off"
        assert len(line.calls) <= 2 * line.waiting + line.SLACK, "a timeline piles up"
    assert backlog.queued == sum(line.waiting for line in backlog.timelines.values()), (
        "a call has no timeline"
    )
    memory = scheduler.memory
    assert memory.idle_flows == sum(len(tenant.idle) for tenant in tenants), "idle flows are off"
    assert memory.interactions == sum(tenant.interactions for tenant in tenants), "interactions are off"
    tokens = sum(ticket.input_tokens + ticket.charged_output for ticket in running)
    assert tokens == scheduler.inflight_tokens, "tokens in flight are off"
    if isinstance(scheduler.order, LeastServed):
        scheduler.order.tenants.check()
        for tenant in tenants:
            tenant.queue.check()
            assert (tenant.entry > 0) == (tenant.queued > 0), f"{tenant.name}: out of order"
            for flow in tenant.flows.values():
                assert (flow.entry > 0) == (flow.waiting > 0), f"{tenant.name}: a flow is out of order"
    for application in scheduler.known_applications():
        assert application.typical >= 3.0, f"{application.name}: a typical call costs too little"
        if application.shared is not None:
            application.shared.check()


def _check_tenant(tenant: TenantQueue) -> None:
    name, flows = tenant.name, tenant.flows.values()
    assert tenant.queued == sum(flow.waiting for flow in flows), f"{name}: queued is off"
    assert tenant.bytes == sum(flow.bytes for flow in flows), f"{name}: bytes are off"
    assert tenant.continuing == sum(flow.continuing for flow in flows), f"{name}: continuing is off"
    assert tenant.running == sum(flow.running for flow in flows), f"{name}: running is off"
    assert tenant.service >= 0, f"{name}: service is negative"
    interactions = 0
    for flow in flows:
        begins = list(flow.beginning())
        continues = list(flow.continuations())
        assert flow.waiting == len(begins) + len(continues), f"{name}/{flow.user}: waiting is off"
        assert flow.continuing == len(continues), f"{name}/{flow.user}: continuing is off"
        _check_fifo(begins)
        _check_fifo(continues)
        assert flow.bytes == sum(t.body_bytes for t in (*begins, *continues)), f"{name}: bytes are off"
        idle = not flow.waiting and not flow.running
        assert idle == (flow.user in tenant.idle), f"{name}/{flow.user}: idles or doesn't"
        interactions += sum(len(part.interactions or ()) for part in flow.parts.values())
    assert tenant.interactions == interactions, f"{name}: interactions are off"


def _check_fifo(tickets: list[Any]) -> None:
    numbers = [ticket.number for ticket in tickets]
    assert numbers == sorted(numbers, reverse=True), "calls of a flow are out of order"


def _read_window(data: Any, now: float) -> Window | None:
    if data is None:
        return None
    count, window_s, ages = data
    times: Iterable[float] = (now - _finite(age) for age in ages)
    return Window(Limit(_count(count), _positive(window_s)), tuple(times))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise SnapshotError(f"a snapshot holds {number}")
    return number


def _positive(value: Any) -> float:
    number = _finite(value)
    if number <= 0.0:
        raise SnapshotError(f"a snapshot holds {number} where it must be above 0")
    return number


def _size(value: Any) -> float:
    number = _finite(value)
    if number < 0.0:
        raise SnapshotError(f"a snapshot holds {number} where it can't be below 0")
    return number


def _count(value: Any) -> int:
    number = int(value)
    if not 1 <= number <= 10**9:
        raise SnapshotError(f"a snapshot holds a limit of {number}")
    return number
