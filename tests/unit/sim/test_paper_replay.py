"""The replay of public traces: calls are cut to the engine, and keep what the trace says of them."""

from __future__ import annotations

from bench import paper_scenarios
from bench.paper import _replay
from fairserve.sim.traces import Row, Trace

MOST = paper_scenarios.LIMITS.max_model_len // 2


def call(arrival_s: float, input_tokens: int, system_tokens: int) -> Row:
    return Row(arrival_s, "", "", "rag", "", None, input_tokens, system_tokens, 10)


def test_a_replay_keeps_system_tokens_within_the_cut_input():
    trace = Trace((call(0.0, 300, 140), call(1.0, MOST + 500, 200), call(2.0, MOST + 500, MOST + 400)))
    plans = _replay("small", trace, 1).draw(1).plans
    calls = [call for plan in plans for call in plan.calls]
    assert [call.input_tokens for call in calls] == [300, MOST, MOST]
    assert [call.system_tokens for call in calls] == [140, 200, MOST]


def test_a_replay_tells_the_scheduler_of_system_tokens():
    trace = Trace((call(0.0, 300, 140), call(1.0, 500, 160)))
    profile = _replay("small", trace, 1).settings.applications["rag"].profile
    assert (profile.input_tokens, profile.system_tokens) == (400, 150)
