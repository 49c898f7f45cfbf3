"""Which refusals of the engine come before it computed anything."""

from __future__ import annotations

import json

import pytest

from fairserve.engine.admission import may_be_sent_again, turned_away
from fairserve.engine.endpoints import ENDPOINTS
from fairserve.engine.requests import EngineRequest

BUSY = "The engine is currently busy and cannot accept new requests. Please try again later."
BACKLOG = "The engine has reached its prefill token backlog limit. Please try again later."


@pytest.mark.parametrize(
    "content",
    [
        {"error": {"message": BUSY, "type": "Service Unavailable", "param": None, "code": 503}},
        {"error": {"message": BACKLOG}},
        {"type": "error", "error": {"type": "Service Unavailable", "message": BUSY}},
        {"error": "The model is currently scaling. Please try again later."},
    ],
)
def test_refused_before_anything_was_computed(content):
    assert turned_away(json.dumps(content).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"error": null}',
        b'{"error": {"message": "Request failed; please retry"}}',
        json.dumps({"error": {"message": f"A tool said: {BUSY}"}}).encode(),
        json.dumps({"message": BUSY}).encode(),
    ],
)
def test_anything_else_may_have_been_computed(body):
    assert not turned_away(body)


ONCE = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/inference/v1/generate",
    "/cohere/v2/chat",
}


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
def test_only_one_prompt_that_is_admitted_once_may_go_again(path):
    endpoint = ENDPOINTS[path]
    assert may_be_sent_again(endpoint, EngineRequest(b"{}")) == (path in ONCE)
    assert not may_be_sent_again(endpoint, EngineRequest(b"{}", sequences=2))
    assert not may_be_sent_again(endpoint, EngineRequest(b'{"use_beam_search":true}'))
