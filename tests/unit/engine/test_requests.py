"""What is read of a completion's body, and how usage is asked for."""

from __future__ import annotations

import json

import pytest

from fairserve.engine.requests import read_completion


def read(**fields):
    return read_completion(json.dumps(fields).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"stream":true'])
def test_body_that_cannot_be_read_stays_as_it_is(body):
    asked = read_completion(body)
    assert (asked.payload, asked.stream, asked.strips_usage, asked.sequences) == (body, False, False, 1)


@pytest.mark.parametrize("value", [True, "true", "True", 1, "1", "on", 1.0])
def test_lenient_truth_streams(value):
    assert read(stream=value).stream


@pytest.mark.parametrize("value", [False, None, "false", 0, 2, "maybe", [], {}])
def test_everything_else_does_not(value):
    assert not read(stream=value).stream


def test_only_bytes_at_the_end_change_when_usage_is_asked_for():
    body = b' {"stream" : true,\r\n "x":"\\u00e9" }\n'
    asked = read_completion(body)
    assert asked.strips_usage
    assert asked.payload == body.rstrip()[:-1] + b',"stream_options": {"include_usage": true}}'
    assert json.loads(asked.payload)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"other": 1}, {"other": 1, "include_usage": True}),
        ({"continuous_usage_stats": True}, {"continuous_usage_stats": False, "include_usage": True}),
    ],
)
def test_clients_own_stream_options_are_kept(options, expected):
    asked = read(stream=True, stream_options=options, model="m")
    assert asked.strips_usage
    assert json.loads(asked.payload) == {"stream": True, "stream_options": expected, "model": "m"}


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": "nonsense"},
        {"stream": False},
        {"stream": False, "stream_options": {"include_usage": False}},
        {},
    ],
)
def test_body_is_untouched_where_nothing_need_be_asked(fields):
    asked = read(**fields)
    assert not asked.strips_usage
    assert asked.payload == json.dumps(fields).encode()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "utf-8-sig"])
def test_other_encodings_are_read_as_the_engine_does(encoding):
    body = '{"stream": true, "max_tokens": 3}'.encode(encoding)
    asked = read_completion(body)
    assert asked.max_output_tokens == 3
    assert json.loads(asked.payload) == {
        "stream": True,
        "max_tokens": 3,
        "stream_options": {"include_usage": True},
    }


def test_last_of_equal_keys_wins_as_in_the_engine():
    asked = read_completion(b'{"stream": false, "max_tokens": 1, "stream": true, "max_tokens": 2}')
    assert (asked.stream, asked.max_output_tokens) == (True, 2)


@pytest.mark.parametrize(
    ("fields", "sequences", "cap"),
    [
        ({}, 1, None),
        ({"max_tokens": 5}, 1, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 1, 7),
        ({"max_tokens": "5", "n": 2.0}, 2, 10),
        ({"max_tokens": 5, "n": 2, "prompt": ["a", "b", "c"]}, 6, 30),
        ({"max_tokens": 5, "prompt": [1, 2, 3]}, 1, 5),
        ({"max_tokens": 5, "prompt": [[1], [2]]}, 2, 10),
        ({"max_tokens": 0, "n": -1}, 1, None),
        ({"max_tokens": "x" * 50, "n": True}, 1, None),
    ],
)
def test_fan_out_and_cap(fields, sequences, cap):
    asked = read(**fields)
    assert (asked.sequences, asked.max_output_tokens) == (sequences, cap)


def test_user_is_text_or_nobody():
    assert read(user="u").user == "u"
    assert read(user=5).user == read().user == ""
