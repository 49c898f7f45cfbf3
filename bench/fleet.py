"""A thousand sidecars' control ports in one light process: `python -m bench.fleet PORT`.

One socket listens on every address of 127.0.0.0/8; the address that was called says which sidecar. They keep
the contract of docs/reference/control-port.md with real documents, generations and differences: what they
hold is put together from the bodies that came, and its hash is computed and compared. Equal bodies on equal
bases are computed once, as a thousand machines would compute them at the same time.

On the same port they serve `/metrics` with what the default signals of overload read, once they were told it.

Commands come as lines of JSON on stdin, answers go to stdout.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import uvloop

from fairserve.config import SchedulerConfig, canonical_json

_NAMED = {
    "tenants": ("name",),
    "applications": ("name",),
    "identity.api_keys": ("digest",),
    "identity.headers": ("name", "value"),
}


@dataclass(frozen=True, slots=True)
class Held:
    """A document in pieces, without its generation."""

    hash: str
    pieces: Mapping[str, Any] = field(repr=False)

    def document(self, generation: int) -> bytes:
        return _whole(self.pieces, generation)


def _split(document: dict[str, Any]) -> dict[str, Any]:
    document.pop("generation")
    for name, value in document.pop("identity").items():
        document[f"identity.{name}"] = value
    return {
        path: _listed(path, value) if path in _NAMED else canonical_json(value)
        for path, value in document.items()
    }


def _listed(path: str, entries: list[dict[str, Any]]) -> dict[tuple[str, ...], bytes]:
    return {tuple(entry[name] for name in _NAMED[path]): canonical_json(entry) for entry in entries}


def _whole(pieces: Mapping[str, Any], generation: int | None) -> bytes:
    flat = {
        path: b"[" + b",".join(piece.values()) + b"]" if path in _NAMED else piece
        for path, piece in pieces.items()
    }
    inside = {path.removeprefix("identity."): piece for path, piece in flat.items() if "." in path}
    top = {path: piece for path, piece in flat.items() if "." not in path} | {"identity": _braces(inside)}
    if generation is not None:
        top["generation"] = b"%d" % generation
    return _braces(top)


def _braces(pieces: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), pieces[name]) for name in sorted(pieces)) + b"}"


class Documents:
    """What bodies make of what is held, each computed once."""

    def __init__(self) -> None:
        self._whole: dict[bytes, tuple[int, Held]] = {}
        self._changed: dict[tuple[str, bytes], tuple[int, Held]] = {}

    def whole(self, body: bytes) -> tuple[int, Held]:
        """Generation and document of a body. Raises ValueError."""
        found = self._whole.get(body)
        if found is None:
            plain = _plain(body)
            config = SchedulerConfig.from_bytes(plain)
            pieces = _split(json.loads(plain))
            held = Held(hashlib.sha256(_whole(pieces, None)).hexdigest(), pieces)
            if held.hash != config.content_hash:
                raise ValueError("the document is not canonical")
            self._whole.clear()
            found = self._whole[body] = config.generation, held
        return found

    def changed(self, held: Held, body: bytes, change: Mapping[str, Any]) -> tuple[int, Held]:
        """Generation and document after a difference. Raises ValueError where the hash is another one."""
        found = self._changed.get((held.hash, body))
        if found is None:
            pieces = dict(held.pieces)
            for path, value in change["set"].items():
                pieces[path] = _listed(path, value) if path in _NAMED else canonical_json(value)
            for path in change["put"].keys() | change["remove"].keys():
                entries = dict(pieces[path])
                for name in change["remove"].get(path, ()):
                    del entries[tuple(name.split(": ", 1)) if path == "identity.headers" else (name,)]
                fresh = _listed(path, change["put"].get(path, []))
                added = fresh.keys() - entries.keys()
                entries |= fresh
                pieces[path] = dict(sorted(entries.items())) if added else entries
            result = Held(hashlib.sha256(_whole(pieces, None)).hexdigest(), pieces)
            if result.hash != change["hash"]:
                raise ValueError("the difference makes another document")
            if len(self._changed) > 16:
                self._changed.clear()
            found = self._changed[held.hash, body] = change["generation"], result
        return found


def _plain(body: bytes) -> bytes:
    return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


@dataclass(slots=True, eq=False)
class Sidecar:
    """One of them."""

    generation: int = 0
    held: Held | None = None
    hangs: bool = False
    orders: list[tuple[float, bool]] = field(default_factory=list)  #: time.monotonic(), and whether armed
    metrics: dict[str, Any] | None = None  #: pool_namespace, pool and wait_s; None: serves none


class Fleet:
    """All of them, by address."""

    def __init__(self) -> None:
        self.sidecars: dict[str, Sidecar] = {}
        self.applied: dict[int, dict[str, float]] = {}  #: by generation and address: time.monotonic()
        self.counts = {"whole": 0, "difference": 0, "state": 0, "overload": 0, "refused": 0, "bytes": 0}
        self._documents = Documents()
        self._rng = random.Random(1)

    def sidecar(self, host: str) -> Sidecar:
        return self.sidecars.setdefault(host, Sidecar())

    def answer(
        self, host: str, method: str, path: str, kind: str, body: bytes
    ) -> tuple[int, dict[str, Any] | str]:
        """Status, and JSON or a text."""
        sidecar = self.sidecar(host)
        self.counts["bytes"] += len(body)
        match method, path:
            case "GET", "/state":
                self.counts["state"] += 1
                held = sidecar.held
                runs = {"generation": sidecar.generation or None, "hash": held.hash if held else None}
                return 200, runs | _work(host)
            case "PUT", "/overload":
                self.counts["overload"] += 1
                armed = json.loads(body)["armed"]
                sidecar.orders.append((time.monotonic(), armed))
                return 200, {"armed": armed, "generation": sidecar.generation or None}
            case "GET", "/metrics" if sidecar.metrics is not None:
                return 200, self._metrics(**sidecar.metrics)
            case "PUT", "/config":
                return self._configure(host, sidecar, kind, body)
        return 404, {"error": "no such thing"}

    def _metrics(self, pool_namespace: str, pool: str, wait_s: float) -> str:
        """As a sidecar's port has it. Use of the engine is never twice the same, and never much."""
        return (
            f'fairserve_pool_info{{pool_namespace="{pool_namespace}",pool="{pool}"}} 1\n'
            f"fairserve_queue_oldest_wait_seconds {wait_s}\n"
            f"fairserve_saturation {self._rng.uniform(0.2, 0.6)}\n"
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {self._rng.uniform(0.2, 0.6)}\n'
        )

    def _configure(self, host: str, sidecar: Sidecar, kind: str, body: bytes) -> tuple[int, dict[str, Any]]:
        refusal = 409, {"error": "it does not follow", **_runs(sidecar)}
        try:
            if "difference" in kind:
                self.counts["difference"] += 1
                change = json.loads(_plain(body))
                base = change["base"]
                if sidecar.held is None or (base["generation"], base["hash"]) != (
                    sidecar.generation,
                    sidecar.held.hash,
                ):
                    self.counts["refused"] += 1
                    return refusal
                generation, held = self._documents.changed(sidecar.held, body, change)
            else:
                self.counts["whole"] += 1
                generation, held = self._documents.whole(body)
        except (ValueError, KeyError) as problem:
            self.counts["refused"] += 1
            return 422, {"error": str(problem)}
        same = sidecar.held is not None and (generation, held.hash) == (sidecar.generation, sidecar.held.hash)
        if generation <= sidecar.generation and not same:
            self.counts["refused"] += 1
            return refusal
        sidecar.generation, sidecar.held = generation, held
        self.applied.setdefault(generation, {})[host] = time.monotonic()
        return 200, _runs(sidecar)

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command."""
        hosts = [self.sidecar(host) for host in command.get("hosts", ())]
        match command["do"]:
            case "hang" | "go" as what:
                for sidecar in hosts:
                    sidecar.hangs = what == "hang"
            case "forget":
                self._forget(command["hosts"])
            case "applied":
                return {"at": self.applied.get(command["generation"], {})}
            case "orders":
                since = command["since"]
                return {"orders": [[each for each in s.orders if each[0] >= since] for s in hosts]}
            case "metrics":
                for host, metrics in command["told"].items():
                    self.sidecar(host).metrics = metrics
            case "counts":
                return dict(self.counts)
            case "state":
                running = {(s.generation, s.held.hash if s.held else "") for s in hosts}
                sound = all(self._sound(s) for s in {id(s.held): s for s in hosts}.values())
                return {"running": sorted(running), "sound": sound}
        return {}

    def _forget(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            sidecar = self.sidecar(host)
            sidecar.generation, sidecar.held = 0, None
            for at in self.applied.values():
                at.pop(host, None)

    def _sound(self, sidecar: Sidecar) -> bool:
        """Whether the real model, too, finds that what is held has the hash that was told."""
        if sidecar.held is None:
            return False
        config = SchedulerConfig.from_bytes(sidecar.held.document(sidecar.generation))
        return (config.generation, config.content_hash) == (sidecar.generation, sidecar.held.hash)


@cache
def _work(host: str) -> dict[str, Any]:
    """What a sidecar tells that twenty tenants use."""
    first = int(host.rpartition(".")[2])
    names = [f"tenant-{(first * 37 + number * 501) % 10_000:05d}" for number in range(20)]
    return {
        "window": {"size": 64},
        "recent": {"service_5m": dict.fromkeys(names, 10.0), "refused_interactions_1h": {names[0]: 3}},
        "tenants": [{"name": name, "weight": 1.0, "users": 4, "service": 1234.5} for name in names],
    }


def _runs(sidecar: Sidecar) -> dict[str, Any]:
    return {"generation": sidecar.generation, "hash": sidecar.held.hash if sidecar.held else ""}


class Connection(asyncio.Protocol):
    """One connection of the operator's. Requests come one by one, with a Content-Length."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._data = bytearray()
        self._need = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._host = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) < self._need or (end := self._data.find(b"\r\n\r\n")) < 0:
            return
        head = self._data[:end].decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self._need = end + 4 + int(headers.get("content-length", 0))
        if len(self._data) < self._need:
            return
        body = bytes(self._data[end + 4 : self._need])
        del self._data[: self._need]
        self._need = 0
        if self._fleet.sidecar(self._host).hangs:
            return
        method, path, _ = first.split(" ")
        status, answer = self._fleet.answer(self._host, method, path, headers.get("content-type", ""), body)
        if isinstance(answer, str):
            kind, text = b"text/plain; version=0.0.4", answer.encode()
        else:
            kind, text = b"application/json", json.dumps(answer).encode()
        self._transport.write(
            b"HTTP/1.1 %d Said\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, kind, len(text), text)
        )


async def serve(port: int) -> None:
    """Listen, and do what stdin says until it ends."""
    loop, fleet = asyncio.get_running_loop(), Fleet()
    await loop.create_server(lambda: Connection(fleet), "0.0.0.0", port, backlog=4096)
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(fleet.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
