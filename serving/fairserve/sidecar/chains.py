"""Which interaction each answer of the Responses API belongs to.

A client goes on from an answer by its id (`previous_response_id`), and every answer has another id, so the
ids that a chain has produced are remembered with the interaction they are part of. An id counts only for the
user that got it. Forgetting one costs its chain no more than that its next call begins an interaction.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Final

#: Ids remembered for each tenant, the newest, and for how long. Tools take seconds; people take minutes.
MAX_PER_TENANT: Final = 4096
MAX_AGE_S: Final = 3600.0


class ResponseChains:
    """Remembers answers. Bounded by the number of tenants."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        #: By tenant, the oldest first: user and id of an answer, its interaction and when it was learned.
        self._tenants: dict[str, OrderedDict[tuple[str, str], tuple[str, float]]] = {}

    def begin(self) -> str:
        """A name for the interaction of a call that goes on from nothing."""
        return f"response-chain:{self._rng.getrandbits(64):016x}"

    def interaction(self, tenant: str, user: str, response_id: str, now: float) -> str | None:
        """The interaction of that answer; None for one that is not known, or no longer."""
        known = self._tenants.get(tenant)
        found = None if known is None else known.get((user, response_id))
        return None if found is None or found[1] < now - MAX_AGE_S else found[0]

    def remember(self, tenant: str, user: str, response_id: str, interaction: str, now: float) -> None:
        """An answer with this id is part of that interaction."""
        known = self._tenants.setdefault(tenant, OrderedDict())
        known[user, response_id] = (interaction, now)
        known.move_to_end((user, response_id))
        while len(known) > MAX_PER_TENANT or next(iter(known.values()))[1] < now - MAX_AGE_S:
            known.popitem(last=False)
