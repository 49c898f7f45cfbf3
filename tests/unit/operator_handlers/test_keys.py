"""Token issuers' keys: fetched when wanted, kept while they can't be had, and in force without the issuer."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from fairserve_operator.clients.jwks import MAX_BYTES, JwksClient, Unfetched
from fairserve_operator.decide.jwks import KeySet, KeysProblem
from fairserve_operator.decide.resources import SERVING_POOL, TENANT
from fairserve_operator.errors import UnreachableError
from fairserve_operator.handlers.keys import KeyPace, KeyRefresh, Keyring
from tests.unit.operator_handlers.test_loop import POOL, Operated
from tests.unit.operator_handlers.world import FakeWorld, fake_world, pod, until

URL = "https://id.example/keys"
PACE = KeyPace(refresh_s=10.0, first_retry_s=1.0, last_retry_s=4.0)


def published(*kids: str) -> bytes:
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    return json.dumps({"keys": [{**key, "kid": kid} for kid in kids]}).encode()


GOOD, NEWER = KeySet(({"kid": "1"},)), KeySet(({"kid": "2"},))
AWAY = KeysProblem("KeysUnavailable", "away")


def put(ring: Keyring, answer: KeySet | KeysProblem, now: float) -> frozenset[str]:
    assert ring.due(now) == [URL]
    return ring.put(URL, answer, now, PACE, 1.0)


def test_a_source_is_fetched_at_once_and_again_after_the_interval() -> None:
    ring = Keyring()
    ring.want("ns", {URL})
    assert put(ring, GOOD, 0.0) == {"ns"}
    assert ring.found(URL) == GOOD
    assert ring.due(9.9) == []
    assert put(ring, GOOD, 10.0) == frozenset()
    assert put(ring, NEWER, 20.0) == {"ns"}


def test_a_source_that_is_being_fetched_is_not_due() -> None:
    ring = Keyring()
    ring.want("ns", {URL})
    assert ring.due(0.0) == [URL]
    assert ring.due(1000.0) == []
    assert ring.next_due() is None


def test_good_keys_stay_while_they_cannot_be_had_and_retries_grow_apart() -> None:
    ring = Keyring()
    ring.want("ns", {URL})
    put(ring, GOOD, 0.0)
    assert put(ring, AWAY, 10.0) == {"ns"}
    assert ring.found(URL) == KeySet(GOOD.keys, problem="away")
    assert put(ring, AWAY, 11.0) == frozenset()  # Nothing new.
    assert ring.next_due() == 13.0
    put(ring, AWAY, 13.0)
    assert ring.next_due() == 17.0
    put(ring, AWAY, 17.0)
    assert ring.next_due() == 21.0
    assert put(ring, GOOD, 21.0) == {"ns"}
    assert ring.found(URL) == GOOD


def test_who_never_answered_has_no_keys() -> None:
    ring = Keyring()
    ring.want("ns", {URL})
    assert ring.found(URL) is None
    put(ring, AWAY, 0.0)
    assert ring.found(URL) == AWAY


def test_what_nobody_wants_any_more_is_forgotten() -> None:
    ring = Keyring()
    ring.want("one", {URL})
    ring.want("two", {URL})
    ring.want("one", set())
    assert put(ring, GOOD, 0.0) == {"two"}
    ring.want("two", set())
    assert ring.found(URL) is None
    assert ring.put(URL, GOOD, 0.0, PACE, 1.0) == frozenset()
    assert ring.next_due() is None


class FakeIssuers:
    """Issuers by URL; who isn't there doesn't answer."""

    def __init__(self) -> None:
        self.published: dict[str, bytes] = {}

    async def fetch(self, url: str) -> bytes | Unfetched:
        return self.published.get(url, Unfetched(f"no answer from {url}"))


SOON = KeyPace(refresh_s=0.01, first_retry_s=0.005, last_retry_s=0.01)
JWT = {"jwt": {"issuer": "https://id.example", "jwksUri": URL, "audience": "llm"}}


class WithIssuers(Operated):
    """A world with the loop and a refresh of keys in it."""

    def __init__(self, world: FakeWorld) -> None:
        super().__init__(world)
        self.issuers = FakeIssuers()

    async def start(self, identity: dict[str, Any]) -> None:
        self.world.store.put_pod(pod("a"), 1)
        self.put(SERVING_POOL, "llm", POOL)
        self.put(TENANT, "team-a", {"identity": [identity]})
        refresh = KeyRefresh(
            self.world.world.keyring,
            self.issuers,
            self.world.cluster,
            self.world.tasks,
            random.Random(7),
            self._learned,
            SOON,
        )
        self.world.tasks.start(refresh.run(), "refresh")
        await self.loop.start()

    def _learned(self, namespace: str) -> None:
        self.world.store.touch(namespace)
        self.loop.mark(namespace)

    def kids(self) -> list[object]:
        return [key["kid"] for issuer in self.boot().identity.token_issuers for key in issuer.keys]

    async def until_kids(self, *kids: str) -> None:
        def runs() -> bool:
            return ("ns", "fairserve-llm") in self.world.cluster.secrets and self.kids() == list(kids)

        await until(runs, f"keys {kids}")


@asynccontextmanager
async def with_issuers() -> AsyncIterator[WithIssuers]:
    async with fake_world() as world:
        yield WithIssuers(world)


async def test_rotated_keys_reach_the_sidecars_and_lost_ones_stay() -> None:
    async with with_issuers() as operated:
        operated.issuers.published[URL] = published("k1")
        await operated.start(JWT)
        await operated.until_kids("k1")
        operated.issuers.published[URL] = published("k1", "k2")
        await operated.until_kids("k1", "k2")
        await operated.until_condition("team-a", "Programmed", "True")
        del operated.issuers.published[URL]
        await until(
            lambda: operated.condition("team-a", "ResolvedRefs").get("reason") == "KeysNotRefreshed",
            "the Tenant is told",
        )
        assert operated.condition("team-a", "Ready")["status"] == "True"
        assert operated.kids() == ["k1", "k2"]


async def test_an_operator_that_starts_while_the_issuer_is_away_keeps_its_document() -> None:
    async with with_issuers() as first:
        first.issuers.published[URL] = published("k1")
        await first.start(JWT)
        await first.until_kids("k1")
        secrets = first.world.cluster.secrets
    async with with_issuers() as second:
        second.world.cluster.secrets = secrets
        await second.start(JWT)
        await until(
            lambda: second.condition("team-a", "ResolvedRefs").get("reason") == "KeysNotRefreshed",
            "the Tenant is told",
        )
        assert second.kids() == ["k1"]
        assert second.world.cluster.writes == 0


async def test_keys_of_another_source_are_not_kept() -> None:
    async with with_issuers() as operated:
        operated.issuers.published[URL] = published("stolen")
        await operated.start(JWT)
        await operated.until_kids("stolen")
        elsewhere = {"jwt": {**JWT["jwt"], "jwksUri": "https://new.example/keys"}}
        operated.put(TENANT, "team-a", {"identity": [elsewhere]}, generation=2)
        await operated.until_kids()


async def test_service_accounts_are_judged_by_the_clusters_keys() -> None:
    async with with_issuers() as operated:
        operated.world.cluster.issuer = ("https://cluster.example", published("c"))
        await operated.start({"serviceAccount": {"namespace": "team-a"}})
        await operated.until_kids("c")
        (issuer,) = operated.boot().identity.token_issuers
        assert (issuer.issuer, issuer.kubernetes, issuer.tenants) == (
            "https://cluster.example",
            True,
            {"team-a": "team-a"},
        )


async def test_a_cluster_that_denies_its_keys_is_told_to_the_tenant() -> None:
    async with with_issuers() as operated:
        operated.world.cluster.issuer = UnreachableError("the keys of the cluster's token issuer", 403, "no")
        await operated.start({"serviceAccount": {"namespace": "team-a"}})
        await until(
            lambda: operated.condition("team-a", "ResolvedRefs").get("reason") == "KeysUnavailable", "told"
        )
        message = operated.condition("team-a", "ResolvedRefs")["message"]
        assert message == (
            "spec.identity[0].serviceAccount: the keys of the cluster's token issuer: no (HTTP 403)"
        )


class Issuer(ThreadingHTTPServer):
    """Publishes whatever it is told to, at any path but those that misbehave."""

    daemon_threads = True

    def __init__(self) -> None:
        self.body = b"keys"
        self.released = Event()
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.server.released.wait(30)
            return
        status = {"/away": 503, "/moved": 302}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Location", "/")
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        if self.path != "/torn":
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
async def client() -> AsyncIterator[JwksClient]:
    made = JwksClient(allow_http=True, timeout_s=0.5)
    yield made
    await made.close()


async def test_a_key_set_is_fetched(issuer: Issuer, client: JwksClient) -> None:
    assert await client.fetch(f"{issuer.url}/keys") == b"keys"
    issuer.body = b"x" * MAX_BYTES
    assert await client.fetch(f"{issuer.url}/keys") == issuer.body


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/away", "{url}/away answers with HTTP 503"),
        ("/moved", "{url}/moved answers with HTTP 302"),
        ("/hang", "no answer from {url}/hang within 0.5 s"),
        ("/torn", "no usable answer from {url}/torn: ClientPayloadError"),
    ],
)
async def test_what_is_no_answer_is_told(issuer: Issuer, client: JwksClient, path: str, problem: str) -> None:
    assert await client.fetch(issuer.url + path) == Unfetched(problem.format(url=issuer.url))


async def test_an_answer_that_is_too_large_is_not_read_to_its_end(issuer: Issuer, client: JwksClient) -> None:
    issuer.body = b"x" * (MAX_BYTES + 1)
    found = await client.fetch(f"{issuer.url}/keys")
    assert found == Unfetched(f"{issuer.url}/keys answers with more than 256 KiB")


async def test_nobody_there_is_told(issuer: Issuer, client: JwksClient) -> None:
    found = await client.fetch("http://127.0.0.1:1/keys")
    assert isinstance(found, Unfetched)
    assert found.problem.startswith("no usable answer from http://127.0.0.1:1/keys: ClientConnect")


async def test_http_is_for_those_who_ask_for_it(issuer: Issuer) -> None:
    client = JwksClient(allow_http=False)
    found = await client.fetch(f"{issuer.url}/keys")
    assert isinstance(found, Unfetched)
    assert "is not https://" in found.problem
    await client.close()
