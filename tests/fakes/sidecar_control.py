"""A sidecar's control port without a sidecar: a real HTTP server on an address of 127.0.0.0/8.

It keeps the contract of the real one (authentication, 409 for what is older, 422 for what is invalid) and can
be told to misbehave: to hang, to refuse, to die, to forget, or to run a generation that nobody gave it.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

from aiohttp import web
from pydantic import ValidationError

from fairserve.config import SchedulerConfig
from fairserve.difference import MEDIA_TYPE, Difference, Held, WrongBaseError, apply


@dataclass(frozen=True, slots=True)
class Told:
    """One accepted call. `at` is `time.monotonic()`."""

    at: float
    body: Any


#: Makes of a call ("PUT /config"), the honest status and the honest answer what is sent instead.
Twist: TypeAlias = Callable[[str, int, dict[str, Any]], tuple[int, bytes]]


class SidecarControl:
    """One fake sidecar. All methods and attributes may be used from any thread.

    `configs` and `overloads` are what was accepted, oldest first, over all restarts.
    """

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        self.host = host
        self.port = port
        self.token = token  #: None: the first token that is presented is the right one
        self.configs: list[Told] = []
        self.overloads: list[Told] = []
        self.calls: list[str] = []  #: "PUT /config 200"
        self.callers: list[str] = []  #: the User-Agent of each call, also of those that hang
        self.tells: dict[str, Any] = {}  #: what GET /state answers besides
        self.refuse: str | None = None  #: answer PUT /config with 422 and these words
        self.twist: Twist | None = None  #: what becomes of each honest answer
        self.delay_s = 0.0  #: before each answer
        self._generation = 0
        self._hash = ""
        self._armed = False
        self._hangs = False
        self._going = asyncio.Event()  #: of the running server; cleared while it hangs
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    @property
    def generation(self) -> int:
        """Of the configuration that it runs, 0 for none."""
        return self._generation

    @property
    def content_hash(self) -> str:
        """Of the configuration that it runs, empty for none."""
        return self._hash

    @property
    def armed(self) -> bool:
        """Whether it was last told to refuse."""
        return self._armed

    @property
    def config(self) -> SchedulerConfig:
        """The configuration that it was last given."""
        config = self.configs[-1].body
        assert isinstance(config, SchedulerConfig)
        return config

    def run(self, generation: int, content_hash: str) -> None:
        """Run a configuration that nobody gave it."""
        self._generation, self._hash = generation, content_hash

    def forget(self) -> None:
        """Be as after a restart without a boot Secret: no configuration, no overload state."""
        self._generation, self._hash, self._armed = 0, "", False

    def hang(self) -> None:
        """Accept connections and answer nothing, until `go`."""
        self._hangs = True
        self._in_server(self._going.clear)

    def go(self) -> None:
        """Answer again, also what hung."""
        self._hangs = False
        self._in_server(self._going.set)

    def start(self) -> Self:
        """Listen; also anew after `stop`."""
        ready: threading.Event = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name=f"sidecar {self.host}", daemon=True
        )
        self._thread.start()
        assert ready.wait(30), f"no server on {self.host}:{self.port}"
        return self

    def stop(self) -> None:
        """Close the port, so that connections are refused."""
        if self._loop is None or self._stop is None or self._thread is None:
            return
        self.go()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _in_server(self, action: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(action)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._going = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        if not self._hangs:
            self._going.set()
        app = web.Application(middlewares=[self._guard], client_max_size=64 << 20)
        app.add_routes(
            [
                web.put("/config", self._put_config),
                web.put("/overload", self._put_overload),
                web.get("/state", self._get_state),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, self.host, self.port).start()
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.callers.append(request.headers.get("User-Agent", ""))
        await self._going.wait()
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token is None:
            self.token = token
        if hmac.compare_digest(token.encode(), self.token.encode()):
            response: web.StreamResponse = await handler(request)
        else:
            response = web.json_response({"error": "wrong control token"}, status=401)
        await asyncio.sleep(self.delay_s)
        call = f"{request.method} {request.path}"
        if self.twist is not None and isinstance(response, web.Response) and response.body is not None:
            status, body = self.twist(call, response.status, json.loads(bytes(response.body)))  # type: ignore[arg-type]
            response = web.Response(status=status, body=body, content_type="application/json")
        self.calls.append(f"{call} {response.status}")
        return response

    async def _put_config(self, request: web.Request) -> web.Response:
        if self.refuse is not None:
            return web.json_response({"error": self.refuse}, status=422)
        body = await request.read()  # aiohttp's server inflates Content-Encoding: gzip by itself.
        plain = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        current = {"generation": self._generation, "hash": self._hash}
        try:
            if request.content_type == MEDIA_TYPE:
                config = self._changed(Difference.from_bytes(plain))
            else:
                config = SchedulerConfig.from_bytes(plain)
        except WrongBaseError as problem:
            return web.json_response({"error": str(problem), **current}, status=409)
        except ValidationError as problem:
            return web.json_response({"error": str(problem)}, status=422)
        if config.generation < self._generation or (
            config.generation == self._generation and config.content_hash != self._hash
        ):
            return web.json_response({"error": "older than what runs", **current}, status=409)
        self._generation, self._hash = config.generation, config.content_hash
        self.configs.append(Told(time.monotonic(), config))
        return web.json_response({"generation": self._generation, "hash": self._hash})

    def _changed(self, change: Difference) -> SchedulerConfig:
        """What the difference makes of what runs. Raises WrongBaseError."""
        if not self.configs or self._hash != self.config.content_hash:
            raise WrongBaseError("another document runs")
        if (change.generation, change.hash) == (self._generation, self._hash):
            return self.config
        return apply(change, Held.of(self.config)).config

    async def _put_overload(self, request: web.Request) -> web.Response:
        body = await request.json()
        if set(body) != {"armed", "lease_s", "reason"}:
            return web.json_response({"error": f"unknown fields in {sorted(body)}"}, status=422)
        self._armed = body["armed"]
        self.overloads.append(Told(time.monotonic(), body))
        return web.json_response({"armed": self._armed, "generation": self._generation or None})

    async def _get_state(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                **self.tells,
                "generation": self._generation or None,
                "hash": self._hash or None,
                "overload": {"armed": self._armed},
            }
        )
