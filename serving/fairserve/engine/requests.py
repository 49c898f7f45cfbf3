"""What a completion request asks for, and how to ask vLLM for its usage without the client's doing.

A body is read once, as vLLM reads it: Python's `json`, where the last of two equal keys wins, with
pydantic's lenient booleans and integers. A body that can't be read is no error here: the engine gets it
unchanged and answers for itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """What matters to the scheduler in the body of a chat or text completion.

    `sequences` is how many answers are asked for: `n` times the number of prompts. `max_output_tokens` is
    the client's cap for all of them together, None without one. `payload` is the body for the engine:
    the client's own bytes, or those with the usage request added when `strips_usage` is set.
    """

    payload: bytes
    stream: bool = False
    strips_usage: bool = False
    sequences: int = 1
    max_output_tokens: int | None = None
    user: str = ""


def read_completion(body: bytes) -> CompletionRequest:
    """Read the body of `/v1/chat/completions` or `/v1/completions`."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return CompletionRequest(body)
    if type(fields) is not dict:
        return CompletionRequest(body)
    stream = _boolean(fields.get("stream"))
    options = fields.get("stream_options")
    asked = type(options) is dict and _boolean(options.get("include_usage"))
    strips = stream and not asked and (options is None or type(options) is dict)
    sequences = _sequences(fields)
    cap = _integer(fields.get("max_completion_tokens"))
    if cap is None:
        cap = _integer(fields.get("max_tokens"))
    user = fields.get("user")
    return CompletionRequest(
        payload=_asking_for_usage(body, fields, options) if strips else body,
        stream=stream,
        strips_usage=strips,
        sequences=sequences,
        max_output_tokens=None if cap is None else cap * sequences,
        user=user if type(user) is str else "",
    )


def _asking_for_usage(body: bytes, fields: dict[str, Any], options: dict[str, Any] | None) -> bytes:
    """The body with `stream_options.include_usage` set. All other bytes stay: the field goes last, where it
    wins over an earlier one. Usage in every chunk, which the client has not got so far, stays off.
    """
    wanted = {**(options or {}), "include_usage": True}
    if "continuous_usage_stats" in wanted:
        wanted["continuous_usage_stats"] = False
    end = body.rstrip(b" \t\r\n")
    if not end.endswith(b"}") or json.detect_encoding(body) != "utf-8":
        return json.dumps({**fields, "stream_options": wanted}).encode()
    return b"%b,%b}" % (end[:-1], json.dumps({"stream_options": wanted})[1:-1].encode())


def _sequences(fields: dict[str, Any]) -> int:
    count = _integer(fields.get("n")) or 1
    prompt = fields.get("prompt")
    if type(prompt) is list and prompt and type(prompt[0]) is not int:
        count *= len(prompt)
    return count


def _boolean(value: object) -> bool:
    """Pydantic's lax boolean; what it would refuse is false, the engine refuses it."""
    if value is True or value is False:
        return value
    if type(value) is str:
        return value.lower() in _TRUE
    return value == 1


def _integer(value: object) -> int | None:
    """Pydantic's lax integer; None for what it would refuse, and for what is not above zero."""
    if type(value) is str and len(value) < 20:
        try:
            value = int(value)
        except ValueError:
            return None
    elif type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or value <= 0:
        return None
    return value
