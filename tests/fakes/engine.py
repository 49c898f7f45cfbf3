"""An engine that answers what a test tells it to, over a real socket, and remembers what it was sent.

It computes nothing: prompts count 10 tokens, answers as many as `max_tokens` says (default 3). Its answers
have vLLM's shapes, field by field in vLLM's order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

PROMPT_TOKENS = 10

METRICS = """\
# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="fake"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="fake"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="fake",reason="capacity"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",model_name="fake",reason="deferred"}} 0.0
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
Realtime = Callable[[Seen, Reply, asyncio.StreamReader], Awaitable[None]]


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def token_event(text: str) -> bytes:
    return event({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]})


def usage_event(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return event({"id": "c", "choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"


#: What vLLM says with 503 when it has no room.
FULL = {
    "error": {
        "message": "The engine is currently busy and cannot accept new requests. Please try again later or"
        " on a different instance.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
    }
}


def refuses(times: int, content: object, **headers: str) -> Behaviour:
    """503 so many times, then answers."""

    async def refuse(seen: Seen, reply: Reply) -> None:
        nonlocal times
        times -= 1
        if times < 0:
            await answer_at_once(seen, reply)
            return
        body = json.dumps(content).encode()
        head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await reply.send(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)

    return refuse


@dataclass
class FakeEngine:
    """Listens on loopback while it is entered."""

    behaviour: Behaviour | None = None  #: what to do with a completion instead of answering at once
    realtime: Realtime | None = None  #: what to do with a WebSocket handshake
    seen: list[Seen] = field(default_factory=list)
    finished: int = 0  #: completions answered whole
    cut: int = 0  #: completions whose client left
    running: int = 0
    waiting: int = 0
    kv_use: float = 0.0
    healthy: bool = True
    described: tuple[str, ...] | None = ()  #: POST paths in its /openapi.json; None: it has none
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
                if seen.target not in ("/health", "/metrics", "/openapi.json"):
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
        if self.realtime is not None and seen.header("upgrade") == "websocket":
            await self.realtime(seen, reply, reader)
        elif seen.target == "/health":
            await reply.whole(200 if self.healthy else 503, b"", "text/plain")
        elif seen.target.partition("?")[0] == "/metrics":
            text = METRICS.format(running=self.running, waiting=self.waiting, kv_use=self.kv_use)
            await reply.whole(200, text.encode(), "text/plain; version=0.0.4")
        elif seen.target == "/openapi.json":
            paths = {path: {"post": {}} for path in self.described or ()}
            body = json.dumps({"openapi": "3.1.0", "paths": {**paths, "/health": {"get": {}}}}).encode()
            await reply.whole(404 if self.described is None else 200, body)
        elif seen.method == "POST" and seen.target.endswith(tuple(ANSWERS)):
            await self._complete(seen, reply, reader)
        else:
            await reply.whole(200, json.dumps({"target": seen.target}).encode())

    async def _complete(self, seen: Seen, reply: Reply, reader: asyncio.StreamReader) -> None:
        """Answer, unless the client leaves first."""
        working = asyncio.ensure_future((self.behaviour or _answer_for(seen.target))(seen, reply))
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


def answers_after(go_on: asyncio.Event) -> Behaviour:
    """The same, but not before the event."""

    async def wait(seen: Seen, reply: Reply) -> None:
        await go_on.wait()
        await answer_at_once(seen, reply)

    return wait


async def respond_at_once(seen: Seen, reply: Reply) -> None:
    """OpenAI's Responses."""
    count = seen.fields.get("max_output_tokens") or 3
    text = "x" * count
    answer = {
        "id": f"resp_{next(_NUMBERS)}",
        "created_at": 1,
        "metadata": seen.fields.get("metadata"),
        "model": "m",
        "object": "response",
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": seen.fields.get("tools", []),
        "top_p": 1.0,
        "background": False,
        "max_output_tokens": count,
        "status": "in_progress",
        "truncation": "disabled",
        "usage": None,
        "user": seen.fields.get("user"),
    }
    message = {"id": "msg_1", "role": "assistant", "status": "completed", "type": "message"}
    part = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
        "total_tokens": PROMPT_TOKENS + count,
    }
    done = {**answer, "output": [{**message, "content": [part]}], "status": "completed", "usage": usage}
    if not seen.fields.get("stream"):
        await reply.whole(200, json.dumps(done, separators=(",", ":")).encode())
        return
    await reply.begin_events()
    place = {"item_id": "msg_1", "output_index": 0}
    empty = {**part, "text": ""}
    events = [
        {"response": answer, "type": "response.created"},
        {"response": answer, "type": "response.in_progress"},
        {"item": {**message, "content": []}, "output_index": 0, "type": "response.output_item.added"},
        {**place, "content_index": 0, "part": empty, "type": "response.content_part.added"},
        *(
            {
                **place,
                "content_index": 0,
                "delta": "x",
                "logprobs": [],
                "type": "response.output_text.delta",
            }
            for _ in range(count)
        ),
        {
            **place,
            "content_index": 0,
            "text": text,
            "logprobs": [],
            "type": "response.output_text.done",
        },
        {"response": done, "type": "response.completed"},
    ]
    for number, content in enumerate(events):
        await reply.chunk(_named(content["type"], {**content, "sequence_number": number}))
    await reply.end()


async def message_at_once(seen: Seen, reply: Reply) -> None:
    """Anthropic's Messages."""
    count = seen.fields["max_tokens"]
    usage = {"input_tokens": PROMPT_TOKENS - 4, "output_tokens": count, "cache_read_input_tokens": 4}
    answer = {
        "id": f"msg_{next(_NUMBERS)}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
    }
    if not seen.fields.get("stream"):
        content = [{"type": "text", "text": "x" * count}]
        whole = {**answer, "content": content, "stop_reason": "end_turn", "usage": usage}
        await reply.whole(200, json.dumps(whole, separators=(",", ":")).encode())
        return
    await reply.begin_events()
    start = {**answer, "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 0}}
    await reply.chunk(_named("message_start", {"type": "message_start", "message": start}))
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    await reply.chunk(_named("content_block_start", block))
    for _ in range(count):
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
        await reply.chunk(_named("content_block_delta", delta))
    await reply.chunk(_named("content_block_stop", {"type": "content_block_stop", "index": 0}))
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    await reply.chunk(_named("message_delta", stop))
    await reply.chunk(_named("message_stop", {"type": "message_stop"}))
    await reply.end()


async def pool_at_once(seen: Seen, reply: Reply) -> None:
    """Vectors, scores and classes: as many prompts as there are inputs."""
    inputs = seen.fields.get("input", [])
    prompts = len(inputs) if isinstance(inputs, list) and inputs else 1
    tokens = PROMPT_TOKENS * prompts
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    data = [{"index": i, "object": "embedding", "embedding": [0.5] * 4} for i in range(prompts)]
    if seen.target.endswith("rerank"):
        results = [{"index": 0, "document": {"text": "x" * 200_000}, "relevance_score": 0.5}]
        answer = {"id": "rerank-1", "model": "m", "usage": usage, "results": results}
    else:
        counts = {**usage, "completion_tokens": 0, "prompt_tokens_details": None}
        answer = {"id": "embd-1", "object": "list", "created": 1, "model": "m", "data": data, "usage": counts}
    await reply.whole(200, json.dumps(answer, separators=(",", ":")).encode())


async def transcribe_at_once(seen: Seen, reply: Reply) -> None:
    """Transcriptions: seconds of sound, no tokens."""
    answer = {"text": "x" * 100, "usage": {"type": "duration", "seconds": 3}}
    await reply.whole(200, json.dumps(answer, separators=(",", ":")).encode())


def _named(name: str, content: object) -> bytes:
    return b"event: " + name.encode() + b"\n" + event(content)


_NUMBERS = itertools.count(1)
ANSWERS: dict[str, Behaviour] = {
    "completions": answer_at_once,
    "/invocations": answer_at_once,
    "/v1/systemone": answer_at_once,
    "/cohere/v2/chat": answer_at_once,
    "/v1/responses": respond_at_once,
    "/v1/messages": message_at_once,
    "/v1/embeddings": pool_at_once,
    "/pooling": pool_at_once,
    "/classify": pool_at_once,
    "score": pool_at_once,
    "rerank": pool_at_once,
    "/v1/audio/transcriptions": transcribe_at_once,
    "/v1/audio/translations": transcribe_at_once,
}


def _answer_for(target: str) -> Behaviour:
    return next(behaviour for end, behaviour in ANSWERS.items() if target.endswith(end))


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
