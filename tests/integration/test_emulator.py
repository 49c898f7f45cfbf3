"""The engine emulator over real sockets, as clients and the sidecar see it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairserve.local.load import ClientClass, Load, summarise
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port, poll

ROOT = Path(__file__).parents[2]
ENV = {"PYTHONPATH": f"{ROOT / 'serving'}{os.pathsep}{ROOT / 'operator'}"}


@contextmanager
def running_emulator(folder: Path, *options: str) -> Iterator[tuple[Process, str]]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "fairserve.cli", "emulator", "--listen", address, *options]
    with Process("emulator", command, folder / "emulator.log", env=ENV) as process:
        process.wait_until(lambda: Client(f"http://{address}").answers("/health"), 60, "health")
        yield process, f"http://{address}"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    with running_emulator(tmp_path_factory.mktemp("emulator"), "--max-model-len", "2048") as running:
        yield running


@pytest.fixture
def url(emulator):
    return emulator[1]


@pytest.fixture
def sdk(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


HELLO = [{"role": "user", "content": "hello there"}]


def metric(url: str, name: str) -> float:
    families = text_string_to_metric_families(Client(url).call("GET", "/metrics"))
    return sum(s.value for family in families for s in family.samples if s.name == name)


def test_it_says_what_it_is(emulator):
    assert "emulator: no model" in emulator[0].log.read_text()


def test_chat(sdk):
    answer = sdk.chat.completions.create(model="emulated", messages=HELLO, max_tokens=20)
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content.startswith("This text comes from fairserve's engine emulator")
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20


def test_the_stream_says_the_same(sdk):
    whole = sdk.chat.completions.create(model="emulated", messages=HELLO, max_tokens=25)
    stream = sdk.chat.completions.create(
        model="emulated", messages=HELLO, max_tokens=25, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert len(chunks) > 10, "tokens come as they are made"


def test_completions_streamed_and_not(sdk):
    whole = sdk.completions.create(model="emulated", prompt="once upon", max_tokens=9)
    parts = list(sdk.completions.create(model="emulated", prompt="once upon", max_tokens=9, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.usage.completion_tokens == 9
    assert all(part.usage is None for part in parts)
    assert sdk.completions.create(model="emulated", prompt=[1, 2, 3]).usage.prompt_tokens == 3


def test_an_answer_ends_by_itself_unless_told_otherwise(sdk):
    ends = sdk.chat.completions.create(model="emulated", messages=HELLO, max_tokens=1000)
    assert ends.choices[0].finish_reason == "stop"
    natural = ends.usage.completion_tokens
    longer = sdk.chat.completions.create(
        model="emulated", messages=HELLO, max_tokens=300, extra_body={"ignore_eos": True}
    )
    assert longer.usage.completion_tokens == 300
    least = sdk.chat.completions.create(
        model="emulated", messages=HELLO, max_tokens=400, extra_body={"min_tokens": natural + 5}
    )
    assert least.usage.completion_tokens == natural + 5


def test_a_stop_string_cuts_the_text(sdk):
    arguments = {"model": "emulated", "messages": HELLO, "max_tokens": 40, "stop": "not from"}
    whole = sdk.chat.completions.create(**arguments)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.content == "This text comes from fairserve's engine emulator, "
    chunks = sdk.chat.completions.create(**arguments, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content


def test_an_unknown_model_is_404_in_vllms_shape(sdk):
    with pytest.raises(openai.NotFoundError) as error:
        sdk.chat.completions.create(model="other", messages=HELLO)
    assert error.value.body == {
        "message": "The model `other` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "n": 2}, "n:"),
        ({"messages": HELLO, "logprobs": True}, "logprobs"),
        ({"messages": HELLO, "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": HELLO, "max_tokens": 4000}, "maximum context length is 2048"),
    ],
)
async def test_what_it_cannot_do_is_400_and_named(url, body, names):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json={"model": "emulated", **body}) as answer,
    ):
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert names in error["message"]
    assert (error["type"], error["code"]) == ("BadRequestError", 400)


async def test_a_body_that_is_no_json_is_400(url):
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", data=b"{") as answer:
        assert answer.status == 400


def test_models_version_and_metrics(sdk, url):
    (card,) = sdk.models.list().data
    assert (card.id, card.model_dump()["max_model_len"]) == ("emulated", 2048)
    assert "emulator" in Client(url).json("GET", "/version")["version"]
    before = metric(url, "vllm:generation_tokens_total")
    sdk.completions.create(model="emulated", prompt="x", max_tokens=7)
    assert metric(url, "vllm:generation_tokens_total") == before + 7
    text = Client(url).call("GET", "/metrics")
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f'vllm:{name}{{engine="0",model_name="emulated"}} 0.0' in text
    for name in ("num_preemptions_total", "prompt_tokens_total", "request_success_total"):
        assert f"vllm:{name}{{" in text
    assert 'num_gpu_blocks="4096"' in text


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_its_sequence(url, stream):
    body = {"model": "emulated", "messages": HELLO, "max_tokens": 2000, "ignore_eos": True, "stream": stream}

    async def whole_call() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=body) as answer,
        ):
            await answer.read()

    call = asyncio.create_task(whole_call())
    await asyncio.to_thread(poll, lambda: metric(url, "vllm:num_requests_running") == 1, 10, "a start")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.to_thread(poll, lambda: metric(url, "vllm:num_requests_running") == 0, 10, "the end")
    assert metric(url, "vllm:kv_cache_usage_perc") == 0.0


def test_a_small_pool_preempts_and_everything_completes(tmp_path):
    sizes = ("--kv-tokens", "512", "--max-model-len", "256", "--max-num-seqs", "8", "--step-ms", "1")
    with running_emulator(tmp_path, *sizes) as (_, url), ThreadPoolExecutor(8) as pool:

        def call(number: int) -> int:
            body = {"prompt": f"{number:04}" * 40, "max_tokens": 150, "ignore_eos": True}
            return int(Client(url).json("POST", "/v1/completions", body)["usage"]["completion_tokens"])

        assert list(pool.map(call, range(8))) == [150] * 8
        assert metric(url, "vllm:num_preemptions_total") > 0


async def test_many_streams_at_once_leave_the_machine_to_others(emulator, url):
    """48 streams at more than a thousand tokens a second take well under one core."""
    process, _ = emulator
    clients = ClientClass("many", api_key="any", clients_per_user=48, prompt_tokens=20, max_tokens=100)
    async with Load(url, "emulated") as load:
        load.start([clients])
        await _calls(load, 48)
        cpu_before, tokens_before = _cpu_s(process.pid), metric(url, "vllm:generation_tokens_total")
        await _calls(load, 48 * 3)
        cpu_s, tokens = (
            _cpu_s(process.pid) - cpu_before,
            metric(url, "vllm:generation_tokens_total") - tokens_before,
        )
    # Measured: 60 to 90 µs of CPU per token on the machine this was written on.
    print(f"{cpu_s / tokens * 1e6:.0f} us of CPU per token, {tokens:.0f} tokens")
    assert cpu_s / tokens < 300e-6
    assert summarise(load.records).failed_calls == 0


async def _calls(load: Load, count: int) -> None:
    def completed() -> int:
        return sum(record.completed for record in load.records)

    await asyncio.to_thread(poll, lambda: completed() >= count, 60, f"{count} calls")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--kv-tokens", "16"], "kv_tokens must hold at least one sequence"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
    ],
)
def test_bad_options_are_named(tmp_path, options, names):
    command = [sys.executable, "-m", "fairserve.cli", "emulator", *options]
    process = Process("emulator", command, tmp_path / "log", env=ENV | {"COLUMNS": "200"}).start()
    poll(lambda: not process.alive, 30, "the end")
    assert names in process.log.read_text()
    process.stop()


def test_continuous_usage(url):
    body = {
        "prompt": "x",
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    lines = Client(url).call("POST", "/v1/completions", body).split("\n\n")
    assert lines[-2] == "data: [DONE]"
    counts = [json.loads(line[6:])["usage"]["completion_tokens"] for line in lines[:-2]]
    assert counts == sorted(counts)
    assert counts[-1] == 3
