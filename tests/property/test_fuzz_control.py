"""The control port's PUTs bent at random: taken whole or refused, and nothing in between."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import random
import time
from typing import Any

from starlette.types import Message

from fairserve.config import SchedulerConfig
from fairserve.sidecar.control import ControlToken, control_application
from fairserve.sidecar.options import Address, SidecarOptions
from fairserve.sidecar.service import Sidecar
from tests.integration.sidecars import TOKEN, document
from tests.property import fuzz_cases

CASES = fuzz_cases.CONTROL
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -1, 0.5, 1e308, -0.0, float("nan"), float("inf"), 10**400)
VALUES += ("", "a", "default/llm", "0" * 32, "\ud800", "\0", "x" * 5000, "-Infinity", [], [{}], {}, {"x": {}})
NASTY = (
    b"\0",
    b"\xff",
    b"}",
    b"{",
    b'"',
    b",",
    b"[" * 500,
    b"\\ud800",
    b"1e999",
    b"-",
    b"NaN",
    b"\xef\xbb\xbf",
)
REFUSALS = {409, 413, 415, 422}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of objects and lists."""
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, index) for index in range(len(value))]
    else:
        return []
    return found + [place for container, key in list(found) for place in places(container[key])]


def bend(rng: random.Random, fields: dict[str, Any]) -> None:
    """Change one place of a document."""
    container, key = rng.choice(places(fields))
    kind = rng.randrange(5)
    if kind == 0:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 1:
        del container[key]
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(("unknown", "name", "total", "Weight"))] = container[key]
    elif kind == 3 and isinstance(container, list):
        container.append(container[key])
    elif isinstance(container[key], (int, float)):
        container[key] = container[key] * rng.choice((-1, 3, 10**30))


def payload(rng: random.Random, fields: dict[str, Any]) -> bytes:
    """`fields` bent as an object, as text, or as a gzip file."""
    for _ in range(rng.randrange(3)):
        if places(fields):
            bend(rng, fields)
    data = json.dumps(fields).encode()
    if rng.random() < 0.3:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice((b"", *NASTY)) + data[at + rng.randrange(4) :]
    if rng.random() < 0.2:
        data = gzip.compress(data, 1, mtime=0)
        if rng.random() < 0.5:
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice((b"", b"\0", b"\xff")) + data[at + rng.randrange(9) :]
    return data


class Port:
    """The control port's application, without a server."""

    def __init__(self, sidecar: Sidecar, token: ControlToken) -> None:
        self._application = control_application(sidecar, token)
        self.word = ("", b"")  #: the last one: path and body

    async def put(self, path: str, body: bytes, rng: random.Random) -> tuple[int, Any]:
        self.word = path, body
        encoding = rng.choice((b"identity", b"gzip", b"br")) if rng.random() < 0.1 else b""
        headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
        headers += [(b"content-encoding", encoding)] if encoding else []
        scope = {"type": "http", "method": "PUT", "path": path, "headers": headers, "query_string": b""}
        cut = rng.randrange(len(body) + 1)
        parts = [
            {"type": "http.request", "body": body[:cut], "more_body": True},
            {"type": "http.request", "body": body[cut:], "more_body": False},
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            return parts.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await self._application(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent[1:]))


async def check_config(port: Port, sidecar: Sidecar, rng: random.Random) -> bool:
    before = sidecar.configuration
    generation = (before.generation if before else 0) + rng.choice((0, 1, 1, 1, 1))
    fields = json.loads(document(generation, default_tenant={"name": "_default"}).to_bytes())
    status, answer = await port.put("/config", payload(rng, fields), rng)
    after = sidecar.configuration
    if status == 200:
        assert after is not None
        assert answer == {"generation": after.generation, "hash": after.hash}
        # What was taken is whole: it can be written, and is itself when read again.
        assert SchedulerConfig.from_bytes(after.document.to_bytes()) == after.document
        sidecar.scheduler.check()
        return True
    assert status in REFUSALS, (status, answer)
    assert answer["error"]
    assert after is before
    return False


async def check_overload(port: Port, sidecar: Sidecar, rng: random.Random) -> bool:
    before = (sidecar.scheduler.armed, sidecar._overload.reason)
    fields = {"armed": rng.random() < 0.5, "lease_s": rng.choice((1, 30.0, 600)), "reason": "busy"}
    status, answer = await port.put("/overload", payload(rng, fields), rng)
    if status == 200:
        assert answer["armed"] == sidecar.scheduler.armed
        return True
    assert status in REFUSALS, (status, answer)
    assert answer["error"]
    assert (sidecar.scheduler.armed, sidecar._overload.reason) == before
    return False


def test_a_word_of_the_operators_is_taken_whole_or_not_at_all(tmp_path):
    rng = random.Random(22)
    (tmp_path / "token").write_text(TOKEN)
    token = ControlToken(tmp_path / "token")
    token.load()
    here = Address("127.0.0.1", 0)
    sidecar = Sidecar(
        SidecarOptions(listen=here, control=here, engine=here, control_token_file=tmp_path / "token"),
        clock=lambda: 0.0,
    )
    port = Port(sidecar, token)

    async def drive() -> int:
        taken = 0
        for number in range(CASES):
            check = check_overload if number % 3 == 0 else check_config
            try:
                taken += await check(port, sidecar, rng)
            except Exception as error:
                error.add_note(f"the last word was {port.word}")
                raise
        return taken

    started = time.monotonic()
    taken = asyncio.run(drive())
    print(f"{CASES} cases in {time.monotonic() - started:.1f} s, {taken} of them taken")
    assert CASES / 8 < taken < CASES * 3 / 4
    assert json.dumps(sidecar.state())
