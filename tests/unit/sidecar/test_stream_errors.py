"""How a stream says that its engine broke off."""

from __future__ import annotations

import json

from fairserve.engine.endpoints import ENDPOINTS, EventFormat
from fairserve.sidecar.refusals import ENGINE_BROKEN
from fairserve.sidecar.stream_errors import error_events

MESSAGE = ENGINE_BROKEN.message


def read(form: EventFormat) -> list[tuple[bytes, object]]:
    """Name and content of each event."""
    whole = error_events(form, ENGINE_BROKEN, 12)
    assert whole.endswith(b"\n\n")
    found: list[tuple[bytes, object]] = []
    for part in whole[:-2].split(b"\n\n"):
        name, _, data = part.rpartition(b"data: ")
        found.append((name.strip(), data if data == b"[DONE]" else json.loads(data)))
    return found


def test_openai():
    error = {"message": MESSAGE, "type": "server_error", "param": None, "code": "engine_broken"}
    assert read(EventFormat.OPENAI) == [(b"", {"error": error}), (b"", b"[DONE]")]


def test_responses():
    content = {"type": "error", "code": "engine_broken", "message": MESSAGE, "param": None}
    assert read(EventFormat.RESPONSES) == [(b"event: error", {**content, "sequence_number": 12})]


def test_anthropic():
    content = {"type": "error", "error": {"type": "api_error", "message": MESSAGE}}
    assert read(EventFormat.ANTHROPIC) == [(b"event: error", content)]


def test_cohere():
    delta = {"error": MESSAGE, "finish_reason": "ERROR"}
    expected = [(b"", {"type": "message-end", "delta": delta}), (b"", b"[DONE]")]
    assert read(EventFormat.COHERE) == expected


def test_each_endpoint_has_its_own_format():
    others = {path: known.events for path, known in ENDPOINTS.items() if known.events != EventFormat.OPENAI}
    assert others == {
        "/v1/responses": EventFormat.RESPONSES,
        "/v1/messages": EventFormat.ANTHROPIC,
        "/cohere/v2/chat": EventFormat.COHERE,
    }
