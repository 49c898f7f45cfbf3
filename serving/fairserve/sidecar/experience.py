"""Serving experience, the paper's measure: the users who lost no call, over all users.

Counted in windows that follow each other. A window's users are remembered while it runs and become two
numbers when it ends, so that memory is bounded and no user is ever named.
"""

from __future__ import annotations

from typing import Final

#: Seconds of one window.
WINDOW_S: Final = 300.0
#: Users of one window that are told apart; further ones count for nobody.
MOST_USERS: Final = 50_000


class Experience:
    """The users of each tenant, and those of them who lost a call, in the last whole window."""

    def __init__(self, window_s: float = WINDOW_S, most_users: int = MOST_USERS) -> None:
        self._window_s = window_s
        self._most_users = most_users
        self._begun_at: float | None = None
        self._count = 0
        #: By tenant: the running window's users and whether each has been served in full.
        self._users: dict[str, dict[str, bool]] = {}
        #: By tenant: users and fully served users of the last whole window; None before the first has ended.
        self._last: dict[str, tuple[int, int]] | None = None

    def seen(self, tenant: str, user: str) -> None:
        """A call of this user has ended, in whatever way."""
        users = self._users.get(tenant)
        if users is None or user not in users:
            self._note(tenant, user, served=True)

    def lost(self, tenant: str, user: str) -> None:
        """A call of this user was refused or evicted, or the engine broke over it."""
        self._note(tenant, user, served=False)

    def turn(self, now: float) -> None:
        """Begin the next window if this one is over. Call it about each second."""
        if self._begun_at is None:
            self._begun_at = now
        elif now - self._begun_at >= self._window_s:
            self._last, self._users = self._counted(), {}
            self._begun_at, self._count = now, 0

    def counts(self) -> dict[str, tuple[int, int]]:
        """Users and fully served users by tenant, of the last whole window, or of the first while it runs."""
        return self._counted() if self._last is None else dict(self._last)

    def _note(self, tenant: str, user: str, *, served: bool) -> None:
        users = self._users.get(tenant)
        if users is None:
            users = self._users[tenant] = {}
        if user not in users:
            if self._count >= self._most_users:
                return
            self._count += 1
        users[user] = served

    def _counted(self) -> dict[str, tuple[int, int]]:
        return {tenant: (len(users), sum(users.values())) for tenant, users in self._users.items() if users}
