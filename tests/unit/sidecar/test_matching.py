"""Which application a call is that names none."""

from __future__ import annotations

import itertools

import pytest

from fairserve.config import ApplicationConfig
from fairserve.sidecar.matching import MODEL, application_matches

CHAT = b"/v1/chat/completions"


def application(name: str, **match: object) -> ApplicationConfig:
    return ApplicationConfig(name=name, input_tokens=1, output_tokens=1, match=match or None)


def found(
    applications: list[ApplicationConfig],
    model: str | None = None,
    target: bytes = CHAT,
    **headers: bytes,
) -> str | None:
    matches = application_matches(applications)
    assert matches is not None
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return matches.find(named, {} if model is None else {MODEL: model}, target)


def test_without_matches_there_is_nothing_to_look_for():
    assert application_matches([application("a"), application("b")]) is None


def test_model_is_one_of_those_listed_exactly():
    applications = [application("a", models=["m", "n"]), application("b")]
    assert [found(applications, model) for model in ("m", "n", "M", "m2", None)] == [
        "a",
        "a",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/v1/embeddings", "a"),
        (b"/v1/embeddings?x=1", "a"),
        (b"http://host/v1/embeddings", "a"),
        (b"/v1/%65mbeddings", "a"),
        (b"/v1/embeddings/", None),
        (b"/prefix/v1/embeddings", None),
        (CHAT, None),
    ],
)
def test_path_is_what_the_engine_sees(target, name):
    assert found([application("a", paths=["/v1/embeddings", "/pooling"])], target=target) == name


def test_all_headers_are_needed():
    applications = [application("a", headers={"x-kind": "batch", "x-tier": "low"})]
    assert found(applications, x_kind=b"batch", x_tier=b"low", x_other=b"1") == "a"
    assert found(applications, x_kind=b"batch") is None
    assert found(applications, x_kind=b"batch", x_tier=b"lower") is None


def test_kinds_of_match_are_needed_together():
    applications = [application("a", models=["m"], paths=[CHAT.decode()], headers={"x-kind": "k"})]
    assert found(applications, "m", x_kind=b"k") == "a"
    assert found(applications, "n", x_kind=b"k") is None
    assert found(applications, "m", b"/v1/completions", x_kind=b"k") is None
    assert found(applications, "m") is None


#: The best first: each matches the call below.
BY_RANK = [
    application("z-two-headers", headers={"x-a": "1", "x-b": "1"}),
    application("y-header-and-model", headers={"x-a": "1"}, models=["m"]),
    application("x-header-and-path", headers={"x-a": "1"}, paths=[CHAT.decode()]),
    application("w-header", headers={"x-b": "1"}),
    application("v-model-and-path", models=["m"], paths=[CHAT.decode()]),
    application("a-model", models=["m", "n"]),
    application("b-model", models=["m"]),
    application("a-path", paths=[CHAT.decode()]),
]


@pytest.mark.parametrize("at", range(len(BY_RANK)))
def test_the_most_specific_match_counts_in_whatever_order_they_are_listed(at):
    for some in itertools.islice(itertools.permutations(BY_RANK[at:]), 0, None, 37):
        assert found(list(some), "m", x_a=b"1", x_b=b"1") == BY_RANK[at].name


def test_bodies_are_read_for_models_only_where_one_is_wanted():
    by_model = application_matches([application("a", models=["m"])])
    by_path = application_matches([application("a", paths=["/x"])])
    assert by_model is not None
    assert by_path is not None
    assert (by_model.body_fields, by_path.body_fields) == ((MODEL,), ())
