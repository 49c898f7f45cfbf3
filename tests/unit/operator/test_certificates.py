"""The webhook's certificate: renewed in time, and trusted whatever happens to the Secret."""

from __future__ import annotations

import base64
import copy
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonpatch
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fairserve_operator.clients.kubernetes_client import Written
from fairserve_operator.decide.certificates import FOLLOWED_S, FORMER_S, RENEWED_S, SETTLED_S
from fairserve_operator.errors import ApiServerError, ConflictError
from fairserve_operator.handlers.certificates import CertificateFolder, CertificateKeeper
from fairserve_operator.handlers.serving_certificate import ServingCertificate
from fairserve_operator.manifests.certificates import (
    AUTHORITY_S,
    SERVING_S,
    is_signed_by,
    new_authority,
    new_serving,
    read_certificates,
)
from fairserve_operator.manifests.webhook_configuration import trusted
from fairserve_operator.manifests.webhook_secret import Keys, read_keys, webhook_secret
from fairserve_operator.options import OwnCertificate

OWN = OwnCertificate("fairserve-webhook", None, "kept", "fairserve")
NAME = "fairserve-webhook.system.svc"
NOW = 1_800_000_000.0
RSA_KEY = rsa.generate_private_key(65537, 2048).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
OTHERS = {"name": "other.example.com", "clientConfig": {"caBundle": "b3RoZXI=", "url": "https://o"}}


class FakeCluster:
    """A Secret and a configuration, with versions. `observed` is what the webhook's caller goes by: late."""

    def __init__(self) -> None:
        self.now = NOW
        self.secret: dict[str, Any] | None = None
        self.configuration: dict[str, Any] | None = None
        self.version = 0
        self.writes = 0
        self.failing: dict[str, int] = {}
        self._history: list[tuple[float, bytes]] = []
        self.configure()

    def configure(self, ca_bundle: str | None = None) -> None:
        """What `helm upgrade` and GitOps tools do: the configuration as somebody wrote it."""
        ours: dict[str, Any] = {"service": {"name": "fairserve-webhook", "namespace": "system"}}
        if ca_bundle is not None:
            ours["caBundle"] = ca_bundle
        webhooks = [OTHERS, {"name": "inject.fairserve.dev", "clientConfig": ours, "timeoutSeconds": 5}]
        self.configuration = {"metadata": self._metadata("fairserve"), "webhooks": webhooks}
        self._remember()

    def observed(self, lag_s: float) -> bytes:
        """Whom an API server trusts that is so far behind."""
        return [bundle for at, bundle in self._history if at <= self.now - lag_s][-1]

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        self._fail("read_secret")
        return copy.deepcopy(self.secret)

    async def write_secret(self, manifest: Mapping[str, Any], fenced: bool = True) -> Written:
        assert not fenced
        self._fail("write_secret")
        version = manifest["metadata"].get("resourceVersion")
        if version != (None if self.secret is None else self.secret["metadata"]["resourceVersion"]):
            raise ConflictError("Secret", 409, "changed")
        self.writes += 1
        self.secret = {**json.loads(json.dumps(manifest))}
        self.secret["metadata"] |= self._metadata(manifest["metadata"]["name"])
        return Written(self.secret["metadata"]["resourceVersion"], self.secret)

    async def read_webhook_configuration(self, name: str) -> Mapping[str, Any] | None:
        self._fail("read_webhook_configuration")
        return copy.deepcopy(self.configuration)

    async def patch_webhook_configuration(
        self, name: str, operations: Sequence[Mapping[str, Any]]
    ) -> Written:
        self._fail("patch_webhook_configuration")
        assert self.configuration is not None
        result = jsonpatch.apply_patch(self.configuration, operations)
        if result["metadata"] != self.configuration["metadata"]:
            raise ConflictError("configuration", 409, "changed")
        self.writes += 1
        result["metadata"] = self._metadata("fairserve")
        self.configuration = result
        self._remember()
        return Written(result["metadata"]["resourceVersion"], copy.deepcopy(result))

    def _metadata(self, name: str) -> dict[str, str]:
        self.version += 1
        return {"name": name, "resourceVersion": str(self.version)}

    def _remember(self) -> None:
        assert self.configuration is not None
        self._history.append((self.now, trusted(self.configuration)))

    def _fail(self, call: str) -> None:
        if self.failing.get(call):
            raise ApiServerError(call, self.failing[call], "denied")


class Replica:
    def __init__(self, cluster: FakeCluster, own: OwnCertificate = OWN) -> None:
        self.tls = ServingCertificate()
        self.keeper = CertificateKeeper(
            cluster, "system", own, self.tls, lambda: cluster.now, lambda: cluster.now - NOW
        )

    async def look(self) -> None:
        while not await self.keeper.look():
            pass

    def serves(self) -> bytes:
        return self.tls.current.pem if self.tls.current else b""

    def is_trusted(self, bundle: bytes, now: float) -> bool:
        """Whether the API server takes its certificate."""
        current = self.tls.current
        assert current is not None
        signed = any(is_signed_by(current, each) for each in read_certificates(bundle)) if bundle else False
        return signed and NAME in current.names and now < current.expires_at


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


def kept(cluster: FakeCluster) -> Keys:
    assert cluster.secret is not None
    keys = read_keys(cluster.secret)
    assert keys is not None
    assert keys.serving is not None
    return keys


async def test_the_first_makes_it_and_the_others_take_it(cluster):
    one, two = Replica(cluster), Replica(cluster)
    await one.look()
    await two.look()
    keys = kept(cluster)
    assert one.serves() == two.serves() == keys.serving.certificate.pem
    assert keys.serving.certificate.names == {NAME}
    assert trusted(cluster.configuration) == keys.authority.certificate.pem
    assert keys.serving.certificate.expires_at == NOW + SERVING_S
    assert keys.authority.certificate.expires_at == NOW + AUTHORITY_S
    assert cluster.writes == 2
    await one.look()
    await two.look()
    assert cluster.writes == 2, "nothing is written that is right already"


async def test_nothing_else_of_the_configuration_is_touched(cluster):
    before = copy.deepcopy(cluster.configuration)
    await Replica(cluster).look()
    after = copy.deepcopy(cluster.configuration)
    assert after["webhooks"][1]["clientConfig"].pop("caBundle")
    after["metadata"] = before["metadata"]
    assert after == before


async def test_a_certificate_of_the_same_authority_is_served_at_once(cluster):
    one = Replica(cluster)
    await one.look()
    before = kept(cluster)
    cluster.now += SERVING_S - RENEWED_S - 1
    await one.look()
    assert kept(cluster) == before
    cluster.now += 2
    await one.look()
    after = kept(cluster)
    assert after.authority == before.authority
    assert one.serves() == after.serving.certificate.pem != before.serving.certificate.pem


async def test_a_new_authority_is_trusted_before_anybody_serves_by_it(cluster):
    one = Replica(cluster)
    await one.look()
    before = kept(cluster)
    cluster.secret = None
    await one.look()
    after = kept(cluster)
    assert after.trusted == (after.authority.certificate, before.authority.certificate)
    assert trusted(cluster.configuration) == b"".join(each.pem for each in after.trusted)
    cluster.now += SETTLED_S - 0.1
    await one.look()
    assert one.serves() == before.serving.certificate.pem
    cluster.now += 0.2
    await one.look()
    assert one.serves() == after.serving.certificate.pem
    cluster.now += FORMER_S
    await one.look()
    assert trusted(cluster.configuration) == after.authority.certificate.pem
    assert kept(cluster).former == ()


async def test_an_old_authority_is_followed_by_another(cluster):
    one = Replica(cluster)
    await one.look()
    before = kept(cluster)
    for _ in range(2):
        cluster.now = NOW + AUTHORITY_S - FOLLOWED_S + 60
        await one.look()
    after = kept(cluster)
    assert after.trusted == (after.authority.certificate, before.authority.certificate)


@pytest.mark.parametrize("bundle", [None, "", "bm8=", "!"], ids=["absent", "empty", "another", "no base64"])
async def test_a_bundle_that_somebody_wiped_is_put_back(cluster, bundle):
    one = Replica(cluster)
    await one.look()
    cluster.configure(bundle)
    await one.look()
    assert trusted(cluster.configuration) == kept(cluster).authority.certificate.pem


def without(key: str) -> Callable[[dict[str, str]], None]:
    return lambda data: data.pop(key) and None


def spoiled(key: str, value: bytes) -> Callable[[dict[str, str]], None]:
    return lambda data: data.update({key: base64.b64encode(value).decode()})


@pytest.mark.parametrize(
    "spoil",
    [
        *(without(key) for key in ("ca.crt", "ca.key", "tls.crt", "tls.key")),
        *(spoiled(key, b"nonsense") for key in ("ca.crt", "ca.key", "tls.crt", "tls.key")),
        spoiled("ca.key", new_authority(NOW).key),
        spoiled("ca.key", RSA_KEY),
        spoiled("tls.key", new_authority(NOW).key),
        lambda data: data.update({"ca.crt": data["tls.crt"], "ca.key": data["tls.key"]}),
        spoiled("tls.crt", new_authority(NOW).certificate.pem),
        lambda data: data.update({"ca.crt": "%"}),
        lambda data: data.clear(),
    ],
    ids=range(15),
)
async def test_a_malformed_secret_is_made_anew(cluster, spoil):
    one = Replica(cluster)
    await one.look()
    spoil(cluster.secret["data"])
    await one.look()
    keys = kept(cluster)
    assert one.is_trusted(trusted(cluster.configuration), cluster.now)
    fresh = Replica(cluster)
    await fresh.look()
    assert fresh.serves() == keys.serving.certificate.pem


async def test_somebody_elses_secret_is_left_alone(cluster, caplog):
    cluster.secret = {"metadata": {"name": "kept", "resourceVersion": "1"}, "data": {"password": "eA=="}}
    one = Replica(cluster)
    await one.look()
    await one.look()
    assert cluster.writes == 0
    assert one.tls.current is None
    (line,) = [each.getMessage() for each in caplog.records]
    assert "Secret system/kept is somebody else's" in line


async def test_serves_although_the_configuration_is_denied_or_not_there(cluster, caplog):
    one, two, three = (Replica(cluster) for _ in range(3))
    cluster.failing = {"read_webhook_configuration": 403}
    await one.look()
    assert one.serves() == kept(cluster).serving.certificate.pem
    cluster.failing = {"patch_webhook_configuration": 403}
    await two.look()
    cluster.failing, cluster.configuration = {}, None
    await three.look()
    assert one.serves() == two.serves() == three.serves()
    assert "there is no MutatingWebhookConfiguration fairserve" in caplog.text


async def test_a_faulty_api_server_changes_nothing_and_is_told_once(cluster, caplog):
    one = Replica(cluster)
    await one.look()
    before = one.serves()
    for call in ("read_secret", "patch_webhook_configuration"):
        caplog.clear()
        cluster.configure()
        cluster.failing = {call: 500}
        await one.look()
        await one.look()
        assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
        cluster.failing = {}
        await one.look()
    assert one.serves() == before
    assert one.is_trusted(trusted(cluster.configuration), cluster.now)


async def test_replicas_of_two_names_share_one_certificate(cluster):
    one, two = Replica(cluster), Replica(cluster, OwnCertificate(None, "127.0.0.1", "kept", "fairserve"))
    for _ in range(3):
        await one.look()
        await two.look()
    assert kept(cluster).serving.certificate.names == {NAME, "127.0.0.1"}
    assert one.serves() == two.serves()
    writes = cluster.writes
    await one.look()
    await two.look()
    assert cluster.writes == writes


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_serves_is_trusted_at_every_moment(cluster, seed):
    """Secrets deleted and spoiled, a wiped bundle, restarts, denied calls and time that passes: as long as a
    replica lives on and `caBundle` was not just wiped, API servers that lag by some seconds trust both.
    """
    rng = random.Random(seed)
    replicas = [Replica(cluster), Replica(cluster)]
    for each in replicas:
        await each.look()
    cluster.now += SETTLED_S
    restored = changed = 0
    for _ in range(100):
        match rng.randrange(12):
            case 0:
                cluster.secret = None
            case 1 if cluster.secret is not None:
                cluster.secret["data"][rng.choice(("ca.crt", "tls.key"))] = "bm8="
            case 2:  # Everybody has looked for a while before.
                for _ in range(8):
                    for each in replicas:
                        await each.look()
                    cluster.now += 2.0
                cluster.now += rng.choice((FORMER_S, SERVING_S / 4))
                changed += 1
            case 3:
                cluster.failing = {rng.choice(("read_secret", "read_webhook_configuration")): 500}
        before = {each.serves() for each in replicas}
        for each in rng.sample(replicas, 2):  # As often as they look.
            await each.look()
            cluster.now += rng.uniform(0.0, 2.0)
            for other in replicas:
                assert other.is_trusted(cluster.observed(lag_s=5.0), cluster.now)
                assert other.is_trusted(cluster.observed(lag_s=0.0), cluster.now)
        cluster.failing = {}
        for each in replicas:
            await each.look()
        restored += {each.serves() for each in replicas} != before
    assert restored > 2
    assert changed > 2


def test_a_folder_is_followed_and_a_half_written_one_is_not(tmp_path, caplog):
    tls = ServingCertificate()
    folder = CertificateFolder(tmp_path, tls)
    folder.look()
    folder.look()
    assert tls.current is None
    assert len(caplog.records) == 1
    authority = new_authority(NOW)
    first, second = (new_serving(authority, ["a.example.com"], NOW + at) for at in (0, 1))
    (tmp_path / "tls.crt").write_bytes(first.certificate.pem + authority.certificate.pem)
    (tmp_path / "tls.key").write_bytes(first.key)
    folder.look()
    assert tls.current == first.certificate
    (tmp_path / "tls.crt").write_bytes(second.certificate.pem)
    folder.look()
    assert tls.current == first.certificate
    assert "don't belong together" in caplog.text
    (tmp_path / "tls.key").write_bytes(second.key)
    folder.look()
    assert tls.current == second.certificate


def test_a_certificate_is_for_servers_of_its_names_and_signs_nothing():
    authority = new_authority(NOW)
    pair = new_serving(authority, ["fairserve-webhook.system.svc", "127.0.0.1", "::1"], NOW)
    leaf = x509.load_pem_x509_certificate(pair.certificate.pem)
    assert pair.certificate.names == {"fairserve-webhook.system.svc", "127.0.0.1", "::1"}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    ends_soon = new_serving(authority, ["a"], NOW + AUTHORITY_S - 60)
    assert ends_soon.certificate.expires_at == authority.certificate.expires_at


def test_a_secret_is_read_as_it_was_written():
    authority, old = new_authority(NOW), new_authority(NOW)
    keys = Keys(authority, (old.certificate,), new_serving(authority, ["a"], NOW))
    manifest = webhook_secret("system", "kept", keys, "7")
    assert read_keys(manifest) == keys
    assert manifest["metadata"]["resourceVersion"] == "7"
    assert "resourceVersion" not in webhook_secret("system", "kept", keys, None)["metadata"]
