"""A bad way to the API server: a proxy on loopback that passes calls on, or does to them what a test says.

It speaks HTTP to its clients and passes their credentials on. Watches that are under way can be cut, or told
something that the API server never said.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.parts.process import free_port

_HOP_BY_HOP = {"connection", "host", "content-length", "transfer-encoding", "keep-alive"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it came."""

    method: str
    path: str
    watches: bool

    def is_list(self) -> bool:
        """Whether it lists objects of a kind that the operator watches, without watching."""
        kinds = ("tenants", "applications", "servingpools", "pods", "secrets")
        return self.method == "GET" and not self.watches and self.path.rpartition("/")[2] in kinds


@dataclass(slots=True)
class Fault:
    """What happens to calls that `meets` picks, to `times` of them (None: to all, while it lasts)."""

    meets: Callable[[Call], bool]
    status: int = 0  #: what is answered; 0: the connection is closed without an answer
    headers: dict[str, str] = field(default_factory=dict)
    event: dict[str, Any] | None = None  #: answer a watch with this one event instead
    passed_on: bool = False  #: the call is carried out all the same
    times: int | None = None
    met: int = 0  #: how many it has met


class ApiProxy:
    """The proxy. Its methods may be used from any thread."""

    def __init__(self, upstream: str, ca_file: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._port = port
        self._upstream = upstream
        self._tls = ssl.create_default_context(cafile=ca_file)
        self._faults: list[Fault] = []
        self._cuts: set[asyncio.Future[dict[str, Any] | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def kubeconfig(self, original: Path, path: Path) -> Path:
        """Write a kubeconfig that takes this way, and is the original otherwise."""
        config = json.loads(original.read_text())
        for cluster in config["clusters"]:
            cluster["cluster"] = {"server": self.url}
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    @property
    def watching(self) -> int:
        """Watches under way."""
        return len(self._cuts)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        """While in it, calls meet this fault; the first of several faults that picks a call counts."""
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def cut(self, event: dict[str, Any] | None = None) -> None:
        """End every watch that is under way: with this event as its last, or in the middle of nowhere."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._cut, event)

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(30), f"no proxy at {self.url}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def _cut(self, event: dict[str, Any] | None) -> None:
        for each in list(self._cuts):
            if not each.done():
                each.set_result(event)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        unbounded = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=unbounded, auto_decompress=False
        ) as self._session:
            server = web.Server(self._answer, access_log=None)  # type: ignore[arg-type]
            runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            ready.set()
            await self._stop.wait()
            self._cut(None)
            await runner.cleanup()
        await asyncio.sleep(0.25)  # As aiohttp's manual says: connections with TLS take a while to close.

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(request.method, request.path, request.query.get("watch") == "true")
        fault = next((each for each in self._faults if each.meets(call) and each.met != each.times), None)
        if fault is not None:
            fault.met += 1
            return await self._fail(request, fault)
        try:
            return await (self._stream(request) if call.watches else self._pass_on(request))
        except aiohttp.ClientError:  # The API server is away.
            return self._closed(request)

    async def _fail(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        if fault.passed_on:
            await self._pass_on(request)
        if fault.event is not None:
            return web.json_response(fault.event)
        if fault.status == 0:
            return self._closed(request)
        words = {"kind": "Status", "status": "Failure", "code": fault.status, "message": "by the proxy"}
        return web.json_response(words, status=fault.status, headers=fault.headers)

    @staticmethod
    def _closed(request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=503)

    def _upstream_call(self, request: web.BaseRequest, body: bytes | None) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = self._upstream + request.raw_path
        return self._session.request(request.method, url, headers=headers, data=body or None)

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self._upstream_call(request, await request.read()) as answer:
            body = await answer.read()
            return web.Response(status=answer.status, body=body, headers=_end_to_end(answer.headers))

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        cut: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        async with self._upstream_call(request, None) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            await response.prepare(request)
            self._cuts.add(cut)
            try:
                reading = asyncio.ensure_future(self._copy(answer, response))
                await asyncio.wait({reading, cut}, return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            finally:
                self._cuts.discard(cut)
            event = cut.result() if cut.done() else None
            if event is None:
                return self._closed(request)
            await response.write(json.dumps(event).encode() + b"\n")
            await response.write_eof()
            return response

    @staticmethod
    async def _copy(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)


def _end_to_end(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
