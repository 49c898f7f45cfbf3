"""A real node for all tests of this folder, which run in order, in one process: `make e2e-node`."""

import time

import pytest

from tests.node.cluster import SYSTEM, Cluster
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
    try:
        made.install()
        print(f"\nhelm install --wait: {time.monotonic() - started:.1f} s")
        made.apply_vllm()
        label = '{"spec": {"template": {"metadata": {"labels": {"fairserve.dev/inject": "llm"}}}}}'
        made.kubectl("patch", "deployment", "vllm", "--patch", label)
        made.apply_example()
        made.rolled_out("vllm")
        poll(lambda: made.ask("team-a"), 60.0, "the first answer")
    except BaseException:
        made.diagnose()
        raise
    print(f"from nothing to the first fair answer, 6 commands: {time.monotonic() - started:.1f} s")
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
