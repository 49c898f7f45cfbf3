"""How vLLM says what a call cost, in a JSON answer and in a stream of events.

A stream is not parsed: events are counted by their separators and only one that carries a usage object is
looked at. Quotes inside generated text are escaped, so the marks searched for can't come from a model. Some
answers repeat objects of the client's (tools and their schemas): those are read whole and by path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from fairserve.core.calls import Usage

_MARK: Final = b'"usage"'
_DONE: Final = b"data: [DONE]\n\n"
#: No event that ends a stream is longer, so that most need not be looked at.
_LONGEST_DONE: Final = 256
_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')
#: Where an answer's usage begins. Cohere's embeddings have it under another name.
_IN_BODY: Final = re.compile(rb'"(?:usage|billed_units)":(?=\{)')
#: In the event that ends one answer of a stream, and in no other.
_ENDS: Final = b'"finish_reason":"'
_FINGERPRINT: Final = re.compile(rb'"system_fingerprint"\s*:\s*"(?:[^"\\]|\\.)*"')
_EVENT_END: Final = re.compile(rb"\r?\n\r?\n")
#: The id of an answer comes before anything of the client's.
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
#: What is under `json.loads`: reads the value that begins at an index, and says where it ends.
_SCAN: Final[Callable[[str, int], tuple[Any, int]]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
#: An event longer than this is passed on before it is complete, and not searched.
_MAX_HELD: Final = 1 << 20
#: As much of an answer as is kept to find its usage in, from one end or whole.
_KEPT_PART: Final = 65_536
_KEPT_WHOLE: Final = 1 << 20
#: As much of a usage object as is kept, and bytes of the longest mark before one.
_KEPT_USAGE: Final = 4096
_LONGEST_MARK: Final = 16


class Place(Enum):
    """Where in a JSON answer its usage is."""

    END = auto()  #: behind what makes it long, and nothing of the client's is behind it
    BEGINNING = auto()  #: before what makes it long
    ANYWHERE = auto()  #: among objects of the client's, so that only its path tells it from theirs


def read_usage(value: object) -> Usage | None:
    """The usage object of an answer, in OpenAI's two ways to write it, Anthropic's or Cohere's; None for
    anything that isn't one.
    """
    if type(value) is not dict:
        return None
    if type(value.get("tokens")) is dict:  # Cohere's chat
        value = {**value["tokens"], "input_tokens_details": value}
    old = "prompt_tokens" in value
    if not old and "input_tokens" not in value and type(value.get("total_tokens")) is int:
        value, old = {"prompt_tokens": value["total_tokens"]}, True  # prompts alone, in older engines
    prompt = _count(value.get("prompt_tokens" if old else "input_tokens"))
    completion = _count(value.get("completion_tokens" if old else "output_tokens") or 0)
    if prompt is None or completion is None:
        return None
    read, written = value.get("cache_read_input_tokens"), value.get("cache_creation_input_tokens")
    if not old and (read is not None or written is not None):
        # Anthropic counts them beside the input, we inside it.
        cached = _count(read) or 0
        return Usage(prompt + cached + (_count(written) or 0), completion, cached)
    details = value.get("prompt_tokens_details" if old else "input_tokens_details")
    cached_tokens = _count(details.get("cached_tokens")) if type(details) is dict else None
    return Usage(prompt, completion, min(cached_tokens or 0, prompt))


def body_usage(body: bytes) -> Usage | None:
    """Usage from a JSON answer, or from the end of one that was too long to keep."""
    return _last_marked(body) or _usage_in(body)


def header_usage(metadata: bytes) -> Usage | None:
    """Usage from the `metadata` header, where vLLM puts it when the body is raw vectors."""
    return _usage_in(metadata)


def response_id(beginning: bytes) -> str | None:
    """The id of an answer of the Responses API, streamed or not, from its first bytes."""
    match = _ID.search(beginning)
    return None if match is None else match[1].decode("utf-8", "replace")


class KeptBody:
    """As much of an answer that is no stream as its usage is found in."""

    __slots__ = ("_data", "_passed", "_place", "length")

    def __init__(self, place: Place) -> None:
        self.length = 0  #: bytes so far
        self._place = place
        self._data = b""
        self._passed = b""  #: the last usage that lies before what is kept

    def feed(self, data: bytes) -> None:
        """A part of the answer."""
        self.length += len(data)
        if self._place is Place.END:
            kept = self._data + data if self._data else data
            before = len(kept) - _KEPT_PART
            if before > 0:
                # What the client asked for besides the answer may be long and behind it: prompt_logprobs.
                at = _last_mark(kept, before + _LONGEST_MARK)
                if at >= 0:
                    self._passed = kept[at : at + _KEPT_USAGE]
                kept = kept[before:]
            self._data = kept
        elif self._place is Place.BEGINNING:
            if len(self._data) < _KEPT_PART:
                self._data = (self._data + data)[:_KEPT_PART]
        else:
            self._data = self._data + data if self.length <= _KEPT_WHOLE else b""

    def usage(self) -> Usage | None:
        """What the answer says that it cost. None where it says nothing, and where it is too long to tell."""
        if self._place is Place.END:
            return body_usage(self._data) or _first_marked(self._passed)
        if self._place is Place.BEGINNING:
            return _first_marked(self._data)
        return _usage_in(self._data)


def _last_marked(body: bytes) -> Usage | None:
    at = _last_mark(body, len(body))
    return None if at < 0 else _first_marked(body[at:])


def _last_mark(body: bytes, end: int) -> int:
    """Where the last usage begins whose mark ends before `end`; -1 if there is none."""
    return max(body.rfind(b'"usage":{', 0, end), body.rfind(b'"billed_units":{', 0, end))


def _first_marked(body: bytes) -> Usage | None:
    mark = _IN_BODY.search(body)
    if mark is None:
        return None
    try:
        value, _ = _SCAN(body[mark.end() :].decode("utf-8", "replace"), 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return read_usage(value)


class EventStream:
    """The bytes of a server-sent event stream on their way through.

    With `strips` set, the event that holds only usage (`"choices": []`) is taken out; everything else
    leaves as it came. An event that has not fully arrived is held back: it might be the one, and if the
    stream breaks off in it, nobody could read what is said of that behind it.

    vLLM signs its last event with a fingerprint, which is the usage event if there is one. The event that
    ends the last of `answers` waits for it and is signed instead.

    Usage beside choices is not asked for where it is stripped: an engine that sends it does so to everybody
    (vLLM's `--enable-force-include-usage`). Its client would have got the usage event as well, so it stays.
    A vLLM from before March 2026 sends that event alone, which tells nothing: there it is taken out.
    """

    __slots__ = ("_first", "_held", "_last", "_open", "_overlong", "_strips", "_unsigned", "done", "events")

    def __init__(self, *, strips: bool, answers: int = 1) -> None:
        self.events = 0  #: complete events so far, without those taken out
        self.done = False  #: the stream has said that it is over
        self._strips = strips
        self._held = b""
        self._first: bytes | None = None
        self._last: bytes | None = None
        self._overlong = False
        self._open = answers if strips else 0  #: answers whose end, still to come, is looked for
        self._unsigned = b""

    def feed(self, data: bytes) -> bytes:
        """What to pass on now."""
        if self._overlong:
            return self._pass_overlong(data)
        arrived = self._held + data if self._held else data
        # `find` instead of `in`, which raises and catches an error inside, for every token.
        end = arrived.find(b"\n\n")
        if end >= 0 and end == len(arrived) - 2 and arrived.find(b"\r") < 0:
            complete = arrived  # one whole event, as an engine sends them
            if self._held:
                self._held = b""
            self.events += 1
            self.done = end <= _LONGEST_DONE and complete.endswith(_DONE)
        else:
            plain, carried = arrived.rfind(b"\n\n"), arrived.rfind(b"\n\r\n")
            if plain < 0 and carried < 0:
                return self._hold(arrived)
            cut = max(plain + 2, carried + 3 if carried >= 0 else 0)
            complete, self._held = arrived[:cut], arrived[cut:]
            self.events += complete.count(b"\n\n") + complete.count(b"\n\r\n")
            self.done = complete.endswith(_DONE)
        if complete.find(_MARK) >= 0:
            complete = self._look_at(complete)
        if self._open and (self._unsigned or complete.find(_ENDS) >= 0):
            complete = self._signed(complete)
        return complete

    def end(self) -> bytes:
        """The stream is over: what was still held back."""
        held, self._held = self._held, b""
        if _MARK in held:
            self._note(held)
        return self._unsigned + held if not self._overlong else b""

    def cut(self) -> bytes:
        """The stream broke off: the whole event that was held, and what ends one of which a part has been
        passed on. The reader may make nothing of that event, but the next one is read by itself.
        """
        partial = self._overlong
        self._held, self._overlong = b"", False
        return self._release() + (b"\n\n" if partial else b"")

    def usage(self) -> Usage | None:
        """The last usage that the stream carried, with what its beginning said of the prompt; None while
        only that is known.
        """
        if self._last is None:
            return None
        value = _stream_usage(self._last, "", "response", "delta")
        if value is None:
            return None
        return read_usage({**(self._start() or {}), **value})

    def prompt_usage(self) -> Usage | None:
        """What the stream said of the prompt when it began, as Anthropic's do."""
        return read_usage(self._start())

    def _start(self) -> dict[str, Any] | None:
        return None if self._first is None else _stream_usage(self._first, "message")

    def _note(self, event: bytes) -> None:
        if self._first is None:
            self._first = event
        self._last = event

    def _hold(self, arrived: bytes) -> bytes:
        if len(arrived) <= _MAX_HELD:
            self._held = arrived
            return b""
        self._overlong = True
        self._held = arrived[-3:]
        return self._release() + arrived

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

    def _signed(self, complete: bytes) -> bytes:
        """Hold the event that ends the last answer, until the next one has come."""
        if self._unsigned:
            return self._release() + complete
        ended = complete.count(_ENDS)
        if ended < self._open:
            self._open -= ended
            return complete
        at = complete.rfind(_ENDS)
        start = max(complete.rfind(b"\n\n", 0, at) + 2, complete.rfind(b"\n\r\n", 0, at) + 3)
        separator = _EVENT_END.search(complete, at)
        assert separator is not None, "events here are complete"
        passed, rest = complete[: start if start > 2 else 0], complete[separator.end() :]
        self._unsigned = complete[len(passed) : separator.end()]
        if rest or self._last is not None:
            return passed + self._release() + rest
        return passed

    def _release(self) -> bytes:
        """The event that was held, signed as the usage event was."""
        event, self._unsigned, self._open = self._unsigned, b"", 0
        mark = None if self._last is None or not self._strips else _FINGERPRINT.search(self._last)
        if mark is None or not event or _FINGERPRINT.search(event):
            return event
        inside, brace, after = event.rpartition(b"}")
        return b"%b,%b%b%b" % (inside, mark[0], brace, after) if brace else event

    def _look_at(self, complete: bytes) -> bytes:
        kept = []
        start = 0
        for separator in _EVENT_END.finditer(complete):
            event = complete[start : separator.end()]
            start = separator.end()
            if _MARK in event and _OBJECT.search(event):
                self._note(event)
                if self._strips:
                    choices = _choices_beside_usage(event)
                    if choices == []:
                        self.events -= 1
                        continue
                    if choices:
                        self._strips = False
                        if not self._unsigned:
                            self._open = 0
            kept.append(event)
        return b"".join(kept)


def _choices_beside_usage(event: bytes) -> list[Any] | None:
    """The choices of an event with usage; None for one that has not both."""
    try:
        chunk: Any = json.loads(_payload(event))
    except (ValueError, RecursionError):
        return None
    if type(chunk) is not dict or type(chunk.get("usage")) is not dict:
        return None
    choices = chunk.get("choices")
    return choices if type(choices) is list else None


def _payload(event: bytes) -> bytes:
    """The data of one event: its `data:` lines, joined."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def _stream_usage(event: bytes, *places: str) -> dict[str, Any] | None:
    """The usage object of an event: at the top ("") or inside what each kind of stream wraps it in."""
    try:
        chunk: Any = json.loads(_payload(event))
    except (ValueError, RecursionError):
        return None
    if type(chunk) is not dict:
        return None
    for place in places:
        holder = chunk.get(place) if place else chunk
        usage = holder.get("usage") if type(holder) is dict else None
        if type(usage) is dict:
            return usage
    return None


def _usage_in(document: bytes) -> Usage | None:
    try:
        value: Any = json.loads(document)
    except (ValueError, RecursionError):
        return None
    return read_usage(value.get("usage")) if type(value) is dict else None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
