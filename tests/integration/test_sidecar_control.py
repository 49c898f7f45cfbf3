"""The control port of a real sidecar: configuration, overload, state, probes, restart."""

from __future__ import annotations

import asyncio
import gzip
import json
import random

import pytest

from fairserve.difference import MEDIA_TYPE, Difference, diff
from fairserve.sidecar.configuration import read_document
from fairserve.sidecar.options import Address, SidecarOptions
from fairserve.sidecar.service import Sidecar
from tests.fakes.engine import Reply, Seen, answer_at_once, answers_after, token_event
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    TOKEN,
    Client,
    ask,
    control,
    document,
    eventually,
    metric,
    running_sidecar,
)


async def overload(sidecar, armed: bool, lease_s: float = 60.0) -> dict:
    body = json.dumps({"armed": armed, "lease_s": lease_s, "reason": "a test"}).encode()
    answer = await control(sidecar, "PUT", "/overload", body)
    assert answer.status == 200, answer.body
    return answer.fields


async def test_without_configuration_it_waits_for_one(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, None) as sidecar:
        refused = await ask(sidecar.data_address, KEY_A, {})
        assert refused.status == 503
        assert refused.header("x-fairserve-refused-reason") == "not_ready"
        assert int(refused.header("retry-after")) >= 1
        ready = await control(sidecar, "GET", "/readyz", token="")
        assert (ready.status, "no configuration" in ready.fields["reasons"]) == (503, True)
        answer = await control(sidecar, "PUT", "/config", document().to_bytes())
        assert answer.fields == {"generation": 1, "hash": document().content_hash}
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
        await eventually(lambda: not sidecar.obstacles(), "it is ready")
        assert (await control(sidecar, "GET", "/readyz", token="")).status == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"\x1f\x8bnot gzip",
        b'{"pool": "x"}',
        b'{"format": 2, "pool": "a/b"}',
    ],
)
async def test_bad_boot_file_is_logged_and_waited_over(tmp_path, engine, content, caplog):
    (tmp_path / "token").write_text("t")
    boot = tmp_path / "boot.json"
    boot.write_bytes(content)
    here = Address("127.0.0.1", 0)
    options = SidecarOptions(
        here, here, Address("127.0.0.1", engine.port), tmp_path / "token", config_file=boot
    )
    sidecar = Sidecar(options)
    await sidecar.start()
    try:
        assert sidecar.configuration is None
        assert any(
            str(boot) in record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        )
    finally:
        await sidecar.stop()


async def test_newer_configuration_changes_shares_without_dropping_what_waits(tmp_path, engine):
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar:
        calls = [asyncio.create_task(ask(sidecar.data_address, KEY_A, {})) for _ in range(3)]
        await eventually(lambda: sidecar.scheduler.queued == 2, "calls wait")
        newer = document(2, tenants=[{"name": "a", "weight": 7}, {"name": "b"}])
        packed = gzip.compress(newer.to_bytes())
        answer = await control(sidecar, "PUT", "/config", packed, Content_Encoding="gzip")
        assert answer.fields == {"generation": 2, "hash": newer.content_hash}
        state = (await control(sidecar, "GET", "/state")).fields
        assert (state["generation"], state["tenants"][0]["weight"], state["queued"]) == (2, 7, 2)
        go_on.set()
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}


async def test_configuration_that_is_older_or_different_is_409(sidecar):
    assert (await control(sidecar, "PUT", "/config", document(5).to_bytes())).status == 200
    assert (await control(sidecar, "PUT", "/config", document(5).to_bytes())).status == 200
    for offered in (document(4), document(5, mode="Shadow")):
        answer = await control(sidecar, "PUT", "/config", offered.to_bytes())
        assert answer.status == 409
        assert (answer.fields["generation"], answer.fields["hash"]) == (5, document(5).content_hash)
        assert "error" in answer.fields


async def test_configuration_with_a_wrong_field_is_422_and_the_old_one_stays(sidecar):
    fields = json.loads(document(2).to_bytes())
    fields["tenants"][0]["weight"] = 0
    fields["tenants"][1]["wieght"] = 2
    answer = await control(sidecar, "PUT", "/config", json.dumps(fields).encode())
    assert answer.status == 422
    assert "tenants.0.weight" in answer.fields["error"]
    assert "tenants.1.wieght" in answer.fields["error"]
    other_pool = await control(sidecar, "PUT", "/config", document(2, pool="default/other").to_bytes())
    assert (other_pool.status, "default/other" in other_pool.fields["error"]) == (422, True)
    assert sidecar.configuration.generation == 1
    assert (await ask(sidecar.data_address, KEY_A, {})).status == 200


async def put_difference(sidecar, difference: Difference, **headers: str):
    return await control(sidecar, "PUT", "/config", difference.to_bytes(), Content_Type=MEDIA_TYPE, **headers)


async def test_a_difference_changes_what_it_names(sidecar):
    newer = document(2, tenants=[{"name": "a", "weight": 7}, {"name": "b"}, {"name": "c"}])
    difference = diff(document(1), newer)
    for _ in range(2):  # an answer that got lost is asked for again
        answer = await put_difference(sidecar, difference)
        assert (answer.status, answer.fields) == (200, {"generation": 2, "hash": newer.content_hash})
    assert sidecar.configuration.document == newer
    assert sidecar.scheduler.tenant_settings("a").weight == 7
    assert (await ask(sidecar.data_address, KEY_A, {})).status == 200


async def test_a_difference_from_another_document_is_409_with_the_one_that_runs(tmp_path, engine, sidecar):
    runs = {"generation": 1, "hash": document(1).content_hash}
    for base, newer in (
        (document(3), document(4, mode="Shadow")),
        (document(1, mode="Shadow"), document(2)),
        (document(1), document(1, mode="Shadow")),
    ):
        answer = await put_difference(sidecar, diff(base, newer))
        assert (answer.status, answer.fields | {"error": ""}) == (409, {**runs, "error": ""})
    assert sidecar.configuration.document == document(1)
    async with running_sidecar(tmp_path, engine, None) as fresh:
        answer = await put_difference(fresh, diff(document(1), document(2)))
        assert (answer.status, answer.fields["generation"], answer.fields["hash"]) == (409, None, None)


async def test_a_difference_that_makes_nothing_valid_is_422_and_the_old_one_stays(sidecar):
    good = diff(document(1), document(2, mode="Shadow"))
    for changes, named in (
        ({"put": {"tenants": [{"name": "a", "weight": 0}]}}, "tenants.0.weight"),
        ({"remove": {"tenants": ["a"]}}, "unknown tenant 'a'"),
        ({"set": {"surprise": 1}}, "surprise"),
    ):
        answer = await put_difference(sidecar, good.model_copy(update=changes))
        assert (answer.status, named in answer.fields["error"]) == (422, True), answer.body
    broken = await control(sidecar, "PUT", "/config", b"{}", Content_Type=MEDIA_TYPE)
    assert (broken.status, "base" in broken.fields["error"]) == (422, True)
    assert sidecar.configuration.document == document(1)


async def test_configuration_over_the_limit_is_413(sidecar):
    bomb = gzip.compress(b" " * (64 * 1024 * 1024 + 1))
    assert (await control(sidecar, "PUT", "/config", bomb, Content_Encoding="gzip")).status == 413


@pytest.mark.parametrize(("method", "path"), [("PUT", "/config"), ("PUT", "/overload"), ("GET", "/state")])
async def test_wrong_control_token_is_401(sidecar, method, path):
    for token in ("", "wrong", "control-toke", KEY_A):
        assert (await control(sidecar, method, path, b"{}", token=token)).status == 401


async def test_control_token_may_rotate(tmp_path, sidecar):
    async def takes(*tokens: str) -> list[int]:
        return [(await control(sidecar, "GET", "/state", token=token)).status for token in tokens]

    file = tmp_path / "token"
    assert await takes(TOKEN, "another") == [200, 401]
    file.write_text(f"{TOKEN}\n\nanother\n")
    assert await takes(TOKEN, "another", "", f"{TOKEN}\tanother") == [200, 200, 401, 401]
    file.write_text("another")
    assert await takes(TOKEN, "another") == [401, 200], "no old token outlives its line"


async def test_a_token_file_that_is_gone_keeps_the_token(tmp_path, sidecar, caplog):
    for spoil in ((tmp_path / "token").unlink, lambda: (tmp_path / "token").write_text("\n")):
        spoil()
        assert (await control(sidecar, "GET", "/state")).status == 200
        assert (await control(sidecar, "GET", "/state", token="")).status == 401
    assert sum("old token" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"armed": 1, "lease_s": 5}',
        b'{"armed": true, "lease_s": -1}',
        b'{"armed":true,"lease_s":5,"x":1}',
    ],
)
async def test_malformed_overload_is_422_and_changes_nothing(sidecar, body):
    assert (await control(sidecar, "PUT", "/overload", body)).status == 422
    assert not sidecar.scheduler.armed


async def test_user_over_its_limit_is_429_until_the_time_told(sidecar):
    for _ in range(5):
        assert (await ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="calm")).status == 200
    assert (await overload(sidecar, armed=True)) == {"armed": True, "generation": 1}
    session = {"x_fairserve_user": "u", "x_fairserve_interaction_id": "first"}
    assert (await ask(sidecar.data_address, KEY_B, {}, **session)).status == 200
    assert (await ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="u")).status == 200
    refused = await ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="u")
    assert refused.status == 429
    assert 59 <= int(refused.header("retry-after")) <= 66
    assert refused.header("x-fairserve-refused-reason") == "user_interaction_limit"
    assert refused.header("x-ratelimit-limit-requests") == "2"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    assert refused.header("x-ratelimit-reset-requests") in ("60s", "1m0s", "59s")
    error = refused.fields["error"]
    assert (error["type"], error["param"], error["code"]) == ("rate_limit_error", None, "rate_limit_exceeded")
    assert "2 new interactions per 60 s" in error["message"]
    assert f"Retry in {refused.header('retry-after')} s" in error["message"]
    assert (await ask(sidecar.data_address, KEY_B, {}, **session)).status == 200, "continues an interaction"
    assert (await ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="v")).status == 200, "within limits"
    text = sidecar.metrics.exposition().decode()
    labels = {"tenant": "b", "reason": "user_interaction_limit", "mode": "Enforce"}
    assert sidecar.state()["recent"]["refused_interactions_1h"] == {"b": 1.0}
    assert metric(text, "fairserve_refused_interactions_total", **labels) == 1
    assert metric(text, "fairserve_oit_armed") == 1


async def test_retry_after_the_told_time_is_admitted(tmp_path, engine):
    tenants = [{"name": "a"}, {"name": "b", "per_user": {"count": 1, "window_s": 1.5}}]
    async with running_sidecar(tmp_path, engine, document(tenants=tenants)) as sidecar:
        await overload(sidecar, armed=True)
        assert (await ask(sidecar.data_address, KEY_B, {})).status == 200
        refused = await ask(sidecar.data_address, KEY_B, {})
        assert refused.status == 429
        await asyncio.sleep(int(refused.header("retry-after")))
        assert (await ask(sidecar.data_address, KEY_B, {})).status == 200


async def test_shadow_refuses_nothing_and_counts(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document(mode="Shadow")) as sidecar:
        await overload(sidecar, armed=True)
        for _ in range(4):
            assert (await ask(sidecar.data_address, KEY_B, {})).status == 200
        text = sidecar.metrics.exposition().decode()
    labels = {"tenant": "b", "reason": "user_interaction_limit", "mode": "Shadow"}
    assert metric(text, "fairserve_refused_interactions_total", **labels) == 2


async def test_ended_lease_follows_on_stale(tmp_path, engine):
    config = document(overload={"stale_after_s": 30, "on_stale": "Disarm"})
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        await overload(sidecar, armed=True, lease_s=0.5)
        assert sidecar.state()["overload"]["source"] == "Operator"
        await eventually(lambda: not sidecar.scheduler.armed, "the lease ends")
        assert sidecar.state()["overload"]["source"] == "Stale"


async def test_own_saturation_arms_where_that_is_on(tmp_path, engine):
    engine.kv_use = 1.0
    config = document(overload={"arm_locally": True, "on_stale": "Disarm", "hold_down_s": 0.0})
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        await eventually(lambda: sidecar.scheduler.armed, "saturation arms")
        told = sidecar.state()["overload"]
        assert (told["source"], told["reason"]) == (
            "Local",
            "saturation is 1.05263 (threshold 1, clears below 0.8)",
        )
        engine.kv_use = 0.1
        await eventually(lambda: not sidecar.scheduler.armed, "saturation is gone")


async def test_own_saturation_that_hovers_does_not_flap(tmp_path, engine):
    engine.kv_use = 1.0
    overload_section = {"arm_locally": True, "on_stale": "Disarm", "hold_down_s": 3600}
    async with running_sidecar(tmp_path, engine, document(overload=overload_section)) as sidecar:
        await eventually(lambda: sidecar.scheduler.armed, "saturation arms")
        for kv_use in (0.9, 0.1):  # Below what arms; below what clears, but not for as long as hold_down_s.
            engine.kv_use = kv_use
            await eventually(
                lambda kv_use=kv_use: sidecar.watch.sample.kv_use == kv_use, "the engine is read"
            )
            assert await overload(sidecar, armed=False)
            assert sidecar.scheduler.armed
        off = document(generation=2, overload={**overload_section, "arm_locally": False})
        sidecar.configure(read_document(off.to_bytes()))
        assert not sidecar.scheduler.armed


async def test_full_queue_and_timeout_are_503(tmp_path, engine):
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    tenants = [{"name": "a", "max_queued_requests": 1, "max_wait_s": 0.5}, {"name": "b"}]
    async with running_sidecar(tmp_path, engine, document(tenants=tenants), max_window=1) as sidecar:
        first = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.scheduler.running == 1, "one runs")
        second = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.scheduler.queued == 1, "one waits")
        full = await ask(sidecar.data_address, KEY_A, {})
        late = await second
        go_on.set()
        assert (await first).status == 200
        text = sidecar.metrics.exposition().decode()
    for answer, reason in ((full, "queue_full"), (late, "queue_timeout")):
        assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, reason)
        assert int(answer.header("retry-after")) >= 1
        assert metric(text, "fairserve_refused_interactions_total", tenant="a", reason=reason) == 1
    assert metric(text, "fairserve_requests_total", tenant="a", outcome="evicted") == 1
    assert metric(text, "fairserve_requests_total", tenant="a", outcome="refused") == 1


async def test_restart_boots_from_the_file_and_keeps_open_interactions(tmp_path, engine):
    snapshot = tmp_path / "snapshot.json"
    session = {"x_fairserve_user": "u", "x_fairserve_interaction_id": "mine"}
    async with running_sidecar(tmp_path, engine, document(), snapshot=snapshot) as sidecar:
        await overload(sidecar, armed=True)
        for headers in (session, {"x_fairserve_user": "u"}):
            assert (await ask(sidecar.data_address, KEY_B, {}, **headers)).status == 200
    async with running_sidecar(tmp_path, engine, document(), snapshot=snapshot) as sidecar:
        assert sidecar.configuration.generation == 1
        await overload(sidecar, armed=True)
        assert (await ask(sidecar.data_address, KEY_B, {}, x_fairserve_user="u")).status == 429
        assert (await ask(sidecar.data_address, KEY_B, {}, **session)).status == 200


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        "\x00" * 100,
        '{"saved_at_unix_s": 0}',
        '{"saved_at_unix_s": NaN, "scheduler": {}}',
        '{"saved_at_unix_s": 1' + "0" * 400 + ', "scheduler": {}}',
        '{"saved_at_unix_s": 0, "scheduler": []}',
        '{"saved_at_unix_s": 0, "scheduler": {"format": 99}}',
    ],
)
async def test_corrupt_snapshot_is_logged_and_not_used(tmp_path, engine, content, caplog):
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text(content)
    async with running_sidecar(tmp_path, engine, document(), snapshot=snapshot) as sidecar:
        assert any("snapshot" in r.getMessage() for r in caplog.records if r.levelname == "ERROR")
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200


async def test_a_full_disk_costs_the_new_snapshot_only(tmp_path, engine, caplog):
    snapshot, beside = tmp_path / "snapshot.json", tmp_path / "snapshot.json.new"
    often = {"snapshot": snapshot, "snapshot_interval_s": 0.05}
    async with running_sidecar(tmp_path, engine, document(), **often) as sidecar:
        await ask(sidecar.data_address, KEY_A, {})
        await eventually(snapshot.exists, "a snapshot is written")
    good = snapshot.read_bytes()
    beside.symlink_to("/dev/full")
    often["snapshot_interval_s"] = 3_600.0
    async with running_sidecar(tmp_path, engine, document(), **often) as sidecar:
        assert (await ask(sidecar.data_address, KEY_A, {})).status == 200
        await sidecar.stop()
        assert "can't be written" in caplog.text
        assert "No space left on device" in caplog.text
        assert snapshot.read_bytes() == good
        assert not beside.is_symlink(), "nothing half is left"
    assert snapshot.read_bytes() != good, "once there is room it is written again"


async def test_a_snapshot_is_read_whole_or_not_at_all(tmp_path, engine, caplog):
    """A flipped byte anywhere may cost the snapshot, never the start."""
    snapshot = tmp_path / "snapshot.json"
    async with running_sidecar(tmp_path, engine, document(), snapshot=snapshot) as sidecar:
        for user in ("u", "v"):
            named = {"x_fairserve_user": user, "x_fairserve_interaction_id": "i"}
            await ask(sidecar.data_address, KEY_B, {}, **named)
    good = snapshot.read_bytes()
    unread = 0
    for seed in range(300):
        chance = random.Random(seed)
        spoilt = bytearray(good)
        spoilt[chance.randrange(len(spoilt))] = chance.choice(b'0 9-eE"{}[],.:nx\xff')
        snapshot.write_bytes(spoilt[: chance.randrange(len(spoilt))] if seed % 10 == 0 else spoilt)
        caplog.clear()
        here = Address("127.0.0.1", 0)
        boot = SidecarOptions(
            here, here, here, tmp_path / "token", config_file=tmp_path / "config.json", snapshot_file=snapshot
        )
        sidecar = Sidecar(boot)
        sidecar._boot()
        sidecar.scheduler.check()
        unread += "snapshot is not used" in caplog.text
    assert 100 < unread < 300


async def test_stop_lets_running_calls_finish(tmp_path, engine):
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        idle = await Client.connect(sidecar.data_address)
        call = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: len(engine.completions) == 1, "the call runs")
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        assert await idle.reader.read() == b"", "an idle connection is closed at once"
        with pytest.raises(OSError):
            await Client.connect(sidecar.data_address)
        go_on.set()
        assert (await call).status == 200
        await stopping
        await idle.leave()


async def test_after_the_grace_every_client_is_told_and_what_ran_is_paid_for(tmp_path, engine):
    async def stall(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for _ in range(4):
            await reply.chunk(token_event("x"))
        await asyncio.Event().wait()

    engine.behaviour = stall
    async with (
        running_sidecar(tmp_path, engine, document(), max_window=1) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        client.call(KEY_A, {"stream": True})
        streamed = asyncio.create_task(client.answer())
        await eventually(lambda: len(engine.completions) == 1, "a call runs")
        waiting = asyncio.create_task(ask(sidecar.data_address, KEY_B, {}))
        await eventually(lambda: sidecar.scheduler.queued == 1, "another waits")
        await sidecar.stop(grace_s=0.3)
        refused, cut = await waiting, await streamed
        assert (refused.status, refused.header("x-fairserve-refused-reason")) == (503, "shutting_down")
        assert refused.header("connection") == "close"
        assert int(refused.header("retry-after") or 0) >= 1
        assert b'"code":"shutting_down"' in cut.body.replace(b": ", b":")
        assert cut.body.endswith(b"data: [DONE]\n\n")
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_requests_total", tenant="a", outcome="failed") == 1
        assert metric(text, "fairserve_tokens_total", tenant="a", kind="output") >= 1
        assert metric(text, "fairserve_requests_total", tenant="b", outcome="cancelled") == 1
        assert (sidecar.scheduler.running, sidecar.scheduler.queued) == (0, 0)
        await eventually(lambda: engine.cut == 1, "the engine's work is ended too")


async def test_an_answer_that_begins_while_it_stops_is_its_connections_last(tmp_path, engine):
    go_on = asyncio.Event()
    engine.behaviour = answers_after(go_on)
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        client.call(KEY_A, {})
        await eventually(lambda: len(engine.completions) == 1, "a call runs")
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        await eventually(lambda: sidecar.proxy.draining, "it stops")
        go_on.set()
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        await stopping


async def test_a_call_that_arrives_while_it_stops_is_served_as_its_connections_last(tmp_path, engine):
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as client,
    ):
        head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY_A}\r\n"
        client.writer.write(head.encode() + b"Content-Length: 2\r\n\r\n{")
        await eventually(lambda: any(c.in_use for c in sidecar._server.connections), "the call begins")
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        await eventually(lambda: sidecar.proxy.draining, "it stops")
        client.writer.write(b"}")
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        await stopping
    assert len(engine.completions) == 1


async def test_a_connection_that_was_promised_to_stay_takes_one_more_call_while_it_stops(tmp_path, engine):
    """What the client sends then is on its way already: closed at once it would be reset."""
    finish = asyncio.Event()

    async def stream(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        await finish.wait()
        await reply.chunk(b"data: [DONE]\n\n")
        await reply.end()

    engine.behaviour = stream
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as streaming,
        await Client.connect(sidecar.data_address) as idle,
    ):
        streaming.call(KEY_A, {"stream": True})
        await eventually(lambda: len(engine.completions) == 1, "a call runs")
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        await eventually(lambda: sidecar.proxy.draining, "it stops")
        finish.set()
        first = await streaming.answer()
        assert (first.status, first.header("connection")) == (200, None)
        for client in (streaming, idle):
            client.call(KEY_A, {"stream": True})
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (200, "close")
        await stopping
    assert len(engine.completions) == 3


async def test_a_call_that_arrives_late_while_it_stops_is_503(tmp_path, engine):
    """It would be cut in the middle, where no client tries again by itself."""
    go_on = asyncio.Event()
    engine.behaviour = answers_after(go_on)
    async with (
        running_sidecar(tmp_path, engine, document()) as sidecar,
        await Client.connect(sidecar.data_address) as client,
        await Client.connect(sidecar.data_address) as late,
    ):
        client.call(KEY_A, {})
        late.send("POST", "/v1/completions", {"Authorization": f"Bearer {KEY_A}", "Content-Length": "2"})
        await eventually(lambda: len(engine.completions) == 1, "a call runs")
        await eventually(lambda: sum(c.in_use for c in sidecar._server.connections) == 2, "one arrives")
        stopping = asyncio.create_task(sidecar.stop(grace_s=30))
        await eventually(lambda: sidecar.proxy.draining, "it stops")
        assert sidecar.proxy.turns_away_at is not None
        sidecar.proxy.turns_away_at -= 15.0
        late.writer.write(b"{}")
        answer = await late.answer()
        assert (answer.status, answer.header("x-fairserve-refused-reason")) == (503, "shutting_down")
        assert (answer.header("connection"), int(answer.header("retry-after")) >= 1) == ("close", True)
        go_on.set()
        assert (await client.answer()).status == 200
        await stopping
    assert len(engine.completions) == 1


async def test_engine_that_is_not_healthy_is_not_ready(engine, sidecar):
    await eventually(lambda: not sidecar.obstacles(), "it is ready")
    engine.healthy = False
    await eventually(lambda: any("503" in reason for reason in sidecar.obstacles()), "it is not ready")
    assert (await control(sidecar, "GET", "/healthz", token="")).status == 200


async def test_state_tells_what_people_want_to_know(sidecar):
    await ask(sidecar.data_address, KEY_A, {}, x_fairserve_user="secret-person")
    await eventually(lambda: sidecar.watch.sample, "the engine is read")
    answer = await control(sidecar, "GET", "/state")
    state = answer.fields
    assert (state["pool"], state["generation"], state["policy"], state["mode"]) == (
        "default/llm",
        1,
        "FairServe",
        "Enforce",
    )
    (tenant,) = state["tenants"]
    assert (tenant["name"], tenant["weight"], tenant["refused"]) == ("a", 3, 0)
    assert state["engine"]["up"] is True
    assert state["engine"]["kv_tokens"] == 16_000
    assert state["recent"]["service_5m"]["a"] == pytest.approx(tenant["service"])
    assert state["recent"]["refused_interactions_1h"] == {}
    chat = next(each for each in state["applications"] if each["name"] == "chat")
    assert (chat["input_tokens"], chat["output_tokens"], chat["learned_from"]) == (10, 3, None)
    assert b"secret-person" not in answer.body


async def test_every_word_on_overload_of_a_valid_pool_is_taken(sidecar):
    body = json.dumps({"armed": True, "lease_s": 99_999 * 3_600.0, "reason": "x" * 5_000}).encode()
    answer = await control(sidecar, "PUT", "/overload", body)
    assert answer.status == 200, answer.body
    state = (await control(sidecar, "GET", "/state")).fields["overload"]
    assert state["armed"]
    assert state["reason"] == "x" * 1_024


async def test_tokens_of_an_interaction_that_lost_a_call_are_counted_as_wasted(tmp_path, engine):
    held = asyncio.Event()

    async def hold(seen: Seen, reply: Reply) -> None:
        await held.wait()
        await answer_at_once(seen, reply)

    tenants = [{"name": "a", "max_queued_requests": 1}, {"name": "b"}]
    interaction = {"x_fairserve_interaction_id": "agent"}
    async with running_sidecar(tmp_path, engine, document(tenants=tenants), max_window=1) as sidecar:
        done = await ask(sidecar.data_address, KEY_A, {}, **interaction)
        spent = sum(done.fields["usage"][kind] for kind in ("prompt_tokens", "completion_tokens"))
        engine.behaviour = hold
        calls = [asyncio.create_task(ask(sidecar.data_address, KEY_B, {}))]
        await eventually(lambda: sidecar.scheduler.running == 1, "the engine is taken")
        calls.append(asyncio.create_task(ask(sidecar.data_address, KEY_A, {}, **interaction)))
        await eventually(lambda: sidecar.scheduler.queued == 1, "the queue is full")
        refused = await ask(sidecar.data_address, KEY_A, {}, **interaction)
        assert refused.header("x-fairserve-refused-reason") == "queue_full"
        assert metric(sidecar.metrics.exposition().decode(), "fairserve_wasted_tokens_total") == spent > 0
        held.set()
        await asyncio.gather(*calls)


async def test_a_running_call_pays_beyond_its_prediction_before_it_ends(tmp_path, engine):
    go_on = asyncio.Event()

    async def talk(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for _ in range(50):
            await reply.chunk(token_event("x"))
        await go_on.wait()
        await reply.end()

    engine.behaviour = talk
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        call = asyncio.create_task(
            ask(sidecar.data_address, KEY_A, {"stream": True}, x_fairserve_application="agent")
        )
        await eventually(lambda: sidecar.scheduler.running == 1, "the call runs")
        predicted = sidecar.scheduler.tenant("a").service
        await eventually(
            lambda: sidecar.scheduler.tenant("a").service > 2 * predicted,
            "what exceeds it is charged",
        )
        go_on.set()
        await call
