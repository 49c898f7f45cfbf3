"""A running `fairserve up`, as the tests that look at one see it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.cache import REPOSITORY
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port

TWO_TEAMS = REPOSITORY / "examples" / "01-two-teams"
ENV = {"PYTHONPATH": f"{REPOSITORY / 'serving'}{os.pathsep}{REPOSITORY / 'operator'}", "COLUMNS": "200"}
EMULATOR = ("--", "--max-num-seqs", "16")
#: What it prints last before it serves.
STARTED = "Ctrl-C stops everything"


def command(*arguments: object) -> list[str]:
    """`fairserve` with these arguments."""
    return [sys.executable, "-m", "fairserve.cli", *map(str, arguments)]


def edit(file: Path, old: str, new: str) -> None:
    """Replace what is there once at least, in its first place."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@dataclass
class Up:
    """A running `fairserve up`."""

    process: Process
    folder: Path
    url: str
    control_url: str

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.process.log.read_text()

    def said(self, pattern: str) -> None:
        """Wait until it has printed this."""
        self.process.wait_until(lambda: re.search(pattern, self.log) is not None, 60, repr(pattern))

    def state(self) -> dict:
        """GET /state of the sidecar."""
        found = re.search(r"cat (\S+control-token)", self.log)
        assert found, self.log
        return Client(self.control_url, token=Path(found[1]).read_text()).json("GET", "/state")

    def service(self) -> dict[str, float]:
        """What each tenant has been given."""
        return {tenant["name"]: tenant["service"] for tenant in self.state()["tenants"]}

    def children(self) -> list[int]:
        """The processes that it started."""
        return [
            int(e.name)
            for e in Path("/proc").iterdir()
            if e.name.isdigit() and _parent(e) == self.process.pid
        ]


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@contextmanager
def running_up(tmp_path: Path, *options: str, engine: tuple[str, ...] = EMULATOR) -> Iterator[Up]:
    """Run a copy of the first example on free ports; `engine` are the arguments after the options."""
    folder = Path(shutil.copytree(TWO_TEAMS, tmp_path / "manifests"))
    port, control = free_port(), free_port()
    arguments = command("up", "-f", folder, "--port", port, "--control-port", control, *options, *engine)
    with Process("up", arguments, tmp_path / "up.log", env=ENV) as process:
        up = Up(process, folder, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}")
        up.said(STARTED)
        yield up
