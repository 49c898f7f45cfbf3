"""A real node for all tests of this folder, which run in order, in one process: `make e2e-node`."""

import time

import pytest

from tests.node.cluster import SYSTEM, Cluster, readme_commands
from tests.parts.node import Node
from tests.parts.process import poll


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """The cluster; outside of an enclosure this is an error that says how to get one."""
    with Node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(node, tmp_path_factory):
    """fairserve in front of somebody's vLLM, from nothing, as the README tells; prints how long it takes."""
    made = Cluster(node, tmp_path_factory.mktemp("helm"))
    # What a cluster has before fairserve comes: namespaces, which want `restricted` Pods, and a Prometheus.
    made.create_namespace(SYSTEM)
    made.create_namespace(made.namespace)
    made.apply_prometheus()
    started = time.monotonic()
    commands = readme_commands()
    try:
        made.apply_vllm()
        for command in commands:
            began = time.monotonic()
            made.shell(command)
            print(f"\n{time.monotonic() - began:5.1f} s  {command.partition(chr(10))[0]}", end="")
        made.rolled_out("vllm")
        poll(lambda: made.ask("team-a"), 60.0, "the first answer")
    except BaseException:
        made.diagnose()
        raise
    # Besides: vLLM's own manifest, `kubectl rollout status`, and the call itself.
    count, took = len(commands) + 3, time.monotonic() - started
    print(f"\nfrom nothing to the first answer, {count} commands: {took:.1f} s (goal: 10, 120 s)")
    assert count <= 10
    return made


@pytest.fixture(autouse=True)
def _diagnosis(request):
    """After a failed test, what its cluster looks like."""
    yield
    report = getattr(request.node, "failed_call", None)
    if report and "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").diagnose()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.failed_call = report.failed
    return report
