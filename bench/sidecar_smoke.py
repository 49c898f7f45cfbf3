"""A first look at the sidecar's speed: median alone, calls/s at 64 connections, beside the bare upstream.

Both figures come from one run on one machine and compare only with each other. Every call is identified
among 1,000 tenants, scheduled and accounted for. Run: `.venv/bin/python bench/sidecar_smoke.py`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop

from fairserve.config import SchedulerConfig, key_digest

SALT = "00" * 16
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"hello " * 20 + b'"}],"max_tokens":8}'
ANSWER = (
    b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * 8 + b'"}}],'
    b'"usage":{"prompt_tokens":20,"total_tokens":28,"completion_tokens":8}}'
)
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
METRICS = (
    b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100000"} 1\n'
)


class Upstream(asyncio.Protocol):
    """Answers at once whatever it is asked; requests arrive whole on loopback."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self.transport.write(RESPONSE)
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(METRICS)
            self.transport.write(head + METRICS)


async def upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    await server.serve_forever()


class Client(asyncio.Protocol):
    """Sends a call, and the next when it is answered."""

    def __init__(self, request: bytes, times: list[float]) -> None:
        self.request, self.times = request, times
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(ANSWER):
            assert self.received.startswith(b"HTTP/1.1 200"), self.received
            self.times.append(time.perf_counter() - self.began)
            self.received = b""
            self.send()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used: unlike latency, hardly disturbed by what else runs here."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, pid: int, connections: int, seconds: float) -> tuple[float, float, float, float]:
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key-7\r\n"
        b"Content-Type: application/json\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n"
    ) % len(BODY) + BODY
    times: list[float] = []
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(request, times), "127.0.0.1", port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds / 4)
    times.clear()
    before = cpu_s(pid)
    await asyncio.sleep(seconds)
    count, used = len(times), cpu_s(pid) - before
    for client in clients:
        client.abort()
    ordered = sorted(times)
    return (
        statistics.median(ordered) * 1e6,
        ordered[int(0.99 * len(ordered))] * 1e6,
        count / seconds,
        used / count * 1e6,
    )


def configuration() -> bytes:
    names = [f"t{number}" for number in range(1000)]
    return SchedulerConfig.model_validate(
        {
            "pool": "default/llm",
            "identity": {
                "salt": SALT,
                "api_keys": [
                    {"digest": key_digest(SALT, f"key-{n}"), "tenant": name} for n, name in enumerate(names)
                ],
            },
            "tenants": [{"name": name, "per_user": {"count": 1_000_000, "window_s": 60}} for name in names],
        }
    ).to_bytes()


async def wait_for(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return


async def measure(bare: tuple[int, int], proxied: tuple[int, int]) -> None:
    for port, _ in (bare, proxied):
        await wait_for(port)
    await asyncio.sleep(1.0)
    for name, (port, pid) in (("bare upstream", bare), ("sidecar", proxied)):
        p50, p99, _, cpu_alone = await load(port, pid, 1, 2.0)
        _, _, rate, cpu = await load(port, pid, 64, 3.0)
        print(
            f"{name:13}  alone p50 {p50:5.0f} µs, p99 {p99:5.0f} µs, {cpu_alone:4.0f} CPU µs a call", end="  "
        )
        print(f"64 connections: {rate:7.0f} calls/s, {cpu:4.0f} CPU µs a call")


def main() -> None:
    bare, proxied, control = 18100, 18101, 18102
    if sys.argv[1:] == ["upstream"]:
        uvloop.run(upstream(bare))
        return
    with tempfile.TemporaryDirectory() as folder:
        config, token = Path(folder, "config.json"), Path(folder, "token")
        config.write_bytes(configuration())
        token.write_text("t")
        commands = [
            [sys.executable, __file__, "upstream"],
            [
                *(sys.executable, "-m", "fairserve.cli", "sidecar", "--engine", f"http://127.0.0.1:{bare}"),
                *("--listen", f"127.0.0.1:{proxied}", "--control", f"127.0.0.1:{control}"),
                *("--config", str(config), "--control-token-file", str(token)),
            ],
        ]
        children = [subprocess.Popen(command, env=os.environ) for command in commands]
        try:
            uvloop.run(measure((bare, children[0].pid), (proxied, children[1].pid)))
        finally:
            for child in children:
                child.terminate()
                child.wait()


if __name__ == "__main__":
    main()
