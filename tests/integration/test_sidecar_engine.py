"""What the engine does to us: it dies, hangs, refuses, or orders by priority, through a real sidecar."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import anthropic
import openai
import pytest

from fairserve.engine.requests import MOST_VALUES
from fairserve.sidecar.options import Limits
from fairserve.sidecar.retries import MOST_TRIES
from fairserve.sidecar.service import Sidecar
from tests.fakes.engine import (
    DONE,
    FULL,
    Reply,
    Seen,
    answer_at_once,
    answers_after,
    event,
    refuses,
    token_event,
)
from tests.integration.sidecars import (
    CHAT,
    KEY_A,
    KEY_B,
    Answer,
    Client,
    ask,
    document,
    eventually,
    metric,
    running_sidecar,
)

FULL_ANTHROPIC = {"type": "error", "error": {"type": "Service Unavailable", **FULL["error"]}}
SCALING = {"error": "The model is currently scaling. Please try again later."}
COMPUTED = {"error": {"message": "Request failed; please retry", "type": "ServiceUnavailableError"}}


def dies_after(*chunks: bytes) -> Callable[[Seen, Reply], Awaitable[None]]:
    """A stream of which only these chunks come."""

    async def die(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for data in chunks:
            await reply.chunk(data)
        reply.writer.transport.abort()

    return die


def says(status: int) -> Callable[[Seen, Reply], Awaitable[None]]:
    """An error that the engine computed for."""

    async def say(seen: Seen, reply: Reply) -> None:
        await reply.whole(status, b'{"error":{"message":"no"}}')

    return say


def count(sidecar: Sidecar, outcome: str) -> float | None:
    text = sidecar.metrics.exposition().decode()
    return metric(text, "fairserve_requests_total", tenant="a", outcome=outcome)


def tokens(sidecar: Sidecar, kind: str) -> float | None:
    return metric(sidecar.metrics.exposition().decode(), "fairserve_tokens_total", tenant="a", kind=kind)


def events(answer: Answer) -> list[dict]:
    """What the events of a stream say, `[DONE]` aside."""
    data = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in data]


# -- an answer that breaks off ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "behaviour", "in_full"),
    [(200, dies_after(token_event("one")), 0), (500, says(500), 0), (400, says(400), 1)],
)
async def test_who_the_engine_broke_over_was_not_served_in_full(engine, sidecar, status, behaviour, in_full):
    engine.behaviour = behaviour
    assert (await ask(sidecar.data_address, KEY_A, {"stream": True})).status == status
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_tenant_users", tenant="a") == 1
    assert metric(text, "fairserve_tenant_users_fully_served", tenant="a") == in_full


@pytest.mark.parametrize("target", [CHAT, "/v1/completions"])
async def test_stream_of_an_engine_that_dies_ends_with_an_error(engine, sidecar, target):
    engine.behaviour = dies_after(token_event("one"), token_event("two"))
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {"stream": True, "max_tokens": 9}, target)
        broken = await client.answer()
        assert broken.status == 200
        assert broken.body.startswith(token_event("one") + token_event("two"))
        assert broken.body.endswith(b"\n\n" + DONE)
        assert events(broken)[-1]["error"] == {
            "message": "The model server closed the connection.",
            "type": "server_error",
            "param": None,
            "code": "engine_broken",
        }
        engine.behaviour = None
        client.call(KEY_A, {})
        assert (await client.answer()).status == 200, "the connection is as good as new"
    assert count(sidecar, "failed") == 1
    # A chat's first event says who speaks; the second answer has three tokens.
    assert tokens(sidecar, "output") == (1 if target == CHAT else 2) + 3


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
async def test_event_that_was_cut_is_not_before_ours(engine, sidecar, options):
    engine.behaviour = dies_after(token_event("one"), token_event("two")[:20])
    broken = await ask(sidecar.data_address, KEY_A, {"stream": True, "stream_options": options})
    assert broken.body.startswith(token_event("one") + b"data: ")
    assert events(broken)[-1]["error"]["code"] == "engine_broken"
    assert token_event("two")[:20] + b"\n" not in broken.body, "half an event is read by no client"


async def test_an_engine_that_dies_after_the_last_event_has_said_all(engine, sidecar):
    engine.behaviour = dies_after(token_event("one"), DONE)
    whole = await ask(
        sidecar.data_address, KEY_A, {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert whole.body == token_event("one") + DONE


async def test_headers_that_the_engine_keeps_to_its_connection_stop_here(engine, sidecar):
    async def answer(seen: Seen, reply: Reply) -> None:
        head = b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n"
        reply.writer.write(head + b"Content-Length: 2\r\n\r\n{}")
        await reply.writer.drain()

    engine.behaviour = answer
    for _ in range(2):
        answered = await ask(sidecar.data_address, KEY_A, {})
        assert (answered.header("x-hop"), answered.header("x-end")) == (None, "2")


async def test_an_answer_that_ends_with_its_connection_is_whole(engine, sidecar):
    async def close(seen: Seen, reply: Reply) -> None:
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n"
        reply.writer.write(head + b'{"usage":{"prompt_tokens":3,')
        await reply.writer.drain()
        await asyncio.sleep(0.02)
        reply.writer.write(b'"completion_tokens":2}}')
        reply.writer.close()

    engine.behaviour = close
    answer = await ask(sidecar.data_address, KEY_A, {})
    assert json.loads(answer.body)["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert (count(sidecar, "completed"), tokens(sidecar, "output")) == (1, 2)


@pytest.mark.parametrize("values", ["[],", "{},"])
async def test_a_body_of_too_many_values_is_refused_unread(engine, sidecar, values):
    """Reading it would hold up everybody's calls, and take its size twenty times in memory."""
    body = '{"messages":[],"x":[' + values * (MOST_VALUES // 4) + "1]}"
    answer = await ask(sidecar.data_address, KEY_A, body.encode())
    assert answer.status == 413
    assert b"body_too_complex" in answer.body
    assert not engine.completions
    long = {"messages": [{"role": "user", "content": "one, two, " * 800_000}]}
    assert (await ask(sidecar.data_address, KEY_A, long)).status == 200, "a long prompt is no such body"


@pytest.mark.parametrize("depth", [900, 960, 970, 975, 980, 990, 5_000])
async def test_no_body_however_deep_keeps_a_slot(tmp_path, engine, depth):
    """What can't be read here is refused: another Python's engine might read it."""
    deep = '{"messages":[],"priority":3,"x":' + "[" * depth + "]" * depth + "}"
    async with running_sidecar(tmp_path, engine, document(), engine_priority=True) as sidecar:
        for encoding in ("utf-8", "utf-16"):
            answer = await ask(sidecar.data_address, KEY_A, deep.encode(encoding))
            assert answer.status in (200, 400)
            assert (answer.status == 400) == (b"body_too_deep" in answer.body)
            assert answer.status == 400 or depth < 1_000
        assert (sidecar.scheduler.running, sidecar.scheduler.queued) == (0, 0)
        assert all(b'"priority":3' not in seen.body for seen in engine.completions)


async def test_a_client_cannot_have_its_place_removed(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document(), engine_priority=True) as sidecar:
        await ask(sidecar.data_address, KEY_A, {}, "/v1/messages", connection="x-vllm-priority")
    assert engine.completions[-1].header("x-vllm-priority") is not None


async def test_sdks_raise_what_the_last_event_says(engine, sidecar):
    base = f"http://{sidecar.data_address}"
    async with openai.AsyncOpenAI(api_key=KEY_A, base_url=base + "/v1", max_retries=0) as client:
        engine.behaviour = dies_after(token_event("one"))
        chat = await client.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError, match="closed the connection") as caught:
            _ = [part async for part in chat]
        assert caught.value.code == "engine_broken"
        begun = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1"}}
        engine.behaviour = dies_after(b"event: response.created\n" + event(begun))
        response = await client.responses.create(model="m", input="hi", stream=True)
        last = [part async for part in response][-1]
        assert (last.type, last.sequence_number, last.code) == ("error", 1, "engine_broken")
    async with anthropic.AsyncAnthropic(api_key=KEY_A, base_url=base, max_retries=0) as client:
        engine.behaviour = dies_after(b"event: ping\n" + event({"type": "ping"}))
        message = await client.messages.create(model="m", max_tokens=5, messages=[], stream=True)
        with pytest.raises(anthropic.APIStatusError) as failed:
            _ = [part async for part in message]
        assert failed.value.body == {
            "type": "error",
            "error": {"type": "api_error", "message": "The model server closed the connection."},
        }


async def test_answer_that_is_no_stream_breaks_off_visibly(engine, sidecar):
    async def die(seen: Seen, reply: Reply) -> None:
        await reply.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        reply.writer.transport.abort()

    engine.behaviour = die
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {})
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
    assert count(sidecar, "failed") == 1


async def test_stream_of_an_engine_that_falls_silent_ends_with_an_error(tmp_path, engine):
    async def hang(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        await reply.chunk(token_event("one"))
        await asyncio.Event().wait()

    engine.behaviour = hang
    async with running_sidecar(tmp_path, engine, document(), engine_silence_s=0.5) as sidecar:
        broken = await ask(sidecar.data_address, KEY_A, {"stream": True})
        assert events(broken)[-1]["error"]["code"] == "engine_silent"
        await eventually(lambda: engine.cut == 1, "the engine is told")
        assert count(sidecar, "failed") == 1


async def test_answer_of_a_living_engine_may_take_its_time(tmp_path, engine):
    go_on = asyncio.Event()

    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, document(), engine_silence_s=0.01) as sidecar:
        call = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: engine.completions, "the call runs")
        for _ in range(5):
            sidecar.dispatcher.expire()
            await asyncio.sleep(0.02)
        go_on.set()
        assert (await call).status == 200


# -- an engine that is gone ------------------------------------------------------------------------------


@pytest.mark.parametrize("healthy", [True, False])
async def test_calls_wait_for_an_engine_that_is_gone_and_then_get_503(tmp_path, engine, healthy):
    """Gone: nobody listens. Or its /health says that it is dead, which vLLM says just before it ends."""
    limits = Limits(connect_timeout_s=0.2)
    engine.healthy = healthy
    if healthy:
        await engine.close()
    async with running_sidecar(tmp_path, engine, document(), limits=limits, engine_wait_s=0.5) as sidecar:
        await eventually(lambda: sidecar.dispatcher.held, "the sidecar knows")
        refused = await ask(sidecar.data_address, KEY_A, {})
        assert refused.status == 503
        assert refused.header("x-fairserve-refused-reason") == "engine_unavailable"
        assert int(refused.header("retry-after") or 0) >= 1
        assert engine.completions == []
        assert count(sidecar, "evicted") == 1
        assert sidecar.obstacles()
        sidecar.dispatcher.engine_wait_s = 600.0
        waiting = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.scheduler.queued == 1, "the next call waits")
        engine.healthy = True
        if healthy:
            await engine.listen(engine.port)
        assert (await waiting).status == 200


async def test_call_that_meets_no_engine_waits_for_it(tmp_path, engine):
    """It was its turn just when the engine died: nothing was sent, so it is not lost."""
    limits = Limits(connect_timeout_s=0.1)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        await eventually(lambda: sidecar.watch.sample, "the engine is known")
        await engine.close()
        sidecar.pool.close()
        call = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        await eventually(lambda: sidecar.dispatcher.held and sidecar.scheduler.queued == 1, "it waits")
        await engine.listen(engine.port)
        assert (await call).status == 200
    assert len(engine.completions) == 1


async def test_engine_that_accepts_and_never_answers_is_held_to_be_gone(tmp_path):
    """Half-open as well: what was sent gets no answer and no end."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(-1)
        finally:
            writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with (
        server,
        running_sidecar(
            tmp_path, server.sockets[0].getsockname()[1], document(), max_window=1, engine_silence_s=1.0
        ) as sidecar,
    ):
        sidecar.watch.timeout_s = 0.05
        running = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        waiting = asyncio.create_task(ask(sidecar.data_address, KEY_B, {}))
        await eventually(lambda: sidecar.dispatcher.held, "the sidecar knows")
        assert sidecar.watch.problem == "the engine's /health does not answer"
        answer = await running
        assert (answer.status, answer.fields["error"]["code"]) == (504, "engine_silent")
        assert sidecar.scheduler.queued == 1, "the next one does not follow it"
        sidecar.dispatcher.engine_wait_s = 0.0
        assert (await waiting).header("x-fairserve-refused-reason") == "engine_unavailable"


# -- an engine that refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "content"), [(CHAT, FULL), (CHAT, SCALING), ("/v1/messages", FULL_ANTHROPIC)]
)
async def test_call_that_the_engine_turns_away_goes_again(engine, sidecar, target, content):
    engine.behaviour = refuses(2, content)
    answer = await ask(sidecar.data_address, KEY_A, {"max_tokens": 4}, target)
    assert answer.status == 200
    assert len(engine.completions) == 3
    assert len({seen.body for seen in engine.completions}) == 1
    assert (count(sidecar, "completed"), count(sidecar, "failed")) == (1, None)
    assert tokens(sidecar, "output") == 4
    text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_engine_refusals_total") == 2
    assert metric(text, "fairserve_service_total", tenant="a") == pytest.approx(
        sidecar.scheduler.dump(0.0)["tenants"][0]["service"]
    )


async def test_engine_that_always_refuses_is_asked_a_few_times_and_then_has_the_word(engine, sidecar):
    sidecar.proxy.first_pause_s = 0.001
    engine.behaviour = refuses(100, FULL, X_Mine="1")
    direct = await ask(engine.port, KEY_A, {})
    proxied = await ask(sidecar.data_address, KEY_A, {})
    assert (proxied.status, proxied.headers, proxied.body) == (503, direct.headers, direct.body)
    assert len(engine.completions) == 1 + 1 + MOST_TRIES
    assert count(sidecar, "failed") == 1
    assert sidecar.scheduler.dump(0.0)["tenants"][0]["service"] == 0.0


@pytest.mark.parametrize(
    ("target", "asked", "content"),
    [
        (CHAT, {}, COMPUTED),
        (CHAT, {}, {"error": {"message": 5}}),
        (CHAT, {}, ["x" * 10_000]),
        (CHAT, {"use_beam_search": True, "n": 1}, FULL),
        (CHAT, {"n": 2}, FULL),
        ("/v1/completions", {"prompt": ["one", "two"]}, FULL),
        ("/v1/responses", {"input": "hi"}, FULL),
        ("/v1/embeddings", {"input": "hi"}, FULL),
    ],
)
async def test_what_may_have_been_computed_is_never_sent_again(engine, sidecar, target, asked, content):
    engine.behaviour = refuses(1, content)
    answer = await ask(sidecar.data_address, KEY_A, asked, target)
    assert (answer.status, answer.fields) == (503, content)
    assert len(engine.completions) == 1


async def test_engine_that_breaks_off_its_refusal_has_failed(engine, sidecar):
    async def half(seen: Seen, reply: Reply) -> None:
        await reply.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 99\r\n\r\n{")
        reply.writer.transport.abort()

    engine.behaviour = half
    answer = await ask(sidecar.data_address, KEY_A, {})
    assert (answer.status, answer.fields["error"]["code"]) == (502, "engine_broken")
    assert len(engine.completions) == 1


async def test_client_that_leaves_while_its_call_waits_again_is_gone(engine, sidecar):
    engine.behaviour = refuses(1, FULL, Retry_After="9")
    async with await Client.connect(sidecar.data_address) as client:
        client.call(KEY_A, {})
        await eventually(lambda: sidecar.metrics.engine_refusals, "the engine has refused")
        assert sidecar.scheduler.queued == 1
    await eventually(lambda: sidecar.scheduler.queued == 0, "it left the queue")
    assert (count(sidecar, "cancelled"), len(engine.completions)) == (1, 1)


async def test_engine_with_less_room_than_the_window_serves_everybody_in_order(tmp_path, engine):
    """vLLM's `--max-num-queued-reqs` below what the window would try."""
    room, inside, order = 2, 0, []

    async def bounded(seen: Seen, reply: Reply) -> None:
        nonlocal inside
        if inside >= room:
            await refuses(1, FULL)(seen, reply)
            return
        inside += 1
        order.append(seen.fields["number"])
        await asyncio.sleep(0.02)
        inside -= 1
        await answer_at_once(seen, reply)

    engine.behaviour = bounded
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        sidecar.proxy.first_pause_s = 0.01
        calls = []
        for number in range(12):
            calls.append(asyncio.create_task(ask(sidecar.data_address, KEY_A, {"number": number})))
            await eventually(lambda: sidecar.dispatcher._last_id == len(calls), "it has come")
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        assert sidecar.metrics.engine_refusals > 0
        assert sidecar.dispatcher.window.size <= 4
        assert tokens(sidecar, "output") == 12 * 3
    assert sorted(order) == list(range(12))
    assert all(abs(place - number) <= 3 for place, number in enumerate(order))


# -- an engine that orders by priority -------------------------------------------------------------------


async def test_engine_is_told_whose_call_is_first(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document(), engine_priority=True) as sidecar:
        body = b'{ "max_tokens" : 5 }'
        for key in (KEY_A, KEY_A, KEY_B):
            assert (await ask(sidecar.data_address, key, body)).status == 200
        await ask(sidecar.data_address, KEY_A, {"max_tokens": 3}, "/v1/messages")
    first, second, other, message = engine.completions
    assert first.body.startswith(b'{ "max_tokens" : 5')
    places = [seen.fields["priority"] for seen in (first, second, other)]
    assert places[0] < places[1], "the more it had, the later"
    assert [int(seen.header("x-vllm-priority") or -1) for seen in (first, second, other)] == places
    assert "priority" not in message.fields, "Anthropic's API has no such field"
    assert int(message.header("x-vllm-priority") or -1) > places[1]


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_callers_own_priority_gives_way_to_ours(tmp_path, engine, trusted):
    identity = {**document().identity.model_dump(), "trusted_proxies": ["127.0.0.0/8"] if trusted else []}
    config = document(identity=identity)
    async with running_sidecar(tmp_path, engine, config, engine_priority=True) as sidecar:
        await ask(sidecar.data_address, KEY_A, {"priority": -9}, x_vllm_priority="-9")
    (seen,) = engine.completions
    assert seen.fields["priority"] >= 0
    headers = [value for name, value in seen.headers if name.lower() == "x-vllm-priority"]
    assert headers == [str(seen.fields["priority"])]


async def test_what_is_no_object_is_left_to_the_engine(tmp_path, engine):
    async with running_sidecar(tmp_path, engine, document(), engine_priority=True) as sidecar:
        for body in (b"{broken}", b"[1]", b""):
            await ask(sidecar.data_address, KEY_A, body)
    assert [seen.body for seen in engine.completions] == [b"{broken}", b"[1]", b""]


async def test_without_the_flag_nothing_is_said(engine, sidecar):
    await ask(sidecar.data_address, KEY_A, {})
    (seen,) = engine.completions
    assert "priority" not in seen.fields
    assert seen.header("x-vllm-priority") is None
