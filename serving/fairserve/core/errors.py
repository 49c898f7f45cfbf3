"""What callers of the core can do wrong. Expected results are decisions, not errors.

    SchedulerError
    ├── CallError(ValueError)          a call that can't be: an id that is known already, a negative size
    ├── UnknownCallError(KeyError)     no such call runs: it never did, or has ended
    ├── SettingsError(ValueError)      a weight, limit or profile that would corrupt a counter
    ├── SnapshotError(ValueError)      not a snapshot, or of another format
    └── TimeError(ValueError)          not a finite time

Whatever is raised, nothing has changed.
"""

from __future__ import annotations


class SchedulerError(Exception):
    """Any of them."""


class CallError(SchedulerError, ValueError):
    """A call that can't be queued."""


class UnknownCallError(SchedulerError, KeyError):
    """A call that does not run."""

    def __str__(self) -> str:
        """The message, which KeyError would quote."""
        return str(self.args[0])


class SettingsError(SchedulerError, ValueError):
    """Settings that can't be scheduled by."""


class SnapshotError(SchedulerError, ValueError):
    """A snapshot that can't be read."""


class TimeError(SchedulerError, ValueError):
    """A time that is none."""
