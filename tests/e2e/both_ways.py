"""The same bytes to an engine and to the sidecar before it, and what may differ taken out of the answers."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass

import h11

from tests.integration.sidecars import KEY_A

#: A connection's own, and what is different from one answer of the engine to the next.
_LEFT_OUT = {b"connection", b"content-length", b"date", b"keep-alive", b"transfer-encoding"}
_OF_ITS_MOMENT = (
    (re.compile(rb'("[a-z-]+[-_])(?=[0-9a-f-]{16})[0-9a-f-]+'), rb"\1ID"),
    (re.compile(rb'("(?:created|created_at|completed_at)":)[0-9.]+'), rb"\1 TIME"),
)


@dataclass(frozen=True)
class Answer:
    """One answer, as a client's parser reads it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    interim: int = 0  #: answers of 1xx before it


def request(
    method: str,
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
    *,
    version: str = "HTTP/1.1",
    last: bool = True,
) -> bytes:
    """A request's bytes; `body` is sent as JSON if it isn't bytes. `last`: the connection ends with it."""
    named = {"Host": "pool.test", "Authorization": f"Bearer {KEY_A}"}
    if last:
        named["Connection"] = "close"
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    named |= headers or {}
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def in_chunks(data: bytes) -> bytes:
    """A request of `request`'s with its body in chunks."""
    head, _, body = data.partition(b"\r\n\r\n")
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    parts = (body[:7], body[7:])
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def send(port: int, data: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        received = bytearray()
        while part := connection.recv(65_536):
            received += part
        return bytes(received)


def answers(data: bytes, *methods: str) -> list[Answer]:
    """What a client reads that has sent requests of these methods."""
    found = []
    for method in methods:
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "t"), ("connection", "close")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        interim = 0
        while isinstance(head := parser.next_event(), h11.InformationalResponse):
            interim += 1
        assert isinstance(head, h11.Response), data
        body = bytearray()
        while isinstance(part := parser.next_event(), h11.Data):
            body += part.data
        if part is h11.NEED_DATA:  # it ends with the connection
            parser.receive_data(b"")
            part = parser.next_event()
        assert isinstance(part, h11.EndOfMessage), data
        headers = tuple(sorted(pair for pair in head.headers if pair[0] not in _LEFT_OUT))
        found.append(Answer(head.status_code, headers, timeless(bytes(body)), interim))
        data = parser.trailing_data[0]
    assert not data
    return found


def timeless(body: bytes) -> bytes:
    """A body without ids and times."""
    for pattern, replacement in _OF_ITS_MOMENT:
        body = pattern.sub(replacement, body)
    return body
