"""What is read of a JSON body, how usage is asked for, and what is taken out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairserve.config import INTERACTION_SOURCES
from fairserve.engine.requests import (
    EngineRequest,
    chat_amount,
    chat_batch_amount,
    completion_amount,
    decision_amount,
    either_amount,
    message_amount,
    pooling_amount,
    read_json,
    response_amount,
    scoring_amount,
    tokens_amount,
    with_priority,
    without_fields,
)


def read_completion(body: bytes, *, trusted: bool = False) -> EngineRequest:
    return read_json(body, completion_amount, trusted=trusted, usage_on_request=True)


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
        ({"max_tokens": 5, "prompt": [], "prompt_embeds": None}, 1, 5),
        ({"max_tokens": 5, "prompt": ["a", "b"], "prompt_embeds": ["x", "y"], "n": 3}, 12, 60),
        ({"max_tokens": 5, "prompt_embeds": "x"}, 1, 5),
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


@pytest.mark.parametrize(
    ("amount", "fields", "sequences", "cap"),
    [
        (chat_batch_amount, {"messages": [[{}], [{}], [{}]], "max_tokens": 5}, 3, 15),
        (chat_batch_amount, {"messages": "nonsense", "max_tokens": 5}, 1, 5),
        (response_amount, {"max_output_tokens": 7, "max_tokens": 1, "n": 9}, 1, 7),
        (response_amount, {"max_output_tokens": None}, 1, None),
        (message_amount, {"max_tokens": 7, "n": 9}, 1, 7),
        (pooling_amount, {"input": ["a"] * 5, "max_tokens": 7}, 1, 0),
        (scoring_amount, {"items": ["a", "b"], "max_tokens": 7}, 2, 2),
        (decision_amount, {"questions": {"a": {}, "b": {}}}, 2, 4),
        (tokens_amount, {"sampling_params": {"n": 2, "max_tokens": 3}, "n": 9}, 2, 6),
        (tokens_amount, {"sampling_params": None, "n": 9}, 1, None),
    ],
)
def test_each_kind_of_body_says_its_amount_in_its_own_way(amount, fields, sequences, cap):
    asked = read_json(json.dumps(fields).encode(), amount, trusted=True)
    assert (asked.sequences, asked.max_output_tokens) == (sequences, cap)


def test_usage_is_asked_for_only_where_it_must_be():
    body = b'{"stream": true}'
    asked = read_json(body, message_amount, trusted=True)
    assert (asked.stream, asked.strips_usage, asked.payload) == (True, False, body)


def test_fields_are_told_that_are_asked_for_and_hold_a_text():
    session = "user_ann_account__session_0a-1b"
    body = {
        "model": "m",
        "metadata": {"who": "ann", "user_id": session, "deep": {"er": "yes"}, "n": 7, "empty": ""},
        "user": ["list"],
    }
    wanted = (
        ("model",),
        ("metadata", "who"),
        ("metadata", "user_id"),
        ("metadata", "deep", "er"),
        ("metadata", "deep"),
        ("metadata", "n"),
        ("metadata", "empty"),
        ("user",),
        ("model", "m"),
        ("gone",),
    )
    assert read_json(json.dumps(body).encode(), message_amount, trusted=True, wanted=wanted).said == {
        ("model",): "m",
        ("metadata", "who"): "ann",
        ("metadata", "user_id"): "user_ann_account_",
        ("metadata", "deep", "er"): "yes",
    }
    assert read_json(json.dumps(body).encode(), message_amount, trusted=True).said == {}
    assert read_json(b"nonsense", message_amount, trusted=True, wanted=wanted).said == {}


def test_background_is_seen_only_where_it_exists():
    body = b'{"background": "yes"}'
    assert read_json(body, response_amount, trusted=True, runs_behind=True).background
    assert not read_json(body, completion_amount, trusted=True).background
    assert not read_json(b'{"background": 2}', response_amount, trusted=True, runs_behind=True).background


@pytest.mark.parametrize(
    ("fields", "user"),
    [
        ({"user": "u", "safety_identifier": "s", "metadata": {"user_id": "m"}}, "u"),
        ({"user": "", "safety_identifier": "s", "metadata": {"user_id": "m"}}, "s"),
        ({"user": None, "metadata": {"user_id": "m"}}, "m"),
        ({"metadata": {"user_id": 5}}, ""),
        ({"metadata": "user_id"}, ""),
        ({"metadata": {"user_id": "user_ab_account_cd_session_ef-1"}}, "user_ab_account_cd"),
        ({"metadata": {"user_id": '{"device_id": "d", "session_id": "ef-1"}'}}, '{"device_id": "d"}'),
        ({"metadata": {"user_id": "{not json"}}, "{not json"),
    ],
)
def test_user_has_several_names(fields, user):
    assert read(**fields).user == user


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"previous_response_id": "r"}, "previous_response_id", "r"),
        ({"previous_response_id": 5}, "previous_response_id", ""),
        ({"conversation": "c"}, "conversation", "c"),
        ({"conversation": {"id": "c"}}, "conversation", "c"),
        ({"conversation": {"id": 5}}, "conversation", ""),
        ({"conversation": []}, "conversation", ""),
        ({"session_id": "s"}, "session_id", "s"),
        ({"vllm_xargs": {"session_id": "s"}}, "vllm_xargs.session_id", "s"),
        ({"vllm_xargs": "session_id"}, "vllm_xargs.session_id", ""),
        ({"metadata": {"session_id": "s"}}, "metadata.session_id", "s"),
        ({"metadata": []}, "metadata.session_id", ""),
        ({"metadata": {"user_id": "user_ab_account__session_ef-1"}}, "metadata.user_id", "ef-1"),
        ({"metadata": {"user_id": '{"device_id":"d","session_id":"ef-1"}'}}, "metadata.user_id", "ef-1"),
        ({"metadata": {"user_id": '{"session_id":5}'}}, "metadata.user_id", ""),
        ({"metadata": {"user_id": "{" * 5000}}, "metadata.user_id", ""),
        ({"metadata": {"user_id": "session_ef-1"}}, "metadata.user_id", ""),
    ],
)
def test_interaction_has_several_names(fields, name, value):
    assert f"body:{name}" in INTERACTION_SOURCES
    found = read(**fields).interaction
    assert found[name] == value
    assert not any(other for key, other in found.items() if key != name)


def test_body_without_names_names_nothing():
    assert not read(messages=[]).interaction


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"{}", b'{"cache_salt": "ours"}'),
        (b' { "a" : "}" } \n', b' { "a" : "}" ,"cache_salt": "ours"}'),
        (b'{"cache_salt": "theirs", "a": 1}', b'{ "a": 1,"cache_salt": "ours"}'),
        (b'{"a": 1, "cache_salt": "x", "cache_salt": "y"}', b'{"a": 1,"cache_salt": "ours"}'),
        (b'{"cache_s\\u0061lt": "theirs"}', b'{"cache_salt": "ours"}'),
        ('{"a": "ä"}'.encode("utf-16"), '{"a": "ä","cache_salt": "ours"}'.encode()),
        (b"[1]", b"[1]"),
        (b"{", b"{"),
    ],
)
def test_salt_is_the_tenants_and_all_else_stays(body, payload):
    asked = read_json(body, completion_amount, trusted=False, cache_salt="ours")
    assert asked.payload == payload


@pytest.mark.parametrize(
    ("body", "salt"),
    [(b'{"cache_salt": "theirs"}', "theirs"), (b'{"cache_salt": null}', "ours"), (b"{}", "ours")],
)
def test_salt_of_a_trusted_client_stays(body, salt):
    asked = read_json(body, completion_amount, trusted=True, cache_salt="ours")
    assert json.loads(asked.payload)["cache_salt"] == salt


def test_salt_and_usage_go_into_one_body():
    body = b'{"stream": true}'
    asked = read_json(body, completion_amount, trusted=False, cache_salt="s", usage_on_request=True)
    assert asked.payload == b'{"stream": true,"cache_salt": "s","stream_options": {"include_usage": true}}'


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b'{"priority": -9}', b"{}"),
        (b' { "a" : 1 , "priority" : -9 } \n', b' { "a" : 1 } \n'),
        (b'{"priority":-9,\r\n"a":"}\\"\\\\"}', b'{\r\n"a":"}\\"\\\\"}'),
        (b'{"cache_salt":{"x":[1,{}]},"a":1e5,"priority":0,"b":-0.0}', b'{"a":1e5,"b":-0.0}'),
        (b'{"priority":1,"a":1,"priority":2,"a":2}', b'{"a":1,"a":2}'),
        (b'{"pri\\u006frity":1,"a":1}', b'{"a":1}'),
        (b'{"a":"\xed\xa0\x80","priority":1}', b'{"a":"\xed\xa0\x80"}'),
        (b'{"a":{"priority":1},"b":"priority"}', b'{"a":{"priority":1},"b":"priority"}'),
    ],
)
def test_place_in_the_engines_queue_is_taken_out_of_an_untrusted_body(body, payload):
    assert read_completion(body).payload == payload
    assert read_completion(body, trusted=True).payload == body


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be", "utf-8-sig"])
def test_place_is_taken_out_of_other_encodings(encoding):
    payload = read_completion('{"priority": 1, "ä": 2, "cache_salt": null}'.encode(encoding)).payload
    assert json.loads(payload) == {"ä": 2}


def test_usage_is_asked_for_in_what_is_left():
    asked = read_completion(b'{"stream":true,"priority":5}')
    assert asked.payload == b'{"stream":true,"stream_options": {"include_usage": true}}'
    asked = read_completion('{"stream":true,"priority":5}'.encode("utf-16"))
    assert json.loads(asked.payload) == {"stream": True, "stream_options": {"include_usage": True}}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "priority", '"', "\\"]), JSON, min_size=1), st.data())
def test_taking_fields_out_leaves_the_others_as_they_were(fields, data):
    names = data.draw(st.sets(st.sampled_from(sorted(fields))))
    indent = data.draw(st.sampled_from([None, 1]))
    body = json.dumps(fields, ensure_ascii=data.draw(st.booleans()), indent=indent).encode()
    left = {name: value for name, value in fields.items() if name not in names}
    assert json.loads(without_fields(body, names)) == left
    assert without_fields(body, set()) == body


@pytest.mark.parametrize(
    ("body", "placed"),
    [
        (b"{}", b'{"priority": 7}'),
        (b" { \n} \n", b' { \n"priority": 7}'),
        (b'{"a": {}}', b'{"a": {},"priority": 7}'),
        (b'{"priority":1, "a":"{"} ', b'{"priority":1, "a":"{","priority": 7}'),
    ],
)
def test_a_place_in_the_queue_goes_last_and_leaves_the_rest(body, placed):
    assert with_priority(body, 7) == placed


@given(
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_place_in_the_queue_is_what_the_engine_reads(fields, priority, encoding):
    body = json.dumps(fields, ensure_ascii=False).encode(encoding, "surrogatepass")
    assert read_completion(body).readable
    assert json.loads(with_priority(body, priority)) == {**fields, "priority": priority}


def test_a_chat_has_no_prompts_to_count():
    body = {"messages": [], "n": 2, "max_tokens": 7, "prompt": [[]] * 200, "prompt_embeds": ["x"]}
    assert chat_amount(body) == either_amount(body) == (2, 7)
    assert either_amount({"prompt": ["a", "b"], "max_tokens": 7}) == (2, 7)
