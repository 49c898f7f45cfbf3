"""The call log: a line for each call, whatever became of it, and nothing in it that should not be."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path

import pytest

from fairserve.sidecar.calllog import CallLog
from fairserve.sidecar.options import Address, OptionError, SidecarOptions
from fairserve.sidecar.service import Sidecar
from tests.fakes.engine import Reply, Seen, answers_after, token_event
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    TOKEN,
    Client,
    ask,
    control,
    document,
    eventually,
    running_sidecar,
)
from tests.parts.process import free_port

FIELDS = [
    "time",
    "tenant",
    "user",
    "application",
    "interaction",
    "path",
    "wait_s",
    "first_token_s",
    "duration_s",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "outcome",
    "status",
    "reason",
]


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "calls.jsonl"


@pytest.fixture
async def sidecar(tmp_path, engine, log):
    tenants = [
        {"name": "a", "max_queued_requests": 1, "max_wait_s": 0.5},
        {"name": "b", "per_user": {"count": 1, "window_s": 60}},
    ]
    config = document(tenants=tenants)
    async with running_sidecar(tmp_path, engine, config, call_log=log, max_window=1) as sidecar:
        yield sidecar


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_bytes().splitlines() if line]


async def written(log: Path, count: int) -> list[dict]:
    """So many lines, and no more."""
    await eventually(lambda: len(lines(log)) >= count, f"{count} lines")
    found = lines(log)
    assert len(found) == count
    return found


async def test_a_call_that_was_served(sidecar, log):
    body = {"stream": True, "max_tokens": 4, "messages": [{"role": "user", "content": "a secret prompt"}]}
    named = {"x_fairserve_user": "some-person", "x_fairserve_interaction_id": "some-session"}
    for _ in range(2):
        target = "/v1/chat/completions?hidden=completions"
        await ask(sidecar.data_address, KEY_A, body, target, x_fairserve_application="chat", **named)
    first, second = await written(log, 2)
    assert list(first) == FIELDS
    assert (first["tenant"], first["application"], first["path"]) == ("a", "chat", "/v1/chat/completions")
    assert (first["input_tokens"], first["cached_tokens"], first["output_tokens"]) == (10, 0, 4)
    assert (first["outcome"], first["status"], first["reason"]) == ("completed", 200, None)
    assert 0 <= first["wait_s"] <= first["first_token_s"] <= first["duration_s"]
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert first["user"] == second["user"] != first["interaction"] == second["interaction"]
    for secret in (KEY_A, "secret prompt", "some-person", "some-session", "hidden", TOKEN):
        assert secret not in log.read_text()


async def test_users_of_one_name_in_two_tenants_are_not_one(sidecar, log):
    for key in (KEY_A, KEY_B):
        await ask(sidecar.data_address, key, {"user": "same"})
    await ask(sidecar.data_address, KEY_A, {})
    first, second, nobody = await written(log, 3)
    assert first["user"] != second["user"]
    assert (nobody["user"], nobody["interaction"]) == (None, None)


async def test_calls_that_were_not_served_say_why(engine, sidecar, log):
    go_on = asyncio.Event()

    await ask(sidecar.data_address, "nobody's key", {})
    word = json.dumps({"armed": True, "lease_s": 60}).encode()
    assert (await control(sidecar, "PUT", "/overload", word)).status == 200
    for _ in range(2):
        await ask(sidecar.data_address, KEY_B, {})
    engine.behaviour = answers_after(go_on)
    running = asyncio.create_task(ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="other"))
    await eventually(lambda: sidecar.scheduler.running == 1, "one runs")
    late = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
    await eventually(lambda: sidecar.scheduler.queued == 1, "one waits")
    await ask(sidecar.data_address, KEY_A, {})
    await late
    async with await Client.connect(sidecar.data_address) as impatient:
        impatient.call(KEY_A, {})
        await eventually(lambda: sidecar.scheduler.queued == 1, "one waits")
    await eventually(lambda: sidecar.scheduler.queued == 0, "it has left")
    go_on.set()
    await running
    told = [(line["outcome"], line["status"], line["reason"]) for line in await written(log, 7)]
    assert told == [
        ("denied", 401, "invalid_api_key"),
        ("completed", 200, None),
        ("refused", 429, "user_interaction_limit"),
        ("refused", 503, "queue_full"),
        ("evicted", 503, "queue_timeout"),
        ("cancelled", None, "client_left"),
        ("completed", 200, None),
    ]


async def test_calls_that_were_cut_tell_what_was_computed(engine, sidecar, log):
    begun = asyncio.Event()

    async def stall(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for _ in range(3):
            await reply.chunk(token_event("x"))
        begun.set()
        await asyncio.Event().wait()

    async def break_off(seen: Seen, reply: Reply) -> None:
        raise ConnectionResetError

    engine.behaviour = stall
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {"stream": True})
        await client.head()
        await begun.wait()
        while b"x" not in await client.chunk():
            pass
    (cut,) = await written(log, 1)
    assert (cut["outcome"], cut["status"], cut["reason"]) == ("cancelled", 200, "client_left")
    assert cut["output_tokens"] <= 3
    assert cut["first_token_s"] is not None
    engine.behaviour = break_off
    await ask(sidecar.data_address, KEY_A, {})
    broken = (await written(log, 2))[1]
    assert (broken["outcome"], broken["status"], broken["reason"]) == ("failed", 502, "engine_broken")


async def test_a_call_that_meets_no_engine_has_a_line(tmp_path, log):
    async with running_sidecar(tmp_path, free_port(), document(), call_log=log, engine_wait_s=0.2) as sidecar:
        answer = await ask(sidecar.data_address, KEY_A, {})
        assert answer.status == 503
        (gone,) = await written(log, 1)
    assert (gone["outcome"], gone["status"], gone["reason"]) == ("evicted", 503, "engine_unavailable")


async def test_what_is_left_is_written_when_it_stops(tmp_path, engine, log):
    async with running_sidecar(tmp_path, engine, document(), call_log=log) as sidecar:
        for _ in range(3):
            await ask(sidecar.data_address, KEY_A, {})
        await sidecar.stop()
        assert len(lines(log)) == 3


async def test_a_log_that_is_moved_away_begins_anew(sidecar, log):
    await ask(sidecar.data_address, KEY_A, {})
    await written(log, 1)
    log.rename(log.with_suffix(".1"))
    await ask(sidecar.data_address, KEY_A, {})
    await eventually(log.exists, "a new file")
    await written(log, 1)


async def test_a_full_disk_costs_lines_and_no_calls(sidecar, log, caplog):
    log.unlink()
    log.symlink_to("/dev/full")
    for _ in range(2):
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
    await eventually(lambda: "call log" in caplog.text, "it is said")
    assert "No space left on device" in caplog.text
    log.unlink()
    assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
    await eventually(lambda: "lines of the call log are lost" in caplog.text, "the loss is said")
    assert len(lines(log)) >= 1


async def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    here = Address("127.0.0.1", 0)
    options = SidecarOptions(here, here, here, tmp_path / "token", call_log=tmp_path / "nowhere" / "log")
    with pytest.raises(OptionError, match=r"--call-log.*nowhere"):
        await Sidecar(options).start()


async def test_a_dash_is_standard_output(capfdbinary):
    log = CallLog(None)
    log.denied("/v1/completions", 401, "invalid_api_key")
    await log.flush()
    assert json.loads(capfdbinary.readouterr().out)["status"] == 401
