"""Every command of the first tutorial is run, in order, and prints what the tutorial says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.parts.process import Process, free_port, poll

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorials" / "first-steps.md"
BLOCK = re.compile(r"^```(bash background|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def place(tmp_path: Path) -> dict[str, str]:
    """A folder like the repository's root, on ports of its own; what to replace in the tutorial's text."""
    shutil.copytree(ROOT / "examples" / "01-two-teams", tmp_path / "examples" / "01-two-teams")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    pool = tmp_path / "examples" / "01-two-teams" / "pool.yaml"
    pool.write_text(replaced(pool.read_text(), ports))
    return ports


def replaced(text: str, words: dict[str, str]) -> str:
    for old, new in words.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def shows(said: str, expected: str) -> bool:
    """Whether each expected line is there; an ellipsis stands for anything."""
    return all(
        re.search(".*".join(map(re.escape, line.strip().split("…"))), said) for line in expected.splitlines()
    )


def test_the_first_tutorial(tmp_path):
    ports = place(tmp_path)
    blocks = [(kind, replaced(text, ports)) for kind, text in BLOCK.findall(TUTORIAL.read_text())]
    assert [kind for kind, _ in blocks].count("bash background") == 1
    environment = {"PYTHONPATH": f"{ROOT / 'serving'}{os.pathsep}{ROOT / 'operator'}", "COLUMNS": "200"}
    setup, said = "", ""
    background: Process | None = None
    try:
        for kind, text in blocks:
            if kind == "bash background":
                script = ["bash", "-c", f"{setup}exec {text}"]
                background = Process("up", script, tmp_path / "up.log", env=environment, cwd=tmp_path).start()
                background.wait_until(
                    lambda: "Ctrl-C stops" in (tmp_path / "up.log").read_text(), 60, "the start"
                )
            elif kind == "bash":
                run = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", setup + text],
                    cwd=tmp_path,
                    env=os.environ | environment,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
                said = run.stdout
                if text.startswith("export "):
                    setup += text
            else:
                expected = text

                def appears(expected: str = expected, said: str = said) -> bool:
                    return shows(said, expected) or shows((tmp_path / "up.log").read_text(), expected)

                poll(appears, 60, f"the output {expected!r} after {said!r}")
    finally:
        if background is not None:
            background.stop()
