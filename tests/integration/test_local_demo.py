"""`fairserve demo` on the example: its own judge decides, and it must find a policy that is not fair."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.parts.process import Process, poll

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "01-two-teams"
ENV = {"PYTHONPATH": f"{ROOT / 'serving'}{os.pathsep}{ROOT / 'operator'}", "COLUMNS": "200"}


def run_demo(tmp_path: Path, folder: Path) -> str:
    arguments = [sys.executable, "-m", "fairserve.cli", "demo", "-f", str(folder), "--seconds", "30"]
    process = Process("demo", arguments, tmp_path / "demo.log", env=ENV).start()
    try:
        poll(lambda: not process.alive, 300, "the end of the demo")
    finally:
        process.stop()
    return process.log.read_text()


def test_the_demo_holds(tmp_path):
    said = run_demo(tmp_path, EXAMPLE)
    assert "All of this holds." in said
    assert "throttling is on (SignalAboveThreshold: queue-wait" in said
    assert "throttling is off" in said
    assert "FAILED" not in said


def test_the_demo_fails_where_the_policy_is_not_fair(tmp_path):
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "manifests"))
    pool = folder / "pool.yaml"
    pool.write_text(pool.read_text().replace("policy: FairServe", "policy: FCFS"))
    said = run_demo(tmp_path, folder)
    failed = next(line for line in said.splitlines() if line.startswith("Failed: "))
    assert "Service, A : B" in failed
