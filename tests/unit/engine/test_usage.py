"""Usage from answers and streams; what is taken out of a stream, wherever the network cuts it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairserve.core.calls import Usage
from fairserve.engine.usage import (
    EventStream,
    KeptBody,
    Place,
    body_usage,
    header_usage,
    read_usage,
    response_id,
)

USAGE = {
    "prompt_tokens": 7,
    "total_tokens": 9,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 4},
}
TOKENS = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\\n\\n\\"usage\\":{ \\"choices\\":[]"}}]}\n\n'
)
ONLY_USAGE = (
    b'data: {"id":"c","choices":[],"usage":' + json.dumps(USAGE, separators=(",", ":")).encode() + b"}\n\n"
)
DONE = b"data: [DONE]\n\n"
STREAM = TOKENS + ONLY_USAGE + DONE


def run(stream: EventStream, pieces) -> bytes:
    passed = b"".join([stream.feed(piece) for piece in pieces])
    return passed + stream.end()


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_usage_event_is_taken_out_wherever_the_stream_is_cut(cut):
    stream = EventStream(strips=True)
    assert run(stream, [STREAM[:cut], STREAM[cut:]]) == TOKENS + DONE
    assert stream.usage() == Usage(7, 2, 4)
    assert stream.events == 3


@given(st.lists(st.integers(1, 9), min_size=1), st.booleans(), st.booleans())
def test_pieces_change_nothing(sizes, strips, crlf):
    data = STREAM.replace(b"\n\n", b"\r\n\r\n") if crlf else STREAM
    only = ONLY_USAGE.replace(b"\n\n", b"\r\n\r\n") if crlf else ONLY_USAGE
    pieces, rest, turn = [], data, 0
    while rest:
        size = sizes[turn % len(sizes)]
        pieces.append(rest[:size])
        rest, turn = rest[size:], turn + 1
    stream = EventStream(strips=strips)
    assert run(stream, pieces) == (data.replace(only, b"") if strips else data)
    assert stream.usage() == Usage(7, 2, 4)
    assert stream.events == (3 if strips else 4)


@pytest.mark.parametrize("strips", [True, False])
def test_whole_events_leave_at_once_and_a_part_waits_for_its_rest(strips):
    stream = EventStream(strips=strips)
    assert stream.feed(TOKENS + b"data: {") == TOKENS
    assert stream.feed(b"}\n\n") == b"data: {}\n\n"


def test_stream_that_has_said_that_it_is_over_is():
    stream = EventStream(strips=False)
    stream.feed(TOKENS)
    assert not stream.done
    stream.feed(DONE[:9])
    assert not stream.done
    stream.feed(DONE[9:])
    assert stream.done


def test_complete_events_leave_at_once_and_only_the_last_is_held():
    stream = EventStream(strips=True)
    assert stream.feed(TOKENS + b"data: {") == TOKENS
    assert stream.feed(b"}\n\n") == b"data: {}\n\n"


def test_usage_beside_choices_stays():
    event = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    stream = EventStream(strips=True)
    assert run(stream, [event, DONE]) == event + DONE
    assert stream.usage() == Usage(1, 1)


@pytest.mark.parametrize("cut", range(0, 600, 7))
def test_of_an_engine_that_gives_usage_to_everybody_nothing_is_taken_out(cut):
    usages = [{"prompt_tokens": 7, "completion_tokens": count} for count in range(3)]
    choices = [{"delta": {"content": "a"}, "finish_reason": end} for end in (None, None, "stop")]
    each = [event({"choices": [one], "usage": usage}) for one, usage in zip(choices, usages, strict=True)]
    last = event({"choices": [], "usage": usages[-1], "system_fingerprint": FINGERPRINT})
    forced = b"".join(each) + last + DONE
    stream = EventStream(strips=True)
    assert run(stream, [forced[:cut], forced[cut:]]) == forced
    assert stream.usage() == Usage(7, 2)
    assert stream.events == 5


def test_usage_that_comes_first_with_an_answers_end_changes_no_order():
    """Whose it is can't be known before; the one that waits is not signed then."""
    ended = answer(0, signed=False)
    late = event({"choices": [{"index": 1, "delta": {}}], "usage": USAGE, "system_fingerprint": "f"})
    for pieces in ([ended, late, ONLY_USAGE, DONE], [ended + late + ONLY_USAGE + DONE]):
        assert run(EventStream(strips=True), pieces) == ended + late + ONLY_USAGE + DONE


def test_empty_choices_without_usage_stay():
    event = b'data: {"choices":[],"usage":null,"prompt_filter_results":[]}\n\n'
    assert run(EventStream(strips=True), [event]) == event


def test_spaces_in_json_change_nothing():
    event = b"data:" + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    stream = EventStream(strips=True)
    assert run(stream, [event + DONE]) == DONE
    assert stream.usage() == Usage(7, 2, 4)


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("size", [1 << 16, 3_000_001])
def test_event_too_long_to_hold_is_passed_and_the_next_is_still_seen(strips, size):
    long = b"data: " + b"x" * 2_500_000 + b"\n\n"
    data = long + ONLY_USAGE + DONE
    stream = EventStream(strips=strips)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert run(stream, pieces) == (long + DONE if strips else data)
    assert stream.usage() == Usage(7, 2, 4)
    assert len(stream._held) == 0


def answer(index: int, *, signed: bool) -> bytes:
    """Two tokens, the second of which ends one answer of a stream."""
    first = {"choices": [{"index": index, "delta": {"content": "\n\n"}, "finish_reason": None}]}
    last = {"choices": [{"index": index, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    if signed:
        last["system_fingerprint"] = FINGERPRINT
    return event(first) + event(last)


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


FINGERPRINT = 'vllm-1 "x" {'
SIGNED_USAGE = event({"choices": [], "usage": USAGE, "system_fingerprint": FINGERPRINT})
END = answer(0, signed=False) + SIGNED_USAGE + DONE


@pytest.mark.parametrize("cut", range(len(END) + 1))
def test_fingerprint_of_the_usage_event_is_put_where_the_engine_puts_it_without_one(cut):
    stream = EventStream(strips=True)
    assert run(stream, [END[:cut], END[cut:]]) == answer(0, signed=True) + DONE
    assert stream.events == 3


def test_of_several_answers_the_last_is_signed_and_the_others_do_not_wait():
    stream = EventStream(strips=True, answers=2)
    assert stream.feed(answer(1, signed=False)) == answer(1, signed=False)
    held = stream.feed(answer(0, signed=False))
    assert held + stream.feed(SIGNED_USAGE + DONE) + stream.end() == answer(0, signed=True) + DONE


@pytest.mark.parametrize(
    "after", [DONE, answer(1, signed=False), ONLY_USAGE, b"data: " + b"x" * 2_000_000, b""]
)
def test_event_without_a_fingerprint_to_come_is_passed_as_it_is(after):
    for pieces in ([answer(0, signed=False), after], [answer(0, signed=False) + after]):
        expected = b"".join(pieces).replace(ONLY_USAGE, b"")
        assert run(EventStream(strips=True), pieces) == expected


def test_end_of_an_answer_waits_for_the_next_event_alone():
    stream = EventStream(strips=True)
    ends = answer(0, signed=False)
    assert stream.feed(ends) + stream.feed(b"data: x\n\n") == ends + b"data: x\n\n"
    assert EventStream(strips=False).feed(ends) == ends


def test_stream_without_usage_has_none():
    stream = EventStream(strips=True)
    assert run(stream, [TOKENS, b"data: {unfinished"]) == TOKENS + b"data: {unfinished"
    assert stream.usage() is None
    assert stream.events == 2


@pytest.mark.parametrize("indent", [None, 1])
def test_usage_of_a_body(indent):
    body = json.dumps(
        {"choices": [{"text": '"usage":{"prompt_tokens":99}'}], "usage": USAGE}, indent=indent
    ).encode()
    assert body_usage(body) == Usage(7, 2, 4)
    if indent is None:
        compact = json.dumps({"choices": [], "usage": USAGE, "z": None}, separators=(",", ":")).encode()
        assert body_usage(compact) == body_usage(compact[5:]) == Usage(7, 2, 4)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"usage":null}', b'{"usage":{', b'\xff{"usage":{}}']
)
def test_body_without_usage(body):
    assert body_usage(body) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"prompt_tokens": -1},
        {"prompt_tokens": "3"},
        {"prompt_tokens": True},
        {"prompt_tokens": 1, "completion_tokens": 1.5},
    ],
)
def test_what_is_no_usage(value):
    assert read_usage(value) is None


def test_usage_of_calls_without_output_and_with_nonsense_details():
    assert read_usage({"prompt_tokens": 5}) == Usage(5, 0)
    assert read_usage({"prompt_tokens": 5, "completion_tokens": None}) == Usage(5, 0)
    assert read_usage({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}) == Usage(5, 0, 5)
    assert read_usage({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": None}}) == Usage(5, 0)


RESPONSES = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 2,
    "total_tokens": 9,
}
FORGED = {"usage": {"input_tokens": 0, "output_tokens": 0, "prompt_tokens": 0, "completion_tokens": 0}}


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (RESPONSES, Usage(7, 2, 4)),
        ({"input_tokens": 7, "output_tokens": 2}, Usage(7, 2)),
        ({"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4}, Usage(7, 2, 4)),
        ({"input_tokens": 3, "output_tokens": 2, "cache_creation_input_tokens": 4}, Usage(7, 2)),
        ({"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": None}, Usage(3, 2)),
        ({"tokens": {"input_tokens": 7, "output_tokens": 2}, "cached_tokens": 4}, Usage(7, 2, 4)),
        ({"total_tokens": 7}, Usage(7, 0)),
        ({"input_tokens": 7, "image_tokens": 0}, Usage(7, 0)),
        ({"type": "duration", "seconds": 3}, None),
        ({"output_tokens": 3}, None),
    ],
)
def test_each_api_has_its_own_way_to_write_usage(value, usage):
    assert read_usage(value) == usage


def kept(place: Place, answer: object, size: int = 1000) -> Usage | None:
    body = json.dumps(answer, separators=(",", ":")).encode()
    keeper = KeptBody(place)
    for at in range(0, len(body), size):
        keeper.feed(body[at : at + size])
    assert keeper.length == len(body)
    return keeper.usage()


@pytest.mark.parametrize("length", [1, 300_000])
def test_usage_is_found_at_either_end_of_a_long_answer(length):
    assert kept(Place.END, {"data": [0.5] * length, "usage": USAGE}) == Usage(7, 2, 4)
    assert kept(Place.BEGINNING, {"usage": USAGE, "results": [0.5] * length}) == Usage(7, 2, 4)
    assert kept(Place.END, {"data": [0.5] * length, "meta": {"billed_units": {"input_tokens": 7}}}) == Usage(
        7, 0
    )


@pytest.mark.parametrize("size", [1, 7, 1000, 70_000, 10**7])
def test_usage_is_found_before_long_log_probabilities(size):
    length = 300 if size < 10 else 30_000
    answer = {"choices": [{"text": "x" * length}], "usage": USAGE, "prompt_logprobs": [-0.25] * length}
    assert kept(Place.END, answer, size) == Usage(7, 2, 4)


@pytest.mark.parametrize("answer", [{"tools": [FORGED], "usage": RESPONSES, "input_messages": [FORGED]}])
def test_usage_among_the_clients_objects_is_found_by_its_path(answer):
    assert kept(Place.ANYWHERE, answer) == Usage(7, 2, 4)


def test_answer_too_long_to_read_whole_has_no_usage():
    assert kept(Place.ANYWHERE, {"output": "x" * 1_100_000, "usage": RESPONSES}, size=100_000) is None


def test_usage_beside_raw_vectors_is_in_a_header():
    assert header_usage(json.dumps({"data": [], "usage": USAGE}).encode()) == Usage(7, 2, 4)
    assert header_usage(b"nonsense") is None


def named(kind: str, content: dict) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({**content, 'type': kind})}\n\n".encode()


def test_stream_of_responses():
    stream = EventStream(strips=False)
    begun = named("response.created", {"response": {"id": "r", "tools": [FORGED], "usage": None}})
    run(stream, [begun, named("response.output_text.delta", {"delta": "x"})])
    assert stream.usage() is None
    assert stream.prompt_usage() is None
    run(stream, [named("response.completed", {"response": {"tools": [FORGED], "usage": RESPONSES}})])
    assert stream.usage() == Usage(7, 2, 4)


@pytest.mark.parametrize(
    "last", [{"output_tokens": 2}, {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4}]
)
def test_stream_of_messages(last):
    stream = EventStream(strips=False)
    start = {"input_tokens": 3, "output_tokens": 0, "cache_read_input_tokens": 4}
    run(stream, [named("message_start", {"message": {"usage": start}})])
    assert stream.usage() is None
    assert stream.prompt_usage() == Usage(7, 0, 4)
    run(stream, [named("message_delta", {"delta": {}, "usage": last}), named("message_stop", {})])
    assert stream.usage() == Usage(7, 2, 4)


def test_stream_of_coheres():
    stream = EventStream(strips=False)
    usage = {"billed_units": {"input_tokens": 1}, "tokens": {"input_tokens": 7, "output_tokens": 2}}
    run(stream, [named("message-end", {"delta": {"finish_reason": "COMPLETE", "usage": usage}})])
    assert stream.usage() == Usage(7, 2)


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b'{"id":"resp_1","created_at":1', "resp_1"),
        (b'event: response.created\ndata: {"response":{"id": "resp_1","x":{"id":"no"}', "resp_1"),
        (b'{"id":"resp', None),
        (b'{"id":"' + b"x" * 1000 + b'"', None),
        (b"", None),
    ],
)
def test_id_of_an_answer(beginning, expected):
    assert response_id(beginning) == expected


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize("cut", range(len(TOKENS)))
def test_stream_that_broke_off_ends_between_two_events(strips, cut):
    stream = EventStream(strips=strips)
    passed = stream.feed(TOKENS[:cut])
    ended = passed + stream.cut()
    assert not ended or ended.endswith(b"\n\n")
    assert ended.rstrip(b"\n") == passed.rstrip(b"\n")
    if strips:
        assert ended == passed, "what was held back is dropped"


def test_an_answers_end_that_waited_is_passed_on_when_the_stream_breaks_off():
    stream = EventStream(strips=True)
    assert stream.feed(answer(0, signed=False)) + stream.cut() == answer(0, signed=False)
    assert stream.end() == b""


@pytest.mark.parametrize("strips", [True, False])
def test_overlong_event_that_broke_off_is_ended(strips):
    stream = EventStream(strips=strips)
    stream.feed(b"data: " + b"x" * 2_000_000)
    assert stream.cut() == b"\n\n"
