"""What the load generator makes of its records."""

from __future__ import annotations

import pytest

from fairserve.local.load import CallRecord, ClientClass, Load, summarise


def call(interaction: str, index: int = 0, status: int | None = 200, error: str = "", wait_s: float = 1.0):
    record = CallRecord(
        "class", "user", interaction, index, 2, started_s=10.0, ended_s=20.0, status=status, error=error
    )
    if status == 200:
        record.first_token_s = 10.0 + wait_s
        record.prompt_tokens, record.output_tokens = 7, 3
    return record


def test_a_refused_beginning_is_refused_and_not_cut():
    summary = summarise([call("a", status=429, error="limit"), call("b")])
    assert (summary.interactions, summary.refused, summary.cut, summary.failed_calls) == (2, 1, 0, 0)
    assert summary.wasted_tokens == 0


@pytest.mark.parametrize("status", [429, 503, 500, None])
def test_an_interaction_that_loses_a_later_call_is_cut_and_its_tokens_wasted(status):
    summary = summarise([call("a"), call("a", 1, status, "lost"), call("b"), call("b", 1)])
    assert (summary.interactions, summary.refused, summary.cut) == (2, 0, 1)
    assert (summary.wasted_tokens, summary.tokens) == (10, 30)
    assert summary.failed_calls == (status != 429)


def test_a_stream_that_breaks_is_cut():
    assert summarise([call("a", error="the stream ended early")]).cut == 1


def test_what_the_load_cancelled_itself_is_neither_cut_nor_failed():
    summary = summarise([call("a"), call("a", 1, None, "cancelled"), call("b", error="cancelled")])
    assert (summary.cut, summary.failed_calls, summary.wasted_tokens) == (0, 0, 0)


def test_percentiles_are_of_nearest_rank():
    summary = summarise([call(str(number), wait_s=number) for number in range(1, 101)])
    assert summary.percentile_s(0.5) == pytest.approx(50)
    assert summary.percentile_s(0.99) == pytest.approx(99)
    assert summary.percentile_s(1.0) == pytest.approx(100)
    assert summarise([]).percentile_s(0.5) is None
    assert summarise([call("a", wait_s=4)]).percentile_s(0.01) == pytest.approx(4)


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1:8000", "127.0.0.1:8000"])
def test_load_goes_to_this_machine_only(url):
    with pytest.raises(ValueError, match="loopback only"):
        Load(url, "model")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9"]
)
def test_loopback_is_this_machine(url):
    Load(url, "model")


def test_a_class_without_clients_is_refused_and_its_key_not_shown():
    with pytest.raises(ValueError, match="class x"):
        ClientClass("x", "hush", clients_per_user=0)
    assert "hush" not in repr(ClientClass("x", "hush"))
