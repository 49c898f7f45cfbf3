"""Runs the commands of a page of the documentation, in order, and looks for what the page says they print.

A page's fenced blocks: `bash` is run; `bash background` is started and runs on, and is `fairserve up`;
`bash cluster` needs a Kubernetes cluster; `text` has lines that the commands before it print, or the
background, with `…` for anything. A block of `export` or of a function is in force from there on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.local_up import ENV, STARTED, Up
from tests.parts.cache import REPOSITORY
from tests.parts.process import Process, free_port, poll

_BLOCK = re.compile(r"^```(bash background|bash cluster|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DEFINITION = re.compile(r"export |\w+\(\) ")
#: Where the local `bin` of the page's commands is.
_PATH = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its kind."""
    return _BLOCK.findall(page.read_text())


class Walk:
    """A page whose commands are run."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where they run, and where the log of what runs in the background is."""
        self._folder = folder
        self._log = folder / "up.log"
        self._environment = ENV | {"PATH": _PATH}
        self._setup = ""
        self._said = ""

    def bash(self, text: str) -> str:
        """Run commands as the page's, and return what they print."""
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._setup + text],
            cwd=self._folder,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, f"{text}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def step(self, kind: str, text: str) -> None:
        """Run a block, or wait until what it shows is there."""
        if kind == "text":
            poll(lambda: self._appears(text), 60, f"the output {text!r} after {self._said!r}")
            return
        self._said = self.bash(text)
        if _DEFINITION.match(text):
            self._setup += text

    def background(self, text: str) -> Process:
        """The process of a background block, not yet started."""
        script = ["bash", "-c", f"{self._setup}exec {text}"]
        return Process("up", script, self._log, env=self._environment, cwd=self._folder)

    def _appears(self, expected: str) -> bool:
        log = self._log.read_text() if self._log.exists() else ""
        return shows(self._said, expected) or shows(log, expected)


@contextmanager
def walked(page: Path, example: Path, tmp_path: Path) -> Iterator[tuple[Walk, Up]]:
    """Run a page without a cluster, from a folder like the repository's root with a copy of the example.

    Gives it with the `fairserve up` that it started, which runs on within the block. Ports 8000 and 8001
    become free ones.
    """
    folder = tmp_path / "examples" / example.name
    shutil.copytree(example, folder)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    pool = folder / "pool.yaml"
    pool.write_text(replaced(pool.read_text(), ports))
    found = [(kind, replaced(text, ports)) for kind, text in blocks(page) if kind != "bash cluster"]
    assert [kind for kind, _ in found].count("bash background") == 1
    walk, up = Walk(tmp_path), None
    with ExitStack() as stack:
        for kind, text in found:
            if kind == "bash background":
                process = stack.enter_context(walk.background(text))
                up = Up(process, folder, *(f"http://127.0.0.1:{port}" for port in ports.values()))
                up.said(STARTED)
            else:
                walk.step(kind, text)
        assert up is not None
        yield walk, up


def replaced(text: str, words: Mapping[str, str]) -> str:
    """A text with whole words replaced."""
    for old, new in words.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def shows(said: str, expected: str) -> bool:
    """Whether the expected lines are there, whole and in their order; an ellipsis stands for anything."""
    position = 0
    for line in expected.splitlines():
        words = ".*".join(map(re.escape, line.strip().split("…")))
        found = re.compile(rf"^\s*{words}\s*$", re.MULTILINE).search(said, position)
        if found is None:
            return False
        position = found.end()
    return True


def example(name: str) -> Path:
    """A folder in examples/."""
    return REPOSITORY / "examples" / name
