"""Requests bent at random: what is refused is never forwarded, and what is forwarded is read the same by
others. A request that two parsers could read in two ways is a way around the queue.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from fairserve.sidecar.configuration import read_document
from fairserve.sidecar.messages import OWN_PREFIX, Headers
from fairserve.sidecar.options import Address, Limits, SidecarOptions
from fairserve.sidecar.service import Sidecar
from tests.integration.sidecars import KEY_A, document
from tests.property import fuzz_cases, fuzz_heads
from tests.property.memory_wire import ClientWire, Ends, EngineInMemory, Read, read_all, settle, statuses

CASES = fuzz_cases.HEADS
LIMITS = Limits(max_head_bytes=2048, max_body_bytes=4096)
GOOD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {KEY_A}\r\n".encode()
GOOD += b"Content-Length: 2\r\n\r\n{}"
#: What stays behind, or is said anew, on the way to the engine.
_HOP = {b"connection", b"content-length", b"expect", b"http2-settings", b"keep-alive", b"te", b"trailer"}
_HOP |= {b"proxy-authorization", b"proxy-connection", b"transfer-encoding", b"upgrade", b"x-team"}


@pytest.fixture
def sidecar(tmp_path):
    """It listens nowhere and watches nothing: its data path alone."""
    here = Address("127.0.0.1", 0)
    options = SidecarOptions(
        listen=here, control=here, engine=here, control_token_file=tmp_path, seed=1, limits=LIMITS
    )
    sidecar = Sidecar(options)
    sidecar.configure(read_document(document().to_bytes()))
    return sidecar


def end_to_end(headers: Headers) -> Headers:
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    return [
        (name, value)
        for name, value in headers
        if name not in _HOP and name not in named and not name.startswith(OWN_PREFIX) and name != b"host"
    ]


def hosted(data: bytes) -> bytes:
    """h11 wants exactly one Host, and vLLM does not: one is put in place of what there is."""
    head, end, body = data.partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    kept = [header for header in headers if not header.startswith(b"host:")]
    return b"\r\n".join([line, b"host: t", *kept]) + end + body


async def run_case(loop: EngineInMemory, sidecar: Sidecar, pieces: list[bytes]) -> tuple[int, int]:
    """Send `pieces` on one connection. How many requests were forwarded and refused."""
    data = b"".join(pieces)
    loop.forwarded.clear()
    client = ClientWire(sidecar._server)
    for piece in pieces:
        client.send(piece)
        await settle(loop, client.connection)
    known, ends = read_all(data)
    forwarded = [check_forwarded(each) for each in loop.forwarded]
    if ends is Ends.HOST:
        return len(forwarded), 0
    answered = statuses(bytes(client.received), [each.method for each in known])
    assert answered.count(200) == len(forwarded), f"{answered}, {len(forwarded)} forwarded"
    passed = iter(forwarded)
    for number, status in enumerate(answered):
        if status == 200:
            assert number < len(known), "forwarded what another parser cannot read"
            check_same(known[number], next(passed))
    # Refused and to be closed, or in step: then another request is answered.
    if client.connection._closing:
        client.send(GOOD)
        await settle(loop, client.connection)
        assert len(loop.forwarded) == len(forwarded)
    elif ends is Ends.WHOLE:
        assert len(answered) == len(known)
        client.send(GOOD)
        await settle(loop, client.connection)
        assert len(loop.forwarded) == len(forwarded) + 1, "out of step"
    else:
        client.connection.timed_out()
        assert client.connection._closing
        assert len(loop.forwarded) == len(forwarded)
    client.wire.close()
    await asyncio.sleep(0)
    return len(forwarded), len(answered) - len(forwarded)


def check_forwarded(data: bytes) -> Read:
    """What goes to the engine is exactly one request for a strict parser."""
    found, ends = read_all(hosted(data))
    assert (len(found), ends) == (1, Ends.WHOLE), data
    names = [name for name, _ in found[0].headers]
    assert b"transfer-encoding" not in names
    assert not any(name.startswith(OWN_PREFIX) for name in names)
    # Counted in the bytes: h11 makes one of two that agree.
    assert data.partition(b"\r\n\r\n")[0].lower().count(b"\r\ncontent-length:") <= 1
    return found[0]


def check_same(theirs: Read, ours: Read) -> None:
    # h11 takes both and believes one; another parser may believe the other.
    assert not {b"content-length", b"transfer-encoding"} <= {name for name, _ in theirs.headers}
    assert (ours.method, ours.target, ours.body) == (theirs.method, theirs.target, theirs.body)
    assert end_to_end(ours.headers) == end_to_end(theirs.headers)


def test_nothing_refused_is_forwarded_and_all_parsers_agree(sidecar):
    rng = random.Random(20)
    loop = EngineInMemory()
    escaped: list[dict] = []
    loop.set_exception_handler(lambda _, context: escaped.append(context))

    async def drive() -> tuple[int, int]:
        forwarded = refused = 0
        for _ in range(CASES):
            sent = b"".join(fuzz_heads.request(rng, KEY_A) for _ in range(rng.choice((1, 1, 2, 3))))
            pieces = fuzz_heads.pieces(rng, sent)
            try:
                passed, stopped = await run_case(loop, sidecar, pieces)
            except Exception as error:
                error.add_note(f"the client sent {pieces}")
                raise
            assert not escaped, escaped
            forwarded, refused = forwarded + passed, refused + stopped
        sidecar.pool.close()
        return forwarded, refused

    started = time.monotonic()
    try:
        forwarded, refused = loop.run_until_complete(drive())
    finally:
        loop.close()
    seconds = time.monotonic() - started
    print(f"{CASES} cases in {seconds:.1f} s: {forwarded} requests forwarded, {refused} refused")
    assert forwarded > CASES / 4
    assert refused > CASES / 4
    sidecar.scheduler.check()
