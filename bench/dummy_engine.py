"""An engine that computes nothing: the upstream that proxies are compared before.

Answers a call at once, or streams tokens at the pace that its body asks for (`"user":"pace-50-300"`: 300
tokens, 50 a second), with the usage chunk where it is asked for, or all of them at once
(`"user":"flood-300"`). All streams of one pace share one timer, so that the upstream costs little beside what
is measured. Run: `python -m bench.dummy_engine PORT`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from typing import cast

import httptools
import uvloop

ANSWER = (
    b'{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * 8 + b'"}}],'
    b'"usage":{"prompt_tokens":20,"total_tokens":28,"completion_tokens":8}}'
)
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
)
USAGE = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[],'
    b'"usage":{"prompt_tokens":20,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
DONE = b"data: [DONE]\n\n"
METRICS = (
    b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.1\n"
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000000"} 1\n'
)
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
_PACE = re.compile(rb'"pace-(\d+)-(\d+)"')
_FLOOD = re.compile(rb'"flood-(\d+)"')


def _plain(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_RESPONSE = _plain(ANSWER, b"application/json")
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TOKEN = _chunk(CHUNK)


class Stream:
    """One answer in progress."""

    __slots__ = ("left", "total", "transport", "usage")

    def __init__(self, transport: asyncio.Transport, total: int, *, usage: bool) -> None:
        self.transport, self.total, self.left, self.usage = transport, total, total, usage


class Pacer:
    """Writes one token to each stream of a pace, at that pace: streams are spread over the period."""

    SLOTS = 10

    def __init__(self, tokens_per_s: int) -> None:
        self.period_s = 1.0 / tokens_per_s
        self.slots: deque[list[Stream]] = deque([] for _ in range(self.SLOTS))
        self.count = 0
        self.loop = asyncio.get_running_loop()
        self.due = self.loop.time()
        self._tick()

    def add(self, stream: Stream) -> None:
        self.count += 1
        self.slots[self.count % self.SLOTS].append(stream)

    def _tick(self) -> None:
        self.slots.rotate(-1)
        live = []
        for stream in self.slots[0]:
            if stream.transport.is_closing():
                continue
            stream.left -= 1
            if stream.left >= 0:
                stream.transport.write(_TOKEN)
                live.append(stream)
                continue
            usage = USAGE % (20 + stream.total, stream.total) if stream.usage else b""
            stream.transport.write((_chunk(usage) if usage else b"") + _chunk(DONE) + b"0\r\n\r\n")
        self.slots[0][:] = live
        self.due += self.period_s / self.SLOTS
        self.loop.call_at(self.due, self._tick)


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            body = MODELS if b"models" in self.url else METRICS if b"metrics" in self.url else b"{}"
            kind = b"text/plain" if b"metrics" in self.url else b"application/json"
            self.transport.write(_plain(body, kind))
            return
        flood = _FLOOD.search(self.body)
        if flood is not None:
            self.transport.write(_STREAM_HEAD + _TOKEN * int(flood[1]) + _chunk(DONE) + b"0\r\n\r\n")
            return
        paced = _PACE.search(self.body)
        if paced is None:
            self.transport.write(_RESPONSE)
            return
        pace, tokens = int(paced[1]), int(paced[2])
        self.transport.write(_STREAM_HEAD)
        if pace not in PACERS:
            PACERS[pace] = Pacer(pace)
        PACERS[pace].add(Stream(self.transport, tokens, usage=b"include_usage" in self.body))


PACERS: dict[int, Pacer] = {}


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
