"""Clients that stall or dawdle, and what that costs the sidecar."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from pathlib import Path

from fairserve.sidecar.options import Limits
from tests.fakes.engine import DONE, Reply, Seen, answers_after, token_event
from tests.integration.sidecars import (
    CHAT,
    KEY_A,
    KEY_B,
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
DEPARTURES = 50


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


def report(what: str, seconds: list[float]) -> None:
    print(f"{what}: median {1e3 * statistics.median(seconds):.1f} ms, worst {1e3 * max(seconds):.1f} ms")


async def test_who_leaves_the_queue_makes_room_in_it(tmp_path, engine):
    """A queue with a place for one, whose clients leave one after another: each makes room for the next, and
    none of them is ever computed.
    """
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    large = {"messages": [], "user": "x" * 50_000}
    tenants = [{"name": "a"}, {"name": "b", "max_queued_requests": 1}]
    seconds: list[float] = []
    async with running_sidecar(tmp_path, engine, document(tenants=tenants), max_window=1) as sidecar:
        first = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.scheduler.running == 1, "the engine is taken")
        for _ in range(DEPARTURES):
            async with await Client.connect(sidecar.data_address) as leaver:
                leaver.call(KEY_B, large)
                await eventually(lambda: sidecar.scheduler.queued == 1, "the call waits")
                assert sidecar.scheduler.backlog.bytes > 50_000
                refused = await ask(sidecar.data_address, KEY_B, large)
                assert refused.header("x-fairserve-refused-reason") == "queue_full"
            left = time.perf_counter()
            await eventually(lambda: sidecar.scheduler.queued == 0, "its place is free", 5.0)
            seconds.append(time.perf_counter() - left)
            assert sidecar.scheduler.backlog.bytes == 0
        go_on.set()
        assert (await first).status == 200
        assert (await ask(sidecar.data_address, KEY_B, large)).status == 200
    report("a place in the queue is free", seconds)
    assert len(engine.completions) == 2, "nobody who left was computed"


async def test_who_leaves_the_engine_makes_room_in_it(tmp_path, engine):
    """Only one call runs at a time, and none would ever end: each begins because the one before has left."""

    async def endless(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        await reply.chunk(token_event("x"))
        await asyncio.Event().wait()

    engine.behaviour = endless
    told: list[float] = []
    begun: list[float] = []
    async with running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar:
        running = await Client.connect(sidecar.data_address)
        running.call(KEY_A, {"stream": True})
        await running.head()
        for number in range(1, DEPARTURES + 1):
            following = await Client.connect(sidecar.data_address)
            following.call(KEY_A, {"stream": True})
            await eventually(lambda: sidecar.scheduler.queued == 1, "the next call waits")
            assert len(engine.completions) == number
            left = time.perf_counter()
            await running.leave()
            await eventually(lambda: engine.cut == number, "the engine is told", 5.0)  # noqa: B023
            told.append(time.perf_counter() - left)
            async with asyncio.timeout(5.0):
                await following.head()
            begun.append(time.perf_counter() - left)
            assert sidecar.scheduler.running == 1
            running = following
        await running.leave()
        await eventually(lambda: sidecar.scheduler.running == 0, "the last is settled")
    report("the engine's connection is closed", told)
    report("the next call's answer begins", begun)
