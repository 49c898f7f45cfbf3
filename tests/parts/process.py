"""A child process for tests: it logs to a file, is waited for by polling, and never outlives its parent.

Every child leads a session of its own, so that stopping it stops what it started as well.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

#: Asks Linux (`PR_SET_PDEATHSIG` is 1) for a signal when the parent ends, then becomes the program itself.
#: It is a program of its own, since a function between fork and exec may deadlock where other threads run.
#: A parent that died before the request sends no signal any more, hence the comparison.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
if os.getppid() != int(sys.argv[2]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[3], sys.argv[3:])
"""

#: Linux sends the parent-death signal when the *thread* that started the child ends. One thread that lives as
#: long as this process starts them all, so that a child started from a short-lived thread outlives that.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

#: Ports below the kernel's range for outgoing connections, so that none of those takes a port between
#: `free_port` and the server that listens on it.
_PORTS = range(15000, 32000)
_given_ports: set[int] = set()

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25


class ProcessEndedError(RuntimeError):
    """A process ended while something was still waited for."""


class DeadlineError(TimeoutError):
    """What was waited for did not come in time."""


def poll(
    fn: Callable[[], T | None], deadline_s: float, what: str, *, check: Callable[[], None] | None = None
) -> T:
    """Call `fn` until it returns something true, and return that.

    An OSError (refused, reset, HTTP error status) counts as "not yet". `check` runs before each try and may
    raise. Raises DeadlineError, which names `what` and the last error, after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    pause = _FIRST_PAUSE_S
    reason = ""
    while True:
        if check is not None:
            check()
        try:
            value = fn()
            if value:
                return value
            reason = f"last result: {value!r}"
        except OSError as error:
            reason = f"last error: {error!r}"
        if time.monotonic() >= end:
            raise DeadlineError(f"{what}: not within {deadline_s:g} s ({reason})")
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)


def free_port() -> int:
    """Return a TCP port that nothing uses on any address, and that this process is given only once."""
    # Chance of the system's, because processes that share the tests may have been seeded alike.
    for port in random.SystemRandom().sample(_PORTS, 200):
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port
    raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def group_members(group: int) -> list[int]:
    """Return the processes of a process group that still run; zombies are left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # It ended in between.
            continue
        # The name in parentheses may hold spaces; after it come the state, the parent and the group.
        state, _, member_of = stat.rpartition(")")[2].split()[:3]
        if int(member_of) == group and state not in "ZX":
            members.append(int(entry.name))
    return members


class Process:
    """One child process, and whatever it starts in turn.

    `log` receives stdout and stderr and is appended to, so that it keeps the story over restarts.
    `death_signal` is what the child gets when this process dies without stopping it.
    """

    def __init__(
        self,
        name: str,
        args: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Describe the process; `env` is added to this process's environment."""
        self.name = name
        self.args = [str(arg) for arg in args]
        self.log = log
        self._env = dict(env or {})
        self._cwd = cwd
        self._death_signal = death_signal
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; a process that was stopped or killed starts anew."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        self._reap()
        self._child = _SPAWNER.submit(self._spawn).result()
        return self

    @property
    def pid(self) -> int:
        """The process id, which is its process group too; raises RuntimeError before the start."""
        if self._child is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it is started and has not ended."""
        return self._child is not None and self._child.returncode is None and not _ended(self._child.pid)

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, condition: Callable[[], T | None], deadline_s: float, what: str | None = None) -> T:
        """Poll until `condition` returns something true, and return that.

        Raises ProcessEndedError as soon as the process has ended, and DeadlineError after `deadline_s`
        seconds; both say what was waited for and end with the log's last lines.
        """
        waited_for = f"waiting for {what or 'a condition'} of {self.name}"

        def check() -> None:
            if not self.alive:
                raise ProcessEndedError(f"{waited_for}: it ended; {self._log_report()}")

        try:
            return poll(condition, deadline_s, waited_for, check=check)
        except DeadlineError as error:
            raise DeadlineError(f"{error}; {self._log_report()}") from error

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask it to end (TERM), and kill it and what it started if that takes longer than `grace_s`."""
        self._end(signal.SIGTERM, grace_s)

    def kill(self) -> None:
        """Kill it and all that it started, at once and without warning."""
        self._end(signal.SIGKILL, 0.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-ISc", _LAUNCHER, str(int(self._death_signal)), str(os.getpid())]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [*launcher, *self.args],
                cwd=self._cwd,
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, sign: signal.Signals, grace_s: float) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        # As long as the child is not reaped its number stays taken, so no signal here can hit a stranger.
        if not _ended(child.pid):
            os.kill(child.pid, sign)
        with suppress(DeadlineError):
            poll(lambda: _ended(child.pid), grace_s, f"the end of {self.name}")
        os.killpg(child.pid, signal.SIGKILL)
        poll(lambda: not group_members(child.pid), 30.0, f"the end of all processes of {self.name}")
        self._reap()

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait()

    def _log_report(self) -> str:
        return f"{self.log} ends with\n{self.log_tail()}"


def _ended(pid: int) -> bool:
    """Whether a child has ended; it stays a zombie, so that its number is not given to another process."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
