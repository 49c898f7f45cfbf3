"""The call log: one JSON line for each call that has ended, for people who bill or debug. Off by default.

It holds no key, no prompt and no name that a client gave: users and interactions are pseudonyms under the
pool's salt, so that lines of one user belong together, over all pods of a pool and nowhere else. A line is
made when its call ends and written later, in a thread: a slow disk costs lines and never a call's time.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import sys
import threading
import time
from pathlib import Path

from fairserve.core.calls import Call
from fairserve.engine.endpoints import path_of
from fairserve.sidecar.observers import EndedCall
from fairserve.sidecar.options import OptionError

_LOG = logging.getLogger(__name__)

#: How long a line waits to be written, seconds.
_INTERVAL_S = 0.5
#: Lines that wait at once; more are lost, and counted.
_MAX_LINES = 100_000
_PSEUDONYM_BYTES = 8


class CallLog:
    """Collects lines and writes them."""

    def __init__(self, path: Path | None) -> None:
        """`path` None: standard output. A file is opened for each write, so that it may be moved away."""
        self.salt = b""  #: of the running configuration
        self._path = path
        self._lines: list[bytes] = []
        self._lost = 0
        self._failing = False
        self._writing = threading.Lock()

    def open(self) -> None:
        """See that lines can be written. Raises OptionError."""
        try:
            self._append(b"")
        except OSError as error:
            raise OptionError(f"--call-log: {self._path}: {error.strerror}") from error

    def ended(self, ended: EndedCall) -> None:
        """A call has ended: make its line."""
        call, times, usage = ended.call, ended.times, ended.usage
        self._add(
            {
                "tenant": call.tenant,
                "user": self._pseudonym(call, "user", call.user),
                "application": call.application,
                "interaction": self._pseudonym(call, "interaction", call.interaction or ""),
                "path": path_of(ended.request.target),
                "wait_s": _rounded(times.wait_s),
                "first_token_s": _rounded(times.first_token_s),
                "duration_s": _rounded(times.duration_s),
                "input_tokens": usage.input_tokens,
                "cached_tokens": usage.cached_tokens,
                "output_tokens": usage.output_tokens,
                "outcome": ended.outcome.value,
                "status": ended.status or None,
                "reason": ended.reason or None,
            }
        )

    def denied(self, path: str, status: int, reason: str) -> None:
        """A call was turned away before anybody knew whose it is."""
        self._add({"tenant": None, "path": path, "outcome": "denied", "status": status, "reason": reason})

    async def run(self) -> None:
        """Write again and again, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what has been collected."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        if not await asyncio.to_thread(self._write, lines):
            self._lost += len(lines)
        elif self._lost:
            _LOG.warning("%d lines of the call log are lost", self._lost)
            self._lost = 0

    def _add(self, fields: dict[str, object]) -> None:
        if len(self._lines) >= _MAX_LINES:
            self._lost += 1
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{stamp}.{int(now % 1 * 1000):03d}Z", **fields}
        self._lines.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _pseudonym(self, call: Call, kind: str, name: str) -> str | None:
        if not name:
            return None
        told = f"{kind}\0{call.tenant}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.digest(self.salt, told, "sha256")[:_PSEUDONYM_BYTES].hex()

    def _write(self, lines: list[bytes]) -> bool:
        """In a thread; one at a time, so that lines keep their order. Whether it could be done."""
        with self._writing:
            # What failed may have been written in part: its end must not be glued to the next line.
            data = b"".join([b"\n", *lines] if self._failing else lines)
            try:
                self._append(data)
            except OSError as error:
                if not self._failing:
                    _LOG.error("the call log can't be written: %s: %s", self._path, error.strerror)
                self._failing = True
                return False
            self._failing = False
            return True

    def _append(self, data: bytes) -> None:
        if self._path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            with self._path.open("ab") as file:
                file.write(data)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
