"""Python environments of their own, for parts whose requirements would fight those of the tests."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from tests.parts import cache


def ensure(part: str, lock: Path, announcement: str, *flags: str) -> Path:
    """Return the folder of a cached environment, installed first from its lock if there is none.

    `flags` are more of `uv pip sync`. Raises BuildError when the installation fails.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    flags = ("--require-hashes", *flags)

    def install(folder: Path, log: Path) -> None:
        uv = _uv(folder.with_name(f"{folder.name}.uv"), log)
        # A relocatable environment survives the renaming of its folder.
        cache.run([*uv, "venv", "--relocatable", "--clear", "--python", sys.executable, folder], log)
        cache.run([*uv, "pip", "sync", *flags, "--python", folder / "bin" / "python", lock], log)
        shutil.rmtree(folder.with_name(f"{folder.name}.uv"), ignore_errors=True)

    return cache.ensure(part, [lock], [version, *flags], install, announcement)


def _uv(folder: Path, log: Path) -> list[str]:
    """Return the command of uv: this environment's or the one on PATH, else one put into the given folder."""
    if importlib.util.find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    if found is not None:
        return [found]
    cache.run([sys.executable, "-m", "venv", folder], log)
    cache.run([folder / "bin" / "python", "-m", "pip", "install", "uv"], log)
    return [str(folder / "bin" / "uv")]
