"""Processes that benchmarks measure: started on chosen cores, watched from outside, ended at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.clients import CHAT, request
from bench.results import ROOT
from fairserve.config import SchedulerConfig, key_digest

TENANTS = 1_000
_SALT = "00" * 16
_CONTROL_TOKEN = "t"  # of a sidecar that lives for minutes on the loopback


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used: hardly disturbed by what else runs here."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Resident memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextlib.contextmanager
def started(command: Sequence[str], core: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A process on one core, ended at the end; its id."""
    child = subprocess.Popen(
        command, env=os.environ | (environment or {}), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        os.sched_setaffinity(child.pid, {core})
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def dummy_engine(port: int, core: int) -> Iterator[int]:
    """An engine that computes nothing; its process id."""
    with started([sys.executable, "-m", "bench.dummy_engine", str(port)], core) as pid:
        yield pid


def configuration() -> bytes:
    """Everything on: 1,000 tenants by API key, FairServe, limits that are counted and refuse nobody."""
    names = [f"t{number}" for number in range(TENANTS)]
    keys = [{"digest": key_digest(_SALT, f"key-{n}"), "tenant": name} for n, name in enumerate(names)]
    tenants = [{"name": name, "per_user": {"count": 1_000_000, "window_s": 60}} for name in names]
    document = {"pool": "default/llm", "identity": {"salt": _SALT, "api_keys": keys}, "tenants": tenants}
    return SchedulerConfig.model_validate(document).to_bytes()


@contextlib.contextmanager
def sidecar(
    folder: Path,
    *,
    engine: int,
    port: int,
    control: int,
    core: int,
    compiled: Path | None,
    options: Sequence[str] = (),
    python: Path | None = None,
) -> Iterator[int]:
    """The sidecar on one core, before the engine of a port, on this Python or `python`; its process id."""
    config, token = folder / "config.json", folder / "token"
    config.write_bytes(configuration())
    token.write_text(_CONTROL_TOKEN, encoding="ascii")
    command = [
        *(str(python or sys.executable), "-m", "fairserve.cli", "sidecar"),
        *("--engine", f"http://127.0.0.1:{engine}"),
        *("--listen", f"127.0.0.1:{port}", "--control", f"127.0.0.1:{control}"),
        *("--config", str(config), "--control-token-file", str(token), *options),
    ]
    folders = [] if compiled is None else [str(compiled.resolve())]
    if python is not None:  # it has none of our packages
        folders += [str(ROOT / "serving"), sysconfig.get_path("purelib")]
    environment = {"PYTHONPATH": os.pathsep.join(folders)} if folders else {}
    with started(command, core, environment) as pid:
        yield pid


async def answering(port: int, path: bytes = CHAT, body: bytes = b"{}") -> None:
    """Wait until calls are answered there. Raises RuntimeError after a minute."""
    for _ in range(600):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(path, body))
            line = await asyncio.wait_for(reader.readline(), 1.0)
            writer.close()
            if b" 200 " in line:
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}")
