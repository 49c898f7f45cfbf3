"""A client can't tell the sidecar from vLLM: every endpoint of a real vLLM, asked directly and through it.

Bytes are compared, status, headers and bodies. Left out are a connection's own headers, dates, ids and
times. The engine joins tokens in one event when it is slow to send, so a stream may be asked for again.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.both_ways import Answer, answers, in_chunks, request, send, timeless
from tests.integration.sidecars import KEY_A, process
from tests.parts.loopback import Client
from tests.parts.process import free_port, poll
from tests.parts.vllm import MODEL, Vllm

_TRIES = 10
_HELLO = [{"role": "user", "content": "hello"}]
_CHAT = {"model": MODEL, "messages": _HELLO, "max_tokens": 3, "temperature": 0, "seed": 1}
_TEXT = {"model": MODEL, "prompt": "hello", "max_tokens": 3, "temperature": 0, "seed": 1}
_RESPONSE = {"model": MODEL, "input": "hello", "max_output_tokens": 3, "temperature": 0}
_USAGE = {"include_usage": True}
_LONG = [{"role": "user", "content": "x y " * 3000}]
_FORM = {"Content-Type": "multipart/form-data; boundary=b"}
_CORS = {"Origin": "http://a", "Access-Control-Request-Method": "POST"}


@dataclass
class BothWays:
    """The ports of an engine and of the sidecar before it."""

    direct: int
    proxied: int

    def assert_same(self, data: bytes, *methods: str) -> list[Answer]:
        """Send `data` both ways and compare the answers to the requests of these methods in it."""
        for _ in range(_TRIES):
            expected = answers(send(self.direct, data), *methods)
            found = answers(send(self.proxied, data), *methods)
            if found == expected:
                break
        assert found == expected
        return found


@pytest.fixture(scope="module")
def ways(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    port, folder = free_port(), tmp_path_factory.mktemp("sidecar")
    with process(folder, vllm.port, port) as sidecar:
        through = Client(f"http://127.0.0.1:{port}")
        sidecar.wait_until(lambda: through.answers("/health"), 60.0, "/health through it")
        yield BothWays(vllm.port, port)


def post(path: str, body: object, **headers: str) -> bytes:
    return request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})


def chat(**changes: Any) -> bytes:
    return post("/v1/chat/completions", _CHAT | changes)


def text(**changes: Any) -> bytes:
    return post("/v1/completions", _TEXT | changes)


GENERATION = {
    "chat": chat(),
    "chat with two answers": chat(n=2, temperature=1),
    "chat with logprobs": chat(logprobs=True, top_logprobs=2),
    "completion": text(),
    "completion of a list": text(prompt=["a", "b"], n=2, temperature=1),
    "completion of tokens": text(prompt=[5, 6, 7]),
    "completion of lists of tokens": text(prompt=[[5, 6], [7]]),
    "completion with echo and logprobs": text(echo=True, logprobs=2),
    "response": post("/v1/responses", _RESPONSE),
    "message": post("/v1/messages", _CHAT),
    "batch": post("/v1/chat/completions/batch", _CHAT | {"messages": [_HELLO, _HELLO]}),
    "scoring": post(
        "/generative_scoring", {"model": MODEL, "query": "x", "items": ["y"], "label_token_ids": [5, 6]}
    ),
    "invocation": post("/invocations", _CHAT),
    "UTF-16": post("/v1/chat/completions", json.dumps(_CHAT).encode("utf-16")),
    "byte order mark": post("/v1/chat/completions", b"\xef\xbb\xbf" + json.dumps(_CHAT).encode()),
    "two equal keys": post("/v1/chat/completions", json.dumps(_CHAT).encode()[:-1] + b',"max_tokens":2}'),
    "own id": post("/v1/completions", _TEXT, X_Request_Id="mine"),
    "compression wanted": post("/v1/completions", _TEXT, Accept_Encoding="gzip"),
    "query": post("/v1/completions?a=b&c=%20", _TEXT),
    "absolute target": post("http://pool.test/v1/completions", _TEXT),
    "chunks": in_chunks(text()),
}
STREAMS = {
    "chat": chat(stream=True),
    "chat, lenient": chat(stream="true"),
    "chat with usage": chat(stream=True, stream_options=_USAGE),
    "chat with usage throughout": chat(stream=True, stream_options=_USAGE | {"continuous_usage_stats": True}),
    "chat without usage": chat(stream=True, stream_options={"include_usage": False}),
    "chat in UTF-16": post("/v1/chat/completions", json.dumps(_CHAT | {"stream": True}).encode("utf-16-le")),
    "completion": text(stream=True),
    "completion with usage": text(stream=True, stream_options=_USAGE),
    "completion with echo and logprobs": text(stream=True, echo=True, logprobs=2),
    "response": post("/v1/responses", _RESPONSE | {"stream": True}),
    "message": post("/v1/messages", _CHAT | {"stream": True}),
}
FREE = {
    "models": request("GET", "/v1/models"),
    "health": request("GET", "/health"),
    "version": request("GET", "/version"),
    "load": request("GET", "/load"),
    "ping": request("GET", "/ping"),
    "description": request("GET", "/openapi.json"),
    "pages": request("GET", "/docs"),
    "origin": request("GET", "/v1/models", None, {"Origin": "http://a"}),
    "without Host": b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n",
    "old": request("GET", "/v1/models", version="HTTP/1.0"),
    "tokens": post("/tokenize", {"model": MODEL, "prompt": "hello"}),
    "text of tokens": post("/detokenize", {"model": MODEL, "tokens": [5, 6]}),
    "count": post("/v1/messages/count_tokens", {"model": MODEL, "messages": _HELLO}),
}
ERRORS = {
    "embeddings": post("/v1/embeddings", {"model": MODEL, "input": "x"}),
    "pooling": post("/pooling", {"model": MODEL, "input": "x"}),
    "classes": post("/classify", {"model": MODEL, "input": "x"}),
    "scores": post("/v1/score", {"model": MODEL, "text_1": "x", "text_2": "y"}),
    "ranks": post("/rerank", {"model": MODEL, "query": "x", "documents": ["y"]}),
    "audio": request("POST", "/v1/audio/transcriptions", b"--b--\r\n", _FORM),
    "unknown path": request("GET", "/nope?x=1"),
    "unknown path to post to": post("/v1/nope", {}),
    "unknown response": request("GET", "/v1/responses/resp_x"),
    "wrong method": request("GET", "/v1/chat/completions"),
    "wrong method with a body": request("PUT", "/v1/chat/completions", {}),
    "options": request("OPTIONS", "/v1/chat/completions"),
    "preflight": request("OPTIONS", "/v1/chat/completions", None, _CORS),
    "redirection": request("GET", "/v1/models/?a=b"),
    "bad JSON": post("/v1/chat/completions", b"{broken"),
    "no body": post("/v1/chat/completions", b""),
    "null": post("/v1/chat/completions", b"null"),
    "list": post("/v1/chat/completions", b"[]"),
    "bad UTF-8": post("/v1/chat/completions", b'{"model":"\xff"}'),
    "no JSON": post("/v1/chat/completions", _CHAT, Content_Type="text/plain"),
    "gzip": post("/v1/chat/completions", gzip.compress(json.dumps(_CHAT).encode()), Content_Encoding="gzip"),
    "bad field": chat(max_tokens="x"),
    "bad stream options": chat(stream=True, stream_options=[]),
    "stream options of no stream": chat(stream_options=_USAGE),
    "wrong model": chat(model="other"),
    "too long": chat(messages=_LONG),
    "too long to stream": chat(messages=_LONG, stream=True),
    "bad message": post("/v1/messages", {"model": MODEL}),
    "too long a message": post("/v1/messages", _CHAT | {"messages": _LONG}),
    "unknown previous response": post("/v1/responses", _RESPONSE | {"previous_response_id": "resp_x"}),
}
HEADS = ("/health", "/v1/models", "/docs", "/nope")


@pytest.mark.parametrize("name", GENERATION)
def test_generation_is_the_engines(ways, name):
    assert ways.assert_same(GENERATION[name], "POST")[0].status == 200


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_the_engines_event_for_event(ways, name):
    answer = ways.assert_same(STREAMS[name], "POST")[0]
    assert (b"content-type", b"text/event-stream; charset=utf-8") in answer.headers
    if "usage" not in name and "response" not in name and "message" not in name:
        assert b'"usage"' not in answer.body


@pytest.mark.parametrize("name", FREE)
def test_what_spends_no_tokens_is_the_engines(ways, name):
    assert ways.assert_same(FREE[name], FREE[name].split(b" ")[0].decode())[0].status == 200


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_engines(ways, name):
    assert ways.assert_same(ERRORS[name], ERRORS[name].split(b" ")[0].decode())[0].status >= 300


@pytest.mark.parametrize("path", HEADS)
def test_heads_are_the_engines(ways, path):
    ways.assert_same(request("HEAD", path), "HEAD")


def test_headers_and_query_reach_the_engine(ways):
    own = ways.assert_same(GENERATION["own id"], "POST")[0]
    assert b'"id":"cmpl-mine' in own.body
    redirection = ways.assert_same(ERRORS["redirection"], "GET")[0]
    assert (b"location", b"http://pool.test/v1/models?a=b") in redirection.headers


def test_a_hesitant_client_is_told_to_go_on(ways):
    hesitant = post("/v1/completions", _TEXT, Expect="100-continue")
    assert ways.assert_same(hesitant, "POST")[0].interim == 1


def test_pipelined_requests_are_answered_in_order(ways):
    first = request("GET", "/version", last=False)
    second = request("POST", "/v1/completions", _TEXT, last=False)
    found = ways.assert_same(first + second + in_chunks(text()), "GET", "POST", "POST")
    assert [answer.status for answer in found] == [200, 200, 200]


def test_an_old_client_gets_the_same_stream_without_chunks(ways):
    """vLLM's server sends it chunks all the same, which it can't read."""
    asked = _TEXT | {"stream": True}
    new, old = (request("POST", "/v1/completions", asked, version=f"HTTP/1.{n}") for n in (1, 0))
    for _ in range(_TRIES):
        expected = answers(send(ways.direct, new), "POST")
        received = send(ways.proxied, old)
        if answers(received, "POST") == expected:
            break
    assert answers(received, "POST") == expected
    assert b"transfer-encoding" not in received


def test_metrics_hold_all_of_the_engines(ways):
    def families(port: int) -> set[str]:
        lines = Client(f"http://127.0.0.1:{port}").call("GET", "/metrics").splitlines()
        return {line for line in lines if line.startswith("# ")}

    families(ways.direct)  # The first answers of an engine add families of their own.
    direct, proxied = families(ways.direct), families(ways.proxied)
    assert "# TYPE vllm:num_requests_running gauge" in direct
    assert direct <= proxied
    assert [line for line in proxied - direct if "fairserve" not in line] == []


def test_figure_of_what_waits_holds_what_waits_in_the_sidecar(ways):
    """What endpoint pickers and autoscalers read, while more calls come than a real vLLM takes."""

    def figures() -> dict[str, float]:
        families = text_string_to_metric_families(through.call("GET", "/metrics"))
        sums: Counter[str] = Counter()
        for sample in (sample for family in families for sample in family.samples):
            sums[sample.name] += sample.value
        return sums

    def shown() -> bool:
        seen = figures()
        waiting, inside = seen["vllm:num_requests_waiting"], seen["fairserve_engine_requests_waiting"]
        by_reason = seen["vllm:num_requests_waiting_by_reason"]
        return seen["fairserve_queue_requests"] > 5 and waiting - inside > 5 and by_reason == waiting

    through = Client(f"http://127.0.0.1:{ways.proxied}")
    calls = [text(max_tokens=100, ignore_eos=True)] * 48
    with ThreadPoolExecutor(len(calls)) as threads:
        answered = [threads.submit(send, ways.proxied, call) for call in calls]
        poll(shown, 60.0, "calls that wait in the sidecar")
        assert {answers(each.result(), "POST")[0].status for each in answered} == {200}
    assert figures()["vllm:num_requests_waiting"] == 0


@pytest.fixture
def openais(ways):
    """OpenAI's SDK, before the engine and before the sidecar."""
    with (
        openai.OpenAI(api_key=KEY_A, base_url=f"http://127.0.0.1:{ways.direct}/v1", max_retries=0) as direct,
        openai.OpenAI(
            api_key=KEY_A, base_url=f"http://127.0.0.1:{ways.proxied}/v1", max_retries=0
        ) as proxied,
    ):
        yield direct, proxied


@pytest.fixture
def anthropics(ways):
    """Anthropic's SDK, likewise."""
    with (
        anthropic.Anthropic(
            api_key=KEY_A, base_url=f"http://127.0.0.1:{ways.direct}", max_retries=0
        ) as direct,
        anthropic.Anthropic(
            api_key=KEY_A, base_url=f"http://127.0.0.1:{ways.proxied}", max_retries=0
        ) as proxied,
    ):
        yield direct, proxied


def assert_sdk_sees_the_same(clients, call):
    """`call(client)` gives what an SDK made of an answer: a model, or a list of a stream's."""

    def seen(client):
        made = call(client)
        models = made if isinstance(made, list) else [made]
        return timeless(json.dumps([model.model_dump() for model in models], separators=(",", ":")).encode())

    for _ in range(_TRIES):
        direct, proxied = (seen(client) for client in clients)
        if proxied == direct:
            break
    assert proxied == direct


def test_openais_sdk_sees_the_engine(openais):
    assert_sdk_sees_the_same(openais, lambda client: client.chat.completions.create(**_CHAT))
    assert_sdk_sees_the_same(
        openais, lambda client: list(client.chat.completions.create(**_CHAT, stream=True))
    )
    assert_sdk_sees_the_same(openais, lambda client: client.completions.create(**_TEXT))
    assert_sdk_sees_the_same(openais, lambda client: list(client.completions.create(**_TEXT, stream=True)))
    assert_sdk_sees_the_same(openais, lambda client: list(client.models.list()))


def test_openais_sdk_goes_on_from_a_response(openais):
    def chain(client):
        first = client.responses.create(**_RESPONSE)
        second = client.responses.create(**_RESPONSE, previous_response_id=first.id)
        third = list(client.responses.create(**_RESPONSE, previous_response_id=second.id, stream=True))
        return [first, second, client.responses.retrieve(second.id), *third]

    assert_sdk_sees_the_same(openais, chain)


def test_openais_sdk_raises_the_same_errors(openais):
    raised = []
    for client in openais:
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(**(_CHAT | {"model": "other"}))
        raised.append(error.value.body)
    assert raised[0] == raised[1]


def test_anthropics_sdk_sees_the_engine(anthropics):
    asked: dict[str, Any] = {"model": MODEL, "messages": _HELLO, "max_tokens": 3}
    asked["extra_body"] = {"temperature": 0}
    assert_sdk_sees_the_same(anthropics, lambda client: client.messages.create(**asked))
    assert_sdk_sees_the_same(anthropics, lambda client: list(client.messages.create(**asked, stream=True)))
    assert_sdk_sees_the_same(
        anthropics, lambda client: client.messages.count_tokens(model=MODEL, messages=_HELLO)
    )


def test_anthropics_sdk_raises_the_same_errors(anthropics):
    raised = []
    for client in anthropics:
        with pytest.raises(anthropic.NotFoundError) as error:
            client.messages.create(model="other", messages=_HELLO, max_tokens=3)
        raised.append(error.value.body)
    assert raised[0] == raised[1]
