"""A real Prometheus arms OIT, only the right calls are refused, and it disarms again."""

import asyncio
import json
import time
from typing import get_args

import openai
import pytest

from fairserve.local.load import ClientClass
from fairserve_operator.api.v1alpha1 import Builtin
from fairserve_operator.decide.signals import builtin_query
from tests.e2e.conftest import KEYS, backlog, tokens_to_wait
from tests.parts.process import poll
from tests.parts.vllm import MODEL

OVERLOAD = {
    "evaluationInterval": "1s",
    "staleAfter": "5s",
    "holdDown": "10s",
    "signals": [
        {"name": "queue-wait", "builtin": "QueueWait", "threshold": 2, "clearThreshold": 0.5, "for": "1s"},
        {"name": "saturation", "builtin": "Saturation", "threshold": 1.5, "clearThreshold": 1.0, "for": "1s"},
        {"name": "kv", "builtin": "KVCacheUse", "threshold": 0.98, "clearThreshold": 0.7, "for": "1s"},
    ],
}
#: Team B's users may begin this many interactions in the window while the pool is overloaded.
LIMIT = {"perUser": {"count": 5, "window": "15s"}}


def limit_team_b(stack):
    patch = {"spec": {"interactionLimits": LIMIT}}
    stack.kubectl("patch", "tenants.fairserve.dev", "team-b", "--type=merge", "-p", json.dumps(patch))
    stack.wait_condition("tenants", "team-b", "Programmed", "True")


def armed(stack):
    return [sidecar.state()["overload"]["armed"] for sidecar in stack.sidecars]


@pytest.fixture
def pool(make_stack, vllm, request):
    """Two sidecars before one vLLM: with two cores a second engine would only slow the first."""

    def make(**spec):
        stack = make_stack(f"e2e-{request.node.name[5:25].replace('_', '-').strip('-')}")
        stack.apply_example(overload=OVERLOAD, **spec)
        for _ in range(2):
            stack.add_sidecar(vllm.url)
        limit_team_b(stack)
        return stack

    return make


#: What a load waits, alone: far above the threshold, whatever the machine.
WAIT_S = 10.0


def heavy(vllm):
    """Has no limit and alone keeps the pool overloaded: throttling team B ends nothing."""
    return backlog("team-a", 120, max_tokens=tokens_to_wait(vllm, WAIT_S, 120))


def flooder(vllm):
    return backlog(
        "team-b",
        100,
        users=("flooder",),
        max_tokens=tokens_to_wait(vllm, WAIT_S, 100),
        honours_retry_after=False,
    )


AGENTS = ClientClass(
    "agents",
    KEYS["team-b"],
    application="agent",
    users=("agent-1", "agent-2"),
    calls_per_interaction=6,
    prompt_tokens=20,
    max_tokens=16,
    tool_s=(0.1, 0.3),
    think_s=(8.0, 9.0),
)
QUIET = ClientClass(
    "quiet",
    KEYS["team-a"],
    application="chat",
    users=("quiet",),
    prompt_tokens=10,
    max_tokens=8,
    think_s=(1.0, 2.0),
)


async def wait_for(check, deadline_s, what):
    return await asyncio.to_thread(poll, check, deadline_s, what)


async def test_overload_arms_refuses_the_right_calls_and_disarms(pool, vllm, run_load):
    stack = pool()
    first = stack.sidecars[0]
    retried = []

    async def story(load):
        assert armed(stack) == [False, False]
        started = time.monotonic()
        # Before overload nobody is refused whatever the rate: the flood is far above 5 in 15 s.
        await wait_for(lambda: len(load.records) > 60, 30.0, "the flood to be above its limit")
        while not any(armed(stack)):
            assert not any(record.refused for record in load.records)
            await asyncio.sleep(0.1)
        condition = await asyncio.to_thread(stack.wait_condition, "servingpools", "llm", "Overloaded", "True")
        print(f"overloaded {time.monotonic() - started:.1f} s after the flood began: {condition['message']}")
        await wait_for(lambda: all(armed(stack)), 10.0, "OIT armed in every sidecar")
        for builtin in get_args(Builtin):
            query = builtin_query(builtin, stack.namespace, stack.pool)
            assert len(stack.prometheus.query(query)) == 1, f"{builtin} is one number"
        await wait_for(lambda: any(r.refused for r in load.records), 30.0, "a refusal")
        refused = next(record for record in load.records if record.refused)
        assert refused.user == "flooder"
        retried.append(await retry_exactly(stack))
        await asyncio.sleep(10.0)  # the load goes on under throttling, for agents to finish interactions

    summaries = await run_load(first.url, [heavy(vllm), flooder(vllm), AGENTS, QUIET], story)
    assert summaries["team-b"].refused > 0
    assert summaries["agents"].refused == 0, "agents are within their limit"
    assert [summary.cut for summary in summaries.values()] == [0, 0, 0, 0]
    assert summaries["quiet"].refused == summaries["team-a"].refused == 0
    assert summaries["agents"].interactions > 2
    assert retried == [200]
    stack.wait_condition("servingpools", "llm", "Overloaded", "False")
    poll(lambda: not any(armed(stack)), 10.0, "OIT disarmed in every sidecar")


async def retry_exactly(stack):
    """As user `careful`, begin one interaction too many, wait as the refusal says, and try again."""
    client = openai.AsyncOpenAI(
        base_url=f"{stack.sidecars[1].url}/v1", api_key=KEYS["team-b"], max_retries=0, timeout=60.0
    )
    headers = {"x-fairserve-user": "careful", "x-fairserve-application": "chat"}
    hello = [{"role": "user", "content": "hello"}]

    async def begin():
        return await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=hello, max_tokens=1, extra_headers=headers
        )

    async with client:
        # All at once: one after the other they would outlast the limit's window on a slow engine.
        begun = [asyncio.create_task(begin()) for _ in range(LIMIT["perUser"]["count"] + 1)]
        done, _ = await asyncio.wait(begun, return_when=asyncio.FIRST_EXCEPTION)
        [refusal] = [call.exception() for call in done if call.exception() is not None]
        assert isinstance(refusal, openai.RateLimitError)
        told = refusal.response.headers
        assert told["x-fairserve-refused-reason"] == "user_interaction_limit"
        assert told["x-ratelimit-limit-requests"] == "5"
        assert refusal.code == "rate_limit_exceeded"
        seconds = int(told["retry-after"])
        assert 1 <= seconds <= 20
        await asyncio.sleep(seconds)
        assert any(armed(stack)), "the retry must meet an armed throttle"
        status = (await begin()).status_code
        await asyncio.gather(*begun, return_exceptions=True)
        return status


async def test_shadow_refuses_nothing_and_counts(pool, vllm, run_load):
    stack = pool(throttling={"mode": "Shadow"})
    first = stack.sidecars[0]

    def would_refuse():
        found = stack.prometheus.query('sum(fairserve_refused_interactions_total{mode="Shadow"})')
        return bool(found) and found[0].value > 0

    async def story(_):
        await wait_for(lambda: all(armed(stack)), 60.0, "OIT armed in every sidecar")
        await wait_for(would_refuse, 30.0, "the counter of would-be refusals to move")

    summaries = await run_load(first.url, [flooder(vllm), QUIET], story)
    assert [summary.refused for summary in summaries.values()] == [0, 0]
    enforced = stack.prometheus.query('sum(fairserve_refused_interactions_total{mode="Enforce"})')
    assert not enforced or enforced[0].value == 0
