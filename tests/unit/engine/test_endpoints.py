"""Which requests are scheduled, and which paths of an engine nobody here knows."""

from __future__ import annotations

import json

import pytest

from fairserve.engine.endpoints import (
    ENDPOINTS,
    FREE,
    matching,
    path_of,
    scheduled,
    speaks_anthropic,
    unknown_paths,
)


def openapi(**paths: list[str]) -> bytes:
    described = {path: {method: {} for method in methods} for path, methods in paths.items()}
    return json.dumps({"openapi": "3.1.0", "paths": described}).encode()


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("spelling", ["{}", "{}?x=1", "http://host{}", "/prefix{}"])
def test_every_spelling_of_a_path_that_spends_is_scheduled(path, spelling):
    assert scheduled(b"POST", spelling.format(path).encode()) is ENDPOINTS[path]
    assert scheduled(b"GET", spelling.format(path).encode()) is None


def test_percent_encoding_is_another_spelling():
    assert scheduled(b"POST", b"/v1/%6dessages") is ENDPOINTS["/v1/messages"]
    assert path_of(b"/v1/%6dessages?%6d") == "/v1/messages"


@pytest.mark.parametrize(
    "path", [*sorted(FREE), "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/models"]
)
def test_what_spends_nothing_passes(path):
    assert scheduled(b"POST", path.encode()) is None


def test_tables_do_not_overlap():
    assert not FREE & ENDPOINTS.keys()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/v1/messages", True),
        (b"/v1/messages/count_tokens?beta=true", True),
        (b"http://h/prefix/v1/messages", True),
        (b"/v1/chat/completions", False),
        (b"/v1/chat/completions?x=/v1/messages", False),
        (b"", False),
    ],
)
def test_who_speaks_anthropic(target, expected):
    assert speaks_anthropic(target) is expected


def test_post_paths_in_neither_table_are_named():
    document = openapi(
        **{
            "/v1/new": ["post"],
            "/a/new": ["get", "post"],
            "/v1/read": ["get"],
            "/tokenize": ["post"],
            "/v1/responses/{response_id}/cancel": ["post"],
            **{path: ["post"] for path in ENDPOINTS},
        }
    )
    assert unknown_paths(document) == ("/a/new", "/v1/new")


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/v1/new", True),
        ("/v1/new/", True),
        ("/mounted/v1/new", True),
        ("/a/7/new", True),
        ("/a/7/8/new", False),
        ("/files/a/b", True),
        ("/v1/new/more", False),
        ("/v1.new", False),
        ("/v1/models", False),
    ],
)
def test_paths_of_a_description_are_recognised(path, is_one):
    pattern = matching(["/v1/new", "/a/{id}/new", "/files/{path}"])
    assert pattern is not None
    assert bool(pattern.fullmatch(path)) is is_one
    assert matching([]) is None


def test_no_path_takes_long_to_be_recognised():
    pattern = matching(["/a/{id}/b/{other}/c", "/a/{id}"])
    assert pattern is not None
    for path in ("/a/" * 20_000, "/a/" + "x" * 60_000 + "/b/", "/a/x/b/" * 9_000):
        pattern.fullmatch(path)  # with ".+" for each part it would be here for minutes


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"{}", b'{"paths":[]}', b"[" * 100_000])
def test_what_is_no_description(document):
    assert unknown_paths(document) is None


def test_odd_entries_of_a_description_are_passed_over():
    assert unknown_paths(b'{"paths":{"/new":null,"/other":["post"]}}') == ()
