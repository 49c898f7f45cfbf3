"""The generated files: fresh, structural, without defaults, every field described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairserve_operator.crdgen import KINDS, crd, files, main, structural

ROOT = Path(__file__).parents[3]
KIND_BY_NAME = {kind.name: kind for kind in KINDS}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, node in schema.get("properties", {}).items():
        yield from nodes(node, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def root_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = crd(KIND_BY_NAME[name])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("path", files(), ids=str)
def test_checked_in_file_is_what_would_be_generated(path: Path) -> None:
    assert (ROOT / path).read_text() == files()[path]


def test_check_fails_for_a_changed_file_and_mends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    changed = tmp_path / "crds" / "fairserve.dev_tenants.yaml"
    changed.write_text("stale")
    capsys.readouterr()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "crds/fairserve.dev_tenants.yaml: differs from its models\n"
    assert changed.read_text() == "stale"


@pytest.mark.parametrize("name", KIND_BY_NAME)
def test_schema_is_structural_and_writes_nothing_into_objects(name: str) -> None:
    for path, node in nodes(root_schema(name)):
        assert "type" in node, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "default", "const", "title", "nullable"} & set(node), (
            path
        )
        assert not node.get("x-kubernetes-preserve-unknown-fields"), path
        assert node.get("additionalProperties") is not False, path


@pytest.mark.parametrize("name", KIND_BY_NAME)
def test_every_field_is_described_and_says_what_unset_means(name: str) -> None:
    kind = KIND_BY_NAME[name]
    for path, node in nodes(structural(kind.spec)):
        for field, below in node.get("properties", {}).items():
            description = below.get("description", "")
            required = field in node.get("required", ())
            alternatives = path.endswith(("identity[]", "signals[]"))
            assert description.endswith("."), f"{path}.{field}"
            if not required and not alternatives:
                assert "Default: " in description or "Unset: " in description, f"{path}.{field}"


@pytest.mark.parametrize("name", KIND_BY_NAME)
def test_every_field_of_a_status_is_described(name: str) -> None:
    for path, node in nodes(structural(KIND_BY_NAME[name].status)):
        for field, below in node.get("properties", {}).items():
            assert below.get("description", "").endswith("."), f"{path}.{field}"


@pytest.mark.parametrize("name", KIND_BY_NAME)
def test_list_maps_have_their_keys(name: str) -> None:
    keys = {
        path: node["x-kubernetes-list-map-keys"]
        for path, node in nodes(root_schema(name))
        if node.get("x-kubernetes-list-type") == "map"
    }
    assert keys[".status.conditions"] == ["type"]
    if name == "ServingPool":
        assert keys[".spec.overload.signals"] == ["name"]
        assert keys[".status.pods.behind"] == ["pod"]


def test_names_of_the_kinds() -> None:
    names = {kind.name: crd(kind)["spec"]["names"] for kind in KINDS}
    assert {name: n["shortNames"] for name, n in names.items()} == {
        "Tenant": ["fst"],
        "Application": ["fsapp"],
        "ServingPool": ["fspool"],
    }
    assert all(n["categories"] == ["fairserve"] for n in names.values())


def test_columns_read_fields_that_the_schema_has() -> None:
    for kind in KINDS:
        paths = {path for path, _ in nodes(root_schema(kind.name))}
        for column in kind.columns:
            if not column.path.startswith(".metadata"):
                assert column.path.split("[")[0] in paths, f"{kind.name} {column.name}"


def test_weight_zero_is_refused_by_the_schema() -> None:
    weight = root_schema("Tenant")["properties"]["spec"]["properties"]["weight"]
    assert (weight["minimum"], weight["exclusiveMinimum"]) == (0, True)


def test_no_yaml_alias_in_a_crd() -> None:
    for path, content in files().items():
        if path.suffix == ".yaml":
            assert not [e for e in yaml.parse(content) if isinstance(e, yaml.AliasEvent)], path
