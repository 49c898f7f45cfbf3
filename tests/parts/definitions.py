"""Custom resource definitions of others, as they publish them in their Go modules."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.parts import cache


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module, the checksum of its content, and the definitions in it."""

    name: str
    checksum: str
    files: tuple[str, ...]


#: By what they are called here.
MODULES = {
    "gateway-api": Module(
        "sigs.k8s.io/gateway-api@v1.4.0",
        "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=",
        (
            "config/crd/standard/gateway.networking.k8s.io_gateways.yaml",
            "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
        ),
    ),
    "inference-extension": Module(
        "sigs.k8s.io/gateway-api-inference-extension@v1.6.0",
        "h1:cjtwMJYcTnLXBYE5ffR1/hHhn7U1aIFfe2RITYmOXVA=",
        ("config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",),
    ),
    "keda": Module(
        "github.com/kedacore/keda/v2@v2.19.0",
        "h1:IP3iMTwr9HkaAwPtLnhngPv74LghMf7ubLrsGLQo52M=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
}


def ensure(name: str) -> Path:
    """Return the cached folder with the definitions of a module of MODULES, fetched first if there is none.

    Raises BuildError when Go is missing, the module can't be had, or its content is not what it was.
    """
    module = MODULES[name]

    def fetch(folder: Path, log: Path) -> None:
        command = [cache.tool("go", f"fetch {module.name}"), "mod", "download", "-json", module.name]
        # Away from any go.mod, so that nothing but this module is fetched.
        fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        log.write_text(fetched.stdout + fetched.stderr)
        said = json.loads(fetched.stdout or "{}")
        if said.get("Sum") != module.checksum:
            raise cache.BuildError(f"{module.name}: {said.get('Error') or said.get('Sum') or fetched.stderr}")
        for file in module.files:
            shutil.copy(Path(said["Dir"]) / file, folder)

    recipe = [module.name, module.checksum, *module.files]
    return cache.ensure(f"definitions-{name}", [], recipe, fetch, f"fetching the definitions of {name}")
