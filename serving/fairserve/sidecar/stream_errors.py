"""The last words of a stream whose engine broke off, in the stream's own format.

The client was promised a 200, so the error comes as an event: as vLLM writes one for an error of its own,
or as the API's clients know it where vLLM has none.
"""

from __future__ import annotations

import json
from typing import Any, assert_never

from fairserve.engine.endpoints import EventFormat
from fairserve.sidecar.refusals import Problem

_DONE = b"data: [DONE]\n\n"


def error_events(form: EventFormat, problem: Problem, number: int) -> bytes:
    """The events that end a stream with `problem`. `number` is how many events came before them."""
    if form is EventFormat.OPENAI:
        error = {"message": problem.message, "type": "server_error", "param": None, "code": problem.code}
        return _event({"error": error}) + _DONE
    if form is EventFormat.RESPONSES:
        return b"event: error\n" + _event(
            {
                "type": "error",
                "code": problem.code,
                "message": problem.message,
                "param": None,
                "sequence_number": number,
            }
        )
    if form is EventFormat.ANTHROPIC:
        error = {"type": "api_error", "message": problem.message}
        return b"event: error\n" + _event({"type": "error", "error": error})
    if form is EventFormat.COHERE:
        delta = {"error": problem.message, "finish_reason": "ERROR"}
        return _event({"type": "message-end", "delta": delta}) + _DONE
    assert_never(form)


def _event(content: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(content).encode()
