"""Traces: the shape of shared CSV files, and errors with file, line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairserve.sim.errors import InputError
from fairserve.sim.traces import COLUMNS, TraceOptions, read_trace, trace_workload

HEAD = ",".join(COLUMNS) + "\n"
GOOD = (
    HEAD
    + "0.0,t1,,chat,,,13,,199\n0.5,,,chat,s1,1,100,60,0\n0.5,,,chat,s1,2,120,60,7\n9.25,t1,ann,chat,,,5,0,1\n"
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_rows_become_interactions(tmp_path):
    trace = read_trace(write(tmp_path, GOOD))
    workload = trace_workload(trace, TraceOptions(speed=0.5, users=3), seed=1)
    assert [len(plan.calls) for plan in workload.plans] == [1, 2, 1]
    assert [plan.start_s for plan in workload.plans] == [0.0, 1.0, 18.5]
    assert workload.plans[1].gaps_s == (0.0,)
    assert (workload.plans[0].client.tenant, workload.plans[0].client.user) == ("t1", "t1")
    assert workload.plans[1].client.tenant == "trace"
    assert workload.plans[1].client.user.startswith("user-")
    assert workload.plans[2].client.user == "ann"
    assert workload.plans[1].calls[0].output_tokens == 1, "an answer has at least one token"


def test_a_seed_lays_users(tmp_path):
    rows = "".join(f"{i}.0,,,chat,,,10,,5\n" for i in range(200))
    trace = read_trace(write(tmp_path, HEAD + rows))
    names = [
        [plan.client.user for plan in trace_workload(trace, TraceOptions(users=10), seed).plans]
        for seed in (1, 1, 2)
    ]
    assert names[0] == names[1] != names[2]
    assert names[0].count("user-0") > names[0].count("user-9")


def test_profiles_are_means(tmp_path):
    profile = read_trace(write(tmp_path, GOOD)).profiles()["chat"].profile
    assert profile.input_tokens == pytest.approx((13 + 100 + 120 + 5) / 4)


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "problem"),
    [
        ("user,application", "usr,application", 1, "usr", "must be user"),
        (",output_tokens", "", 1, "output_tokens", "missing"),
        ("output_tokens\n", "output_tokens,price\n", 1, "price", "no such column"),
        (",13,,199", ",-13,,199", 2, "input_tokens", "-13"),
        (",13,,199", ",,,199", 2, "input_tokens", "whole number"),
        (",13,,199", f",1{26 * '0'},,199", 2, "input_tokens", "1000000000"),
        (",13,,199", f",13,,1{26 * '0'}", 2, "output_tokens", "1000000000"),
        (",13,,199", ",13,,nan", 2, "output_tokens", "nan"),
        (",13,,199", ",13,14,199", 2, "system_tokens", "more than input_tokens"),
        ("0.5,,,chat,s1,2", "0.4,,,chat,s1,2", 4, "arrival_s", "before the line above"),
        ("9.25,", "inf,", 5, "arrival_s", "inf"),
        ("9.25,", "-1,", 5, "arrival_s", "-1"),
        ("9.25,t1,ann,chat", "9.25,t1,ann,chess", 5, "application", "unknown application 'chess'"),
        ("9.25,t1,ann,", "9.25,t1,", 5, "", "8 cells"),
        ("s1,1,", "s1,one,", 3, "call", "one"),
        ("s1,1,", "s1,2,", 4, "call", "2 is not after 2"),
        ("s1,1,", "s1,3,", 4, "call", "2 is not after 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, line, field, problem):
    assert old in GOOD
    with pytest.raises(InputError) as raised:
        read_trace(write(tmp_path, GOOD.replace(old, new, 1)), frozenset({"chat"}))
    assert raised.value.line == line
    assert raised.value.field == field
    assert problem in str(raised.value)
    assert "t.csv" in str(raised.value)


def test_calls_are_numbered_within_their_interaction(tmp_path):
    rows = "0,,,chat,s1,4,5,,1\n1,,,chat,s2,1,5,,1\n2,,,chat,s1,,5,,1\n3,,,chat,s1,6,5,,1\n"
    trace = read_trace(write(tmp_path, HEAD + rows))
    assert [row.call for row in trace.rows] == [4, 1, None, 6]


@pytest.mark.parametrize("text", ["", HEAD])
def test_an_empty_trace_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        read_trace(write(tmp_path, text))
