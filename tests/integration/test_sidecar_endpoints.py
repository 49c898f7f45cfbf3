"""Every kind of call that spends tokens, through a real sidecar, with the clients that people use."""

from __future__ import annotations

import asyncio
import json
import logging

import anthropic
import openai
import pytest

from fairserve.sidecar.options import Limits
from fairserve.sidecar.service import Sidecar
from tests.fakes.engine import FakeEngine, Reply, Seen, event, message_at_once, respond_at_once
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    Client,
    ask,
    document,
    eventually,
    metric,
    running_sidecar,
)

AUDIO = "/v1/audio/transcriptions"


def openai_client(sidecar: Sidecar, key: str = KEY_A, **options) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"http://{sidecar.data_address}/v1", **options)


def anthropic_client(sidecar: Sidecar, key: str = KEY_A, **options) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=key, base_url=f"http://{sidecar.data_address}", **options)


def tokens(sidecar: Sidecar, tenant: str = "a") -> tuple[float | None, float | None, float | None]:
    """Input, cached and output tokens that a tenant was charged for."""
    text = sidecar.metrics.exposition().decode()
    kinds = ("input", "cached", "output")
    found = [metric(text, "fairserve_tokens_total", tenant=tenant, kind=kind) for kind in kinds]
    return found[0], found[1], found[2]


async def test_response(engine, sidecar):
    async with openai_client(sidecar) as client:
        answer = await client.responses.create(model="m", input="hi", max_output_tokens=5, user="u")
    assert answer.output_text == "x" * 5
    assert tokens(sidecar) == (6, 4, 5)


async def test_response_as_a_stream(engine, sidecar):
    async with openai_client(sidecar) as client:
        stream = await client.responses.create(model="m", input="hi", max_output_tokens=5, stream=True)
        kinds = [part.type async for part in stream]
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 5
    assert kinds[-1] == "response.completed"
    assert tokens(sidecar) == (6, 4, 5)


async def test_message(engine, sidecar):
    async with anthropic_client(sidecar) as client:
        answer = await client.messages.create(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )
    assert answer.usage.output_tokens == 5
    assert tokens(sidecar) == (6, 4, 5)


async def test_message_as_a_stream(engine, sidecar):
    async with (
        anthropic_client(sidecar) as client,
        client.messages.stream(
            model="m",
            max_tokens=5,
            messages=[{"role": "user", "content": "hi"}],
            metadata={"user_id": "u"},
        ) as stream,
    ):
        assert "".join([text async for text in stream.text_stream]) == "x" * 5
    assert tokens(sidecar) == (6, 4, 5)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/responses", {"input": "hi", "stream": True, "max_output_tokens": 9}),
        ("/v1/messages", {"messages": [], "stream": True, "max_tokens": 9}),
    ],
)
async def test_stream_equals_the_engines(engine, sidecar, target, body):
    direct = await ask(engine.port, KEY_A, body, target)
    proxied = await ask(sidecar.data_address, KEY_A, body, target)

    def without_id(data: bytes) -> list[bytes]:
        return [line for line in data.splitlines() if b'"id":' not in line]

    assert without_id(proxied.body) == without_id(direct.body)
    assert engine.seen[0].body == engine.seen[1].body


@pytest.mark.parametrize(
    ("whole", "target", "body", "events", "cached"),
    [
        (respond_at_once, "/v1/responses", {"stream": True, "max_output_tokens": 7}, 4 + 7, 0),
        # The beginning of the stream says what the prompt is.
        (message_at_once, "/v1/messages", {"stream": True, "max_tokens": 7}, 2 + 7, 4),
    ],
)
async def test_canceller_pays_for_what_was_streamed(engine, sidecar, whole, target, body, events, cached):
    class Cut(Reply):
        async def chunk(self, data: bytes) -> None:
            nonlocal events
            if events == 0:
                await asyncio.Event().wait()
            events -= 1
            await super().chunk(data)

    async def stall(seen: Seen, reply: Reply) -> None:
        await whole(seen, Cut(reply.writer))

    engine.behaviour = stall
    call = asyncio.create_task(ask(sidecar.data_address, KEY_A, body, target))
    await eventually(lambda: events == 0, "all tokens are out")
    await eventually(lambda: _seen_output(sidecar) == 7, "the sidecar has counted them")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: sidecar.scheduler.running == 0, "the call is settled")
    assert tokens(sidecar)[1:] == (cached, 7)


def _seen_output(sidecar: Sidecar) -> int:
    return sum(call.output_so_far(0.0) for call in sidecar.dispatcher._running.values())


async def test_embeddings_cost_their_prompts(engine, sidecar):
    async with openai_client(sidecar) as client:
        answer = await client.embeddings.create(
            model="m", input=["a", "b", "c"], encoding_format="float", user="u"
        )
    assert len(answer.data) == 3
    assert tokens(sidecar) == (30, 0, 0)


@pytest.mark.parametrize(
    "target", ["/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"]
)
async def test_prompts_alone_are_scheduled_on_every_path(engine, sidecar, target):
    body = {"query": "q", "documents": ["d"], "input": "x"}
    assert (await ask(sidecar.data_address, "wrong", body, target)).status == 401
    assert (await ask(sidecar.data_address, KEY_A, body, target)).status == 200
    assert tokens(sidecar) == (10, 0, 0)


async def test_usage_of_raw_vectors_is_in_a_header(engine, sidecar):
    async def vectors(seen: Seen, reply: Reply) -> None:
        metadata = json.dumps({"data": [], "usage": {"prompt_tokens": 12, "total_tokens": 12}})
        head = f"HTTP/1.1 200 OK\r\nmetadata: {metadata}\r\ncontent-length: 4\r\n\r\n"
        await reply.send(head.encode() + b"\x00\x01\x02\x03")

    engine.behaviour = vectors
    await ask(sidecar.data_address, KEY_A, {"input": "x", "encoding_format": "bytes"}, "/v1/embeddings")
    assert tokens(sidecar) == (12, 0, 0)


@pytest.mark.parametrize("target", ["/v1/responses", "/v1/messages", "/v1/systemone", "/cohere/v2/chat"])
async def test_clients_objects_in_an_answer_do_not_pose_as_its_usage(engine, sidecar, target):
    async def repeat(seen: Seen, reply: Reply) -> None:
        real = {"input_tokens": 50, "output_tokens": 20}
        answer = {"tools": [seen.fields], "usage": real, "input_messages": [seen.fields]}
        await reply.whole(200, json.dumps(answer, separators=(",", ":")).encode())

    engine.behaviour = repeat
    body = {"usage": {"input_tokens": 0, "output_tokens": 0}}
    await ask(sidecar.data_address, KEY_A, body, target)
    assert tokens(sidecar) == (50, 0, 20)


async def test_sound_reaches_the_engine_byte_for_byte_and_costs_by_its_size(engine, sidecar):
    sound = bytes(range(256)) * 375  # 96,000 bytes: 300 tokens, and 100 bytes of answer
    async with openai_client(sidecar) as client:
        answer = await client.audio.transcriptions.create(model="m", file=("a.wav", sound))
    assert answer.text == "x" * 100
    (seen,) = engine.seen
    assert sound in seen.body
    charged = tokens(sidecar)
    assert charged[0] == round(len(seen.body) / 320)
    assert 25 <= (charged[2] or 0) <= 50


async def test_sound_as_a_stream_costs_its_events(engine, sidecar):
    async def chunks(seen: Seen, reply: Reply) -> None:
        await reply.begin_events()
        for _ in range(6):
            await reply.chunk(event({"object": "transcription.chunk", "choices": [{"delta": {}}]}))
        await reply.end()

    engine.behaviour = chunks
    body = b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b--\r\n'
    answer = await ask(
        sidecar.data_address, KEY_A, body, AUDIO, content_type="multipart/form-data; boundary=b"
    )
    assert answer.body.count(b"\n\n") == 6
    assert tokens(sidecar)[2] == 6


async def test_prompts_times_answers_is_what_a_completion_may_cost(tmp_path, engine):
    go_on = asyncio.Event()

    async def wait(seen: Seen, reply: Reply) -> None:
        await go_on.wait()
        await reply.whole(200, b"{}")

    engine.behaviour = wait
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        body = {"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 50}
        call = asyncio.create_task(ask(sidecar.data_address, KEY_A, body, "/v1/completions"))
        await eventually(lambda: sidecar.dispatcher._running, "the call runs")
        (running,) = sidecar.dispatcher._running.values()
        assert running.call.max_output_tokens == 300
        go_on.set()
        await call


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_only_post_to_exactly_responses_is_scheduled(engine, sidecar, method):
    for verb, target in [(method, "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel")]:
        async with await Client.connect(sidecar.data_address) as client:
            client.send(verb, target, None, b"{}" if verb == "POST" else None)
            assert (await client.answer()).fields == {"target": target}


async def test_token_count_passes_without_a_key(engine, sidecar):
    assert (await ask(sidecar.data_address, "none", {}, "/v1/messages/count_tokens")).status == 200


async def test_work_behind_an_answer_is_refused(engine, sidecar):
    refused = await ask(sidecar.data_address, KEY_A, {"background": True}, "/v1/responses")
    assert (refused.status, refused.fields["error"]["param"]) == (400, "background")
    assert engine.seen == []


async def test_place_in_the_engines_queue_is_only_a_trusted_clients_to_choose(tmp_path, engine):
    body = b'{"input":"x", "priority":-5, "cache_salt":"theirs"}'
    headers = {"x_vllm_priority": "-5"}
    async with running_sidecar(tmp_path, engine, document()) as sidecar:
        for target in ("/v1/responses", "/v1/embeddings", "/v1/chat/completions"):
            await ask(sidecar.data_address, KEY_A, body, target, **headers)
            assert engine.seen[-1].body == b'{"input":"x"}'
            assert engine.seen[-1].header("x-vllm-priority") is None
    identity = document().identity.model_copy(update={"trusted_proxies": ("127.0.0.0/8",)})
    async with running_sidecar(tmp_path, engine, document(identity=identity.model_dump())) as sidecar:
        await ask(sidecar.data_address, KEY_A, body, "/v1/responses", **headers)
        assert engine.seen[-1].body == body
        assert engine.seen[-1].header("x-vllm-priority") == "-5"


async def test_refusals_on_messages_have_anthropics_shape(tmp_path, engine):
    limits = Limits(max_body_bytes=1000, connect_timeout_s=0.1)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        async with anthropic_client(sidecar, "wrong", max_retries=0) as client:
            asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                await client.messages.create(**asked)
            assert unknown.value.body == {
                "type": "error",
                "error": {"type": "authentication_error", "message": "No valid API key was given."},
            }
        large = await ask(sidecar.data_address, KEY_A, b"x" * 2000, "/v1/messages")
        assert (large.status, large.fields["error"]["type"]) == (413, "request_too_large")
        await engine.close()
        await eventually(lambda: sidecar.dispatcher.held, "the sidecar knows that the engine is gone")
        away = await ask(sidecar.data_address, KEY_A, {}, "/v1/messages/count_tokens")
        assert (away.status, away.fields["error"]["type"]) == (503, "overloaded_error")
        await engine.listen(engine.port)


async def test_both_sdks_return_by_themselves_when_their_limit_allows_it(tmp_path, engine):
    tenants = [{"name": "a"}, {"name": "b", "per_user": {"count": 1, "window_s": 1}}]
    async with running_sidecar(tmp_path, engine, document(tenants=tenants)) as sidecar:
        sidecar.renew_overload(armed=True, lease_s=600, reason="test")
        async with openai_client(sidecar, KEY_B) as oai, anthropic_client(sidecar, KEY_B) as ant:

            async def respond() -> None:
                for _ in range(2):
                    await oai.responses.create(model="m", input="hi", user="one", max_output_tokens=2)

            async def message() -> None:
                for _ in range(2):
                    await ant.messages.create(
                        model="m",
                        max_tokens=2,
                        messages=[{"role": "user", "content": "hi"}],
                        metadata={"user_id": "two"},
                    )

            await asyncio.gather(respond(), message())
        text = sidecar.metrics.exposition().decode()
    assert metric(text, "fairserve_requests_total", tenant="b", outcome="refused") >= 2
    assert metric(text, "fairserve_requests_total", tenant="b", outcome="completed") == 4


async def test_both_sdks_return_by_themselves_when_the_engine_is_back(tmp_path, engine):
    limits = Limits(connect_timeout_s=0.1)
    async with running_sidecar(tmp_path, engine, document(), limits=limits) as sidecar:
        await engine.close()
        await eventually(lambda: sidecar.dispatcher.held, "the sidecar knows that the engine is gone")
        asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        async with openai_client(sidecar) as oai, anthropic_client(sidecar) as ant:
            calls = asyncio.gather(oai.models.list(), ant.messages.count_tokens(**asked))
            await asyncio.sleep(0.5)  # both have been told 503
            assert not calls.done()
            await engine.listen(engine.port)
            await calls
    assert {seen.target for seen in engine.seen} == {"/v1/models", "/v1/messages/count_tokens"}


async def test_chain_of_responses_is_one_interaction(tmp_path, engine):
    tenants = [{"name": "a"}, {"name": "b", "per_user": {"count": 1, "window_s": 600}}]
    async with running_sidecar(tmp_path, engine, document(tenants=tenants)) as sidecar:
        sidecar.renew_overload(armed=True, lease_s=600, reason="test")
        async with openai_client(sidecar, KEY_B, max_retries=0) as client:
            first = await client.responses.create(model="m", input="hi")
            stream = await client.responses.create(
                model="m", input="hi", previous_response_id=first.id, stream=True
            )
            second = [part async for part in stream][-1].response
            await client.responses.create(model="m", input="hi", previous_response_id=second.id)
            for forged in ("resp_forged", None):
                with pytest.raises(openai.RateLimitError):
                    await client.responses.create(model="m", input="hi", previous_response_id=forged)
            # The id is not another user's to go on from.
            await client.responses.create(model="m", input="hi", user="other")
            with pytest.raises(openai.RateLimitError):
                await client.responses.create(
                    model="m", input="hi", previous_response_id=second.id, user="other"
                )


async def test_paths_that_nobody_knows_are_named_once(tmp_path, engine, caplog):
    engine.described = ("/v1/dreams", "/v1/messages", "/tokenize")
    with caplog.at_level(logging.WARNING, "fairserve.sidecar.watch"):
        async with running_sidecar(tmp_path, engine, document()) as sidecar:
            await eventually(lambda: sidecar.watch.unknown_paths, "the engine's paths are read")
            text = sidecar.metrics.exposition().decode()
            assert metric(text, "fairserve_unknown_paths", path="/v1/dreams") == 1
            assert text.count("fairserve_unknown_paths{") == 1
            # They may spend tokens: nobody gets there without a key, and what they cost is charged.
            assert (await ask(sidecar.data_address, "none", {}, "/v1/dreams")).status == 401
            assert (await ask(sidecar.data_address, KEY_A, {}, "/prefix/v1/dreams")).status == 200
            text = sidecar.metrics.exposition().decode()
            assert metric(text, "fairserve_requests_total", tenant="a", outcome="completed") == 1
            # Gone and back with one more: it is asked anew.
            port, engine.described = engine.port, ("/v1/dreams", "/v1/more")
            await engine.close()
            await eventually(lambda: sidecar.watch.problem is not None, "the sidecar knows that it is gone")
            await engine.listen(port)
            await eventually(lambda: len(sidecar.watch.unknown_paths) == 2, "the paths are read again")
    named = [record.getMessage() for record in caplog.records if "not known here" in record.getMessage()]
    assert len(named) == 2
    assert "/v1/dreams" in named[0]
    assert "/v1/messages" not in named[0]


async def test_engine_that_does_not_describe_itself_is_let_be(tmp_path):
    async with FakeEngine(described=None) as engine, running_sidecar(tmp_path, engine, document()) as sidecar:
        await eventually(lambda: sidecar.watch._questions == 0, "it was asked")
        assert sidecar.watch.unknown_paths == ()
        assert sidecar.obstacles() == []
