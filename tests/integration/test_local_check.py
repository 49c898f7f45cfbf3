"""`fairserve check`: what a cluster would make of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairserve.cli import app

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-two-teams"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "manifests"))


def check(folder: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", "-f", str(folder), *options], env={"COLUMNS": "250"})
    return result.exit_code, result.output


def test_the_example_is_accepted():
    status, output = check(EXAMPLE)
    assert status == 0
    assert output.count("accepted") == 5


def test_a_broken_object_is_refused_and_the_others_accepted(folder):
    tenants = folder / "tenants.yaml"
    tenants.write_text(tenants.read_text().replace("weight: 3", "weight: -3"))
    status, output = check(folder)
    assert status == 1
    assert "spec.weight" in output
    assert "tenants.yaml:7" in output
    assert output.count("accepted") == 4


def test_a_missing_secret_is_refused_by_condition(folder):
    (folder / "keys.yaml").unlink()
    status, output = check(folder)
    assert status == 1
    assert output.count("ResolvedRefs=False") == 2
    assert "team-a-key" in output


def test_what_should_be_known_of_an_accepted_object_is_told(folder):
    tenants = folder / "tenants.yaml"
    tenants.write_text(tenants.read_text().replace("weight: 3", "weight: 3\n  stopPolicy: Hold"))
    status, output = check(folder)
    assert status == 0
    assert "spec.stopPolicy: Hold: the tenant begins no new interactions" in output


def test_an_unknown_pool_is_refused(folder):
    status, output = check(folder, "--pool", "x")
    assert status == 1
    assert "no ServingPool 'x'" in output
