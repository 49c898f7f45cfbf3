"""Each example on a real API server: `kubectl apply -f` takes it, and the operator each object in it."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.integration.operating import Place, until
from tests.integration.walkthrough import blocks, example
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane, ensure_programs
from tests.parts.process import Process

PLURALS = {"Tenant": "tenants", "Application": "applications", "ServingPool": "servingpools"}

#: Throttling and whether strangers are admitted, as applied and after the patches on the page.
BEFORE = {"05-default-tenant": ("Enforce", True), "07-shadow-then-enforce": ("Shadow", False)}
AFTER = ("Enforce", False)


def kubectl_for(place: Place, folder: Path) -> dict[str, str]:
    """An environment whose `kubectl` is one of this cluster, in the place's namespace."""
    shim = folder / "kubectl"
    kubectl, config = ensure_programs() / "kubectl", place.control_plane.kubeconfig
    shim.write_text(f'#!/bin/sh\nexec "{kubectl}" --kubeconfig "{config}" -n "{place.namespace}" "$@"\n')
    shim.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "KUBECACHEDIR": str(folder / "cache")}


def commands(name: str) -> list[str]:
    """What the example's page says to do on a cluster; to apply it where it has no page."""
    page = example(name) / "README.md"
    if not page.exists():
        return [f"kubectl apply -f examples/{name}"]
    return [text for kind, text in blocks(page) if kind == "bash cluster"]


def run(text: str, environment: dict[str, str]) -> None:
    """Run commands of a page from the repository's root; none of them may fail or warn."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, f"{text}\n{ended.stdout}\n{ended.stderr}"
    assert "Warning" not in ended.stderr


@pytest.mark.parametrize(
    "name",
    [
        "01-two-teams",
        "03-agents-and-chat",
        "04-rag-and-batch",
        "05-default-tenant",
        "06-jwt",
        "07-shadow-then-enforce",
    ],
)
def test_each_object_is_accepted_and_in_force(
    api: ControlPlane, everywhere: Process, namespace: str, tmp_path: Path, name: str
) -> None:
    files = sorted(example(name).glob("*.yaml"))
    objects = [each for file in files for each in yaml.safe_load_all(file.read_text()) if each]
    ours = [(PLURALS[each["kind"]], each["metadata"]["name"]) for each in objects if each["kind"] in PLURALS]
    tenants = sorted(object_name for kind, object_name in ours if kind == "tenants")
    with ExitStack() as stack:
        place = Place(api, namespace, stack)
        environment = kubectl_for(place, tmp_path)
        first, *others = commands(name)

        def in_force(mode: str, admits: bool) -> bool:
            document = place.boot_document()
            found = (document.mode.value, document.default_tenant is not None)
            return [each.name for each in document.tenants] == tenants and found == (mode, admits)

        run(f"kubectl apply --dry-run=server -f examples/{name}", environment)
        run(first, environment)
        for kind, object_name in ours:
            for condition in ("Accepted", "ResolvedRefs"):
                found = place.until_condition(kind, object_name, condition, "True")
                assert found["reason"] in ("Accepted", "Resolved"), found
        until(lambda: in_force(*BEFORE.get(name, AFTER)), "what pods boot from")
        for text in others:
            run(text, environment)
        until(lambda: in_force(*AFTER), "what pods boot from after the page's patches")
    assert everywhere.alive
