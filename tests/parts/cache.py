"""Where prepared parts are kept, so that a machine builds each of them once.

A cached part is a folder named after its lock files' hash: a changed lock makes a new folder, and a folder
that exists is complete, since it is filled under another name and renamed at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: The checkout that the lock files are read from.
REPOSITORY = Path(__file__).resolve().parents[2]

#: How often a long build says that it still runs, in seconds.
_HEARTBEAT_S = 60.0


class BuildError(RuntimeError):
    """A part cannot be prepared: a tool is missing or its build fails."""


def root() -> Path:
    """Return the cache folder: `$FAIRSERVE_CACHE`, or `~/.cache/fairserve`."""
    return Path(os.environ.get("FAIRSERVE_CACHE") or Path.home() / ".cache" / "fairserve")


def key(locks: Sequence[Path], recipe: Sequence[str] = ()) -> str:
    """Return 16 hex digits that change with the lock files' content and the words of the recipe."""
    digest = hashlib.sha256()
    for part in [*(lock.read_bytes() for lock in locks), *(word.encode() for word in recipe)]:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def say(line: str) -> None:
    """Print one progress line on stderr."""
    print(line, file=sys.stderr, flush=True)


def ensure(
    part: str,
    locks: Sequence[Path],
    recipe: Sequence[str],
    build: Callable[[Path, Path], None],
    announcement: str,
) -> Path:
    """Return the cached folder of a part, and build it first if there is none.

    `build(folder, log)` fills an empty folder that is renamed afterwards, so nothing in it may hold its own
    path. Two processes never build the same part twice: the second waits for the first.
    """
    name = f"{part}-{key(locks, recipe)}"
    folder = root() / name
    if folder.is_dir():
        return folder
    root().mkdir(parents=True, exist_ok=True)
    with _exclusive(root() / f"{name}.lock", part):
        if folder.is_dir():
            return folder
        say(announcement)
        started = time.monotonic()
        filling = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root()))
        filling.chmod(0o755)
        try:
            build(filling, root() / f"{name}.log")
            if name != f"{part}-{key(locks, recipe)}":
                raise BuildError(f"the lock files of {part} changed while it was built; start again")
            filling.rename(folder)
        finally:
            shutil.rmtree(filling, ignore_errors=True)
        say(f"{part} is ready after {time.monotonic() - started:.0f} s: {folder}")
    return folder


def run(
    args: Sequence[str | Path], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run one build step with its output in the log, and say every minute that it still runs.

    Raises BuildError with the log's last lines when the step fails.
    """
    started = time.monotonic()
    with log.open("ab") as output:
        step = subprocess.Popen(
            [str(arg) for arg in args],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    status = step.wait(timeout=_HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    say(f"  {Path(args[0]).name} still runs after {time.monotonic() - started:.0f} s")
        finally:
            if step.poll() is None:
                step.terminate()
                step.wait()
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BuildError(
            f"{' '.join(str(arg) for arg in args)} ended with status {status}; {log} ends with\n{tail}"
        )


def tool(name: str, purpose: str) -> str:
    """Return the path of a program on PATH; raises BuildError that says what it is needed for."""
    path = shutil.which(name)
    if path is None:
        raise BuildError(f"{name} is not on PATH; it is needed to {purpose}")
    return path


@contextmanager
def _exclusive(path: Path, part: str) -> Iterator[None]:
    """Hold a lock between processes; the kernel frees it when its holder dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {part}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
