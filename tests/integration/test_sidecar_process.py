"""`fairserve sidecar` as a process: its own event loop, signals, exit status, and what it logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from tests.fakes.engine import FakeEngine, answers_after
from tests.integration.sidecars import KEY_A, TOKEN, ask, eventually, process
from tests.parts.process import Process, free_port


@pytest.fixture
async def engine():
    async with FakeEngine() as engine:
        yield engine


def exit_status(ended: Process) -> int:
    """Of a process that has ended; it stays to be reaped."""
    found = os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    return found.si_status


async def served(port: int) -> bool:
    """Whether calls are answered yet."""
    try:
        return (await ask(port, KEY_A, {"stream": True})).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


async def until_served(port: int) -> None:
    async with asyncio.timeout(30):
        while not await served(port):  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.02)


async def test_sigterm_finishes_what_runs_writes_the_snapshot_and_exits_0(tmp_path, engine):
    port, snapshot = free_port(), tmp_path / "snapshot.json"
    go_on = asyncio.Event()

    with process(tmp_path, engine.port, port, "--snapshot", str(snapshot)) as sidecar:
        await until_served(port)
        engine.behaviour = answers_after(go_on)
        before = len(engine.completions)
        call = asyncio.create_task(ask(port, KEY_A, {"stream": True, "max_tokens": 4}))
        await eventually(lambda: len(engine.completions) > before, "the call runs")
        os.kill(sidecar.pid, signal.SIGTERM)
        await eventually(lambda: "stopping" in sidecar.log_tail(), "it knows")
        go_on.set()
        answer = await call
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n")
        await eventually(lambda: not sidecar.alive, "it ends")
        assert exit_status(sidecar) == 0, sidecar.log_tail()
    assert json.loads(snapshot.read_text())["scheduler"]["tenants"]["a"]["service"] > 0
    log = (tmp_path / "log").read_text()
    assert [json.loads(line)["level"] for line in log.splitlines()]
    assert KEY_A not in log
    assert TOKEN not in log


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("--control-token-file", "/nowhere/token"), "--control-token-file"),
        (("--engine", "https://h:1"), "--engine"),
        (("--listen", "nonsense"), "--listen"),
    ],
)
async def test_wrong_option_is_named_and_exits_2(tmp_path, engine, wrong, named):
    with process(tmp_path, engine.port, free_port(), *wrong) as sidecar:
        await eventually(lambda: not sidecar.alive, "it ends", 30.0)
        assert exit_status(sidecar) == 2
        assert named in sidecar.log_tail()


async def test_taken_port_exits_1_and_names_it(tmp_path, engine):
    with process(tmp_path, engine.port, engine.port) as sidecar:
        await eventually(lambda: not sidecar.alive, "it ends", 30.0)
        assert exit_status(sidecar) == 1
        assert str(engine.port) in sidecar.log_tail()
