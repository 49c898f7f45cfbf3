"""The processes that `fairserve up` starts: they log to files and never outlive it.

Each child leads a process group, so that stopping it stops what it started, and a Ctrl-C in the terminal
reaches only `fairserve up`, which then ends them in order. Should it be killed itself, the kernel ends
the children.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ChildEndedError(RuntimeError):
    """A child ended though nobody asked it to."""


class Child:
    """One process. Start it from the thread that lives longest: the kernel's signal follows that thread."""

    def __init__(
        self,
        name: str,
        args: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`env` is added to this process's; `death_signal` is sent when this process dies."""
        self.name = name
        self.log = log
        self._args = list(args)
        self._env = dict(env or {})
        self._death_signal = death_signal
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        parent = os.getpid()
        death_signal = int(self._death_signal)

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:  # It died before the call above could tell.
                os._exit(1)

        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._args,
                env={**os.environ, **self._env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._process.pid

    async def ended(self) -> None:
        """Wait for its end and raise ChildEndedError, which quotes the end of its log."""
        if self._process is not None:
            code = await self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise ChildEndedError(f"the {self.name} ended ({how}); its last words:\n{self.last_words()}")

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(f"  {line}" for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, wait that long, then kill it and all that it started."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self._process = None
