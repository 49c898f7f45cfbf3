"""Bodies bent at random, read as the engine reads them: Python's `json`, then pydantic's lax types.

What we read differently would be a way around us: a priority that we left in, a stream that we did not see.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fairserve.engine.requests import EngineRequest, boolean, completion_amount, integer, read_json
from tests.property import fuzz_cases

CASES = fuzz_cases.BODIES
NAMES = ("stream", "stream_options", "priority", "cache_salt", "n", "max_tokens", "max_completion_tokens")
NAMES += ("prompt", "user", "metadata", "model", "é", "", "priority\0", "Priority")
INSIDE = ("include_usage", "continuous_usage_stats", "priority", "user_id", "x")
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 2, -1, 1.0, 2.5, 1e400, 10**30)
VALUES += (
    "",
    "1",
    "true",
    "On",
    "f",
    " 3 ",
    "3.0",
    "1_0",
    "1__0",
    "+4",
    "-2.0",
    "3.",
    "0x1",
    "٣",
    "0" * 30 + "2",
    "nonsense",
    '"}',
    "," * 30,
)
VALUES += ("\ud800", "\U0001d538", [], [1, 2], ["a", "b"], [[1], [2]], {}, [{}])
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32-be")
NASTY = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"}",
    b"{",
    b'"',
    b",",
    b",,",
    b"\\",
    b"\\u0000",
    b" ",
    b"\n",
    b"NaN",
    b"1",
)
_BOOLEAN: TypeAdapter[bool | None] = TypeAdapter(bool | None)
_INTEGER: TypeAdapter[int | None] = TypeAdapter(int | None)


def body(rng: random.Random) -> bytes:
    """The text of an object, with members twice, escaped names and odd space, and often with a bend."""
    members = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(NAMES)
        if name == "stream_options" and rng.random() < 0.7:
            text = json.dumps({rng.choice(INSIDE): rng.choice(VALUES) for _ in range(rng.randrange(3))})
        else:
            text = json.dumps(rng.choice(VALUES), ensure_ascii=rng.random() < 0.7)
        members.append(space(rng) + spelled(rng, name) + space(rng) + ":" + space(rng) + text + space(rng))
    text = space(rng) + "{" + ",".join(members) + "}" + space(rng)
    if rng.random() < 0.08:
        data = text.encode(rng.choice(ENCODINGS), "surrogatepass")
    else:
        data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(NASTY) + data[at + rng.randrange(3) :]
    return data


def space(rng: random.Random) -> str:
    return rng.choice(("", "", "", " ", "\t\r\n"))


def spelled(rng: random.Random, name: str) -> str:
    """A name as JSON, now and then with a letter escaped."""
    text = json.dumps(name)
    if name.isascii() and name.isalpha() and rng.random() < 0.2:
        at = rng.randrange(len(name))
        text = f'"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"'
    return text


def lax(adapter: TypeAdapter[Any], value: object) -> Any:
    """What the engine makes of a value; None if it refuses it."""
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None


def read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def text(value: object) -> str:
    """For comparison: NaN is itself here, and 1 is not True."""
    return json.dumps(value, sort_keys=True)


def check(data: bytes, asked: EngineRequest, *, trusted: bool) -> None:
    fields = read(data)
    if type(fields) is not dict:
        assert asked == EngineRequest(data)
        return
    if not trusted:
        fields = {name: value for name, value in fields.items() if name not in ("priority", "cache_salt")}
    stream = bool(lax(_BOOLEAN, fields.get("stream")))
    assert asked.stream == stream
    options = fields.get("stream_options")
    if asked.strips_usage:
        assert stream
        assert not lax(_BOOLEAN, (options or {}).get("include_usage"))
        wanted = {**(options or {}), "include_usage": True}
        if "continuous_usage_stats" in wanted:
            wanted["continuous_usage_stats"] = False
        fields["stream_options"] = wanted
    elif stream and (options is None or type(options) is dict):
        assert lax(_BOOLEAN, (options or {}).get("include_usage"))
    assert text(read(asked.payload)) == text(fields)
    check_numbers(asked, fields)


def check_numbers(asked: EngineRequest, fields: dict[str, Any]) -> None:
    def positive(name: str) -> int | None:
        value = lax(_INTEGER, fields.get(name))
        return value if value is not None and value > 0 else None

    answers = positive("n") or 1
    assert asked.sequences % answers == 0
    cap = positive("max_completion_tokens") or positive("max_tokens")
    assert asked.max_output_tokens == (None if cap is None else cap * asked.sequences)


def test_bodies_are_read_as_the_engine_reads_them():
    rng = random.Random(21)
    started = time.monotonic()
    readable = 0
    for _ in range(CASES):
        data, trusted = body(rng), rng.random() < 0.3
        try:
            asked = read_json(data, completion_amount, trusted=trusted, usage_on_request=True)
            check(data, asked, trusted=trusted)
        except Exception as error:
            error.add_note(f"the body is {data!r}, trusted {trusted}")
            raise
        readable += asked != EngineRequest(data)
    print(f"{CASES} cases in {time.monotonic() - started:.1f} s, {readable} of them say something")
    assert readable > CASES / 5


def test_single_values_are_read_as_pydantic_reads_them():
    for value in VALUES:
        assert boolean(value) == bool(lax(_BOOLEAN, value)), value
        known = lax(_INTEGER, value)
        assert integer(value) == (known if known is not None and known > 0 else None), value
