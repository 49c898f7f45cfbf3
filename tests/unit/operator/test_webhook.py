"""What the webhook is started with, and what it knows of the pools that Pods ask for."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from fairserve_operator.decide.admission import NoPool, Outcome, Pool
from fairserve_operator.decide.resources import SERVING_POOL, ObjectKey, Resource
from fairserve_operator.errors import ApiServerError, NotFoundError, SetupError
from fairserve_operator.handlers import webhook
from fairserve_operator.handlers.measures import Measures
from fairserve_operator.handlers.webhook import Logged, Pools, Webhook
from fairserve_operator.options import OwnCertificate, webhook_options

OWN = {"--webhook-service": "w", "--webhook-secret": "s", "--webhook-configuration": "c"}
OPTIONS = (*OWN, "--webhook-host", "--webhook-certificate-dir", "--sidecar-image", "--sidecar-cpu")


def given(**changed: Any) -> dict[str, Any]:
    return dict.fromkeys(OPTIONS) | {"--" + name.replace("_", "-"): value for name, value in changed.items()}


def test_the_webhook_is_what_its_options_say():
    assert webhook_options(None, given()) is None
    own = webhook_options("0.0.0.0:9443", given() | OWN | {"--sidecar-image": "i:1", "--drain-s": 60})
    assert own.listen == ("0.0.0.0", 9443)
    assert own.certificate == OwnCertificate("w", None, "s", "c")
    assert (own.sidecar.image, own.sidecar.drain_s, own.sidecar.cpu) == ("i:1", 60, "500m")
    folder = webhook_options("[::]:1", given(webhook_certificate_dir=Path("/tls")))
    assert folder.certificate == Path("/tls")
    assert folder.sidecar.image.startswith("fairserve-sidecar:")
    for host in ("operator.example.com", "127.0.0.1", "::1"):
        outside = webhook_options("a:1", given() | OWN | {"--webhook-service": None, "--webhook-host": host})
        assert outside.certificate.host == host


@pytest.mark.parametrize(
    ("listen", "changed", "words"),
    [
        (None, {"webhook_service": "w"}, "--webhook-service needs --webhook"),
        (None, {"sidecar_image": "i"}, "--sidecar-image needs --webhook"),
        ("9443", OWN, "--webhook 9443: must be HOST:PORT"),
        ("a:1", {}, "--webhook needs --webhook-service (or --webhook-host), --webhook-configuration and"),
        ("a:1", {"webhook_service": "w", "webhook_secret": "s"}, "--webhook needs --webhook-service (or"),
        ("a:1", OWN | {"--webhook-host": "h"}, "--webhook-service and --webhook-host exclude each other"),
        (
            "a:1",
            OWN | {"--webhook-certificate-dir": Path("/d")},
            "--webhook-certificate-dir and --webhook-serv",
        ),
        ("a:1", OWN | {"--webhook-secret": "a/b"}, "--webhook-secret a/b: not a name"),
        ("a:1", OWN | {"--webhook-service": None, "--webhook-host": "a b"}, "--webhook-host a b: neither"),
        ("a:1", OWN | {"--sidecar-cpu": "much"}, "--sidecar-cpu: 'much' is no quantity"),
        ("a:1", OWN | {"--sidecar-image": ""}, "--sidecar-image: '' is no image"),
    ],
)
def test_what_does_not_go_together_is_said(listen, changed, words):
    changed = {
        name if name.startswith("--") else "--" + name.replace("_", "-"): v for name, v in changed.items()
    }
    with pytest.raises(SetupError) as problem:
        webhook_options(listen, given() | changed)
    assert words in str(problem.value)


class FakeSource:
    """An API server with one answer."""

    def __init__(self, answer: Mapping[str, Any] | Exception | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.held: asyncio.Event | None = None

    async def serving_pool(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        self.asked.append((namespace, name))
        if self.held is not None:
            await self.held.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def with_port(port: object) -> dict[str, Any]:
    return {"spec": {"sidecar": {"controlPort": port}}}


@pytest.mark.parametrize(
    ("answer", "port"),
    [
        (None, None),
        (NotFoundError("ServingPool", 404, "the kind is not installed"), None),
        (with_port(9001), 9001),
        ({"spec": {}}, 8001),
        ({}, 8001),
        (with_port("9001"), 8001),
        (with_port(0), 8001),
    ],
    ids=range(7),
)
async def test_who_is_not_known_is_asked_for(answer, port):
    source = FakeSource(answer)
    assert await Pools(source, (None,)).find("shop", "llm") == Pool(port)
    assert source.asked == [("shop", "llm")]


async def test_who_is_known_is_not_asked_for():
    source = FakeSource()
    pools = Pools(source, ("shop",))
    key = ObjectKey(SERVING_POOL, "shop", "llm")
    spec = {"sidecar": {"controlPort": 9001}, "selector": {"matchLabels": {"app": "vllm"}}}
    pools.store.put(Resource(key, "u", 1, "", spec), 1, {})
    assert await pools.find("shop", "llm") == Pool(9001, {"app": "vllm"})
    assert await pools.find("shop", "Not,a=name") == Pool(None)
    assert source.asked == []


async def test_pods_of_a_namespace_that_is_not_served_are_refused():
    found = await Pools(FakeSource(), ("shop", "lab")).find("elsewhere", "llm")
    assert isinstance(found, NoPool)
    assert (found.outcome, found.code) == (Outcome.REFUSED, HTTPStatus.BAD_REQUEST)
    assert "no ServingPool of namespace elsewhere, only those of shop, lab" in found.message


async def test_nothing_is_guessed_while_the_api_server_does_not_tell():
    found = await Pools(FakeSource(ApiServerError("ServingPool", 500, "etcd")), (None,)).find("shop", "llm")
    assert isinstance(found, NoPool)
    assert (found.outcome, found.code) == (Outcome.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE)
    assert "can't look for ServingPool shop/llm: ServingPool: etcd (HTTP 500)" in found.message


async def test_few_are_asked_for_at_a_time_and_nobody_waits_long(monkeypatch):
    monkeypatch.setattr(webhook, "_LOOKUP_S", 0.05)
    source = FakeSource()
    source.held = asyncio.Event()
    pools = Pools(source, (None,))
    found = await asyncio.gather(*(pools.find("shop", f"pool-{number}") for number in range(20)))
    assert {each.outcome for each in found} == {Outcome.UNAVAILABLE}
    assert len(source.asked) == 2
    source.held.set()
    assert await pools.find("shop", "llm") == Pool(None)


def a_webhook(source: FakeSource) -> Webhook:
    options = webhook_options("a:1", given(webhook_certificate_dir=Path("/tls")))
    return Webhook(source, "fairserve-system", (None,), options, Measures())


def review(name: str = "p", **spec: Any) -> bytes:
    """The creation of a Pod of pool `llm`."""
    labels = {"fairserve.dev/inject": "llm"}
    container = {"name": "vllm", "image": "vllm/vllm-openai"}
    pod = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [container], **spec}}
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    asked = {"uid": "u", "kind": kind, "operation": "CREATE", "namespace": "shop", "object": pod}
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}
    ).encode()


async def test_the_loop_goes_on_while_a_large_pod_is_answered():
    """Its other tasks renew the Lease."""
    volumes = [{"name": "a"}] * 40_000
    replying = asyncio.ensure_future(a_webhook(FakeSource(with_port(9001))).reply(review(volumes=volumes)))
    turns = 0
    while not replying.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert (await replying)[0] is Outcome.INJECTED
    assert turns > 10, "in the loop itself it takes three or four"


async def test_what_is_nested_deeper_than_any_pod_is_bad():
    nested: list[Any] = []
    for _ in range(800):
        nested = [nested]
    outcome, response = await a_webhook(FakeSource(with_port(9001))).reply(review(x=nested))
    assert (outcome, response.status) == (Outcome.BAD, 400)


async def test_warnings_are_logged_once_for_all_pods_that_have_them(caplog):
    """A ReplicaSet's controller, to which they are answered, shows them to nobody."""
    caplog.set_level(logging.WARNING)
    called = a_webhook(FakeSource())
    for name in ("p", "p", "q\n\ud800" * 5000):
        assert (await called.reply(review(name)))[0] is Outcome.INJECTED
    one, other = [each.getMessage() for each in caplog.records]
    assert one.startswith(
        "Pod shop/p: metadata.labels[fairserve.dev/inject]: there is no ServingPool shop/llm"
    )
    assert other.startswith("Pod shop/q??q")
    assert len(other) == 1000


def test_a_warning_is_logged_again_some_time_and_a_flood_is_not():
    logged = Logged()
    assert [logged.is_due("a", now) for now in (0, 1, 599, 600, 601)] == [True, False, False, True, False]
    assert sum(logged.is_due(f"flood {n}", 602) for n in range(1000)) == 99
    assert logged.is_due("later", 1202)
