"""Control clients that hang, dawdle or die: calls go on, the configuration stays, they are cut off."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fairserve.sidecar.options import Limits, TlsFiles
from fairserve.sidecar.service import Sidecar
from tests.integration.sidecars import (
    KEY_A,
    TOKEN,
    Client,
    ask,
    control,
    document,
    eventually,
    make_certificate,
    running_sidecar,
)

CLIENTS = 50
PUT = f"PUT /config HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
BODY = document(2).to_bytes()
HALF_BODY = PUT + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[: len(BODY) // 2]
STATES = [
    pytest.param(b"", id="nothing sent"),
    pytest.param(PUT[:30], id="half a head"),
    pytest.param(HALF_BODY, id="half a body"),
    pytest.param(HALF_BODY.replace(TOKEN.encode(), b"wrong"), id="half a body, refused"),
]


@asynccontextmanager
async def hanging_clients(sidecar: Sidecar, sent: bytes) -> AsyncIterator[list[Client]]:
    """Fifty connections to the control port that have sent that much, and it has arrived."""
    clients = [await Client.connect(sidecar.control_address) for _ in range(CLIENTS)]
    for client in clients:
        client.writer.write(sent)
    await eventually(lambda: connections(sidecar) == CLIENTS, "all are connected")
    try:
        yield clients
    finally:
        for client in clients:
            await client.leave()


def connections(sidecar: Sidecar) -> int:
    parts = sidecar._control._parts
    assert parts is not None
    return len(parts[1])


def known(sidecar: Sidecar) -> int:
    """How many connections have shown the token."""
    parts = sidecar._control._parts
    assert parts is not None
    return sum(connection.known for connection in parts[1]._open.values())


async def served(sidecar: Sidecar) -> None:
    """Calls are answered under the first configuration."""
    for _ in range(20):
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
    state = await control(sidecar, "GET", "/state")
    assert (state.status, state.fields["generation"]) == (200, 1)


@pytest.mark.parametrize("sent", STATES)
async def test_clients_that_hang_are_in_nobodys_way(sidecar, sent):
    async with hanging_clients(sidecar, sent):
        await served(sidecar)
        assert (await control(sidecar, "PUT", "/config", BODY)).status == 200
        assert sidecar.configuration.generation == 2
        assert connections(sidecar) >= CLIENTS, "they hang still"


@pytest.mark.parametrize("sent", STATES)
async def test_clients_that_hang_are_cut_off(tmp_path, engine, sent, caplog):
    limits = Limits(control_timeout_s=0.5)
    async with (
        running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar,
        hanging_clients(sidecar, sent),
    ):
        await eventually(lambda: connections(sidecar) == 0, "they are cut off")
        await served(sidecar)
    assert "ERROR" not in [record.levelname for record in caplog.records]


async def test_one_byte_at_a_time_wins_no_time(tmp_path, engine):
    limits = Limits(control_timeout_s=0.5)
    async with (
        running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar,
        await Client.connect(sidecar.control_address) as client,
    ):
        client.writer.write(HALF_BODY)
        await eventually(lambda: connections(sidecar) == 1, "it is connected")
        for _ in range(1_000):
            client.writer.write(b" ")
            await asyncio.sleep(0.01)
            if connections(sidecar) == 0:
                break
        assert connections(sidecar) == 0
        await served(sidecar)


async def test_a_client_that_reads_none_of_its_answers_is_cut_off(tmp_path, engine):
    limits = Limits(control_timeout_s=0.5)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        narrow.setblocking(False)
        address = sidecar.control_address
        await asyncio.get_running_loop().sock_connect(narrow, (address.host, address.port))
        async with Client(*await asyncio.open_connection(sock=narrow)) as client:
            client.writer.transport.pause_reading()
            client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n" * 50_000)
            await eventually(lambda: connections(sidecar) == 1, "it is connected")
            await eventually(lambda: connections(sidecar) == 0, "it is cut off")


async def test_clients_that_are_killed_leave_the_old_configuration(sidecar, caplog):
    async with hanging_clients(sidecar, HALF_BODY):
        pass
    await eventually(lambda: connections(sidecar) == 0, "they are gone")
    await served(sidecar)
    assert "ERROR" not in [record.levelname for record in caplog.records]


async def test_a_client_that_is_not_too_slow_is_heard(sidecar):
    async with hanging_clients(sidecar, HALF_BODY) as clients:
        await served(sidecar)
        clients[-1].writer.write(BODY[len(BODY) // 2 :])
        assert (await clients[-1].answer()).status == 200
        assert sidecar.configuration.generation == 2


async def test_a_head_without_end_is_cut_off(sidecar):
    async with await Client.connect(sidecar.control_address) as client:
        await eventually(lambda: connections(sidecar) == 1, "it is connected")
        client.writer.write(PUT + b"X-Long: " + b"x" * 100_000)
        await eventually(lambda: connections(sidecar) == 0, "it is cut off")
    await served(sidecar)


@asynccontextmanager
async def few(folder, engine, certificate: TlsFiles | None = None) -> AsyncIterator[Sidecar]:
    """A control port for four connections."""
    limits = Limits(control_connections=4)
    async with running_sidecar(folder, engine, document(), limits=limits, control_tls=certificate) as sidecar:
        yield sidecar


async def is_closed(client: Client) -> bool:
    """Whether the other side has ended the connection; waits for that for a moment."""
    try:
        await asyncio.wait_for(client.reader.read(), 5)
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


async def test_strangers_keep_nobody_out(tmp_path, engine):
    async with few(tmp_path, engine) as sidecar:
        strangers = [await Client.connect(sidecar.control_address) for _ in range(4)]
        strangers[0].writer.write(HALF_BODY.replace(TOKEN.encode(), b"wrong"))
        await eventually(lambda: connections(sidecar) == 4, "all are connected")
        for number in range(20):
            strangers.append(await Client.connect(sidecar.control_address))
            assert (await control(sidecar, "GET", "/state")).status == 200
            assert (await control(sidecar, "GET", "/healthz")).status == 200
            assert connections(sidecar) <= 4, f"with the stranger {number}"
        assert [await is_closed(stranger) for stranger in strangers[:4]] == [True] * 4, "the oldest went"
        for stranger in strangers:
            await stranger.leave()


async def test_a_request_with_the_token_is_not_cut_for_strangers(tmp_path, engine):
    async with few(tmp_path, engine) as sidecar, await Client.connect(sidecar.control_address) as operator:
        operator.writer.write(HALF_BODY)
        await eventually(lambda: known(sidecar) == 1, "it has shown the token")
        strangers = [await Client.connect(sidecar.control_address) for _ in range(20)]
        await eventually(lambda: connections(sidecar) == 4, "some are still there")
        operator.writer.write(BODY[len(BODY) // 2 :])
        assert (await operator.answer()).status == 200
        assert sidecar.configuration.generation == 2
        for stranger in strangers:
            await stranger.leave()


async def test_where_all_have_shown_the_token_the_newest_is_closed(tmp_path, engine):
    async with few(tmp_path, engine) as sidecar:
        operators = [await Client.connect(sidecar.control_address) for _ in range(4)]
        for operator in operators:
            operator.writer.write(HALF_BODY)
        await eventually(lambda: known(sidecar) == 4, "all have shown the token")
        async with await Client.connect(sidecar.control_address) as newest:
            assert await is_closed(newest)
        operators[0].writer.write(BODY[len(BODY) // 2 :])
        assert (await operators[0].answer()).status == 200
        for operator in operators:
            await operator.leave()
        await eventually(lambda: connections(sidecar) == 0, "they are gone")
        assert (await control(sidecar, "GET", "/state")).fields["generation"] == 2


async def test_handshakes_that_go_on_count_and_make_room(tmp_path, engine, caplog):
    files = make_certificate(tmp_path, "first")
    async with few(tmp_path, engine, files) as sidecar:
        strangers = [await Client.connect(sidecar.control_address) for _ in range(20)]
        await eventually(lambda: connections(sidecar) == 4, "the last are still there")
        assert [await is_closed(stranger) for stranger in strangers[:2]] == [True] * 2
        trusting = ssl.create_default_context(cafile=files.certificate)
        address = sidecar.control_address
        async with await Client.connect(address, ssl=trusting, server_hostname="localhost") as operator:
            operator.send("GET", "/state", {"Authorization": f"Bearer {TOKEN}"})
            assert (await operator.answer()).status == 200
        for stranger in strangers:
            await stranger.leave()
        await eventually(lambda: connections(sidecar) == 0, "they are gone")
    assert "ERROR" not in [record.levelname for record in caplog.records]


async def test_a_handshake_without_end_is_cut_off(tmp_path, engine):
    files = make_certificate(tmp_path, "first")
    limits = Limits(control_timeout_s=0.5)
    async with (
        running_sidecar(tmp_path, engine, document(), limits=limits, control_tls=files) as sidecar,
        hanging_clients(sidecar, b"\x16\x03"),
    ):
        await eventually(lambda: connections(sidecar) == 0, "they are cut off")
