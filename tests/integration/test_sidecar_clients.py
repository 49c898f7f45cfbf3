"""Clients that stall or dawdle, and what that costs the sidecar."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from fairserve.sidecar.options import Limits
from tests.fakes.engine import DONE, Reply, Seen, token_event
from tests.integration.sidecars import (
    CHAT,
    KEY_A,
    Client,
    ask,
    document,
    eventually,
    process,
    running_sidecar,
)
from tests.parts.process import Process, free_port

READERS = 50
EVENT = token_event("x" * 24_000)  # few and long: the engine's cache would be full of many
EVENTS = 10_000_000 // len(EVENT)


def resident_bytes(running: Process) -> int:
    status = Path(f"/proc/{running.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def until_served(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await ask(port, KEY_A, {})).status == 200:
                    return
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)


async def stalled_reader(port: int) -> Client:
    """A client that takes next to nothing, nor does its kernel."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", port))
    reader = Client(*await asyncio.open_connection(sock=narrow))
    reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
    reader.call(KEY_A, {"stream": True})
    return reader


async def test_stalled_readers_of_long_streams_hold_the_engine_and_no_memory(tmp_path, engine):
    """Fifty streams whose readers take nothing, each longer than what the kernel holds for it. The bound
    tells back-pressure from none, without which all would be here; `make bench-sidecar` has the figure.
    """
    sent = 0

    async def long_stream(seen: Seen, reply: Reply) -> None:
        nonlocal sent
        await reply.begin_events()
        for _ in range(EVENTS):
            await reply.chunk(EVENT)
            sent += len(EVENT)
        await reply.chunk(DONE)
        await reply.end()

    port = free_port()
    with process(tmp_path, engine.port, port) as sidecar:
        await until_served(port)
        for _ in range(3):  # what a process grows by in its first calls is none of the readers'
            await asyncio.gather(*(ask(port, KEY_A, {"stream": True}) for _ in range(READERS)))
        known, before = len(engine.completions), resident_bytes(sidecar)
        engine.behaviour = long_stream
        readers = [await stalled_reader(port) for _ in range(READERS)]
        await eventually(lambda: len(engine.completions) == known + READERS, "all run", 60.0)
        looks: list[int] = []

        def stands_still() -> bool:
            looks.append(sent)
            return len(looks) > 200 and looks[-200] == sent

        await eventually(stands_still, "nothing moves any more", 60.0)
        grown = resident_bytes(sidecar) - before
        print(f"{READERS} stalled readers: {grown / 1e6:.1f} MB more; {sent / 1e6:.0f} MB sent")
        assert READERS * 1_000_000 < sent < 0.9 * READERS * EVENTS * len(EVENT), "the engine waits"
        assert grown < 30_000_000
        for reader in readers:
            await reader.leave()


async def test_one_byte_at_a_time_is_no_way_to_hold_a_connection(tmp_path, engine):
    """Each byte comes in good time, the whole head does not."""
    limits = Limits(head_timeout_s=0.5)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        async with await Client.connect(sidecar.data_address) as client:
            answered = asyncio.create_task(client.answer())
            for byte in f"POST {CHAT} HTTP/1.1\r\nX-Slow: {'x' * 10_000}".encode():
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0.01)
                if answered.done():
                    break
            assert (await answered).status == 408
        assert engine.seen == []
