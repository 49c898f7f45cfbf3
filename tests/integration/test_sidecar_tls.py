"""TLS on the control port: which versions, whose certificate, and what happens when its files change."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest

from fairserve.sidecar.options import Address, OptionError, SidecarOptions, TlsFiles
from fairserve.sidecar.service import Sidecar
from fairserve.sidecar.tls import Certificate
from tests.integration.sidecars import TOKEN, Client, document, eventually, make_certificate, running_sidecar


@pytest.fixture
async def secured(tmp_path, engine):
    """A sidecar with a certificate, and the files that it reads."""
    files = make_certificate(tmp_path, "first")
    async with running_sidecar(tmp_path, engine, document(), control_tls=files) as sidecar:
        yield sidecar, files


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


async def connect(sidecar: Sidecar, context: ssl.SSLContext) -> Client:
    return await Client.connect(sidecar.control_address, ssl=context, server_hostname="localhost")


async def serves(sidecar: Sidecar, certificate: Path) -> bool:
    """Whether a client that trusts that certificate alone can connect."""
    try:
        await (await connect(sidecar, trusting(certificate))).leave()
    except ssl.SSLError:
        return False
    return True


async def test_the_control_port_speaks_tls(secured):
    sidecar, files = secured
    async with await connect(sidecar, trusting(files.certificate)) as client:
        client.send("GET", "/state", {"Authorization": f"Bearer {TOKEN}"})
        assert (await client.answer()).fields["generation"] == 1
    async with await Client.connect(sidecar.control_address) as client:
        client.send("GET", "/healthz")
        assert await client.reader.read() == b"", "plain HTTP is not answered"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_from_1_2_on_is_spoken(secured, version):
    sidecar, files = secured
    context = trusting(files.certificate)
    context.minimum_version = context.maximum_version = version
    await (await connect(sidecar, context)).leave()
    assert Certificate(files).context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_a_new_certificate_is_taken_when_it_is_whole(tmp_path, secured, caplog):
    caplog.set_level("INFO")
    sidecar, files = secured
    first = shutil.copy(files.certificate, tmp_path / "trusted")
    second = make_certificate(tmp_path, "second")
    shutil.copy(second.certificate, files.certificate)
    await eventually(lambda: any("old certificate" in r.getMessage() for r in caplog.records), "half is seen")
    assert await serves(sidecar, first)
    shutil.copy(second.key, files.key)
    await eventually(lambda: any("new certificate" in r.getMessage() for r in caplog.records), "it is whole")
    assert await serves(sidecar, second.certificate)
    assert not await serves(sidecar, first)


async def test_files_that_are_gone_keep_the_certificate(tmp_path, secured, caplog):
    sidecar, files = secured
    first = shutil.move(files.certificate, tmp_path / "trusted")
    await eventually(lambda: any("old certificate" in r.getMessage() for r in caplog.records), "it is gone")
    assert await serves(sidecar, first)


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_certificate_that_cannot_be_used_is_named(tmp_path, content):
    (tmp_path / "token").write_text(TOKEN)
    files = TlsFiles(tmp_path / "crt", tmp_path / "key")
    if content is not None:
        files.certificate.write_text(content)
        files.key.write_text(content)
    here = Address("127.0.0.1", 0)
    sidecar = Sidecar(SidecarOptions(here, here, here, tmp_path / "token", files))
    with pytest.raises(OptionError, match="--control-tls-cert"):
        await sidecar.start()
