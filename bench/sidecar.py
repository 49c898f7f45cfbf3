"""The sidecar beside its peers, before one dummy engine: `make bench-sidecar`.

Everything is on in the sidecar: 1,000 tenants by API key, FairServe, limits, accounting, metrics, the
compiled core. Peers take turns within each round, and every figure with a goal is a ratio within a round, so
that other work on the machine slows both sides. The proxy under test has a core of its own; the client and
the engine share another. *Forwarding alone* is the sidecar's own proxy on a path that is not scheduled: the
difference is what identity, scheduling and accounting cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from bench.dummy_engine import ANSWER, DONE
from bench.results import ROOT, Figure, Goal, at_least, at_most, figure, half_quartiles, publish
from fairserve.config import SchedulerConfig, key_digest

SALT = "00" * 16
TENANTS = 1_000
CHAT = b"/v1/chat/completions"
#: Not a path of vLLM's: the sidecar forwards it and does nothing else.
FORWARDED = b"/do-nothing"
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"hello " * 20 + b'"}],"max_tokens":8}'
STREAM = (
    b'{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":%d,"stream":true,'
    b'"user":"pace-%d-%d"}'
)
ROUNDS, SECONDS = 5, 2.0
CONNECTIONS, STREAMS, OPEN_STREAMS = 64, 128, 2_000


@dataclass(frozen=True)
class Peer:
    """Somewhere to send calls."""

    name: str
    port: int
    pid: int
    path: bytes = CHAT


def request(path: bytes, body: bytes, key: int = 7) -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-%d\r\nContent-Type: application/json\r\n"
        b"User-Agent: bench\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n%b"
    ) % (path, key, len(body), body)


# -- clients ----------------------------------------------------------------------------------------------


class Repeating(asyncio.Protocol):
    """Sends a call, and the next when it is answered."""

    def __init__(self, sent: bytes, times: list[float]) -> None:
        self.sent, self.times = sent, times
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if ANSWER in self.received:
            if not self.received.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"unexpected answer: {self.received[:200]!r}")
            self.times.append(time.perf_counter() - self.began)
            self.received = b""
            self.send()


class Streaming(asyncio.Protocol):
    """Reads one stream to its end."""

    def __init__(self, sent: bytes) -> None:
        self.sent = sent
        self.tokens = 0
        self.tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.sent)

    def data_received(self, data: bytes) -> None:
        self.tokens += data.count(b'"content":"word ')
        self.tail = (self.tail + data)[-64:]
        if DONE in self.tail and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"the stream broke after {self.tokens} tokens"))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used: hardly disturbed by what else runs here."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Resident memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def repeated(peer: Peer, connections: int, seconds: float) -> tuple[list[float], float, float]:
    """Latencies in seconds, calls a second, and CPU microseconds of the proxy for a call."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    clients = []
    for n in range(connections):
        make = partial(Repeating, request(peer.path, BODY, n % TENANTS), times)
        clients.append((await loop.create_connection(make, "127.0.0.1", peer.port))[0])
    await asyncio.sleep(seconds / 4)
    times.clear()
    before = cpu_s(peer.pid)
    await asyncio.sleep(seconds)
    count, used = len(times), cpu_s(peer.pid) - before
    for client in clients:
        client.abort()
    if not count:
        raise RuntimeError(f"{peer.name} answered nothing")
    return sorted(times[:count]), count / seconds, used / count * 1e6


async def streamed(peer: Peer, streams: int, pace: int, seconds: float) -> tuple[float, float]:
    """CPU seconds and resident MiB of the proxy while it carries streams of `pace` tokens/s."""
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
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), 10 * seconds + 60)
    lost = sum(client.tokens != tokens for client in clients)
    if lost:
        raise RuntimeError(f"{peer.name}: {lost} of {streams} streams have not {tokens} tokens")
    used = cpu_s(peer.pid) - before
    for client in clients:
        client.transport.abort()
    return used, memory


# -- processes --------------------------------------------------------------------------------------------


def configuration() -> bytes:
    names = [f"t{number}" for number in range(TENANTS)]
    keys = [{"digest": key_digest(SALT, f"key-{n}"), "tenant": name} for n, name in enumerate(names)]
    tenants = [{"name": name, "per_user": {"count": 1_000_000, "window_s": 60}} for name in names]
    document = {"pool": "default/llm", "identity": {"salt": SALT, "api_keys": keys}, "tenants": tenants}
    return SchedulerConfig.model_validate(document).to_bytes()


@contextlib.contextmanager
def started(command: list[str], core: int, environment: dict[str, str]) -> Iterator[int]:
    """A process on one core, ended at the end; its id."""
    child = subprocess.Popen(command, env=os.environ | environment, cwd=ROOT, stdout=subprocess.DEVNULL)
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


async def answering(port: int, path: bytes = CHAT) -> None:
    """Wait until calls are answered there."""
    for _ in range(600):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(path, BODY))
            line = await asyncio.wait_for(reader.readline(), 1.0)
            writer.close()
            if b" 200 " in line:
                return
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}")


# -- figures ----------------------------------------------------------------------------------------------


async def measure(peers: list[Peer], rounds: int, seconds: float) -> list[Figure]:
    """Rounds of everything; peers take turns."""
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
            if peer.name != "bare engine":
                used, _ = await streamed(peer, STREAMS, 50, 6.0)
                add(peer, f"CPU of {STREAMS} streams of 50 tokens/s for 6 s, s", used)
    for peer in peers:
        if peer.path == CHAT and peer.name != "bare engine":
            _, memory = await streamed(peer, OPEN_STREAMS, 5, 30.0)
            add(peer, f"memory at {OPEN_STREAMS:,} open streams, MiB", memory)
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
        most = at_most(150) if peer == ours and unit == "MiB" else None
        figures.append(
            figure(f"{name}; {peer}", statistics.median(values), unit, half_quartiles(values), most)
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sidecar", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement (default 2)")
    parser.add_argument("--compiled", type=Path, help="folder with a compiled core (make compiled)")
    parser.add_argument("--router", type=Path, help="an installed vllm-router to compare with")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the proxy, one for everything else")
    os.sched_setaffinity(0, {cores[1]})
    engine, port, control, router_port = 18100, 18101, 18102, 18103
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config, token = Path(folder, "config.json"), Path(folder, "token")
        config.write_bytes(configuration())
        token.write_text("t", encoding="ascii")
        upstream = [sys.executable, "-m", "bench.dummy_engine", str(engine)]
        peers = [Peer("bare engine", engine, stack.enter_context(started(upstream, cores[1], {})))]
        sidecar = [
            *(sys.executable, "-m", "fairserve.cli", "sidecar", "--engine", f"http://127.0.0.1:{engine}"),
            *("--listen", f"127.0.0.1:{port}", "--control", f"127.0.0.1:{control}", "--max-window", "4096"),
            *("--config", str(config), "--control-token-file", str(token)),
        ]
        path = {"PYTHONPATH": str(options.compiled.resolve())} if options.compiled is not None else {}
        pid = stack.enter_context(started(sidecar, cores[0], path))
        peers.append(Peer("sidecar", port, pid))
        peers.append(Peer("forwarding alone", port, pid, FORWARDED))
        if options.router is not None:
            command = [
                *(
                    str(options.router),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(router_port),
                    "--policy",
                    "round_robin",
                ),
                *(
                    "--worker-urls",
                    f"http://127.0.0.1:{engine}",
                    "--log-level",
                    "error",
                    "--prometheus-port",
                    "18104",
                ),
            ]
            peers.append(
                Peer("vllm-router", router_port, stack.enter_context(started(command, cores[0], {})))
            )
        figures = uvloop.run(run(peers, options.rounds, options.seconds))
    publish("sidecar", None, figures)


async def run(peers: list[Peer], rounds: int, seconds: float) -> list[Figure]:
    for peer in peers:
        await answering(peer.port, peer.path)
    return await measure(peers, rounds, seconds)


if __name__ == "__main__":
    main()
