"""Runs a command where a Kubernetes node may do as it likes: `python -m tests.parts.enclosure COMMAND …`.

As root, the command gets a network, mounts and process numbers of its own (namespaces), a part of the control
groups, and a folder for large files. Nothing in there reaches another network. The kernel ends every process
and takes away every mount in it when the command ends, or when whoever started it dies, however that happens;
what the kubelet writes to the machine's sysctls goes to files. So nothing is left to tidy up but two kinds of
folders, and what a killed run left of these the next one removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.parts.process import DeadlineError, poll

#: The address of the node, on its own loopback: no Service and no Pod may have it, and nothing outside does.
ADDRESS = "10.250.0.1"

_STATE, _CGROUP = "FAIRSERVE_NODE_STATE", "FAIRSERVE_NODE_CGROUP"
_PREFIX = "fairserve-node-"
_CGROUPS = Path("/sys/fs/cgroup")
#: What the kubelet sets for the whole machine, and the values that it wants to find.
_KUBELETS_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
#: Where the node's programs write at fixed places.
_SCRATCH = ("/run", "/var/log", "/var/lib")


class EnclosureError(RuntimeError):
    """There can be no enclosure here, or this process is in none."""


@dataclass(frozen=True, slots=True)
class Enclosure:
    """What a process inside may use."""

    state: Path  #: a folder on a disk, gone at the end
    cgroup: str  #: the control group of the node's Pods, below each controller's root


def current() -> Enclosure:
    """Return the enclosure that this process is in; raises EnclosureError where it is in none."""
    try:
        return Enclosure(Path(os.environ[_STATE]), os.environ[_CGROUP])
    except KeyError:
        raise EnclosureError(
            "a node needs an enclosure: run `make e2e-node`, or `python -m tests.parts.enclosure pytest …`"
        ) from None


def run(command: Sequence[str]) -> int:
    """Run a command inside and return its status; SIGTERM, SIGINT and SIGHUP end all that is inside."""
    if os.geteuid() != 0:
        raise EnclosureError("a node needs root, for namespaces, mounts and control groups")
    _remove_leftovers()
    with _state() as state, _cgroup(state.name) as cgroup:
        inside = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig=KILL"),
                *("unshare", "--net", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc"),
                "--kill-child=KILL",
                *(sys.executable, "-m", "tests.parts.enclosure", "--inside", *command),
            ],
            env={**os.environ, _STATE: str(state), _CGROUP: cgroup},
        )

        def end(number: int, frame: FrameType | None) -> None:
            # Not asked first: unshare waits with these signals blocked. The kernel takes all others along.
            inside.kill()

        before = {
            number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            return inside.wait()
        finally:
            inside.kill()
            inside.wait()
            for number, handler in before.items():
                signal.signal(number, handler)


def _inside(command: Sequence[str]) -> int:
    """Furnish the namespaces, run the command, and bury whoever has lost its parent meanwhile."""
    _shadow_sysctls(current().state)
    for folder in _SCRATCH:
        _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", folder)
    Path("/run/netns").mkdir()
    Path("/run/lock").mkdir()
    _furnish_network()
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _shadow_sysctls(state: Path) -> None:
    """Put files over what the kubelet sets for the whole machine, which is not this node's alone."""
    folder = state / "sysctls"
    folder.mkdir()
    for name, value in _KUBELETS_SYSCTLS.items():
        shadow = folder / name.replace("/", ".")
        shadow.write_text(f"{value}\n")
        _mount("--bind", str(shadow), f"/proc/sys/{name}")


def _furnish_network() -> None:
    for arguments in (
        ("link", "set", "lo", "up"),
        ("address", "add", f"{ADDRESS}/32", "dev", "lo"),
        # Services' addresses must be routed somewhere before rules turn them into Pods'. A default route over
        # `lo` would not do: such packets count as martians.
        ("link", "add", "uplink0", "type", "veth", "peer", "name", "uplink1"),
        ("link", "set", "uplink0", "up"),
        ("link", "set", "uplink1", "up"),
        ("route", "add", "default", "dev", "uplink0", "src", ADDRESS),
    ):
        subprocess.run(["ip", *arguments], check=True)
    # These are of the namespace, not of the machine.
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not bridged.exists():
        raise EnclosureError(
            f"there is no {bridged}: load the kernel module br_netfilter (modprobe br_netfilter)"
        )
    bridged.write_text("1")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def _state() -> Iterator[Path]:
    """A folder that is this run's as long as its lock is held; a process that dies lets go of it."""
    # Not on a tmpfs, because layers of images are mounted over one another there; short, because of sockets.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/var/tmp"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cgroup(name: str) -> Iterator[str]:
    """A control group in every hierarchy that there is, empty at first and gone at the end."""
    try:
        for hierarchy in _hierarchies():
            group = hierarchy / name
            group.mkdir()
            for setting in ("cpuset.cpus", "cpuset.mems"):  # Empty at first, and no process may come in then.
                if (hierarchy / setting).exists() and (group / setting).exists():
                    (group / setting).write_text((hierarchy / setting).read_text())
        yield f"/{name}"
    finally:
        _remove_cgroup(name)


def _hierarchies() -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return sorted({path.resolve() for path in _CGROUPS.iterdir() if (path / "cgroup.procs").exists()})


def _remove_cgroup(name: str) -> None:
    for hierarchy in _hierarchies():
        # Its processes are dead, though the kernel may need a moment to believe it.
        with suppress(DeadlineError):
            poll(lambda: _removed(hierarchy / name), 10.0, f"the end of {hierarchy / name}")  # noqa: B023


def _removed(group: Path) -> bool:
    for folder, _, _ in os.walk(group, topdown=False):
        os.rmdir(folder)
    return True


def _remove_leftovers() -> None:
    """Remove what killed runs left: folders whose lock nobody holds, and their control groups."""
    for folder in Path("/var/tmp").glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError, BlockingIOError), (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_cgroup(folder.name)
            shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments are and return its status."""
    try:
        if arguments[:1] == ["--inside"]:
            return _inside(arguments[1:])
        if not arguments:
            raise EnclosureError("usage: python -m tests.parts.enclosure COMMAND [ARGUMENT …]")
        status = run(arguments)
        return status if status >= 0 else 128 - status  # as a shell says that a signal ended it
    except (EnclosureError, subprocess.CalledProcessError) as error:
        print(f"enclosure: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
