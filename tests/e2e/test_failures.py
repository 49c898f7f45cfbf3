"""What holds when Prometheus, the operator or a sidecar dies."""

import asyncio

from tests.e2e.conftest import KEYS
from tests.e2e.test_overload import OVERLOAD, armed, flooder, heavy, limit_team_b
from tests.parts.loopback import Client
from tests.parts.process import poll
from tests.parts.vllm import MODEL


async def overloaded_stack(make_stack, vllm, name, on_stale):
    stack = make_stack(name)
    stack.apply_example(overload=OVERLOAD | {"onStale": on_stale})
    stack.add_sidecar(vllm.url)
    limit_team_b(stack)
    return stack


async def armed_under_flood(stack):
    await asyncio.to_thread(poll, lambda: all(armed(stack)), 60.0, "OIT armed in every sidecar")


async def test_a_dead_prometheus_disarms_where_the_pool_says_so(make_stack, vllm, run_load):
    stack = await overloaded_stack(make_stack, vllm, "e2e-stale", "Disarm")

    async def story(_):
        await armed_under_flood(stack)
        stack.prometheus.kill()
        condition = await asyncio.to_thread(
            stack.wait_condition, "servingpools", "llm", "Overloaded", "False"
        )
        assert "Stale" in condition["reason"]
        assert "onStale" in condition["message"] or "stale" in condition["message"]
        await asyncio.to_thread(poll, lambda: not any(armed(stack)), 10.0, "OIT disarmed in every sidecar")
        assert stack.sidecars[0].state()["queued"] > 0, "it is the lost signal that disarmed, not the load"

    await run_load(stack.sidecars[0].url, [heavy(vllm), flooder(vllm)], story)


async def test_sidecars_go_on_without_the_operator_until_the_lease_ends(make_stack, vllm, run_load):
    stack = await overloaded_stack(make_stack, vllm, "e2e-lease", "Disarm")
    sidecar = stack.sidecars[0]
    generation = sidecar.state()["generation"]

    async def story(load):
        await armed_under_flood(stack)
        stack.operator.kill()
        assert sidecar.state()["overload"]["source"] == "Operator"
        await asyncio.to_thread(poll, lambda: not any(armed(stack)), 20.0, "the lease to end OIT")
        assert sidecar.state()["overload"]["source"] == "Stale"
        assert sidecar.state()["generation"] == generation
        done = sum(record.completed for record in load.records)
        await asyncio.to_thread(
            poll, lambda: sum(r.completed for r in load.records) > done + 20, 30.0, "calls still served"
        )

    await run_load(sidecar.url, [heavy(vllm), flooder(vllm)], story)


def test_a_restarted_sidecar_boots_from_the_secret_without_the_operator(make_stack, vllm):
    stack = make_stack("e2e-boot")
    stack.apply_example()
    sidecar = stack.add_sidecar(vllm.url)
    stack.wait_condition("tenants", "team-a", "Programmed", "True")
    before = sidecar.state()
    stack.operator.kill()
    sidecar.process.kill()
    sidecar.start()
    after = sidecar.state()
    assert (after["generation"], after["hash"]) == (before["generation"], before["hash"])
    assert chat(sidecar, KEYS["team-a"])["usage"]["completion_tokens"] == 2


def chat(sidecar, key):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {key}"}
    return Client(sidecar.url).json("POST", "/v1/chat/completions", body, headers=headers)
