"""The sidecar beside its peers, before one dummy engine: `make bench-sidecar`.

Everything is on in the sidecar: 1,000 tenants by API key, FairServe, limits, accounting, metrics, the
compiled core. Peers take turns within each round, and every figure with a goal is a ratio within a round, so
that other work on the machine slows both sides. The proxy under test has a core of its own; the client and
the engine share another. *Forwarding alone* is the sidecar's own proxy on a path that is not scheduled: the
difference is what identity, scheduling and accounting cost. LiteLLM's proxy is shown without a goal, and
without streams: it writes them anew.

Clients leave within an answer and while they wait. For these a second sidecar lets the engine have as many
calls as it has slots, and the others wait with it; behind vllm-router they wait in the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from bench.clients import CHAT, Caller, Leaving, Repeating, Stalled, Streaming, request
from bench.dummy_engine import CHUNK, SLOTS
from bench.processes import TENANTS, answering, cpu_s, dummy_engine, memory_mib, sidecar, started
from bench.results import (
    Figure,
    Goal,
    at_least,
    at_most,
    exactly,
    figure,
    half_quartiles,
    publish,
    version_of,
)

#: Not a path of vLLM's: the sidecar forwards it and does nothing else.
FORWARDED = b"/do-nothing"
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"hello " * 20 + b'"}],"max_tokens":8}'
STREAM = (
    b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":%d,"stream":true,'
    b'"user":"pace-%d-%d"}'
)
ROUNDS, SECONDS = 5, 2.0
CONNECTIONS, STREAMS, OPEN_STREAMS, HELD_S = 64, 128, 2_000, 60.0
STALLED, STALLED_BYTES = 50, 7_000_000
FLOOD = b'{"model":"m","messages":[],"stream":true,"user":"flood-%d"}'
LEAVERS, WAITERS = 100, 200
LEAVER = b'{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true,"user":"%b-%d-%d-%d"}'
_NUMBERS = itertools.count(1)
_BARE = "bare engine"
_GROWTH = f"growth by {STALLED} stalled readers of {STALLED_BYTES // 1_000_000} MB, MiB"


_LEFT = f"from a client's leaving to the engine's knowing, worst of {LEAVERS}, ms"
_WASTED = f"tokens computed for {WAITERS} clients that had left while they waited, share"


@dataclass(frozen=True)
class Peer:
    """Somewhere to send calls."""

    name: str
    port: int
    pid: int
    path: bytes = CHAT
    #: Hands on other bytes than the engine's, so that its answers have to be read whole.
    rewrites: bool = False

    @property
    def proxies_calls(self) -> bool:
        return self.name != _BARE and self.path == CHAT and not self.rewrites


async def repeated(peer: Peer, connections: int, seconds: float) -> tuple[list[float], float, float]:
    """Latencies in seconds, calls a second, and CPU microseconds of the proxy for a call."""
    times: list[float] = []
    begin = reading if peer.rewrites else repeating
    async with begin(peer, connections, times):
        await asyncio.sleep(seconds / 4)
        times.clear()
        before = cpu_s(peer.pid)
        await asyncio.sleep(seconds)
        count, used = len(times), cpu_s(peer.pid) - before
    if not count:
        raise RuntimeError(f"{peer.name} answered nothing")
    return sorted(times[:count]), count / seconds, used / count * 1e6


@contextlib.asynccontextmanager
async def repeating(peer: Peer, connections: int, times: list[float]) -> AsyncIterator[None]:
    """Clients that look for the dummy engine's own bytes."""
    loop = asyncio.get_running_loop()
    clients = []
    for n in range(connections):
        make = partial(Repeating, request(peer.path, BODY, n % TENANTS), times)
        clients.append((await loop.create_connection(make, "127.0.0.1", peer.port))[0])
    yield
    for client in clients:
        client.abort()


@contextlib.asynccontextmanager
async def reading(peer: Peer, connections: int, times: list[float]) -> AsyncIterator[None]:
    """Clients that read any answer."""
    ended = False

    async def client(n: int) -> None:
        caller = await Caller.connect(peer.port)
        while not ended:
            answer = await caller.call(request(peer.path, BODY, n % TENANTS))
            if answer.status != 200:
                raise RuntimeError(f"unexpected answer {answer.status}: {answer.body[:200]!r}")
            times.append(answer.total_s)
        caller.transport.abort()

    async with asyncio.TaskGroup() as clients:
        for n in range(connections):
            clients.create_task(client(n))
        yield
        ended = True


async def streamed(peer: Peer, streams: int, pace: int, seconds: float) -> tuple[float, float, int]:
    """CPU seconds and resident MiB of the proxy while it carries streams of `pace` tokens/s, and how many of
    them broke or lack tokens.
    """
    tokens = round(pace * seconds)
    loop = asyncio.get_running_loop()
    before = cpu_s(peer.pid)
    clients = []
    for n in range(streams):
        make = partial(Streaming, request(peer.path, STREAM % (tokens, pace, tokens), n % TENANTS))
        clients.append((await loop.create_connection(make, "127.0.0.1", peer.port))[1])
        if n % 50 == 49:
            await asyncio.sleep(0.02)
    await asyncio.sleep(seconds / 2)
    memory = memory_mib(peer.pid)
    ends = asyncio.gather(*(client.done for client in clients), return_exceptions=True)
    await asyncio.wait_for(ends, 10 * seconds + 60)
    lost = sum(client.tokens != tokens or client.done.exception() is not None for client in clients)
    used = cpu_s(peer.pid) - before
    for client in clients:
        client.transport.abort()
    return used, memory, lost


async def stalled(peer: Peer) -> float:
    """MiB by which the proxy has grown when nobody reads `STALLED` streams of 7 MB."""
    loop = asyncio.get_running_loop()
    tokens = STALLED_BYTES // len(CHUNK)
    before = memory_mib(peer.pid)
    clients = []
    for n in range(STALLED):
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        narrow.setblocking(False)
        await loop.sock_connect(narrow, ("127.0.0.1", peer.port))
        sent = request(peer.path, FLOOD % tokens, n)
        clients.append((await loop.create_connection(partial(Stalled, sent), sock=narrow))[0])
    await asyncio.sleep(5.0)
    grown = memory_mib(peer.pid) - before
    for client in clients:
        client.abort()
    return grown


async def ends(engine: int) -> dict[int, tuple[float, int]]:
    """When each stream with a number was over or cut in the engine, and how many tokens it had by then."""
    caller = await Caller.connect(engine)
    answer = await caller.call(b"GET /ends HTTP/1.1\r\nHost: x\r\n\r\n")
    caller.transport.abort()
    return {number: (when, tokens) for number, when, tokens in json.loads(answer.body)}


async def leaving(peer: Peer, kind: bytes, pace: int, tokens: int) -> tuple[int, Leaving]:
    """A client of a stream of its own, and that stream's number."""
    number = next(_NUMBERS)
    sent = request(peer.path, LEAVER % (kind, pace, tokens, number), number % TENANTS)
    make = partial(Leaving, sent)
    return number, (await asyncio.get_running_loop().create_connection(make, "127.0.0.1", peer.port))[1]


async def departed(peer: Peer, engine: int) -> float:
    """Milliseconds until the engine's side of a stream whose client left was closed, at worst, while other
    connections are busy. Infinite if one was not closed within five seconds.
    """
    left: dict[int, float] = {}
    async with repeating(peer, CONNECTIONS, []):
        for _ in range(LEAVERS):
            number, client = await leaving(peer, b"pace", 20, 10_000)
            await asyncio.wait_for(client.begun, 10)
            left[number] = client.leave()
        await asyncio.sleep(5.0)
    known = await ends(engine)
    return 1e3 * max(known.get(number, (math.inf, 0))[0] - when for number, when in left.items())


async def wasted(peer: Peer, engine: int) -> float:
    """Share of the tokens that clients had asked for, who left while the engine's slots were taken, that were
    computed all the same once there was room.
    """
    tokens = 5
    holders = [(await leaving(peer, b"slot", 5, 10_000))[1] for _ in range(SLOTS)]
    await asyncio.wait_for(asyncio.gather(*(holder.begun for holder in holders)), 10)
    waiters = [await leaving(peer, b"slot", 50, tokens) for _ in range(WAITERS)]
    await asyncio.sleep(1.0)
    for _, waiter in waiters:
        if waiter.begun.done():
            raise RuntimeError(f"{peer.name}: a call did not wait")
        waiter.leave()
    await asyncio.sleep(1.0)
    for holder in holders:
        holder.leave()
    await asyncio.sleep(2.0 + WAITERS * tokens / 50 / SLOTS)
    known = await ends(engine)
    return sum(known[number][1] for number, _ in waiters if number in known) / (WAITERS * tokens)


async def measure(peers: list[Peer], queueing: list[Peer], rounds: int, seconds: float) -> list[Figure]:
    """Rounds of everything; peers take turns. `queueing` are those that are sent more than the engine takes
    at once.
    """
    samples: dict[tuple[str, str], list[float]] = {}

    def add(peer: Peer, name: str, value: float) -> None:
        samples.setdefault((peer.name, name), []).append(value)

    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for peer in peers:
            times, _, used = await repeated(peer, 1, seconds)
            add(peer, "p50 alone, us", 1e6 * statistics.median(times))
            add(peer, "p99 alone, us", 1e6 * times[int(0.99 * len(times))])
            add(peer, "CPU a call alone, us", used)
        for peer in peers:
            _, rate, used = await repeated(peer, CONNECTIONS, seconds)
            add(peer, f"calls/s at {CONNECTIONS} connections", rate)
            add(peer, f"CPU a call at {CONNECTIONS} connections, us", used)
        for peer in peers:
            if peer.name != _BARE and not peer.rewrites:
                used, _, lost = await streamed(peer, STREAMS, 50, 6.0)
                if lost:
                    raise RuntimeError(f"{peer.name}: {lost} of {STREAMS} streams broke or lack tokens")
                add(peer, f"CPU of {STREAMS} streams of 50 tokens/s for 6 s, s", used)
    engine = next(peer.port for peer in peers if peer.name == _BARE)
    for peer in queueing:
        add(peer, _WASTED, await wasted(peer, engine))
    for peer in peers:
        if peer.proxies_calls:
            add(peer, _LEFT, await departed(peer, engine))
            add(peer, _GROWTH, await stalled(peer))  # first: what 2,000 streams leave behind would hide it
            _, memory, lost = await streamed(peer, OPEN_STREAMS, 5, HELD_S)
            add(peer, f"memory at {OPEN_STREAMS:,} open streams, MiB", memory)
            add(peer, f"of {OPEN_STREAMS:,} streams of 5 tokens/s for {HELD_S:g} s broke, streams", lost)
    return judged(samples)


def judged(samples: dict[tuple[str, str], list[float]]) -> list[Figure]:
    """Ratios to the router with their goals, then everything that was measured."""
    router, ours = "vllm-router", "sidecar"
    goals: dict[str, Goal] = {
        "p50 alone, us": Goal("< 1", lambda value: value < 1),
        "p99 alone, us": Goal("< 1", lambda value: value < 1),
        f"calls/s at {CONNECTIONS} connections": at_least(2),
        f"CPU of {STREAMS} streams of 50 tokens/s for 6 s, s": Goal("< 1", lambda value: value < 1),
    }
    figures = []
    if any(name == router for name, _ in samples):
        for what, goal in goals.items():
            ratios = [a / b for a, b in zip(samples[ours, what], samples[router, what], strict=True)]
            name = f"{what.rpartition(',')[0] or what}: sidecar over {router}"
            figures.append(figure(name, statistics.median(ratios), "ratio", half_quartiles(ratios), goal))
    cpu = f"CPU a call at {CONNECTIONS} connections, us"
    costs = [a - b for a, b in zip(samples[ours, cpu], samples["forwarding alone", cpu], strict=True)]
    name = "identity, scheduling and accounting of a call"
    figures.append(figure(name, statistics.median(costs), "us CPU", half_quartiles(costs), at_most(25)))
    for (peer, what), values in samples.items():
        name, _, unit = what.rpartition(", ") if ", " in what else (what, "", "1/s")
        most = at_most(10 if what == _GROWTH else 150)
        wished = {"MiB": most, "streams": exactly(0), "ms": at_most(100), "share": exactly(0)}
        wanted = wished.get(unit) if peer == ours else None
        figures.append(
            figure(f"{name}; {peer}", statistics.median(values), unit, half_quartiles(values), wanted)
        )
    return figures


@contextlib.contextmanager
def litellm(program: Path, folder: Path, engine: int, port: int, core: int) -> Iterator[int]:
    """LiteLLM's proxy with one worker, no keys and no database; its process id."""
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{engine}/v1", "api_key": "none"}
    config = folder / "litellm.json"  # JSON is YAML.
    config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": model}]}))
    command = [
        *(str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1", "--telemetry", "False"),
    ]
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # prices of models from its package, not from the network
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it would not start without keys
    }
    with started(command, core, environment) as pid:
        yield pid


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sidecar", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement (default 2)")
    parser.add_argument("--compiled", type=Path, help="folder with a compiled core (make compiled)")
    parser.add_argument("--python", type=Path, help="runs the sidecar, with this one's packages")
    parser.add_argument("--router", type=Path, help="an installed vllm-router to compare with")
    parser.add_argument("--litellm", type=Path, help="an installed litellm to show beside them")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the proxy, one for everything else")
    os.sched_setaffinity(0, {cores[1]})
    engine, port, control, router_port = 18100, 18101, 18102, 18103
    narrow_port, narrow_control = 18106, 18107
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        peers = [Peer(_BARE, engine, stack.enter_context(dummy_engine(engine, cores[1])))]
        pid = stack.enter_context(
            sidecar(
                Path(folder),
                engine=engine,
                port=port,
                control=control,
                core=cores[0],
                compiled=options.compiled,
                python=options.python,
                options=("--max-window", "4096"),
            )
        )
        peers.append(Peer("sidecar", port, pid))
        peers.append(Peer("forwarding alone", port, pid, FORWARDED))
        narrow = Path(folder, "narrow")
        narrow.mkdir()
        pid = stack.enter_context(
            sidecar(
                narrow,
                engine=engine,
                port=narrow_port,
                control=narrow_control,
                core=cores[0],
                compiled=options.compiled,
                python=options.python,
                options=("--max-window", str(SLOTS)),
            )
        )
        queueing = [Peer("sidecar", narrow_port, pid)]
        if options.router is not None:
            command = [
                *(str(options.router), "--host", "127.0.0.1", "--port", str(router_port)),
                *("--policy", "round_robin", "--worker-urls", f"http://127.0.0.1:{engine}"),
                *("--log-level", "error", "--prometheus-port", "18104"),
            ]
            peers.append(Peer("vllm-router", router_port, stack.enter_context(started(command, cores[0]))))
            queueing.append(peers[-1])
        if options.litellm is not None:
            pid = stack.enter_context(litellm(options.litellm, Path(folder), engine, 18105, cores[0]))
            peers.append(Peer("LiteLLM", 18105, pid, rewrites=True))
        figures = uvloop.run(run(peers, queueing, options.rounds, options.seconds))
    publish("sidecar", None, figures, options.python and version_of(options.python))


async def run(peers: list[Peer], queueing: list[Peer], rounds: int, seconds: float) -> list[Figure]:
    for peer in peers + queueing:
        await answering(peer.port, peer.path, BODY)
    return await measure(peers, queueing, rounds, seconds)


if __name__ == "__main__":
    main()
