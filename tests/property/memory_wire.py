"""A sidecar's whole data path without sockets: clients and the engine are transports in memory.

Only the wires are replaced: a loop of its own hands the upstream pool an engine in memory, and a test hands
the server's connections a client's transport. Tens of thousands of connections cost seconds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, cast

import h11

from fairserve.sidecar.messages import Headers
from fairserve.sidecar.server import Connection, Server

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-engine: fake\r\n\r\nok"

_MORE_SPACES = re.compile(rb"^([A-Z]+) +([^ \r\n]+) +")


class Wire(asyncio.Transport):
    """One end of a connection. What the protocol writes is given to `wrote`."""

    def __init__(self, protocol: asyncio.Protocol, wrote: Callable[[bytes], object]) -> None:
        super().__init__({"peername": ("10.0.0.1", 1)})
        self.protocol = protocol
        self.closed = False
        self._wrote = wrote
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        if not self.closed:
            self._wrote(bytes(data))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side reads on; what it sends is still taken."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """The driver looks at the connection itself."""

    def resume_reading(self) -> None:
        """Likewise."""


@dataclass
class Read:
    """A request as h11, a second and stricter parser, reads it."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes


class EngineInMemory(asyncio.SelectorEventLoop):
    """A loop whose every outgoing connection ends at an engine that answers 200 to what h11 can read."""

    def __init__(self) -> None:
        super().__init__()
        self.forwarded: list[bytes] = []
        self.unanswered = 0

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        protocol = protocol_factory()
        wire = Wire(protocol, lambda data: self._take(wire, data))
        return wire, protocol

    def _take(self, wire: Wire, data: bytes) -> None:
        """The pool writes each request whole."""
        self.forwarded.append(data)
        self.unanswered += 1
        self.call_soon(self._answer, wire, data.startswith(b"HEAD "))

    def _answer(self, wire: Wire, head_only: bool) -> None:
        self.unanswered -= 1
        if not wire.closed:
            wire.protocol.data_received(ANSWER[:-2] if head_only else ANSWER)


@dataclass
class ClientWire:
    """A client of `server`: what it sends, and all that it is sent."""

    server: Server
    received: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.connection = Connection(self.server)
        self.wire = Wire(self.connection, self.received.extend)

    @property
    def closed(self) -> bool:
        return self.wire.closed

    def send(self, data: bytes) -> None:
        if not self.wire.closed:
            self.connection.data_received(data)


async def settle(loop: EngineInMemory, connection: Connection, turns: int = 60) -> None:
    """Let the loop turn until nothing is being answered. A connection that never settles is a hang."""
    for _ in range(turns):
        await asyncio.sleep(0)
        if not loop.unanswered and not connection._busy:
            return
    raise AssertionError(f"not settled after {turns} turns of the loop")


class Ends(Enum):
    """How a parser's reading of bytes ends."""

    WHOLE = auto()  #: after a whole request
    INSIDE = auto()  #: inside one
    BAD = auto()  #: before what is no request
    HOST = auto()  #: before a request without exactly one Host, which h11 alone minds


def read_all(data: bytes) -> tuple[list[Read], Ends]:
    """The requests that h11 reads in `data`, and how that ends."""
    found: list[Read] = []
    while True:
        # Empty lines before a request may be skipped, and spaces between the words of its first line.
        data = _MORE_SPACES.sub(rb"\1 \2 ", data.lstrip(b"\r\n"))
        if not data:
            return found, Ends.WHOLE
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(data)
        try:
            head = parser.next_event()
            if head is h11.NEED_DATA:
                return found, Ends.INSIDE
            assert isinstance(head, h11.Request)
            body = bytearray()
            while isinstance(part := parser.next_event(), h11.Data):
                body += part.data
        except h11.RemoteProtocolError as error:
            return found, Ends.HOST if "Host" in str(error) else Ends.BAD
        if not isinstance(part, h11.EndOfMessage):
            return found, Ends.INSIDE
        found.append(Read(head.method, head.target, cast("Headers", list(head.headers)), bytes(body)))
        data = parser.trailing_data[0]


def statuses(data: bytes, methods: list[bytes]) -> list[int]:
    """Of the answers in `data` to requests of these methods, interim ones left out. Whatever follows an
    answer that closes the connection, or is no answer, is an error.
    """
    found: list[int] = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), head
        status = int(head[9:12])
        if status == 100:
            continue
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        closes = b"connection: close" in lines
        headless = len(found) < len(methods) and methods[len(found)] == b"HEAD"
        if not headless or (closes and data):
            assert len(data) >= length, "cut short"
            data = data[length:]
        found.append(status)
        assert not (closes and data), data
    return found
