"""Compiles what every call passes into a wheel with mypyc: a build hook for hatchling, off by default.

That is the scheduling core and the sidecar's data path. Both are plain Python and stay the fallback: a wheel
that is built without this hook, and every checkout, runs them as they are. A compiled module lies beside its
source in the wheel and is imported instead of it. Needs mypy, setuptools and a C compiler. See
docs/adr/0004-compiled-hot-path.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CORE = Path("fairserve", "core")
#: A compiled class can't inherit from an exception; the package itself only names what others define.
PLAIN = {"__init__.py", "errors.py"}
#: Of the data path, what each call or each chunk of a stream passes.
DATA_PATH = {
    "engine": ("admission", "endpoints", "requests", "usage"),
    "sidecar": (
        "accounting",
        "chains",
        "dispatch",
        "forwarding",
        "identity",
        "matching",
        "messages",
        "metrics",
        "naming",
        "proxy",
        "scheduled_call",
        "server",
        "upstream",
    ),
}


class CompileHotPath(BuildHookInterface[Any]):
    """Adds compiled modules to a wheel. They are built in a folder of their own: a checkout stays pure."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless the package is installed for editing: what is edited must be what runs."""
        if version == "editable":
            return
        self._scratch = Path(mkdtemp(prefix="fairserve-compiled-"))
        for built in compile_hot_path(Path(self.root, "serving"), self._scratch):
            build_data["force_include"][str(built)] = str(built.relative_to(self._scratch / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the compiler left; the wheel is written."""
        if version != "editable":
            shutil.rmtree(self._scratch)


def compile_hot_path(source: Path, scratch: Path) -> list[Path]:
    """The extension modules of what is under `source`, built under `scratch`/lib."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    modules = [path for path in (source / CORE).glob("*.py") if path.name not in PLAIN]
    for room, names in DATA_PATH.items():
        modules += [source / "fairserve" / room / f"{name}.py" for name in names]
    extensions = mypycify(
        ["--config-file=", "--strict", *map(str, sorted(modules))],
        opt_level="3",
        target_dir=str(scratch / "c"),
        group_name="fairserve_compiled",
    )
    command = Distribution({"name": "fairserve", "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(scratch / "lib"), str(scratch / "objects")
    command.ensure_finalized()
    command.run()
    return sorted((scratch / "lib").rglob("*.so"))
