"""A sidecar in front of an engine that answers as a test says."""

import asyncio

import pytest
import uvloop

from tests.fakes.engine import FakeEngine
from tests.integration.sidecars import document, running_sidecar

#: Tests of what differs between event loops run on the one that a sidecar's process has.
ON_UVLOOP = {"test_sidecar_control_clients"}


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
