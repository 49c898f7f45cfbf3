"""Builds programs from a folder that holds nothing but a go.mod and a go.sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.parts import cache


def ensure(
    part: str,
    module: Path,
    programs: Mapping[str, str],
    announcement: str,
    *,
    ldflags: str = "-s -w",
    tags: Sequence[str] = (),
) -> Path:
    """Return the cached folder with the programs (file name: package path), built first if there is none.

    Raises BuildError when Go is missing or the build fails.
    """
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-tags", ",".join(tags)]
    recipe = [*flags, *(word for item in sorted(programs.items()) for word in item)]

    def build(folder: Path, log: Path) -> None:
        go = cache.tool("go", f"build {part} from Go modules")
        # A static program runs whatever the C library of the machine is, and needs no C compiler.
        environment = {"CGO_ENABLED": "0", "GOWORK": "off"}
        cache.run(
            [go, "build", *flags, "-o", f"{folder}/", *programs.values()], log, cwd=module, env=environment
        )
        for name, package in programs.items():
            built = folder / _program_name(package)
            if built.name != name:
                built.rename(folder / name)

    return cache.ensure(part, [module / "go.mod", module / "go.sum"], recipe, build, announcement)


def _program_name(package: str) -> str:
    """Return the file name that `go build` gives: the path's last word that is no version (`…/server/v3`)."""
    words = package.split("/")
    return words[-2] if words[-1][0] == "v" and words[-1][1:].isdigit() else words[-1]
