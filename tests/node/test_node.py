"""The node's own: what is left of an enclosure after its end, and that Pods can name Services."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import enclosure, images
from tests.parts.process import Process, poll

ENCLOSURE = [sys.executable, "-m", "tests.parts.enclosure"]


def traces():
    """Folders and control groups of enclosures, but for the one that this test is in."""
    own = enclosure.current().state.name
    places = [Path("/var/tmp"), Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    folders = [each for place in places for each in place.glob("fairserve-node-*")]
    return [each for each in folders if own not in each.parts]


@pytest.fixture
def enclosed(tmp_path):
    """An enclosure inside this one, in which something has left its parent and goes on."""
    marker = tmp_path / "runs"
    script = f"setsid sleep 3600 & echo $! > {marker}; sleep 3600"
    process = Process("enclosure", [*ENCLOSURE, "bash", "-c", script], tmp_path / "enclosure.log")
    with process:
        process.wait_until(marker.exists, 60.0, "its command")
        assert traces()
        yield process


def sleepers():
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if line == "sleep 3600"]


def test_an_enclosure_that_is_told_to_end_leaves_nothing(enclosed):
    os.kill(enclosed.pid, signal.SIGTERM)
    poll(lambda: not enclosed.alive, 60.0, "its end")
    assert sleepers() == []
    assert traces() == []


def test_an_enclosure_that_is_killed_ends_all_and_the_next_one_tidies_up(enclosed):
    os.kill(enclosed.pid, signal.SIGKILL)
    poll(lambda: not sleepers(), 60.0, "the end of what ran in it")
    assert traces()
    subprocess.run([*ENCLOSURE, "true"], check=True)
    assert traces() == []


def test_a_pod_finds_services_by_name(node):
    kubectl = node.control_plane.kubectl
    script = "import socket; print(socket.gethostbyname('kubernetes.default.svc'))"
    words = ("run", "names", f"--image={images.name('vllm')}", "--restart=Never")
    kubectl(*words, "--command", "--", "/app/bin/python", "-c", script)
    kubectl("wait", "pod/names", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert kubectl("logs", "names").strip() == "10.96.0.1"
    kubectl("delete", "pod", "names", "--wait=false")
