"""Calls to the sidecars' control ports.

A sidecar that refuses, is slow or gone is an ordinary event, so every call returns what happened as a value
and raises nothing. Nothing is retried here: when to try again is the delivery's decision.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from fairserve.difference import MEDIA_TYPE
from fairserve_operator.clients.connections import AnswerError, Connections
from fairserve_operator.clients.wording import one_line

#: A sidecar answers from memory; what takes longer is better tried again later.
_CONNECT_TIMEOUT_S = 1.0
_TIMEOUT_S: Final = 5.0
#: As much of a reason as a sidecar keeps.
_MAX_REASON = 1024
_GZIP: Final = b"\x1f\x8b"
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class ControlPort:
    """Where a sidecar listens, and the token that it believes."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        """Without the token: this ends up in logs."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Running:
    """The sidecar runs this document. Generation 0 and no hash: none yet."""

    generation: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class State:
    """What a sidecar runs, and all that it tells of itself."""

    running: Running
    told: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Newer:
    """The sidecar runs a newer document, or another one of the same generation, and keeps it."""

    generation: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The sidecar refused the call for good: the same again is refused again."""

    status: int
    words: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No usable answer; it may work later."""

    problem: str


@dataclass(frozen=True, slots=True)
class OverloadTaken:
    """The sidecar follows the overload state; `generation` is of the document it runs, 0 for none."""

    armed: bool
    generation: int


#: Told of each call: "PUT /config", how it ended ("200", "409", "unreachable"), seconds.
Observer = Callable[[str, str, float], None]


class SidecarClient:
    """The control ports of all sidecars. Make it and close it within one event loop.

    `may_call` is asked before each call: another operator may have taken over. `observer` is told of each.
    """

    def __init__(
        self,
        timeout_s: float = _TIMEOUT_S,
        may_call: Callable[[], bool] = lambda: True,
        observer: Observer = lambda call, outcome, seconds: None,
        name: str = "",
    ) -> None:
        """`name` tells sidecars which of several operators calls."""
        self._may_call = may_call
        self._observer = observer
        self._timeout_s = timeout_s
        agent = f"fairserve-operator ({name})" if name else "fairserve-operator"
        # The callers bound what is in flight; a limit here would let hanging sidecars hold up others.
        self._connections = Connections(agent, _CONNECT_TIMEOUT_S)

    async def put_config(
        self, port: ControlPort, document_gz: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        """Give the sidecar a document, gzipped JSON."""
        headers = {**_JSON, "Content-Encoding": "gzip"}
        return _configuration(await self._call("PUT", port, "/config", headers, document_gz))

    async def put_difference(
        self, port: ControlPort, difference: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        """Give the sidecar what changes in its document, gzipped or not. Newer: it runs another base, or a
        document that is as new.
        """
        headers = {"Content-Type": MEDIA_TYPE}
        if difference.startswith(_GZIP):
            headers["Content-Encoding"] = "gzip"
        return _configuration(await self._call("PUT", port, "/config", headers, difference))

    async def put_overload(
        self, port: ControlPort, armed: bool, lease_s: float, reason: str
    ) -> OverloadTaken | Rejected | Unreachable:
        """Arm or disarm OIT for `lease_s` seconds."""
        body = {"armed": armed, "lease_s": lease_s, "reason": reason[:_MAX_REASON]}
        match await self._call("PUT", port, "/overload", _JSON, json.dumps(body).encode()):
            case 200, {"armed": bool(now_armed), "generation": (int() | None) as generation} if _counts(
                generation or 0
            ):
                return OverloadTaken(now_armed, generation or 0)
            case other:
                return _failure(other)

    async def get_state(self, port: ControlPort) -> State | Rejected | Unreachable:
        """What the sidecar runs and does."""
        match await self._call("GET", port, "/state"):
            case 200, {"generation": int(generation), "hash": str(content_hash)} as told if _counts(
                generation
            ):
                return State(Running(generation, content_hash), told)
            case 200, {"generation": None | 0} as told:
                return State(Running(0, ""), told)
            case other:
                return _failure(other)

    async def close(self) -> None:
        """Drop the connections."""
        self._connections.close()

    async def _call(
        self,
        method: str,
        port: ControlPort,
        path: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        body: bytes | None = None,
    ) -> tuple[int, Any] | Unreachable:
        if not self._may_call():
            return Unreachable("left to the operator that holds the Lease")
        began = time.monotonic()
        answer = await self._answered(method, port, path, headers, body)
        outcome = "unreachable" if isinstance(answer, Unreachable) else str(answer[0])
        self._observer(f"{method} {path}", outcome, time.monotonic() - began)
        return answer

    async def _answered(
        self, method: str, port: ControlPort, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Any] | Unreachable:
        signed = {"Authorization": f"Bearer {port.token}", **headers}
        try:
            async with asyncio.timeout(self._timeout_s):
                status, answer = await self._connections.call(
                    method, port.host, port.port, path, signed, body
                )
        except TimeoutError:
            return Unreachable("no answer in time")
        except (AnswerError, OSError, ValueError) as problem:
            return Unreachable(one_line(f"{type(problem).__name__}: {problem}"))
        return status, _content(answer)


def _content(body: bytes) -> Any:
    """The JSON in an answer, or its text where there is none: whoever listens there may send anything."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def _counts(generation: int) -> bool:
    """Whether it is a generation; `true` is a whole number to Python."""
    return not isinstance(generation, bool) and generation >= 0


def _configuration(answer: tuple[int, Any] | Unreachable) -> Running | Newer | Rejected | Unreachable:
    match answer:
        case 200, {"generation": int(generation), "hash": str(content_hash)} if _counts(generation):
            return Running(generation, content_hash)
        case 409, {"generation": int(generation), "hash": str(content_hash)} if _counts(generation):
            return Newer(generation, content_hash)
        case other:
            return _failure(other)


def _failure(answer: tuple[int, Any] | Unreachable) -> Rejected | Unreachable:
    match answer:
        case Unreachable():
            return answer
        case status, {"error": words} if 400 <= status < 500 and status not in (408, 429):
            return Rejected(status, one_line(str(words)))
        case status, body:
            return Unreachable(f"HTTP {status}: {one_line(str(body))}")
