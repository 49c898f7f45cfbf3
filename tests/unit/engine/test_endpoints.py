"""Which requests are scheduled."""

from __future__ import annotations

import pytest

from fairserve.engine.endpoints import (
    ENDPOINTS,
    FREE,
    path_of,
    scheduled,
    speaks_anthropic,
)


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("spelling", ["{}", "{}?x=1", "http://host{}", "/prefix{}"])
def test_every_spelling_of_a_path_that_spends_is_scheduled(path, spelling):
    assert scheduled(b"POST", spelling.format(path).encode()) is ENDPOINTS[path]
    assert scheduled(b"GET", spelling.format(path).encode()) is None


def test_percent_encoding_is_another_spelling():
    assert scheduled(b"POST", b"/v1/%6dessages") is ENDPOINTS["/v1/messages"]
    assert path_of(b"/v1/%6dessages?%6d") == "/v1/messages"


@pytest.mark.parametrize("path", [*FREE, "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/models"])
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
