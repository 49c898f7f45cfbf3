"""A sidecar in this process over real sockets, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairserve.config import SchedulerConfig, key_digest
from fairserve.sidecar.options import Address, Limits, SidecarOptions, TlsFiles
from fairserve.sidecar.service import Sidecar
from tests.fakes.engine import FakeEngine
from tests.parts.process import Process, free_port

SALT = "00" * 16
TOKEN = "control-token"
KEY_A, KEY_B, KEY_PINNED = "key-of-a", "key-of-b", "key-of-a-for-chat"
CHAT = "/v1/chat/completions"


def document(generation: int = 1, **changes: object) -> SchedulerConfig:
    """Tenants a (weight 3) and b (weight 1), applications chat and agent."""
    fields: dict = {
        "pool": "default/llm",
        "generation": generation,
        "identity": {
            "salt": SALT,
            "api_keys": [
                {"digest": key_digest(SALT, KEY_A), "tenant": "a"},
                {"digest": key_digest(SALT, KEY_B), "tenant": "b"},
                {"digest": key_digest(SALT, KEY_PINNED), "tenant": "a", "application": "chat"},
            ],
            "headers": [{"name": "x-team", "value": "bee", "tenant": "b"}],
        },
        "tenants": [
            {"name": "a", "weight": 3},
            {"name": "b", "weight": 1, "per_user": {"count": 2, "window_s": 60}},
        ],
        "applications": [
            {"name": "chat", "input_tokens": 10, "output_tokens": 3},
            {"name": "agent", "input_tokens": 10, "output_tokens": 3},
        ],
    }
    return SchedulerConfig.model_validate({**fields, **changes})


@asynccontextmanager
async def running_sidecar(
    folder: Path,
    engine: FakeEngine | int,
    config: SchedulerConfig | None,
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    snapshot: Path | None = None,
    max_window: int = 256,
    listen: Address = Address("127.0.0.1", 0),  # noqa: B008 - frozen
    **options: Any,
) -> AsyncIterator[Sidecar]:
    """A sidecar before `engine` (or a port); with `config` it boots from a file.
    `options`: of `SidecarOptions`.
    """
    token_file, boot_file = folder / "token", folder / "config.json"
    token_file.write_text(TOKEN + "\n")
    if config is not None:
        boot_file.write_bytes(config.to_bytes())
    sidecar = Sidecar(
        SidecarOptions(
            listen=listen,
            control=Address("127.0.0.1", 0),
            engine=Address("127.0.0.1", engine if isinstance(engine, int) else engine.port),
            control_token_file=token_file,
            config_file=boot_file if config is not None else None,
            snapshot_file=snapshot,
            poll_interval_s=0.05,
            max_window=max_window,
            seed=1,
            limits=limits,
            **options,
        )
    )
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.stop()
        sidecar.scheduler.check()


def make_certificate(folder: Path, name: str) -> TlsFiles:
    """A certificate for localhost that names its maker."""
    files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    command += ["-keyout", str(files.key), "-out", str(files.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return files


def process(folder: Path, engine_port: int, port: int, *more: str) -> Process:
    """A sidecar as a process of its own, which boots from a file."""
    (folder / "token").write_text(TOKEN)
    (folder / "config.json").write_bytes(document().to_bytes())
    args = [sys.executable, "-m", "fairserve.cli", "sidecar", "--listen", f"127.0.0.1:{port}"]
    args += ["--control", f"127.0.0.1:{free_port()}", "--engine", f"http://127.0.0.1:{engine_port}"]
    args += ["--config", str(folder / "config.json"), "--control-token-file", str(folder / "token"), *more]
    return Process("sidecar", args, folder / "log", env={"PYTHONPATH": os.pathsep.join(sys.path)})


@dataclass
class Answer:
    """A response as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def fields(self) -> dict:
        return json.loads(self.body)


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, address: Address | int, **tls: Any) -> Client:
        port = address if isinstance(address, int) else address.port
        return cls(*await asyncio.open_connection("127.0.0.1", port, **tls))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Go away without waiting for anything."""
        self.writer.transport.abort()

    def send(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: test"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    def call(self, key: str, body: dict | bytes, target: str = CHAT, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.send("POST", target, {"Authorization": f"Bearer {key}", **named}, data)

    async def head(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2])]
        return Answer(int(head[0].split(" ")[1]), headers, b"")

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunked_body(self) -> bytes:
        chunks = []
        while chunk := await self.chunk():
            chunks.append(chunk)
        return b"".join(chunks)

    async def answer(self) -> Answer:
        """A whole response."""
        answer = await self.head()
        if answer.header("transfer-encoding") == "chunked":
            answer.body = await self.chunked_body()
        elif (length := answer.header("content-length")) is not None:
            answer.body = await self.reader.readexactly(int(length))
        elif answer.header("connection") == "close":
            answer.body = await self.reader.read()
        return answer


async def ask(
    address: Address | int, key: str, body: dict | bytes, target: str = CHAT, **headers: str
) -> Answer:
    """One call on a connection of its own."""
    async with await Client.connect(address) as client:
        client.call(key, body, target, **headers)
        return await client.answer()


async def control(
    sidecar: Sidecar, method: str, path: str, body: bytes | None = None, token: str = TOKEN, **headers: str
) -> Answer:
    """One request to the control port."""
    async with await Client.connect(sidecar.control_address) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.send(method, path, {"Authorization": f"Bearer {token}", **named}, body)
        return await client.answer()


async def eventually(condition: Callable[[], object], what: str, deadline_s: float = 10.0) -> None:
    """Poll until `condition` holds."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


def metric(text: str, name: str, **labels: str) -> float | None:
    """The value of one series in a `/metrics` text."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            return float(match[2])
    return None
