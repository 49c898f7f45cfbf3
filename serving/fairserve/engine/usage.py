"""How vLLM says what a call cost, in a JSON answer and in a stream of events.

A stream is not parsed: events are counted by their separators and only one that carries a usage object is
looked at. Quotes inside generated text are escaped, so the marks searched for can't come from a model.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fairserve.core.calls import Usage

_MARK = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DECODER = json.JSONDecoder()
#: An event longer than this is passed on before it is complete, and not searched.
_MAX_HELD = 1 << 20


def read_usage(value: object) -> Usage | None:
    """The usage object of an answer; None for anything that isn't one."""
    if type(value) is not dict:
        return None
    prompt, completion = _count(value.get("prompt_tokens")), _count(value.get("completion_tokens") or 0)
    if prompt is None or completion is None:
        return None
    details = value.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if type(details) is dict else None
    return Usage(prompt, completion, min(cached or 0, prompt))


def body_usage(body: bytes) -> Usage | None:
    """Usage from a JSON answer, or from the end of one that was too long to keep."""
    at = body.rfind(b'"usage":{')
    if at >= 0:
        try:
            value, _ = _DECODER.raw_decode(body[at + 8 :].decode())
        except ValueError:
            value = None
        usage = read_usage(value)
        if usage is not None:
            return usage
    return _usage_in(body)


class EventStream:
    """The bytes of a server-sent event stream on their way through.

    With `strips` set, the event that holds only usage (`"choices": []`) is taken out; everything else
    leaves as it came. An event that has not fully arrived is held back then, because it might be the one.
    """

    __slots__ = ("_held", "_last", "_overlong", "_strips", "events")

    def __init__(self, *, strips: bool) -> None:
        self.events = 0  #: complete events so far, without those taken out
        self._strips = strips
        self._held = b""
        self._last: bytes | None = None
        self._overlong = False

    def feed(self, data: bytes) -> bytes:
        """What to pass on now."""
        if self._overlong:
            return self._pass_overlong(data)
        arrived = self._held + data if self._held else data
        cut = arrived.rfind(b"\n\n") + 2
        if b"\n\r\n" in arrived:
            cut = max(cut, arrived.rfind(b"\n\r\n") + 3)
        if cut < 2:
            return self._hold(arrived, data)
        complete, self._held = arrived[:cut], arrived[cut:]
        self.events += complete.count(b"\n\n") + complete.count(b"\n\r\n")
        if _MARK in complete:
            complete = self._look_at(complete)
        return complete if self._strips else data

    def end(self) -> bytes:
        """The stream is over: what was still held back."""
        held, self._held = self._held, b""
        if _MARK in held:
            self._last = held
        return held if self._strips and not self._overlong else b""

    def usage(self) -> Usage | None:
        """The last usage that the stream carried."""
        return None if self._last is None else _usage_in(_payload(self._last))

    def _hold(self, arrived: bytes, data: bytes) -> bytes:
        if len(arrived) <= _MAX_HELD:
            self._held = arrived
            return b"" if self._strips else data
        self._overlong = True
        self._held = arrived[-3:]
        return arrived if self._strips else data

    def _pass_overlong(self, data: bytes) -> bytes:
        """Pass on up to the overlong event's end; what is held has left already and only helps to see it."""
        end = _EVENT_END.search(self._held + data)
        if end is None:
            self._held = (self._held + data)[-3:]
            return data
        rest = end.end() - len(self._held)
        self._held, self._overlong = b"", False
        self.events += 1
        return data[:rest] + self.feed(data[rest:])

    def _look_at(self, complete: bytes) -> bytes:
        kept = []
        start = 0
        for separator in _EVENT_END.finditer(complete):
            event = complete[start : separator.end()]
            start = separator.end()
            if _MARK in event and _OBJECT.search(event):
                self._last = event
                if self._strips and _holds_only_usage(event):
                    self.events -= 1
                    continue
            kept.append(event)
        return b"".join(kept)


def _holds_only_usage(event: bytes) -> bool:
    if not _NO_CHOICES.search(event):
        return False
    try:
        chunk = json.loads(_payload(event))
    except ValueError:
        return False
    return type(chunk) is dict and chunk.get("choices") == [] and type(chunk.get("usage")) is dict


def _payload(event: bytes) -> bytes:
    """The data of one event: its `data:` lines, joined."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def _usage_in(document: bytes) -> Usage | None:
    try:
        value: Any = json.loads(document)
    except (ValueError, RecursionError):
        return None
    return read_usage(value.get("usage")) if type(value) is dict else None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
