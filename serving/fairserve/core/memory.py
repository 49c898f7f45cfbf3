"""What is remembered of flows and interactions, for how long, and how much at most.

An idle flow is forgotten when it is as good as unknown: its counter is where lift would put it anyway, its
windows count nothing and none of its interactions is open. Apart from that both are bounded. When there are
too many, who has more than an equal part of the bound gives: a tenant with a million names pushes out its own
flows and nobody else's. An open interaction is never pushed out: when there are too many and a tenant has its
part, the calls of a further one are interactions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fairserve.core import throttle
from fairserve.core.flows import Backlog, Flow, Part, TenantQueue
from fairserve.core.interactions import Interaction, drop_closed
from fairserve.core.orders import Order

#: Idle flows, and interactions that may be open, that are remembered at most.
MOST_IDLE_FLOWS = 100_000
MOST_INTERACTIONS = 50_000
#: An idle flow is remembered this long in any case, so that its averages survive a pause.
IDLE_FLOW_S: Final = 600.0
#: Idle flows one sweep looks at, besides two for each flow that idled since the last.
_SWEEP: Final = 256
#: Idle flows looked at for one that may be pushed out.
_LOOK: Final = 8


class Memory:
    """Forgets in small steps: each call pays for the step it makes necessary."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self.idle_flows = 0
        self.interactions = 0
        #: Flows that idled since the last sweep.
        self._idled = 0
        #: A tenant with more than its part of the idle flows, when there were too many last.
        self._crowded: TenantQueue | None = None

    def idles(self, flow: Flow, now: float) -> None:
        """A flow has nothing waiting or running now."""
        tenant = flow.tenant
        flow.idle_since = now
        if flow.user not in tenant.idle:
            self.idle_flows += 1
        tenant.idle[flow.user] = flow
        tenant.idle.move_to_end(flow.user)
        self._idled += 1
        if self.idle_flows > MOST_IDLE_FLOWS:
            self._push_out(now)

    def wakes(self, flow: Flow) -> None:
        """A flow that may have been idle has a call."""
        if flow.tenant.idle.pop(flow.user, None) is not None:
            self.idle_flows -= 1

    def open_interaction(self, part: Part, identity: str, now: float) -> Interaction | None:
        """Remember an interaction that begins; one that was closed under the same id is replaced. None where
        there are too many and the tenant has its part.
        """
        tenant = part.flow.tenant
        known = part.interactions
        if known is None or identity not in known:
            if known is not None and len(known) >= part.prune_at:
                part.prune_at = 2 * self._drop_closed(part, now) + 16
            if self.interactions >= MOST_INTERACTIONS and tenant.interactions >= self._part_of(
                MOST_INTERACTIONS
            ):
                return None
            tenant.interactions += 1
            self.interactions += 1
        if part.interactions is None:
            part.interactions = {}
        interaction = part.interactions[identity] = Interaction(now, now)
        return interaction

    def sweep(self, now: float, order: Order, configured: Mapping[str, Any]) -> None:
        """Forget what no longer matters. Call it about each second."""
        tenants = list(self._backlog.tenants.values())
        looks = (_SWEEP + 2 * self._idled) // (len(tenants) or 1) + 1
        self._idled = 0
        for tenant in tenants:
            idle = tenant.idle
            for _ in range(looks):
                flow = next(iter(idle.values()), None)
                if flow is None or now - flow.idle_since < IDLE_FLOW_S:
                    break
                if order.owes(flow) or not self._is_over(flow, now):
                    flow.idle_since = now
                    idle.move_to_end(flow.user)
                else:
                    self._forget(flow)
            if (
                not tenant.flows
                and tenant.name not in configured
                and throttle.is_quiet(tenant, now)
                and not order.tenant_owes(tenant)
            ):
                del self._backlog.tenants[tenant.name]

    def _push_out(self, now: float) -> None:
        """Forget idle flows of whoever has more than an equal part of them, least recently used first."""
        part_of = self._part_of(MOST_IDLE_FLOWS)
        tenant = self._crowded
        if tenant is None or len(tenant.idle) <= part_of:
            tenant = self._crowded = max(self._backlog.tenants.values(), key=lambda known: len(known.idle))
        for _ in range(_LOOK):
            if self.idle_flows <= MOST_IDLE_FLOWS:
                return
            flow = next(iter(tenant.idle.values()))
            if self._open_interactions(flow, now):
                tenant.idle.move_to_end(flow.user)
            else:
                self._forget(flow)

    def _is_over(self, flow: Flow, now: float) -> bool:
        if self._open_interactions(flow, now):
            return False
        windows = (flow.window, *(part.window for part in flow.parts.values()))
        return all(window is None or window.is_empty(now) for window in windows)

    def _open_interactions(self, flow: Flow, now: float) -> int:
        return sum(self._drop_closed(part, now) for part in flow.parts.values() if part.interactions)

    def _drop_closed(self, part: Part, now: float) -> int:
        """Forget interactions that nothing can continue; how many remain."""
        known = part.interactions
        if known is None:
            return 0
        rules = part.application.settings.interaction
        closed = drop_closed(known, rules, now)
        part.flow.tenant.interactions -= closed
        self.interactions -= closed
        if not known:
            part.interactions = None
        return len(known)

    def _forget(self, flow: Flow) -> None:
        self.wakes(flow)
        del flow.tenant.flows[flow.user]

    def _part_of(self, bound: int) -> int:
        return bound // (len(self._backlog.tenants) or 1)
