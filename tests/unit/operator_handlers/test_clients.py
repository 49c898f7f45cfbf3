"""The clients against small servers: every way that an answer can be, as a value."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Iterator

import pytest

from fairserve.config import IdentityConfig, SchedulerConfig
from fairserve_operator.clients.kubernetes_client import _call_name
from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    SidecarClient,
    State,
    Unreachable,
)
from tests.fakes.sidecar_control import SidecarControl
from tests.parts.process import free_port


def config(generation: int, pool: str = "ns/llm") -> SchedulerConfig:
    return SchedulerConfig(pool=pool, generation=generation, identity=IdentityConfig(salt="ab" * 16))


def packed(document: SchedulerConfig) -> bytes:
    return gzip.compress(document.to_bytes())


@pytest.fixture
def control() -> Iterator[SidecarControl]:
    with SidecarControl("127.0.0.1", free_port(), token="right") as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[SidecarClient]:
    made = SidecarClient(timeout_s=0.3)
    yield made
    await made.close()


def port(control: SidecarControl, token: str = "right") -> ControlPort:
    return ControlPort(control.host, control.port, token)


async def running(client: SidecarClient, control: SidecarControl) -> Running:
    answer = await client.get_state(port(control))
    assert isinstance(answer, State)
    return answer.running


async def test_config_is_acknowledged_and_seen_in_the_state(
    control: SidecarControl, client: SidecarClient
) -> None:
    assert await running(client, control) == Running(0, "")
    expected = Running(3, config(3).content_hash)
    assert await client.put_config(port(control), packed(config(3))) == expected
    assert await running(client, control) == expected


async def test_older_or_other_config_is_answered_with_what_runs(
    control: SidecarControl, client: SidecarClient
) -> None:
    control.run(7, "x" * 64)
    assert await client.put_config(port(control), packed(config(3))) == Newer(7, "x" * 64)
    assert await client.put_config(port(control), packed(config(7))) == Newer(7, "x" * 64)


async def test_what_is_refused_for_good_is_rejected(control: SidecarControl, client: SidecarClient) -> None:
    control.refuse = "tenants.0.weight: no"
    assert await client.put_config(port(control), packed(config(1))) == Rejected(422, "tenants.0.weight: no")
    wrong = await client.put_config(port(control, "wrong"), packed(config(1)))
    assert wrong == Rejected(401, "wrong control token")


async def test_overload_is_taken(control: SidecarControl, client: SidecarClient) -> None:
    assert await client.put_overload(port(control), True, 30.0, "busy") == OverloadTaken(True, 0)
    control.run(4, "h")
    assert await client.put_overload(port(control), False, 30.0, "idle") == OverloadTaken(False, 4)
    assert control.overloads[0].body == {"armed": True, "lease_s": 30.0, "reason": "busy"}


async def test_no_answer_is_a_value(control: SidecarControl, client: SidecarClient) -> None:
    control.hang()
    assert await client.get_state(port(control)) == Unreachable("no answer in time")
    control.go()
    control.stop()
    refused = await client.get_state(port(control))
    assert isinstance(refused, Unreachable)


def test_tokens_stay_out_of_logs() -> None:
    assert "secret" not in repr(ControlPort("10.0.0.1", 8001, "secret"))


async def test_sidecars_are_not_called_while_another_operator_may_act(control: SidecarControl) -> None:
    seen: list[tuple[str, str]] = []
    acts = True
    client = SidecarClient(
        may_call=lambda: acts, observer=lambda call, outcome, _: seen.append((call, outcome))
    )
    await client.put_config(port(control), packed(config(1)))
    acts = False
    fenced = await client.put_config(port(control), packed(config(2)))
    await client.close()
    assert isinstance(fenced, Unreachable)
    assert control.calls == ["PUT /config 200"]
    assert seen == [("PUT /config", "200")]


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/api/v1/secrets", "GET secrets"),
        ("POST", "/api/v1/namespaces/ns/secrets", "POST secrets"),
        ("PUT", "/api/v1/namespaces/ns/secrets/status", "PUT secrets"),
        ("PATCH", "/apis/fairserve.dev/v1alpha1/namespaces/ns/tenants/a/status", "PATCH tenants/status"),
    ],
)
def test_figures_of_calls_have_no_names_of_objects(method: str, path: str, name: str) -> None:
    assert _call_name(method, path) == name
