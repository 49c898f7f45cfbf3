"""Status: what pods acknowledged decides, conditions follow one another, times move on transitions only."""

from __future__ import annotations

from typing import Any

import pytest

from fairserve.overload.settings import OverloadState, Verdict
from fairserve_operator.api.v1alpha1 import ApplicationStatus, ServingPoolStatus, TenantStatus
from fairserve_operator.decide.conditions import Condition, merge, rfc3339
from fairserve_operator.decide.status import (
    Delivery,
    PodAck,
    application_status,
    pool_status,
    tenant_status,
)
from tests.unit.operator.builders import application, compiled, pool, tenant

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def message(status: dict[str, Any], type_: str) -> str:
    return str(next(c["message"] for c in status["conditions"] if c["type"] == type_))


def of_tenant(*deliveries: tuple[Delivery, int], **spec: Any) -> dict[str, Any]:
    a = tenant("a", **spec)
    status = tenant_status(a, compiled([a]).conditions[a.key], deliveries, None, NOW)
    TenantStatus.model_validate(status)
    return status


def of_pool(
    *pods: PodAck, generation: int = 7, verdict: Verdict | None = None, **spec: Any
) -> dict[str, Any]:
    this = pool(**spec)
    status = pool_status(this, compiled(this=this), generation, Delivery("llm", pods), verdict, None, NOW)
    ServingPoolStatus.model_validate(status)
    return status


def test_ready_when_every_pod_runs_the_generation_or_a_later_one() -> None:
    status = of_tenant((Delivery("llm", [PodAck("p0", 7), PodAck("p1", 9)]), 7), weight=3)
    assert status["programmed"] == "2/2"
    assert status["weight"] == 3.0
    assert list(conditions(status)) == ["Accepted", "ResolvedRefs", "Programmed", "Ready"]
    assert {truth for truth, _ in conditions(status).values()} == {"True"}


def test_a_pod_behind_is_named_with_its_reason() -> None:
    pods = [PodAck("p0", 7), PodAck("p1", 6, "connection refused"), PodAck("p2", 7)]
    status = of_tenant((Delivery("llm", pods), 7))
    assert status["programmed"] == "2/3"
    assert conditions(status)["Programmed"] == ("False", "PodFailing")
    assert conditions(status)["Ready"] == ("False", "PodFailing")
    assert message(status, "Programmed") == (
        '2/3 pods run this generation; pod "p1" of ServingPool "llm" runs configuration 6, not 7: '
        "connection refused"
    )


def test_a_held_tenant_is_ready_and_held() -> None:
    status = of_tenant((Delivery("llm", [PodAck("p0", 7)]), 7), stopPolicy="Hold")
    assert conditions(status)["Ready"] == ("True", "Ready")
    assert conditions(status)["Held"] == ("True", "StopPolicy")


def test_the_same_pods_are_enough_for_an_object_that_entered_earlier() -> None:
    pods = [PodAck("p0", 6), PodAck("p1", 7)]
    assert conditions(of_tenant((Delivery("llm", pods), 6)))["Programmed"] == ("True", "Acknowledged")
    assert conditions(of_tenant((Delivery("llm", pods), 7)))["Programmed"] == ("False", "Pending")


def test_pods_of_all_pools_count() -> None:
    fine, late = Delivery("fine", [PodAck("p0", 3)]), Delivery("late", [PodAck("q0", None)])
    status = of_tenant((fine, 3), (late, 12))
    assert status["programmed"] == "1/2"
    assert 'pod "q0" of ServingPool "late" has no configuration yet, not 12' in message(status, "Programmed")


def test_without_pods_nothing_is_programmed() -> None:
    status = of_tenant((Delivery("llm", []), 1))
    assert conditions(status)["Programmed"] == ("False", "NoPods")
    assert message(status, "Programmed") == 'no pods in ServingPool "llm"'
    status = of_tenant()
    assert conditions(status)["Programmed"] == ("False", "NoPods")
    assert message(status, "Programmed") == "the namespace has no ServingPool that is accepted"


def test_ready_tells_the_first_step_that_failed() -> None:
    status = of_tenant((Delivery("llm", [PodAck("p0", 1)]), 1), weight=0)
    assert conditions(status) == {
        "Accepted": ("False", "Invalid"),
        "ResolvedRefs": ("Unknown", "NotAccepted"),
        "Programmed": ("False", "NotAccepted"),
        "Ready": ("False", "Invalid"),
    }
    assert message(status, "Ready") == "spec.weight: Input should be greater than 0"
    assert "weight" not in status


def test_unresolved_references_keep_a_programmed_tenant_from_ready() -> None:
    identity = [{"apiKey": {"secretRef": {"name": "gone", "key": "k"}}}]
    status = of_tenant((Delivery("llm", [PodAck("p0", 1)]), 1), identity=identity)
    assert conditions(status)["Programmed"] == ("True", "Acknowledged")
    assert conditions(status)["Ready"] == ("False", "SecretMissing")


def test_application_status() -> None:
    chat = application("chat")
    found = compiled(applications=[chat]).conditions[chat.key]
    status = application_status(chat, found, [(Delivery("llm", [PodAck("p0", 1)]), 1)], None, NOW)
    ApplicationStatus.model_validate(status)
    assert (status["profile"], status["programmed"]) == ("Static", "1/1")
    assert conditions(status)["Ready"] == ("True", "Ready")


def test_pool_names_the_ten_worst_pods_only() -> None:
    pods = [PodAck(f"p{i:02}", i, "slow", NOW) for i in range(20)] + [PodAck("new", None), PodAck("fine", 50)]
    status = of_pool(*pods, generation=50)
    assert status["programmed"] == "1/22"
    assert (status["pods"]["total"], status["pods"]["programmed"]) == (22, 1)
    assert [p["pod"] for p in status["pods"]["behind"]] == ["new", *(f"p{i:02}" for i in range(9))]
    assert status["pods"]["behind"][0] == {"pod": "new"}
    assert status["pods"]["behind"][1] == {"pod": "p00", "generation": 0, "error": "slow", "lastAckTime": NOW}


def test_pool_says_its_policy_and_generation() -> None:
    status = of_pool(PodAck("p0", 7), scheduler={"policy": "VTC"})
    assert (status["policy"], status["generation"], status["pods"]["behind"]) == ("VTC", 7, [])
    assert conditions(status)["Ready"] == ("True", "Ready")


def test_refused_pool_says_why() -> None:
    status = of_pool(PodAck("p0", 7), scheduler={"policy": "LIFO"})
    assert conditions(status)["Accepted"] == ("False", "Invalid")
    assert conditions(status)["Programmed"] == ("False", "NotAccepted")
    assert "policy" not in status


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({}, "NoPrometheus"), ({"overload": {"prometheus": {"url": "http://p:9090"}}}, "NotEvaluated")],
)
def test_overload_is_unknown_before_the_first_verdict(spec: dict[str, Any], reason: str) -> None:
    status = of_pool(PodAck("p0", 7), **spec)
    assert conditions(status)["Overloaded"] == ("Unknown", reason)
    assert "overload" not in status


def test_verdict_becomes_condition_and_status() -> None:
    verdict = Verdict(
        OverloadState.OVERLOADED, True, False, 1_767_225_600.7, "SignalAboveThreshold", "m", "s", 4.5
    )
    status = of_pool(PodAck("p0", 7), verdict=verdict)
    assert conditions(status)["Overloaded"] == ("True", "SignalAboveThreshold")
    assert conditions(status)["Ready"] == ("True", "Ready")
    (told,) = (each for each in status["conditions"] if each["type"] == "Overloaded")
    assert told["message"] == f"overloaded since {NOW}: m"
    assert status["overload"] == {"since": NOW, "signal": "s", "value": 4.5}
    clear = Verdict(OverloadState.CLEAR, False, True, 0.0, "SignalsStale", "m")
    assert conditions(of_pool(verdict=clear))["Overloaded"] == ("False", "SignalsStale")


def test_transition_time_moves_with_the_status_and_not_with_the_message() -> None:
    first = merge([], [Condition("Ready", "False", "Pending", "1/2", 1)], NOW)
    second = merge(first, [Condition("Ready", "False", "PodFailing", "0/2", 2)], LATER)
    third = merge(second, [Condition("Ready", "True", "Ready", "2/2", 2)], LATER)
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == [NOW, NOW, LATER]
    assert (second[0]["reason"], second[0]["observedGeneration"]) == ("PodFailing", 2)


def test_merge_orders_conditions_and_drops_those_that_are_over() -> None:
    old = merge([], [Condition("Conflicted", "True", "DuplicateIdentity", "m", 1)], NOW)
    new = [Condition(t, "True", t, "m", 1) for t in ("Ready", "Programmed", "Accepted", "ResolvedRefs")]
    assert [c["type"] for c in merge(old, new, NOW)] == ["Accepted", "ResolvedRefs", "Programmed", "Ready"]


def test_rfc3339() -> None:
    assert rfc3339(1_767_225_600.9) == NOW


def test_message_is_cut_where_the_api_server_would_refuse_it() -> None:
    (told,) = merge((), [Condition("Accepted", "False", "Invalid", "x" * 40_000, 1)], NOW)
    assert len(told["message"]) == 32768
    assert told["message"].endswith("x…")
