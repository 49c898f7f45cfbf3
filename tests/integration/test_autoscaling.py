"""examples/12-autoscaling: what its queries say where calls wait, and whether its objects are taken."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.engine import FakeEngine, answers_after
from tests.integration.sidecars import KEY_A, ask, document, eventually, running_sidecar
from tests.parts import definitions
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane, KubectlError
from tests.parts.process import poll
from tests.parts.prometheus import Prometheus

DEADLINE_S = 60.0
EXAMPLE = REPOSITORY / "examples" / "12-autoscaling"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLE / name).read_text())


def queries() -> list[str]:
    """KEDA's, and the one that prometheus-adapter makes for the HPA, which is of the pool's namespace."""
    (trigger,) = load("keda.yaml")["spec"]["triggers"]
    (rule,) = load("prometheus-adapter.yaml")["externalRules"]
    (metric,) = load("hpa.yaml")["spec"]["metrics"]
    wanted = metric["external"]["metric"]
    assert wanted["name"] == rule["name"]["as"]
    (namespace_label,) = rule["resources"]["overrides"]
    labels = {namespace_label: "default", **wanted["selector"]["matchLabels"]}
    matchers = ",".join(f'{name}="{value}"' for name, value in labels.items())
    adapted = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"])
    return [trigger["metadata"]["query"], adapted.replace("<<.LabelMatchers>>", matchers)]


async def values(prometheus: Prometheus, query: str) -> list[float]:
    """An answer, in a thread of its own, because Prometheus scrapes sidecars of this one."""
    return [each.value for each in await asyncio.to_thread(prometheus.query, query)]


async def busy_sidecar(stack: AsyncExitStack, folder: Path, pool: str, calls: int, window: int) -> str:
    """A sidecar whose engine holds as many calls as the window allows; its address."""
    engine = await stack.enter_async_context(FakeEngine(behaviour=answers_after(asyncio.Event()), waiting=1))
    sidecar = await stack.enter_async_context(
        running_sidecar(folder, engine, document(pool=pool), max_window=window)
    )
    for _ in range(calls):
        task = asyncio.create_task(ask(sidecar.data_address, KEY_A, {}))
        stack.push_async_callback(asyncio.wait, [task])
        stack.callback(task.cancel)
    await eventually(lambda: sidecar.scheduler.running + sidecar.scheduler.queued == calls, "all calls")
    await eventually(lambda: sidecar.scheduler.running == window, "the window")
    return str(sidecar.data_address)


async def test_queries_count_the_calls_of_the_pool(tmp_path, start_prometheus):
    async with AsyncExitStack() as stack:
        for name in "abcd":
            (tmp_path / name).mkdir()
        targets = [
            await busy_sidecar(stack, tmp_path / "a", "default/llm", calls=7, window=2),
            await busy_sidecar(stack, tmp_path / "b", "default/llm", calls=4, window=3),
            await busy_sidecar(stack, tmp_path / "c", "default/other", calls=5, window=1),
            await busy_sidecar(stack, tmp_path / "d", "other/llm", calls=5, window=1),
        ]
        prometheus = await asyncio.to_thread(
            start_prometheus, [{"targets": targets, "labels": {"pod": "any"}}], scrape_interval_s=0.25
        )
        await asyncio.to_thread(
            poll,
            lambda: [each.value for each in prometheus.query("sum(fairserve_pool_info)")] == [4.0],
            DEADLINE_S,
            "a scrape of each",
        )
        assert [await values(prometheus, query) for query in queries()] == [[11.0], [11.0]]
        # What reads vLLM's name sees what waits with the sidecar, 5, beside the engine's 1.
        waiting = f'{{__name__=~"vllm[:_]num_requests_waiting",instance="{targets[0]}"}}'
        assert await values(prometheus, waiting) == [6.0]
        nothing = [query.replace('pool="llm"', 'pool="gone"') for query in queries()]
        assert [await values(prometheus, query) for query in nothing] == [[], []]


@pytest.fixture(scope="module")
def scaled(api: ControlPlane) -> ControlPlane:
    """With KEDA's definition."""
    api.kubectl("apply", "--server-side", "-f", definitions.ensure("keda"))
    api.wait_for_definitions()
    return api


def dry_run(control_plane: ControlPlane, namespace: str, text: str) -> str:
    return control_plane.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", stdin=text)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "problem"),
    [
        ("keda.yaml", "failureThreshold: 3", "failuresBefore: 3", "failuresBefore"),
        ("keda.yaml", "currentReplicasIfHigher", "whatever", "whatever"),
        ("hpa.yaml", "type: External", "type: Elsewhere", "Elsewhere"),
    ],
)
def test_objects_are_taken_and_mistakes_are_not(scaled, namespace, file, right, wrong, problem):
    text = (EXAMPLE / file).read_text()
    assert "created (server dry run)" in dry_run(scaled, namespace, text)
    with pytest.raises(KubectlError, match=problem):
        dry_run(scaled, namespace, text.replace(right, wrong))


def test_keda_and_the_hpa_do_the_same():
    keda, hpa = load("keda.yaml")["spec"], load("hpa.yaml")["spec"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    target = hpa["metrics"][0]["external"]["target"]
    trigger = keda["triggers"][0]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == (
        target["type"],
        target["averageValue"],
    )
