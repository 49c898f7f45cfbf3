"""Which interactions are open: the server's memory, not the client's claim.

An interaction is open only if its first call was admitted here, it saw traffic within the application's
idle timeout, and is under its limits of calls and duration. Past those the next call with its id begins
a new interaction. A claim to continue something that was never admitted begins one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from fairserve.core.settings import InteractionRules

#: Tenant, user, application, and the id that the client gave.
InteractionKey = tuple[str, str, str, str]


@dataclass(slots=True)
class Interaction:
    """One admitted interaction."""

    opened: float
    touched: float  #: when it last saw traffic
    calls: int = 0  #: calls admitted so far
    active: int = 0  #: calls that wait or run
    tokens: int = 0  #: tokens computed so far, of ended calls

    def is_open(self, rules: InteractionRules, now: float) -> bool:
        """Whether a further call continues it. A call that still runs is traffic."""
        return (
            self.calls < rules.max_calls
            and now - self.opened <= rules.max_duration_s
            and (self.active > 0 or now - self.touched <= rules.idle_timeout_s)
        )


class Interactions:
    """All interactions that may still be open, by application so that each has one idle timeout."""

    def __init__(self) -> None:
        self._by_application: dict[str, OrderedDict[InteractionKey, Interaction]] = {}

    def __len__(self) -> int:
        return sum(len(known) for known in self._by_application.values())

    def find(self, key: InteractionKey, rules: InteractionRules, now: float) -> Interaction | None:
        """The open interaction of that key, if there is one."""
        interaction = self._known(key).get(key)
        return interaction if interaction is not None and interaction.is_open(rules, now) else None

    def begin(self, key: InteractionKey, now: float) -> Interaction:
        """Open an interaction; one that was closed under the same id is replaced."""
        known = self._known(key)
        known.pop(key, None)
        interaction = known[key] = Interaction(opened=now, touched=now)
        return interaction

    def touch(self, key: InteractionKey, interaction: Interaction, now: float) -> None:
        """Note traffic."""
        interaction.touched = max(interaction.touched, now)
        known = self._known(key)
        if known.get(key) is interaction:
            known.move_to_end(key)

    def close(self, key: InteractionKey, interaction: Interaction) -> None:
        """End an interaction that never got anything."""
        known = self._known(key)
        if known.get(key) is interaction:
            del known[key]

    def __iter__(self) -> Iterator[tuple[InteractionKey, Interaction]]:
        """Every known interaction, least recently used first within its application."""
        for known in self._by_application.values():
            yield from known.items()

    def forget(self, application: str, rules: InteractionRules, now: float, most: int) -> None:
        """Drop interactions of an application that are no longer open, least recently used first."""
        known = self._by_application.get(application)
        for _ in range(most):
            if not known:
                return
            key, interaction = next(iter(known.items()))
            if interaction.active or now - interaction.touched <= rules.idle_timeout_s:
                return
            del known[key]

    def applications(self) -> tuple[str, ...]:
        """Applications of which interactions are known."""
        return tuple(self._by_application)

    def restore(self, key: InteractionKey, interaction: Interaction) -> None:
        """Put an interaction back."""
        self._known(key)[key] = interaction

    def _known(self, key: InteractionKey) -> OrderedDict[InteractionKey, Interaction]:
        return self._by_application.setdefault(key[2], OrderedDict())
