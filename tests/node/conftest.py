"""A real node for all tests of this folder, which run in order, in one process: `make e2e-node`."""

import pytest

from tests.parts.node import Node


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """The cluster; outside of an enclosure this is an error that says how to get one."""
    with Node(tmp_path_factory.mktemp("node")) as running:
        yield running
