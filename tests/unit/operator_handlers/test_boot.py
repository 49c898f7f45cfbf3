"""The boot Secret: in one piece or in parts, and never a mixture of two documents."""

from __future__ import annotations

import base64
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fairserve.config import SchedulerConfig
from fairserve.sidecar.configuration import DocumentError, read_file
from fairserve_operator.decide.resources import SERVING_POOL
from fairserve_operator.errors import ApiServerError, ForeignSecretError
from fairserve_operator.handlers.boot import Boot, BootSecrets
from fairserve_operator.manifests import boot_secret
from fairserve_operator.manifests.boot_secret import POOL_LABEL, compressed
from tests.unit.operator_handlers.world import FakeCluster, FakeWorld, resource

POOL = resource(SERVING_POOL, "llm", {})


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("fairserve_operator.manifests.boot_secret", "fairserve_operator.handlers.boot"):
        monkeypatch.setattr(f"{place}.LONGEST_PART", 1000)


def document(generation: int) -> SchedulerConfig:
    """A document that fills some parts."""
    rng = random.Random(generation)
    names = [f"team-{rng.getrandbits(64):x}" for _ in range(200)]
    return SchedulerConfig.model_validate(
        {
            "pool": "ns/llm",
            "generation": generation,
            "identity": {"salt": "00" * 16},
            "tenants": [{"name": name} for name in sorted(names)],
        }
    )


async def write(secrets: BootSecrets, boot: Boot, generation: int) -> Boot:
    config = document(generation)
    packed = compressed(config.to_bytes())
    return await secrets.write(POOL, boot, generation, config.content_hash, packed, {})


def mount(cluster: FakeCluster, folder: Path) -> Path:
    """All Secrets in one folder, as a projected volume shows them; the path of the boot file."""
    for old in folder.iterdir():
        old.unlink()
    for secret in cluster.secrets.values():
        for name, value in secret["data"].items():
            (folder / name).write_bytes(base64.b64decode(value))
    return folder / "config.json.gz"


@pytest.mark.usefixtures("short_parts")
async def test_long_document_is_booted_from_parts_and_read_back(tmp_path: Path) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    boot = await write(secrets, await secrets.read(POOL, None), 1)
    names = {name for _, name in world.cluster.secrets}
    assert {"fairserve-llm", "fairserve-llm-a-0", "fairserve-llm-a-1"} <= names
    assert all(len(s["data"]) <= 2 for s in world.cluster.secrets.values())
    assert read_file(mount(world.cluster, tmp_path)).document == document(1)
    after_restart = await BootSecrets(world.store, world.cluster).read(POOL, None)
    assert after_restart == replace(boot, salt="00" * 16)  # That of the document.


@pytest.mark.usefixtures("short_parts")
async def test_reader_sees_one_document_or_none_at_every_moment_of_a_change(tmp_path: Path) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    boot = await write(secrets, await secrets.read(POOL, None), 1)
    seen = []

    class Watched(FakeCluster):
        async def write_secret(self, manifest):  # type: ignore[no-untyped-def]
            written = await super().write_secret(manifest)
            seen.append(read_file(mount(self, tmp_path)).document.generation)
            return written

    world.cluster.__class__ = Watched
    boot = await write(secrets, boot, 2)
    await write(secrets, boot, 3)
    assert seen == sorted(seen)
    assert set(seen) == {1, 2, 3}


@pytest.mark.usefixtures("short_parts")
async def test_parts_of_two_documents_are_not_believed(tmp_path: Path) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    boot = await write(secrets, await secrets.read(POOL, None), 1)
    path = mount(world.cluster, tmp_path)
    stale = (tmp_path / "config.json.gz.a.1").read_bytes()
    await write(secrets, await write(secrets, boot, 2), 3)
    mount(world.cluster, tmp_path)
    (tmp_path / "config.json.gz.a.1").write_bytes(stale)
    with pytest.raises(DocumentError, match="different documents"):
        read_file(path)
    world.cluster.secrets["ns", "fairserve-llm-a-1"]["data"]["config.json.gz.a.1"] = base64.b64encode(
        stale
    ).decode()
    found = await BootSecrets(world.store, world.cluster).read(POOL, None)
    assert (found.content_hash, found.intact) == (None, False)


@pytest.mark.usefixtures("short_parts")
async def test_operator_that_dies_between_parts_leaves_the_old_document(tmp_path: Path) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    boot = await write(secrets, await secrets.read(POOL, None), 1)

    class Dying(FakeCluster):
        async def write_secret(self, manifest):  # type: ignore[no-untyped-def]
            if manifest["metadata"]["name"].endswith("-1"):
                raise ApiServerError("Secret", 500, "gone")
            return await super().write_secret(manifest)

    world.cluster.__class__ = Dying
    with pytest.raises(ApiServerError):
        await write(secrets, boot, 2)
    assert read_file(mount(world.cluster, tmp_path)).document == document(1)
    world.cluster.__class__ = FakeCluster
    await write(secrets, await secrets.read(POOL, boot.unread()), 2)
    assert read_file(mount(world.cluster, tmp_path)).document == document(2)


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("labels", [{}, {POOL_LABEL: "llm-a-0"}])
async def test_name_of_a_part_may_be_taken(labels: dict[str, str]) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    taken = {"metadata": {"resourceVersion": "1", "labels": labels}, "data": {}}
    world.cluster.secrets["ns", "fairserve-llm-a-0"] = taken
    with pytest.raises(ForeignSecretError, match="fairserve-llm-a-0 is somebody else's"):
        await write(secrets, await secrets.read(POOL, None), 1)


async def test_name_of_a_boot_secret_may_be_another_pools_part() -> None:
    world = FakeWorld()
    taken = {
        "metadata": {"name": "fairserve-llm", "resourceVersion": "1", "labels": {POOL_LABEL: "other"}},
        "data": {"config.json.gz.a.0": "eA=="},
    }
    world.cluster.secrets["ns", "fairserve-llm"] = taken
    with pytest.raises(ForeignSecretError, match="fairserve-llm is somebody else's"):
        await BootSecrets(world.store, world.cluster).read(POOL, None)


async def test_secret_that_has_another_owner_becomes_the_pools_and_keeps_what_it_holds() -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    boot = await write(secrets, await secrets.read(POOL, None), 1)
    held = world.cluster.secrets["ns", "fairserve-llm"]
    held["metadata"]["ownerReferences"][0]["uid"] = "uid of a pool that had this name"
    after_restart = BootSecrets(world.store, world.cluster)
    found = await after_restart.read(POOL, None)
    assert (found.token, found.content_hash, found.intact) == (boot.token, boot.content_hash, False)
    assert (await write(after_restart, found, 1)).intact  # The same document: only the owner is another.
    stored = world.cluster.secrets["ns", "fairserve-llm"]
    assert [owner["uid"] for owner in stored["metadata"]["ownerReferences"]] == [POOL.uid]
    assert stored["data"] == held["data"]


async def test_document_of_ordinary_length_is_in_one_piece(tmp_path: Path) -> None:
    world = FakeWorld()
    secrets = BootSecrets(world.store, world.cluster)
    await write(secrets, await secrets.read(POOL, None), 1)
    assert {name for _, name in world.cluster.secrets} == {"fairserve-llm"}
    assert read_file(mount(world.cluster, tmp_path)).document == document(1)
    assert boot_secret.LONGEST_PART < 1 << 20
