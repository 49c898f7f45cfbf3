"""A sidecar in front of an engine that answers as a test says."""

import pytest

from tests.fakes.engine import FakeEngine
from tests.integration.sidecars import document, running_sidecar


@pytest.fixture
async def engine():
    async with FakeEngine() as engine:
        yield engine


@pytest.fixture
async def sidecar(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        yield sidecar
