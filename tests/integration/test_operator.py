"""The operator against a real API server: from manifests to what sidecars run and what statuses say."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fairserve.config import key_digest
from tests.integration.operating import (
    Place,
    two_teams,
    until,
)
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process


@pytest.fixture
def place(api: ControlPlane, namespace: str) -> Iterator[Place]:
    """A namespace, and whatever fake pods the test puts into it."""
    with ExitStack() as stack:
        yield Place(api, namespace, stack)


@pytest.fixture
def served(place: Place, everywhere: Process) -> Place:
    """The example in force on two pods, `a` and `b`; their sidecars are `served.sidecars`."""
    place.apply(two_teams())
    return place


def test_manifests_reach_every_sidecar_and_status_says_so(served: Place) -> None:
    sidecars = [served.pod(name) for name in ("a", "b", "c")]

    for kind, name in (("tenants", "team-a"), ("tenants", "team-b"), ("applications", "chat")):
        served.until_condition(kind, name, "Programmed", "True")
        assert served.condition(kind, name, "Accepted")["status"] == "True"
    served.until_condition("servingpools", "llm", "Programmed", "True")

    pool = served.get("servingpools", "llm")["status"]
    assert pool["programmed"] == "3/3"
    assert {sidecar.generation for sidecar in sidecars} == {pool["generation"]}
    config = sidecars[0].config
    assert {tenant.name: tenant.weight for tenant in config.tenants} == {"team-a": 3, "team-b": 1}
    digest = key_digest(config.identity.salt, "demo-key-of-team-a")
    assert [key.tenant for key in config.identity.api_keys if key.digest == digest] == ["team-a"]
    assert {sidecar.token for sidecar in sidecars} == {served.control_token()}
    assert served.boot_secret()["metadata"]["ownerReferences"][0]["name"] == "llm"


def test_objects_get_neither_finalizers_nor_annotations(served: Place) -> None:
    served.pod("a")
    served.until_condition("tenants", "team-a", "Ready", "True")
    for kind, name in (
        ("tenants", "team-a"),
        ("servingpools", "llm"),
        ("pods", "a"),
        ("secrets", "team-a-key"),
    ):
        metadata = served.get(kind, name)["metadata"]
        assert not metadata.get("finalizers"), kind
        assert not metadata.get("annotations"), kind


def test_changed_weight_is_acknowledged_and_touches_no_other_tenant(served: Place) -> None:
    sidecars = [served.pod("a"), served.pod("b")]
    for name in ("team-a", "team-b"):
        served.until_condition("tenants", name, "Programmed", "True")
    until(lambda: sidecars[0].generation == sidecars[1].generation > 0, "both sidecars on one generation")
    before, untouched = sidecars[0].generation, served.get("tenants", "team-b")["status"]["conditions"]

    started = time.monotonic()
    served.patch("tenants", "team-a", {"weight": 1})
    served.until_condition("tenants", "team-a", "Programmed", "True")
    elapsed_s = time.monotonic() - started

    print(f"\npatch to Programmed: {elapsed_s:.3f} s")
    assert [sidecar.generation for sidecar in sidecars] == [before + 1, before + 1]
    assert {tenant.name: tenant.weight for tenant in sidecars[1].config.tenants}["team-a"] == 1
    assert served.get("tenants", "team-b")["status"]["conditions"] == untouched


def test_a_held_tenant_is_held_on_every_pod(served: Place) -> None:
    sidecar = served.pod("a")
    served.until_condition("tenants", "team-a", "Ready", "True")
    served.patch("tenants", "team-a", {"stopPolicy": "Hold"})
    served.until_condition("tenants", "team-a", "Held", "True")
    served.until_condition("tenants", "team-a", "Ready", "True")
    assert {tenant.name: tenant.held for tenant in sidecar.config.tenants} == {
        "team-a": True,
        "team-b": False,
    }
    served.patch("tenants", "team-a", {"stopPolicy": "None"})
    until(lambda: not served.condition("tenants", "team-a", "Held"), "the end of the hold")


@pytest.mark.parametrize(
    ("spec", "words"), [({"weight": 0}, "weight"), ({"wieght": 2}, "wieght")], ids=["zero", "unknown"]
)
def test_api_server_refuses_what_the_schema_rules_out(
    served: Place, spec: dict[str, object], words: str
) -> None:
    manifest = {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "bad"},
        "spec": spec,
    }
    path = f"/apis/fairserve.dev/v1alpha1/namespaces/{served.namespace}/tenants?fieldValidation=Strict"
    with pytest.raises(urllib.error.HTTPError, match=words):
        served.control_plane.request("POST", path, manifest)


def test_broken_tenants_are_told_and_the_others_work(served: Place) -> None:
    sidecar = served.pod("a")
    served.until_condition("tenants", "team-a", "Programmed", "True")

    def tenant(name: str, secret: str) -> dict[str, object]:
        identity = [{"apiKey": {"secretRef": {"name": secret, "key": "api-key"}}}]
        return {
            "apiVersion": "fairserve.dev/v1alpha1",
            "kind": "Tenant",
            "metadata": {"name": name},
            "spec": {"identity": identity},
        }

    # Of two objects made within one second the first by name is the older one.
    served.apply([tenant("team-copycat", "team-a-key"), tenant("keyless", "nowhere")])
    served.patch("tenants", "team-b", {"weight": 7})

    duplicate = served.until_condition("tenants", "team-copycat", "Ready", "False")
    assert "team-a" in duplicate["message"]
    assert "identity[0]" in duplicate["message"]
    missing = served.until_condition("tenants", "keyless", "ResolvedRefs", "False")
    assert "nowhere" in missing["message"]
    assert "identity[0]" in missing["message"]
    served.until_condition("tenants", "team-b", "Programmed", "True")
    weights = {each.name: each.weight for each in sidecar.config.tenants}
    assert (weights["team-a"], weights["team-b"]) == (3, 7)
    owners = {key.tenant for key in sidecar.config.identity.api_keys}
    assert owners == {"team-a", "team-b"}

    late = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "nowhere"},
        "stringData": {"api-key": "k-1"},
    }
    served.apply([late])
    served.until_condition("tenants", "keyless", "Ready", "True")
    assert "keyless" in {key.tenant for key in sidecar.config.identity.api_keys}


def test_labels_and_matches_of_applications_reach_every_sidecar(served: Place) -> None:
    sidecar = served.pod("a")
    match = {"models": ["big"]}
    served.patch("applications", "chat", {"match": match})
    served.patch(
        "tenants",
        "team-a",
        {
            "applications": {"selector": {"matchLabels": {"tier": "low"}}},
            "users": {"from": [{"bodyField": "metadata.who"}]},
        },
    )
    served.patch("tenants", "team-b", {"applications": {"names": ["chat", "nowhere"]}})

    missing = served.until_condition("tenants", "team-b", "ResolvedRefs", "False")
    assert 'spec.applications.names[1]: Tenant "team-b" may use Application "nowhere"' in missing["message"]
    served.until_condition("applications", "chat", "Programmed", "True")
    served.until_condition("tenants", "team-a", "Programmed", "True")

    def usable() -> dict[str, tuple[str, ...] | None]:
        return {tenant.name: tenant.applications for tenant in sidecar.config.tenants}

    until(lambda: usable() == {"team-a": (), "team-b": ("chat",)}, "what each may use")
    assert sidecar.config.tenants[0].user_sources == ("body:metadata.who",)
    # A label alone changes no metadata.generation, and is followed all the same.
    path = served.path("applications", "agent")
    labels = {"metadata": {"labels": {"tier": "low"}}}
    served.control_plane.request("PATCH", path, labels, content_type="application/merge-patch+json")
    until(lambda: usable()["team-a"] == ("agent",), "the Application that was labelled")

    # Of two objects made within one second the first by name is the older one.
    profile = {"inputTokens": 1, "outputTokens": 1}
    copy = {"kind": "Application", "metadata": {"name": "copy"}, "spec": {"profile": profile, "match": match}}
    served.apply([{"apiVersion": "fairserve.dev/v1alpha1", **copy}])
    lost = served.until_condition("applications", "copy", "Ready", "False")
    assert 'Application "copy" and Application "chat"' in lost["message"]
    assert served.until_condition("applications", "chat", "Conflicted", "True")["reason"] == "DuplicateMatch"
    matched = {"agent": False, "chat": True, "copy": False}
    until(
        lambda: {a.name: a.match is not None for a in sidecar.config.applications} == matched,
        "the copy without its match",
    )


def test_pod_that_comes_later_or_starts_anew_is_caught_up(served: Place) -> None:
    first = served.pod("a")
    served.until_condition("tenants", "team-a", "Programmed", "True")
    second = served.sidecar()
    served.announce("b", second)  # Runs, but its control port does not answer yet.
    served.until_condition("servingpools", "llm", "Programmed", "False")
    with second:
        until(lambda: second.generation == first.generation, "the late pod's configuration")
        served.until_condition("servingpools", "llm", "Programmed", "True")

        second.forget()
        served.restart_container("b")
        until(lambda: second.generation == first.generation, "the restarted pod's configuration")


def test_hanging_pod_holds_up_no_other(served: Place) -> None:
    hanging = served.pod("a")
    healthy = [served.pod(name) for name in ("b", "c")]
    served.until_condition("tenants", "team-b", "Programmed", "True")
    until(
        lambda: served.get("servingpools", "llm")["status"].get("programmed") == "3/3",
        "all three pods at once",
    )
    hanging.hang()
    served.patch("tenants", "team-a", {"weight": 9})
    until(
        lambda: all(sidecar.config.tenants[0].weight == 9 for sidecar in healthy),
        "the healthy pods' configuration",
    )
    behind = until(
        lambda: served.get("servingpools", "llm")["status"]["pods"]["behind"],
        "the hanging pod in the pool's status",
    )
    assert [each["pod"] for each in behind] == ["a"]
    assert served.condition("tenants", "team-b", "Programmed")["status"] == "True"
    hanging.go()
    served.until_condition("tenants", "team-a", "Programmed", "True")
    assert hanging.generation == healthy[0].generation


def test_sidecar_with_a_newer_generation_is_overtaken(served: Place) -> None:
    sidecar = served.sidecar()
    sidecar.run(41, "0" * 64)
    with sidecar:
        served.announce("a", sidecar)
        served.until_condition("servingpools", "llm", "Programmed", "True")
    assert sidecar.generation == 42
    assert served.get("servingpools", "llm")["status"]["generation"] == 42


def test_deleted_boot_secret_comes_back_the_same(served: Place) -> None:
    sidecar = served.pod("a")
    for kind, name in (("tenants", "team-a"), ("tenants", "team-b"), ("applications", "chat")):
        served.until_condition(kind, name, "Ready", "True")
    until(
        lambda: served.boot_document().generation == sidecar.generation,
        "the boot Secret, which is written after the sidecars have the configuration",
    )
    before, told = served.boot_secret(), len(sidecar.configs)
    served.delete("secrets", "fairserve-llm")
    after = until(served.boot_secret, "the boot Secret")
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["data"] == before["data"]
    assert len(sidecar.configs) == told


def test_pool_that_is_gone_is_missed(served: Place) -> None:
    sidecar = served.pod("a")
    served.until_condition("tenants", "team-a", "Programmed", "True")
    served.delete("servingpools", "llm")
    missed = served.until_condition("tenants", "team-a", "Programmed", "False")
    assert "no ServingPool" in missed["message"]
    # The garbage collector removes the Secret with its pool; a pool made anew must know its Pods' token.
    until(lambda: served.gone("secrets", "fairserve-llm"), "the Secret to be collected")
    served.apply(two_teams())
    served.until_condition("tenants", "team-a", "Programmed", "True")
    assert sidecar.generation == served.get("servingpools", "llm")["status"]["generation"]


def test_statuses_and_columns_show_what_the_sidecars_do(served: Place) -> None:
    for name in ("a", "b"):
        served.pod(name).tells = {
            "window": {"size": 8},
            "tenants": [{"name": "team-a", "users": 2}],
            "applications": [
                {
                    "name": "chat",
                    "input_tokens": 90,
                    "system_tokens": 5,
                    "output_tokens": 40,
                    "learned_from": 60,
                }
            ],
            "recent": {
                "service_5m": {"team-a": 60.0, "team-b": 40.0},
                "refused_interactions_1h": {"team-b": 9.0},
            },
        }
    served.until_condition("tenants", "team-a", "Ready", "True")
    # What the sidecars do comes after what they run, from one pod and then from both.
    until(lambda: served.get("tenants", "team-a")["status"].get("activeUsers") == 4, "the users of team-a")
    shown = served.get("tenants", "team-a")["status"]["share"]
    assert shown == {"configuredPercent": 75, "achievedPercent": 60}
    learned = {"inputTokens": 90, "systemTokens": 5, "outputTokens": 40, "samples": 120}
    until(
        lambda: served.get("applications", "chat")["status"].get("learned") == learned,
        "what chat has learned on both pods",
    )
    until(lambda: served.get("servingpools", "llm")["status"].get("window") == 16, "the pool's window")
    table = served.control_plane.kubectl("get", "tenants.fairserve.dev", "-n", served.namespace)
    heading, first, second = table.splitlines()
    assert heading.split() == ["NAME", "WEIGHT", "PROGRAMMED", "SHARE", "REFUSED", "READY", "AGE"]
    assert first.split()[:-1] == ["team-a", "3", "2/2", "60", "0", "True"]
    assert second.split()[:-1] == ["team-b", "1", "2/2", "40", "18", "True"]


def test_trouble_is_an_event(served: Place) -> None:
    served.pod("a")
    served.until_condition("tenants", "team-a", "Ready", "True")
    served.delete("secrets", "team-a-key")

    def told() -> dict[str, object] | None:
        path = f"/api/v1/namespaces/{served.namespace}/events"
        events = served.control_plane.request("GET", path)["items"]
        return next((each for each in events if each["involvedObject"]["name"] == "team-a"), None)

    event = until(told, "the Event")
    assert (event["type"], event["reason"]) == ("Warning", "SecretMissing")
    assert "team-a-key" in str(event["message"])
