"""`make demo-cluster` with engine emulators: the example's own checks decide."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.parts.cache import REPOSITORY
from tests.parts.process import Process, poll

DEMO = REPOSITORY / "examples" / "02-cluster" / "demo.py"


def test_the_demo_holds(tmp_path: Path) -> None:
    arguments = [sys.executable, DEMO, "--engine", "emulator", "--seconds", "6"]
    process = Process("demo", arguments, tmp_path / "demo.log", env={"COLUMNS": "200"})
    with process:
        poll(lambda: not process.alive, 300, "the end of the demo")
    said = process.log.read_text()
    assert "everything that was started is stopped" in said
    assert said.count(" ok ") == 8, said
    assert "failed" not in said
