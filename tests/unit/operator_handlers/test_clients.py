"""The clients against small servers: every way that an answer can be, as a value."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Iterator

import pytest

from fairserve.config import IdentityConfig, SchedulerConfig
from fairserve_operator.clients.kubernetes_client import _call_name
from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    SidecarClient,
    State,
    Unreachable,
)
from tests.fakes.sidecar_control import SidecarControl
from tests.parts.process import free_port


def config(generation: int, pool: str = "ns/llm") -> SchedulerConfig:
    return SchedulerConfig(pool=pool, generation=generation, identity=IdentityConfig(salt="ab" * 16))


def packed(document: SchedulerConfig) -> bytes:
    return gzip.compress(document.to_bytes())


@pytest.fixture
def control() -> Iterator[SidecarControl]:
    with SidecarControl("127.0.0.1", free_port(), token="right") as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[SidecarClient]:
    made = SidecarClient(timeout_s=3.0)
    yield made
    await made.close()


def port(control: SidecarControl, token: str = "right") -> ControlPort:
    return ControlPort(control.host, control.port, token)


async def running(client: SidecarClient, control: SidecarControl) -> Running:
    answer = await client.get_state(port(control))
    assert isinstance(answer, State)
    return answer.running


async def test_config_is_acknowledged_and_seen_in_the_state(
    control: SidecarControl, client: SidecarClient
) -> None:
    assert await running(client, control) == Running(0, "")
    expected = Running(3, config(3).content_hash)
    assert await client.put_config(port(control), packed(config(3))) == expected
    assert await running(client, control) == expected


async def test_older_or_other_config_is_answered_with_what_runs(
    control: SidecarControl, client: SidecarClient
) -> None:
    control.run(7, "x" * 64)
    assert await client.put_config(port(control), packed(config(3))) == Newer(7, "x" * 64)
    assert await client.put_config(port(control), packed(config(7))) == Newer(7, "x" * 64)


async def test_what_is_refused_for_good_is_rejected(control: SidecarControl, client: SidecarClient) -> None:
    control.refuse = "tenants.0.weight: no"
    assert await client.put_config(port(control), packed(config(1))) == Rejected(422, "tenants.0.weight: no")
    wrong = await client.put_config(port(control, "wrong"), packed(config(1)))
    assert wrong == Rejected(401, "wrong control token")


async def test_overload_is_taken(control: SidecarControl, client: SidecarClient) -> None:
    assert await client.put_overload(port(control), True, 30.0, "busy") == OverloadTaken(True, 0)
    control.run(4, "h")
    assert await client.put_overload(port(control), False, 30.0, "idle") == OverloadTaken(False, 4)
    assert control.overloads[0].body == {"armed": True, "lease_s": 30.0, "reason": "busy"}


async def test_no_answer_is_a_value(control: SidecarControl, client: SidecarClient) -> None:
    control.hang()
    hasty = SidecarClient(timeout_s=0.3)
    assert await hasty.get_state(port(control)) == Unreachable("no answer in time")
    await hasty.close()
    control.go()
    control.stop()
    refused = await client.get_state(port(control))
    assert isinstance(refused, Unreachable)


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", head: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{length}{head}\r\n".encode() + body


RUBBISH = {
    "html": (answer(b"<html>\n<b>no</b>", "text/html", "500 Oops"), "HTTP 500: <html> <b>no</b>"),
    "no HTTP": (b"220 smtp.example ESMTP\r\n", "no HTTP answer"),
    "nothing": (b"", "without an answer"),
    "half": (answer(b"{}" * 9)[:-5], "within an answer"),
    "nested": (answer(b"[" * 200_000), "HTTP 200: [[["),
    "odd charset": (answer(b"{}", "application/json; charset=hex"), "HTTP 200: {}"),
    "no text": (answer(b"\xff\xfe\x00"), "HTTP 200"),
    "gzip that nobody asked for": (answer(b"no", head="Content-Encoding: gzip\r\n"), "HTTP 200: no"),
    "too long": (answer(b" " * (17 << 20)), "longer than 16777216 bytes"),
    "no generation": (answer(b'{"generation": 1.5, "hash": [], "armed": null}'), "HTTP 200"),
    "true for a number": (answer(b'{"generation": true, "hash": "h", "armed": true}'), "HTTP 200"),
    "negative": (answer(b'{"generation": -1, "hash": "h", "armed": true}'), "HTTP 200"),
    "surrogate": (answer(b'{"error": "\\ud800\\u001b[2J"}', status="422 No"), "[2J"),
    "redirect": (answer(b"", status="302 Found", head="Location: http://127.0.0.1:1/\r\n"), "HTTP 302"),
}


@pytest.mark.parametrize("kind", RUBBISH)
async def test_whatever_listens_there_its_answer_is_a_value(client: SidecarClient, kind: str) -> None:
    sent, words = RUBBISH[kind]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        where = ControlPort("127.0.0.1", server.sockets[0].getsockname()[1], "t")
        for said in (
            await client.get_state(where),
            await client.put_config(where, packed(config(1))),
            await client.put_difference(where, b"{}"),
            await client.put_overload(where, True, 1.0, "busy"),
        ):
            assert isinstance(said, Unreachable | Rejected)
            told = said.problem if isinstance(said, Unreachable) else said.words
            assert words in told
            assert told.isprintable()
            assert len(told) < 400


def test_tokens_stay_out_of_logs() -> None:
    assert "secret" not in repr(ControlPort("10.0.0.1", 8001, "secret"))


async def test_sidecars_are_not_called_while_another_operator_may_act(control: SidecarControl) -> None:
    seen: list[tuple[str, str]] = []
    acts = True
    client = SidecarClient(
        may_call=lambda: acts, observer=lambda call, outcome, _: seen.append((call, outcome))
    )
    await client.put_config(port(control), packed(config(1)))
    acts = False
    fenced = await client.put_config(port(control), packed(config(2)))
    await client.close()
    assert isinstance(fenced, Unreachable)
    assert control.calls == ["PUT /config 200"]
    assert seen == [("PUT /config", "200")]


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/api/v1/secrets", "GET secrets"),
        ("POST", "/api/v1/namespaces/ns/secrets", "POST secrets"),
        ("PUT", "/api/v1/namespaces/ns/secrets/status", "PUT secrets"),
        ("PATCH", "/apis/fairserve.dev/v1alpha1/namespaces/ns/tenants/a/status", "PATCH tenants/status"),
    ],
)
def test_figures_of_calls_have_no_names_of_objects(method: str, path: str, name: str) -> None:
    assert _call_name(method, path) == name
