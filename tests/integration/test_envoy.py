"""examples/10-envoy: a real Envoy in front of sidecars, with the example's own bootstrap and resources."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from fairserve.config import SchedulerConfig
from fairserve.local.compilation import compile_folder
from fairserve.local.manifests import read_folder
from fairserve.local.objects import Objects
from fairserve.sidecar.options import Address
from tests.fakes.engine import answers_after, token_event
from tests.integration.sidecars import SALT, Client, ask, eventually, metric, running_sidecar
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.envoy import Envoy
from tests.parts.process import free_port

EXAMPLE = REPOSITORY / "examples" / "10-envoy"
#: Where Envoy connects from, so that the address tells it from everybody else on loopback.
GATEWAY = "127.0.0.9"
SIGNING_KEY = ec.generate_private_key(ec.SECP256R1())
KEY_SET = jwt.algorithms.ECAlgorithm.to_jwk(SIGNING_KEY.public_key(), as_dict=True) | {"kid": "k"}


def token(team: str | None = "team-a", user: str | None = "ann") -> str:
    """What a client shows; None: the token doesn't say."""
    said = {"iss": "https://id.example", "aud": "llm", "team": team, "sub": user}
    claims = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(
        {**claims, "exp": int(time.time()) + 600}, SIGNING_KEY, algorithm="ES256", headers={"kid": "k"}
    )


def socket_address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def on_loopback(bootstrap: dict[str, Any], port: int, pods: tuple[int, ...]) -> Mapping[str, Any]:
    """The example with other addresses, and the identity provider's keys at hand; all else is as it is."""
    bootstrap["admin"]["address"] = socket_address("127.0.0.1", free_port())
    resources = bootstrap["static_resources"]
    (listener,) = resources["listeners"]
    listener["address"] = socket_address("127.0.0.1", port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (authentication,) = (each for each in manager["http_filters"] if each["name"].endswith("jwt_authn"))
    provider = authentication["typed_config"]["providers"]["company"]
    del provider["remote_jwks"]
    provider["local_jwks"] = {"inline_string": json.dumps({"keys": [KEY_SET]})}
    (cluster,) = resources["clusters"] = [each for each in resources["clusters"] if each["name"] == "vllm"]
    cluster["type"] = "STATIC"
    cluster["upstream_bind_config"] = {"source_address": {"address": GATEWAY, "port_value": 0}}
    endpoints = [{"endpoint": {"address": socket_address("127.0.0.1", pod)}} for pod in pods]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return bootstrap


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SchedulerConfig:
    """What the operator makes of the example, for a gateway at another address."""
    folder, objects = tmp_path_factory.mktemp("manifests"), Objects()
    for name in ("pool.yaml", "tenants.yaml"):
        (folder / name).write_text((EXAMPLE / name).read_text().replace("10.20.0.0/16", f"{GATEWAY}/32"))
    reading = read_folder(folder)
    assert reading.problems == ()
    objects.apply(reading)
    _, compiled = compile_folder(objects, "llm", SALT)
    assert compiled.config is not None
    return compiled.config


@pytest.fixture(scope="module")
def pods() -> tuple[Address, Address]:
    """Where two sidecars may listen."""
    return Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())


@pytest.fixture(scope="module")
def gateway(pods: tuple[Address, Address], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the Envoy of the example."""
    port = free_port()
    bootstrap = yaml.safe_load((EXAMPLE / "envoy.yaml").read_text())
    ports = tuple(pod.port for pod in pods)
    with Envoy(on_loopback(bootstrap, port, ports), tmp_path_factory.mktemp("envoy")):
        yield port


@pytest.fixture
async def pod(tmp_path: Path, engine, config, pods):
    async with running_sidecar(tmp_path, engine, config, listen=pods[0]) as sidecar:
        yield sidecar


def served(sidecar, tenant: str) -> float | None:
    text = sidecar.metrics.exposition().decode()
    return metric(text, "fairserve_requests_total", tenant=tenant, outcome="completed")


async def test_streams_pass_as_they_are_made(pod, engine, gateway):
    go_on = asyncio.Event()

    async def stream(seen, reply):
        await reply.begin_events()
        await reply.chunk(token_event("first"))
        await go_on.wait()
        await reply.chunk(token_event("second"))
        await reply.end()

    engine.behaviour = stream
    async with await Client.connect(gateway) as client:
        client.call(token(), {"stream": True})
        answer = await client.head()
        assert (answer.status, answer.header("content-type")) == (200, "text/event-stream; charset=utf-8")
        assert b"first" in await client.chunk()  # the engine says no more before it was read
        go_on.set()
        assert b"second" in await client.chunked_body()


async def test_refusal_reaches_the_client_whole_and_goes_to_no_other_pod(pod, engine, gateway):
    pod.renew_overload(armed=True, lease_s=600, reason="test")
    ann, bob = token("team-b"), token("team-b", "bob")
    assert (await ask(gateway, ann, {})).status == 200
    refused = await ask(gateway, ann, {}, x_fairserve_user="somebody-else")
    assert refused.status == 429
    assert 1 <= int(refused.header("retry-after") or 0) <= 120
    assert refused.header("x-fairserve-refused-reason") == "user_interaction_limit"
    assert "error" in refused.fields
    # Nobody has tried again, and the limit is a user's, whom the token names.
    text = pod.metrics.exposition().decode()
    assert metric(text, "fairserve_requests_total", tenant="team-b", outcome="refused") == 1
    assert (await ask(gateway, bob, {})).status == 200


@pytest.mark.parametrize("began", [False, True], ids=["before the answer", "in a stream"])
async def test_client_that_leaves_frees_the_engine(pod, engine, gateway, began):
    async def never_ends(seen, reply):
        if began:
            await reply.begin_events()
            await reply.chunk(token_event("first"))
        await asyncio.Event().wait()

    engine.behaviour = never_ends
    async with await Client.connect(gateway) as client:
        client.call(token(), {"stream": True})
        await eventually(lambda: pod.scheduler.running == 1, "the call runs")
        if began:
            await client.head()
    await eventually(lambda: engine.cut == 1, "the engine's work ends")
    await eventually(lambda: pod.scheduler.running == 0, "its place is free")


async def test_client_that_leaves_while_it_waits_never_reaches_the_engine(
    tmp_path, engine, config, pods, gateway
):
    go_on = asyncio.Event()
    engine.behaviour = answers_after(go_on)
    async with running_sidecar(tmp_path, engine, config, listen=pods[0], max_window=1) as pod:
        async with await Client.connect(gateway) as first, await Client.connect(gateway) as second:
            first.call(token(), {})
            await eventually(lambda: pod.scheduler.running == 1, "one runs")
            second.call(token(), {})
            await eventually(lambda: pod.scheduler.queued == 1, "one waits")
            await second.leave()
            await eventually(lambda: pod.scheduler.queued == 0, "nobody waits")
            go_on.set()
            assert (await first.answer()).status == 200
        assert len(engine.completions) == 1


async def test_only_envoy_says_whose_a_call_is(pod, engine, gateway):
    claims = dict.fromkeys(("x_fairserve_tenant", "x_llm_d_inference_fairness_id"), "team-b")
    assert (await ask(gateway, token(), {}, **claims)).status == 200
    assert (served(pod, "team-a"), served(pod, "team-b")) == (1, None)
    (seen,) = engine.completions
    assert seen.header("authorization") is None
    assert (await ask(gateway, "no token", {}, **claims)).status == 401
    # Where the token says nothing, its bearer doesn't say it instead.
    for name, value in {**claims, "x_gateway_inference_fairness_id": "team-b"}.items():
        assert (await ask(gateway, token(team=None), {}, **{name: value})).status == 401
    pod.renew_overload(armed=True, lease_s=600, reason="test")
    named = [await ask(gateway, token("team-b", None), {}, x_fairserve_user=name) for name in ("a", "b")]
    assert [answer.status for answer in named] == [200, 429]
    # Past the gateway nobody is believed.
    direct = await ask(pod.data_address, "none", {}, **claims)
    assert (direct.status, direct.fields["error"]["code"]) == (401, "invalid_api_key")
    assert len(engine.completions) == 2


@pytest.mark.parametrize("stopping", [0, 1])
async def test_call_that_meets_a_pod_that_stops_goes_to_another(
    tmp_path, engine, config, pods, gateway, stopping
):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    async with (
        running_sidecar(folders[0], engine, config, listen=pods[stopping]) as one,
        running_sidecar(folders[1], engine, config, listen=pods[1 - stopping]) as other,
    ):
        one.proxy.draining, one.proxy.turns_away_at = True, 0.0  # late in its drain
        assert {(await ask(gateway, token(), {})).status for _ in range(8)} == {200}
        assert (served(one, "team-a"), served(other, "team-a")) == (None, 8)


def test_call_waits_longer_than_a_proxy_usually_lets_it() -> None:
    """The bootstrap has none of the limits that would cut a call which waits: 15 s and 5 min by default."""
    manager = yaml.safe_load((EXAMPLE / "envoy.yaml").read_text())["static_resources"]["listeners"][0][
        "filter_chains"
    ][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert (manager["stream_idle_timeout"], route["route"]["timeout"]) == ("0s", "0s")


def test_manifests_are_taken_by_the_api_server(api: ControlPlane, namespace: str) -> None:
    rendered = api.kubectl("kustomize", EXAMPLE)
    assert "claim_to_headers" in rendered
    answer = api.kubectl(
        "apply", "--server-side", "--dry-run=server", "-n", namespace, "-f", "-", stdin=rendered
    )
    assert len(answer.splitlines()) == 7
