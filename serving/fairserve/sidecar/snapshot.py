"""The scheduler's state in a file, so that a restart is no amnesty.

A new snapshot is written beside the old one and swapped in, so that a full disk or a kill costs the new one
only. What can't be read is named and left out: the sidecar starts without it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a snapshot holds."""

    state: dict[str, Any]  #: the scheduler's
    age_s: float


class SnapshotFile:
    """Writes and reads one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()

    def write(self, state: dict[str, Any]) -> None:
        """Keep the state. From any thread, one after the other: it waits for the disk. A failure is logged
        and leaves the old snapshot.
        """
        beside = self.path.with_name(self.path.name + ".new")
        with self._writing:
            try:
                with beside.open("w", encoding="utf-8") as file:
                    json.dump({"saved_at_unix_s": time.time(), "scheduler": state}, file)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self.path)
            except OSError as error:
                _LOG.error("the snapshot can't be written: %s: %s", self.path, error.strerror)
                self._remove(beside)

    def read(self) -> Kept | None:
        """The last snapshot; None, and the log says why, if there is none that can be read."""
        try:
            data = json.loads(self.path.read_bytes())
            saved_at = float(data["saved_at_unix_s"])
            if not math.isfinite(saved_at):
                raise ValueError("saved_at_unix_s is no time")
            state = data["scheduler"]
            if type(state) is not dict:
                raise ValueError("scheduler is no object")
            return Kept(state, max(0.0, time.time() - saved_at))
        except FileNotFoundError:
            _LOG.info("there is no snapshot yet: %s", self.path)
        except OSError as error:
            _LOG.error("the snapshot can't be read: %s: %s", self.path, error.strerror)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            _LOG.error("the snapshot is not used: %s: %s: %s", self.path, type(error).__name__, error)
        return None

    def _remove(self, beside: Path) -> None:
        """Half a snapshot only takes up space."""
        try:
            beside.unlink(missing_ok=True)
        except OSError as error:
            _LOG.error("what was written of the snapshot stays: %s: %s", beside, error.strerror)
