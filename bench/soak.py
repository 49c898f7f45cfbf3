"""The sidecar under mixed calls for minutes, and its books at the end: `make bench-soak`.

At 70 % of the rate that the same mix reaches in a closed loop, before the dummy engine: plain calls, streams,
streams whose client hangs up in the middle, and calls without a valid key. Resident memory must stay flat in
the second half, every call must get the answer that its kind is owed, and what the sidecar charged must equal
what the engine reported, to the token. What a client that hangs up costs is known only to the sidecar and is
kept in tenants of its own: there the sidecar's calls are compared with the clients'.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from bench.clients import CHAT, Caller, request
from bench.processes import answering, dummy_engine, memory_mib, sidecar
from bench.results import Figure, at_most, exactly, figure, publish
from tests.parts.process import free_port

SEED, MINUTES, LOAD = 1, 10.0, 0.7
#: Tenants whose clients stay, and those whose clients hang up.
STAYING, LEAVING = range(500), range(500, 600)
#: The dispatch window starts small and grows while calls wait: it has found its size after the first time.
_SEARCH_S, _CAPACITY_S = 15.0, 10.0
#: Calls that take their time need so many clients for the rest to be busy.
_CLIENTS = 512
_MEMORY_EVERY_S = 1.0
_PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":8}'
_STREAM = (
    b'{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true},"user":"pace-%d-%d"}'
)
_NOBODY = 1_000_000  #: number of a key that no tenant has
_USAGE = re.compile(rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Kind(Enum):
    """What becomes of a call."""

    PLAIN = "plain"
    STREAM = "stream"
    LEAVES = "hangs up"
    REFUSED = "refused"


#: Of 100 calls.
MIX = {Kind.PLAIN: 80, Kind.STREAM: 10, Kind.LEAVES: 5, Kind.REFUSED: 5}


@dataclass
class Book:
    """What the clients saw."""

    calls: collections.Counter[Kind] = field(default_factory=collections.Counter)
    lost: collections.Counter[Kind] = field(default_factory=collections.Counter)  #: not answered as owed
    late: int = 0  #: calls that began over a second after their time
    input_tokens: int = 0
    output_tokens: int = 0

    def add_usage(self, body: bytes) -> bool:
        """Count an answer's usage; False if it has none."""
        found = _USAGE.search(body)
        if found is not None:
            self.input_tokens += int(found[1])
            self.output_tokens += int(found[2])
        return found is not None


class Clients:
    """Connections that are used again, and one new for each call whose client hangs up."""

    def __init__(self, port: int, seed: int) -> None:
        self.book = Book()
        self._port = port
        self._rng = random.Random(seed)
        #: The one that rested longest is next, so that none rests until the sidecar closes it.
        self._free: collections.deque[Caller] = collections.deque()

    async def call(self) -> None:
        """One call of the mix."""
        (kind,) = self._rng.choices(list(MIX), list(MIX.values()))
        self.book.calls[kind] += 1
        try:
            kept = await (self._leave() if kind is Kind.LEAVES else self._stay(kind))
        except OSError as error:
            print(f"lost: {kind.value}: {error}", file=sys.stderr, flush=True)
            kept = False
        self.book.lost[kind] += not kept

    async def _stay(self, kind: Kind) -> bool:
        caller = self._free.popleft() if self._free else await Caller.connect(self._port)
        key = _NOBODY if kind is Kind.REFUSED else self._rng.choice(STAYING)
        body = _STREAM % (50, self._rng.randint(5, 25)) if kind is Kind.STREAM else _PLAIN
        answer = await caller.call(request(CHAT, body, key))
        self._free.append(caller)
        if kind is Kind.REFUSED:
            return answer.status == 401
        whole = kind is Kind.PLAIN or answer.body.endswith(b"data: [DONE]\n\n")
        return answer.status == 200 and whole and self.book.add_usage(answer.body)

    async def _leave(self) -> bool:
        """Hang up within a stream that would go on for a minute."""
        caller = await Caller.connect(self._port)
        key, leaves_s = self._rng.choice(LEAVING), self._rng.uniform(0.05, 0.5)
        try:
            async with asyncio.timeout(leaves_s):
                await caller.call(request(CHAT, _STREAM % (50, 3_000), key))
        except TimeoutError:
            return True
        finally:
            caller.transport.abort()
        return False

    def close(self) -> None:
        for caller in self._free:
            caller.transport.abort()


async def capacity(port: int, seed: int) -> float:
    """Calls a second of the mix in a closed loop."""
    clients = Clients(port, seed)
    loop = asyncio.get_running_loop()
    ends = loop.time() + _SEARCH_S + _CAPACITY_S

    async def client() -> None:
        while loop.time() < ends:
            await clients.call()

    async with asyncio.TaskGroup() as running:
        for _ in range(_CLIENTS):
            running.create_task(client())
        await asyncio.sleep(_SEARCH_S)
        before = clients.book.calls.total()
        await asyncio.sleep(_CAPACITY_S)
        counted = clients.book.calls.total() - before
    clients.close()
    return counted / _CAPACITY_S


async def soak(port: int, pid: int, rate: float, seconds: float, seed: int) -> tuple[Book, list[float]]:
    """Calls at a rate for a time. What the clients saw, and the sidecar's resident MiB, second by second."""
    clients = Clients(port, seed)
    loop = asyncio.get_running_loop()
    began, due = loop.time(), 0.0
    memory: list[float] = []
    pending: set[asyncio.Task[None]] = set()
    while (now := loop.time() - began) < seconds:
        # Never more at once than reached the capacity: what the machine can't do now begins late.
        while due <= now and len(pending) < _CLIENTS:
            clients.book.late += now - due > 1.0
            task = asyncio.create_task(clients.call())
            pending.add(task)
            task.add_done_callback(pending.discard)
            due += 1 / rate
        if now >= len(memory) * _MEMORY_EVERY_S:
            memory.append(memory_mib(pid))
        await asyncio.sleep(0.001)
    async with asyncio.timeout(60):
        await asyncio.gather(*pending)
    clients.close()
    return clients.book, memory


@dataclass
class Charges:
    """What the sidecar's counters have: tokens of the tenants whose clients stay, calls of the others."""

    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0  #: ended, of tenants whose clients stay
    left: int = 0  #: ended, of tenants whose clients hang up

    @classmethod
    async def read(cls, port: int) -> Charges:
        """Ask the sidecar."""
        caller = await Caller.connect(port)
        text = (await caller.call(_METRICS)).body.decode()
        caller.transport.abort()
        charges = cls()
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name not in ("fairserve_tokens_total", "fairserve_requests_total"):
                    continue
                leaving = int(labels["tenant"].removeprefix("t")) in LEAVING
                if name == "fairserve_requests_total":
                    charges.left += int(value) if leaving else 0
                    charges.calls += 0 if leaving else int(value)
                elif not leaving and labels["kind"] == "output":
                    charges.output_tokens += int(value)
                elif not leaving:
                    charges.input_tokens += int(value)
        return charges


def slope(memory: list[float]) -> float:
    """MiB in 10 minutes, of the second half."""
    half = memory[len(memory) // 2 :]
    times = [number * _MEMORY_EVERY_S for number in range(len(half))]
    return statistics.linear_regression(times, half).slope * 600


async def run(port: int, pid: int, minutes: float, seed: int) -> list[Figure]:
    await answering(port, CHAT, _PLAIN)
    most = await capacity(port, seed)
    before = await Charges.read(port)
    print(f"{most:,.0f} calls/s at most; {minutes:g} minutes at {LOAD:.0%}", file=sys.stderr, flush=True)
    book, memory = await soak(port, pid, LOAD * most, 60 * minutes, seed)
    await asyncio.sleep(1.0)  # Whoever hung up last is noticed within 0.1 s.
    after = await Charges.read(port)
    answered = book.calls[Kind.PLAIN] + book.calls[Kind.STREAM]
    return [
        figure("calls that were not answered as owed", book.lost.total(), "calls", goal=exactly(0)),
        figure(
            "input tokens charged less those reported",
            after.input_tokens - before.input_tokens - book.input_tokens,
            "tokens",
            goal=exactly(0),
        ),
        figure(
            "output tokens charged less those reported",
            after.output_tokens - before.output_tokens - book.output_tokens,
            "tokens",
            goal=exactly(0),
        ),
        figure(
            "calls settled less those answered",
            after.calls - before.calls - answered,
            "calls",
            goal=exactly(0),
        ),
        figure(
            "calls settled less those whose client hung up",
            after.left - before.left - book.calls[Kind.LEAVES],
            "calls",
            goal=exactly(0),
        ),
        figure(
            "growth of resident memory over the second half", slope(memory), "MiB in 10 min", goal=at_most(5)
        ),
        figure("resident memory at the end", memory[-1], "MiB"),
        figure("highest rate of the mix", most, "calls/s"),
        figure("length", minutes, "min"),
        figure("share of calls that began over 1 s late", book.late / book.calls.total(), "ratio"),
        *(figure(f"calls: {kind.value}", book.calls[kind], "calls") for kind in Kind),
        figure("tokens reported", book.input_tokens + book.output_tokens, "tokens"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="at 70 %% of capacity (default 10)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--compiled", type=Path, help="folder with a compiled core (make compiled)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the sidecar, one for everything else")
    os.sched_setaffinity(0, {cores[1]})
    engine, port = free_port(), free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        dummy_engine(engine, cores[1]),
        sidecar(
            Path(folder),
            engine=engine,
            port=port,
            control=free_port(),
            core=cores[0],
            compiled=options.compiled,
            options=("--max-window", "4096"),
        ) as pid,
    ):
        figures = uvloop.run(run(port, pid, options.minutes, options.seed))
    publish("soak", options.seed, figures)


if __name__ == "__main__":
    main()
