"""Overload on one machine: built-in signals from text, queries from a Prometheus, verdicts to the sidecar."""

from __future__ import annotations

import pytest

from fairserve.local.control import SidecarError
from fairserve.local.overload_watch import OverloadWatch, one_number
from fairserve.local.signals import read_builtin
from fairserve.overload.settings import OverloadSettings, SignalSettings
from fairserve_operator.decide.signals import OverloadPlan

METRICS = """\
# HELP fairserve_queue_oldest_wait_seconds How long the oldest call waits.
# TYPE fairserve_queue_oldest_wait_seconds gauge
fairserve_queue_oldest_wait_seconds 2.5
fairserve_saturation 0.75
fairserve_saturation_other 9
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
fairserve_engine_requests_waiting 7.0
vllm:num_requests_waiting{engine="0",model_name="m"} 53.0
vllm:num_requests_waiting{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m"} 100
"""


@pytest.mark.parametrize(
    ("builtin", "value"),
    [("QueueWait", 2.5), ("Saturation", 0.75), ("KVCacheUse", 0.3), ("EngineWaiting", 7.0)],
)
def test_builtins_are_folded_as_the_operator_folds_pods(builtin, value):
    assert read_builtin("s", builtin, METRICS).value == pytest.approx(value)


def test_a_missing_family_is_no_value_and_named():
    sample = read_builtin("wait", "QueueWait", "vllm:num_requests_waiting 1\n")
    assert sample.value is None
    assert "fairserve_queue_oldest_wait_seconds" in sample.problem


def test_not_a_number_is_no_value():
    assert read_builtin("s", "Saturation", "fairserve_saturation NaN\n").value is None


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ({"status": "success", "data": {"resultType": "scalar", "result": [1, "2.5"]}}, 2.5),
        ({"status": "success", "data": {"resultType": "vector", "result": [{"value": [1, "4"]}]}}, 4.0),
        ({"status": "success", "data": {"resultType": "vector", "result": []}}, None),
        ({"status": "success", "data": {"resultType": "vector", "result": [{"value": [1, "NaN"]}]}}, None),
        ({"status": "success", "data": {"resultType": "vector", "result": [{}, {}]}}, None),
        ({"status": "error", "error": "parse error"}, None),
        ("what", None),
    ],
)
def test_a_query_gives_exactly_one_number_or_none(body, value):
    sample = one_number("q", body)
    assert sample.value == value
    assert bool(sample.problem) is (value is None)


class FakeSidecar:
    """Serves a queue wait and remembers what it was told."""

    def __init__(self) -> None:
        self.wait_s: float | None = 0.0
        self.told: list[tuple[bool, float, str]] = []

    async def metrics(self) -> str:
        if self.wait_s is None:
            raise SidecarError("GET /metrics: refused")
        return f"fairserve_queue_oldest_wait_seconds {self.wait_s}\n"

    async def put_overload(self, armed: bool, lease_s: float, reason: str) -> None:
        self.told.append((armed, lease_s, reason))


def watch(sidecar: FakeSidecar, *, query: bool = False) -> tuple[OverloadWatch, list[str]]:
    signals = [SignalSettings("queue-wait", threshold=4.0, clear_threshold=1.0, for_s=2.0)]
    queries = {"queue-wait": "ignored here"}
    if query:
        signals.append(SignalSettings("custom", 1.0, 0.5))
        queries["custom"] = "up"
    plan = OverloadPlan(
        settings=OverloadSettings(tuple(signals), stale_after_s=10.0, hold_down_s=3.0),
        queries=queries,
        builtins={"queue-wait": "QueueWait"},
        interval_s=1.0,
        prometheus_url=None,
    )
    said: list[str] = []
    return OverloadWatch(sidecar, plan, None, said.append), said


async def test_a_long_wait_arms_with_a_lease_and_its_end_disarms():
    sidecar = FakeSidecar()
    overload, said = watch(sidecar)
    armed = []
    for second, wait_s in enumerate([0, 5, 5, 5, 0, 0, 0, 0, 0]):
        sidecar.wait_s = wait_s
        armed.append((await overload.evaluate(float(second))).armed)
    assert armed[:4] == [False, False, False, True]
    assert armed[-1] is False
    assert [told[0] for told in sidecar.told] == armed
    assert {told[1] for told in sidecar.told} == {10.0}
    assert [line.split(":")[0] for line in said] == ["overloaded", "not overloaded"]
    assert "queue-wait" in said[0]


async def test_an_unreachable_sidecar_is_staleness_and_not_calm():
    sidecar = FakeSidecar()
    overload, _ = watch(sidecar)
    sidecar.wait_s = 9.0
    for second in range(4):
        verdict = await overload.evaluate(float(second))
    assert verdict.armed
    sidecar.wait_s = None
    for second in range(4, 30):
        verdict = await overload.evaluate(float(second))
    assert verdict.armed, "onStale is Hold"
    assert verdict.stale


async def test_a_signal_that_cannot_be_read_is_told_of_once():
    sidecar = FakeSidecar()
    overload, said = watch(sidecar)
    for second, wait_s in enumerate([0.0, None, None, 0.0, None]):
        sidecar.wait_s = wait_s
        await overload.evaluate(float(second))
    assert said == ["signal queue-wait has no value: GET /metrics: refused"] * 2


def test_a_query_without_a_prometheus_is_named():
    assert watch(FakeSidecar(), query=True)[0].unanswered == ("custom",)
    assert watch(FakeSidecar())[0].unanswered == ()
