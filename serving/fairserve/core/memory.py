"""What is remembered of flows and interactions, for how long, and how much at most.

An idle flow is forgotten when it is as good as unknown: its counter is where lift would put it anyway, its
windows count nothing and none of its interactions is open. Apart from that both are bounded, each tenant by
an equal part of the bound, so that a tenant with a million names pushes out its own flows and nobody else's.
An open interaction is never pushed out: when a tenant has its fill of them, the calls of a further one are
interactions of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairserve.core import throttle
from fairserve.core.flows import Backlog, Flow, Part, TenantQueue, Ticket
from fairserve.core.interactions import Interaction, drop_closed
from fairserve.core.orders import Order

#: Idle flows, and open interactions, that are remembered at most.
MOST_IDLE_FLOWS = 65_536
MOST_INTERACTIONS = 65_536
#: What each tenant may have of them, however many tenants there are.
_LEAST_OF_A_TENANT = 64
#: An idle flow is remembered this long in any case, so that its averages survive a pause.
IDLE_FLOW_S = 600.0
#: Idle flows one sweep looks at, besides two for each flow that idled since the last.
_SWEEP = 256
#: Idle flows looked at for one that may be pushed out.
_LOOK = 8


class Memory:
    """Forgets in small steps: each call pays for the step it makes necessary."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._idled = 0

    def idles(self, flow: Flow, now: float) -> None:
        """A flow has nothing waiting or running now."""
        tenant = flow.tenant
        flow.idle_since = now
        tenant.idle[flow.user] = flow
        tenant.idle.move_to_end(flow.user)
        self._idled += 1
        if len(tenant.idle) > self._part_of(MOST_IDLE_FLOWS):
            self._push_out(tenant, now)

    def open_interaction(self, part: Part, identity: str, now: float) -> Interaction | None:
        """Remember an interaction that begins; one that was closed under the same id is replaced. None where
        the tenant has its fill.
        """
        tenant = part.flow.tenant
        known = part.interactions
        if known is None:
            known = part.interactions = {}
        if identity not in known:
            if len(known) >= part.prune_at or tenant.interactions >= self._part_of(MOST_INTERACTIONS):
                self._drop_closed(part, now)
                part.prune_at = 2 * len(known) + 16
            if tenant.interactions >= self._part_of(MOST_INTERACTIONS):
                return None
            tenant.interactions += 1
            part.interactions = known
        interaction = known[identity] = Interaction(now, now)
        return interaction

    def close_interaction(self, ticket: Ticket, interaction: Interaction) -> None:
        """End an interaction that never got anything."""
        known, identity = ticket.part.interactions, ticket.call.interaction
        if known is not None and identity is not None and known.get(identity) is interaction:
            del known[identity]
            ticket.flow.tenant.interactions -= 1

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

    def _push_out(self, tenant: TenantQueue, now: float) -> None:
        for _ in range(_LOOK):
            flow = next(iter(tenant.idle.values()))
            if self._open_interactions(flow, now):
                tenant.idle.move_to_end(flow.user)
            else:
                self._forget(flow)
                return

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
        part.flow.tenant.interactions -= drop_closed(known, rules, now)
        if not known:
            part.interactions = None
        return len(known)

    def _forget(self, flow: Flow) -> None:
        del flow.tenant.idle[flow.user]
        del flow.tenant.flows[flow.user]

    def _part_of(self, bound: int) -> int:
        return max(_LEAST_OF_A_TENANT, bound // (len(self._backlog.tenants) or 1))
