"""HTTP/1.1 heads as bytes: what is forwarded of a request and of a response, and what stops here.

Header names are lower case inside. Only hop-by-hop headers and what the caller names are left out, so that
both sides see each other as if nothing stood between.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

Headers = list[tuple[bytes, bytes]]

#: Headers that concern one connection only, and those that describe a framing which is made anew.
_REQUEST_HOP: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_RESPONSE_HOP: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: Every header of ours starts with it, and none reaches the engine.
OWN_PREFIX: Final = b"x-fairserve-"

_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
LAST_CHUNK: Final = b"0\r\n\r\n"
#: The first lines of chunks below this size, which are made for every token of a stream.
_SMALL: Final = 1024
_SIZES: Final = [b"%x\r\n" % length for length in range(_SMALL)]


class Request:
    """A complete request. Header names are lower case; `body` is without its framing."""

    __slots__ = ("body", "headers", "keep_alive", "method", "old_version", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        old_version: bool = False,
        keep_alive: bool = True,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.old_version = old_version  #: HTTP/1.0: no chunked answer
        self.keep_alive = keep_alive


class ResponseHead:
    """Status line and headers of a response, header names as they came."""

    __slots__ = ("headers", "length", "reason", "status")

    def __init__(self, status: int, reason: bytes, headers: Headers, length: bytes | None = None) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.length = length  #: content-length

    def header(self, name: bytes) -> bytes | None:
        """The first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key.lower() == name), None)


def engine_head(
    request: Request, *, without: Container[bytes], length: int, own: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """The head of `request` for the engine: all end-to-end headers but ours and those in `without`, and those
    in `own`, whatever the client says of them.
    """
    named = _named_by_connection(request.headers)
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target)]
    lines += [
        b"%b: %b\r\n" % (name, value)
        for name, value in request.headers
        if name not in _REQUEST_HOP
        and not name.startswith(OWN_PREFIX)
        and name not in without
        and name not in named
    ]
    lines += [b"%b: %b\r\n" % header for header in own]
    if length or request.method in _WITH_BODY:
        lines.append(b"content-length: %d\r\n" % length)
    lines.append(b"\r\n")
    return b"".join(lines)


def websocket_head(request: Request, *, without: Container[bytes]) -> bytes:
    """The head of a WebSocket handshake for the engine."""
    head = engine_head(request, without=without, length=0).removesuffix(b"\r\n")
    return head + b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"


def client_head(
    head: ResponseHead, request: Request, *, chunked: bool, length: bytes | None, reuse: bool
) -> bytes:
    """The head of the engine's response for the client, with framing of our own."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    lines += [b"%b: %b\r\n" % pair for pair in head.headers if pair[0].lower() not in _RESPONSE_HOP]
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif length is not None:
        lines.append(b"content-length: %b\r\n" % length)
    lines.append(connection_line(request, reuse=reuse))
    lines.append(b"\r\n")
    return b"".join(lines)


def switched_head(head: ResponseHead) -> bytes:
    """The head of the engine's 101 to a WebSocket handshake, for the client."""
    lines = [b"HTTP/1.1 101 %b\r\n" % head.reason]
    lines += [b"%b: %b\r\n" % pair for pair in head.headers if pair[0].lower() not in _RESPONSE_HOP]
    lines.append(b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n")
    return b"".join(lines)


def own_response(
    request: Request | None, status: int, reason: bytes, headers: Headers, body: bytes, *, reuse: bool
) -> bytes:
    """A whole response of our own. `request` is None where none could be read."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    lines.append(b"content-length: %d\r\n" % len(body))
    lines.append(connection_line(request, reuse=reuse) if request else b"connection: close\r\n")
    lines.append(b"\r\n")
    if request is None or request.method != b"HEAD":
        lines.append(body)
    return b"".join(lines)


def connection_line(request: Request, *, reuse: bool) -> bytes:
    """The connection header, where the version's default isn't what happens."""
    if not reuse:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if request.old_version else b""


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` is not empty."""
    length = len(data)
    size = _SIZES[length] if length < _SMALL else b"%x\r\n" % length
    return size + data + b"\r\n"


def connection_names(value: bytes) -> list[bytes]:
    """Headers, in lower case, that a Connection header declares to be hop-by-hop."""
    return [token.strip().lower() for token in value.split(b",")]


def _named_by_connection(headers: Headers) -> Container[bytes]:
    """Headers that a request's Connection headers declare to be hop-by-hop."""
    for key, value in headers:
        if key == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return frozenset(name for k, v in headers if k == b"connection" for name in connection_names(v))
    return ()
