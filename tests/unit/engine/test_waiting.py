"""Calls that wait in the sidecar, in the engine's figure."""

from __future__ import annotations

import pytest

from fairserve.engine.metrics import read_sample
from fairserve.engine.waiting import with_waiting

#: As vLLM 0.32 says it of two engines.
TEXT = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 0.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="deferred"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_"])
def test_first_engine_gets_what_waits_here_in_all_and_for_capacity(prefix):
    text = TEXT.replace("vllm:", prefix)
    expected = text.replace(
        'requests_waiting{engine="0",model_name="m"} 2.0', 'requests_waiting{engine="0",model_name="m"} 42.0'
    ).replace(
        '{engine="0",model_name="m",reason="capacity"} 0.0',
        '{engine="0",model_name="m",reason="capacity"} 40.0',
    )
    merged, waiting = with_waiting(text.encode(), 40)
    assert merged.decode() == expected
    assert waiting == 3.0
    before, after = read_sample(text.encode()), read_sample(merged)
    assert before is not None
    assert after is not None
    assert after.waiting == before.waiting + 40


def test_nothing_changes_while_nothing_waits_here():
    assert with_waiting(TEXT.encode(), 0) == (TEXT.encode(), 3.0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vllm:num_requests_waiting 2", "vllm:num_requests_waiting 7.0"),
        ("vllm:num_requests_waiting{} 2", "vllm:num_requests_waiting{} 7.0"),
        ('vllm:num_requests_waiting {a="b"}\t2 ', 'vllm:num_requests_waiting {a="b"}\t7.0 '),
        ('vllm:num_requests_waiting{a="b"}2', 'vllm:num_requests_waiting{a="b"}7.0'),
        ('vllm:num_requests_waiting{a="}\\" 9"} 2 17', 'vllm:num_requests_waiting{a="}\\" 9"} 7.0 17'),
        ("vllm:num_requests_waiting 1e3\r", "vllm:num_requests_waiting 1005.0\r"),
    ],
)
def test_spellings_of_a_line(line, expected):
    merged, waiting = with_waiting(line.encode(), 5)
    assert merged.decode() == expected
    assert waiting is not None


@pytest.mark.parametrize(
    "line",
    [
        "# vllm:num_requests_waiting 2",
        "vllm:num_requests_waiting NaN",
        "vllm:num_requests_waiting +Inf",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting two",
        'vllm:num_requests_waiting{a="b" 2',
        'vllm:num_requests_waiting{a="b\nc"} 2',
        "vllm:num_requests_waiting2 2",
        "xvllm:num_requests_waiting 2",
        "vllm:num_requests_waiting_total 2",
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 2',
    ],
)
def test_what_does_not_say_how_many_wait_is_let_be(line):
    assert with_waiting(line.encode(), 5) == (line.encode(), None)


def test_series_that_is_no_number_is_passed_over():
    text = b'vllm:num_requests_waiting{engine="0"} NaN\nvllm:num_requests_waiting{engine="1"} 1.0\n'
    assert with_waiting(text, 2) == (text.replace(b"1.0", b"3.0"), 1.0)


@pytest.mark.parametrize("odd", [" \t", "{", '{a="', "a,", '\\"', "vllm:num_requests_waiting", " 1", "{a} "])
def test_odd_text_takes_no_longer_than_other_text(odd):
    """It would take minutes if any of it were gone over once for each of its characters."""
    for start in (
        "vllm:num_requests_waiting",
        'vllm:num_requests_waiting{a="',
        "vllm:num_requests_waiting{a",
    ):
        for end in ("", "{", '"} 1', "} 1"):
            text = f"{start}{(odd * 200_000)[:200_000]}{end}\n".encode()
            merged, _ = with_waiting(text + TEXT.encode(), 5)
            assert merged.endswith(b'model_name="m"} 0.5\n')
