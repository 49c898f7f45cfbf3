"""Kubernetes objects out of decisions."""

from __future__ import annotations

import base64
import gzip

import pytest

from fairserve.config import SchedulerConfig
from fairserve_operator.manifests.boot_secret import BootState, boot_secret, compressed, read_boot_secret
from fairserve_operator.manifests.events import event
from fairserve_operator.manifests.status_patch import status_patch
from tests.unit.operator.builders import api_key, compiled, pool, tenant


def config() -> SchedulerConfig:
    found = compiled([tenant("a", identity=[api_key("s")])], secrets={"s": "the-key"}).config
    assert found is not None
    return found.model_copy(update={"generation": 7})


def packed() -> bytes:
    return compressed(config().to_bytes())


def test_boot_secret_belongs_to_its_pool_and_holds_what_pods_read() -> None:
    secret = boot_secret(pool("llm"), packed(), "token")
    assert secret["metadata"]["name"] == "fairserve-llm"
    (owner,) = secret["metadata"]["ownerReferences"]
    assert (owner["apiVersion"], owner["kind"]) == ("fairserve.dev/v1alpha1", "ServingPool")
    assert (owner["name"], owner["uid"]) == ("llm", "uid-llm")
    held = base64.b64decode(secret["data"]["config.json.gz"])
    assert SchedulerConfig.from_bytes(gzip.decompress(held)) == config()
    assert base64.b64decode(secret["data"]["control-token"]) == b"token"


def test_equal_configurations_give_equal_bytes() -> None:
    assert packed() == packed()
    assert packed()[4:8] == b"\0\0\0\0"  # gzip's time stamp


def test_no_api_key_in_the_secret() -> None:
    assert b"the-key" not in gzip.decompress(packed())


def test_boot_secret_is_read_back() -> None:
    data = boot_secret(pool(), packed(), "token")["data"]
    assert read_boot_secret(data) == BootState(config(), "token")


@pytest.mark.parametrize(
    "broken",
    [
        "!",
        base64.b64encode(b"no gzip").decode(),
        base64.b64encode(packed()[:-9]).decode(),
        base64.b64encode(gzip.compress(b"{}", mtime=0)).decode(),
    ],
)
def test_an_edited_secret_is_no_configuration(broken: str) -> None:
    data = boot_secret(pool(), packed(), "token")["data"]
    assert read_boot_secret({**data, "config.json.gz": broken}) == BootState(None, "token")


def test_an_empty_secret_holds_nothing() -> None:
    assert read_boot_secret({}) == BootState(None, None)
    assert read_boot_secret({"control-token": ""}) == BootState(None, None)


def test_status_patch() -> None:
    assert status_patch(tenant("a").key, {"programmed": "1/1"}) == {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "a", "namespace": "team"},
        "status": {"programmed": "1/1"},
    }


def test_event_names_its_object_and_is_the_same_when_written_twice() -> None:
    now = "2026-01-01T00:00:00Z"
    one = event(pool("llm"), "Warning", "Overloaded", "wait is 4", now)
    assert one["involvedObject"]["uid"] == "uid-llm"
    assert one == event(pool("llm"), "Warning", "Overloaded", "wait is 4", now)
    other = event(pool("llm"), "Normal", "OverloadEnded", "no signal is up", now)
    assert one["metadata"]["name"] != other["metadata"]["name"]


def test_a_long_message_is_cut_to_what_the_api_server_takes() -> None:
    assert len(event(pool(), "Normal", "R", "m" * 5000, "t")["message"]) == 1024
