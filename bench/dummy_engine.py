"""An engine that computes nothing: the upstream that proxies are compared before.

Answers a call at once, or streams tokens at the pace that its body asks for (`"user":"pace-50-300"`: 300
tokens, 50 a second), with the usage chunk where it is asked for, or all of them at once
(`"user":"flood-300"`). All streams of one pace share one timer, so that the upstream costs little beside what
is measured. Streams that name a slot (`"user":"slot-50-300"`) run `SLOTS` at a time, as an engine's batch has
places, and wait their turn. Of one with a number (`"user":"pace-50-300-7"`) `GET /ends` tells when it was cut
or whole. Run: `python -m bench.dummy_engine PORT`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
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
SLOTS = 8
_PACE = re.compile(rb'"(pace|slot)-(\d+)-(\d+)(?:-(\d+))?"')
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
    """One answer, which waits for its slot, is in progress or over."""

    __slots__ = ("left", "number", "over", "pace", "total", "transport", "usage")

    def __init__(
        self, transport: asyncio.Transport, pace: int, total: int, *, number: int | None, usage: bool
    ) -> None:
        self.transport, self.pace, self.total, self.usage = transport, pace, total, usage
        self.left = total
        self.number = number
        self.over = False

    def begin(self) -> None:
        self.transport.write(_STREAM_HEAD)
        if self.pace not in PACERS:
            PACERS[self.pace] = Pacer(self.pace)
        PACERS[self.pace].add(self)

    def end(self) -> None:
        """It is whole, or its reader has left."""
        if self.over:
            return
        self.over = True
        if self.number is not None:
            ENDS.append((self.number, time.monotonic(), self.total - max(0, self.left)))
        if self in WAITING:
            WAITING.remove(self)
        if self in RUNNING:
            RUNNING.remove(self)
            if WAITING:
                RUNNING.append(WAITING.popleft())
                RUNNING[-1].begin()


#: Of streams with a number: that number, the machine's monotonic time, and how many tokens were computed.
ENDS: list[tuple[int, float, int]] = []
RUNNING: list[Stream] = []  #: in a slot
WAITING: deque[Stream] = deque()  #: for a slot


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
            stream.end()
        self.slots[0][:] = live
        self.due += self.period_s / self.SLOTS
        self.loop.call_at(self.due, self._tick)


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.url = b""
        self.stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.stream is not None:
            self.stream.end()

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
            kind = b"application/json"
            if b"models" in self.url:
                body = MODELS
            elif b"metrics" in self.url:
                body, kind = METRICS, b"text/plain"
            else:
                body = json.dumps(ENDS).encode() if self.url == b"/ends" else b"{}"
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
        place, pace, tokens, number = paced.groups()
        self.stream = stream = Stream(
            self.transport,
            int(pace),
            int(tokens),
            number=None if number is None else int(number),
            usage=b"include_usage" in self.body,
        )
        if place == b"pace":
            stream.begin()
        elif len(RUNNING) < SLOTS:
            RUNNING.append(stream)
            stream.begin()
        else:
            WAITING.append(stream)


PACERS: dict[int, Pacer] = {}


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
