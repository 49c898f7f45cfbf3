"""The operator beside a GitOps tool: another manager's applies find nothing to change, in any order."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.operating import Place, two_teams, until
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

EXAMPLE = REPOSITORY / "examples" / "gitops"
OBJECTS = [
    ("tenants", "team-a"),
    ("tenants", "team-b"),
    ("applications", "chat"),
    ("applications", "agent"),
    ("servingpools", "llm"),
]


@pytest.fixture
def place(api: ControlPlane, everywhere: Process, namespace: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(api, namespace, stack)


def kstatus(body: dict[str, Any]) -> str:
    """What kstatus, and with it Flux, makes of an object of a kind that it doesn't know."""
    status, metadata = body.get("status", {}), body["metadata"]
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration") != metadata["generation"]:
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    if conditions.get("Stalled") == "True":
        return "Failed"
    if conditions.get("Reconciling") == "True" or conditions.get("Ready") != "True":
        return "InProgress"
    return "Current"


def apply_as_argocd(place: Place, manifests: list[dict[str, Any]]) -> None:
    """As Argo CD does, without taking any field from anybody."""
    for manifest in manifests:
        if manifest["kind"] == "ServingPool":
            manifest["spec"]["sidecar"] = {"controlPort": place.control_port}
    text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
    command = ("apply", "--server-side", "--field-manager=argocd-controller", "-n", place.namespace)
    place.control_plane.kubectl(*command, "-f", "-", stdin=text)


def until_all_current(place: Place) -> None:
    for kind, name in OBJECTS:
        until(lambda kind=kind, name=name: kstatus(place.get(kind, name)) == "Current", f"{kind} {name}")


def test_another_managers_applies_find_nothing_to_change(place: Place) -> None:
    place.pod("a")
    apply_as_argocd(place, two_teams())
    until_all_current(place)
    until(lambda: "window" in place.get("servingpools", "llm")["status"], "the first survey")
    until(lambda: "activeUsers" in place.get("tenants", "team-b")["status"], "the first survey's news")

    def versions() -> list[str]:
        return [place.get(kind, name)["metadata"]["resourceVersion"] for kind, name in OBJECTS]

    before = versions()
    for _ in range(10):
        apply_as_argocd(place, two_teams())
    assert versions() == before
    for kind, name in OBJECTS:
        owned = [
            each
            for each in place.get(kind, name)["metadata"]["managedFields"]
            if each["manager"] == "fairserve-operator"
        ]
        assert [(each["operation"], each["subresource"]) for each in owned] == [("Apply", "status")]
        assert list(owned[0]["fieldsV1"]) == ["f:status"]


def test_current_means_that_every_sidecar_runs_it(place: Place) -> None:
    sidecars = [place.pod("a"), place.pod("b")]
    apply_as_argocd(place, two_teams())
    until_all_current(place)
    for weight in (2, 5, 4):
        changed = two_teams()
        team = next(each for each in changed if each["metadata"]["name"] == "team-a")
        team["spec"]["weight"] = weight
        apply_as_argocd(place, changed)
        until(lambda: kstatus(place.get("tenants", "team-a")) == "Current", "team-a to be current")
        for sidecar in sidecars:
            assert {each.name: each.weight for each in sidecar.config.tenants}["team-a"] == weight


def test_objects_may_arrive_in_any_order(place: Place) -> None:
    place.pod("a")
    order = sorted(two_teams(), key=lambda each: secrets.token_bytes(4))
    print("\norder:", [f"{each['kind']} {each['metadata']['name']}" for each in order])
    for manifest in order:
        apply_as_argocd(place, [manifest])
    until_all_current(place)


@pytest.mark.parametrize("at_rest", [False, True], ids=["in the middle of changes", "at rest"])
def test_namespace_that_is_deleted_goes_away(place: Place, everywhere: Process, at_rest: bool) -> None:
    place.pod("a")
    apply_as_argocd(place, two_teams())
    place.until_condition("tenants", "team-a", "Ready", "True")
    doomed = f"doomed-{secrets.token_hex(4)}"
    place.control_plane.create_namespace(doomed)
    with ExitStack() as stack:
        other = Place(place.control_plane, doomed, stack)
        other.pod("a")
        apply_as_argocd(other, two_teams())
        until(other.boot_secret, "the boot Secret")
        if at_rest:
            until_all_current(other)
        else:
            other.patch("tenants", "team-a", {"weight": 9})
        other.control_plane.request("DELETE", f"/api/v1/namespaces/{doomed}")
        path = f"/api/v1/namespaces/{doomed}"

        def gone() -> bool:
            listed = other.control_plane.request("GET", "/api/v1/namespaces")["items"]
            return doomed not in {each["metadata"]["name"] for each in listed}

        until(gone, path)
    place.patch("tenants", "team-a", {"weight": 9})
    place.until_condition("tenants", "team-a", "Programmed", "True")
    assert everywhere.alive


@pytest.mark.parametrize(
    ("overlay", "mode", "weight", "admits"),
    [("staging", "Shadow", 1, True), ("production", "Enforce", 2, False)],
)
def test_example_comes_into_force_in_each_environment(
    api: ControlPlane, everywhere: Process, overlay: str, mode: str, weight: int, admits: bool
) -> None:
    rendered = [each for each in yaml.safe_load_all(api.kubectl("kustomize", EXAMPLE / overlay)) if each]
    namespace = f"llm-{overlay}"
    assert {each["metadata"].get("namespace", namespace) for each in rendered} == {namespace}
    api.create_namespace(namespace)
    with ExitStack() as stack:
        place = Place(api, namespace, stack)
        sidecar = place.pod("a")
        apply_as_argocd(place, rendered)
        for name in ("team-a", "team-b"):
            until(
                lambda name=name: place.condition("tenants", name, "Ready").get("reason") == "SecretMissing",
                f"{name} to miss its Secret",
            )
        keys = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"{team}-key"},
                "stringData": {"api-key": f"key of {team} in {overlay}"},
            }
            for team in ("team-a", "team-b")
        ]
        place.apply(keys)
        until_all_current(place)
        config = sidecar.config
        assert config.mode.value == mode
        assert (config.default_tenant is not None) is admits
        assert {each.name: each.weight for each in config.tenants} == {"team-a": 3, "team-b": weight}
        api.kubectl("delete", "--wait", "--timeout=60s", "namespace", namespace)


def test_files_of_the_example_are_all_used() -> None:
    used: set[Path] = set()
    for kustomization in EXAMPLE.glob("*/kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text())
        named = [
            *content["resources"],
            *(each["path"] for each in content.get("patches", ()) if "path" in each),
        ]
        used |= {kustomization, *((kustomization.parent / name).resolve() for name in named)}
    files = set(EXAMPLE.rglob("*.yaml"))
    assert files - {path for path in used if path.is_file()} == set()
