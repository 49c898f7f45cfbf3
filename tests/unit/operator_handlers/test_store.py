"""The store: what it holds, and when it says that somebody must act."""

from __future__ import annotations

from dataclasses import replace

from fairserve_operator.decide.resources import TENANT, ObjectKey
from fairserve_operator.handlers.store import Store
from tests.unit.operator_handlers.world import pod, resource

TEAM = resource(TENANT, "team-a", {"weight": 3})


def test_new_and_changed_objects_are_news_and_equal_ones_are_not() -> None:
    store = Store()
    assert store.put(TEAM, 5, {})
    revision = store.revision("ns")
    assert not store.put(TEAM, 6, {"programmed": "1/1"})
    assert store.revision("ns") == revision
    assert store.put(replace(TEAM, spec={"weight": 4}, generation=2), 7, {})
    assert store.revision("ns") > revision
    assert store.objects("ns", TENANT)[0].spec == {"weight": 4}


def test_recreated_object_of_equal_spec_is_news() -> None:
    store = Store()
    store.put(TEAM, 5, {})
    assert store.put(replace(TEAM, uid="another"), 6, {})


def test_status_follows_the_newest_version_whoever_brings_it() -> None:
    store = Store()
    store.put(TEAM, 5, {"programmed": "0/1"})
    store.put_status(TEAM.key, 9, {"programmed": "1/1"})
    store.put(TEAM, 7, {"programmed": "0/1"})  # The event before our own write comes after it.
    stored = store.stored(TEAM.key)
    assert stored is not None
    assert stored.status == {"programmed": "1/1"}
    store.put_status(ObjectKey(TENANT, "ns", "gone"), 9, {})
    assert store.stored(ObjectKey(TENANT, "ns", "gone")) is None


def test_removed_objects_are_news_once() -> None:
    store = Store()
    store.put(TEAM, 5, {})
    assert store.occupied("ns")
    assert store.remove(TENANT, "ns", "team-a")
    assert not store.remove(TENANT, "ns", "team-a")
    assert not store.occupied("ns")
    assert store.namespaces() == frozenset()


def test_pods_are_news_only_in_what_their_sidecar_is_told_by() -> None:
    store = Store()
    assert store.put_pod(pod("a"), 1)
    assert not store.put_pod(pod("a"), 2)
    assert store.put_pod(pod("a", incarnation="main:1"), 3)
    assert store.revision("ns") == 0


def test_only_reachable_pods_with_all_labels_are_chosen() -> None:
    store = Store()
    for each in (
        pod("right", labels={"app": "vllm", "zone": "x"}),
        pod("other app", labels={"app": "web"}),
        pod("no address", ip=""),
        pod("pending", running=False),
    ):
        store.put_pod(each, 1)
    assert [each.name for each in store.pods("ns", {"app": "vllm"})] == ["right"]
    assert store.pods("ns", {"app": "vllm", "zone": "y"}) == ()
    assert store.pods("elsewhere", {"app": "vllm"}) == ()


def test_secret_values_make_a_revision_and_versions_alone_do_not() -> None:
    store = Store()
    assert store.put_secret("ns", "key", 1, {"api-key": b"x"})
    revision = store.revision("ns")
    assert store.put_secret("ns", "key", 2, {"api-key": b"x"})  # Maybe a boot Secret: worth a look.
    assert not store.put_secret("ns", "key", 2, {"api-key": b"x"})
    assert store.revision("ns") == revision
    store.put_secret("ns", "key", 3, {"api-key": b"y"})
    assert store.revision("ns") > revision
    assert store.secret("ns", "key") == {"api-key": b"y"}
    assert store.secret_version("ns", "key") == 3
    assert store.secret("ns", "other") is None
    assert store.secret_version("ns", "other") is None


def test_census_finds_who_is_missing_and_who_vanished_but_not_who_came_later() -> None:
    store = Store()
    store.put(TEAM, 5, {})
    store.put(resource(TENANT, "late", {}), 50, {})
    store.put_pod(pod("a"), 7)
    store.put_secret("ns", "key", 8, {})
    assert store.missing(TENANT, [("ns", "team-a"), ("ns", "unseen")]) == [("ns", "unseen")]
    assert store.vanished(TENANT, None, {}, 10) == [("ns", "team-a")]
    assert store.vanished(TENANT, "ns", {("ns", "team-a"): "5"}, 10) == []
    assert store.vanished("Pod", "ns", {}, 10) == [("ns", "a")]
    assert store.vanished("Secret", None, {}, 10) == [("ns", "key")]
    assert store.vanished("Secret", "elsewhere", {}, 10) == []


def test_statuses_that_others_wrote_are_told_once() -> None:
    store = Store()
    store.put(resource(TENANT, "a", {}), 1, {"weight": 1})
    store.put_status(ObjectKey(TENANT, "ns", "a"), 2, {"weight": 2})
    store.put(resource(TENANT, "a", {}), 2, {"weight": 2})  # Our own, as the watch tells it.
    assert store.take_rewritten("ns") == set()
    store.put(resource(TENANT, "a", {}), 3, {"weight": 3})
    assert store.take_rewritten("ns") == {ObjectKey(TENANT, "ns", "a")}
    assert store.take_rewritten("ns") == set()
