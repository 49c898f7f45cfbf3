"""What a Prometheus can answer, or fail to, over real sockets: one number, or a reason in words."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fairserve_operator.clients.prometheus import (
    Connection,
    PrometheusClient,
    Reading,
    Source,
    basic,
    bearer,
)
from fairserve_operator.decide.signals import SIGNAL_LABEL
from tests.fakes.prometheus import Answer, Asked, FakePrometheus, certificate, error, number, result, vector
from tests.integration.operating import PYTHONPATH
from tests.parts.process import free_port

TIMEOUT_S = 10.0
#: What must not wait for the time limit above gets less, what must reach a limit even less.
SHORT_S = 0.3

#: An answer that holds its thread for ever, because each of its bytes is in time.
ENDLESS = Answer(b"", drips="head")


@pytest.fixture
def prometheus() -> Iterator[FakePrometheus]:
    with FakePrometheus() as running:
        yield running


@asynccontextmanager
async def connected(source: Source) -> AsyncIterator[Connection]:
    client = PrometheusClient()
    yield client.connect(source)
    client.close()


async def read(source: Source, promql: str = "up", timeout_s: float = TIMEOUT_S) -> Reading:
    async with connected(source) as connection:
        return await connection.query(promql, timeout_s)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (number("0.25"), 0.25),
        (number("0"), 0.0),
        (number("-1e3"), -1000.0),
        (result("scalar", [1.5, "7"]), 7.0),
    ],
)
async def test_one_number_is_a_reading(prometheus: FakePrometheus, answer: Answer, value: float) -> None:
    prometheus.answer = lambda _: answer
    assert await read(Source(prometheus.url), timeout_s=TIMEOUT_S) == Reading(value)
    assert prometheus.asked == [Asked("up", "10000ms", None)]


ROW = '{"pod": "a"}, {"pod": "b"}, ...'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (number("NaN"), "the query gives NaN, not a number"),
        (number("+Inf"), "the query gives +Inf, not a number"),
        (number("-Inf"), "the query gives -Inf, not a number"),
        (number("many"), "the query gives the text 'many', not a number"),
        (vector(), "the query finds no series"),
        (
            vector(*(({"pod": pod}, "1") for pod in "abc")),
            f"the query finds 3 series, not one: {ROW}",
        ),
        (result("matrix", [{"metric": {}, "values": [[1, "1"]]}]), "the query gives a range, not one number"),
        (result("string", [1.5, "0"]), "URL answers something else than a number: the text '0'"),
        (result("vector", [{"histogram": [1.5, {}]}]), "the query gives no number"),
        (result("vector", {"value": "1"}), "the query gives no number"),
        (result("vector", None), "the query gives no number"),
        (error(200, "lies"), 'URL answers something else than a number: {"status": "error"'),
        (Answer([]), "URL answers something else than a number: []"),
        (Answer(b""), "URL answers something else than a number: nothing"),
        (Answer(b"<html>\x1b[2J please log in"), "something else than a number: <html> [2J please log in"),
        (Answer(b"\xff\xfe\x00"), "URL answers something else than a number"),
        (Answer(b"[" * 100_000), "URL answers something else than a number: [["),
        (error(400, "1:3: parse error: no"), "URL refused the query: 1:3: parse error: no"),
        (error(422, "found duplicate series"), "URL refused the query: found duplicate series"),
        (error(503, "query timed out", "timeout"), "URL answers HTTP 503: query timed out"),
        (Answer(b"Bad Gateway\n", 502), "URL answers HTTP 502: Bad Gateway"),
        (Answer(b"", 204), "URL answers HTTP 204: "),
        (Answer(b"", 401), "URL refuses a caller without credentials: HTTP 401"),
        (Answer(b"", 302, {"Location": "http://localhost:1/"}), "URL answers with a redirect"),
        (Answer(b" " * 300_000), "the answer of URL is longer than 262144 bytes"),
        (Answer(b"{}", headers={"Content-Encoding": "gzip"}), "no usable answer from URL: "),
    ],
)
async def test_anything_else_is_no_value_and_says_what_was_seen(
    prometheus: FakePrometheus, answer: Answer, words: str
) -> None:
    prometheus.answer = lambda _: answer
    reading = await read(Source(prometheus.url))
    assert reading.value is None
    assert words.replace("URL", prometheus.url) in reading.problem
    assert len(reading.problem) < 500
    assert reading.problem.isprintable()
    assert reading.kind


async def test_problems_that_differ_in_detail_are_of_one_kind(prometheus: FakePrometheus) -> None:
    kinds = []
    for pods in ("ab", "abc"):
        prometheus.answer = lambda _, pods=pods: vector(*(({"pod": pod}, "1") for pod in pods))  # type: ignore[misc]
        kinds.append((await read(Source(prometheus.url))).kind)
    assert kinds[0] == kinds[1]


async def test_nobody_there_is_said_in_the_systems_words() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert (await read(Source(url))).problem == f"no connection to {url}: Connection refused"


@pytest.mark.parametrize(
    "answer", [None, Answer(b"{", drips="body"), ENDLESS], ids=["silent", "body drips", "head drips"]
)
async def test_an_answer_that_does_not_end_is_late(prometheus: FakePrometheus, answer: Answer | None) -> None:
    prometheus.answer = lambda _: answer
    late = f"no answer from {prometheus.url} within {SHORT_S:g} s"
    assert (await read(Source(prometheus.url), timeout_s=SHORT_S)).problem == late


async def test_threads_that_hang_are_few_and_delay_no_other_pool(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda asked: ENDLESS if asked.promql == "slow" else number("1")
    client = PrometheusClient()
    hung, other = client.connect(Source(prometheus.url)), client.connect(Source(prometheus.url))
    slow = [asyncio.create_task(hung.query("slow", SHORT_S)) for _ in range(16)]
    assert await other.query("up", TIMEOUT_S) == Reading(1.0)
    late = await asyncio.gather(*slow)
    assert {reading.kind for reading in late} == {"late"}
    assert [asked.promql for asked in prometheus.asked].count("slow") == 4, "the rest has waited for a thread"
    assert (await hung.query("up", SHORT_S)).kind == "late", "its threads hang still"
    client.close()


async def test_a_thread_lets_go_of_an_answer_that_drips(prometheus: FakePrometheus) -> None:
    drips = Answer(b"{", drips="body")
    prometheus.answer = lambda asked: drips if asked.promql == "slow" else number("1")
    async with connected(Source(prometheus.url)) as connection:
        late = await asyncio.gather(*(connection.query("slow", SHORT_S) for _ in range(16)))
        assert {reading.kind for reading in late} == {"late"}
        assert await connection.query("up", TIMEOUT_S) == Reading(1.0)


async def test_the_loop_goes_on_while_queries_hang(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda _: None
    async with connected(Source(prometheus.url)) as connection:
        query = asyncio.create_task(connection.query("up", SHORT_S))
        turns = 0
        while not query.done():
            await asyncio.sleep(0)
            turns += 1
    assert turns > 100


def test_a_query_that_hangs_does_not_keep_the_process_from_ending(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda _: ENDLESS
    program = (
        "import asyncio, sys\n"
        "from fairserve_operator.clients.prometheus import PrometheusClient, Source\n"
        "async def main():\n"
        "    client = PrometheusClient()\n"
        f"    print(await client.connect(Source({prometheus.url!r})).query('up', 0.1))\n"
        "    client.close()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=PYTHONPATH,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "within 0.1 s" in ended.stdout


def of_signal(*values: tuple[str, str]) -> Answer:
    return vector(*(({SIGNAL_LABEL: name}, value) for name, value in values))


async def ask_jointly(source: Source, names: Sequence[str] = ("wait", "kv")) -> dict[str, Reading] | None:
    async with connected(source) as connection:
        found = await connection.query_jointly("a or b", SIGNAL_LABEL, names, TIMEOUT_S)
        return None if found is None else dict(found)


async def test_joint_query_is_taken_apart_by_signal(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda _: of_signal(("kv", "0.5"), ("wait", "NaN"))
    found = await ask_jointly(Source(prometheus.url), ("wait", "kv", "gone"))
    assert found is not None
    assert found["kv"] == Reading(0.5)
    assert found["wait"].problem == "the query gives NaN, not a number"
    assert found["gone"].problem == "the query finds no series"


async def test_only_a_refused_joint_query_is_worth_asking_apart(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda _: error(422, "many-to-many")
    assert await ask_jointly(Source(prometheus.url)) is None
    prometheus.answer = lambda _: error(503, "overloaded")
    found = await ask_jointly(Source(prometheus.url))
    assert found is not None
    assert {reading.kind for reading in found.values()} == {"HTTP 503"}


def guarded(header: str) -> Callable[[Asked], Answer]:
    return lambda asked: number("1") if asked.authorization == header else Answer(b"who?", 401)


async def test_credentials_are_shown_and_refusal_is_told_as_such(prometheus: FakePrometheus) -> None:
    url = prometheus.url
    prometheus.answer = guarded("Bearer right")
    assert await read(bearer(url, "right")) == Reading(1.0)
    assert (await read(bearer(url, "wrong"))).problem == f"{url} refuses the credentials: HTTP 401"
    prometheus.answer = guarded("Basic " + base64.b64encode("me:pä:ss".encode()).decode())
    assert await read(basic(url, "me", "pä:ss")) == Reading(1.0)


async def test_credentials_that_come_back_are_not_repeated(prometheus: FakePrometheus) -> None:
    prometheus.answer = lambda asked: Answer(f"bad: {asked.authorization}".encode(), 500)
    for source, secrets in (
        (bearer(prometheus.url, "hush"), ["hush"]),
        (basic(prometheus.url, "me", "hush"), ["hush", base64.b64encode(b"me:hush").decode()]),
    ):
        shown = repr([await read(source), source])
        assert "***" in shown
        assert not any(secret in shown for secret in secrets)


async def test_netrc_names_nobody(
    prometheus: FakePrometheus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine localhost login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    await read(Source(prometheus.url))
    await read(bearer(prometheus.url, "mine"))
    assert [asked.authorization for asked in prometheus.asked] == [None, "Bearer mine"]


async def test_only_the_given_ca_is_believed_unless_told_to_skip(tmp_path: Path) -> None:
    files, other = certificate(tmp_path, "mine"), certificate(tmp_path, "other")
    with FakePrometheus(files) as prometheus:
        source = bearer(prometheus.url, "hush")
        assert await read(replace(source, ca_pem=files[0].read_text())) == Reading(5.0)
        for distrusting in (source, replace(source, ca_pem=other[0].read_text())):
            reading = await read(distrusting)
            assert reading.problem == f"no trust in {prometheus.url}: self-signed certificate"
        assert await read(replace(source, verify=False)) == Reading(5.0)
        assert len(prometheus.asked) == 2, "who is not trusted is told nothing"


async def test_certificate_of_another_host_is_not_believed(tmp_path: Path) -> None:
    files = certificate(tmp_path, "mine", host="elsewhere")
    with FakePrometheus(files) as prometheus:
        reading = await read(Source(prometheus.url, ca_pem=files[0].read_text()))
        assert "localhost" in reading.problem
        assert reading.kind == "tls"


async def test_text_around_a_certificate_may_be_in_any_language(tmp_path: Path) -> None:
    (mine, key), (other, _) = certificate(tmp_path, "mine"), certificate(tmp_path, "other")
    bundle = f"\ufeff# Prüfstelle \U0001f9ff\n{other.read_text()}# 二\n{mine.read_text()}# Ende ä"
    with FakePrometheus((mine, key)) as prometheus:
        assert await read(Source(prometheus.url, ca_pem=bundle)) == Reading(5.0)
        cut = bundle[: bundle.index("# 二")] + mine.read_text()[:200]
        reading = await read(Source(prometheus.url, ca_pem=cut))
        assert reading == Reading(None, "the CA is not a certificate in PEM", "ca")


@pytest.mark.parametrize("url", ["http://[", "http://a]b:9090", "http://[::1:9090", "http://[zz]"])
async def test_url_that_is_none_is_named(url: str) -> None:
    assert await read(Source(url)) == Reading(None, f"{url} is not a URL", "url")


@pytest.mark.parametrize(
    "ca",
    [
        "",
        "no PEM",
        "kein PEM, höchstens 0\x82\ufffd",
        "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nÄÄ\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n",
    ],
)
async def test_ca_that_is_none_is_named(ca: str) -> None:
    reading = await read(Source("https://localhost:1", ca_pem=ca))
    assert reading == Reading(None, "the CA is not a certificate in PEM", "ca")


async def test_fifty_pools_are_read_in_a_fraction_of_an_interval(prometheus: FakePrometheus) -> None:
    """Processor time of 50 pools' joint query and one of a user's own, each interval of 5 s."""
    prometheus.answer = lambda asked: of_signal(("a", "1")) if " or " in asked.promql else number("1")
    client = PrometheusClient()
    pools = [client.connect(Source(prometheus.url)) for _ in range(50)]

    async def evaluate() -> None:
        joint = (pool.query_jointly("a or b", SIGNAL_LABEL, ["a"], TIMEOUT_S) for pool in pools)
        found = await asyncio.gather(*joint, *(pool.query("up", TIMEOUT_S) for pool in pools))
        assert found[-1] == Reading(1.0)

    await evaluate()  # Connections are made once.
    began, rounds = time.process_time(), 5
    for _ in range(rounds):
        await evaluate()
    share = (time.process_time() - began) / rounds / 5.0
    print(f"50 pools, with the fake's own work: {share:.1%} of a core")
    client.close()
    assert share < 0.2
