"""An engine that answers what a test tells it to, over a real socket, and remembers what it was sent.

It computes nothing: prompts count 10 tokens, answers as many as `max_tokens` says (default 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

PROMPT_TOKENS = 10

METRICS = """\
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="fake"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="fake"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="fake"}} {kv_use}
vllm:num_preemptions_total{{engine="0",model_name="fake"}} 0.0
vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="1000"}} 1.0
"""


@dataclass
class Seen:
    """A request as the engine got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def fields(self) -> dict:
        return json.loads(self.body)


@dataclass
class Reply:
    """The way back to the client."""

    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} Said\r\nX-Engine: fake\r\nContent-Type: {content_type}\r\n"
        await self.send(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def begin_events(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")


Behaviour = Callable[[Seen, Reply], Awaitable[None]]


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def token_event(text: str) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]})


def usage_event(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return event({"id": "c", "choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"


@dataclass
class FakeEngine:
    """Listens on loopback while it is entered."""

    behaviour: Behaviour | None = None  #: what to do with a completion instead of answering at once
    seen: list[Seen] = field(default_factory=list)
    finished: int = 0  #: completions answered whole
    cut: int = 0  #: completions whose client left
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    healthy: bool = True
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task] = field(default_factory=set)

    async def __aenter__(self) -> FakeEngine:
        await self.listen(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop as if killed."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def completions(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.target.startswith("/v1/") and seen.method == "POST"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                seen = await _read_request(reader)
                if seen.target not in ("/health", "/metrics"):
                    self.seen.append(seen)
                await self._answer(seen, Reply(writer), reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        if seen.target == "/health":
            await reply.whole(200 if self.healthy else 503, b"", "text/plain")
        elif seen.target.partition("?")[0] == "/metrics":
            text = METRICS.format(running=self.running, waiting=self.waiting, kv_use=self.kv_use)
            await reply.whole(200, text.encode(), "text/plain; version=0.0.4")
        elif seen.target.endswith("completions"):
            await self._complete(seen, reply, reader)
        else:
            await reply.whole(200, json.dumps({"target": seen.target}).encode())

    async def _complete(self, seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        """Answer, unless the client leaves first."""
        working = asyncio.ensure_future((self.behaviour or answer_at_once)(seen, reply))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.cut += 1
                raise ConnectionResetError
            await working
            self.finished += 1
        finally:
            gone.cancel()
            working.cancel()
            await asyncio.gather(gone, working, return_exceptions=True)


async def answer_at_once(seen: Seen, reply: Reply) -> None:
    """A short completion, streamed if asked for, with usage if asked for."""
    try:
        fields = seen.fields
    except ValueError:
        await reply.whole(400, b'{"error":{"message":"not JSON","type":"BadRequestError","code":400}}')
        return
    count = fields.get("max_tokens", 3)
    if not fields.get("stream"):
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "total_tokens": PROMPT_TOKENS + count,
            "completion_tokens": count,
        }
        await reply.whole(200, json.dumps({"choices": [{"text": "x" * count}], "usage": usage}).encode())
        return
    await reply.begin_events()
    await reply.chunk(event({"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}))
    for number in range(count):
        await reply.chunk(token_event(f"t{number}"))
    if (fields.get("stream_options") or {}).get("include_usage"):
        await reply.chunk(usage_event(PROMPT_TOKENS, count))
    await reply.chunk(DONE)
    await reply.end()


async def _read_request(reader: asyncio.StreamReader) -> Seen:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name, value.strip()))
    seen = Seen(method, target, headers, b"")
    length = int(seen.header("content-length") or 0)
    seen.body = await reader.readexactly(length)
    return seen
