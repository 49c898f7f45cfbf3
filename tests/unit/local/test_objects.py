"""The folder as an API server would hold it, and the pool that is compiled from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from fairserve.config import key_digest
from fairserve.local.compilation import FolderError
from fairserve.local.desired import Desired
from fairserve.local.manifests import read_folder
from fairserve.local.objects import Objects
from fairserve_operator.decide.jwks import CLUSTER, KeySet, KeysProblem
from fairserve_operator.decide.resources import SecretProblem, SecretRef

EXAMPLE = Path(__file__).parents[3] / "examples" / "01-two-teams"
SALT = "ab" * 16


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "manifests"))


def edit(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def changes(objects: Objects, folder: Path) -> list[str]:
    return [str(change) for change in objects.apply(read_folder(folder))]


def test_changes_are_told_field_by_field(folder):
    objects = Objects()
    assert "Tenant team-a added" in changes(objects, folder)
    assert changes(objects, folder) == []
    edit(folder, "tenants.yaml", "weight: 3", "weight: 1")
    assert changes(objects, folder) == ["Tenant team-a weight 3 → 1"]
    (folder / "applications.yaml").unlink()
    assert sorted(changes(objects, folder)) == ["Application agent removed", "Application chat removed"]


def test_a_changed_secret_is_told_without_its_value(folder):
    objects = Objects()
    objects.apply(read_folder(folder))
    edit(folder, "keys.yaml", "demo-key-of-team-a", "another")
    assert changes(objects, folder) == ["Secret team-a-key api-key changed"]


@pytest.mark.parametrize("broken", ["weight: 0", "weight: [", "wieght: 3"])
def test_a_bad_edit_leaves_the_object_as_it_was_and_takes_the_others(folder, broken):
    objects = Objects()
    objects.apply(read_folder(folder))
    edit(folder, "tenants.yaml", "weight: 3", broken)
    edit(folder, "tenants.yaml", "weight: 1", "weight: 5")
    assert changes(objects, folder) == ["Tenant team-b weight 1 → 5"]
    weights = {r.key.name: r.spec["weight"] for r in objects.resources("Tenant")}
    assert weights == {"team-a": 3, "team-b": 5}
    edit(folder, "tenants.yaml", broken, "weight: 4")
    assert changes(objects, folder) == ["Tenant team-a weight 3 → 4"]


def test_objects_keep_their_age_over_edits(folder):
    objects = Objects()
    objects.apply(read_folder(folder))
    before = {r.key: (r.created, r.uid) for r in objects.resources("Tenant")}
    edit(folder, "tenants.yaml", "weight: 3", "weight: 1")
    (folder / "a-first.yaml").write_text((EXAMPLE / "tenants.yaml").read_text().replace("team-", "new-"))
    objects.apply(read_folder(folder))
    after = {r.key: (r.created, r.uid) for r in objects.resources("Tenant")}
    assert {key: after[key] for key in before} == before
    newer = [created for key, (created, _) in after.items() if key not in before]
    assert min(newer) > max(created for created, _ in before.values())


def test_secret_values_and_what_is_missing(folder):
    edit(folder, "keys.yaml", "demo-key-of-team-b", '" "')
    objects = Objects()
    objects.apply(read_folder(folder))
    refs = {
        name: SecretRef("default", *name)
        for name in [
            ("team-a-key", "api-key"),
            ("team-b-key", "api-key"),
            ("team-a-key", "x"),
            ("x", "api-key"),
        ]
    }
    digests = objects.digests(refs.values(), SALT)
    assert [digests[ref] for ref in refs.values()] == [
        key_digest(SALT, "demo-key-of-team-a"),
        SecretProblem.EMPTY,
        SecretProblem.KEY_MISSING,
        SecretProblem.SECRET_MISSING,
    ]


JWKS = """\
apiVersion: v1
kind: Secret
metadata: {name: jwks}
stringData:
  keys.json: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
"""


def test_keys_of_an_issuer_come_from_the_folder_or_not_at_all(folder):
    (folder / "jwks.yaml").write_text(JWKS)
    objects = Objects()
    objects.apply(read_folder(folder))
    here, nowhere = (SecretRef("default", name, "keys.json") for name in ("jwks", "x"))
    keys = objects.keys([here, nowhere, "https://id.example/keys", CLUSTER])
    assert isinstance(keys[here], KeySet)
    assert [key["kid"] for key in keys[here].keys] == ["k"]
    assert keys[nowhere] == KeysProblem("SecretMissing", 'jwksSecretRef: Secret "x" not found')
    for fetched in ("https://id.example/keys", CLUSTER):
        assert isinstance(keys[fetched], KeysProblem)
        assert "jwksSecretRef" in keys[fetched].message


def desired(folder: Path, pool: str | None = None) -> tuple[Desired, list[str]]:
    said: list[str] = []
    return Desired(folder, pool, SALT, said.append), said


def test_the_example_compiles(folder):
    wanted, said = desired(folder)
    config = wanted.look().config
    assert {tenant.name: tenant.weight for tenant in config.tenants} == {"team-a": 3, "team-b": 1}
    assert {key.digest for key in config.identity.api_keys} == {
        key_digest(SALT, f"demo-key-of-{team}") for team in ("team-a", "team-b")
    }
    assert said == []


def test_an_override_is_laid_over_the_pool(folder):
    wanted, _ = desired(folder)
    config = wanted.look({"scheduler": {"policy": "FCFS"}, "throttling": {"mode": "Shadow"}}).config
    assert (config.scheduler.policy, config.mode) == ("FCFS", "Shadow")
    assert wanted.look().config.scheduler.policy == "FairServe"


def test_what_is_wrong_is_said_once(folder):
    wanted, said = desired(folder)
    edit(folder, "keys.yaml", "name: team-b-key", "name: other")
    target = wanted.look()
    assert {key.tenant for key in target.config.identity.api_keys} == {"team-a"}
    assert len(said) == 1
    assert 'Tenant "team-b"' in said[0]
    assert "team-b-key" in said[0]
    wanted.look()
    assert len(said) == 1


def test_several_pools_are_named(folder):
    pool = (EXAMPLE / "pool.yaml").read_text()
    (folder / "second.yaml").write_text(
        pool.replace("name: llm", "name: small").replace("app: vllm", "app: s")
    )
    with pytest.raises(FolderError, match=r"\(llm, small\); choose one with --pool"):
        desired(folder)[0].look()
    assert desired(folder, "small")[0].look().pool.name == "small"
    with pytest.raises(FolderError, match="no ServingPool 'x'"):
        desired(folder, "x")[0].look()


def test_an_object_of_another_namespace_is_named(folder):
    edit(folder, "tenants.yaml", "name: team-a", "name: team-a\n  namespace: elsewhere")
    wanted, said = desired(folder)
    assert [tenant.name for tenant in wanted.look().config.tenants] == ["team-b"]
    assert any("team-a" in line and "elsewhere" in line for line in said)


def test_a_folder_without_a_pool_serves_nothing(tmp_path):
    with pytest.raises(FolderError, match="no well-formed ServingPool"):
        desired(tmp_path)[0].look()


def test_a_pool_that_names_an_inference_pool_of_the_folder_is_served(folder):
    pool = folder / "pool.yaml"
    document = yaml.safe_load(pool.read_text())
    labels = document["spec"].pop("selector")["matchLabels"]
    document["spec"]["poolRef"] = {"name": "vllm"}
    pool.write_text(yaml.safe_dump(document))
    said: list[str] = []
    desired = Desired(folder, None, SALT, said.append)
    assert desired.look().config.pool == "default/llm"
    assert said == [
        'refused: pool.yaml:1: ServingPool "llm": ResolvedRefs=False (InferencePoolMissing): spec.poolRef: '
        'ServingPool "llm" names InferencePool "vllm", which is not found'
    ]
    made = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "vllm"},
        "spec": {"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}]},
    }
    (folder / "inference-pool.yaml").write_text(yaml.safe_dump(made))
    said.clear()
    desired.look()
    assert said == []


def test_a_changed_label_of_an_application_changes_who_may_use_it(folder):
    edit(folder, "tenants.yaml", "weight: 3", "weight: 3\n  applications: {selector: {matchLabels: {a: b}}}")
    desired = Desired(folder, None, SALT, lambda text: None)

    def usable() -> tuple[str, ...] | None:
        target = desired.look()
        return next(t.applications for t in target.config.tenants if t.name == "team-a")

    assert usable() == ()
    text = (folder / "applications.yaml").read_text()
    assert "metadata: {name: chat}" in text or "  name: chat" in text
    text = text.replace("metadata: {name: chat}", "metadata: {name: chat, labels: {a: b}}")
    (folder / "applications.yaml").write_text(
        text.replace("  name: chat\n", "  name: chat\n  labels: {a: b}\n")
    )
    target = desired.look()
    assert [str(change) for change in target.changes] == ["Application chat label a unset → b"]
    assert usable() == ("chat",)
