"""Helm 4 from Go modules: to lint and render the chart, and to install it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.parts import cache, golang

MODULE = cache.REPOSITORY / "tests" / "helm"
CHART = cache.REPOSITORY / "charts" / "fairserve"

_PROGRAMS = {"helm": "helm.sh/helm/v4/cmd/helm"}


def ensure_programs() -> Path:
    """Return the cached folder with helm."""
    required = re.compile(r"^\s*(?:require )?helm\.sh/helm/v4 (v\S+)", re.MULTILINE)
    found = required.search((MODULE / "go.mod").read_text())
    if found is None:
        raise cache.BuildError(f"{MODULE / 'go.mod'} requires no helm.sh/helm/v4")
    # Without it helm calls itself v4.3, whatever it is.
    ldflags = f"-s -w -X helm.sh/helm/v4/internal/version.version={found[1]}"
    return golang.ensure(
        "helm", MODULE, _PROGRAMS, "building helm (about 2 minutes the first time)", ldflags=ldflags
    )


class HelmError(RuntimeError):
    """helm failed; the message holds its stderr."""


class Helm:
    """Runs helm with its files in a folder, against the cluster of a kubeconfig if there is one."""

    def __init__(self, directory: Path, kubeconfig: Path | None = None) -> None:
        """Builds helm if it isn't in the cache."""
        self._program = ensure_programs() / "helm"
        self._environment = {
            **os.environ,
            **{f"HELM_{kind}_HOME": str(directory / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")},
            # It ends before collecting what it leaves would pay: a quarter of the time.
            "GOGC": "off",
            # Without a cluster a mistaken command must not find somebody's.
            "KUBECONFIG": str(kubeconfig or directory / "no-kubeconfig"),
        }

    def __call__(self, *args: str | Path, stdin: str | None = None) -> str:
        """Run helm and return its stdout; raises HelmError with its stderr."""
        finished = subprocess.run(
            [self._program, *args],
            input=stdin or "",
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
        )
        if finished.returncode != 0:
            words = " ".join(str(arg) for arg in args)
            said = f"{finished.stdout}{finished.stderr}".strip()
            raise HelmError(f"helm {words} ended with status {finished.returncode}: {said}")
        return finished.stdout
