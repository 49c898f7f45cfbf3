"""Which interactions are open: the server's memory, not the client's claim.

An interaction is open only if its first call was admitted here, it saw traffic within the application's
idle timeout, and is under its limits of calls and duration. Past those the next call with its id begins
a new interaction. A claim to continue something that was never admitted begins one.

Interactions live with the flow and application that they belong to, so another's id is no ticket.
"""

from __future__ import annotations

from fairserve.core.settings import InteractionRules


class Interaction:
    """One admitted interaction."""

    __slots__ = ("active", "calls", "opened", "tokens", "touched")

    def __init__(self, opened: float, touched: float, calls: int = 0, tokens: int = 0) -> None:
        self.opened = opened
        self.touched = touched  #: when it last saw traffic
        self.calls = calls  #: calls admitted so far
        self.active = 0  #: calls that wait or run
        self.tokens = tokens  #: tokens computed so far, of ended calls

    def is_open(self, rules: InteractionRules, now: float) -> bool:
        """Whether a further call continues it. A call that still runs is traffic."""
        return (
            self.calls < rules.max_calls
            and now - self.opened <= rules.max_duration_s
            and (self.active > 0 or now - self.touched <= rules.idle_timeout_s)
        )


def drop_closed(known: dict[str, Interaction], rules: InteractionRules, now: float) -> int:
    """Forget interactions that nothing can continue or belongs to any more; how many."""
    closed = [
        identity
        for identity, interaction in known.items()
        if not interaction.active and not interaction.is_open(rules, now)
    ]
    for identity in closed:
        del known[identity]
    return len(closed)
