"""Requests that are nearly right: valid ones from a grammar, and what an attacker would bend in them."""

from __future__ import annotations

import random

METHODS = (b"POST", b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"DELETE", b"OPTIONS")
TARGETS = (
    b"/v1/chat/completions",
    b"/v1/chat/completions",
    b"/v1/completions?x=1",
    b"/v1/messages",
    b"/v1/models",
    b"/health",
    b"/a%20b?c=%00",
    b"http://other/v1/chat/completions",
    b"*",
    b"/v1/chat/completions#f",
)
BODIES = (
    b"",
    b"{}",
    b'{"stream":false}',
    b'{"max_tokens":3,"seed":-1}',
    b"[" * 40,
    b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
)
HEADERS = (
    (b"Accept", b"*/*"),
    (b"Content-Type", b"application/json"),
    (b"X-Empty", b""),
    (b"X-High", b"caf\xe9"),
    (b"x-fairserve-user", b"u"),
    (b"X-Team", b"bee"),
    (b"Connection", b"keep-alive"),
    (b"Connection", b"close"),
    (b"Connection", b"x-team, te"),
    (b"Connection", b"cookie, X-Empty"),
    (b"TE", b"trailers"),
    (b"Expect", b"100-continue"),
    (b"Cookie", b"a=b; c=d"),
)
#: What makes a second parser read something else, or a first one stumble.
FRAMING = (
    (b"Content-Length", b"2"),
    (b"Content-Length", b"0"),
    (b"Content-Length", b"+2"),
    (b"Content-Length", b"-1"),
    (b"Content-Length", b"2, 2"),
    (b"Content-Length", b"0x2"),
    (b"Content-Length", b"2 2"),
    (b"Content-Length", b""),
    (b"Content-Length", b"99999"),
    (b"Content-Length", b"9" * 40),
    (b"Content-Length ", b"2"),
    (b"Content_Length", b"2"),
    (b"\tContent-Length", b"2"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"Chunked"),
    (b"Transfer-Encoding", b"\x0bchunked"),
    (b"Transfer-Encoding", b"chunked, chunked"),
    (b"Transfer-Encoding", b"gzip, chunked"),
    (b"Transfer-Encoding", b"chunked;q=1"),
    (b"Transfer-Encoding", b"xchunked"),
    (b"Transfer-Encoding", b"identity"),
    (b"Transfer-Encoding", b""),
    (b"Transfer-Encoding ", b"chunked"),
    (b" Transfer-Encoding", b"chunked"),
    (b"Upgrade", b"h2c"),
    (b"Connection", b"upgrade"),
    (b"Expect", b"tea"),
    (b"X-Folded", b"a\r\n b"),
    (b"X-Split", b"a\rb: c"),
    (b"X-Line", b"a\nTransfer-Encoding: chunked"),
    (b"X-Nul", b"a\0b"),
    (b"X-Bell", b"a\x07b"),
    (b"", b"nameless"),
    (b"X Y", b"z"),
    (b"X-Long", b"x" * 3000),
)
VERSIONS = (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11", b"")
CHUNK_SIZES = (
    b"zz",
    b"+2",
    b"-1",
    b"0x2",
    b"2 ",
    b" 2",
    b"2;a=b",
    b'2;a="\n"',
    b"f" * 17,
    b"",
    b"02",
    b"ffff",
    b"2\t",
)
NASTY = b"\0\r\n\t :;,\x0b\x7f\x80\xff0{"


def request(rng: random.Random, key: str) -> bytes:
    """One request; three of four times with something bent in it."""
    bent = rng.random() < 0.75
    body = rng.choice(BODIES)
    method = rng.choice(METHODS)
    version, end = b"HTTP/1.1", b"\r\n"
    headers = [(b"Host", b"t"), (b"Authorization", b"Bearer " + key.encode())]
    headers += rng.sample(HEADERS, rng.randrange(4))
    if rng.random() < 0.3:
        headers.append((b"Transfer-Encoding", b"chunked"))
        body = chunked(rng, body, bent=bent and rng.random() < 0.3)
    elif body:
        headers.append((b"Content-Length", b"%d" % len(body)))
    if bent:
        for _ in range(rng.randrange(3)):
            headers.insert(rng.randrange(len(headers) + 1), rng.choice(FRAMING))
        if rng.random() < 0.1:
            version = rng.choice(VERSIONS)
        if rng.random() < 0.05:
            end = rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r"))
    lines = [b"%b %b %b" % (method, rng.choice(TARGETS), version)]
    lines += [b"%b: %b" % pair for pair in headers]
    data = end.join(lines) + end + end + body
    if bent and rng.random() < 0.4:
        for _ in range(rng.randrange(1, 4)):
            data = bend(rng, data)
    return data


def chunked(rng: random.Random, body: bytes, *, bent: bool) -> bytes:
    """`body` in chunks."""
    parts = []
    while body:
        size = rng.randrange(1, len(body) + 1)
        head = rng.choice(CHUNK_SIZES) if bent and rng.random() < 0.5 else b"%x" % size
        parts.append(head + b"\r\n" + body[:size] + (b"" if bent and rng.random() < 0.2 else b"\r\n"))
        body = body[size:]
    trailer = rng.choice(
        (b"", b"", b"X-Trailer: 1\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n")
    )
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def bend(rng: random.Random, data: bytes) -> bytes:
    """`data` with one place changed."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at] + bytes([rng.choice(NASTY)]) + data[at:]
    if kind == 1:
        return data[:at] + bytes([rng.choice(NASTY)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 4) :]
    if kind == 3:
        return data[:at] + data[max(0, at - rng.randrange(1, 30)) : at] + data[at:]
    if kind == 4:
        return data.replace(b"\r\n", b"\n", rng.randrange(1, 3))
    return data[:at]


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` as a network could deliver it: mostly in a few pieces, sometimes byte by byte."""
    if rng.random() < 0.02:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    return [
        piece for piece in (data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)) if piece
    ]
