"""A sidecar in front of an engine that answers as a test says."""

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.fakes.engine import FakeEngine
from tests.integration.operating import install_custom_resources, operator_process
from tests.integration.sidecars import document, running_sidecar
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: Tests of what differs between event loops run on the one that a sidecar's process has.
ON_UVLOOP = {"test_sidecar_control_clients", "test_sidecar_upstream"}


def pytest_asyncio_loop_factories(item):
    if item.path.stem in ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def engine():
    async with FakeEngine() as engine:
        yield engine


@pytest.fixture
async def sidecar(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> ControlPlane:
    """The control plane, with our kinds."""
    install_custom_resources(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def everywhere(api: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An operator that serves all namespaces."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with operator_process(api.kubeconfig, log, "--all-namespaces") as running:
        yield running
        assert running.alive, running.log_tail()
